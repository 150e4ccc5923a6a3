"""What a plan may not do: which groups stay whole, how few units each other one keeps, and the cheapest model left."""

import dataclasses
import difflib
import fnmatch
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from mobileprune.channel_groups import ChannelGraph, ChannelGroup
from mobileprune.errors import PlanError, known_names
from mobileprune.ranking import Ranking

MAX_RATIO = 0.9


class GroupCounts(dict[str, int]):
    """Units that groups keep at least, by group name: as `min_channels`, for who knows groups and not only layers.

    A layer whose channels are in several groups gives its limit to all of them; a group's own is its own.
    """


@dataclasses.dataclass(frozen=True)
class Constraints:
    """The limits of a plan, by group name.

    Attributes:
        graph: the model's channel graph.
        frozen: why a group stays whole.
        least: how many units each other group keeps at least.
        round_to: units kept are a multiple of this.
        needs: (group name, units) of which one unit must stay, because a reader selects no others.
    """

    graph: ChannelGraph
    frozen: Mapping[str, str]
    least: Mapping[str, int]
    round_to: int
    needs: tuple[tuple[str, np.ndarray], ...] = ()

    @property
    def free(self) -> list[ChannelGroup]:
        """The groups that may lose units."""
        return [group for group in self.graph.groups if group.name not in self.frozen]

    def rounded(self, group: ChannelGroup, wanted: float) -> int:
        """The allowed number of units nearest to `wanted`."""
        if wanted >= group.size:
            return group.size
        nearest = round(wanted / self.round_to) * self.round_to
        return min(group.size, max(self.least[group.name], nearest))

    def spared(self, rankings: Mapping[str, Ranking]) -> dict[str, Ranking]:
        """The rankings with the last unit that each reader needs behind all that may go."""
        found = dict(rankings)
        for name, units in self.needs:
            ranking = found[name]
            last = np.flatnonzero(np.isin(ranking.order, units))[-1]
            order = np.append(np.delete(ranking.order, last), ranking.order[last])
            losses = np.append(np.delete(ranking.losses, last), max(ranking.losses.max(), ranking.losses[last]))
            found[name] = dataclasses.replace(ranking, order=order, losses=losses)
        return found

    def stepped_aside(
        self, kept: Mapping[str, int], alive: Callable[[Mapping[str, int]], np.ndarray]
    ) -> dict[str, int]:
        """The counts, changed by steps of single groups where they would put a bias along the wrong axis.

        Less where a group may lose more, so that budgets hold; else more. A group that was given more is never given
        less again, so this ends: at the latest when all channels that the bias depends on are there, as in the model.

        Args:
            kept: how many units each free group keeps.
            alive: the channels that this leaves, as booleans by id.
        """
        found, raised = dict(kept), set()
        roots = self.graph.ids.roots()
        # Biases that lie along the wrong axis already stay there: their channels do not go.
        biases = [each for each in self.graph.ids.biases if not each.misplaced()]
        while biases:
            left = alive(found)
            added = next((each for each in biases if each.misplaced(left)), None)
            if added is None:
                break
            touched = roots[np.concatenate(added.channels)]
            groups = [each for each in self.free if np.isin(touched, each.roots).any()]
            lower = [each for each in groups if found[each.name] - self.round_to >= self.least[each.name]]
            lower = [each for each in lower if each.name not in raised]
            if lower:
                found[lower[0].name] -= self.round_to
            else:
                more = next(each for each in groups if found[each.name] < each.size)
                raised.add(more.name)
                found[more.name] = min(more.size, found[more.name] + self.round_to)
        return found

    def cheapest(self, target: str) -> np.ndarray:
        """What is left, as booleans by id, when every group keeps its least number of units, the dearest gone."""
        roots = [np.zeros(0, np.int64)]
        for group in self.free:
            dearest = np.argsort(-unit_costs(self.graph, group, target), kind="stable")
            roots.append(group.roots[dearest[: group.size - self.least[group.name]]])
        return self.graph.without(np.concatenate(roots))


def constraints(
    graph: ChannelGraph,
    *,
    round_to: int = 8,
    max_ratio: float | Mapping[str, float] = MAX_RATIO,
    min_channels: int | Mapping[str, int] = 1,
    keep: Sequence[str] = (),
    prune_only: Sequence[str] = (),
) -> Constraints:
    """Reads the limits that a user gives.

    Args:
        graph: the model's channel graph.
        round_to, max_ratio, min_channels, keep, prune_only: see `mobileprune.plan.plan_channels`.

    Raises:
        PlanError: a limit makes no sense, or a pattern matches no layer.
    """
    ratios = max_ratio if isinstance(max_ratio, Mapping) else {"*": max_ratio}
    counts = min_channels if isinstance(min_channels, Mapping) else {"*": min_channels}
    if round_to < 1 or not all(0 < ratio < 1 for ratio in ratios.values()):
        raise PlanError(f"round_to must be at least 1 and max_ratio between 0 and 1: {round_to=}, {max_ratio=}.")
    if not all(count >= 1 and count == int(count) for count in counts.values()):
        raise PlanError(f"min_channels must be whole numbers from 1 on: {min_channels=}.")
    names = list(graph.ids.outputs)
    given = {"keep": keep, "prune_only": prune_only, "max_ratio": ratios, "min_channels": counts}
    if isinstance(counts, GroupCounts):
        del given["min_channels"]
    for argument, patterns in given.items():
        check_patterns(argument, patterns, names)
    frozen = {group.name: group.frozen for group in graph.groups if group.frozen}
    for group in graph.groups:
        kept_by = next((pattern for pattern in keep for layer in group.names if _matches(layer, pattern)), None)
        outside = [label for label in group.labels if _limit(label, dict.fromkeys(prune_only, True), None) is None]
        if kept_by is not None:
            frozen.setdefault(group.name, f"kept by {kept_by!r}")
        elif prune_only and outside:
            frozen.setdefault(group.name, f"{outside[0]!r} is not in prune_only")
    needs = _needs(graph, frozen)
    least = {}
    for group in graph.groups:
        # Layers that share their channels may be given different limits: the strictest counts.
        share = min(_limit(label, ratios, MAX_RATIO) for label in group.labels)
        if isinstance(counts, GroupCounts):
            fewest = counts.get(group.name, 1)
        else:
            fewest = max(int(_limit(label, counts, 1)) for label in group.labels)
        # 1 - 0.7 is a little more than 0.3: without rounding one unit more would stay.
        needed = max(1, fewest, math.ceil(round(group.size * (1 - share), 9)))
        needed = max(needed, sum(name == group.name for name, _ in needs))
        least[group.name] = min(group.size, -(-needed // round_to) * round_to)
    return Constraints(graph, frozen, least, round_to, tuple(needs))


def _needs(graph: ChannelGraph, frozen: Mapping[str, str]) -> list[tuple[str, np.ndarray]]:
    """For each reader that selects some channels only: a group and its units of which one must stay."""
    if not graph.ids.needed:
        return []
    roots = graph.ids.roots()
    group_of = {int(root): group for group in graph.groups for root in group.roots}
    found: dict[bytes, tuple[str, np.ndarray]] = {}
    for _, ids in graph.ids.needed:
        wanted = np.unique(roots[ids])
        groups = [group_of.get(int(root)) for root in wanted]
        if any(group is None or group.name in frozen for group in groups) or groups[0] is None:
            continue  # something of it stays in any case
        units = np.flatnonzero(np.isin(groups[0].roots, wanted))
        found.setdefault(wanted.tobytes(), (groups[0].name, units))
    return list(found.values())


def explicit_counts(limits: Constraints, channels: Mapping[str, int]) -> dict[str, int]:
    """The units that each free group keeps when layers' channels are given; groups that are not named stay whole.

    Args:
        limits: see `constraints`; of them, `keep`, `prune_only` and the model's own frozen groups count here.
        channels: see `mobileprune.plan.plan_channels`.

    Raises:
        PlanError: a count that the layer cannot have, or coupled layers that are given different ones.
    """
    graph = limits.graph
    check_patterns("channels", channels, list(graph.ids.outputs))
    kept = {group.name: group.size for group in limits.free}
    said: dict[str, tuple[str, int, int]] = {}
    for layer, ids in graph.ids.outputs.items():
        wanted = first_match(layer, channels, None)
        if wanted is None:
            continue
        for group in (group for group in graph.groups if layer in group.labels):
            if np.any(graph.without(group.roots)[ids]):
                raise PlanError(f"The {len(ids)} channels of {layer!r} belong to several groups: use keep= and ratio=.")
            if group.name in limits.frozen and wanted != len(ids):
                if layer in channels:
                    raise PlanError(f"{layer!r} keeps its {len(ids)} channels: {limits.frozen[group.name]}.")
                continue  # only a wildcard meant it
            units = _units(layer, wanted, len(ids), group.size)
            first, count, before = said.setdefault(group.name, (layer, wanted, units))
            if units != before:
                raise PlanError(
                    f"{first!r} and {layer!r} share their channels, but {count} and {wanted} were asked. "
                    "Give both the same number, or only one of them."
                )
            if group.name in kept:
                kept[group.name] = units
    return kept


def unit_costs(graph: ChannelGraph, group: ChannelGroup, target: str) -> np.ndarray:
    """What each unit of a group costs in the whole model: MACs where that is the target, else parameters; (units,)."""
    costs = np.zeros(group.size)
    for weight, axis, units in graph.weights_of(group):
        times = weight.positions if target == "macs" else 1
        each = times * math.prod(weight.shape) / weight.shape[axis]
        costs += each * np.bincount(units + 1, minlength=group.size + 1)[1:]
    return costs


def check_patterns(argument: str, patterns: Iterable[str], names: Sequence[str]) -> None:
    """Refuses a pattern that matches no layer, with the names that are near it.

    Raises:
        PlanError: such a pattern, or a single string in the place of a list.
    """
    if isinstance(patterns, str):
        raise PlanError(f"{argument} is a list of patterns. Write {argument}=[{patterns!r}].")
    for pattern in patterns:
        if pattern == "*" or any(_matches(name, pattern) for name in names):
            continue
        near = difflib.get_close_matches(pattern.replace("*", ""), names, n=5, cutoff=0.6)
        hint = f"Near it: {known_names(near)}. " if near else ""
        raise PlanError(f"{argument}={pattern!r} matches no layer. {hint}Layers: {known_names(names)}.")


def first_match(layer: str, by_pattern: Mapping[str, Any], default: Any) -> Any:
    """The value of the first pattern that matches."""
    return next((value for pattern, value in by_pattern.items() if _matches(layer, pattern)), default)


def _limit(label: str, by_pattern: Mapping[str, Any], default: Any) -> Any:
    """The value of the first pattern that matches the label, or its layer."""
    found = first_match(label, by_pattern, None)
    return first_match(label.partition(":")[0], by_pattern, default) if found is None else found


def _matches(layer: str, pattern: str) -> bool:
    return fnmatch.fnmatchcase(layer, pattern)


def _units(layer: str, wanted: int, size: int, units: int) -> int:
    """How many units a layer of `size` channels in `units` units keeps when `wanted` channels are asked."""
    each = size // units
    if not 0 < wanted <= size or wanted != int(wanted):
        raise PlanError(f"{layer!r} has {size} channels; {wanted} cannot be kept. Ask for 1 to {size}.")
    if wanted % each:
        raise PlanError(f"The channels of {layer!r} go by {each} at a time; {wanted} is no multiple of {each}.")
    return int(wanted) // each
