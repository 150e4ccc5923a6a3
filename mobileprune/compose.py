"""Several cuts, one after another, as one plan against the network that they began with."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from mobileprune.channel_groups import ChannelGraph
from mobileprune.errors import PlanError
from mobileprune.pruning_plan import GroupPlan, PlannedLatency, PruningPlan, removed_roots, without_blocks
from mobileprune.surgery import remove_channels


def compose_plans(model: Any, plans: Sequence[PruningPlan]) -> PruningPlan:
    """The plan that removes from `model` at once what `plans` remove in turn.

    Channels are followed by where layers create them, through every network in between; weights do not matter.

    Args:
        model: a built Sequential or functional model of the architecture that the first plan was made for; not changed.
        plans: at least one; each was made for the network that the ones before it leave. Blocks may go in the first.

    Returns:
        A plan with the last one's target, importance and scope, and the first one's reasons why groups stay whole.

    Raises:
        PlanError: there are none, or one does not fit the network that the ones before it leave.

    Example:
        >>> half = plan_channels(model, macs=0.5)                                               # doctest: +SKIP
        >>> quarter = plan_channels(prune_channels(model, half), macs=0.5)                      # doctest: +SKIP
        >>> plan = compose_plans(model, [half, quarter])                                        # doctest: +SKIP
    """
    if not plans:
        raise PlanError("There is no plan to compose. Give at least one.")
    if any(plan.blocks for plan in plans[1:]):
        raise PlanError("Only the first of several plans may remove whole blocks.")
    whole = ChannelGraph(model)
    model = without_blocks(model, plans[0])
    first = graph = ChannelGraph(model) if plans[0].blocks else whole
    origin = np.arange(len(first.everything()))  # the first network's root of each root of the present one
    gone = []
    for number, plan in enumerate(plans, start=1):
        removed = removed_roots(graph, plan)
        gone.append(origin[removed])
        if number < len(plans):
            model = remove_channels(model, dataclasses.replace(plan, blocks=())).smaller
            before, graph = graph, ChannelGraph(model)
            origin = _origins(before, graph, before.without(removed), origin)
    roots = np.concatenate(gone)
    frozen = {entry.group: entry.frozen for entry in plans[0].groups}
    before_cost, cost = whole.cost(whole.everything()), first.cost(first.without(roots))
    return dataclasses.replace(
        plans[-1],
        model=plans[0].model,
        macs_before=before_cost.macs,
        params_before=before_cost.params,
        macs=cost.macs,
        params=cost.params,
        groups=tuple(
            GroupPlan(
                group.name,
                group.size,
                tuple(np.flatnonzero(np.isin(group.roots, roots)).tolist()),
                frozen.get(group.name, group.frozen),
            )
            for group in first.groups
        ),
        latency=_latency(plans),
        blocks=plans[0].blocks,
    )


def _origins(before: ChannelGraph, after: ChannelGraph, alive: np.ndarray, origin: np.ndarray) -> np.ndarray:
    """`origin` for the roots of the smaller network. What a layer creates keeps its order, less what is gone."""
    old, new = before.ids.roots(), after.ids.roots()
    found = np.full(len(new), -1)
    for label, created in before.ids.outputs.items():
        found[new[after.ids.outputs[label]]] = origin[old[created[alive[created]]]]
    return found


def _latency(plans: Sequence[PruningPlan]) -> PlannedLatency | None:
    first, last = plans[0].latency, plans[-1].latency
    return None if first is None or last is None else dataclasses.replace(last, before_ms=first.before_ms)
