"""Which ops of an integer file need more than eight bits? Measured op by op, and then as few raised as will do.

An op's sensitivity is what the *float* file loses when that op alone computes in eight bits, its inputs and output
rounded. (The other way round, one op raised in an integer file, tells little: values that are rounded before and after
it are as lost as before.) Sensitivities are measured once; bisection then finds how many of the most sensitive ops have
to be raised, and what of them turns out to be unnecessary goes back.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mobileprune.errors import ConversionError, InterpreterError, SettingsError
from mobileprune.evaluate import accuracy
from mobileprune.json_record import Record
from mobileprune.layer_names import layer_of
from mobileprune.mixed_recipe import Recipe, Rule
from mobileprune.recipes import quantize, recipe_named
from mobileprune.tflite_graph import read_graph
from mobileprune.tflite_runner import TfliteRunner
from mobileprune.verify import HIGHEST_SNR_DB, TOLERANCES, compare

# So many images rank ops; accuracies are measured on all.
RANKING_IMAGES = 32
# What ops are raised to, the most exact first: a cheaper one is taken where it does as well.
_EXACT, _CHEAPER = "float32", "int16x8"

Raised = dict[str, str]
"""An op's output in the float file → the precision that it is raised to."""


@dataclasses.dataclass(frozen=True)
class Sensitivity(Record):
    """What eight bits in one op alone do to the outputs.

    Attributes:
        layer: the Keras layer, or the tensor's name where the file does not say.
        op: the op's name in the schema.
        tensor: the op's output in the float file.
        snr_db: signal-to-noise ratio of the file's outputs when only this op has integer weights and activations; -200
            when such a file does not run.
    """

    layer: str
    op: str
    tensor: str
    snr_db: float


@dataclasses.dataclass(frozen=True)
class Remedy(Record):
    """What the outputs gain when the most sensitive ops are kept in float, everything else as the recipe says.

    Attributes:
        layers: the ops' Keras layers, the most sensitive first.
        before_db: signal-to-noise ratio of the outputs as the recipe has them.
        after_db: the same with these ops in float.
    """

    layers: tuple[str, ...]
    before_db: float
    after_db: float

    def sentence(self) -> str:
        """The measurement, for people."""
        verb = "raises" if self.after_db >= self.before_db else "lowers"
        return (
            f"Keeping {', '.join(self.layers)} in float32 {verb} the outputs from {self.before_db:.1f} to "
            f"{self.after_db:.1f} dB."
        )


@dataclasses.dataclass(frozen=True)
class PrecisionChoice(Record):
    """How a mixed recipe was found. Accuracies are shares, 0 to 1; of agreement with the float file without labels.

    Attributes:
        accuracy_float: of the float file on the validation images.
        accuracy_before: of the recipe to begin with.
        accuracy: of the recipe that was chosen.
        max_drop: the points that may be lost against float.
        raised: the outputs, in the float file, of the ops that were raised, and the precision of each.
        sensitivities: of every op, the most sensitive first; empty where nothing had to be raised.
        trials: recipes whose accuracy was measured.
    """

    accuracy_float: float
    accuracy_before: float
    accuracy: float
    max_drop: float
    raised: dict[str, str]
    sensitivities: tuple[Sensitivity, ...]
    trials: int

    @property
    def drop(self) -> float:
        """Points lost against float; negative when it gained."""
        return 100 * (self.accuracy_float - self.accuracy)

    @property
    def met(self) -> bool:
        """Whether no more is lost than was allowed."""
        return self.drop <= self.max_drop

    def sentence(self) -> str:
        """What was raised and what it brought, for people."""
        before = 100 * (self.accuracy_float - self.accuracy_before)
        if not self.raised:
            return f"Nothing was raised: {before:.2f} points are lost; {self.max_drop:g} are allowed."
        named = ", ".join(f"{layer_of(tensor) or tensor} ({precision})" for tensor, precision in self.raised.items())
        return (
            f"Raised {len(self.raised)} ops: {named}. {self.drop:.2f} points are lost in the place of {before:.2f}; "
            f"{self.max_drop:g} are allowed."
        )


def sensitivities(content: bytes, ranges: Any, images: np.ndarray, *, threads: int = 2) -> tuple[Sensitivity, ...]:
    """What eight bits do in each op alone, the most sensitive op first.

    Args:
        content: the float32 file.
        ranges: what `mobileprune.calibration.calibrate` measured on it.
        images: float32 (N, H, W, C), N at least 2; the first `RANKING_IMAGES` are used.
        threads: for interpreters.

    Returns:
        One entry for each op that has an integer kernel.

    Raises:
        InterpreterError: the float file cannot be run.
    """
    graph, chosen = read_graph(content), images[:RANKING_IMAGES]
    expected = _run(content, chosen, threads)
    found = []
    for op in graph.ops:
        tensor = graph.tensors[op.outputs[0]].name if op.outputs else ""
        try:
            alone = Recipe("alone", "one op in eight bits", "float32", rules=(Rule.for_op(tensor, "int8"),))
            snr_db = _snr(expected, _run(quantize(content, alone, ranges), chosen, threads))
        except ConversionError:  # it has no such kernel, so no integer file has it either
            continue
        except InterpreterError:  # what no runtime runs is as wrong as can be
            snr_db = -HIGHEST_SNR_DB
        found.append(Sensitivity(layer_of(tensor) or tensor, op.name, tensor, snr_db))
    return tuple(sorted(found, key=lambda each: each.snr_db))


def remedies(
    content: bytes,
    ranges: Any,
    images: np.ndarray,
    recipe: str | Recipe = "int8_float_io",
    ranking: Sequence[Sensitivity] = (),
    counts: Sequence[int] = (1, 2, 4, 8),
    *,
    threads: int = 2,
) -> tuple[Remedy, ...]:
    """What it brings to keep the most sensitive ops in float: one measurement for each count.

    Args:
        content: the float32 file.
        ranges: what `mobileprune.calibration.calibrate` measured on it.
        images: float32 (N, H, W, C), N at least 2; the first `RANKING_IMAGES` are used.
        recipe: the recipe to begin with, of integer activations.
        ranking: what `sensitivities` said; measured here if empty.
        counts: how many ops are kept in float each time.
        threads: for interpreters.

    Raises:
        ConversionError, InterpreterError: the recipe cannot be made or run.

    Example:
        >>> for remedy in remedies(content, ranges, images):  # doctest: +SKIP
        ...     print(remedy.sentence())
        Keeping block_3_project in float32 raises the outputs from 18.2 to 27.9 dB.
    """
    start, chosen = _renamed(recipe, "remedy"), images[:RANKING_IMAGES]
    ranking = ranking or sensitivities(content, ranges, images, threads=threads)
    expected = _run(content, chosen, threads)

    def outputs_db(raised: Raised) -> float:
        return _snr(expected, _run(quantize(content, _with(start, raised), ranges), chosen, threads))

    before = outputs_db({})
    return tuple(
        Remedy(tuple(each.layer for each in worst), before, outputs_db({each.tensor: _EXACT for each in worst}))
        for worst in (ranking[:count] for count in counts if count <= len(ranking))
    )


def choose_precision(
    content: bytes,
    ranges: Any,
    validation: tuple[np.ndarray, np.ndarray | None],
    max_drop: float = 0.5,
    recipe: str | Recipe = "int8_float_io",
    *,
    name: str = "mixed",
    threads: int = 2,
) -> tuple[Recipe, PrecisionChoice]:
    """Raises the precision of as few ops as bring the loss of accuracy below `max_drop`.

    Ops are raised to float32, and then to int16x8 instead wherever the runtime has the kernels and the drop is met so.

    Args:
        content: the float32 file.
        ranges: what `mobileprune.calibration.calibrate` measured on it.
        validation: float32 images (N, H, W, C) and integer labels (N,), neither training nor test data. Labels None
            count agreement with the float file in place of accuracy.
        max_drop: points of accuracy that may be lost against the float file.
        recipe: the recipe to begin with, of integer activations.
        name: of the recipe that comes out.
        threads: for interpreters.

    Returns:
        The recipe, and how it was found. `met` is False when the drop is not met with every op in float.

    Raises:
        ConversionError, InterpreterError: the recipe to begin with cannot be made or run.
        DatasetError: labels that no output can mean.
        SettingsError: a negative `max_drop`.

    Example:
        >>> ranges = calibrate(content, images)  # doctest: +SKIP
        >>> recipe, choice = choose_precision(content, ranges, (images, labels), max_drop=0.5)  # doctest: +SKIP
        >>> print(choice.sentence())  # doctest: +SKIP
        Raised 1 ops: block_3_project (int16x8). 0.20 points are lost in the place of 7.40; 0.5 are allowed.
    """
    if not max_drop >= 0:
        raise SettingsError(f"max_drop is {max_drop:g}; points that may be lost are 0 or more.")
    images, labels = validation
    start = _renamed(recipe, name)
    expected = _run(content, images, threads)
    truth = expected.argmax(axis=1) if labels is None else labels
    of_float = accuracy(expected, truth)
    measured: dict[frozenset[tuple[str, str]], float] = {}

    def score(raised: Raised) -> float:
        """The accuracy with these ops raised; below zero where no such file works."""
        key = frozenset(raised.items())
        if key not in measured:
            try:
                made = quantize(content, _with(start, raised), ranges)
                measured[key] = accuracy(_run(made, images, threads), truth)
            except (ConversionError, InterpreterError):
                if not raised:
                    raise
                measured[key] = -1.0
        return measured[key]

    def enough(raised: Raised) -> bool:
        return 100 * (of_float - score(raised)) <= max_drop

    raised: Raised = {}
    ranking: tuple[Sensitivity, ...] = ()
    if not enough(raised):
        ranking = sensitivities(content, ranges, images, threads=threads)
        raised = _fewest([each.tensor for each in ranking], enough)
    return _with(start, raised), PrecisionChoice(
        accuracy_float=of_float,
        accuracy_before=score({}),
        accuracy=score(raised),
        max_drop=max_drop,
        raised=raised,
        sensitivities=ranking,
        trials=len(measured),
    )


def _fewest(ranked: Sequence[str], enough: Callable[[Raised], bool]) -> Raised:
    """The fewest ops, and the cheapest precision of each, that are enough; all in float where nothing is.

    Args:
        ranked: outputs of the ops, the most sensitive first.
        enough: whether so much is enough. It need not be monotone: what comes out was measured, and is enough.
    """
    low, high = 0, len(ranked)  # `low` are too few; `high` are enough, or all there are
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(dict.fromkeys(ranked[:middle], _EXACT)) else (middle, high)
    raised = dict.fromkeys(ranked[:high], _EXACT)
    if not enough(raised):
        return raised
    for tensor in reversed(ranked[:high]):  # the least sensitive is the likeliest to be needless
        fewer = {other: precision for other, precision in raised.items() if other != tensor}
        if enough(fewer):
            raised = fewer
    if enough(cheaper := dict.fromkeys(raised, _CHEAPER)):
        return cheaper
    for tensor in raised:
        if enough(cheaper := {**raised, tensor: _CHEAPER}):
            raised = cheaper
    return raised


def _renamed(recipe: str | Recipe, name: str) -> Recipe:
    """The recipe under a name of its own: built-in names stand for built-in rules."""
    return dataclasses.replace(recipe if isinstance(recipe, Recipe) else recipe_named(recipe), name=name)


def _with(start: Recipe, raised: Raised) -> Recipe:
    rules = tuple(Rule.for_op(tensor, precision) for tensor, precision in raised.items())
    return dataclasses.replace(start, rules=start.rules + rules)


def _run(content: bytes, images: np.ndarray, threads: int) -> np.ndarray:
    with TfliteRunner(content, threads, name="the file") as runner:
        return runner.run(images)


def _snr(expected: np.ndarray, actual: np.ndarray) -> float:
    return compare(expected, actual, TOLERANCES["int8"]).snr_db
