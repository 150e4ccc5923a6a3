"""Means and covariances of what a linear map reads and should give, summed over all calibration batches."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from mobileprune.linear import LinearMap

# Rows for each column of the matrix: enough for a covariance that can be inverted, and no slower than it must be.
_ROWS_PER_COLUMN = 48
_LEAST_ROWS = 8192
# Values of one piece of activations while they are written as rows.
_VALUES_AT_ONCE = 2**24


@dataclasses.dataclass
class Moments:
    """Sums over rows of activations X (rows, groups, columns) and wanted outputs Y (rows, groups, outputs).

    Attributes:
        count: the number of rows.
        x: sum of X, shape (groups, columns).
        xx: sum of X'X, shape (groups, columns, columns).
        y: sum of Y, shape (groups, outputs).
        xy: sum of X'Y, shape (groups, columns, outputs).
        yy: sum of Y squared, shape (groups, outputs).
    """

    count: int
    x: np.ndarray
    xx: np.ndarray
    y: np.ndarray
    xy: np.ndarray
    yy: np.ndarray

    def centred(self) -> tuple[np.ndarray, np.ndarray]:
        """Covariances of X with itself and with Y."""
        mean_x, mean_y = self.x / self.count, self.y / self.count
        xx, xy = self.raw()
        return xx - mean_x[:, :, None] * mean_x[:, None, :], xy - mean_x[:, :, None] * mean_y[:, None, :]

    def raw(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean products of X with itself and with Y."""
        return self.xx / self.count, self.xy / self.count

    def scaled(self, factor: float) -> "Moments":
        """The moments of X and `factor` times Y."""
        if factor == 1.0:
            return self
        return dataclasses.replace(self, y=factor * self.y, xy=factor * self.xy, yy=factor**2 * self.yy)

    def variance(self) -> float:
        """The variance of Y, summed over all outputs."""
        return float(np.maximum(self.yy / self.count - (self.y / self.count) ** 2, 0).sum())


def measure(
    reads: LinearMap,
    inputs: list[list[Any]],
    wanted: LinearMap,
    originals: list[list[Any]],
    outputs: np.ndarray | None = None,
    seed: int = 0,
) -> Moments:
    """Moments of what `reads` reads and of what `wanted`, the same map of another model, makes of its own inputs.

    Args:
        reads: the map to be fitted.
        inputs: what its layer is called on: for each tensor its batches.
        wanted: the map whose outputs are wanted.
        originals: what that layer is called on, the same images in the same batches.
        outputs: indices of the outputs that `reads` still has among those of `wanted`; all by default.
        seed: for the choice of rows.
    """
    generator = np.random.default_rng(seed)
    columns = reads.matrix().shape[1]
    widest = max(math.prod(map.matrix().shape[:2]) for map in (reads, wanted))
    budget = max(_LEAST_ROWS, _ROWS_PER_COLUMN * columns)
    images = sum(len(batch) for batch in inputs[0])
    found: list[tuple[Any, ...]] = []
    # Squares of values far from zero would leave no digits for how they differ: sums are of differences from one row.
    pilot: Any = None
    for index in range(len(inputs[0])):
        for piece in _pieces([tensor[index] for tensor in (*inputs, *originals)], widest):
            mine, other = piece[: len(inputs)], piece[len(inputs) :]
            x, y = keras.ops.cast(reads.rows(mine), "float32"), wanted.apply(other)
            if outputs is not None:
                y = keras.ops.take(keras.ops.reshape(y, (len(y), -1)), outputs, axis=1)
                y = keras.ops.reshape(y, (len(y), reads.groups, -1))
            allowed = max(1, round(budget * len(mine[0]) / images))
            if len(x) > allowed:
                chosen = generator.choice(len(x), allowed, replace=False)
                x, y = keras.ops.take(x, chosen, axis=0), keras.ops.take(y, chosen, axis=0)
            if pilot is None:
                pilot = x[0], y[0]
            found.append(_sums(x - pilot[0], y - pilot[1]))
    counts, *sums = zip(*found, strict=True)
    return _moved_back(Moments(sum(counts), *(np.sum(part, axis=0) for part in sums)), *pilot)


def _moved_back(sums: Moments, pilot_x: Any, pilot_y: Any) -> Moments:
    """The moments of X and Y from those of X and Y less a constant."""
    a, b = np.asarray(pilot_x, np.float64), np.asarray(pilot_y, np.float64)
    across = a[:, :, None] * sums.x[:, None, :]
    return Moments(
        sums.count,
        sums.x + sums.count * a,
        sums.xx + across + across.transpose(0, 2, 1) + sums.count * a[:, :, None] * a[:, None, :],
        sums.y + sums.count * b,
        sums.xy
        + a[:, :, None] * sums.y[:, None, :]
        + sums.x[:, :, None] * b[:, None, :]
        + sums.count * a[:, :, None] * b[:, None, :],
        sums.yy + 2 * b * sums.y + sums.count * b**2,
    )


def _sums(x: Any, y: Any) -> tuple[Any, ...]:
    ops = keras.ops
    by_group, wanted = ops.transpose(x, (1, 0, 2)), ops.transpose(y, (1, 0, 2))
    across = ops.transpose(by_group, (0, 2, 1))
    parts = (
        ops.sum(x, axis=0),
        ops.matmul(across, by_group),
        ops.sum(y, axis=0),
        ops.matmul(across, wanted),
        ops.sum(ops.square(y), axis=0),
    )
    return (len(x), *(np.asarray(part, np.float64) for part in parts))


def _pieces(tensors: list[Any], columns: int) -> Iterator[list[Any]]:
    """The same few images of every tensor at a time."""
    values = max(math.prod(tensor.shape[1:-1]) for tensor in tensors) * columns
    at_once = max(1, _VALUES_AT_ONCE // max(1, values))
    for at in range(0, len(tensors[0]), at_once):
        yield [tensor[at : at + at_once] for tensor in tensors]
