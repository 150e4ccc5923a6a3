"""How much each channel matters: one score for each unit of a channel group, from all the weights coupled to it."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from operator import attrgetter
from typing import Any

import numpy as np

from mobileprune.channel_calls import Weight
from mobileprune.channel_groups import ChannelGraph, ChannelGroup
from mobileprune.elimination import backward_elimination
from mobileprune.errors import PlanError, known_names
from mobileprune.gradients import loss_gradients
from mobileprune.graph import read_only
from mobileprune.ranking import Ranking, ranked

WeightValues = Callable[[str, str], np.ndarray]
OwnImportance = Callable[[ChannelGraph, ChannelGroup, WeightValues], np.ndarray]
# A name in IMPORTANCES, a function of the user's, or finished rankings by group name.
Importance = str | OwnImportance | Mapping[str, Ranking]

# What is added or measured rather than multiplied: its size says nothing about the channel.
_ADDED = ("bias", "beta", "moving_mean", "moving_variance")
_STATISTICS = ("moving_mean", "moving_variance")


@dataclasses.dataclass(frozen=True, eq=False)
class Scoring:
    """What an importance may look at.

    Attributes:
        model: the model.
        graph: its channel graph.
        calibration: images, or (images, labels), or batches of either, for what needs gradients.
        seed: for `random`.
    """

    model: Any
    graph: ChannelGraph
    calibration: Any = None
    seed: int = 0
    _sums: dict[tuple[str, str, str], dict[int, np.ndarray]] = dataclasses.field(default_factory=dict, init=False)

    def values(self, layer: str, attribute: str) -> np.ndarray:
        """A weight, by the layer's name in the graph and the attribute's, which may be dotted."""
        return np.asarray(attrgetter(attribute)(self.graph.ids.layers[layer]))

    def coupled(self, group: ChannelGroup, but: Sequence[str] = _ADDED) -> list[tuple[Weight, int, np.ndarray]]:
        """The weights whose axis follows the group, without those whose last name is in `but`."""
        return [entry for entry in self.graph.weights_of(group) if _last_name(entry[0]) not in but]

    def sums(self, weight: Weight, measure: np.ufunc) -> dict[int, np.ndarray]:
        """`measure` of a weight's entries, summed over all axes but one: by that axis, for each that follows channels.

        They are kept, because several groups read one weight.
        """
        key = (weight.layer, weight.attribute, measure.__name__)
        if key not in self._sums:
            values = read_only(attrgetter(weight.attribute)(self.graph.ids.layers[weight.layer]))
            with np.errstate(over="ignore", invalid="ignore"):  # `score` refuses what is not finite
                sizes = measure(values)
                self._sums[key] = {axis: _along(sizes, axis) for axis in weight.axes}
        return self._sums[key]

    @functools.cached_property
    def gradients(self) -> dict[tuple[str, str], np.ndarray]:
        """The loss's gradient by (layer, attribute), computed once for all groups: see `loss_gradients`."""
        wanted = [weight for weight in self.graph.ids.weights.values() if _last_name(weight) not in _STATISTICS]
        variables = [attrgetter(weight.attribute)(self.graph.ids.layers[weight.layer]) for weight in wanted]
        found = loss_gradients(self.model, variables, self.calibration)
        return {(weight.layer, weight.attribute): one for weight, one in zip(wanted, found, strict=True)}


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
        kind = type(scoring.graph.ids.layers[weight.layer]).__name__
        if kind == "BatchNormalization" and _last_name(weight) == "gamma":
            found = True
            total += _per_unit(np.abs(scoring.values(weight.layer, weight.attribute)), units, group)
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
    for weight, axis, units in scoring.coupled(group, but=_STATISTICS):
        values = scoring.values(weight.layer, weight.attribute).astype(np.float64)
        products = values * scoring.gradients[weight.layer, weight.attribute]
        total += _per_unit(_along(products, axis), units, group)
    return np.square(total)


def random(scoring: Scoring, group: ChannelGroup) -> np.ndarray:
    """Uniform noise: the baseline that every other importance has to beat."""
    return np.random.default_rng([scoring.seed, *group.name.encode()]).random(group.size)


IMPORTANCES: dict[str, Callable[[Scoring, ChannelGroup], np.ndarray]] = {
    "l1": l1,
    "l2": l2,
    "batch_norm_scale": batch_norm_scale,
    "fpgm": fpgm,
    "taylor": taylor,
    "random": random,
}
_WITH_CALIBRATION = {"taylor", "obs"}


def check_importance(importance: Importance, calibration: Any) -> None:
    """Refuses what no ranking can be made of, before any work.

    Raises:
        PlanError: an unknown name, or calibration data missing.
    """
    if isinstance(importance, str) and importance not in (*IMPORTANCES, "obs"):
        raise PlanError(f"Unknown importance {importance!r}. Known: {known_names((*IMPORTANCES, 'obs'))}.")
    if isinstance(importance, str) and importance in _WITH_CALIBRATION and calibration is None:
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
            weights = "weights or gradients" if importance in _WITH_CALIBRATION else "weights"
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
        normalise: see `mobileprune.ranking.ranked`; finished rankings are taken as they are.

    Raises:
        PlanError: see `score`; or a ranking is missing, of another size, or some are absolute and others not.
    """
    if isinstance(importance, str) and importance == "obs":
        seen = scoring.calibration[0] if isinstance(scoring.calibration, tuple) else scoring.calibration
        found = backward_elimination(scoring.graph, groups, scoring.model, seen)
        return {group.name: found.get(group.name) or _by_size(scoring, group) for group in groups}
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
    order = np.argsort(scores, kind="stable")
    return Ranking(order, scores[order] / max(float(scores.sum()), np.finfo(np.float64).tiny), absolute=True)


def _last_name(weight: Weight) -> str:
    return weight.attribute.rpartition(".")[2]


def _sizes(scoring: Scoring, group: ChannelGroup, measure: np.ufunc) -> np.ndarray:
    """Sum over all weights that multiply something: kernels and scales, not biases, means and variances.

    Each weight counts relative to its own mean, or a wide layer would outvote the others.
    """
    total = np.zeros(group.size)
    for weight, axis, units in scoring.coupled(group):
        part = _per_unit(scoring.sums(weight, measure)[axis], units, group)
        with np.errstate(invalid="ignore"):  # `score` refuses what is not finite
            total += part / max(float(part.mean()), np.finfo(np.float64).tiny)
    return total


def _along(values: np.ndarray, axis: int) -> np.ndarray:
    others = tuple(other for other in range(values.ndim) if other != axis)
    return np.asarray(values.sum(axis=others, dtype=np.float64))


def _per_unit(along: np.ndarray, units: np.ndarray, group: ChannelGroup) -> np.ndarray:
    return np.bincount(units + 1, weights=along, minlength=group.size + 1)[1:]


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
