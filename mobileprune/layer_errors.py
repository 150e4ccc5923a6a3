"""Where a quantized file parts from float: both files run side by side, and every op's output is compared.

The signal of a tensor is what differs from image to image: the standard deviation of each of its values over the
images, pooled. What is the same for every image tells no images apart, and would hide noise in tensors that are far
from zero. It is told for the whole tensor and for the median channel: eight bits for a tensor in which one channel is
hundreds of times larger than the others leave the tensor a fine ratio and the others nothing.

Both files run on the runtime's own kernels, because XNNPACK keeps what is inside its part to itself; the
ops compute the same there but for rounding.
"""

import dataclasses
import math
from collections.abc import Mapping

import numpy as np

from mobileprune.errors import ModelError, VerificationError
from mobileprune.json_record import Record
from mobileprune.layer_names import layer_of
from mobileprune.tflite_graph import STORAGE_OPS, GraphOp, GraphTensor, TfliteGraph, read_graph
from mobileprune.tflite_runner import TfliteRunner

HIGHEST_DB = 200.0
# What eight bits reach. Above it the runtime's input is exact or nearly so, and the first op always falls far.
CEILING_DB = 40.0
# A fall of the signal-to-noise ratio by so much from an op's worst input to its output is worth a look.
FALL_DB = 6.0
# So many values of both files' tensors are in memory at once: 1 GB with the sums over the images.
_MOST_VALUES = 2**26
_LIMITS = {"INT8": (-128, 127), "UINT8": (0, 255), "INT16": (-32768, 32767)}


@dataclasses.dataclass(frozen=True)
class LayerError(Record):
    """How far one op's output is from what the float file computes there.

    Attributes:
        layer: the Keras layer, or the tensor's name where the file does not say.
        op: the op's name in the schema; `INPUT` for the file's input.
        tensor: the name of the op's output in the float file.
        dtype: of the output in the quantized file.
        snr_db: signal-to-noise ratio of the whole tensor in decibels, at most 200.
        channel_snr_db: the same of the median channel: half of the channels that carry a signal have less.
        fall_db: how far `channel_snr_db` is below that of the worst of the op's inputs, above 40 dB counted as 40;
            noise that is passed on does not count.
        max_abs_error: largest absolute difference of any value.
        mean_abs_error: mean absolute difference.
        range_used: share of the range that the dtype and scale can hold which the float values fill; None for floats.
        cut: share of the float values that lie beyond that range; None for floats.
    """

    layer: str
    op: str
    tensor: str
    dtype: str
    snr_db: float
    channel_snr_db: float
    fall_db: float
    max_abs_error: float
    mean_abs_error: float
    range_used: float | None = None
    cut: float | None = None


@dataclasses.dataclass(frozen=True)
class LayerErrors(Record):
    """Every op that the two files have in common, in the order of computation.

    Attributes:
        images: how many were run.
        runtime: what ran both files.
        layers: one entry an op; the file's input comes first.
        unpaired: float ops without a counterpart in the quantized file.
    """

    images: int
    runtime: str
    layers: tuple[LayerError, ...]
    unpaired: tuple[str, ...] = ()

    def first_fall(self, fall_db: float = FALL_DB) -> LayerError | None:
        """The first op whose output is `fall_db` or more below its inputs; None where all follow them closely."""
        return next((layer for layer in self.layers[1:] if layer.fall_db >= fall_db), None)

    def worst(self, count: int) -> tuple[LayerError, ...]:
        """The ops with the largest falls, the worst first; the input is none of them."""
        return tuple(sorted(self.layers[1:], key=lambda layer: -layer.fall_db)[:count])

    def sentence(self, fall_db: float = FALL_DB) -> str:
        """Where the file parts from float, for people."""
        fallen = self.first_fall(fall_db)
        last = self.layers[-1]
        if fallen is None:
            return f"No op loses {fall_db:g} dB against its inputs; the output has {last.snr_db:.1f} dB."
        return (
            f"The first loss of {fall_db:g} dB or more is in {fallen.layer} ({fallen.op}): {fallen.fall_db:.1f} dB, to "
            f"{fallen.channel_snr_db:.1f} dB; the output has {last.snr_db:.1f} dB."
        )


def layer_errors(
    float_content: bytes,
    content: bytes,
    images: np.ndarray,
    *,
    threads: int = 2,
    timeout_s: float = 60.0,
) -> LayerErrors:
    """Compares a quantized file with its float file op by op, on the same images.

    One image at a time is run and compared, so that memory does not grow with their number.

    Args:
        float_content: the float32 file that the other one was made from.
        content: the quantized file.
        images: float32 (N, H, W, C), N at least 2; 16 tell enough.
        threads: for each interpreter.
        timeout_s: for each image.

    Raises:
        ModelError: one of the files is damaged.
        InterpreterError: one of the files cannot be run.
        VerificationError: too few images, or the files have no op in common.

    Example:
        >>> errors = layer_errors(float32.content, int8.content, images[:16])  # doctest: +SKIP
        >>> print(errors.sentence())  # doctest: +SKIP
        The first loss of 6 dB or more is in block_3_project (CONV_2D): 14.0 dB, to 19.2 dB; the output has 18.2 dB.
    """
    if len(images) < 2:
        raise VerificationError(f"{len(images)} images tell no signal from a constant; give 2 or more.")
    graph, quantized = read_graph(float_content), read_graph(content)
    pairs = paired_ops(graph, quantized)
    if not pairs:
        raise VerificationError("The two files have no op in common: is the float file the one it was made from?")
    (start,) = _only(graph.inputs)
    entered = _first_stored(quantized, *_only(quantized.inputs))
    tensors = [(start.index, entered.index)]
    tensors += [(op.outputs[0], other.outputs[0]) for op, other in pairs]
    values = sum(max(1, graph.tensors[mine].size) for mine, _ in tensors)
    if values > _MOST_VALUES:
        raise VerificationError(f"The ops' outputs have {values:,} values; at most {_MOST_VALUES:,} can be compared.")
    sums = [_Sums(_stored_limits(quantized.tensors[theirs])) for _, theirs in tensors]
    with (
        TfliteRunner(float_content, threads, timeout_s, name="the float file", keep_tensors=True) as runner,
        TfliteRunner(content, threads, timeout_s, name="the quantized file", keep_tensors=True) as other_runner,
    ):
        runtime = runner.facts.runtime
        for image in images:
            expected = runner.tensors(image, [mine for mine, _ in tensors])
            actual = other_runner.tensors(image, [theirs for _, theirs in tensors])
            for total, wanted, got in zip(sums, expected, actual, strict=True):
                total.add(wanted, got)
    return _report(graph, [quantized.tensors[theirs] for _, theirs in tensors], pairs, sums, len(images), runtime)


def paired_ops(graph: TfliteGraph, quantized: TfliteGraph) -> list[tuple[GraphOp, GraphOp]]:
    """The computing ops of a float file with their counterparts, in the order of computation.

    The quantizer keeps the names of outputs, so they decide; where they tell nothing (a file from elsewhere), the
    order does, if both files have the same ops. Ops that only store values otherwise (QUANTIZE, DEQUANTIZE, DENSIFY)
    count as none.
    """
    mine, theirs = _computing(graph), _computing(quantized)
    by_name = {quantized.tensors[op.outputs[0]].name: op for op in theirs}
    pairs = [(op, by_name.get(graph.tensors[op.outputs[0]].name)) for op in mine]
    matched = [(op, other) for op, other in pairs if other is not None and op.name == other.name]
    if len(matched) < len(mine) and [op.name for op in mine] == [op.name for op in theirs]:
        matched = list(zip(mine, theirs, strict=True))
    return [(op, other) for op, other in matched if _comparable(graph, op, quantized, other)]


def _computing(graph: TfliteGraph) -> list[GraphOp]:
    return [op for op in graph.ops if op.name not in STORAGE_OPS and op.outputs]


def _comparable(graph: TfliteGraph, op: GraphOp, quantized: TfliteGraph, other: GraphOp) -> bool:
    mine, theirs = graph.tensors[op.outputs[0]], quantized.tensors[other.outputs[0]]
    number = theirs.dtype == "FLOAT32" or (theirs.dtype in _LIMITS and len(theirs.scales) == 1)
    return mine.dtype == "FLOAT32" and number and mine.shape == theirs.shape and not mine.constant


def _only(tensors: tuple[GraphTensor, ...]) -> tuple[GraphTensor]:
    if len(tensors) != 1:
        raise ModelError(f"A file with {len(tensors)} inputs cannot be fed images; one with 1 is needed.")
    return (tensors[0],)


def _first_stored(graph: TfliteGraph, tensor: GraphTensor) -> GraphTensor:
    """What the ops read of an input: itself, or what a QUANTIZE makes of it."""
    readers = [op for op in graph.ops if tensor.index in op.inputs]
    if len(readers) == 1 and readers[0].name == "QUANTIZE" and len(readers[0].outputs) == 1:
        return graph.tensors[readers[0].outputs[0]]
    return tensor


def _stored_limits(tensor: GraphTensor) -> tuple[float, float, float] | None:
    """The smallest and largest number that a quantized tensor can hold, and the step between two."""
    if tensor.dtype not in _LIMITS or len(tensor.scales) != 1:
        return None
    zero_point = tensor.zero_points[0] if tensor.zero_points else 0
    low, high = _LIMITS[tensor.dtype]
    (step,) = tensor.scales
    return (low - zero_point) * step, (high - zero_point) * step, step


class _Sums:
    """What has been seen of one tensor in both files; channels are the last axis."""

    def __init__(self, limits: tuple[float, float, float] | None) -> None:
        self.limits = limits
        self.images = self.beyond = self.broken = 0
        self.values: np.ndarray = np.zeros(0)
        self.squares: np.ndarray = np.zeros(0)
        self.noise: np.ndarray = np.zeros(0)
        self.errors = self.largest = 0.0
        self.low, self.high = math.inf, -math.inf

    def add(self, expected: np.ndarray, actual: np.ndarray) -> None:
        if expected.shape != actual.shape:
            raise VerificationError(f"One file computes {expected.shape} where the other computes {actual.shape}.")
        wanted = np.atleast_1d(expected).astype(np.float64).reshape(-1, expected.shape[-1] if expected.ndim else 1)
        finite = np.isfinite(actual).reshape(wanted.shape)
        self.broken += int((~finite).sum())
        error = np.abs(np.where(finite, actual.reshape(wanted.shape), 0.0) - wanted)
        if not self.images:
            self.values, channels = np.zeros_like(wanted), wanted.shape[1]
            self.squares, self.noise = np.zeros(channels), np.zeros(channels)
        self.values += wanted
        self.squares += (wanted**2).sum(axis=0)
        self.noise += (error**2).sum(axis=0)
        self.errors += float(error.sum())
        self.largest = max(self.largest, float(error.max(initial=0.0)))
        self.low = min(self.low, float(wanted.min(initial=math.inf)))
        self.high = max(self.high, float(wanted.max(initial=-math.inf)))
        if self.limits is not None:
            low, high, step = self.limits
            # Half a step beyond is still rounded to the last one.
            self.beyond += int(((wanted < low - step / 2) | (wanted > high + step / 2)).sum())
        self.images += 1

    @property
    def count(self) -> int:
        return max(1, self.values.size * self.images)

    @property
    def signal(self) -> np.ndarray:
        """Of each channel; 0 where only rounding differs between images."""
        signal = self.squares - (self.values**2).sum(axis=0) / self.images
        kept: np.ndarray = np.where(signal > 1e-9 * self.squares, signal, 0.0)
        return kept

    @property
    def snr_db(self) -> float:
        """Of the whole tensor; 200 without noise, also where nothing differs between images, -200 with NaN."""
        return -HIGHEST_DB if self.broken else _decibels(float(self.signal.sum()), float(self.noise.sum()))

    @property
    def channel_snr_db(self) -> float:
        """Of the median among the channels that carry a signal."""
        if self.broken:
            return -HIGHEST_DB
        carrying = [_decibels(signal, noise) for signal, noise in zip(self.signal, self.noise, strict=True) if signal]
        return float(np.median(carrying)) if carrying else HIGHEST_DB

    @property
    def range_used(self) -> float | None:
        if self.limits is None:
            return None
        low, high, _ = self.limits
        return max(0.0, (min(self.high, high) - max(self.low, low)) / (high - low)) if high > low else 0.0

    @property
    def cut(self) -> float | None:
        return None if self.limits is None else self.beyond / self.count


def _decibels(signal: float, noise: float) -> float:
    if not noise or not signal:
        return HIGHEST_DB
    return float(np.clip(10 * math.log10(signal / noise), -HIGHEST_DB, HIGHEST_DB))


def _report(
    graph: TfliteGraph,
    stored: list[GraphTensor],
    pairs: list[tuple[GraphOp, GraphOp]],
    sums: list[_Sums],
    images: int,
    runtime: str,
) -> LayerErrors:
    """`stored` and `sums` have the input first and then one entry for each pair."""
    snr = {graph.inputs[0].index: sums[0].channel_snr_db}
    rows = [_row("input", "INPUT", graph.inputs[0], stored[0], sums[0], 0.0)]
    for (op, _), tensor, total in zip(pairs, stored[1:], sums[1:], strict=True):
        output = graph.tensors[op.outputs[0]]
        fall = max(0.0, min(_worst_input(graph, op, snr), CEILING_DB) - total.channel_snr_db)
        snr[output.index] = total.channel_snr_db
        rows.append(_row(_layer(output), op.name, output, tensor, total, fall))
    known = {op.index for op, _ in pairs}
    unpaired = tuple(
        f"{_layer(graph.tensors[op.outputs[0]])} ({op.name})" for op in _computing(graph) if op.index not in known
    )
    return LayerErrors(images, runtime, tuple(rows), unpaired)


def _layer(tensor: GraphTensor) -> str:
    return layer_of(tensor.name) or tensor.name


def _worst_input(graph: TfliteGraph, op: GraphOp, snr: Mapping[int, float]) -> float:
    """The lowest signal-to-noise ratio among what an op reads, through ops that were not compared; 200 for none."""
    producers = {index: producer for producer in graph.ops for index in producer.outputs}
    waiting, seen, found = list(op.inputs), set[int](), [HIGHEST_DB]
    while waiting:
        index = waiting.pop()
        if index in seen or index < 0:
            continue
        seen.add(index)
        if index in snr:
            found.append(snr[index])
        elif index in producers:
            waiting += producers[index].inputs
    return min(found)


def _row(layer: str, op: str, tensor: GraphTensor, stored: GraphTensor, total: _Sums, fall: float) -> LayerError:
    return LayerError(
        layer=layer,
        op=op,
        tensor=tensor.name,
        dtype=stored.dtype.lower(),
        snr_db=total.snr_db,
        channel_snr_db=total.channel_snr_db,
        fall_db=fall,
        max_abs_error=total.largest,
        mean_abs_error=total.errors / total.count,
        range_used=total.range_used,
        cut=total.cut,
    )
