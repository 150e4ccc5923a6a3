"""Which weights of a linear map go, and what the others become, so that its outputs change least.

With H = X'X of what the map reads, weights V in the place of W change its outputs by tr((V - W)' H (V - W)). Choosing a
given number of zeros is the hard half: ADMM lets a dense and a sparse solution approach each other (Meng et al. 2024,
"ALPS", arXiv:2406.07831). Given the zeros, the weights that stay have one best value, at which optimal brain surgeon
arrives weight by weight (Hassibi & Stork 1992; Frantar & Alistarh 2022, "Optimal Brain Compression", arXiv:2208.11580).
"""

import functools
from collections.abc import Callable, Sequence

import numpy as np

from mobileprune.errors import SparsityError

# From scores, one for each weight, shape (groups, columns, outputs), to booleans: which weights stay.
Select = Callable[[np.ndarray], np.ndarray]

# How strongly ADMM pulls both solutions together, as a share of the scaled Hessian's diagonal: at first, and how it
# grows every few rounds, faster while more than such a share of the weights that stay still changes.
_PULL = 0.1
_GROWTH = ((0.1, 1.3), (0.005, 1.2), (0.0, 1.1))
_ROUNDS, _CHECKED_EVERY = 300, 3
# Added to the diagonal in any case, for what never reads anything.
_LEAST = 1e-12
# Losses are known at a few sparsities; between them their logarithm is taken for straight.
_GRID = 400
_BISECTIONS = 60


class Quadratic:
    """The loss tr((V - W)' H (V - W)) of one linear map, for any number of sparse V.

    Args:
        weights: W, the best dense weights, shape (groups, columns, outputs).
        hessian: H, positive definite (see `damped`), shape (groups, columns, columns).

    Raises:
        SparsityError: weights or Hessian are not finite.

    Example:
        >>> weights = np.array([[[1.0], [2.0], [1.5]]])
        >>> hessian = np.array([[[1.0, 0.0, 0.0], [0.0, 1.0, 0.99], [0.0, 0.99, 1.0]]])
        >>> two_largest = lambda scores: scores >= np.sort(scores.ravel())[1]
        >>> problem = Quadratic(weights, hessian)
        >>> problem.refit(problem.choose(two_largest)).round(2).ravel().tolist()
        [1.0, 3.49, 0.0]
    """

    def __init__(self, weights: np.ndarray, hessian: np.ndarray) -> None:
        if not (np.isfinite(weights).all() and np.isfinite(hessian).all()):
            raise SparsityError("Weights, or what they read, are not all finite: nothing can be fitted.")
        self.weights, self.hessian = weights, hessian

    def choose(self, select: Select, rounds: int = _ROUNDS) -> np.ndarray:
        """Which weights stay.

        Args:
            select: keeps the largest scores that a pattern allows. It is asked once a round and must always keep
                equally many.
            rounds: how many rounds of ADMM at most; it ends when the choice no longer changes.

        Returns:
            Booleans of the weights' shape.
        """
        size, values, vectors = self._scaled
        back = vectors.transpose(0, 2, 1)
        scaled = (self.weights * size).astype(np.float32)
        wanted = back @ scaled * values
        kept = seen = select(np.square(scaled))
        sparse, dual, pull = np.where(kept, scaled, 0), np.zeros_like(scaled), _PULL
        for number in range(1, rounds + 1):
            dense = vectors @ ((wanted + back @ (pull * sparse - dual)) / (values + pull))
            target = dense + dual / pull
            kept = select(np.square(target))
            sparse = np.where(kept, target, 0)
            dual += pull * (dense - sparse)
            if number % _CHECKED_EVERY == 0:
                changed = float(np.mean(kept != seen)) / max(float(np.mean(kept)), 1e-12)
                if not changed:
                    break
                seen = kept
                pull *= next(growth for least, growth in _GROWTH if changed >= least)
        return kept

    def refit(self, kept: np.ndarray) -> np.ndarray:
        """The weights of least loss that are zero wherever `kept` is False; shape (groups, columns, outputs)."""
        if kept.all():
            return self.weights.copy()
        found = np.zeros(self.weights.shape)
        for group, (matrix, weights) in enumerate(zip(self.hessian, self.weights, strict=True)):
            wanted = matrix @ weights
            for output in range(weights.shape[1]):
                stay = kept[group, :, output]
                here, gone = np.flatnonzero(stay), np.flatnonzero(~stay)
                if len(here) <= len(gone):
                    found[group, here, output] = np.linalg.solve(matrix[np.ix_(here, here)], wanted[here, output])
                else:  # the same, from what the few that go leave to the others: a smaller system
                    inverse = self._inverse[group]
                    share = np.linalg.solve(inverse[np.ix_(gone, gone)], weights[gone, output])
                    found[group, here, output] = weights[here, output] - inverse[np.ix_(here, gone)] @ share
        return found

    def loss(self, sparse: np.ndarray) -> float:
        """How much the outputs change, in the Hessian's unit, summed over all groups and outputs."""
        change = sparse - self.weights
        return float(np.sum(change * (self.hessian @ change)))

    @functools.cached_property
    def _scaled(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The size of each column, and eigenvalues and eigenvectors of the Hessian when all have size 1."""
        # A weight's square is then what losing it alone would cost.
        size = np.sqrt(np.diagonal(self.hessian, axis1=1, axis2=2))[:, :, None]
        values, vectors = np.linalg.eigh(self.hessian / (size * size.transpose(0, 2, 1)))
        return size, np.maximum(values, 0).astype(np.float32)[:, :, None], vectors.astype(np.float32)

    @functools.cached_property
    def _inverse(self) -> np.ndarray:
        return np.linalg.inv(self.hessian)


def damped(hessian: np.ndarray, share: float) -> np.ndarray:
    """Adds to each group's diagonal a share of its mean; shape (groups, columns, columns)."""
    columns = hessian.shape[1]
    strength = share * np.trace(hessian, axis1=1, axis2=2) / columns + _LEAST
    found: np.ndarray = hessian + strength[:, None, None] * np.eye(columns)
    return found


def shares_of_least_loss(
    sizes: Sequence[int], levels: Sequence[float], losses: Sequence[Sequence[float]], sparsity: float
) -> list[float]:
    """How sparse each layer becomes so that all together have a sparsity and lose least in sum.

    Args:
        sizes: the number of weights of each layer.
        levels: sparsities, ascending; the last is the largest that any layer gets.
        losses: for each layer its loss at each of the levels.
        sparsity: share of zeros over all layers together, at most the last level.

    Returns:
        A share of zeros for each layer. Beside the first level a layer may also stay dense.

    Example:
        >>> shares_of_least_loss([10, 10], [0.5, 0.9], [[1.0, 4.0], [0.1, 0.2]], 0.5)[1] > 0.8
        True
    """
    grid = np.linspace(0, levels[-1], _GRID + 1)
    curves = np.array([_curve(grid, levels, known) for known in losses])
    weights = np.array(sizes) / np.sum(sizes)
    fewer, more = np.zeros(len(sizes)), np.full(len(sizes), levels[-1])
    # The price of a zero at which the layers that are each best off come to the sparsity together.
    low, high = 1e-12, 1e12
    for _ in range(_BISECTIONS):
        price = np.sqrt(low * high)
        shares = grid[np.argmin(curves - price * weights[:, None] * grid, axis=1)]
        if weights @ shares < sparsity:
            low, fewer = price, shares
        else:
            high, more = price, shares
    span = float(weights @ (more - fewer))
    part = (sparsity - float(weights @ fewer)) / span if span > 0 else 1.0
    found: list[float] = (fewer + min(1.0, part) * (more - fewer)).tolist()
    return found


def _curve(grid: np.ndarray, levels: Sequence[float], losses: Sequence[float]) -> np.ndarray:
    # More zeros never lose less, whatever ADMM found; nothing is lost by a layer that stays dense.
    rising = np.maximum.accumulate(np.maximum(losses, 1e-12))
    curve: np.ndarray = np.exp(np.interp(grid, levels, np.log(rising)))
    below = grid < levels[0]
    curve[below] = rising[0] * grid[below] / levels[0]
    return curve
