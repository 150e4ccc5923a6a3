"""How much each channel matters: one score for each unit of a channel group.

From all the weights coupled to the unit, the loss's gradient with respect to them, or what the unit is on images.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mobileprune.activation_importance import Activity
from mobileprune.channel_groups import ChannelGraph, ChannelGroup
from mobileprune.elimination import backward_elimination
from mobileprune.errors import PlanError, known_names
from mobileprune.ranking import Ranking, ranked
from mobileprune.scoring import STATISTICS, Scoring, along, last_name, per_unit

WeightValues = Callable[[str, str], np.ndarray]
OwnImportance = Callable[[ChannelGraph, ChannelGroup, WeightValues], np.ndarray]
# A name in IMPORTANCES, a function of the user's, or finished rankings by group name.
Importance = str | OwnImportance | Mapping[str, Ranking]


def l1(scoring: Scoring, group: ChannelGroup) -> np.ndarray:
    """Sum of absolute weights (Li et al. 2017, "Pruning Filters for Efficient ConvNets", arXiv:1608.08710)."""
    return _sizes(scoring, group, np.abs)


def l2(scoring: Scoring, group: ChannelGroup) -> np.ndarray:
    """Root of the sum of squared weights over all coupled layers (Fang et al. 2023, "DepGraph", arXiv:2301.12900)."""
    root: np.ndarray = np.sqrt(_sizes(scoring, group, np.square))
    return root


def batch_norm_scale(scoring: Scoring, group: ChannelGroup) -> np.ndarray:
    """Absolute batch-norm scale (Liu et al. 2017, "Network Slimming", arXiv:1708.06519).

    Raises:
        PlanError: no batch normalisation with a scale follows the group.
    """
    total = np.zeros(group.size)
    found = False
    for weight, _, units in scoring.graph.weights_of(group):
        if last_name(weight) == "gamma" and scoring.owner(weight) == "BatchNormalization":
            found = True
            total += per_unit(np.abs(scoring.values(weight.layer, weight.attribute)), units, group)
    if not found:
        raise PlanError(f"No batch-norm scale follows {group.name!r}. Use importance='l2'.")
    return total


def fpgm(scoring: Scoring, group: ChannelGroup) -> np.ndarray:
    """Sum of the distances to all other units: what is near the geometric median can be replaced by the others.

    A unit's place is the vector of all weights coupled to it, each weight scaled as for `l2`, which is the distance
    from zero in the same space (He et al. 2019, "Filter Pruning via Geometric Median for Deep Convolutional Neural
    Networks Acceleration", arXiv:1811.00250).
    """
    total = np.zeros((group.size, group.size))
    for weight, axis, units in scoring.coupled(group):
        lengths, squared = np.zeros(group.size), np.zeros_like(total)
        for rows in _unit_rows(scoring.values(weight.layer, weight.attribute), axis, units, group):
            with np.errstate(invalid="ignore", over="ignore"):  # `score` refuses what is not finite
                products = rows @ rows.T
                length = np.diag(products)
                lengths += length
                squared += length[:, None] + length - 2 * products
        total += squared / max(float(lengths.mean()), np.finfo(np.float64).tiny)
    np.fill_diagonal(total, 0.0)
    # Rounding leaves units that are alike a little below zero.
    distances: np.ndarray = np.sqrt(np.maximum(total, 0.0)).sum(axis=1)
    return distances


def taylor(scoring: Scoring, group: ChannelGroup) -> np.ndarray:
    """First-order estimate of the squared change of the loss when the unit goes: (Σ weight × gradient)².

    The sum runs over all weights coupled to the unit, biases and batch-norm offsets too, with the gradient of the mean
    loss over all calibration images (Molchanov et al. 2019, "Importance Estimation for Neural Network Pruning",
    arXiv:1906.10771). Without labels the model's own preferred class takes their place: see `loss_gradients`.
    """
    total = np.zeros(group.size)
    for weight, axis, units in scoring.coupled(group, but=STATISTICS):
        values = scoring.values(weight.layer, weight.attribute).astype(np.float64)
        products = values * scoring.gradients[weight.layer, weight.attribute]
        total += per_unit(along(products, axis), units, group)
    return np.square(total)


def hessian(scoring: Scoring, group: ChannelGroup) -> np.ndarray:
    """Second-order estimate of what the loss gains when the unit goes: ½ Σ Fisher × weight².

    The saliency of optimal brain damage (LeCun et al. 1989), summed over all weights coupled to the unit, biases and
    batch-norm offsets too. The diagonal of the Hessian is that of the empirical Fisher matrix: the mean over images of
    the squared gradient of each image's own loss (see `squared_gradients`). Unlike `taylor` it does not vanish where
    the gradients of different images cancel, which is what training strives for.
    """
    total = np.zeros(group.size)
    for weight, axis, units in scoring.coupled(group, but=STATISTICS):
        values = scoring.values(weight.layer, weight.attribute).astype(np.float64)
        saliencies = np.square(values) * scoring.fisher[weight.layer, weight.attribute] / 2
        total += per_unit(along(saliencies, axis), units, group)
    return total


def lamp(scoring: Scoring, group: ChannelGroup) -> np.ndarray:
    """Layer-adaptive magnitude: a unit's squared size as a share of its own and all larger ones' in the group.

    The size is that of `l2`, over all coupled weights; the largest unit of every group has 1. (Lee et al. 2021,
    "Layer-adaptive Sparsity for the Magnitude-based Pruning", arXiv:2010.07611, for single weights of a layer; here
    units of a group stand in their place.) Scores of different groups can be compared as they are: `rankings` does
    not normalise them.
    """
    squared = _sizes(scoring, group, np.square)
    order = np.argsort(squared, kind="stable")
    left = np.cumsum(squared[order][::-1])[::-1]  # what is there when the unit goes
    found = np.empty(group.size)
    found[order] = squared[order] / np.maximum(left, np.finfo(np.float64).tiny)
    return found


def apoz(scoring: Scoring, group: ChannelGroup) -> np.ndarray:
    """Share of the unit's activations that are not zero: 1 - APoZ, the average percentage of zeros.

    Only activations that give zeros, ReLU and its like, tell units apart (Hu et al. 2016, "Network Trimming",
    arXiv:1607.03250). Which activations these are: see `channel_activity`.

    Raises:
        PlanError: nothing reads the group where it could be looked at.
    """
    return 1 - _activity(scoring, group).zeros


def activation_mean(scoring: Scoring, group: ChannelGroup) -> np.ndarray:
    """Mean absolute activation of the unit (Molchanov et al. 2017, arXiv:1611.06440, has it among its criteria).

    Raises:
        PlanError: nothing reads the group where it could be looked at.
    """
    return _activity(scoring, group).mean


def reconstruction(scoring: Scoring, group: ChannelGroup) -> np.ndarray:
    """What the outputs of the layers that read the unit lose when it alone goes: their mean squared change.

    As in ThiNet (Luo et al. 2017, arXiv:1707.06342), but each unit alone, not greedily, and no weight is fitted anew:
    that is `"obs"`. In one unit for the whole model, shares of the variance of what readers give, see
    `reconstruction_errors`. The units of a group that no fittable layer reads have their share of `l2`.
    """
    found = scoring.reconstruction.get(group.name)
    if found is not None:
        return found
    sizes = l2(scoring, group)
    return sizes / max(float(sizes.sum()), np.finfo(np.float64).tiny)


def random(scoring: Scoring, group: ChannelGroup) -> np.ndarray:
    """Uniform noise: the baseline that every other importance has to beat."""
    return np.random.default_rng([scoring.seed, *group.name.encode()]).random(group.size)


IMPORTANCES: dict[str, Callable[[Scoring, ChannelGroup], np.ndarray]] = {
    "l1": l1,
    "l2": l2,
    "batch_norm_scale": batch_norm_scale,
    "fpgm": fpgm,
    "taylor": taylor,
    "hessian": hessian,
    "lamp": lamp,
    "apoz": apoz,
    "activation_mean": activation_mean,
    "reconstruction": reconstruction,
    "random": random,
}
# They look at images; `"obs"` is no score but a ranking.
WITH_CALIBRATION = ("taylor", "hessian", "apoz", "activation_mean", "reconstruction", "obs")
# Scores of all groups in one unit, which a plan sets against what the unit costs.
_ABSOLUTE = ("reconstruction",)
# Scores that are made to be compared between groups.
_COMPARABLE = ("lamp",)


def check_importance(importance: Importance, calibration: Any) -> None:
    """Refuses what no ranking can be made of, before any work.

    Raises:
        PlanError: an unknown name, or calibration data missing.
    """
    if isinstance(importance, str) and importance not in (*IMPORTANCES, "obs"):
        raise PlanError(f"Unknown importance {importance!r}. Known: {known_names((*IMPORTANCES, 'obs'))}.")
    if isinstance(importance, str) and importance in WITH_CALIBRATION and calibration is None:
        raise PlanError(f"importance={importance!r} needs calibration=, some hundred images as the model takes them.")


def importance_name(importance: Importance) -> str:
    """What a plan records."""
    if isinstance(importance, str):
        return importance
    if isinstance(importance, Mapping):
        return "rankings"
    return str(getattr(importance, "__name__", type(importance).__name__))


def score(scoring: Scoring, group: ChannelGroup, importance: str | OwnImportance) -> np.ndarray:
    """The importance of each unit of `group`, shape (units,), larger is worth more.

    Args:
        scoring: the model, its graph, and what else the importance needs.
        group: one of the graph's groups.
        importance: a name in IMPORTANCES, or a function of (graph, group, values) that returns one score a unit, where
            `values(layer, attribute)` reads a weight and `graph.weights_of(group)` lists those that are coupled.

    Raises:
        PlanError: an unknown importance, or scores that are not finite or not one a unit.

    Example:
        >>> score(Scoring(model, graph), graph.groups[1], "l2").shape           # doctest: +SKIP
        (32,)
    """
    if isinstance(importance, str):
        check_importance(importance, scoring.calibration)
        scores = IMPORTANCES[importance](scoring, group)
        if not np.isfinite(scores).all():
            weights = "weights, gradients or activations" if importance in WITH_CALIBRATION else "weights"
            raise PlanError(
                f"The {weights} around {group.name!r} are not all finite, so its channels cannot be ranked."
            )
        return scores
    scores = np.asarray(importance(scoring.graph, group, scoring.values), np.float64)
    if scores.shape != (group.size,) or not np.isfinite(scores).all():
        raise PlanError(
            f"{importance_name(importance)} must give {group.size} finite scores for {group.name!r}. Received an array "
            f"of shape {scores.shape} with {np.count_nonzero(np.isfinite(scores))} finite values."
        )
    return scores


def rankings(
    scoring: Scoring, groups: Sequence[ChannelGroup], importance: Importance, normalise: str = "sum"
) -> dict[str, Ranking]:
    """The order in which each group's units go, by group name.

    Args:
        scoring: see `score`.
        groups: the groups that may lose units.
        importance: see `score`; or rankings that something else made, one for each of `groups` at least.
        normalise: see `mobileprune.ranking.ranked`; finished rankings, `lamp`, `reconstruction` and `obs` are taken
            as they are.

    Raises:
        PlanError: see `score`; or a ranking is missing, of another size, or some are absolute and others not.
    """
    if isinstance(importance, str) and importance == "obs":
        found = backward_elimination(scoring.graph, groups, scoring.model, scoring.images)
        return {group.name: found.get(group.name) or _by_size(scoring, group) for group in groups}
    if isinstance(importance, str) and importance in _ABSOLUTE:
        return {group.name: _absolute(score(scoring, group, importance)) for group in groups}
    if isinstance(importance, str) and importance in _COMPARABLE:
        normalise = "none"
    if not isinstance(importance, Mapping):
        return {group.name: ranked(score(scoring, group, importance), normalise, group.name) for group in groups}
    for group in groups:
        if group.name not in importance:
            raise PlanError(f"There is no ranking for {group.name!r}. Add one, or keep its layers with keep=.")
        if len(importance[group.name].order) != group.size:
            raise PlanError(
                f"The ranking for {group.name!r} has {len(importance[group.name].order)} units; it has {group.size}."
            )
    chosen = {group.name: importance[group.name] for group in groups}
    absolute = [name for name, ranking in chosen.items() if ranking.absolute]
    if 0 < len(absolute) < len(chosen):
        relative = next(name for name in chosen if name not in absolute)
        raise PlanError(f"The losses for {absolute[0]!r} are absolute and those for {relative!r} not: make them alike.")
    return chosen


def _by_size(scoring: Scoring, group: ChannelGroup) -> Ranking:
    """For groups that no layer reads whose weights can be fitted: each unit costs its share of the weights."""
    scores = score(scoring, group, "l2")
    return _absolute(scores / max(float(scores.sum()), np.finfo(np.float64).tiny))


def _absolute(scores: np.ndarray) -> Ranking:
    order = np.argsort(scores, kind="stable")
    return Ranking(order, scores[order], absolute=True)


def _activity(scoring: Scoring, group: ChannelGroup) -> Activity:
    found = scoring.activity.get(group.name)
    if found is None:
        raise PlanError(
            f"Nothing reads the channels of {group.name!r} where their activations could be looked at. Keep them with "
            f"keep=[{group.name!r}] or use importance='l2'."
        )
    return found


def _sizes(scoring: Scoring, group: ChannelGroup, measure: np.ufunc) -> np.ndarray:
    """Sum over all weights that multiply something: kernels and scales, not biases, means and variances.

    Each weight counts relative to its own mean, or a wide layer would outvote the others.
    """
    total = np.zeros(group.size)
    for weight, axis, units in scoring.coupled(group):
        part = per_unit(scoring.sums(weight, measure)[axis], units, group)
        with np.errstate(invalid="ignore"):  # `score` refuses what is not finite
            total += part / max(float(part.mean()), np.finfo(np.float64).tiny)
    return total


def _unit_rows(values: np.ndarray, axis: int, units: np.ndarray, group: ChannelGroup) -> Iterator[np.ndarray]:
    """What each unit owns of a weight, (units, entries): first its first slice, then its second, ….

    Behind a flatten a unit owns a slice for each pixel; all at once would not fit into memory.
    """
    slices = np.moveaxis(values, axis, 0).reshape(len(units), -1)
    places: list[list[int]] = [[] for _ in range(group.size)]
    for place, unit in enumerate(units.tolist()):
        if unit >= 0:
            places[unit].append(place)
    for turn in range(max(map(len, places))):
        having = [unit for unit, own in enumerate(places) if turn < len(own)]
        rows = np.zeros((group.size, slices.shape[1]))
        rows[having] = slices[[places[unit][turn] for unit in having]]
        yield rows
