"""Weight sparsity at once: no labels, no training, some hundred images and seconds.

Layer after layer, on what the layers before it have become, each matrix is fitted to what the original's gave, made
sparse and fitted again (as in Frantar & Alistarh 2023, "SparseGPT", arXiv:2301.00774; `mobileprune.second_order` says
how zeros are chosen). What a layer gives too much or too little on average goes into its bias or the next batch norm.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import Any

import numpy as np

from mobileprune.constraints import check_patterns, first_match
from mobileprune.errors import DatasetError, SparsityError, known_names
from mobileprune.graph import check_finite, functional_graph, leaves
from mobileprune.linear import LinearMap, linear_maps
from mobileprune.masks import Pattern, block_magnitudes, pruning_mask
from mobileprune.moments import Moments, measure
from mobileprune.playback import play
from mobileprune.prunable import Kernel, kernels_of, variable_at
from mobileprune.pruning_wrapper import wrapped_layers
from mobileprune.reconstruct import LAST_KERNELS, Originals, bias_sinks
from mobileprune.second_order import Quadratic, Select, damped, shares_of_least_loss
from mobileprune.sparsify import strip_pruning
from mobileprune.sparsity_allocation import check_allocation, layer_sparsities

METHODS = ("second_order", "magnitude")
# Added to the covariance's diagonal, as a share of its mean: while zeros are chosen, and while weights are fitted.
_DAMPING, _RIDGE = 1e-2, 1e-3
# Both grow by as many times the columns for each row: few rows say little, and would be learnt by heart.
_CAUTION = 5
# The covariance of more columns would take gigabytes, and minutes.
_MOST_COLUMNS = 6144
# Where losses are measured to share out zeros, with so many rounds of ADMM.
_LEVELS = (0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98)
_ROUNDS = 30

# A layer's path and a kernel's path in it.
_Place = tuple[str, str]


def prune_one_shot(
    model: Any,
    sparsity: float | Mapping[str, float | None] | None = None,
    calibration: Any = None,
    *,
    keep: Sequence[str] = (),
    block_size: tuple[int, int] = (1, 1),
    block_pooling_type: str = "AVG",
    sparsity_m_by_n: tuple[int, int] | None = None,
    method: str = "second_order",
    allocation: str = "uniform",
    refit_dense: bool = True,
) -> Any:
    """Zeroes weights without training, and fits those that stay to what the original model's layers give.

    Args:
        model: a built functional or Sequential model; not changed. Models nested in it are pruned, too.
        sparsity: share of zeros in each kernel (see `prunable`), 0 to 1; or shares by wildcard patterns of layer names
            or paths (`outer/inner`), of which the first that matches counts: a layer with None, or without a match,
            stays dense. Not with `sparsity_m_by_n`, but for which layers it means (`{"block_*": 0.5}`).
        calibration: images without labels, (images, …), as the model takes them, or a list of arrays, one for each
            input. 1,024 are plenty; `"magnitude"` needs none.
        keep: wildcard patterns of layers that stay dense.
        block_size, block_pooling_type, sparsity_m_by_n: which weights go together, see `Pattern`.
        method: `"second_order"`, or `"magnitude"`: the smallest weights go, nothing is fitted. Kernels that are no
            matrix to be fitted (of embeddings, causal convolutions, masked attention) or one of more than 6,144 columns
            go by magnitude in either case.
        allocation: `"uniform"`; or one that shares out the zeros among all layers that are pruned: `"global"`, so that
            the layers' outputs change least in sum (by magnitude, the smallest weights of all), or `"erk"`.
        refit_dense: also fits the layers that stay dense to their changed inputs. Zeros that they have stay.

    Returns:
        A new uncompiled model of the same layers with exact zeros. `hold_zeros` keeps them while it is fine-tuned.
        Batch norms need no `recalibrate` after `"second_order"`: their means are right already.

    Raises:
        SparsityError: a value that cannot be meant, or nothing to prune.
        PlanError: a wildcard that matches no layer.
        DatasetError: no calibration images, or such as do not fit the model.
        ModelError: the model is subclassed, or has weights that are not finite.

    Example:
        >>> sparse = prune_one_shot(model, 0.8, images, keep=["head"])                          # doctest: +SKIP
        >>> held = hold_zeros(sparse); held.compile(...); held.fit(...)                         # doctest: +SKIP
    """
    if method not in METHODS:
        raise SparsityError(f"Unknown method {method!r}. Known: {known_names(METHODS)}.")
    check_allocation(allocation)
    if method == "second_order" and calibration is None:
        raise DatasetError("method='second_order' needs calibration images: pass some hundred, without labels.")
    functional_graph(model)
    check_finite(model)
    pattern = Pattern(block_size, block_pooling_type, sparsity_m_by_n)
    wanted = _wanted(model, sparsity, keep, pattern)
    found = strip_pruning(model)
    pruning = _Pruning(dict(leaves(found)), wanted, pattern)
    if allocation != "uniform":
        if sparsity_m_by_n is not None:
            raise SparsityError(f"sparsity_m_by_n leaves nothing to share out: drop allocation={allocation!r}.")
        if len(set(wanted.values())) > 1:
            raise SparsityError(f"allocation={allocation!r} shares out one sparsity. Received: {sparsity!r}.")
        pruning.share_out(allocation, model, calibration if method == "second_order" else None)
    if method == "second_order":
        pruning.fit(model, found, calibration, refit_dense)
    pruning.by_magnitude()
    return found


def _wanted(model: Any, sparsity: Any, keep: Sequence[str], pattern: Pattern) -> dict[_Place, float]:
    """The share of zeros of each kernel that is pruned."""
    if sparsity is None:
        if pattern.sparsity_m_by_n is None:
            raise SparsityError("Give a sparsity, as 0.8, or sparsity_m_by_n, as (2, 4).")
        sparsity = pattern.sparsity(0.0)
    shares = sparsity if isinstance(sparsity, Mapping) else {"*": sparsity}
    for share in shares.values():
        if share is not None and not 0 <= share <= 1:
            raise SparsityError(f"A sparsity is a share of zeros from 0 to 1. Received: {sparsity!r}.")
    if wrapped_layers(model):
        raise SparsityError(f"{model.name!r} holds wrapped layers: strip_pruning it first.")
    layers = dict(leaves(model))
    names = list(dict.fromkeys([*layers, *(layer.name for layer in layers.values())]))
    check_patterns("keep", keep, names)
    check_patterns("sparsity", shares, names)
    found = {}
    for path, layer in layers.items():
        share = None if _first(path, layer, dict.fromkeys(keep, True)) else _first(path, layer, shares)
        if share is not None:
            found.update({(path, kernel.path): pattern.sparsity(share) for kernel in kernels_of(layer)})
    if not found:
        raise SparsityError(f"Nothing to prune in {model.name!r}: no layer with kernels has a sparsity.")
    return found


def _first(path: str, layer: Any, by_pattern: Mapping[str, Any]) -> Any:
    found = first_match(path, by_pattern, None)
    return first_match(layer.name, by_pattern, None) if found is None else found


@dataclasses.dataclass
class _Pruning:
    """What is still to be made sparse.

    Attributes:
        layers: the new model's layers, by path.
        shares: the share of zeros of each kernel that is still to be pruned.
        pattern: which weights go together.
    """

    layers: dict[str, Any]
    shares: dict[_Place, float]
    pattern: Pattern

    def share_out(self, allocation: str, model: Any, images: Any) -> None:
        """Gives the kernels shares of their own that come to the same in all; by losses if there are images."""
        values = {place: np.asarray(self._variable(place)) for place in self.shares}
        sparsity = next(iter(self.shares.values()))
        if images is not None and allocation == "global":
            levels = (*_LEVELS, sparsity) if sparsity > _LEVELS[-1] else _LEVELS
            losses = self._losses(model, images, levels)
            # Kernels without a known loss keep the common share.
            sizes = [values[place].size for place in losses]
            found = shares_of_least_loss(sizes, levels, list(losses.values()), sparsity)
            self.shares.update(zip(losses, found, strict=True))
            return
        kernels = {place: self._kernel(place) for place in self.shares}
        magnitudes = [block_magnitudes(kernels[place].to_taps(values[place]), self.pattern) for place in self.shares]
        shapes = [each.shape for each in values.values()]
        self.shares.update(zip(self.shares, layer_sparsities(magnitudes, shapes, sparsity, allocation), strict=True))

    def fit(self, model: Any, found: Any, images: Any, refit_dense: bool) -> None:
        """Prunes and fits what can be fitted, every layer on its first call, and takes it off the list."""
        pruned = {path for path, _ in self.shares}
        wanted = {path for path, layer in self.layers.items() if path in pruned or (refit_dense and kernels_of(layer))}
        originals, sinks = Originals(play(model, images), set(wanted)), bias_sinks(found)
        changed = False
        for step in play(found, images):
            if step.path not in wanted:
                continue
            wanted.remove(step.path)
            old_layer, old_node, old_inputs = originals.call(step.path)
            changed = changed or step.path in pruned
            if not changed:
                continue
            maps = zip(linear_maps(step.operation, step.node), linear_maps(old_layer, old_node), strict=True)
            for map, old in maps:
                if map.matrix().shape[1] <= _MOST_COLUMNS:
                    sink = sinks.get(step.path) if map.kernel.startswith(LAST_KERNELS) else None
                    self._fit(map, measure(map, step.inputs(), old, old_inputs), self._place(step.path, map), sink)

    def by_magnitude(self) -> None:
        """Prunes what is left on the list by magnitude."""
        for place, share in self.shares.items():
            variable, kernel = self._variable(place), self._kernel(place)
            values = np.asarray(variable)
            kept = kernel.from_taps(pruning_mask(kernel.to_taps(values), share, self.pattern), values.shape)
            variable.assign(np.where(kept, values, 0))

    def _fit(self, map: LinearMap, sums: Moments, place: _Place, sink: Any) -> None:
        weights, offset = map.matrix(), map.offset()
        if sink is not None and sink.moving_mean.shape != (offset.size,):
            sink = None  # what a transposed convolution gives is still to be added up
        shifts = map.bias is not None or sink is not None
        xx, xy = sums.centred() if shifts else sums.raw()
        caution = 1 + _CAUTION * weights.shape[1] / sums.count
        kept = weights != 0
        if place in self.shares:
            select = self._select(map, place, self.shares.pop(place))
            kept = _problem(weights, xx, xy, _DAMPING * caution).choose(select)
        weights = _problem(weights, xx, xy, _RIDGE * caution).refit(kept)
        if shifts:
            wanted = (sums.y - np.einsum("gk,gkm->gm", sums.x, weights)) / sums.count
            if map.bias is None:
                sink.moving_mean.assign_sub((wanted - offset).ravel().astype("float32"))
            offset = wanted
        map.assign(weights, offset)

    def _losses(self, model: Any, images: Any, levels: Sequence[float]) -> dict[_Place, list[float]]:
        """For each kernel that can be fitted, the share of its outputs' variance that is lost at each sparsity."""
        found: dict[_Place, list[float]] = {}
        for step in play(model, images):
            if step.path not in self.layers:
                continue
            for map in linear_maps(step.operation, step.node):
                place = self._place(step.path, map)
                if place not in self.shares or place in found or map.matrix().shape[1] > _MOST_COLUMNS:
                    continue
                sums = measure(map, step.inputs(), map, step.inputs())
                problem = Quadratic(map.matrix(), damped(sums.centred()[0], _DAMPING))
                chosen = (problem.choose(self._select(map, place, level), _ROUNDS) for level in levels)
                unit = max(sums.variance(), 1e-12)
                found[place] = [problem.loss(problem.refit(kept)) / unit for kept in chosen]
        return found

    def _select(self, map: LinearMap, place: _Place, share: float) -> Select:
        """Keeps the largest scores of a map's weights that the pattern allows."""
        kernel = self._kernel(place)

        def select(scores: np.ndarray) -> np.ndarray:
            kept = pruning_mask(kernel.to_taps(map.to_kernel(scores)), share, self.pattern)
            return map.to_matrix(kernel.from_taps(kept, map.shape))

        return select

    def _variable(self, place: _Place) -> Any:
        return variable_at(self.layers[place[0]], place[1])

    def _kernel(self, place: _Place) -> Kernel:
        return next(kernel for kernel in kernels_of(self.layers[place[0]]) if kernel.path == place[1])

    @staticmethod
    def _place(path: str, map: LinearMap) -> _Place:
        variable = attrgetter(map.kernel)(map.layer)
        kernels = (kernel.path for kernel in kernels_of(map.layer))
        return path, next((found for found in kernels if variable_at(map.layer, found) is variable), map.kernel)


def _problem(weights: np.ndarray, xx: np.ndarray, xy: np.ndarray, damping: float) -> Quadratic:
    """The loss around the weights that fit best without zeros."""
    hessian = damped(xx, damping)
    return Quadratic(weights + np.linalg.solve(hessian, xy - xx @ weights), hessian)
