"""A pruning plan: a record of blocks and channels that a person can read and edit, and what it leaves of a model."""

import dataclasses
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from mobileprune.block_removal import remove_blocks
from mobileprune.channel_groups import ChannelGraph, Cost
from mobileprune.errors import PlanError
from mobileprune.files import read_json, write_bytes
from mobileprune.json_record import Record


@dataclasses.dataclass(frozen=True)
class GroupPlan(Record):
    """What one group loses: `remove` lists indices of its units, out of `size`; `frozen` says why it stays whole."""

    group: str
    size: int
    remove: tuple[int, ...] = ()
    frozen: str | None = None


@dataclasses.dataclass(frozen=True)
class PlannedLatency(Record):
    """What a plan for a latency went by: the table's prediction, and what files of both shapes took on the device."""

    device: str
    runtime: str
    threads: int
    recipe: str
    predicted_ms: float
    before_ms: float
    ms: float


@dataclasses.dataclass(frozen=True)
class PruningPlan(Record):
    """A choice of channels. It fits every model of the same architecture, whatever its weights.

    `macs` and `params` are those of the smaller model, `*_before` those of the model the plan was made for. Who edits
    `remove` by hand need not mend them: they are only a record, and `cost_of_plan` computes them again. `latency` is
    there where the target was one. `blocks` go before any channel, and `groups` are those of what is then left.
    """

    model: str
    target: str
    importance: str
    scope: str
    macs_before: int
    params_before: int
    macs: int
    params: int
    groups: tuple[GroupPlan, ...]
    normalise: str = "sum"
    latency: PlannedLatency | None = None
    blocks: tuple[str, ...] = ()

    def save(self, path: str | Path) -> Path:
        """Writes the plan as JSON, each list of channels on one line."""
        text = json.dumps(self.to_json(), indent=2, ensure_ascii=False, allow_nan=False)
        in_lines = re.sub(r"\[\s+([\d,\s]+?)\s+\]", lambda found: f"[{' '.join(found[1].split())}]", text)
        return write_bytes(Path(path), f"{in_lines}\n".encode())

    @classmethod
    def load(cls, path: str | Path) -> "PruningPlan":
        """Reads what `save` wrote."""
        return cls.from_json(read_json(Path(path)))


def cost_of_plan(model: Any, plan: PruningPlan) -> Cost:
    """MACs and parameters that a plan leaves, computed from its blocks and channels: for plans that were edited.

    Args:
        model: a built model of the architecture that the plan was made for.
        plan: see `plan_channels`.

    Raises:
        PlanError: the plan does not fit the model.

    Example:
        >>> cost_of_plan(model, PruningPlan.load("plan.json")).macs      # doctest: +SKIP
        4216832
    """
    graph = ChannelGraph(without_blocks(model, plan))
    return graph.cost(graph.without(removed_roots(graph, plan)))


def without_blocks(model: Any, plan: PruningPlan) -> Any:
    """The model without the blocks that a plan removes, the channels still whole; the very model when there are none.

    Raises:
        PlanError: the model has no such blocks.
    """
    return remove_blocks(model, plan.blocks) if plan.blocks else model


def removed_roots(graph: ChannelGraph, plan: PruningPlan) -> np.ndarray:
    """The roots of all units that a plan removes, for `ChannelGraph.without`.

    Raises:
        PlanError: the plan is for another model, or would leave a group no channels.
    """
    groups = {group.name: group for group in graph.groups}
    removed = [np.zeros(0, np.int64)]
    named = Counter(entry.group for entry in plan.groups)
    for entry in plan.groups:
        if named[entry.group] > 1:
            raise PlanError(f"The plan has {named[entry.group]} entries for {entry.group!r}. Merge them into one.")
        group = groups.get(entry.group)
        if group is None or group.size != entry.size:
            found = "no such group" if group is None else f"{group.size} channels"
            raise PlanError(f"The plan is for another model: {entry.group!r} of {entry.size} channels; found {found}.")
        if not entry.remove:
            continue
        if any(isinstance(index, bool) or not isinstance(index, int) for index in entry.remove):
            raise PlanError(f"The plan's list for {entry.group!r} must hold whole numbers. Received: {entry.remove}.")
        indices = np.unique(entry.remove)
        if group.frozen:
            raise PlanError(f"The plan removes channels of {group.name!r}, which must stay: {group.frozen}.")
        if indices[0] < 0 or indices[-1] >= group.size:
            raise PlanError(f"The plan removes channel {indices[-1]} of {group.name!r}, which has {group.size}.")
        if len(indices) == group.size:
            raise PlanError(f"The plan removes all {group.size} channels of {group.name!r}. Leave at least one.")
        removed.append(group.roots[indices])
    return np.concatenate(removed)
