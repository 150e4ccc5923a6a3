"""A model and a plan make a new, physically smaller model.

The smaller model is rebuilt from the layers' own configurations with the new widths, and the ids of the survivors say
which entries of each old weight go where. Nothing is patched: the result is an ordinary, uncompiled Keras model.
"""

import dataclasses
from operator import attrgetter
from typing import Any

import keras
import numpy as np

from mobileprune.channel_calls import Weight, places
from mobileprune.channel_groups import ChannelGraph
from mobileprune.channel_ids import ChannelIds
from mobileprune.errors import ModelError, PlanError
from mobileprune.graph import is_nested, leaves, rebuild
from mobileprune.plan import PruningPlan, removed_roots
from mobileprune.rewrite import call_again, surviving_shape, survivors_by_axis


@dataclasses.dataclass(frozen=True)
class Surgery:
    """A smaller model, and what became of each weight.

    Attributes:
        smaller: the new model, uncompiled.
        before: ids of the model that was cut.
        after: the smaller model's weights that follow channels, by (layer path, attribute): their ids are those of
            the survivors.
    """

    smaller: Any
    before: ChannelIds
    after: dict[tuple[str, str], Weight]


def remove_channels(model: Any, plan: PruningPlan) -> Surgery:
    """A new model without the channels that `plan` names; the weights that are left are what they were.

    Args:
        model: a built Sequential or functional model of the architecture that the plan was made for; not changed.
        plan: see `mobileprune.plan.plan_channels`.

    Raises:
        PlanError: the plan does not fit the model, or would leave a group no channels.
        ModelError: a layer cannot be made anew with fewer channels.

    Example:
        >>> remove_channels(model, plan_channels(model, macs=0.5)).smaller          # doctest: +SKIP
        <Functional name=mobilenet, built=True>
    """
    graph = ChannelGraph(model)
    alive = graph.without(removed_roots(graph, plan))
    _check_readers(graph, alive)
    smaller = _Rebuilder(graph, alive).model(model)
    after = {key: _survivor(weight, alive) for key, weight in graph.ids.weights.items()}
    made = dict(leaves(smaller))
    for path, layer in leaves(model):
        # A layer that two nested models share is walked under one path.
        _transfer(layer, made[path], graph.ids.path(layer), graph.ids, after)
    return Surgery(smaller, graph.ids, after)


def _survivor(weight: Weight, alive: np.ndarray) -> Weight:
    """The weight of the smaller model. Survivors keep their order everywhere: only whole slices of a tensor go."""
    axes = {axis: ids[alive[ids]] for axis, ids in weight.axes.items()}
    shape = tuple(len(axes[axis]) if axis in axes else size for axis, size in enumerate(weight.shape))
    return dataclasses.replace(weight, axes=axes, shape=shape)


def _check_readers(graph: ChannelGraph, alive: np.ndarray) -> None:
    for reader, ids in graph.ids.needed:
        if not alive[ids].any():
            raise PlanError(f"The plan removes all {len(ids)} channels that {reader!r} selects. Leave at least one.")


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
        if isinstance(old, keras.layers.Lambda):
            return old  # without weights, and its function cannot be made anew from a configuration safely
        try:
            return type(old).from_config(config)
        except (TypeError, ValueError) as error:
            raise ModelError(
                f"{type(old).__name__} {path!r} cannot be made anew from its get_config(): {error}"
            ) from error

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


def _transfer(old: Any, new: Any, path: str, before: ChannelIds, after: dict[tuple[str, str], Weight]) -> None:
    followed = {}
    for (owner, attribute), weight in before.weights.items():
        if owner == path and weight.stored:
            followed[id(attrgetter(attribute)(old))] = (weight, after[owner, attribute])
    for source, destination in zip(old.weights, new.weights, strict=True):
        values = np.asarray(source)
        if id(source) in followed:
            values = _selected(values, *followed[id(source)])
        destination.assign(values)
    if isinstance(new, keras.layers.Normalization):
        new.finalize_state()  # it computes with copies of its statistics


def _selected(values: np.ndarray, old: Weight, new: Weight) -> np.ndarray:
    for axis, ids in new.axes.items():
        if len(ids) < old.shape[axis]:
            values = values.take(places(old.axes[axis], ids), axis)
    return values
