"""Which channels to remove: from groups, scores and one target to a plan that a person can read and edit."""

import dataclasses
import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mobileprune.allocation import SCOPES, Allocation, Measure, check_floor
from mobileprune.channel_groups import ChannelGraph, Cost
from mobileprune.constraints import MAX_RATIO, constraints, explicit_counts
from mobileprune.errors import PlanError, known_names
from mobileprune.file_size import FileSize, check_size_recipe
from mobileprune.files import read_json, write_bytes
from mobileprune.importance import Importance, Scoring, check_importance, importance_name, rankings
from mobileprune.ranking import check_normalisation
from mobileprune.records import Record


@dataclasses.dataclass(frozen=True)
class GroupPlan(Record):
    """What one group loses: `remove` lists indices of its units, out of `size`; `frozen` says why it stays whole."""

    group: str
    size: int
    remove: tuple[int, ...] = ()
    frozen: str | None = None


@dataclasses.dataclass(frozen=True)
class PruningPlan(Record):
    """A choice of channels. It fits every model of the same architecture, whatever its weights.

    `macs` and `params` are those of the smaller model, `*_before` those of the model the plan was made for. Who edits
    `remove` by hand need not mend them: they are only a record, and `cost_of_plan` computes them again.
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

    def save(self, path: str | Path) -> Path:
        """Writes the plan as JSON, each list of channels on one line."""
        text = json.dumps(self.to_json(), indent=2, ensure_ascii=False, allow_nan=False)
        in_lines = re.sub(r"\[\s+([\d,\s]+?)\s+\]", lambda found: f"[{' '.join(found[1].split())}]", text)
        return write_bytes(Path(path), f"{in_lines}\n".encode())

    @classmethod
    def load(cls, path: str | Path) -> "PruningPlan":
        """Reads what `save` wrote."""
        return cls.from_json(read_json(Path(path)))


def plan_channels(
    model: Any,
    *,
    macs: float | None = None,
    params: float | None = None,
    file_bytes: float | None = None,
    ratio: float | None = None,
    channels: Mapping[str, int] | None = None,
    importance: Importance = "l2",
    normalise: str = "sum",
    scope: str = "global",
    round_to: int = 8,
    min_channels: int | Mapping[str, int] = 1,
    max_ratio: float | Mapping[str, float] = MAX_RATIO,
    keep: Sequence[str] = (),
    prune_only: Sequence[str] = (),
    recipe: str = "float32",
    calibration: Any = None,
    seed: int = 0,
) -> PruningPlan:
    """Chooses the channels to remove so that the smaller model meets one target. The model is not changed.

    Whether the target can be met is known before any score is computed. Patterns are shell wildcards over the names of
    layers that create channels; in a mapping the first pattern that matches a layer counts.

    Args:
        model: a built Sequential or functional model.
        macs: target for the multiply-accumulates: the fraction kept when at most 1, absolute above.
        params: the same for the parameters.
        file_bytes: the same for the size of the `.tflite` in `recipe`, as estimated by `mobileprune.file_size`: within
            2% for files of more than 100 kB.
        ratio: share of the units removed from every group alike, 0 to 1.
        channels: how many channels layers keep, `{"stem": 24, "block_*_expand": 96}`; other groups stay whole, and
            `round_to`, `max_ratio` and `min_channels` do not count. Exactly one of the five must be given.
        importance: how channels are ranked: `"l1"`, `"l2"`, `"batch_norm_scale"`, `"fpgm"`, `"taylor"` (needs
            `calibration`), `"random"`, `"obs"` (backward elimination, for a model that is then fitted by least
            squares; needs `calibration`), see `mobileprune.importance` for the papers; or a function
            `(graph, group, values) -> scores`, see `mobileprune.importance.score`; or a mapping of group names to
            finished `Ranking`s.
        normalise: how scores of different groups are made comparable: `"sum"`, `"mean"`, `"max"`, `"gaussian"` or
            `"none"`, see `mobileprune.ranking.ranked`. It matters where the scope is not `"local"`.
        scope: `"global"` ranks the channels of all groups together. `"local"` removes the same share of every group.
            `"isomorphic"` ranks groups of the same sub-structure (kinds of layers and of weights) among each other, and
            each such class loses the same share (Fang et al. 2024, arXiv:2407.04616).
        round_to: channels kept are a multiple of this, because kernels like whole vectors; groups that are no larger
            stay whole. (Of a grouped convolution, channels of each of its groups.)
        min_channels: no group keeps fewer, counted and rounded likewise.
        max_ratio: no group loses a larger share than this. Coupled layers that match different entries follow the
            strictest, here and in `min_channels`; layers that match none lose up to 0.9.
        keep: patterns of layers whose channels all stay.
        prune_only: patterns of the only layers that may lose channels; what is coupled to another layer stays whole.
        recipe: what `file_bytes` counts: float32, float16, dynamic_int8, int8 or int8_float_io.
        calibration: for `"taylor"` float32 images as the model takes them, (images, labels), or batches of either; for
            `"obs"` an array of images, a list with one for each input, or (images, labels), of which it reads images.
        seed: for `importance="random"`.

    Raises:
        PlanError: the target cannot be met (the floor is told), or an argument makes no sense.

    Example:
        >>> plan_channels(model, macs=0.5, keep=["head"]).macs      # doctest: +SKIP
        4216832
    """
    target, wanted = _only_target(
        {"macs": macs, "params": params, "file_bytes": file_bytes, "ratio": ratio, "channels": channels}
    )
    if scope not in SCOPES:
        raise PlanError(f"Unknown scope {scope!r}. Known: {known_names(SCOPES)}.")
    check_normalisation(normalise)
    check_importance(importance, calibration)
    check_size_recipe(recipe)

    graph = ChannelGraph(model)
    limits = constraints(
        graph,
        round_to=round_to,
        max_ratio=max_ratio,
        min_channels=min_channels,
        keep=keep,
        prune_only=prune_only,
    )
    measure = _measure(graph, target, recipe)
    before = graph.cost(graph.everything())
    kept: dict[str, int] = {}
    budget = math.inf
    # Everything that can be refused is refused before the scores, which may take gradients of a whole data set.
    if target == "channels":
        kept = explicit_counts(limits, wanted)
    elif target == "ratio":
        _check_ratio(wanted, max_ratio)
    else:
        whole = measure(graph.everything())
        budget = float(wanted * whole if wanted <= 1 else wanted)
        check_floor(target, measure(limits.cheapest(target)), whole, budget)

    ranked = rankings(Scoring(model, graph, calibration, seed), limits.free, importance, normalise)
    allocation = Allocation(limits, limits.spared(ranked), scope, target, measure)
    if target == "ratio":
        kept = allocation.at_ratio(wanted)
    elif target != "channels":
        kept = allocation.within(budget)
    removed = allocation.removed(kept)
    after = graph.cost(allocation.alive(kept))
    return PruningPlan(
        model=model.name,
        target=_told(target, wanted, recipe),
        importance=importance_name(importance),
        scope=scope,
        macs_before=before.macs,
        params_before=before.params,
        macs=after.macs,
        params=after.params,
        groups=tuple(
            GroupPlan(
                group=group.name,
                size=group.size,
                remove=tuple(np.sort(removed[group.name]).tolist()) if group.name in removed else (),
                frozen=limits.frozen.get(group.name),
            )
            for group in graph.groups
        ),
        normalise=normalise,
    )


def pruning_floor(
    model: Any,
    *,
    round_to: int = 8,
    max_ratio: float | Mapping[str, float] = MAX_RATIO,
    min_channels: int | Mapping[str, int] = 1,
    keep: Sequence[str] = (),
    prune_only: Sequence[str] = (),
) -> Cost:
    """The MACs and parameters below which no plan with these limits goes. No scores are computed.

    Args:
        model: a built Sequential or functional model.
        round_to, max_ratio, min_channels, keep, prune_only: see `plan_channels`.

    Raises:
        PlanError: an argument makes no sense.

    Example:
        >>> pruning_floor(model, keep=["block_*_project"]).macs     # doctest: +SKIP
        1290144
    """
    graph = ChannelGraph(model)
    limits = constraints(
        graph, round_to=round_to, max_ratio=max_ratio, min_channels=min_channels, keep=keep, prune_only=prune_only
    )
    return Cost(graph.cost(limits.cheapest("macs")).macs, graph.cost(limits.cheapest("params")).params)


def cost_of_plan(model: Any, plan: PruningPlan) -> Cost:
    """MACs and parameters that a plan leaves, computed from its lists of channels: for plans that were edited.

    Args:
        model: a built model of the architecture that the plan was made for.
        plan: see `plan_channels`.

    Raises:
        PlanError: the plan does not fit the model.

    Example:
        >>> cost_of_plan(model, PruningPlan.load("plan.json")).macs      # doctest: +SKIP
        4216832
    """
    graph = ChannelGraph(model)
    return graph.cost(graph.without(removed_roots(graph, plan)))


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


def _only_target(targets: Mapping[str, Any]) -> tuple[str, Any]:
    given = {name: value for name, value in targets.items() if value is not None}
    if len(given) != 1:
        raise PlanError(f"Give exactly one target of {known_names(targets)}. Received: {given or 'none'}.")
    ((target, wanted),) = given.items()
    if target == "channels":
        if not isinstance(wanted, Mapping) or not wanted:
            raise PlanError(f"channels is a mapping of layers to channels kept, {{'stem': 24}}. Received: {wanted!r}.")
    elif not wanted > 0 or (target == "ratio" and wanted >= 1):
        raise PlanError(f"{target}={wanted} leaves no channels. It must be above 0, and a ratio below 1.")
    return target, wanted


def _check_ratio(ratio: float, max_ratio: float | Mapping[str, float]) -> None:
    largest = max_ratio if not isinstance(max_ratio, Mapping) else max([MAX_RATIO, *max_ratio.values()])
    if ratio > largest:
        raise PlanError(f"ratio={ratio} is more than any group may lose. Raise {max_ratio=} or lower the ratio.")


def _measure(graph: ChannelGraph, target: str, recipe: str) -> Measure:
    if target == "file_bytes":
        return FileSize(graph, recipe).bytes
    return lambda alive: int(getattr(graph.cost(alive), "params" if target == "params" else "macs"))


def _told(target: str, wanted: Any, recipe: str) -> str:
    """The target in one readable line."""
    if target == "channels":
        return "channels=" + ",".join(f"{pattern}:{count}" for pattern, count in wanted.items())
    number = f"{wanted:g}" if wanted <= 1 else f"{wanted:.0f}"
    return f"{target}={number}" + (f" recipe={recipe}" if target == "file_bytes" else "")
