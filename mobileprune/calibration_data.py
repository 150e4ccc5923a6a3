"""Calibration data as batches, and what shows that they cannot be meant."""

import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from mobileprune.errors import DatasetError, MobilePruneWarning
from mobileprune.records import Preprocess

# Values this far outside of the contract, in shares of its width, are another scale and no rounding;
_SLACK = 0.01
# images that cover no more than this of it are of another scale, too; or perhaps, up to the second, of low contrast.
_REFUSED_COVER, _DOUBTFUL_COVER = 0.1, 0.6


def contract_range(contract: Preprocess) -> tuple[float, float]:
    """Smallest and largest value that a preprocessing contract makes of 8-bit pixels: `input_range` of `calibrate`.

    Example:
        >>> contract_range(Preprocess(224, 224, mean=(127.0,), std=(128.0,)))
        (-0.9921875, 1.0)
    """
    means, stds = (np.broadcast_to(values, contract.channels) for values in (contract.mean, contract.std))
    ends = [(pixel - means) / stds for pixel in (0.0, 255.0)]
    return float(np.min(ends)), float(np.max(ends))


def batches(calibration: Any) -> Iterator[np.ndarray]:
    """The batches of images in an array, or in an iterable of batches or of (images, labels).

    Raises:
        DatasetError: it is neither.
    """
    if hasattr(calibration, "ndim"):
        yield np.asarray(calibration)
        return
    if not isinstance(calibration, Iterable):
        raise DatasetError(f"Calibration data of type {type(calibration).__name__} is neither an array nor batches.")
    for batch in calibration:
        yield np.asarray(batch[0] if isinstance(batch, tuple) else batch)


def check_batch(batch: np.ndarray, shape: tuple[int, ...], before: int) -> None:
    """Refuses a batch of another type or shape than the input's, or with NaN; `before` images came before it.

    Raises:
        DatasetError: with the figure that shows it.
    """
    if batch.dtype in (np.int32, np.int64):
        raise DatasetError(
            f"The calibration images are {batch.dtype}, not float32. Preprocess them as for the model; if that "
            "takes ids, of words for example, quantize it with 'dynamic_int8', which needs no calibration."
        )
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


def check_inside(smallest: float, largest: float, wanted: tuple[float, float]) -> None:
    """Refuses images with values that preprocessing cannot make.

    Raises:
        DatasetError: with both ranges.
    """
    slack = _SLACK * (wanted[1] - wanted[0])
    if smallest < wanted[0] - slack or largest > wanted[1] + slack:
        raise DatasetError(
            f"The calibration images hold values from {smallest:g} to {largest:g}, but preprocessing makes "
            f"{wanted[0]:g} to {wanted[1]:g}. Preprocess them as for the model."
        )


def check_cover(smallest: float, largest: float, images: int, wanted: tuple[float, float]) -> None:
    """Refuses images that fill next to nothing of the range that preprocessing can make, and warns of half-empty ones.

    Raises:
        DatasetError: with both ranges.
    """
    share = (largest - smallest) / (wanted[1] - wanted[0])
    if share > _DOUBTFUL_COVER:
        return
    message = (
        f"{images} calibration images hold values from {smallest:g} to {largest:g} only, {share:.1%} of the range from "
        f"{wanted[0]:g} to {wanted[1]:g} that preprocessing can make: they seem to be on another scale."
    )
    if share <= _REFUSED_COVER:
        raise DatasetError(f"{message} Preprocess them as for the model.")
    warnings.warn(f"{message} Check how they were preprocessed.", MobilePruneWarning, stacklevel=3)
