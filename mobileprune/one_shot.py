"""Weight sparsity at once: no labels, no training, a few hundred images and seconds.

Layer after layer, on what the layers before it have become, each matrix is fitted to what the original's gave, made
sparse and fitted again (Frantar & Alistarh 2023, "SparseGPT", arXiv:2301.00774; see `mobileprune.second_order` for the
choice of zeros). What sparse weights give too much or too little on average goes into a bias or the batch norm behind.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from mobileprune.constraints import check_patterns, first_match
from mobileprune.errors import DatasetError, SparsityError, known_names
from mobileprune.graph import check_finite, clone, functional_graph, is_nested, leaves, same_layer
from mobileprune.linear import LinearMap, linear_maps
from mobileprune.moments import Moments, measure
from mobileprune.playback import Step, play
from mobileprune.reconstruct import Originals, bias_sinks
from mobileprune.second_order import METHODS, Layout, damped, sparsify_matrix
from mobileprune.sparsify import PRUNABLE, PruneLowMagnitude

ALLOCATIONS = ("uniform", "global")
# Added to the covariance's diagonal, as a share of its mean.
_DAMPING = 1e-2
# The covariance of more columns would take minutes and gigabytes.
_MOST_COLUMNS = 6144
_TRANSPOSED = (keras.layers.Conv1DTranspose, keras.layers.Conv2DTranspose)


def prune_one_shot(
    model: Any,
    sparsity: float | Mapping[str, float | None] | None = None,
    calibration: Any = None,
    *,
    keep: Sequence[str] = (),
    prune_only: Sequence[str] = ("*",),
    block_size: tuple[int, int] = (1, 1),
    sparsity_m_by_n: tuple[int, int] | None = None,
    method: str = "second_order",
) -> Any:
    """Zeroes weights without training and fits those that stay to what the original model's layers give.

    Args:
        model: a built functional or Sequential model; not changed. Nested models are pruned, too.
        sparsity: share of zeros in each layer's kernel, 0 to 1; or shares by wildcard patterns of layer names or paths
            (`outer/inner`), of which the first that matches counts: None, or no match, leaves a layer as it is.
        calibration: images without labels, (images, …), as the model takes them; a list of arrays for several inputs.
            `"magnitude"` needs none.
        keep: wildcard patterns of layers that stay as they are.
        prune_only: wildcard patterns of the layers that are pruned; all that have kernels (see `sparsify.PRUNABLE`).
        block_size: (height, width): consecutive inputs × consecutive outputs inside one tap that go together.
        sparsity_m_by_n: (m, n): m zeros among each n consecutive inputs, in the place of `sparsity`.
        method: `"second_order"`, or `"magnitude"`: the smallest weights go, nothing is fitted. Layers that have no
            matrix to be fitted (depthwise in the guise of groups, causal, channels first) or one of more than 6,144
            columns go by magnitude either way.

    Returns:
        A new uncompiled model of the same layers, with exact zeros: in each kernel
        `round(blocks * (1 - sparsity))` blocks are left. `hold_zeros` keeps them through a fine-tuning.

    Raises:
        SparsityError: a sparsity or pattern that makes no sense, or nothing to prune.
        PlanError: a wildcard that matches no layer.
        DatasetError: no calibration images, or such as do not fit the model.
        ModelError: the model is subclassed, or has weights that are not finite.

    Example:
        >>> sparse = prune_one_shot(model, 0.8, images, keep=["head"])                          # doctest: +SKIP
    """
    if method not in METHODS:
        raise SparsityError(f"Unknown method {method!r}. Known: {known_names(METHODS)}.")
    if method == "second_order" and calibration is None:
        raise DatasetError("method='second_order' needs calibration images: pass some hundred, without labels.")
    functional_graph(model)
    check_finite(model)
    wanted = _wanted(model, sparsity, keep, prune_only, sparsity_m_by_n)
    found = _copy(model)
    inside = dict(leaves(found))
    fitted: set[str] = set()
    if method == "second_order":
        fitted = _fit_all(model, found, wanted, calibration, block_size, sparsity_m_by_n)
    for path in wanted:
        if path not in fitted:
            _by_magnitude(inside[path], wanted[path], block_size, sparsity_m_by_n)
    return found


def _wanted(
    model: Any, sparsity: Any, keep: Sequence[str], prune_only: Sequence[str], m_by_n: tuple[int, int] | None
) -> dict[str, float | None]:
    """The share of zeros of each layer that is pruned, by path; None where n:m says it."""
    shares = sparsity if isinstance(sparsity, Mapping) else {"*": sparsity}
    if (m_by_n is None) == (sparsity is None):
        raise SparsityError(f"Give either a sparsity or sparsity_m_by_n: {sparsity=}, sparsity_m_by_n={m_by_n}.")
    for share in shares.values():
        if share is not None and not 0 <= share <= 1:
            raise SparsityError(f"sparsity is a share of zeros from 0 to 1: {sparsity!r}.")
    layers = dict(leaves(model))
    wrapped = [path for path, layer in layers.items() if isinstance(layer, PruneLowMagnitude)]
    if wrapped:
        raise SparsityError(f"{model.name!r} holds wrapped layers, as {wrapped[0]!r}: strip_pruning it first.")
    found: dict[str, float | None] = {}
    names = list(dict.fromkeys([*layers, *(layer.name for layer in layers.values())]))
    for argument, patterns in {"keep": keep, "prune_only": prune_only, "sparsity": shares}.items():
        check_patterns(argument, patterns, names)
    for path, layer in layers.items():
        if type(layer) not in PRUNABLE or _first(path, layer, dict.fromkeys(keep, True)):
            continue
        share = _first(path, layer, shares)
        if _first(path, layer, dict.fromkeys(prune_only, True)) and (share is not None or m_by_n is not None):
            found[path] = share
    if not found:
        kinds = known_names(kind.__name__ for kind in PRUNABLE)
        raise SparsityError(f"Nothing to prune in {model.name!r}: no layer of {kinds} is chosen.")
    return found


def _first(path: str, layer: Any, by_pattern: Mapping[str, Any]) -> Any:
    found = first_match(path, by_pattern, None)
    return first_match(layer.name, by_pattern, None) if found is None else found


def _copy(model: Any) -> Any:
    """A new uncompiled model with the same weights; what is shared stays shared."""
    made: dict[int, Any] = {}

    def copy(layer: Any) -> Any:
        if id(layer) not in made:
            made[id(layer)] = clone(layer, copy) if is_nested(layer) else same_layer(layer)
        return made[id(layer)]

    found = clone(model, copy)
    old = {path: layer for path, layer in leaves(model)}
    for path, layer in leaves(found):
        layer.set_weights(old[path].get_weights())
    return found


def _fit_all(
    model: Any,
    found: Any,
    wanted: Mapping[str, float | None],
    images: Any,
    block_size: tuple[int, int],
    m_by_n: tuple[int, int] | None,
) -> set[str]:
    """Prunes all layers of `found` whose matrices can be fitted, each on its first call; returns their paths."""
    sinks = bias_sinks(found)
    originals = Originals(play(model, images), set(wanted))
    fitted: set[str] = set()
    for step in play(found, images):
        if step.path in wanted and step.path not in fitted:
            old_layer, old_node, old_inputs = originals.call(step.path)
            maps = linear_maps(step.operation, step.node)
            if len(maps) == 1 and maps[0].matrix().shape[1] <= _MOST_COLUMNS:
                (old,) = linear_maps(old_layer, old_node)
                sums = measure(maps[0], step.inputs(), old, old_inputs)
                layout = Layout(maps[0].shape[maps[0].reads], maps[0].shape[maps[0].makes], block_size, m_by_n)
                _fit(maps[0], sums, wanted[step.path], layout, sinks.get(step.path))
                fitted.add(step.path)
    return fitted
