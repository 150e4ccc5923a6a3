"""How much each channel matters: one score for each unit of a channel group, from all the weights coupled to it."""

from collections.abc import Callable

import numpy as np

from mobileprune.channel_groups import ChannelGraph, ChannelGroup
from mobileprune.errors import PlanError, known_names

WeightValues = Callable[[str, str], np.ndarray]


def l1(graph: ChannelGraph, group: ChannelGroup, values: WeightValues, seed: int) -> np.ndarray:
    """Sum of absolute weights (Li et al. 2017, "Pruning Filters for Efficient ConvNets", arXiv:1608.08710)."""
    return _coupled(graph, group, values, np.abs)


def l2(graph: ChannelGraph, group: ChannelGroup, values: WeightValues, seed: int) -> np.ndarray:
    """Root of the sum of squared weights over all coupled layers (Fang et al. 2023, "DepGraph", arXiv:2301.12900)."""
    root: np.ndarray = np.sqrt(_coupled(graph, group, values, np.square))
    return root


def batch_norm_scale(graph: ChannelGraph, group: ChannelGroup, values: WeightValues, seed: int) -> np.ndarray:
    """Absolute batch-norm scale (Liu et al. 2017, "Network Slimming", arXiv:1708.06519).

    Raises:
        PlanError: no batch normalisation with a scale follows the group.
    """
    scales = [entry for entry in graph.weights_of(group) if entry[0].attribute == "gamma"]
    if not scales:
        raise PlanError(f"No batch-norm scale follows {group.name!r}. Use importance='l2'.")
    return sum((_per_unit(np.abs(values(w.layer, "gamma")), units, group) for w, _, units in scales), np.zeros(1))


def random(graph: ChannelGraph, group: ChannelGroup, values: WeightValues, seed: int) -> np.ndarray:
    """Uniform noise: the baseline that every other importance has to beat."""
    return np.random.default_rng([seed, *group.name.encode()]).random(group.size)


IMPORTANCES: dict[str, Callable[[ChannelGraph, ChannelGroup, WeightValues, int], np.ndarray]] = {
    "l1": l1,
    "l2": l2,
    "batch_norm_scale": batch_norm_scale,
    "random": random,
}


def score(graph: ChannelGraph, group: ChannelGroup, importance: str, values: WeightValues, seed: int = 0) -> np.ndarray:
    """The importance of each unit of `group`, shape (units,), larger is worth more.

    Args:
        graph: the model's channel graph.
        group: one of its groups.
        importance: a name in IMPORTANCES.
        values: reads a weight: `values(layer, attribute)`.
        seed: for `random`.

    Raises:
        PlanError: an unknown importance, or weights that are not finite.
    """
    if importance not in IMPORTANCES:
        raise PlanError(f"Unknown importance {importance!r}. Known: {known_names(IMPORTANCES)}.")
    scores = IMPORTANCES[importance](graph, group, values, seed)
    if not np.isfinite(scores).all():
        raise PlanError(f"The weights around {group.name!r} are not all finite, so its channels cannot be ranked.")
    return scores


def _coupled(
    graph: ChannelGraph, group: ChannelGroup, values: WeightValues, measure: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """Sum over all weights that multiply something: kernels and scales, not biases, means and variances.

    Each weight counts relative to its own mean, or a wide layer would outvote the others.
    """
    total = np.zeros(group.size)
    for weight, axis, units in graph.weights_of(group):
        if not weight.positions and weight.attribute != "gamma":
            continue
        sizes = measure(values(weight.layer, weight.attribute).astype(np.float64))
        along = sizes.sum(axis=tuple(other for other in range(sizes.ndim) if other != axis))
        part = _per_unit(along, units, group)
        with np.errstate(invalid="ignore"):  # `score` refuses what is not finite
            total += part / max(float(part.mean()), np.finfo(np.float64).tiny)
    return total


def _per_unit(along: np.ndarray, units: np.ndarray, group: ChannelGroup) -> np.ndarray:
    inside = units >= 0
    return np.bincount(units[inside], weights=along[inside], minlength=group.size)
