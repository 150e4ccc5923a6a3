"""From weights and a sparsity to a mask: 1 where a weight stays, 0 where it goes."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from mobileprune.errors import SparsityError

_POOLINGS = ("AVG", "MAX")


def _two_integers(name: str, value: Any, least: int) -> tuple[int, int]:
    try:
        first, second = (int(number) if number == int(number) else None for number in value)
    except (TypeError, ValueError, OverflowError):
        first = second = None
    if first is None or second is None or min(first, second) < least:
        raise SparsityError(f"{name} must be two whole numbers of at least {least}. Received: {value!r}.")
    return first, second


@dataclasses.dataclass(frozen=True)
class Pattern:
    """Which weights of a kernel may only go together.

    A kernel is seen as taps × inputs × outputs: a dense kernel has one tap, a 3×3 convolution nine.

    Attributes:
        block_size: (inputs, outputs) of a block, which is kept or removed as a whole and never reaches over two taps.
            Blocks at the edges may be smaller.
        block_pooling_type: what stands for a block's magnitude, the mean (`"AVG"`) or the largest (`"MAX"`) weight.
        sparsity_m_by_n: (m, n): of each n consecutive inputs of an output the m smallest weights go (Mishra et al.
            2021, "Accelerating Sparse Deep Neural Networks", arXiv:2104.08378). The sparsity is m / n then.

    Raises:
        SparsityError: a value out of range, or blocks and n:m together.

    Example:
        >>> Pattern(sparsity_m_by_n=(2, 4)).sparsity(0.9)
        0.5
    """

    block_size: tuple[int, int] = (1, 1)
    block_pooling_type: str = "AVG"
    sparsity_m_by_n: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "block_size", _two_integers("block_size", self.block_size, 1))
        if self.block_pooling_type not in _POOLINGS:
            raise SparsityError(
                f"block_pooling_type must be one of {', '.join(_POOLINGS)}. Received: {self.block_pooling_type!r}."
            )
        if self.sparsity_m_by_n is not None:
            zeros, size = _two_integers("sparsity_m_by_n", self.sparsity_m_by_n, 0)
            object.__setattr__(self, "sparsity_m_by_n", (zeros, size))
            if not 0 < zeros < size:
                raise SparsityError(
                    f"sparsity_m_by_n=(m, n) removes m of n weights, so 0 < m < n. Received: {self.sparsity_m_by_n}."
                )
            if self.block_size != (1, 1):
                raise SparsityError("Give block_size or sparsity_m_by_n: they do not combine.")

    @property
    def is_free(self) -> bool:
        """Whether every weight may go on its own."""
        return self.block_size == (1, 1) and self.sparsity_m_by_n is None

    def sparsity(self, wanted: float) -> float:
        """The sparsity that comes out when `wanted` is asked for."""
        return wanted if self.sparsity_m_by_n is None else self.sparsity_m_by_n[0] / self.sparsity_m_by_n[1]


FREE = Pattern()


def pruning_mask(weights: np.ndarray, sparsity: float, pattern: Pattern = FREE) -> np.ndarray:
    """Keeps the largest weights, blocks, or weights of each group of n, by magnitude.

    Args:
        weights: shape (taps, inputs, outputs); any shape if `pattern.is_free`.
        sparsity: share of zeros wanted, 0 to 1; n:m patterns have their own.
        pattern: what may only go together.

    Returns:
        Booleans of the shape of `weights`.

    Raises:
        SparsityError: the weights are not all finite.

    Example:
        >>> pruning_mask(np.array([[[4.0, 1.0], [2.0, 1.0]]]), 0.5, Pattern(block_size=(2, 1))).tolist()
        [[[True, False], [True, False]]]
    """
    if pattern.is_free:
        return magnitude_mask(weights, sparsity)
    if pattern.sparsity_m_by_n is not None:
        return _m_by_n_mask(np.abs(weights), *pattern.sparsity_m_by_n)
    chosen = magnitude_mask(block_magnitudes(weights, pattern), sparsity)
    rows, columns = pattern.block_size
    spread = chosen.repeat(rows, axis=1).repeat(columns, axis=2)
    mask: np.ndarray = spread[:, : weights.shape[1], : weights.shape[2]]
    return mask


def block_magnitudes(weights: np.ndarray, pattern: Pattern) -> np.ndarray:
    """The magnitude of every block of a kernel (taps, inputs, outputs); without blocks, of every weight."""
    sizes: np.ndarray = np.abs(weights)
    if pattern.block_size == (1, 1):
        return sizes
    for axis, size in zip((1, 2), pattern.block_size, strict=True):
        starts = np.arange(0, sizes.shape[axis], size)
        if pattern.block_pooling_type == "MAX":
            sizes = np.maximum.reduceat(sizes, starts, axis=axis)
        else:
            counts = np.diff(np.append(starts, sizes.shape[axis])).astype(sizes.dtype)
            sizes = np.add.reduceat(sizes, starts, axis=axis) / counts.reshape(
                [-1 if at == axis else 1 for at in range(3)]
            )
    return sizes


def magnitude_mask(weights: np.ndarray, sparsity: float) -> np.ndarray:
    """Keeps the largest weights by absolute value (Han et al. 2015, arXiv:1506.02626).

    Args:
        weights: any shape.
        sparsity: share of zeros wanted, 0 to 1.

    Returns:
        Booleans of the shape of `weights`; exactly `kept_count(weights.size, sparsity)` are True. Among equal
        magnitudes the first ones stay.

    Raises:
        SparsityError: the weights are not all finite.

    Example:
        >>> magnitude_mask(np.array([0.1, -3.0, 2.0, 0.5]), 0.5).tolist()
        [False, True, True, False]
    """
    sizes = np.abs(weights).ravel()
    kept = kept_count(sizes.size, sparsity)
    if kept in (0, sizes.size):
        _check_finite(sizes)
        return np.full(weights.shape, kept > 0)
    threshold = kth_largest(sizes, kept)
    mask: np.ndarray = sizes >= threshold
    if surplus := np.count_nonzero(mask) - kept:
        mask[np.flatnonzero(sizes == threshold)[-surplus:]] = False
    return mask.reshape(weights.shape)


def kept_count(size: int, sparsity: float) -> int:
    """How many of `size` weights stay: the nearest whole number, at least one unless the sparsity is 1.

    Counted in single precision like the TensorFlow Model Optimization toolkit, so that masks are the same.

    Example:
        >>> kept_count(10, 0.8), kept_count(10, 0.99), kept_count(10, 1.0)
        (2, 1, 0)
    """
    share = np.float32(1) - np.float32(sparsity)
    return min(size, max(int(np.round(np.float32(size) * share)), int(share > 0)))


def kth_largest(sizes: np.ndarray, k: int) -> Any:
    """The k-th largest of non-negative numbers, exactly.

    The bits of non-negative floats are ordered as they are: counting the upper 12 bits finds the few candidates without
    a sort or a partition of all, in a third of the time of `np.partition`.

    Args:
        sizes: shape (n,), none negative.
        k: from 1 to n.

    Raises:
        SparsityError: a number is NaN or infinite.

    Example:
        >>> float(kth_largest(np.array([0.5, 3.0, 2.0], np.float32), 2))
        2.0
    """
    if sizes.dtype.itemsize < 4:
        sizes = sizes.astype(np.float32)  # half precision fits in without loss
    if sizes.dtype != np.float32:
        _check_finite(sizes)
        return np.partition(sizes, sizes.size - k)[sizes.size - k]
    upper = np.ascontiguousarray(sizes).view(np.uint32) >> 20
    counts = np.bincount(upper)
    if len(counts) > 0x7F8:  # the exponent of infinities and NaN
        _check_finite(sizes)
    up_to = np.cumsum(counts)
    rank = sizes.size - k  # from the smallest, which has rank 0
    bucket = np.searchsorted(up_to, rank, side="right")
    candidates = sizes[upper == bucket]
    rank -= up_to[bucket] - counts[bucket]
    return np.partition(candidates, rank)[rank]


def zero_fraction(arrays: Sequence[np.ndarray]) -> float:
    """Share of exact zeros over all arrays; 0 when there are none.

    Example:
        >>> zero_fraction([np.array([0.0, 1.0]), np.array([0.0, 0.0])])
        0.75
    """
    size = sum(array.size for array in arrays)
    return float(sum(array.size - np.count_nonzero(array) for array in arrays) / size) if size else 0.0


def _m_by_n_mask(sizes: np.ndarray, zeros: int, group: int) -> np.ndarray:
    """Of each `group` consecutive inputs the largest `group - zeros` stay; the last group may be smaller."""
    _check_finite(sizes)
    taps, inputs, outputs = sizes.shape
    padded = np.full((taps, -(-inputs // group) * group, outputs), -1.0, np.float64)
    padded[:, :inputs] = sizes
    by_group = padded.reshape(taps, -1, group, outputs)
    # The rank of each among its group; a stable sort keeps the first of equal ones.
    ranks = np.argsort(np.argsort(-by_group, axis=2, kind="stable"), axis=2)
    mask: np.ndarray = (ranks < group - zeros).reshape(padded.shape)[:, :inputs]
    return mask


def _check_finite(sizes: np.ndarray) -> None:
    if not np.isfinite(sizes).all():
        raise SparsityError("The weights are not all finite, so their magnitudes cannot be ranked.")
