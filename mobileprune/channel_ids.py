"""Which channels of a model are the same channel: abstract interpretation of the Keras graph.

Every channel that a weight creates gets an integer id. The functional graph is walked once in topological order,
carrying for each tensor an integer array of ids of the tensor's own shape (at batch 1). Where ops combine tensors
element by element the ids that meet are unified: those channels live or die together. Ops that only move data are run
on the ids themselves. What no rule knows is frozen, with the reason. Nothing of the model is changed.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from mobileprune.added_bias import AddedBias, Axis
from mobileprune.channel_calls import CONSTANT, Call, Ids, Weight, attribute_at, compact, rule_for
from mobileprune.errors import ModelError
from mobileprune.graph import functional_graph, is_nested, nodes
from mobileprune.union import Union

_NO_KERNELS: Mapping[str, int] = {}


class ChannelIds:
    """The ids of a whole model.

    Args:
        model: a built functional or Sequential model.

    Attributes:
        weights: every weight that follows channels, by (layer path, attribute).
        outputs: the ids that each layer created, by label: the layer's path, with `:heads` and the like where one
            layer creates several kinds of channels, and `:0` for the outputs of an operation that no rule knows.
        layers: the layers that were walked, by path; those of nested models too.
        calls: the first call of every operation, by path.
        sizes: for surgery, (layer path, configuration entry) -> ids whose survivors it counts. The entry is dotted
            where it is one of a layer inside (`layer.config.units`).
        open_sizes: whether the model's inputs leave sizes open other than the batch; they count as 1.
        needed: sets of ids of which one at least must survive, each with the reader that would else have no input.
        biases: those that Keras would add along the wrong axis if certain numbers of channels survived.

    Raises:
        ModelError: the model is subclassed or not built, so that its graph cannot be read.
    """

    def __init__(self, model: Any) -> None:
        self.weights: dict[tuple[str, str], Weight] = {}
        self.outputs: dict[str, Ids] = {}
        self.layers: dict[str, Any] = {}
        self.calls: dict[str, Call] = {}
        self.sizes: dict[tuple[str, str], Ids] = {}
        self.needed: list[tuple[str, Ids]] = []
        self.biases: list[AddedBias] = []
        self._aside: dict[int, int] = {}
        self._paths: dict[int, str] = {}
        self._union = Union(1)
        self._reasons: list[tuple[Ids, str]] = []
        self._mixed: list[tuple[Ids, str]] = []
        self._whole: dict[str, str] = {}
        self._reshaped: list[Ids] = []
        self._given: list[int] = []
        graph = functional_graph(model)
        self.open_sizes = any(None in tensor.shape[1:] for tensor in graph.inputs)
        for tensor, array in zip(graph.outputs, self._walk(graph, None, "", 1), strict=True):
            self.freeze(array, f"model output {tensor._keras_history.operation.name!r}")
        self._settle_shapes()

    # What a rule may call.

    def channels(self, array: Ids, axis: int = -1) -> Ids | None:
        """The ids along the axis of a tensor that holds its channels, shape (size of the axis,).

        Where other axes differ, too, their ids are unified: at every position channel k is one channel. None when
        only other axes hold channels, so that this one does not. What the model is given has its channels along
        whichever axis is asked for.
        """
        small = compact(array)
        axis %= array.ndim
        others = [other for other, size in enumerate(small.shape) if size > 1 and other != axis]
        if others and small.shape[axis] == 1:
            if not np.isin(small, self._given).all():
                return None
            self.unify(small.reshape(-1)[:1], small.reshape(-1))
        for other in others:
            first = small.take([0], other)
            self.unify(np.broadcast_to(first, small.shape), small)
            small = first
        return np.broadcast_to(small.reshape(-1), array.shape[axis : axis + 1])

    def create(self, call: Call, count: int, kind: str = "") -> Ids:
        """Ids for the `count` channels that a layer creates; the same ones when a shared layer is called again."""
        label = f"{call.path}:{kind}" if kind else call.path
        if label not in self.outputs:
            self.outputs[label] = self._union.grow(count)
        return self.outputs[label]

    def follow(self, call: Call, attribute: str, axes: Mapping[int, Ids | None], positions: int = 0) -> None:
        """Records that axes of a weight follow channels; a shared layer's calls are unified and their MACs added.

        Args:
            call: the call whose layer owns the weight.
            attribute: its name, dotted for weights of inner layers, whose places in lists are numbers; nothing happens
                when the layer has none.
            axes: for each axis the ids along it; None for an axis that follows no channels.
            positions: how often the weight is applied in this call, 0 if it does not multiply and accumulate.

        Raises:
            ModelError: an axis has another length than its ids.
        """
        variable = attribute_at(call.operation, attribute)
        if variable is not None:
            self._record(call, attribute, tuple(variable.shape), axes, positions, stored=True)

    def multiplies(
        self, call: Call, name: str, shape: tuple[int, ...], axes: Mapping[int, Ids], positions: int
    ) -> None:
        """Counts the MACs of a product of activations: `positions` times `shape`, less what its `axes` lose."""
        self._record(call, name, shape, axes, positions, stored=False)

    def _record(
        self,
        call: Call,
        name: str,
        shape: tuple[int, ...],
        axes: Mapping[int, Ids | None],
        positions: int,
        stored: bool,
    ) -> None:
        name, positions = call.inside + name, positions * call.times
        followed = {axis % len(shape): np.asarray(ids) for axis, ids in axes.items() if ids is not None}
        for axis, ids in followed.items():
            if ids.shape != (shape[axis],):
                raise ModelError(f"{call.path}.{name} has {shape[axis]} entries on axis {axis}, not {ids.size}.")
        known = self.weights.setdefault((call.path, name), Weight(call.path, name, shape, dict(followed), 0, stored))
        known.positions += positions
        for axis, ids in followed.items():
            # An earlier call that could not be followed has recorded the weight without its axes.
            earlier = known.axes.setdefault(axis, ids)
            if earlier is not ids:
                self.unify(earlier, ids)
            if call.path in self._whole:
                self.freeze(ids, self._whole[call.path])

    def resize(self, call: Call, entry: str, ids: Ids) -> None:
        """Says that the layer's configuration `entry` is the number of `ids`: surgery sets it to the survivors'.

        `entry.2` is the third of several numbers that the configuration holds under `entry`.
        """
        if call.path not in self._whole:
            self.sizes.setdefault((call.path, call.settings + entry), ids)

    def set_aside(self, *variables: Any) -> None:
        """Says that a wrapper notes these variables for itself: they are no parameters of the network."""
        self._aside.update((id(variable), math.prod(variable.shape)) for variable in variables)

    def rescale(self, call: Call, attribute: str, ids: Ids, power: float) -> None:
        """Says that surgery multiplies a weight that was followed by the share of `ids` that survives, to `power`.

        For layers that divide by something of their width: attention divides its scores by its root, so that what is
        left of the queries must shrink by the root of what is left of the width.
        """
        weight = self.weights.get((call.path, attribute))
        if weight is not None:
            weight.rescaled = (ids, power)

    def unify(self, left: Ids, right: Ids) -> None:
        """From now on each id of `left` and the one of `right` at its place are one channel."""
        left, right = np.broadcast_arrays(left, right)
        for array, other in ((left, right), (right, left)):
            lost = other[(array == CONSTANT) & (other != CONSTANT)]
            if lost.size:
                self.freeze(lost, "joined with zeros or other values that are no channel")
        both = (left != CONSTANT) & (right != CONSTANT)
        self._union.join(left[both], right[both])

    def freeze(self, ids: Ids, reason: str) -> None:
        """These channels may not be removed; the first reason given is kept."""
        self._reasons.append((compact(ids), reason))

    def inexact(self, ids: Ids, reason: str) -> None:
        """Removing one of these channels changes the others, because an operation reads all of them at once."""
        self._mixed.append((compact(ids), reason))

    def need_one(self, ids: Ids, reader: str) -> None:
        """One at least of these channels must survive, because `reader` reads no others."""
        self.needed.append((reader, np.unique(compact(ids))))

    def adds_bias(self, call: Call, bias: Sequence[Axis], output: Sequence[Axis]) -> None:
        """A layer adds a bias to an output, axis by axis: no number of survivors may put it along the wrong one."""
        added = AddedBias(call.path, tuple(bias), tuple(output))
        if added.misplaced():
            for channels in added.channels:
                self.freeze(channels, f"Keras adds a bias of {call.path!r} along the wrong axis, which is as long")
        self.biases.append(added)

    def keep_rectangular(self, array: Ids) -> None:
        """Marks a tensor whose channels spread over several axes: only whole slices of it can go.

        Any other set of survivors would leave holes that no shape describes. Along which axis is settled when all
        readers are known.
        """
        self._reshaped.append(array)

    def refuse(self, call: Call, reason: str, kernels: Mapping[str, int] = _NO_KERNELS) -> list[Ids]:
        """For a call that cannot be followed: all channels around it stay, and the layer's weights stay whole.

        Args:
            call: the call.
            reason: why, for the user.
            kernels: weights of the layer that multiply and accumulate, each with its positions.
        """
        for array in call.inputs:
            self.freeze(array, reason)
        self.keep_whole(call, reason)
        for attribute, positions in kernels.items():
            self.follow(call, attribute, {}, positions)
        return [self.create_frozen(call, reason, index) for index in range(len(call.output_shapes))]

    def keep_whole(self, call: Call, reason: str) -> None:
        """No call of this layer, seen already or still to come, may lose channels that its weights follow."""
        self._whole.setdefault(call.path, reason)
        self.sizes = {key: ids for key, ids in self.sizes.items() if key[0] != call.path}
        for weight in self.weights.values():
            if weight.layer == call.path:
                for ids in weight.axes.values():
                    self.freeze(ids, reason)

    def create_frozen(self, call: Call, reason: str, index: int = 0) -> Ids:
        """Ids that may not be removed, for output number `index` of a call that cannot be followed."""
        shape = call.output_shapes[index]
        count = shape[-1] if shape else 1
        kind = str(index)
        known = self.outputs.get(f"{call.path}:{kind}")
        if known is not None and len(known) != count:
            kind = f"{index}:{count}"
        created = self.create(call, count, kind)
        self.freeze(created, reason)
        return np.broadcast_to(created, shape)

    def walk_inside(self, call: Call, model: Any, arguments: list[Ids], times: int) -> list[Ids]:
        """Walks a model that the call's layer holds and runs `times` times, and returns the ids of its outputs."""
        path = self._paths.setdefault(id(model), f"{call.path}/{model.name}")
        return self._walk(functional_graph(model), arguments, f"{path}/", call.times * times)

    def inside(self, call: Call) -> list[Ids]:
        """Passes the ids through a layer that another one holds, by its own rule: see `Call.inside`."""
        return self._pass(call)

    # What the stages read.

    @property
    def aside(self) -> int:
        """How many of the model's values are notes of wrappers."""
        return sum(self._aside.values())

    def path(self, layer: Any) -> str:
        """The path of a layer that was walked."""
        return self._paths[id(layer)]

    def root(self, channel: int) -> int:
        """The id that stands for a channel and all that were unified with it."""
        return self._union.root(channel)

    def roots(self) -> Ids:
        """For every id the one that stands for it and all that were unified with it, shape (number of ids,)."""
        return self._union.roots()

    def frozen(self) -> dict[int, str]:
        """Roots that may not be removed, each with the reason."""
        return {CONSTANT: "no channel", **self._by_root(self._reasons)}

    def mixed(self) -> dict[int, str]:
        """Roots whose removal changes what other channels become, each with the reason."""
        return self._by_root(self._mixed)

    def _by_root(self, reasons: list[tuple[Ids, str]]) -> dict[int, str]:
        roots = self.roots()
        found: dict[int, str] = {}
        for ids, reason in reversed(reasons):  # so that the first reason stays
            found.update(dict.fromkeys(np.unique(roots[ids]).tolist(), reason))
        return found

    # The walk.

    def _walk(self, graph: Any, arguments: list[Ids] | None, prefix: str, times: int) -> list[Ids]:
        """Walks one graph, nested ones inside it, and returns the ids of its outputs."""
        ids: dict[int, Ids] = {}
        given = dict(zip((id(tensor) for tensor in graph.inputs), arguments or [], strict=arguments is not None))
        for node in nodes(graph):
            operation = node.operation
            path = self._paths.setdefault(id(operation), prefix + operation.name)
            inputs = [ids[id(tensor)] for tensor in node.input_tensors]
            call = Call(operation, path, inputs, self._shapes(node, inputs), node, times=times)
            if isinstance(operation, keras.Layer):
                self.layers[path] = operation
            if is_nested(operation):
                found = self._walk(functional_graph(operation), inputs, f"{path}/", times)
            elif arguments is not None and id(node.output_tensors[0]) in given:
                found = [self._argument(path, given[id(node.output_tensors[0])])]
            else:
                found = self._pass(call)
                if not node.input_tensors:
                    self._given += np.unique(compact(found[0])).tolist()
            for tensor, array in zip(node.output_tensors, found, strict=True):
                ids[id(tensor)] = _stored(array)
            call.outputs.extend(ids[id(tensor)] for tensor in node.output_tensors)
            self.calls.setdefault(path, call)
        return [ids[id(tensor)] for tensor in graph.outputs]

    def _shapes(self, node: Any, inputs: list[Ids]) -> list[tuple[int, ...]]:
        """Shapes at batch 1 of what a call writes; sizes that the model leaves open are 1."""
        if not self.open_sizes and any(None in tensor.shape[1:] for tensor in node.output_tensors):
            # A nested model that leaves sizes open is called on known ones.
            known = zip(node.input_tensors, inputs, strict=True)
            specs = {id(tensor): keras.KerasTensor(array.shape, tensor.dtype) for tensor, array in known}
            args, kwargs = node.arguments.fill_in(specs)
            if specs:
                return [
                    _known_shape(t) for t in keras.tree.flatten(node.operation.compute_output_spec(*args, **kwargs))
                ]
        # A reshape may have folded positions into the batch; then what follows has as many of them.
        folded = max((array.shape[0] for array in inputs if array.ndim), default=1)
        shapes = [_known_shape(tensor) for tensor in node.output_tensors]
        return [
            (folded, *shape[1:]) if shape and tensor.shape[0] is None else shape
            for tensor, shape in zip(node.output_tensors, shapes, strict=True)
        ]

    def _argument(self, path: str, array: Ids) -> Ids:
        """What a nested model is called on; all its calls lose the same channels, because its input has one shape."""
        earlier = self.calls.get(path)
        if earlier is not None:
            self.unify(compact(earlier.outputs[0]), compact(array))
        return array

    def _pass(self, call: Call) -> list[Ids]:
        kind = type(call.operation)
        known = rule_for(kind)
        if known is None:
            return self.refuse(call, f"{kind.__name__} {call.path!r} has no channel rule")
        try:
            return known(self, call)
        except (ModelError, ValueError, TypeError, IndexError) as error:
            # What has been unified by then only keeps more channels together than it must.
            return self.refuse(
                call, f"{kind.__name__} {call.path!r} cannot be followed: {' '.join(str(error).split())}"
            )

    def _settle_shapes(self) -> None:
        roots = self.roots()
        for array in self._reshaped:
            small = compact(roots[compact(array)])
            spread = [axis for axis, size in enumerate(small.shape) if size > 1]
            # The widest axis goes on as channels: (groups, channels of each) of a shuffle, (channels, 2, 2) of pixels.
            widest = max(spread, key=lambda axis: (small.shape[axis], axis), default=0)
            for axis in spread:
                if axis != widest:
                    self.unify(small.take([0], axis), small)
                    roots = self.roots()


def _stored(array: Ids) -> Ids:
    """The array as a view of its few different entries."""
    return np.broadcast_to(np.array(compact(array)), array.shape)


def _known_shape(tensor: Any) -> tuple[int, ...]:
    return tuple(1 if size is None else int(size) for size in tensor.shape)
