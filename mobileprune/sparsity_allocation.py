"""How much of each layer goes when the whole network is to have a certain sparsity."""

import math
from collections.abc import Sequence

import numpy as np

from mobileprune.errors import SparsityError
from mobileprune.masks import kept_count, kth_largest

ALLOCATIONS = ("uniform", "global", "erk")


def layer_sparsities(
    magnitudes: Sequence[np.ndarray], shapes: Sequence[Sequence[int]], sparsity: float, allocation: str
) -> list[float]:
    """The sparsity of each kernel.

    Args:
        magnitudes: for each kernel the sizes of its weights, or of its blocks; any shape, read by `"global"` only.
        shapes: for each kernel its shape.
        sparsity: share of zeros wanted over all kernels together, 0 to 1.
        allocation: `"uniform"`, the same everywhere (Zhu & Gupta 2017, arXiv:1710.01878); `"global"`, the smallest
            weights of all layers (Han et al. 2015, arXiv:1506.02626); `"erk"`, denser where a kernel is small
            (Erdős–Rényi-kernel: Evci et al. 2020, "Rigging the Lottery", arXiv:1911.11134).

    Returns:
        One share of zeros for each kernel, 0 to 1.

    Raises:
        SparsityError: an unknown allocation, or weights that are not finite.

    Example:
        >>> layer_sparsities([np.array([1.0, 4.0]), np.array([2.0, 3.0])], [(2,), (2,)], 0.25, "global")
        [0.5, 0.0]
    """
    check_allocation(allocation)
    if allocation == "uniform":
        return [sparsity] * len(shapes)
    if allocation == "global":
        return _by_magnitude(magnitudes, sparsity)
    return _by_shape(shapes, sparsity)


def check_allocation(allocation: str) -> None:
    """Refuses unknown names.

    Raises:
        SparsityError: with the known ones.
    """
    if allocation not in ALLOCATIONS:
        raise SparsityError(f"There is no allocation {allocation!r}. Known: {', '.join(ALLOCATIONS)}.")


def _by_magnitude(magnitudes: Sequence[np.ndarray], sparsity: float) -> list[float]:
    together = np.concatenate([sizes.ravel() for sizes in magnitudes])
    kept = kept_count(together.size, sparsity)
    if kept in (0, together.size):
        return [float(kept == 0)] * len(magnitudes)
    threshold = kth_largest(together, kept)
    # Equal ones at the threshold stay from the first layer on, as they do inside a layer.
    equal = kept - np.count_nonzero(together > threshold)
    found = []
    for sizes in magnitudes:
        here = min(equal, np.count_nonzero(sizes == threshold))
        equal -= here
        found.append(1 - float(np.count_nonzero(sizes > threshold) + here) / sizes.size)
    return found


def _by_shape(shapes: Sequence[Sequence[int]], sparsity: float) -> list[float]:
    sizes = np.array([math.prod(shape) for shape in shapes], float)
    wish = np.array([sum(shape) for shape in shapes], float) / sizes
    dense = np.zeros(len(shapes), bool)
    while not dense.all():
        left = (1 - sparsity) * sizes.sum() - sizes[dense].sum()
        density = wish * max(left, 0) / (wish * sizes)[~dense].sum()
        over = ~dense & (density > 1)
        if not over.any():
            return [0.0 if full else float(1 - share) for full, share in zip(dense, density, strict=True)]
        # The small ones that would need more than all their weights keep all, and the others share what is left.
        dense |= over
    return [0.0] * len(shapes)
