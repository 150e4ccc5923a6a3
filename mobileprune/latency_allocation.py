"""From rankings and a latency budget to how many units each group keeps: a knapsack by measured cost.

What a channel's removal saves depends on how many its neighbours have left, and goes by steps. So chunks of channels go
one after another, each time those that lose the least importance for each nanosecond saved, with the savings of all
groups that share an op brought up to date (NetAdapt, Yang et al. 2018; HALP, Shen et al. 2022).
"""

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

from mobileprune.channel_groups import ChannelGraph, ChannelGroup
from mobileprune.constraints import Constraints
from mobileprune.errors import PlanError
from mobileprune.network_latency import LatencyModel
from mobileprune.ranking import Ranking

# How many chunks ahead a cut looks: kernels work in steps, so one chunk alone may save nothing.
_AHEAD = 4
# A chunk that saves less than this share of the network saves nothing that can be measured.
_LEAST_SAVING = 1e-5

# A measured latency that is so near to the budget meets it: shares, about what measurements are worth.
TOLERANCE = 0.02


def check_latency(latency: LatencyModel, cheapest: np.ndarray, budget_ns: float) -> float:
    """The least latency that the limits allow, in nanoseconds; refuses a budget below it.

    Args:
        latency: of the network.
        cheapest: the channels that are left at least, as booleans by id.
        budget_ns: nanoseconds.

    Raises:
        PlanError: with the floor.
    """
    floor = latency.ns(cheapest)
    if floor > budget_ns:
        whole = latency.ns(np.ones_like(cheapest))
        raise PlanError(
            f"The latency cannot go below {floor / 1e6:.3g} ms ({floor / whole:.0%} of the model's) on "
            f"{latency.table.place.device}; {budget_ns / 1e6:.3g} ms were asked. Ask for more, or lower round_to or "
            "min_channels, raise max_ratio, or free more groups with keep and prune_only."
        )
    return floor


class GroupLatency:
    """A network's latency as a function of how many units each free group keeps, when units go in a fixed order.

    Args:
        graph: the model's channel graph.
        rankings: the order for each free group, by name.
        latency: of the network.
    """

    def __init__(self, graph: ChannelGraph, rankings: Mapping[str, Ranking], latency: LatencyModel) -> None:
        self._latency = latency
        self._times: dict[tuple[int, tuple[int, ...]], float] = {}
        self.touched: dict[str, list[int]] = {name: [] for name in rankings}
        groups = {group.name: group for group in graph.groups if group.name in rankings}
        roots = graph.ids.roots()
        unit_of, group_of = np.full(len(roots), -1), np.full(len(roots), -1)
        names = list(groups)
        for number, name in enumerate(names):
            unit_of[groups[name].roots] = np.arange(groups[name].size)
            group_of[groups[name].roots] = number
        # For each vector of each unit: channels that always stay, and for each group how many it has by units kept.
        self._vectors: list[list[tuple[int, dict[str, np.ndarray]]]] = []
        for index, unit in enumerate(latency.units):
            entry = []
            for vector in unit.vectors:
                own = roots[vector]
                kept: dict[str, np.ndarray] = {}
                for number in np.unique(group_of[own]).tolist():
                    if number < 0:
                        continue
                    name = names[number]
                    each = np.bincount(unit_of[own[group_of[own] == number]], minlength=groups[name].size)
                    kept[name] = np.append(0, np.cumsum(each[rankings[name].order[::-1]]))
                    if index not in self.touched[name]:
                        self.touched[name].append(index)
                entry.append((int(np.count_nonzero(group_of[own] < 0)), kept))
            self._vectors.append(entry)

    def of_units(self, units: list[int], kept: Mapping[str, int]) -> float:
        """The time of some units of the network, in nanoseconds."""
        return sum(self._unit(unit, kept) for unit in units)

    def total(self, kept: Mapping[str, int]) -> float:
        """That of all units, by the table."""
        return self.of_units(list(range(len(self._vectors))), kept)

    def _unit(self, unit: int, kept: Mapping[str, int]) -> float:
        counts = tuple(
            fixed + sum(int(by_kept[kept[name]]) for name, by_kept in groups.items())
            for fixed, groups in self._vectors[unit]
        )
        if (unit, counts) not in self._times:
            self._times[unit, counts] = self._latency.unit_ns(unit, counts)
        return self._times[unit, counts]


class LatencyAllocation:
    """The numbers of units that lose the least importance within a latency.

    Args:
        limits: what no plan may do.
        rankings: the order in which the units of each free group go, by group name.
        latency: of the network.
    """

    def __init__(self, limits: Constraints, rankings: Mapping[str, Ranking], latency: LatencyModel) -> None:
        self._limits = limits
        self._rankings = {group.name: rankings[group.name] for group in limits.free}
        self._latency = latency
        self._cost = GroupLatency(limits.graph, self._rankings, latency)
        # What the units that go first lose together, by how many go.
        self._lost = {
            name: np.append(0.0, np.cumsum(np.maximum(ranking.losses, 0.0))) for name, ranking in self._rankings.items()
        }
        self._neighbours = {
            name: {other for other, units in self._cost.touched.items() if set(units) & set(own)}
            for name, own in self._cost.touched.items()
        }

    def within(self, budget_ns: float) -> dict[str, int]:
        """The units that each group keeps so that the network takes at most `budget_ns` nanoseconds.

        Where no cut does, the one that comes nearest: its caller has checked the floor.
        """
        budget_ns = self._latency.sum_for(budget_ns)  # from here on the table's own times
        kept = {group.name: group.size for group in self._limits.free}
        total = self._cost.total(kept)
        least = _LEAST_SAVING * total
        best = {group.name: self._best_cut(group, kept, least) for group in self._limits.free}
        groups = {group.name: group for group in self._limits.free}
        while total > budget_ns:
            name = min(best, key=lambda each: best[each][0], default=None)
            if name is None or not np.isfinite(best[name][0]):
                break
            kept[name] = best[name][1]
            total = self._cost.total(kept)
            for other in self._neighbours[name]:
                best[other] = self._best_cut(groups[other], kept, least)
        return self._exchanged(self._refilled(kept, budget_ns), budget_ns)

    def _best_cut(self, group: ChannelGroup, kept: Mapping[str, int], least: float) -> tuple[float, int]:
        """The importance lost for each nanosecond saved by the best cut of a group, and what it keeps then."""
        name, now = group.name, kept[group.name]
        units = self._cost.touched[name]
        before = self._cost.of_units(units, kept)
        found = (np.inf, now)
        for count in self._below(group, now):
            saved = before - self._cost.of_units(units, {**kept, name: count})
            if saved > least:
                found = min(found, (self._loss(name, now, count) / self._worth(name, saved, now - count), count))
        return found

    def _worth(self, name: str, saved: float, units: int) -> float:
        """What a loss is divided by: nanoseconds, or units where losses are relative to their group."""
        return saved if self._rankings[name].absolute else units

    def _loss(self, name: str, before: int, after: int) -> float:
        size = len(self._rankings[name].order)
        return float(self._lost[name][size - after] - self._lost[name][size - before])

    def _below(self, group: ChannelGroup, now: int) -> list[int]:
        step, floor = self._limits.round_to, self._limits.least[group.name]
        first = (now - 1) // step * step
        return [count for count in range(first, first - _AHEAD * step, -step) if floor <= count > 0]

    def _above(self, group: ChannelGroup, now: int) -> int:
        return min(group.size, (now // self._limits.round_to + 1) * self._limits.round_to)

    def _refilled(self, kept: dict[str, int], budget_ns: float) -> dict[str, int]:
        """What still fits is put back, what is worth most first."""
        while True:
            fitting = []
            for group in self._limits.free:
                more = self._above(group, kept[group.name])
                if more > kept[group.name]:
                    larger = {**kept, group.name: more}
                    if self._cost.total(larger) <= budget_ns:
                        fitting.append((self._loss(group.name, more, kept[group.name]), group.name, more))
            if not fitting:
                return kept
            _, name, more = max(fitting)
            kept = {**kept, name: more}

    def _exchanged(self, kept: dict[str, int], budget_ns: float) -> dict[str, int]:
        """Chunks of one group given for chunks of another as long as that keeps more importance."""
        if not all(ranking.absolute for ranking in self._rankings.values()):
            return kept
        for _ in range(4 * len(kept)):
            found = (0.0, kept)
            for more in self._limits.free:
                wide = self._above(more, kept[more.name])
                if wide == kept[more.name]:
                    continue
                larger = {**kept, more.name: wide}
                gain = self._loss(more.name, wide, kept[more.name])
                over = self._cost.total(larger) - budget_ns
                for less in self._limits.free:
                    if less is more:
                        continue
                    units = self._cost.touched[less.name]
                    before = self._cost.of_units(units, larger)
                    for count in self._below(less, kept[less.name]):
                        cost = self._loss(less.name, kept[less.name], count)
                        if gain - cost <= found[0]:
                            break
                        smaller = {**larger, less.name: count}
                        if before - self._cost.of_units(units, smaller) >= over:
                            found = (gain - cost, smaller)
                            break
            if found[0] <= 0:
                break
            kept = found[1]
        return kept


@dataclasses.dataclass(frozen=True)
class Checked:
    """Units kept, and what the network of that shape was measured to take, beside the whole one; nanoseconds."""

    kept: dict[str, int]
    before_ns: float
    ns: float


def fit_latency(
    latency: LatencyModel,
    allocate: Callable[[float], dict[str, int]],
    alive: Callable[[Mapping[str, int]], np.ndarray],
    wanted: Callable[[float], float],
    floor_ns: float,
) -> Checked:
    """Allocates, measures the network of that shape, and where it misses the budget allocates once more.

    Args:
        latency: of the network.
        allocate: from a predicted latency in nanoseconds to the units that groups keep.
        alive: from those to channels, booleans by id.
        wanted: from the whole network's latency to the budget, both in nanoseconds.
        floor_ns: the least latency that can be allocated.

    Returns:
        Of the two the slower one that meets the budget, or the faster one if none does.
    """
    everything = latency.graph.everything()
    budget = wanted(latency.ns(everything))
    tries = []
    for _ in range(2):
        kept = allocate(max(budget, floor_ns))
        choice = alive(kept)
        before, after = latency.measure([everything, choice])
        tries.append(Checked(kept, before, after))
        over = after / wanted(before)
        if abs(over - 1) <= TOLERANCE:
            break
        # The same share that the table was wrong by.
        budget = min(budget / over, float(latency.ns(everything)))
    meeting = [each for each in tries if each.ns <= wanted(each.before_ns) * (1 + TOLERANCE)]
    return max(meeting, key=lambda each: each.ns) if meeting else min(tries, key=lambda each: each.ns)
