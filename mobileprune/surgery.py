"""A model and a plan make a new, physically smaller model.

The smaller model is rebuilt from the layers' own configurations with the new widths, and the ids of the survivors say
which entries of each old weight go where. Nothing is patched: the result is an ordinary, uncompiled Keras model.
"""

import dataclasses
from typing import Any

import keras
import numpy as np

from mobileprune.channel_calls import Weight, attribute_at, places
from mobileprune.channel_groups import ChannelGraph
from mobileprune.channel_ids import ChannelIds
from mobileprune.errors import ModelError, PlanError
from mobileprune.graph import is_nested, leaves, model_over_time, rebuild
from mobileprune.pruning_plan import PruningPlan, removed_roots, without_blocks
from mobileprune.pruning_wrapper import PruneLowMagnitude
from mobileprune.rewrite import call_again, surviving_shape, survivors_by_axis


@dataclasses.dataclass(frozen=True)
class Surgery:
    """A smaller model, and what became of each weight.

    Attributes:
        smaller: the new model, uncompiled.
        before: ids of the model that was cut, without its blocks that went.
        after: the smaller model's weights that follow channels, by (layer path, attribute): their ids are those of
            the survivors.
    """

    smaller: Any
    before: ChannelIds
    after: dict[tuple[str, str], Weight]


def remove_channels(model: Any, plan: PruningPlan) -> Surgery:
    """A new model without the blocks and channels that `plan` names; the weights that are left are what they were.

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
    model = without_blocks(model, plan)
    graph = ChannelGraph(model)
    alive = graph.without(removed_roots(graph, plan))
    _check_readers(graph, alive)
    smaller = _Rebuilder(graph, alive).model(model)
    after = {key: _survivor(weight, alive) for key, weight in graph.ids.weights.items()}
    made = dict(leaves(smaller, over_time=True))
    for path, layer in leaves(model, over_time=True):
        # A layer that two nested models share is walked under one path.
        _transfer(layer, made[path], graph.ids.path(layer), graph.ids, after)
    return Surgery(smaller, graph.ids, after)


def _survivor(weight: Weight, alive: np.ndarray) -> Weight:
    """The weight of the smaller model. Survivors keep their order everywhere: only whole slices of a tensor go."""
    axes = {axis: ids[alive[ids]] for axis, ids in weight.axes.items()}
    shape = tuple(len(axes[axis]) if axis in axes else size for axis, size in enumerate(weight.shape))
    factor = 1.0
    if weight.rescaled is not None:
        ids, power = weight.rescaled
        factor = float(np.mean(alive[ids]) ** power)
    return dataclasses.replace(weight, axes=axes, shape=shape, factor=factor)


def _check_readers(graph: ChannelGraph, alive: np.ndarray) -> None:
    for reader, ids in graph.ids.needed:
        if not alive[ids].any():
            raise PlanError(f"The plan removes all {len(ids)} channels that {reader!r} selects. Leave at least one.")
    for added in graph.ids.biases:
        if added.misplaced(alive) and not added.misplaced():
            raise PlanError(
                f"The plan leaves {added.layer!r} as many channels as another axis of its outputs is long: Keras would "
                "add its bias along that one. Leave one channel more or one less."
            )


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
        if model_over_time(old) is not None:
            return type(old)(self._layer(old.layer), **{key: config[key] for key in config if key != "layer"})
        for entry, size in self._sizes.get(path, {}).items():
            try:
                config = _with_entry(config, entry.split("."), size)
            except KeyError as error:
                raise ModelError(
                    f"{type(old).__name__} {path!r} has no {entry!r} in its get_config(): it cannot shrink."
                ) from error
        if self._has_inner_weights(path):
            _forget_shapes(config)
        if isinstance(old, keras.layers.Reshape):
            config["target_shape"] = surviving_shape(self._ids.calls[path], self._alive, (None, *old.target_shape))[1:]
        if isinstance(old, keras.layers.TimeDistributed) and isinstance(old.layer, keras.layers.Reshape):
            shape = (None, None, *old.layer.target_shape)
            config["layer"]["config"]["target_shape"] = surviving_shape(self._ids.calls[path], self._alive, shape)[2:]
        if isinstance(old, keras.layers.Lambda):
            return old  # without weights, and its function cannot be made anew from a configuration safely
        try:
            return type(old).from_config(config)
        except (TypeError, ValueError) as error:
            raise ModelError(
                f"{type(old).__name__} {path!r} cannot be made anew from its get_config(): {error}"
            ) from error

    def _has_inner_weights(self, path: str) -> bool:
        return any(owner == path and "." in attribute for owner, attribute in self._ids.weights)

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


def _with_entry(config: Any, entry: list[str], size: int) -> Any:
    """A configuration with one entry set, of a layer or a list inside it if need be; KeyError where there is none."""
    first, *inner = entry
    if isinstance(config, list | tuple):
        if first not in map(str, range(len(config))):
            raise KeyError(first)
        place = int(first)
        changed = _with_entry(config[place], inner, size) if inner else size
        return [*config[:place], changed, *config[place + 1 :]]
    if not isinstance(config, dict) or first not in config:
        raise KeyError(first)
    return {**config, first: _with_entry(config[first], inner, size) if inner else size}


def _forget_shapes(config: Any) -> None:
    """Takes the shapes out of a configuration for which layers inside the layer were built: they are the old ones."""
    for value in config.values() if isinstance(config, dict) else config:
        if isinstance(value, dict):
            value.pop("build_config", None)
        if isinstance(value, dict | list | tuple):
            _forget_shapes(value)


def _transfer(old: Any, new: Any, path: str, before: ChannelIds, after: dict[tuple[str, str], Weight]) -> None:
    followed = {}
    for (owner, attribute), weight in before.weights.items():
        if owner == path and weight.stored:
            followed[id(attribute_at(old, attribute))] = (weight, after[owner, attribute])
    for wrapper in (layer for layer in old._flatten_layers() if isinstance(layer, PruneLowMagnitude)):
        for _, variable, mask in wrapper.pruned_weights():
            if id(variable) in followed:
                followed[id(mask)] = followed[id(variable)]
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
    return values if new.factor == 1.0 else (values * new.factor).astype(values.dtype)
