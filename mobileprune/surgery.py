"""A model and a plan make a new, physically smaller model.

The smaller model is rebuilt from the layers' own configurations with the new widths. Then the ids are walked on the
*new* graph, with the survivors' ids, and their order there says which indices of each old weight go where. Nothing is
patched: the result is an ordinary, uncompiled Keras model.
"""

from collections import Counter
from typing import Any

import keras
import numpy as np

from mobileprune.channel_groups import ChannelGraph
from mobileprune.channel_ids import ChannelIds, Weight
from mobileprune.errors import PlanError
from mobileprune.graph import clone, same_layer
from mobileprune.plan import PruningPlan, plan_channels

# The configuration entries that hold a layer's number of output channels.
_WIDTHS = ("filters", "units")


def prune_channels(model: Any, plan: PruningPlan) -> Any:
    """Removes the channels that `plan` names.

    Args:
        model: a built Sequential or functional model of the architecture that the plan was made for; not changed.
        plan: see `plan_channels`.

    Returns:
        A new uncompiled model with the same layer names and fewer channels. When the consumers' weights of every
        removed channel are zero its outputs equal the old model's.

    Raises:
        PlanError: the plan does not fit the model, or would leave a group no channels.

    Example:
        >>> smaller = prune_channels(model, plan_channels(model, macs=0.5))         # doctest: +SKIP
    """
    graph = ChannelGraph(model)
    alive = graph.without(_removed_roots(graph, plan))
    survivors = {name: ids[alive[ids]] for name, ids in graph.ids.outputs.items()}
    smaller = _rebuild(model, graph, alive, survivors)
    new_ids = ChannelIds(smaller, emitted=survivors)
    for name, layer in graph.ids.layers.items():
        _transfer(layer, new_ids.layers[name], graph.ids, new_ids)
    return smaller


def narrower(model: Any, macs: int) -> Any:
    """The same architecture, all groups alike narrower, with fresh weights: what a pruned model has to beat.

    Args:
        model: a built Sequential or functional model; not changed.
        macs: multiply-accumulates that the result may have at most.

    Raises:
        PlanError: no width is that cheap.
    """
    plan = plan_channels(model, macs=float(macs), scope="local", importance="random", round_to=1)
    return clone(prune_channels(model, plan), same_layer)


def _removed_roots(graph: ChannelGraph, plan: PruningPlan) -> np.ndarray:
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
        indices = np.unique(entry.remove)
        if group.frozen:
            raise PlanError(f"The plan removes channels of {group.name!r}, which must stay: {group.frozen}.")
        if indices[0] < 0 or indices[-1] >= group.size:
            raise PlanError(f"The plan removes channel {indices[-1]} of {group.name!r}, which has {group.size}.")
        if len(indices) == group.size:
            raise PlanError(f"The plan removes all {group.size} channels of {group.name!r}. Leave at least one.")
        removed.append(group.roots[indices])
    return np.concatenate(removed)


def _rebuild(model: Any, graph: ChannelGraph, alive: np.ndarray, survivors: dict[str, np.ndarray]) -> Any:
    def resized(layer: Any) -> Any:
        config = layer.get_config()
        for entry in _WIDTHS:
            if entry in config and layer.name in survivors:
                config[entry] = len(survivors[layer.name])
        if isinstance(layer, keras.layers.Reshape):
            config["target_shape"] = _surviving_shape(alive[graph.ids.tensors[layer.name]], layer)
        return type(layer).from_config(config)

    return clone(model, resized)


def _surviving_shape(alive: np.ndarray, layer: Any) -> tuple[int, ...]:
    """The shape of the surviving entries of a reshape's output; unchanged sizes keep what the layer said (-1, too)."""
    shape = []
    for axis in range(alive.ndim):
        kept = np.count_nonzero(alive.any(axis=tuple(other for other in range(alive.ndim) if other != axis)))
        shape.append(layer.target_shape[axis] if kept == alive.shape[axis] else int(kept))
    sizes = [alive.shape[axis] if size in (-1, None) else size for axis, size in enumerate(shape)]
    if int(np.prod(sizes)) != np.count_nonzero(alive):
        raise PlanError(f"What survives the plan cannot be reshaped by {layer.name!r}: keep what precedes it.")
    return tuple(shape)


def _transfer(old: Any, new: Any, old_ids: ChannelIds, new_ids: ChannelIds) -> None:
    followed = {}
    for (name, attribute), weight in old_ids.weights.items():
        if name == old.name:
            followed[id(getattr(old, attribute))] = (weight, new_ids.weights[name, attribute])
    for source, destination in zip(old.weights, new.weights, strict=True):
        values = np.asarray(source)
        if id(source) in followed:
            values = _selected(values, *followed[id(source)])
        destination.assign(values)


def _selected(values: np.ndarray, old: Weight, new: Weight) -> np.ndarray:
    for axis, ids in new.axes.items():
        values = values.take(_places(old.axes[axis], ids), axis)
    return values


def _places(old: np.ndarray, new: np.ndarray) -> np.ndarray:
    """For each entry of `new` the index in `old` of the same id: its n-th occurrence for the n-th occurrence.

    An id occurs more than once behind a flatten (once for each pixel) and in a depthwise multiplier.
    """
    old_keys, new_keys = _occurrences(old), _occurrences(new)
    lookup = {key: index for index, key in enumerate(old_keys)}
    try:
        return np.array([lookup[key] for key in new_keys], np.int64)
    except KeyError as error:
        raise PlanError("The smaller model has a channel that the larger one lacks.") from error


def _occurrences(ids: np.ndarray) -> list[tuple[int, int]]:
    seen: dict[int, int] = {}
    keys = []
    for channel in ids.tolist():
        seen[channel] = seen.get(channel, -1) + 1
        keys.append((channel, seen[channel]))
    return keys
