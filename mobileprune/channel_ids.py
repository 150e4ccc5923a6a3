"""Which channels of a model are the same channel: abstract interpretation of the Keras graph.

Every channel that a weight creates gets an integer id. The functional graph is walked once in topological order,
carrying for each tensor an integer array of ids of the tensor's own shape (without the batch). Where ops combine
tensors element by element the ids that meet are unified: those channels live or die together. Ops that only move data
are run on the ids themselves. What no rule knows is frozen, with the reason. Nothing of the model is changed.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras
import numpy as np

from mobileprune.errors import ModelError
from mobileprune.graph import functional_graph

Ids = np.ndarray
Rule = Callable[["ChannelIds", "Call"], list[Ids]]


@dataclasses.dataclass(frozen=True)
class Call:
    """One call of a layer or op in the graph.

    Attributes:
        operation: the Keras layer or op.
        inputs: ids of each tensor that it reads.
        output_shapes: shape of each tensor that it writes, without the batch; unknown sizes are 1.
    """

    operation: Any
    inputs: list[Ids]
    output_shapes: list[tuple[int, ...]]


@dataclasses.dataclass
class Weight:
    """How the axes of one weight follow channel ids.

    Attributes:
        layer: the layer's name.
        attribute: the weight's name on the layer (`kernel`, `gamma`, …).
        shape: the weight's shape.
        axes: for each axis that follows channels, the id at each index.
        positions: how often the weight is applied to one input: its MACs are `positions` times its size; 0 for
            weights that do not multiply and accumulate.
    """

    layer: str
    attribute: str
    shape: tuple[int, ...]
    axes: dict[int, Ids]
    positions: int = 0


RULES: dict[type, Rule] = {}


def rule(*kinds: type) -> Callable[[Rule], Rule]:
    """Registers how the ids pass through operations of the given classes (exact classes, not their subclasses)."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(kinds, function))
        return function

    return register


class ChannelIds:
    """The ids of a whole model.

    Args:
        model: a built functional or Sequential model.
        emitted: ids that the named layers create, in order, instead of fresh ones. Surgery walks the smaller model
            with the survivors' ids of the larger one and reads which old index goes where.

    Attributes:
        weights: every weight that follows channels, by (layer name, attribute).
        outputs: the ids that each layer created (convolutions, dense layers), by layer name; `name:0` for the first
            output of an operation that no rule knows (`name:0:24` for further calls that give another width, 24).
        tensors: ids of the last output of each operation, by name.
        layers: the model's layers that were walked, by name.

    Raises:
        ModelError: the model is subclassed or not built, so that its graph cannot be read.
    """

    def __init__(self, model: Any, emitted: Mapping[str, Ids] | None = None) -> None:
        self.weights: dict[tuple[str, str], Weight] = {}
        self.outputs: dict[str, Ids] = {}
        self.tensors: dict[str, Ids] = {}
        self.layers: dict[str, Any] = {}
        self._emitted = emitted
        self._parent = np.zeros(0, np.int64)
        self._reasons: dict[int, str] = {}
        self._whole: dict[str, str] = {}
        if emitted:
            self._parent = np.arange(1 + max(int(ids.max(initial=0)) for ids in emitted.values()), dtype=np.int64)
        self._walk(functional_graph(model))

    # What a rule may call.

    def create(self, name: str, count: int) -> Ids:
        """Fresh ids for the channels that layer `name` creates; the same ones when a shared layer is called again."""
        if name not in self.outputs:
            known = None if self._emitted is None else self._emitted.get(name)
            if known is not None and len(known) != count:
                raise ModelError(f"{name} creates {count} channels where {len(known)} were planned.")
            self.outputs[name] = self._fresh(count) if known is None else known
        return self.outputs[name]

    def create_frozen(self, operation: Any, index: int, count: int, reason: str) -> Ids:
        """Ids that may not be removed, for output number `index` of an operation that cannot be followed."""
        name = f"{operation.name}:{index}"
        if name in self.outputs and len(self.outputs[name]) != count:
            name = f"{name}:{count}"
        created = self.create(name, count)
        self.freeze(created, reason)
        return created

    def keep_whole(self, layer: Any, reason: str) -> None:
        """No call of `layer`, seen already or still to come, may lose channels that its weights follow."""
        self._whole.setdefault(layer.name, reason)
        for weight in self.weights.values():
            if weight.layer == layer.name:
                for ids in weight.axes.values():
                    self.freeze(ids, reason)

    def _fresh(self, count: int) -> Ids:
        start = len(self._parent)
        self._parent = np.concatenate([self._parent, np.arange(start, start + count, dtype=np.int64)])
        return self._parent[start:].copy()

    def follow(self, layer: Any, attribute: str, axes: Mapping[int, Ids], positions: int = 0) -> None:
        """Records that the axes of a weight follow `axes`; a shared layer's calls are unified and their MACs added."""
        variable = getattr(layer, attribute)
        if variable is None:
            return
        shape = tuple(variable.shape)
        axes = {axis % len(shape): np.asarray(ids) for axis, ids in axes.items()}
        for axis, ids in axes.items():
            if ids.shape != (shape[axis],):
                raise ModelError(f"{layer.name}.{attribute} has {shape[axis]} entries on axis {axis}, not {ids.size}.")
        known = self.weights.setdefault(
            (layer.name, attribute), Weight(layer.name, attribute, shape, dict(axes), positions=0)
        )
        known.positions += positions
        for axis, ids in axes.items():
            # An earlier call that could not be followed has recorded the weight without its axes.
            self.unify(known.axes.setdefault(axis, ids), ids)
            if layer.name in self._whole:
                self.freeze(ids, self._whole[layer.name])

    def unify(self, left: Ids, right: Ids) -> None:
        """From now on each id of `left` and the one of `right` at its place are one channel."""
        pairs = np.unique(np.stack([left.ravel(), right.ravel()]), axis=1)
        for a, b in pairs.T:
            root_a, root_b = self.root(int(a)), self.root(int(b))
            if root_a != root_b:
                self._parent[max(root_a, root_b)] = min(root_a, root_b)

    def freeze(self, ids: Ids, reason: str) -> None:
        """These channels may not be removed; the first reason given is kept."""
        for channel in np.unique(ids):
            self._reasons.setdefault(int(channel), reason)

    # What the stages read.

    def root(self, channel: int) -> int:
        """The id that stands for `channel` and all that were unified with it."""
        parent = self._parent
        while parent[channel] != channel:
            parent[channel] = parent[parent[channel]]
            channel = int(parent[channel])
        return channel

    def roots(self) -> Ids:
        """The root of every id, shape (number of ids,)."""
        return np.array([self.root(channel) for channel in range(len(self._parent))], np.int64)

    def frozen(self) -> dict[int, str]:
        """Roots that may not be removed, each with the reason."""
        found: dict[int, str] = {}
        for channel, reason in self._reasons.items():
            found.setdefault(self.root(channel), reason)
        return found

    # The walk.

    def _walk(self, graph: Any) -> None:
        ids: dict[int, Ids] = {}
        for node in _nodes(graph):
            operation = node.operation
            inputs = [ids[id(tensor)] for tensor in node.input_tensors]
            shapes = [_known_shape(tensor) for tensor in node.output_tensors]
            if isinstance(operation, keras.Layer):
                self.layers[operation.name] = operation
            found = self._pass(Call(operation, inputs, shapes))
            for tensor, shape, array in zip(node.output_tensors, shapes, found, strict=True):
                ids[id(tensor)] = np.broadcast_to(array, shape)
            self.tensors[operation.name] = ids[id(node.output_tensors[-1])]
        for tensor in keras.tree.flatten(graph.outputs):
            self.freeze(compact(ids[id(tensor)]), "model output")

    def _pass(self, call: Call) -> list[Ids]:
        operation = call.operation
        known = RULES.get(type(operation))
        if known is not None:
            return known(self, call)
        reason = f"{type(operation).__name__} {operation.name!r} has no channel rule"
        for array in call.inputs:
            self.freeze(compact(array), reason)
        outputs = []
        for index, shape in enumerate(call.output_shapes):
            created = self.create_frozen(operation, index, shape[-1] if shape else 1, reason)
            outputs.append(np.broadcast_to(created, shape))
        return outputs


def compact(ids: Ids) -> Ids:
    """The same ids with every axis along which they are constant cut to length 1."""
    for axis, (size, stride) in enumerate(zip(ids.shape, ids.strides, strict=True)):
        if size > 1 and (stride == 0 or bool((ids == ids.take([0], axis)).all())):
            ids = ids.take([0], axis)
    return ids


def channel_vector(ids: Ids) -> Ids | None:
    """The ids along the last axis when they are constant along all the others, else None."""
    small = compact(ids)
    if any(size != 1 for size in small.shape[:-1]):
        return None
    return np.broadcast_to(small.reshape(-1), ids.shape[-1:])


def _nodes(graph: Any) -> Iterator[Any]:
    for depth in sorted(graph._nodes_by_depth, reverse=True):
        yield from graph._nodes_by_depth[depth]


def _known_shape(tensor: Any) -> tuple[int, ...]:
    return tuple(1 if size is None else int(size) for size in tensor.shape[1:])
