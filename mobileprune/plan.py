"""Which channels to remove: from groups, scores and one target to a plan that a person can read and edit."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mobileprune.allocation import SCOPES, Allocation, Measure, check_aside, check_floor
from mobileprune.block_plan import BlockChoice, BlockLimit, check_blocks, surviving_patterns
from mobileprune.channel_groups import ChannelGraph, Cost
from mobileprune.constraints import MAX_RATIO, constraints, explicit_counts
from mobileprune.errors import PlanError, known_names
from mobileprune.file_size import FileSize, check_size_recipe
from mobileprune.importance import Importance, check_importance, importance_name, rankings
from mobileprune.latency_allocation import Checked, LatencyAllocation, check_latency, fit_latency
from mobileprune.latency_setup import Device, latency_model
from mobileprune.network_latency import LatencyModel
from mobileprune.pruning_plan import GroupPlan, PlannedLatency, PruningPlan
from mobileprune.ranking import check_normalisation
from mobileprune.scoring import Scoring

LATENCY_TARGETS = ("latency_ms", "speedup")


def plan_channels(
    model: Any,
    *,
    macs: float | None = None,
    params: float | None = None,
    file_bytes: float | None = None,
    ratio: float | None = None,
    channels: Mapping[str, int] | None = None,
    latency_ms: float | None = None,
    speedup: float | None = None,
    importance: Importance = "l2",
    normalise: str = "sum",
    scope: str = "global",
    round_to: int = 8,
    min_channels: int | Mapping[str, int] = 1,
    max_ratio: float | Mapping[str, float] = MAX_RATIO,
    keep: Sequence[str] = (),
    prune_only: Sequence[str] = (),
    recipe: str = "float32",
    device: Device = "host",
    threads: int = 1,
    calibration: Any = None,
    seed: int = 0,
    blocks: BlockLimit = None,
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
            `round_to`, `max_ratio` and `min_channels` do not count.
        latency_ms: milliseconds that one inference on `device` may take, as predicted from a table of the model's ops
            that is measured there (see `mobileprune.latency_table`) and kept for the next time.
        speedup: the same as how many times faster than the whole model, 2.0 for half of its latency. Exactly one of
            the seven must be given.
        importance: how channels are ranked. By weights: `"l1"`, `"l2"`, `"lamp"`, `"batch_norm_scale"`, `"fpgm"`; by
            images (with `calibration`) `"taylor"`, `"hessian"`, `"apoz"`, `"activation_mean"`, `"reconstruction"`,
            `"obs"` (backward elimination, for a model that is then fitted by least squares); `"random"`; see
            `mobileprune.importance` for what each is and the papers. Or a function `(graph, group, values) -> scores`,
            see `mobileprune.importance.score`; or a mapping of group names to finished `Ranking`s.
        normalise: how scores of different groups are made comparable: `"sum"`, `"mean"`, `"max"`, `"gaussian"` or
            `"none"`, see `mobileprune.ranking.ranked`. It matters where the scope is not `"local"`; `"lamp"`,
            `"reconstruction"` and `"obs"` are comparable already and taken as they are.
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
        recipe: what `file_bytes` counts: float32, float16, dynamic_int8, int8 or int8_float_io; and what
            `latency_ms` and `speedup` are meant for.
        device: for these two: `"host"`, `"arm64"`, a phone (`AndroidSettings`), a function that times files, or a
            `LatencyModel` of this very model that was made before, see `mobileprune.latency_setup.latency_model`.
        threads: of the interpreter there.
        calibration: for `"taylor"` and `"hessian"` float32 images as the model takes them, (images, labels), or batches
            of either; for the others that look at images an array of them, a list with one for each input, or
            (images, labels), of which they read the images.
        seed: for `importance="random"`.
        blocks: whole residual blocks and layers that may go before any channel, see `mobileprune.removable_blocks`: how
            many at most, a share of the MACs that they may have at most (below 1), `"auto"` for as many as leave 95% of
            the images their class, or a list of names. Those go first whose loss on `calibration` (see
            `mobileprune.rank_blocks`) is least for what they save; none goes that alone would reach `macs`, `params` or
            `file_bytes`. Channels of what is left are removed to the one target, which counts from the whole model.
            `keep` and `prune_only` hold for blocks, too, and layers that `channels` names stay.

    Raises:
        PlanError: the target cannot be met (the floor is told), or an argument makes no sense.

    Example:
        >>> plan_channels(model, macs=0.5, keep=["head"]).macs      # doctest: +SKIP
        4216832
    """
    target, wanted = only_target(
        {
            "macs": macs,
            "params": params,
            "file_bytes": file_bytes,
            "ratio": ratio,
            "channels": channels,
            "latency_ms": latency_ms,
            "speedup": speedup,
        }
    )
    if scope not in SCOPES:
        raise PlanError(f"Unknown scope {scope!r}. Known: {known_names(SCOPES)}.")
    check_normalisation(normalise)
    check_importance(importance, calibration)
    timed = target in LATENCY_TARGETS
    if not timed:
        check_size_recipe(recipe)

    check_blocks(blocks)
    graph = ChannelGraph(model)
    given: dict[str, Any] = {
        "max_ratio": max_ratio,
        "min_channels": min_channels,
        "keep": keep,
        "prune_only": prune_only,
    }
    limits = constraints(graph, round_to=round_to, **given)
    before = graph.cost(graph.everything())
    whole = before.macs if timed else _measure(graph, target, recipe)(graph.everything())
    chosen = BlockChoice(
        model,
        blocks,
        calibration,
        counts="params" if target in ("params", "file_bytes") else "macs",
        enough=_enough(target, wanted, recipe, whole),
        layers=graph.ids.outputs,
        keep=[*keep, *(wanted if target == "channels" else ())],
        prune_only=prune_only,
    )
    unblocked = None
    if chosen.names:
        if timed:
            unblocked = _unblocked(model, graph, device, recipe, threads)
        model, graph, every = chosen.model, ChannelGraph(chosen.model), graph.ids.outputs
        limits = constraints(graph, round_to=round_to, **surviving_patterns(given, every, graph.ids.outputs))
    latency = _latency(model, graph, device, recipe, threads) if timed else None
    measure = latency.ns if latency else _measure(graph, target, recipe)
    kept: dict[str, int] = {}
    budget, floor = math.inf, 0.0
    checked: Checked | None = None
    # Everything that can be refused is refused before the scores, which may take gradients of a whole data set.
    if target == "channels":
        kept = explicit_counts(limits, wanted)
    elif target == "ratio":
        _check_ratio(wanted, max_ratio)
    elif latency:
        budget = _budget(target, wanted, unblocked)(latency.ns(graph.everything()))
        floor = check_latency(latency, limits.cheapest("macs"), budget)
    else:
        budget = float(wanted * whole if wanted <= 1 else wanted)
        check_floor(target, measure(limits.cheapest(target)), whole, budget)

    ranked = limits.spared(rankings(Scoring(model, graph, calibration, seed), limits.free, importance, normalise))
    allocation = Allocation(limits, ranked, scope, "macs" if latency else target, measure)

    def aside(counts: dict[str, int]) -> dict[str, int]:
        return limits.stepped_aside(counts, allocation.alive)

    if target == "ratio":
        kept = aside(allocation.at_ratio(wanted))
    elif latency:
        within = LatencyAllocation(limits, ranked, latency).within if scope == "global" else allocation.within
        budgets = _budget(target, wanted, unblocked)
        checked = fit_latency(latency, lambda ns: aside(within(ns)), allocation.alive, budgets, floor)
        kept = checked.kept
    elif target != "channels":
        kept = aside(allocation.within(budget))
        check_aside(target, measure(allocation.alive(kept)), budget)
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
        latency=_planned(latency, recipe, allocation.alive(kept), checked, unblocked),
        blocks=chosen.names,
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


def only_target(targets: Mapping[str, Any]) -> tuple[str, Any]:
    """The one target that is given; None is none.

    Raises:
        PlanError: there are none or several, or it leaves no channels.
    """
    given = {name: value for name, value in targets.items() if value is not None}
    if len(given) != 1:
        raise PlanError(f"Give exactly one target of {known_names(targets)}. Received: {given or 'none'}.")
    ((target, wanted),) = given.items()
    if target == "channels":
        if not isinstance(wanted, Mapping) or not wanted:
            raise PlanError(f"channels is a mapping of layers to channels kept, {{'stem': 24}}. Received: {wanted!r}.")
    elif target == "speedup" and not 1 < wanted < math.inf:
        raise PlanError(f"speedup={wanted} is none: 2.0 asks for half of the latency. Give a number above 1.")
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


def _enough(target: str, wanted: Any, recipe: str, whole: int) -> Callable[[Any], bool] | None:
    """Whether a model meets the target as it is, where that can be computed."""
    if target not in ("macs", "params", "file_bytes"):
        return None
    budget = wanted * whole if wanted <= 1 else wanted

    def meets(model: Any) -> bool:
        graph = ChannelGraph(model)
        return bool(_measure(graph, target, recipe)(graph.everything()) <= budget)

    return meets


def _unblocked(model: Any, graph: ChannelGraph, device: Device, recipe: str, threads: int) -> float:
    """What the network with all its blocks takes on the device, in nanoseconds."""
    if isinstance(device, LatencyModel):
        raise PlanError("A LatencyModel as device= holds for the whole network only. With blocks=, name the device.")
    (ns,) = _latency(model, graph, device, recipe, threads).measure([graph.everything()])
    return ns


def _latency(model: Any, graph: ChannelGraph, device: Device, recipe: str, threads: int) -> LatencyModel:
    if isinstance(device, LatencyModel):
        if [(group.name, group.size) for group in device.graph.groups] != [
            (group.name, group.size) for group in graph.groups
        ]:
            raise PlanError(f"device= holds the latency of another model than {model.name!r}. Measure this one's.")
        return device
    return latency_model(model, device, recipe=recipe, threads=threads)


def _budget(target: str, wanted: float, unblocked: float | None) -> Callable[[float], float]:
    """From the latency with all channels to what is asked for; a speed-up counts from the network with its blocks."""
    if target == "speedup" and unblocked is not None:
        return lambda before: unblocked / wanted
    return (lambda before: before / wanted) if target == "speedup" else (lambda before: wanted * 1e6)


def _planned(
    latency: LatencyModel | None, recipe: str, alive: np.ndarray, checked: Checked | None, unblocked: float | None
) -> PlannedLatency | None:
    if latency is None or checked is None:
        return None
    place, predicted = latency.table.place, latency.ms(alive)
    before, after = (unblocked or checked.before_ns) / 1e6, checked.ns / 1e6
    return PlannedLatency(place.device, place.runtime, place.threads, recipe, predicted, before, after)


def _told(target: str, wanted: Any, recipe: str) -> str:
    """The target in one readable line."""
    if target in LATENCY_TARGETS:
        return f"{target}={wanted:g} recipe={recipe}"
    if target == "channels":
        return "channels=" + ",".join(f"{pattern}:{count}" for pattern, count in wanted.items())
    number = f"{wanted:g}" if wanted <= 1 else f"{wanted:.0f}"
    return f"{target}={number}" + (f" recipe={recipe}" if target == "file_bytes" else "")
