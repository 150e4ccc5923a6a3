"""Float flatbuffer in, quantized flatbuffers out: each recipe is a rewrite of the file, not another conversion.

litert-quantizer does the rewriting. It is imported inside the functions that use it, because importing it takes most of
a second. Integer arithmetic and ranges follow Jacob et al., "Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference", CVPR 2018; weights of convolutions and dense layers have one scale per channel.
"""

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from mobileprune.calibration import REFUSALS, Ranges, calibrate
from mobileprune.errors import ConversionError, known_names
from mobileprune.int16_scales import with_general_int16
from mobileprune.layer_names import FloatOp, float_layers
from mobileprune.mixed_recipe import PRECISIONS, STATIC, Recipe, read_recipe
from mobileprune.noise import captured_noise, described
from mobileprune.records import Variant
from mobileprune.sparse_encoding import encode_sparse
from mobileprune.sparse_path import check_arm
from mobileprune.tflite_graph import FLOATS, TfliteGraph, read_graph
from mobileprune.uint8_io import with_uint8_io

RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
        recipe.name: recipe
        for recipe in (
            *(Recipe(name, PRECISIONS[name], name) for name in ("float32", "float16", "dynamic_int8")),
            Recipe("int8", "int8 weights, activations, input and output", "int8", io="int8"),
            Recipe("int8_float_io", "int8 inside, float32 input and output", "int8"),
            Recipe("uint8_io", "int8 inside, uint8 input and output", "int8", io="uint8"),
            Recipe("int16x8", "int8 weights; int16 activations, input and output", "int16x8", io="int16"),
            *(Recipe(name, PRECISIONS[name], name) for name in ("dynamic_int4", "weight_only_int8")),
            Recipe("float32_sparse", "as converted, zeros left out of the file", sparse=True),
            Recipe("float16_sparse", "weights stored in 16 bits, zeros left out of the file", "float16", sparse=True),
        )
    }
)

# What a quantization-aware model brings weights and ranges for.
LEARNED_RECIPES = ("int8", "int8_float_io", "uint8_io")


def recipe_named(name: str) -> Recipe:
    """The recipe of that name, or the one in that JSON file (see `read_recipe`).

    Raises:
        ConversionError: there is none; the known ones are listed.
    """
    if name.endswith(".json"):
        return read_recipe(name)
    if name not in RECIPES:
        raise ConversionError(f"There is no recipe {name!r}. Known: {known_names(RECIPES)}, and files called *.json.")
    return RECIPES[name]


def make_variants(
    content: bytes,
    recipes: Sequence[str | Recipe],
    calibration: Any | None = None,
    name: str = "model",
    *,
    calibration_method: str = "minmax",
    input_range: tuple[float, float] | None = None,
    strict_int8: bool = False,
) -> list[Variant]:
    """Every recipe's variant of one float flatbuffer, in the order of `recipes`. Ranges are measured once for all.

    Args:
        content: a float32 `.tflite` with dense weights.
        recipes: names from `RECIPES`, JSON files of mixed recipes (`*.json`), or recipes.
        calibration: see `calibrate`; needed if one of the recipes needs it.
        name: what the variants' `model` is.
        calibration_method: how ranges follow from activations: `minmax`, `percentile` or `mse`; see `calibrate`.
        input_range: smallest and largest value that preprocessing can make (`contract_range`); see `calibrate`.
        strict_int8: whether ops that a recipe with integer activations leaves in float are an error; see `quantize`.

    Raises:
        ConversionError: an unknown recipe, no calibration data for a recipe that needs some, the quantizer refuses the
            graph, or there are too few zeros for a sparse recipe. Nothing is made before the names and the data have
            been checked.
        VerificationError: a sparse recipe would make a file that breaks on ARM; see `quantize`.
        DatasetError: the calibration data cannot be meant; see `calibrate`.

    Example:
        >>> make_variants(content, ["float32", "dynamic_int8"])  # doctest: +SKIP
        [Variant(model='model', recipe='float32'), Variant(model='model', recipe='dynamic_int8')]
    """
    chosen = check_recipes(recipes, calibration)
    ranges = None
    if any(recipe.needs_calibration for recipe in chosen):
        ranges = calibrate(content, calibration, calibration_method, input_range=input_range)
    return [
        Variant(
            model=name,
            recipe=recipe.name,
            content=quantize(content, recipe, ranges, strict_int8=strict_int8),
            precisions=recipe.precisions if recipe.rules else (),
        )
        for recipe in chosen
    ]


def check_recipes(recipes: Sequence[str | Recipe], calibration: Any | None) -> list[Recipe]:
    """The recipes that are meant; refuses unknown ones, and those that need calibration when there is no data.

    Raises:
        ConversionError: see `make_variants`; also when two of them would have the same name.
    """
    if not recipes:
        raise ConversionError(f"No recipe was named. Known: {known_names(RECIPES)}.")
    chosen = [recipe if isinstance(recipe, Recipe) else recipe_named(recipe) for recipe in recipes]
    names = dict(RECIPES)
    for recipe in chosen:
        if names.setdefault(recipe.name, recipe) != recipe:
            known = "is built in" if recipe.name in RECIPES else "stands for another one here"
            raise ConversionError(f"A recipe is called {recipe.name!r}, which {known}. Give it another name.")
        if recipe.needs_calibration and calibration is None:
            raise ConversionError(
                f"Recipe {recipe.name!r} needs calibration data to measure the range of every activation. "
                "Give calibration=, about 100 training images preprocessed as for the model."
            )
    return chosen


def quantize(content: bytes, recipe: str | Recipe, ranges: Ranges | None = None, *, strict_int8: bool = False) -> bytes:
    """One recipe's version of a float flatbuffer.

    Args:
        content: a float32 `.tflite` with dense weights.
        recipe: a name from `RECIPES`, or a recipe.
        ranges: what `calibrate` measured, for recipes that need it.
        strict_int8: refuse the file when ops that should compute in integers (`int8`, `int16x8`) compute in float,
            because the quantizer cannot make them so. `float_layers` tells the same of any file.

    Raises:
        ConversionError: see `make_variants`; also when a recipe with integer input and output leaves one in float, and
            when a sparse recipe finds too few zeros (see `mobileprune.sparse_encoding`).
        VerificationError: stored sparsely, the file would fail or answer wrongly on ARM (see `check_arm`).
    """
    (chosen,) = check_recipes([recipe], ranges)
    dense = _dense(content, chosen, ranges, strict_int8)
    if not chosen.sparse:
        return dense
    sparse = encode_sparse(dense)
    check_arm(sparse)
    return sparse


def _dense(content: bytes, chosen: Recipe, ranges: Ranges | None, strict_int8: bool) -> bytes:
    graph = read_graph(content)
    if chosen.precisions == ("float32",) and not chosen.integer_io:
        return content
    if "DENSIFY" in graph.histogram():
        raise ConversionError(
            f"The file stores sparse weights (DENSIFY), which recipe {chosen.name!r} cannot read. "
            "Quantize the dense file."
        )
    from litert_quantizer import quantizer

    matches = chosen.matches(graph)
    with captured_noise() as said:
        try:
            rewriting = quantizer.Quantizer(content, _instructions(chosen, graph, matches))
            result = rewriting.quantize(
                ranges if chosen.needs_calibration else None, enable_progress_bar=False, enable_progress_report=False
            )
        except REFUSALS as error:
            raise ConversionError(f"Recipe {chosen.name!r} was refused: {described(error, said())}") from error
    quantized = bytes(result.quantized_model)
    if "int16x8" in chosen.precisions:
        quantized = with_general_int16(quantized)
    if chosen.integer_io:
        _check_io(read_graph(quantized), chosen)
    if chosen.io == "uint8":
        quantized = with_uint8_io(quantized)
    if strict_int8:
        _check_strict(quantized, chosen, graph, matches)
    return quantized


def _instructions(recipe: Recipe, graph: TfliteGraph, matches: list[tuple[int, ...]]) -> Any:
    """The recipe in litert-quantizer's own terms: ops are found by regular expressions, and the last that fits wins."""
    from litert_quantizer import recipe_manager
    from litert_quantizer.qtyping import TFLOperationName as Operation

    manager = recipe_manager.RecipeManager()

    def add(expression: str, operation: Any, precision: str) -> None:
        algorithm, config = _terms(precision)
        manager.add_quantization_config(expression, operation, config, algorithm)

    add(".*", Operation.ALL_SUPPORTED, recipe.precision)
    for place, (rule, ops) in enumerate(zip(recipe.rules, matches, strict=True)):
        if not any(_possible(rule.precision, graph.ops[op].name) for op in ops):
            kinds = known_names(sorted({graph.ops[op].name for op in ops}))
            raise ConversionError(
                f"Recipe {recipe.name!r}: rule {rule.describe()} matches only ops without such a kernel: {kinds}."
            )
        # An op goes by the names of its outputs, each with a semicolon behind. The comment keeps expressions apart: of
        # two equal ones the later would take the earlier one's place in the order.
        scopes = ("".join(f"{graph.tensors[output].name};" for output in graph.ops[op].outputs) for op in ops)
        add(f"(?#{place})^(?:{'|'.join(map(re.escape, scopes))})$", Operation.ALL_SUPPORTED, rule.precision)
    for edge in (Operation.INPUT, Operation.OUTPUT):
        add("(?#io).*", edge, {"float32": "float32", "int16": "int16x8"}.get(recipe.io, "int8"))
    return manager.get_quantization_recipe()


def _terms(precision: str) -> tuple[str, Any]:
    """litert-quantizer's algorithm and configuration for one op."""
    from litert_quantizer import qtyping
    from litert_quantizer.algorithm_manager import AlgorithmName

    if precision == "float32":
        return AlgorithmName.NO_QUANTIZE, None
    tensor, integer = qtyping.TensorQuantizationConfig, qtyping.ComputePrecision.INTEGER
    # Kernels take symmetric weights only, and symmetric activations of 16 bits.
    bits = 4 if precision == "dynamic_int4" else 8
    weights = tensor(num_bits=bits, symmetric=True, granularity=qtyping.QuantGranularity.CHANNELWISE)
    if precision in STATIC:
        activations = tensor(num_bits=16, symmetric=True) if precision == "int16x8" else tensor(8, symmetric=False)
        config = qtyping.OpQuantizationConfig(activations, weights, integer, explicit_dequantize=False)
    elif precision.startswith("dynamic"):
        config = qtyping.OpQuantizationConfig(None, weights, integer, explicit_dequantize=False)
    else:
        if precision == "float16":
            weights = tensor(num_bits=16, dtype=qtyping.TensorDataType.FLOAT)
        config = qtyping.OpQuantizationConfig(None, weights, qtyping.ComputePrecision.FLOAT, explicit_dequantize=True)
    return AlgorithmName.FLOAT_CASTING if precision == "float16" else AlgorithmName.MIN_MAX_UNIFORM_QUANT, config


def _possible(precision: str, kind: str) -> bool:
    """Whether litert-quantizer makes ops of a kind so."""
    from litert_quantizer import algorithm_manager
    from litert_quantizer.qtyping import TFLOperationName as Operation

    if precision == "float32":
        return True
    name = "CONV_2D_TRANSPOSE" if kind == "TRANSPOSE_CONV" else kind
    algorithm, config = _terms(precision)
    try:
        algorithm_manager.check_op_quantization_config(algorithm, Operation(name), config)
    except ValueError:  # also for a kind that it does not know at all
        return False
    return True


def _check_io(graph: TfliteGraph, recipe: Recipe) -> None:
    stored = recipe.io.upper().removeprefix("U")  # int8 becomes uint8 afterwards
    for kind, tensors in (("input", graph.inputs), ("output", graph.outputs)):
        for tensor in tensors:
            if tensor.dtype != stored:
                kinds = known_names(sorted({op.name for op in graph.float_ops()}))
                why = (
                    f"because the quantizer makes no integer ops of these: {kinds}"
                    if tensor.dtype in FLOATS
                    else "because the model itself computes integers there, which have no scale"
                )
                raise ConversionError(
                    f"Recipe {recipe.name!r} leaves the {kind} {tensor.name!r} in {tensor.dtype}, {why}. "
                    "Use 'int8_float_io'."
                )


def check_learned(content: bytes, recipe: Recipe, strict_int8: bool) -> None:
    """Refuses an int8 file that was not made here: float input or output where the recipe has integers, float ops.

    Raises:
        ConversionError: as `quantize`.
    """
    if recipe.integer_io:
        _check_io(read_graph(content), recipe)
    if strict_int8:
        _check_none_left(recipe, list(float_layers(content)))


def _check_strict(quantized: bytes, recipe: Recipe, graph: TfliteGraph, matches: list[tuple[int, ...]]) -> None:
    """Refuses a file with float ops of which the recipe says that they compute in integers."""
    asked = dict.fromkeys(range(len(graph.ops)), recipe.precision)
    for rule, ops in zip(recipe.rules, matches, strict=True):
        asked |= dict.fromkeys(ops, rule.precision)
    integer = {graph.tensors[output].name for op in graph.ops if asked[op.index] in STATIC for output in op.outputs}
    _check_none_left(recipe, [op for op in float_layers(quantized) if op.tensor in integer])


def _check_none_left(recipe: Recipe, left: list[FloatOp]) -> None:
    if left:
        raise ConversionError(
            f"Recipe {recipe.name!r} leaves {len(left)} ops in float, of which the quantizer makes no integer ones: "
            f"{known_names(map(str, left))}. Replace their layers, or allow float ops."
        )
