"""A model and a plan make a new, physically smaller model.

The smaller model is rebuilt from the layers' own configurations with the new widths. Then the ids are walked on the
*new* graph, with the survivors' ids, and their order there says which indices of each old weight go where. Nothing is
patched: the result is an ordinary, uncompiled Keras model.
"""

from collections import Counter
from operator import attrgetter
from typing import Any

import keras
import numpy as np

from mobileprune.channel_groups import ChannelGraph
from mobileprune.channel_ids import ChannelIds, Weight, places
from mobileprune.errors import ModelError, PlanError
from mobileprune.graph import clone, is_nested, rebuild, same_layer
from mobileprune.plan import PruningPlan, plan_channels
from mobileprune.rewrite import call_again, surviving_shape, survivors_by_axis


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
    _check_readers(graph, alive)
    smaller = _Rebuilder(graph, alive).model(model)
    new_ids = ChannelIds(smaller, emitted=survivors)
    for path, layer in graph.ids.layers.items():
        if not is_nested(layer):
            _transfer(path, layer, new_ids.layers[path], graph.ids, new_ids)
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


def _check_readers(graph: ChannelGraph, alive: np.ndarray) -> None:
    for reader, ids in graph.ids.needed:
        if not alive[ids].any():
            raise PlanError(f"The plan removes all {len(ids)} channels that {reader!r} selects. Leave at least one.")


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


class _Rebuilder:
    """Makes every layer and call of a model anew, with the widths that survive; nested models from the inside out."""

    def __init__(self, graph: ChannelGraph, alive: np.ndarray) -> None:
        self._ids, self._alive = graph.ids, alive
        self._made: dict[int, Any] = {}
        self._sizes: dict[str, dict[str, int]] = {}
        for (path, entry), ids in graph.ids.sizes.items():
            self._sizes.setdefault(path, {})[entry] = int(np.count_nonzero(alive[ids]))

    def model(self, old: Any) -> Any:
        new = rebuild(old, self._layer, self._call, self._input_shape)
        if not old.trainable:
            new.trainable = False
        return new

    def _layer(self, old: Any) -> Any:
        """The new layer in the place of an old one; the same whenever a shared layer is met again."""
        if id(old) not in self._made:
            self._made[id(old)] = self.model(old) if is_nested(old) else self._resized(old)
        return self._made[id(old)]

    def _resized(self, old: Any) -> Any:
        config = old.get_config()
        path = self._ids.path(old)
        for entry, size in self._sizes.get(path, {}).items():
            if entry not in config:
                raise ModelError(
                    f"{type(old).__name__} {path!r} has no {entry!r} in its get_config(): it cannot shrink."
                )
            config[entry] = size
        if isinstance(old, keras.layers.Reshape):
            config["target_shape"] = surviving_shape(self._ids.calls[path], self._alive, (None, *old.target_shape))[1:]
        return type(old).from_config(config)

    def _call(self, node: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if isinstance(node.operation, keras.Layer):
            return self._layer(node.operation)(*args, **kwargs)
        return call_again(self._ids.calls[self._ids.path(node.operation)], self._alive, args, kwargs)

    def _input_shape(self, tensor: Any) -> tuple[int | None, ...]:
        call = self._ids.calls[self._ids.path(tensor._keras_history.operation)]
        kept = survivors_by_axis(call.outputs[0], self._alive)
        return tuple(
            said if along.all() else int(np.count_nonzero(along))
            for said, along in zip(tensor.shape, kept, strict=True)
        )


def _transfer(path: str, old: Any, new: Any, old_ids: ChannelIds, new_ids: ChannelIds) -> None:
    followed = {}
    for (name, attribute), weight in old_ids.weights.items():
        if name == path and weight.stored:
            followed[id(attrgetter(attribute)(old))] = (weight, new_ids.weights[name, attribute])
    for source, destination in zip(old.weights, new.weights, strict=True):
        values = np.asarray(source)
        if id(source) in followed:
            values = _selected(values, *followed[id(source)])
        destination.assign(values)


def _selected(values: np.ndarray, old: Weight, new: Weight) -> np.ndarray:
    for axis, ids in new.axes.items():
        values = values.take(places(old.axes[axis], ids), axis)
    return values
