"""How long a network takes with any choice of channels: the sum of its ops by a table, scaled by the whole network."""

from collections.abc import Sequence

import numpy as np

from mobileprune.channel_calls import Ids, compact
from mobileprune.channel_groups import ChannelGraph
from mobileprune.errors import InterpreterError
from mobileprune.latency_table import Curve, LatencyTable
from mobileprune.layer_names import layer_of
from mobileprune.op_signatures import ResizableFile, Shape
from mobileprune.records import Latency, Variant
from mobileprune.tflite_graph import TfliteGraph, read_graph

# Shares of every group's channels that are left in networks that sums are brought to, beside the whole one, and how
# many more have a share of its own in each group.
NARROWER = (0.5, 0.25)
MIXED = 6
# Ops that may give other channels than they read; all others hand them on.
_CHANGING = ("CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV", "RESHAPE", "CONCATENATION", "TRANSPOSE", "BATCH_MATMUL")


def followed_channels(graph: ChannelGraph, file: TfliteGraph) -> dict[int, Ids]:
    """For each activation of a file whose last axis has a model's channels: the root of the id at each index.

    The file's tensors are named after the layers, see `mobileprune.layer_names`.

    Args:
        graph: the model's channel graph.
        file: what `convert` made of the model.
    """
    found: dict[int, Ids] = {}
    roots = graph.ids.roots()  # what an addition joins are the same channels, whatever their ids
    for op in file.ops:
        for index in op.outputs:
            tensor = file.tensors[index]
            read = next((each for each in op.inputs if each in found), None)
            ids = None
            if read is not None and op.name not in _CHANGING and tensor.shape[-1:] == file.tensors[read].shape[-1:]:
                ids = found[read]
            else:
                ids = _of_layer(graph, layer_of(tensor.name), tensor.shape)
                ids = None if ids is None else roots[ids]
            if ids is not None:
                found[index] = ids
    return found


def _of_layer(graph: ChannelGraph, layer: str, shape: tuple[int, ...]) -> Ids | None:
    call = graph.ids.calls.get(layer)
    for array in call.outputs if call else ():
        if array.shape[-1:] == shape[-1:]:
            small = compact(array)
            if small.shape[-1] == array.shape[-1] and small.size == small.shape[-1]:
                return small.reshape(-1)
    return None


class LatencyModel:
    """A network's latency on one device with any choice of its channels.

    The sum of its ops by the table, brought to what the whole network and a few narrower ones take: ops follow each
    other with other caches than alone, and the runtime does something between them.

    Args:
        graph: the model's channel graph.
        content: the model's `.tflite` in the recipe that will ship.
        table: times of single ops; what it lacks is measured.

    Raises:
        ModelError: an op that cannot be timed or narrowed; it names the layer.

    Example:
        >>> latency = LatencyModel(graph, content, table)               # doctest: +SKIP
        >>> latency.ms(graph.everything())                              # doctest: +SKIP
        0.217
    """

    def __init__(self, graph: ChannelGraph, content: bytes, table: LatencyTable) -> None:
        self.file = ResizableFile(content, followed_channels(graph, read_graph(content)))
        self.graph, self.table = graph, table
        self.units = self.file.units
        movable = np.zeros(len(graph.everything()), bool)
        for group in graph.groups:
            if group.frozen is None:
                movable |= ~graph.without(group.roots)
        self._curves = [
            Curve(self.file, unit, [bool(movable[vector].any()) for vector in unit.vectors]) for unit in self.units
        ]
        self.measured = table.measure(
            (self.file, unit, counts)
            for unit, curve in zip(self.units, self._curves, strict=True)
            for counts in curve.points
        )
        for curve in self._curves:
            curve.read(table)
        self.offset = table.overhead_ns
        # Sums of the table's times, upwards, and what networks of these sums took; before `calibrate` the same.
        self.sums, self.times = np.array([1.0]), np.array([1.0])

    def calibrate(self) -> None:
        """Measures the whole network on the table's device, and narrower ones: sums of ops are brought to them.

        A narrow network needs less memory, so that its ops find more in the caches than alone in a file: a straight
        line through the sums comes nearer than a factor.

        Raises:
            InterpreterError: the device cannot run the network.
        """
        free = [group for group in self.graph.groups if group.frozen is None]
        choices = [self.graph.everything()]
        generator = np.random.default_rng(0)
        shares = [np.full(len(free), share) for share in NARROWER]
        shares += [generator.uniform(min(NARROWER), 1.0, len(free)) for _ in range(MIXED)]
        for each in shares if free else ():
            kept = [max(8, round(group.size * share / 8) * 8) for group, share in zip(free, each, strict=True)]
            gone = [group.roots[count:] for group, count in zip(free, kept, strict=True)]
            choices.append(self.graph.without(np.concatenate(gone)))
        times = np.maximum(np.array(self.measure(choices)) - self.offset, 1.0)
        self.sums, self.times = _line(np.array([max(1.0, float(self.parts(each).sum())) for each in choices]), times)

    def whole(self, sum_ns: float) -> float:
        """The network's latency when the table's times of its ops add up to `sum_ns`, both in nanoseconds."""
        if sum_ns <= self.sums[0]:
            return float(sum_ns * self.times[0] / self.sums[0]) + self.offset
        if sum_ns >= self.sums[-1]:
            return float(sum_ns * self.times[-1] / self.sums[-1]) + self.offset
        return float(np.interp(sum_ns, self.sums, self.times)) + self.offset

    def sum_for(self, ns: float) -> float:
        """The largest sum of the table's times with which the network takes at most `ns` nanoseconds."""
        low, high = 0.0, max(1.0, 2.0 * float(self.sums[-1]) * max(1.0, ns / float(self.times[-1])))
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if self.whole(middle) <= ns else (low, middle)
        return low

    def measure(self, choices: Sequence[np.ndarray]) -> list[float]:
        """What the whole network really takes on the table's device with only some channels, in nanoseconds.

        Args:
            choices: the channels that are left, as booleans by id; all are timed in one batch.

        Raises:
            InterpreterError: the device cannot run one of them.
        """
        results = self.table.measure_files([Variant("network", "resized", self.file.resized(each)) for each in choices])
        for result in results:
            if isinstance(result, InterpreterError):
                raise result
        return [result.p50_ms * 1e6 for result in results if isinstance(result, Latency)]

    def parts(self, alive: np.ndarray) -> np.ndarray:
        """The table's time of each unit with the channels in `alive`, in nanoseconds, shape (units,)."""
        pairs = zip(self.units, self._curves, strict=True)
        return np.array([curve.ns(unit.counts(alive)) for unit, curve in pairs])

    def unit_ns(self, unit: int, counts: Shape) -> float:
        """The table's time of one of the units at these counts, in nanoseconds."""
        return self._curves[unit].ns(counts)

    def ns(self, alive: np.ndarray) -> int:
        """The network's latency with the channels in `alive` (booleans by id), in nanoseconds."""
        return round(self.whole(float(self.parts(alive).sum())))

    def ms(self, alive: np.ndarray) -> float:
        """The same in milliseconds."""
        return self.ns(alive) / 1e6


def _line(sums: np.ndarray, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The least and the largest sum, and the times there of the straight line with the least squared relative errors.

    Where neighbours on the processor made less work take longer, or all sums are one: that of a common factor.
    """
    ends = np.array([sums.min(), sums.max()])
    slope = level = 0.0
    if ends[1] > ends[0]:
        weighted = np.stack([sums, np.ones_like(sums)], axis=1) / times[:, None]
        slope, level = np.linalg.lstsq(weighted, np.ones_like(times), rcond=None)[0].tolist()
    found = slope * ends + level
    if slope <= 0 or found[0] <= 0:
        found = ends * float(np.median(times / sums))
    return (ends, found) if ends[1] > ends[0] else (ends[1:], found[1:])
