"""Which weights of a linear map go, and what the others become, so that its outputs change least.

With H = X'X of what the map reads, weights V in the place of W change its outputs by tr((V - W)' H (V - W)). That many
zeros are wanted makes it a hard choice: it is made by ADMM, which lets a dense and a sparse solution approach each other
(Meng et al. 2024, "ALPS", arXiv:2406.07831). Given the zeros, the weights that stay have one best value: the one that
optimal brain surgeon arrives at weight by weight (Hassibi & Stork 1992; Frantar & Alistarh 2022, "Optimal Brain
Compression", arXiv:2208.11580; the same, 2023, "SparseGPT", arXiv:2301.00774).
"""

import dataclasses

import numpy as np

from mobileprune.errors import SparsityError, known_names

METHODS = ("second_order", "magnitude")
# How strongly ADMM pulls both solutions together, as a share of the scaled Hessian's diagonal: at first, and how it
# grows every few rounds, faster while more than such a share of the weights that stay still changes.
_PULL = 0.1
_GROWTH = ((0.1, 1.3), (0.005, 1.2), (0.0, 1.1))
_ROUNDS, _CHECKED_EVERY = 300, 3
# What is added to the diagonal where nothing at all was read.
_LEAST = 1e-12


@dataclasses.dataclass(frozen=True)
class Layout:
    """How the weights of a map fall into pieces that are kept or zeroed together.

    The map's matrix has taps × inputs as its columns, and taps × outputs (of all groups) as its outputs; of both kinds
    of taps one is 1. Only `inputs` and `outputs` must be known, the taps follow.

    Attributes:
        inputs: channels that one tap reads.
        outputs: channels that one tap makes, those of all groups.
        block_size: (height, width) of a block: consecutive inputs × consecutive outputs inside one tap.
        sparsity_m_by_n: (m, n): m zeros among each n consecutive inputs of one tap and output, instead of a sparsity.
    """

    inputs: int
    outputs: int
    block_size: tuple[int, int] = (1, 1)
    sparsity_m_by_n: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        height, width = self.block_size
        if min(height, width) < 1:
            raise SparsityError(f"block_size is {self.block_size}. It counts inputs and outputs: both at least 1.")
        if self.sparsity_m_by_n is None:
            return
        zeros, among = self.sparsity_m_by_n
        if not 0 < zeros < among:
            raise SparsityError(f"sparsity_m_by_n is {self.sparsity_m_by_n}. (m, n) needs 0 < m < n, as (2, 4).")
        if self.block_size != (1, 1):
            raise SparsityError(
                f"block_size {self.block_size} and sparsity_m_by_n {self.sparsity_m_by_n} exclude each other. Drop one."
            )

    def largest(self, scores: np.ndarray, sparsity: float | None, mean: bool = False) -> np.ndarray:
        """Keeps the pieces with the largest scores.

        Args:
            scores: one for each weight, not negative, shape (groups, columns, outputs of a group).
            sparsity: share of the pieces that go; None with `sparsity_m_by_n`.
            mean: a block at the border, which is smaller, counts by the mean of its scores and not by their sum.

        Returns:
            Booleans of the same shape. Exactly `round(pieces * (1 - sparsity))` pieces stay, the first among equals.
        """
        groups, columns, width = scores.shape
        whole = np.moveaxis(scores, 0, 1).reshape(columns // self.inputs, self.inputs, -1, self.outputs)
        if self.sparsity_m_by_n is not None:
            kept = self._largest_of_each(whole, *self.sparsity_m_by_n)
        elif sparsity is None:
            raise SparsityError("Neither a sparsity nor sparsity_m_by_n is given. Give one.")
        elif self.block_size == (1, 1):
            kept = _largest(whole, sparsity)
        else:
            kept = self._largest_blocks(whole, sparsity, mean)
        return np.moveaxis(kept.reshape(columns, groups, width), 1, 0)

    def _largest_blocks(self, scores: np.ndarray, sparsity: float, mean: bool) -> np.ndarray:
        height, width = self.block_size
        starts = np.arange(0, self.inputs, height), np.arange(0, self.outputs, width)
        sums = np.add.reduceat(np.add.reduceat(scores, starts[0], axis=1), starts[1], axis=3)
        sizes = [np.diff(start, append=size) for start, size in zip(starts, (self.inputs, self.outputs), strict=True)]
        if mean:
            sums = sums / (sizes[0][:, None, None] * sizes[1])
        return _largest(sums, sparsity).repeat(sizes[0], axis=1).repeat(sizes[1], axis=3)

    def _largest_of_each(self, scores: np.ndarray, zeros: int, among: int) -> np.ndarray:
        more = -self.inputs % among
        # What is filled in at the end goes first.
        filled = np.pad(scores, ((0, 0), (0, more), (0, 0), (0, 0)), constant_values=-1)
        pieces = filled.reshape(len(filled), -1, among, *filled.shape[2:])
        order = np.argsort(-pieces, axis=2, kind="stable")
        kept = np.zeros(pieces.shape, bool)
        np.put_along_axis(kept, order[:, :, : among - zeros], True, axis=2)
        return kept.reshape(filled.shape)[:, : self.inputs]


def sparsify_matrix(
    weights: np.ndarray, hessian: np.ndarray, sparsity: float | None, layout: Layout, method: str = "second_order"
) -> np.ndarray:
    """The sparse weights that change a linear map's outputs least, as far as they can be found.

    Args:
        weights: the best dense weights, shape (groups, columns, outputs of a group).
        hessian: X'X of what the map reads, or a multiple, made positive definite by `damped`; shape (groups, columns,
            columns).
        sparsity: share of zeros, 0 to 1; None when the layout says how many.
        layout: which weights go together.
        method: `"second_order"`, or `"magnitude"`: the smallest go, the others stay as they are.

    Returns:
        Weights of the same shape with exact zeros.

    Raises:
        SparsityError: unknown method, or weights or Hessian are not finite.

    Example:
        >>> weights = np.array([[[1.0], [2.0], [1.5]]])
        >>> alike = np.array([[[1.0, 0.0, 0.0], [0.0, 1.0, 0.99], [0.0, 0.99, 1.0]]])
        >>> sparsify_matrix(weights, alike, 1 / 3, Layout(3, 1)).round(2).ravel().tolist()
        [1.0, 3.49, 0.0]
    """
    if method not in METHODS:
        raise SparsityError(f"Unknown method {method!r}. Known: {known_names(METHODS)}.")
    if not (np.isfinite(weights).all() and np.isfinite(hessian).all()):
        raise SparsityError("Weights or what they read are not all finite, so nothing can be fitted.")
    if method == "magnitude":
        return np.where(layout.largest(np.abs(weights), sparsity, mean=True), weights, 0.0)
    return refit(weights, hessian, choose(weights, hessian, sparsity, layout))


def damped(hessian: np.ndarray, share: float) -> np.ndarray:
    """Adds a share of the mean of its diagonal to a Hessian's diagonal, group by group; shape (groups, n, n)."""
    strength = share * np.trace(hessian, axis1=1, axis2=2) / hessian.shape[1] + _LEAST
    found: np.ndarray = hessian + strength[:, None, None] * np.eye(hessian.shape[1])
    return found


def choose(weights: np.ndarray, hessian: np.ndarray, sparsity: float | None, layout: Layout) -> np.ndarray:
    """Which weights stay: booleans of the weights' shape (see `sparsify_matrix` for the arguments)."""
    # Columns are scaled to one size, so that a weight's square is what its loss alone would cost.
    size = np.sqrt(np.diagonal(hessian, axis1=1, axis2=2))
    values, vectors = np.linalg.eigh(hessian / (size[:, :, None] * size[:, None, :]))
    values, vectors = np.maximum(values, 0).astype(np.float32), vectors.astype(np.float32)
    back = vectors.transpose(0, 2, 1)
    scaled = (weights * size[:, :, None]).astype(np.float32)
    wanted = vectors @ (values[:, :, None] * (back @ scaled))
    pull = _PULL
    kept = seen = layout.largest(np.square(scaled), sparsity)
    sparse, dual = np.where(kept, scaled, 0), np.zeros_like(scaled)
    for number in range(1, _ROUNDS + 1):
        dense = vectors @ ((back @ (wanted - dual + pull * sparse)) / (values + pull)[:, :, None])
        target = dense + dual / pull
        kept = layout.largest(np.square(target), sparsity)
        sparse = np.where(kept, target, 0)
        dual += pull * (dense - sparse)
        if number % _CHECKED_EVERY == 0:
            changed = np.count_nonzero(kept != seen) / max(1, np.count_nonzero(kept))
            if not changed:
                break
            seen = kept
            pull *= next(growth for least, growth in _GROWTH if changed >= least)
    return kept


def refit(weights: np.ndarray, hessian: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """The best values of the weights that stay, by least squares; the others become 0.

    Args:
        weights: the best dense weights, shape (groups, columns, outputs of a group).
        hessian: positive definite, shape (groups, columns, columns).
        kept: booleans of the weights' shape.
    """
    found = np.zeros(weights.shape)
    for group, matrix in enumerate(hessian):
        wanted = matrix @ weights[group]
        inverse = None
        for output in range(weights.shape[2]):
            stay = kept[group, :, output]
            here, gone = np.flatnonzero(stay), np.flatnonzero(~stay)
            if len(here) <= len(gone):
                found[group, here, output] = np.linalg.solve(matrix[np.ix_(here, here)], wanted[here, output])
                continue
            # The same by what the few that go leave to the others.
            inverse = np.linalg.inv(matrix) if inverse is None else inverse
            share = np.linalg.solve(inverse[np.ix_(gone, gone)], weights[group, gone, output])
            found[group, here, output] = weights[group, here, output] - inverse[np.ix_(here, gone)] @ share
    return found


def loss(weights: np.ndarray, hessian: np.ndarray, sparse: np.ndarray) -> float:
    """tr((V - W)' H (V - W)), summed over groups: how much the outputs change, in the Hessian's unit."""
    change = sparse - weights
    return float(np.sum(change * (hessian @ change)))


def _largest(scores: np.ndarray, sparsity: float) -> np.ndarray:
    kept = round(scores.size * (1 - sparsity))
    chosen = np.zeros(scores.size, bool)
    flat = scores.ravel()
    if kept == 0:
        return chosen.reshape(scores.shape)
    threshold = np.partition(flat, flat.size - kept)[flat.size - kept]
    chosen[flat > threshold] = True
    ties = np.flatnonzero(flat == threshold)
    chosen[ties[: kept - np.count_nonzero(chosen)]] = True
    return chosen.reshape(scores.shape)
