"""Calibration data in, the range of every activation out: what integer arithmetic needs to know beforehand."""

import os
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from mobileprune.errors import ConversionError, DatasetError
from mobileprune.noise import captured_noise, described
from mobileprune.tflite_graph import TfliteGraph, read_graph

# What litert-quantizer raises on graphs and ranges that it cannot work with.
REFUSALS = (ValueError, RuntimeError, TypeError, KeyError, IndexError, AttributeError, NotImplementedError)

Ranges = dict[str, Any]
"""Tensor name → its smallest and largest value on the calibration data."""


def calibrate(content: bytes, calibration: Any) -> Ranges:
    """The smallest and largest value of every tensor of a float flatbuffer over the calibration data.

    The runtime's own profiler measures them, and the extremes over all images count. litert-quantizer's default, a
    moving average over steps, starts from the first step and hardly leaves it: on a small convnet with 100 images, one
    a step, it cost 15 dB of the outputs' signal-to-noise ratio against the extremes (25 in place of 40), and the answer
    depended on the order of the images.

    Args:
        content: a float32 `.tflite` with one input.
        calibration: float32 images (N, H, W, C) as the model takes them, or an iterable of such batches; of a batch
            that is a tuple (images, labels) the images are used. 100 images of all classes are usual.

    Returns:
        What `quantize` takes as `ranges`.

    Raises:
        DatasetError: no images, another dtype or shape than the input's, NaN or infinity, or one value everywhere; the
            message has the figure that shows it.
        ConversionError: the runtime cannot run the file.
    """
    graph = read_graph(content)
    signature, argument, shape = _only_input(graph)
    from litert_quantizer import calibrator
    from litert_quantizer.utils import qsv_utils

    images = 0
    smallest, largest = np.inf, -np.inf
    with captured_noise() as said:
        try:
            measuring = calibrator.Calibrator(
                content,
                num_threads=os.cpu_count() or 1,
                mode=calibrator.CalibrationMode.CALIBRATION_PROFILER_BASED,
                qsv_update_func=qsv_utils.min_max_update,
            )
        except REFUSALS as error:
            raise ConversionError(f"The runtime cannot load the float file: {described(error, said())}") from error
        for batch in _batches(calibration):
            _check_batch(batch, shape, images)
            if not len(batch):
                continue
            # In the file's own batch: with another, fixed reshapes inside the graph fail at allocation.
            for start in range(0, len(batch), max(1, shape[0])):
                chosen = np.minimum(np.arange(start, start + max(1, shape[0])), len(batch) - 1)
                step = {signature: [{argument: batch[chosen]}]}
                try:
                    measuring.calibrate(step, None, cache_output=True)  # the profiler needs no recipe
                except REFUSALS as error:
                    raise ConversionError(f"The float file cannot be run: {described(error, said())}") from error
                # The profiler passes over NaN in silence; it shows in the outputs.
                for name, output in measuring.get_cached_output()[0].items():
                    if not np.isfinite(output).all():
                        raise ConversionError(_not_finite(name, images + start))
                measuring.clear_cached_output()
            images += len(batch)
            smallest, largest = min(smallest, float(batch.min())), max(largest, float(batch.max()))
    if not images:
        raise DatasetError("The calibration data holds no images. Give about 100.")
    if smallest == largest:
        raise DatasetError(
            f"All {images} calibration images hold the one value {smallest:g}: they tell no range. Give real images."
        )
    ranges: Ranges = measuring.get_model_qsvs()
    for tensor, extremes in ranges.items():
        if not (np.isfinite(extremes["min"]).all() and np.isfinite(extremes["max"]).all()):
            raise ConversionError(_not_finite(tensor, 0))
    return ranges


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


def _batches(calibration: Any) -> Iterator[np.ndarray]:
    if hasattr(calibration, "ndim"):
        yield np.asarray(calibration)
        return
    if not isinstance(calibration, Iterable):
        raise DatasetError(f"Calibration data of type {type(calibration).__name__} is neither an array nor batches.")
    for batch in calibration:
        yield np.asarray(batch[0] if isinstance(batch, tuple) else batch)


def _check_batch(batch: np.ndarray, shape: tuple[int, ...], before: int) -> None:
    if batch.dtype != np.float32:
        raise DatasetError(
            f"The calibration images are {batch.dtype}, not float32. Preprocess them as for the model "
            "(an unscaled image makes ranges that clip every real one)."
        )
    if batch.shape[1:] != shape[1:] or batch.ndim != len(shape):
        raise DatasetError(
            f"The calibration batch has shape {batch.shape}, but the model takes (N, {', '.join(map(str, shape[1:]))})."
        )
    wrong = ~np.isfinite(batch).reshape(len(batch), int(np.prod(batch.shape[1:])))
    if wrong.any():
        image = int(np.argmax(wrong.any(axis=1)))
        raise DatasetError(
            f"Calibration image {before + image} holds {int(wrong[image].sum())} values that are NaN or infinite "
            f"({int(wrong.any(axis=1).sum())} such images in its batch). Remove it."
        )
