"""From weights and a sparsity to a mask: 1 where a weight stays, 0 where it goes."""

import numpy as np

from mobileprune.errors import SparsityError


def magnitude_mask(weights: np.ndarray, sparsity: float) -> np.ndarray:
    """Keeps the largest weights by absolute value (Han et al. 2015, arXiv:1506.02626).

    Args:
        weights: any shape.
        sparsity: share of zeros wanted, 0 to 1.

    Returns:
        Booleans of the shape of `weights`; exactly `round(size * (1 - sparsity))` are True. Among equal magnitudes
        the first ones stay.

    Raises:
        SparsityError: the weights are not all finite.

    Example:
        >>> magnitude_mask(np.array([0.1, -3.0, 2.0, 0.5]), 0.5).tolist()
        [False, True, True, False]
    """
    sizes = np.abs(weights).ravel()
    if not np.isfinite(sizes).all():
        raise SparsityError("The weights are not all finite, so their magnitudes cannot be ranked.")
    kept = round(sizes.size * (1 - sparsity))
    if kept in (0, sizes.size):
        return np.full(weights.shape, kept > 0)
    threshold = np.partition(sizes, sizes.size - kept)[sizes.size - kept]
    mask: np.ndarray = sizes > threshold
    ties = np.flatnonzero(sizes == threshold)
    mask[ties[: kept - np.count_nonzero(mask)]] = True
    return mask.reshape(weights.shape)


def zero_fraction(arrays: list[np.ndarray]) -> float:
    """Share of exact zeros over all arrays; 0 when there are none.

    Example:
        >>> zero_fraction([np.array([0.0, 1.0]), np.array([0.0, 0.0])])
        0.75
    """
    size = sum(array.size for array in arrays)
    return float(sum(array.size - np.count_nonzero(array) for array in arrays) / size) if size else 0.0
