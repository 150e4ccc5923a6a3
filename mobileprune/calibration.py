"""Calibration data in, the range of every activation out: what integer arithmetic needs to know beforehand."""

import collections
import dataclasses
import os
import warnings
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from mobileprune.activations import Activations
from mobileprune.calibration_data import batches, check_batch, check_cover, check_inside
from mobileprune.errors import ConversionError, DatasetError, MobilePruneWarning, SettingsError, known_names
from mobileprune.histograms import METHODS, Histogram, Range, minmax_range
from mobileprune.noise import captured_noise, described
from mobileprune.tflite_graph import TfliteGraph, read_graph

# What litert-quantizer raises on graphs and ranges that it cannot work with.
REFUSALS = (ValueError, RuntimeError, TypeError, KeyError, IndexError, AttributeError)

# Ranges count as settled when no end of one has moved by more than this share of its width, about 25 of 255 steps,
WORST_MOVE = 0.1
# within so many images,
WINDOW = 32
# looked at whenever so many more have passed.
_EVERY = 8


@dataclasses.dataclass(frozen=True)
class Settling:
    """Whether there were enough calibration images.

    Attributes:
        images: how many were used.
        window: how many of them, the last ones, `moved` is about; 0 when there were too few to tell.
        moved: how far the end of a range moved within the window, at most, as a share of that range's width. 8 bits
            divide the width into 255 steps. Infinite when there were too few to tell.
        tensor: whose range that was; empty when there were too few to tell.
    """

    images: int
    window: int
    moved: float
    tensor: str

    @property
    def settled(self) -> bool:
        """Whether more images would hardly change a range."""
        return self.moved <= WORST_MOVE


class Ranges(dict[str, Any]):
    """Tensor name → its smallest and largest value, `{"min": array, "max": array}`, as the quantizer takes them.

    Attributes:
        settling: whether there were enough images.
    """

    def __init__(self, ranges: dict[str, Range], settling: Settling) -> None:
        super().__init__(
            {name: {"min": np.array([low]), "max": np.array([high])} for name, (low, high) in ranges.items()}
        )
        self.settling = settling


def calibrate(
    content: bytes,
    calibration: Any,
    method: str = "minmax",
    *,
    percentile: float = 99.99,
    input_range: Range | None = None,
    stop_when_settled: bool = False,
) -> Ranges:
    """The range of every tensor of a float flatbuffer on the calibration data.

    `minmax` takes the extremes over all images, as the runtime's own profiler measures them. litert-quantizer's
    default, a moving average over steps, starts from the first step and hardly leaves it: on a small convnet with 100
    images, one a step, it cost 15 dB of the outputs' signal-to-noise ratio against the extremes (25 in place of 40),
    and the answer depended on the order of the images. `percentile` and `mse` clip rare values, so that the steps
    between all others become finer; the model's input and outputs keep their extremes, because clipped outputs would
    tie. They look at every value and take about five times as long. For 16-bit activations, take `minmax`.

    Args:
        content: a float32 `.tflite` with one input.
        calibration: float32 images (N, H, W, C) as the model takes them, or an iterable of such batches; of a batch
            that is a tuple (images, labels) the images are used. 100 images of all classes are usual. One pass is made
            over them, and one batch is held at a time.
        method: `minmax`, `percentile`, or `mse`, the range at which 8 bits have the least mean squared error.
        percentile: for `percentile`; what share of the values, in percent, may reach neither end, 50 to 100.
        input_range: smallest and largest value that preprocessing can make, see `contract_range`. The input's scale
            and zero point then follow from it and not from the images, and images of another scale are noticed.
        stop_when_settled: use no more images than are needed: as soon as no range has moved by more than 10% of its
            width within the last 32 images, the rest is left. Only for images in an order that mixes the classes.

    Returns:
        What `quantize` takes as `ranges`; its `settling` tells whether the images were enough. When they were not, a
        warning has the figures.

    Raises:
        DatasetError: no images, another dtype or shape than the input's, NaN or infinity, one value everywhere, or
            another scale than `input_range`'s; the message has the figure that shows it.
        ConversionError: the runtime cannot run the file.
        SettingsError: an unknown method, or a percentile or input range that cannot be meant.

    Example:
        >>> ranges = calibrate(content, images[:200], "mse")  # doctest: +SKIP
        >>> ranges.settling  # doctest: +SKIP
        Settling(images=200, window=32, moved=0.021, tensor='model/block_3/Relu6')
    """
    graph = read_graph(content)
    signature, argument, shape = _only_input(graph)
    _check_settings(method, percentile, input_range)
    ends = {tensor.name for tensor in graph.inputs + graph.outputs}
    fixed = {} if input_range is None else {graph.inputs[0].name: input_range}
    images, batch_size = 0, max(1, shape[0])
    smallest, largest = np.inf, -np.inf
    progress = _Progress()
    with captured_noise() as said:
        measuring: _Measuring
        if method == "minmax":
            measuring = _Extremes(content, signature, argument, said)
        else:
            measuring = _Histograms(content, method, percentile, ends)
        for batch in batches(calibration):
            check_batch(batch, shape, images)
            if not len(batch):
                continue
            smallest, largest = min(smallest, float(batch.min())), max(largest, float(batch.max()))
            if input_range is not None:
                check_inside(smallest, largest, input_range)
            # In the file's own batch: with another, fixed reshapes inside the graph fail at allocation.
            for start in range(0, len(batch), batch_size):
                chosen = np.minimum(np.arange(start, start + batch_size), len(batch) - 1)
                count = min(batch_size, len(batch) - start)
                measuring.run(batch[chosen], count, images)
                images += count
                if progress.due(images):
                    progress.note(images, {**measuring.ranges(), **fixed})
                    if stop_when_settled and progress.settling.settled:
                        break
            if stop_when_settled and progress.settling.settled:
                break
    if not images:
        raise DatasetError("The calibration data holds no images. Give about 100.")
    if smallest == largest:
        raise DatasetError(
            f"All {images} calibration images hold the one value {smallest:g}: they tell no range. Give real images."
        )
    ranges = {**measuring.ranges(), **fixed}
    for tensor, found in ranges.items():
        if not np.isfinite(found).all():
            raise ConversionError(_not_finite(tensor, 0))
    progress.note(images, ranges)
    if input_range is not None:
        check_cover(smallest, largest, images, input_range)
    _warn_of_too_few(progress.settling)
    return Ranges(ranges, progress.settling)


class _Measuring(Protocol):
    def run(self, images: np.ndarray, count: int, before: int) -> None:
        """Looks at one batch of the file, of which the first `count` images are new and `before` came before."""

    def ranges(self) -> dict[str, Range]:
        """Every tensor's range on all images so far."""


class _Extremes:
    """The profiler of the runtime: fast, and all that it knows of a tensor is its smallest and largest value."""

    def __init__(self, content: bytes, signature: str, argument: str, said: Callable[[], str]) -> None:
        from litert_quantizer import calibrator
        from litert_quantizer.utils import qsv_utils

        self._signature, self._argument, self._said = signature, argument, said
        try:
            self._calibrator = calibrator.Calibrator(
                content,
                num_threads=os.cpu_count() or 1,
                mode=calibrator.CalibrationMode.CALIBRATION_PROFILER_BASED,
                qsv_update_func=qsv_utils.min_max_update,
            )
        except REFUSALS as error:
            raise ConversionError(f"The runtime cannot load the float file: {described(error, said())}") from error

    def run(self, images: np.ndarray, count: int, before: int) -> None:
        step = {self._signature: [{self._argument: images}]}
        try:
            self._calibrator.calibrate(step, None, cache_output=True)  # the profiler needs no recipe
        except REFUSALS as error:
            raise ConversionError(f"The float file cannot be run: {described(error, self._said())}") from error
        # The profiler passes over NaN in silence; it shows in the outputs.
        for name, output in self._calibrator.get_cached_output()[0].items():
            if not np.isfinite(output).all():
                raise ConversionError(_not_finite(name, before))
        self._calibrator.clear_cached_output()

    def ranges(self) -> dict[str, Range]:
        found = self._calibrator.get_model_qsvs()
        return {name: (float(each["min"].min()), float(each["max"].max())) for name, each in found.items()}


class _Histograms:
    """Histograms of every value of every tensor, one size each whatever they count."""

    def __init__(self, content: bytes, method: str, percentile: float, unclipped: set[str]) -> None:
        self._activations = Activations(content)
        self._histograms = {tensor.name: Histogram() for tensor in self._activations.tensors}
        self._method, self._percentile, self._unclipped = METHODS[method], percentile, unclipped

    def run(self, images: np.ndarray, count: int, before: int) -> None:
        for tensor, values in self._activations.run(images):
            if not np.isfinite(values).all():
                raise ConversionError(_not_finite(tensor.name, before))
            # The last images may be copies that fill the batch.
            new = values[:count] if values.ndim and len(values) == len(images) else values
            self._histograms[tensor.name].add(new)

    def ranges(self) -> dict[str, Range]:
        return {
            name: minmax_range(histogram) if name in self._unclipped else self._method(histogram, self._percentile)
            for name, histogram in self._histograms.items()
        }


class _Progress:
    """How far ranges still move while more images are looked at."""

    def __init__(self) -> None:
        self.settling = Settling(0, 0, np.inf, "")
        self._noted: collections.deque[tuple[int, dict[str, Range]]] = collections.deque()

    def due(self, images: int) -> bool:
        """Whether the ranges should be noted now."""
        return images - (self._noted[-1][0] if self._noted else 0) >= _EVERY

    def note(self, images: int, ranges: dict[str, Range]) -> None:
        """Compares the ranges with those of at least `WINDOW` images ago."""
        self._noted.append((images, ranges))
        while len(self._noted) > 1 and self._noted[1][0] <= images - WINDOW:
            self._noted.popleft()
        then, before = self._noted[0]
        if images - then < WINDOW:
            self.settling = Settling(images, 0, np.inf, "")
            return
        moves = {name: _move(before[name], now) for name, now in ranges.items() if name in before}
        tensor = max(moves, key=lambda name: moves[name], default="")
        self.settling = Settling(images, images - then, moves.get(tensor, 0.0), tensor)


def _move(before: Range, now: Range) -> float:
    width = now[1] - now[0]
    return max(abs(now[0] - before[0]), abs(now[1] - before[1])) / width if width > 0 else 0.0


def _warn_of_too_few(settling: Settling) -> None:
    if settling.settled:
        return
    if not settling.window:
        message = f"Only {settling.images} calibration images: too few to tell whether the ranges have settled."
    else:
        message = (
            f"{settling.images} calibration images are too few: the last {settling.window} still moved the range of "
            f"{settling.tensor!r} by {settling.moved:.0%} of its width; {WORST_MOVE:.0%} or less would be settled."
        )
    warnings.warn(f"{message} Give more, of all classes.", MobilePruneWarning, stacklevel=3)


def _check_settings(method: str, percentile: float, input_range: Range | None) -> None:
    if method not in (known := ("minmax", *METHODS)):
        raise SettingsError(f"There is no range method {method!r}. Known: {known_names(known)}.")
    if not 50 < percentile <= 100:
        raise SettingsError(f"The percentile is {percentile:g}; choose more than 50 and at most 100, as 99.99.")
    if input_range is not None and not (np.isfinite(input_range).all() and input_range[0] < input_range[1]):
        raise SettingsError(f"The input range is {input_range!r}; give two finite numbers, the smaller first.")


def _not_finite(tensor: str, image: int) -> str:
    return (
        f"On the calibration images from number {image} on, the model computes NaN or infinity in {tensor!r}. "
        "Check its weights and the scale of its input."
    )


def _only_input(graph: TfliteGraph) -> tuple[str, str, tuple[int, ...]]:
    """Signature, argument name and shape of a graph's one input."""
    for signature, arguments in graph.signatures.items():
        if len(arguments) == 1:
            argument, index = next(iter(arguments.items()))
            return signature, argument, graph.tensors[index].shape
    raise ConversionError(
        f"Calibration feeds one input through a signature; this file has {len(graph.inputs)} inputs and "
        f"{len(graph.signatures)} signatures."
    )
