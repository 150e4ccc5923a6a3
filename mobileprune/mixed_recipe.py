"""What a recipe is: one precision for every op of a file, or rules that say which op gets which; also read from JSON.

```json
{
  "name": "first_and_last_in_float",
  "description": "int8 but for both ends",
  "default": "int8",
  "io": "float32",
  "rules": [
    {"layer": "stem*", "precision": "float32"},
    {"op": "FULLY_CONNECTED", "precision": "dynamic_int8"},
    {"tensor": "^block_3_.*:Add$", "precision": "int16x8"}
  ]
}
```

A rule names ops by Keras layer, kind of op, name of tensor, or several of them, which then must all hold. Later rules
win. An op for whose kind there is no kernel of a rule's precision keeps what it had before that rule.
"""

import dataclasses
import fnmatch
import json
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

from mobileprune.errors import ConversionError, known_names
from mobileprune.layer_names import op_layers
from mobileprune.tflite_graph import TfliteGraph

PRECISIONS: Mapping[str, str] = MappingProxyType(
    {
        "float32": "as converted",
        "float16": "weights stored in 16 bits, computed in float32",
        "dynamic_int8": "int8 weights; activations quantized as they come",
        "dynamic_int4": "int4 weights; activations quantized as they come",
        "weight_only_int8": "int8 weights, computed in float32",
        "int8": "int8 weights and activations",
        "int16x8": "int8 weights, int16 activations",
    }
)
"""What one op can be. Each is also the name of a recipe that makes every op so."""

STATIC = ("int8", "int16x8")
"""Precisions whose activations have fixed ranges, measured by calibration."""

IO = ("float32", "int8", "int16", "uint8")
"""What a file can take and answer."""

# Kinds of op that have a kernel in another precision than float32, by their names in the schema.
OPS = (
    *("ADD", "AVERAGE_POOL_2D", "BATCH_MATMUL", "BROADCAST_TO", "CONCATENATION", "CONV_2D", "DEPTHWISE_CONV_2D", "DIV"),
    *("DYNAMIC_UPDATE_SLICE", "EMBEDDING_LOOKUP", "EQUAL", "FULLY_CONNECTED", "GATHER", "GATHER_ND", "GELU"),
    *("HARD_SWISH", "LOGISTIC", "MAXIMUM", "MAX_POOL_2D", "MEAN", "MIRROR_PAD", "MUL", "NOT_EQUAL", "PACK", "PAD"),
    *("PADV2", "REDUCE_MIN", "RELU", "RESHAPE", "RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR", "RSQRT", "SELECT"),
    *("SELECT_V2", "SLICE", "SOFTMAX", "SPACE_TO_DEPTH", "SPLIT", "SQRT", "SQUARED_DIFFERENCE", "STABLEHLO_COMPOSITE"),
    *("STRIDED_SLICE", "SUB", "SUM", "TANH", "TRANSPOSE", "TRANSPOSE_CONV", "UNPACK"),
)
# A recipe of some pages is one that nobody wrote by hand.
LONGEST_FILE, LONGEST_PATTERN = 1 << 20, 500
# Names of files, and of variants in the manifest, are made of them: the pattern is the manifest's.
NAME, LONGEST_NAME = re.compile(r"[a-z0-9]+(_[a-z0-9]+)*"), 64


@dataclasses.dataclass(frozen=True)
class Rule:
    """Which ops get which precision. Of `layer`, `op` and `tensor` those that are given must all hold.

    Attributes:
        precision: a name from `PRECISIONS`.
        layer: the path of a Keras layer as `mobileprune.layer_names.op_layers` tells it, with shell wildcards.
        op: a kind of op by its name in the schema: `CONV_2D`.
        tensor: a regular expression to be found in the name of the op's first output in the *float* file.

    Example:
        >>> Rule("float32", layer="block_1_*", op="ADD").describe()
        "{layer='block_1_*', op='ADD'} -> float32"
    """

    precision: str
    layer: str = ""
    op: str = ""
    tensor: str = ""

    def __post_init__(self) -> None:
        _check_known("precision", self.precision, PRECISIONS)
        if not (self.layer or self.op or self.tensor):
            raise ConversionError(
                f"A rule that gives {self.precision!r} names no ops. Give it a layer, op or tensor; "
                "for all other ops there is the default."
            )
        if self.op:
            _check_known("op", self.op, OPS)
        for pattern in (self.layer, self.tensor):
            if len(pattern) > LONGEST_PATTERN:
                raise ConversionError(f"A rule's pattern has {len(pattern)} characters; {LONGEST_PATTERN} is the most.")
        try:
            re.compile(self.tensor)
        except (re.error, RecursionError, OverflowError) as error:
            raise ConversionError(f"{self.tensor!r} is not a regular expression: {error}.") from error

    @classmethod
    def for_op(cls, tensor: str, precision: str) -> Self:
        """The rule for the one op whose first output in the float file is called `tensor`.

        Example:
            >>> Rule.for_op("block_1_add:Add", "int16x8").tensor
            '^block_1_add:Add$'
        """
        return cls(precision, tensor=f"^{re.escape(tensor)}$")

    def describe(self) -> str:
        """The rule on one line."""
        given = ((name, getattr(self, name)) for name in ("layer", "op", "tensor"))
        return f"{{{', '.join(f'{name}={value!r}' for name, value in given if value)}}} -> {self.precision}"


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a file is quantized.

    Attributes:
        name: as in file names and the manifest: up to 64 lower-case letters and digits, in words joined by `_`.
        description: for people, one clause.
        precision: what every op becomes that no rule names; see `PRECISIONS`.
        io: what the file takes and answers: `float32`, `int8`, `int16` or `uint8`.
        sparse: whether zeros are left out of the file; only for models that have many.
        rules: what single ops become; the last that matches wins.

    Example: int8 but for one op, by the name of its output in the float file.

        >>> recipe = Recipe("mixed", "one op in float", "int8", rules=(Rule.for_op("head:Dense", "float32"),))
        >>> recipe.precisions, recipe.needs_calibration
        (('int8', 'float32'), True)
    """

    name: str
    description: str
    precision: str = "float32"
    io: str = "float32"
    sparse: bool = False
    rules: tuple[Rule, ...] = ()

    def __post_init__(self) -> None:
        if reason := _unfit(self.name):
            raise ConversionError(f"{reason} Give it another.")
        _check_known("precision", self.precision, PRECISIONS)
        _check_known("io", self.io, IO)

    @property
    def precisions(self) -> tuple[str, ...]:
        """Every precision that it may give, the default first."""
        return tuple(dict.fromkeys((self.precision, *(rule.precision for rule in self.rules))))

    @property
    def needs_calibration(self) -> bool:
        """Whether ranges of activations must be measured first."""
        return self.io != "float32" or any(precision in STATIC for precision in self.precisions)

    @property
    def integer_io(self) -> bool:
        """Whether the file takes and answers integers in place of float32."""
        return self.io != "float32"

    def matches(self, graph: TfliteGraph) -> list[tuple[int, ...]]:
        """For each rule the ops of a float graph that it names, by their place.

        Raises:
            ConversionError: a rule names none.
        """
        if not self.rules:
            return []
        layers = op_layers(graph)
        found = [_matching(rule, graph, layers) for rule in self.rules]
        for rule, ops in zip(self.rules, found, strict=True):
            if not ops:
                raise ConversionError(f"Recipe {self.name!r}: {_nothing(rule, graph, layers)}")
        return found


def _unfit(name: str) -> str:
    """Why a recipe cannot be called so; empty where it can."""
    if len(name) <= LONGEST_NAME and NAME.fullmatch(name):
        return ""
    return (
        f"{name[: LONGEST_NAME + 1]!r} cannot be a recipe's name, because files are called after it: up to "
        f"{LONGEST_NAME} lower-case letters, digits and single '_' between them, as my_recipe."
    )


def _matching(rule: Rule, graph: TfliteGraph, layers: tuple[str, ...]) -> tuple[int, ...]:
    pattern = re.compile(rule.tensor)
    return tuple(
        op.index
        for op, layer in zip(graph.ops, layers, strict=True)
        if op.outputs
        and (not rule.layer or fnmatch.fnmatchcase(layer, rule.layer))
        and (not rule.op or op.name == rule.op)
        and pattern.search(graph.tensors[op.outputs[0]].name)
    )


def _nothing(rule: Rule, graph: TfliteGraph, layers: tuple[str, ...]) -> str:
    """Why a rule names no op, and what it could have named."""
    kinds = known_names(graph.histogram())
    names = known_names(dict.fromkeys(layer for layer in layers if layer), 20)
    return f"rule {rule.describe()} matches none of the {len(layers)} ops. Their kinds: {kinds}; their layers: {names}."


def read_recipe(path: str | Path) -> Recipe:
    """Reads a recipe from a JSON file; see the top of this module for one.

    Args:
        path: of the file. Its stem is the recipe's name where the file says none; a stem that cannot be one needs a
            "name" in the file.

    Raises:
        ConversionError: not readable, not JSON, or a field, op or precision that is not known; the message lists those
            that are.

    Example:
        >>> mp.convert(model, ["float32", mp.read_recipe("mix.json")], images)  # doctest: +SKIP
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            raw = file.read(LONGEST_FILE + 1)
        if len(raw) > LONGEST_FILE:
            raise ConversionError(f"Recipe file {path} has more than {LONGEST_FILE} bytes: it is something else.")
        data = json.loads(raw)
    except OSError as error:
        raise ConversionError(f"Recipe file {path} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise ConversionError(f"Recipe file {path} is not JSON: {error}.") from error
    try:
        fields = _fields(data, ("name", "description", "default", "io", "rules"), "A recipe")
        rules = data.get("rules", [])
        if not isinstance(rules, list):
            raise ConversionError(f"'rules' is a {type(rules).__name__}; give a list of rules.")
        name = fields.get("name", path.stem)
        if "name" not in fields and (reason := _unfit(name)):
            raise ConversionError(f'{reason} Add a "name" to the file.')
        return Recipe(
            name,
            fields.get("description", f"as {path.name} says"),
            fields.get("default", "float32"),
            fields.get("io", "float32"),
            rules=tuple(Rule(**_fields(rule, ("layer", "op", "tensor", "precision"), "A rule")) for rule in rules),
        )
    except ConversionError as error:
        raise ConversionError(f"Recipe file {path}: {error}") from error


def _fields(data: Any, known: tuple[str, ...], what: str) -> dict[str, str]:
    """The text fields of a JSON object that has no others."""
    if not isinstance(data, dict):
        raise ConversionError(f"{what} is an object with the fields {known_names(known)}, not a {type(data).__name__}.")
    for name, value in data.items():
        _check_known("field", name, known)
        if name != "rules" and not isinstance(value, str):
            raise ConversionError(f"Field {name!r} is {json.dumps(value)[:80]}; it must be text.")
    if "precision" in known and "precision" not in data:
        raise ConversionError(f"{what} has no 'precision'. Known: {known_names(PRECISIONS)}.")
    return {name: value for name, value in data.items() if name != "rules"}


def _check_known(what: str, value: str, known: Any) -> None:
    if value not in known:
        raise ConversionError(f"There is no {what} {value!r}. Known: {known_names(known, len(OPS))}.")
