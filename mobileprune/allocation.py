"""From rankings, limits and a budget to how many units each group keeps."""

import functools
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from mobileprune.channel_groups import ChannelGraph, ChannelGroup
from mobileprune.constraints import Constraints, unit_costs
from mobileprune.errors import PlanError
from mobileprune.ranking import Ranking

SCOPES = ("global", "local", "isomorphic")
# What a choice of channels (booleans by id) costs.
Measure = Callable[[np.ndarray], int]


def check_floor(target: str, floor: int, whole: int, budget: float) -> None:
    """Refuses a budget below what the limits allow.

    Raises:
        PlanError: with the floor.
    """
    if floor > budget:
        raise PlanError(
            f"{target} cannot go below {floor:,} ({floor / whole:.0%} of the model); {budget:,.0f} were asked. Raise "
            "the target, or lower round_to or min_channels, raise max_ratio, or free more groups with keep and "
            "prune_only."
        )


def check_aside(target: str, cost: int, budget: float) -> None:
    """Refuses a plan that had to keep more than the budget allows, see `Constraints.stepped_aside`.

    Raises:
        PlanError: with what it would keep.
    """
    if cost > budget:
        raise PlanError(
            f"{target}: {budget:,.0f} were asked, and {cost:,} is what is left where no layer has as many channels as "
            "another axis of its outputs is long (Keras adds its bias along that one). Raise the target, or lower "
            "round_to or min_channels, or raise max_ratio."
        )


class Allocation:
    """Turns "this much may be left" into numbers of units kept for each group.

    Args:
        limits: what no plan may do.
        rankings: the order in which the units of each free group go, by group name.
        scope: see `mobileprune.plan.plan_channels`.
        target: what the budget counts: macs, params or file_bytes.
        measure: computes it.
    """

    def __init__(
        self, limits: Constraints, rankings: Mapping[str, Ranking], scope: str, target: str, measure: Measure
    ) -> None:
        self._limits, self._rankings, self._scope = limits, rankings, scope
        self._target, self._measure = target, measure

    @functools.cached_property
    def _losses(self) -> dict[str, np.ndarray]:
        """What the units of each group cost, in the order in which they go."""
        graph, free = self._limits.graph, self._limits.free
        return {
            group.name: self._rankings[group.name].thresholds(unit_costs(graph, group, self._target)) for group in free
        }

    @functools.cached_property
    def _classes(self) -> list[tuple[list[ChannelGroup], np.ndarray]]:
        """The groups that are ranked together, with the number of the group of each of their units, as they go.

        Units of equal losses, as those that never fire or that a regulariser has emptied, go from all groups alike:
        as many as the budget asks for, and not all at once.
        """
        classes: dict[object, list[ChannelGroup]] = defaultdict(list)
        for group in self._limits.free:
            classes[structure(self._limits.graph, group) if self._scope == "isomorphic" else "all"].append(group)
        return [(groups, _in_turn([self._losses[group.name] for group in groups])) for groups in classes.values()]

    def removed(self, kept: Mapping[str, int]) -> dict[str, np.ndarray]:
        """The units that each free group loses, by group name."""
        return {
            group.name: self._rankings[group.name].order[: group.size - kept[group.name]] for group in self._limits.free
        }

    def alive(self, kept: Mapping[str, int]) -> np.ndarray:
        """The channels that stay, as booleans by id."""
        removed = self.removed(kept)
        roots = [np.zeros(0, np.int64), *(group.roots[removed[group.name]] for group in self._limits.free)]
        return self._limits.graph.without(np.concatenate(roots))

    def at_ratio(self, ratio: float) -> dict[str, int]:
        """Every group less the same share of its units."""
        return {group.name: self._limits.rounded(group, group.size * (1 - ratio)) for group in self._limits.free}

    def within(self, budget: float) -> dict[str, int]:
        """The gentlest cut that stays within the budget, then whatever chunks still fit put back, best first.

        Raises:
            PlanError: no cut stays within it.
        """
        graph = self._limits.graph
        whole = self._measure(graph.everything())
        if whole <= budget:
            return {group.name: group.size for group in self._limits.free}
        floor = self._cost(dict(self._limits.least))
        check_floor(self._target, floor, whole, budget)
        low, high = 0.0, 1.0  # `high` is within the budget, `low` is not
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (low, middle) if self._cost(self._at_strength(middle)) <= budget else (middle, high)
        return self._refill(self._at_strength(high), budget)

    def _cost(self, kept: Mapping[str, int]) -> int:
        return self._measure(self.alive(kept))

    def _at_strength(self, strength: float) -> dict[str, int]:
        """Every class less this share of its units, those with the smallest losses; 0 keeps all, 1 what must stay."""
        if self._scope == "local":
            return self.at_ratio(strength)
        kept = {}
        for groups, owners in self._classes:
            going = np.bincount(owners[: math.ceil(strength * len(owners))], minlength=len(groups))
            for group, gone in zip(groups, going.tolist(), strict=True):
                kept[group.name] = self._limits.rounded(group, group.size - gone)
        return kept

    def _refill(self, kept: dict[str, int], budget: float) -> dict[str, int]:
        round_to = self._limits.round_to
        for group in sorted(self._limits.free, key=lambda group: -self._worth_of_next_chunk(group, kept)):
            more = min(group.size, (kept[group.name] // round_to + 1) * round_to)
            larger = {**kept, group.name: more}
            if self._cost(larger) <= budget:
                kept = larger
        return kept

    def _worth_of_next_chunk(self, group: ChannelGroup, kept: Mapping[str, int]) -> float:
        removed = group.size - kept[group.name]
        return float(self._losses[group.name][max(0, removed - self._limits.round_to) : removed].sum())


def _in_turn(losses: Sequence[np.ndarray]) -> np.ndarray:
    """Of which list each unit is when the units of all go by their losses, never falling in each; shape (units,)."""
    owners = np.repeat(np.arange(len(losses)), [len(each) for each in losses])
    places = np.concatenate([(np.arange(len(each)) + 1) / len(each) for each in losses])
    return np.asarray(owners[np.lexsort((places, np.concatenate(losses)))])


def structure(graph: ChannelGraph, group: ChannelGroup) -> tuple[tuple[str, str, int], ...]:
    """The sub-structure that a group's weights form: kind of layer, attribute and axis of each, sorted.

    Groups with equal ones are isomorphic (Fang et al. 2024, "Isomorphic Pruning for Vision Models", arXiv:2407.04616):
    their scores have the same make-up, so they can be compared.
    """
    return tuple(
        sorted(
            (type(graph.ids.layers[weight.layer]).__name__, weight.attribute, axis)
            for weight, axis, _ in graph.weights_of(group)
        )
    )
