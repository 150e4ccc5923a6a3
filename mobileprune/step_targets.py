"""What each of several cuts asks of `plan_channels`, from the one target that the first network is to meet."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mobileprune.block_plan import surviving_patterns
from mobileprune.block_removal import remove_blocks
from mobileprune.channel_groups import ChannelGraph
from mobileprune.constraints import Constraints, GroupCounts, constraints, explicit_counts
from mobileprune.file_size import FileSize
from mobileprune.files import read_json, write_json
from mobileprune.latency_allocation import check_latency
from mobileprune.latency_setup import latency_model
from mobileprune.network_latency import LatencyModel
from mobileprune.plan import LATENCY_TARGETS, only_target, plan_channels
from mobileprune.pruning_plan import PruningPlan

TARGETS = ("macs", "params", "file_bytes", "ratio", "channels", *LATENCY_TARGETS)
SIZES = ("macs", "params", "file_bytes")
LIMITS = ("round_to", "max_ratio", "min_channels", "keep", "prune_only")
# Where `min_channels` says for each group what it keeps, nothing else may hold it back.
_ALL = 1 - 1e-9


def share_left(final: float, step: int, steps: int, power: float) -> float:
    """How much of the first network is left after a step, when `final` is after the last.

    Example:
        >>> [round(share_left(0.5, step, 4, 3.0), 3) for step in (1, 2, 3, 4)]
        [0.711, 0.562, 0.508, 0.5]
    """
    return 1 - (1 - final) * (1 - float((1 - step / steps) ** power))


@dataclasses.dataclass(frozen=True)
class Shallower:
    """A network without the blocks that go first, and what is then asked of it.

    Attributes:
        model: the network; the first one itself where no block goes.
        blocks: names of those that are gone.
        planning: arguments of `plan_channels`, the target in numbers that hold without the blocks.
        told: the target in one readable line; None where no block goes.
    """

    model: Any
    blocks: tuple[str, ...]
    planning: Mapping[str, Any]
    told: str | None = None

    def with_blocks(self, whole: Any, plan: PruningPlan) -> PruningPlan:
        """A plan for the network without its blocks as one for the whole network."""
        if not self.blocks:
            return plan
        graph = ChannelGraph(whole)
        before = graph.cost(graph.everything())
        return dataclasses.replace(plan, blocks=self.blocks, macs_before=before.macs, params_before=before.params)


def without_chosen_blocks(
    model: Any, blocks: Any, calibration: Any, planning: Mapping[str, Any], folder: Path | None
) -> Shallower:
    """Chooses the blocks that go before the first cut; all at once, because each is a large step by itself.

    Args:
        model: the first network.
        blocks: as of `plan_channels`.
        calibration: what they are ranked on.
        planning: exactly one target, and other arguments of `plan_channels`.
        folder: where the choice is kept, so that a killed job does not choose again; None for nowhere.

    Raises:
        PlanError: as `plan_channels`.
    """
    if blocks is None:
        return Shallower(model, (), planning)
    target, wanted = _target(planning)
    path = None if folder is None else folder / "blocks.json"
    if path is not None and path.exists():
        kept = read_json(path)
        names, told = tuple(map(str, kept["blocks"])), str(kept["target"])
    else:
        # Any importance meets the same target.
        whole = plan_channels(model, **{**planning, "importance": "l2", "calibration": calibration, "blocks": blocks})
        names, told = whole.blocks, whole.target
        if path is not None:
            write_json(path, {"blocks": list(names), "target": told})
    if not names:
        return Shallower(model, (), planning)
    shallower = remove_blocks(model, names)
    graph, left = ChannelGraph(model), ChannelGraph(shallower)
    given = {name: planning[name] for name in LIMITS if name in planning}
    asked = {**planning, **surviving_patterns(given, graph.ids.outputs, left.ids.outputs)}
    if target in SIZES and wanted <= 1:
        asked[target] = wanted * size_of(graph, target, planning.get("recipe", "float32"))
    elif target == "speedup":
        before = measured_once(model, planning, folder and folder / "latency_with_blocks.json")
        asked |= {"speedup": None, "latency_ms": before / wanted}
    elif target == "channels":
        asked |= surviving_patterns({"channels": wanted}, graph.ids.outputs, left.ids.outputs)
    return Shallower(shallower, names, asked, told)


def _target(planning: Mapping[str, Any]) -> tuple[str, Any]:
    return only_target({name: planning.get(name) for name in TARGETS})


def size_of(graph: ChannelGraph, target: str, recipe: str) -> float:
    """The multiply-accumulates, parameters or bytes of the file of a whole network."""
    if target == "file_bytes":
        return float(FileSize(graph, recipe).bytes(graph.everything()))
    return float(getattr(graph.cost(graph.everything()), target))


class StepTargets:
    """What each step asks of `plan_channels`.

    Args:
        first: the network that the steps begin with, and what it is to meet in the end.
        folder: where measured latencies are kept; None for nowhere.

    Attributes:
        told: the target in one readable line.

    Raises:
        PlanError: an argument makes no sense, or the target cannot be met.
    """

    def __init__(self, first: Shallower, folder: Path | None) -> None:
        model, planning = first.model, first.planning
        self._target, self._wanted = _target(planning)
        self._others = {name: value for name, value in planning.items() if name not in (*TARGETS, *LIMITS)}
        given_limits: dict[str, Any] = {name: planning[name] for name in LIMITS if name in planning}
        self._fixed: dict[str, Any] = {
            name: given_limits[name] for name in ("keep", "prune_only") if name in given_limits
        }
        graph = ChannelGraph(model)
        self._limits: Constraints = constraints(graph, **given_limits)
        if self._target in LATENCY_TARGETS:
            told = f"{self._target}={self._wanted:g} recipe={planning.get('recipe', 'float32')}"
            self._whole = measured_once(model, self._others, folder and folder / "latency.json", self._check_floor)
        else:
            # Refuses whatever can be refused; any importance meets the same limits.
            told = plan_channels(model, **{**planning, "importance": "l2"}).target
            if self._target in SIZES:
                self._whole = size_of(graph, self._target, planning.get("recipe", "float32"))
        self.told = first.told or told
        if self._target == "channels":
            self._kept = explicit_counts(self._limits, self._wanted)

    def _check_floor(self, latency: LatencyModel, whole_ms: float) -> None:
        budget_ms = whole_ms / self._wanted if self._target == "speedup" else self._wanted
        check_latency(latency, self._limits.cheapest("macs"), budget_ms * 1e6)

    def at(self, step: int, steps: int, power: float) -> dict[str, Any]:
        """The arguments of `plan_channels` at a step."""
        limits = self._limits
        sizes = {group.name: group.size for group in limits.free}
        counts = dict(limits.least)
        round_to, target, wanted = limits.round_to, self._target, 0.0
        if target == "ratio":
            left = share_left(1 - self._wanted, step, steps, power)
            counts = {group.name: limits.rounded(group, group.size * left) for group in limits.free}
            wanted = _ALL
        elif target == "channels":
            left = share_left(0.0, step, steps, power)  # of what goes in the end
            counts = {name: kept + round((sizes[name] - kept) * left) for name, kept in self._kept.items()}
            target, wanted, round_to = "ratio", _ALL, 1
        elif target == "speedup":
            target, wanted = "latency_ms", self._whole * share_left(1 / self._wanted, step, steps, power)
        else:
            relative = self._wanted <= 1 and target != "latency_ms"
            final = self._wanted if relative else self._wanted / self._whole
            wanted = self._whole * share_left(final, step, steps, power)
        # Limits in numbers of the first network's channels: shares of what is left would grow from step to step.
        return {
            target: wanted,
            "min_channels": GroupCounts({group.name: counts[group.name] for group in limits.free}),
            "max_ratio": _ALL,
            "round_to": round_to,
            **self._fixed,
            **self._others,
        }


def measured_once(
    model: Any,
    others: Mapping[str, Any],
    path: Path | None,
    check: Callable[[LatencyModel, float], None] | None = None,
) -> float:
    """Milliseconds of a whole network, kept in a file: measured again after a kill they would be others.

    `check` is told the latency and these milliseconds before they are kept, and may refuse them.
    """
    if path is not None and path.exists():
        return float(read_json(path)["before_ms"])
    how = {name: others[name] for name in ("recipe", "threads") if name in others}
    latency = latency_model(model, others.get("device", "host"), **how)
    found = float(latency.ms(latency.graph.everything()))
    if check:
        check(latency, found)
    if path is not None:
        write_json(path, {"before_ms": found})
    return found
