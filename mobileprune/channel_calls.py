"""What channel rules are made of: calls in the graph, weights that follow channels, and the register of the rules."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from mobileprune.errors import ModelError
from mobileprune.graph import is_channels_last

Ids = np.ndarray
# The id of whatever is no channel: zeros that pad, results of reductions over channels. It is never removed.
CONSTANT = 0


@dataclasses.dataclass(frozen=True)
class Call:
    """One call of a layer or op in the graph: what a rule reads.

    Attributes:
        operation: the Keras layer or op.
        path: its name; inside nested models `outer/inner`.
        inputs: ids of each tensor that it reads, each of the tensor's own shape at batch 1.
        output_shapes: shape of each tensor that it writes, at batch 1; unknown sizes are 1.
        node: Keras' record of the call, with its arguments.
        outputs: ids of each tensor that it writes; empty while the rule runs.
        inside: where the layer stands inside the one that owns its weights, as a prefix of attributes: `layer.` in
            a wrapper; empty for a layer that is called itself.
        settings: the same as a prefix of configuration entries, `layer.config.`.
        times: how often the layer is run in this call, once for each time step of a `TimeDistributed`.
    """

    operation: Any
    path: str
    inputs: list[Ids]
    output_shapes: list[tuple[int, ...]]
    node: Any = dataclasses.field(repr=False)
    outputs: list[Ids] = dataclasses.field(default_factory=list)
    inside: str = ""
    settings: str = ""
    times: int = 1

    @property
    def positions(self) -> int:
        """How many positions the first output has: all its axes but the one of the channels."""
        shape = self.output_shapes[0]
        return math.prod(shape) // max(1, shape[channel_axis(self.operation, len(shape))])

    def spread(self, ids: Ids, output: int = 0) -> list[Ids]:
        """`ids`, one for each channel, as the ids of the output: the same at every position."""
        shape = self.output_shapes[output]
        axis = channel_axis(self.operation, len(shape))
        return [np.broadcast_to(ids.reshape([-1 if at == axis else 1 for at in range(len(shape))]), shape)]

    def within(
        self,
        layer: Any,
        place: str,
        inputs: list[Ids],
        output_shapes: list[tuple[int, ...]],
        setting: str = "",
        times: int = 1,
        node: Any = None,
    ) -> "Call":
        """The call of a layer that this call's layer holds.

        Args:
            layer: the inner layer.
            place: the attribute that holds it.
            inputs: ids of each tensor that the inner layer reads.
            output_shapes: shape of each tensor that it writes.
            setting: the configuration entry that it is saved as, if that is not called like the attribute.
            times: how often it runs in this call.
            node: Keras' record of the outer call, where the inner layer gets the very same arguments.
        """
        inside, settings = f"{self.inside}{place}.", f"{self.settings}{setting or place}.config."
        node = node or _InnerNode(inputs, output_shapes)
        return Call(layer, self.path, inputs, output_shapes, node, [], inside, settings, self.times * times)

    @property
    def has_constants(self) -> bool:
        """Whether it reads values that are neither tensors of the graph nor whole numbers."""
        given = keras.tree.flatten((self.node.arguments.args, self.node.arguments.kwargs))
        return any(not isinstance(value, keras.KerasTensor | int | slice | str | None) for value in given)

    def run(self, fill: Callable[[Ids], Any]) -> list[Any]:
        """The operation run on `fill(ids)` in the place of each tensor that it reads."""
        arrays = iter(self.inputs)
        known = {id(tensor): fill(next(arrays)) for tensor in self.node.input_tensors}
        args, kwargs = self.node.arguments.fill_in(known)
        found = self.operation.call(*args, **kwargs)
        return list(keras.tree.flatten(found))


class _InnerNode:
    """What stands for Keras' record of a call, for a layer that another layer calls: there Keras keeps none."""

    def __init__(self, inputs: list[Ids], output_shapes: list[tuple[int, ...]]) -> None:
        shapes = ([array.shape for array in inputs], output_shapes)
        self.input_tensors, self.output_tensors = (
            [keras.KerasTensor((None, *shape[1:])) for shape in each] for each in shapes
        )
        self.arguments = self
        self.args: tuple[Any, ...] = tuple(self.input_tensors)
        self.kwargs: dict[str, Any] = {}

    def fill_in(self, known: dict[int, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments with `known[id(tensor)]` in the place of each tensor."""
        return tuple(known[id(tensor)] for tensor in self.args), {}


@dataclasses.dataclass
class Weight:
    """How the axes of one weight follow channel ids.

    Attributes:
        layer: the path of the layer that owns it.
        attribute: the weight's name on the layer (`kernel`, `gamma`, `query_dense.kernel`, …).
        shape: the weight's shape.
        axes: for each axis that follows channels, the id at each index.
        positions: how often the weight is applied to one input: its MACs are `positions` times its size; 0 for
            weights that do not multiply and accumulate.
        stored: False for products of two activations, which cost MACs and hold no parameters.
        rescaled: ids and a power: surgery multiplies the weight by their surviving share to that power.
        factor: what surgery has multiplied it by.
    """

    layer: str
    attribute: str
    shape: tuple[int, ...]
    axes: dict[int, Ids]
    positions: int = 0
    stored: bool = True
    rescaled: tuple[Ids, float] | None = None
    factor: float = 1.0


# Receives the `ChannelIds` of the walk and the call, and returns the ids of each output.
Rule = Callable[[Any, Call], list[Ids]]
RULES: dict[type, Rule] = {}
# Functions of `keras.ops` appear in a graph as objects of classes that Keras does not publish: known by their names.
OP_RULES: dict[str, Rule] = {}
# Layers of packages that need not be installed, by package and class.
PACKAGE_RULES: dict[tuple[str, str], Rule] = {}


def register_channels(*kinds: type) -> Callable[[Rule], Rule]:
    """Registers how channels pass through calls of the given layer classes (of them exactly, not their subclasses).

    The decorated function receives the `ChannelIds` and the `Call`, says which of the layer's weights follow which
    channels, and returns the ids of each output. What it may use: `ids.channels`, `ids.create`, `ids.follow`,
    `ids.resize`, `ids.rescale`, `ids.unify`, `ids.freeze`, `ids.inexact`, and all of `Call`.

    Example: a dense layer of one's own, whose constructor has an argument `width`.
        >>> @register_channels(MyDense)                                         # doctest: +SKIP
        ... def my_dense(ids, call):
        ...     read = ids.channels(call.inputs[0])
        ...     made = ids.create(call, call.operation.width)
        ...     ids.resize(call, "width", made)
        ...     ids.follow(call, "weight", {0: read, 1: made}, positions=call.positions)
        ...     return call.spread(made)
    """

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(kinds, function))
        return function

    return register


def rule_for_ops(*names: str) -> Callable[[Rule], Rule]:
    """The same for functions of `keras.ops` and `keras.activations`, by the names of their classes."""

    def register(function: Rule) -> Rule:
        OP_RULES.update(dict.fromkeys(names, function))
        return function

    return register


def rule_for_package(package: str, *names: str) -> Callable[[Rule], Rule]:
    """The same for layers of a package that is not imported, by the names of their classes."""

    def register(function: Rule) -> Rule:
        PACKAGE_RULES.update(dict.fromkeys(((package, name) for name in names), function))
        return function

    return register


def rule_for(kind: type) -> Rule | None:
    """The rule for calls of a layer or op of this class; None if there is none."""
    if kind.__module__.startswith(("keras.src.ops.", "keras.src.activations.")):
        return RULES.get(kind, OP_RULES.get(kind.__name__))
    return RULES.get(kind, PACKAGE_RULES.get((kind.__module__.partition(".")[0], kind.__name__)))


def channel_axis(operation: Any, rank: int) -> int:
    """The axis of the channels in a tensor of `rank` axes that a layer or op reads or writes, by its `data_format`."""
    last = not hasattr(operation, "data_format") or is_channels_last(operation)
    return rank - 1 if last else min(1, rank - 1)


def attribute_at(owner: Any, path: str) -> Any:
    """The attribute at a dotted path; whole numbers are places in a list."""
    for part in path.split("."):
        owner = owner[int(part)] if part.isdigit() else getattr(owner, part)
    return owner


def compact(ids: Ids) -> Ids:
    """The same ids with every axis along which they are constant cut to length 1."""
    ids = ids[tuple(slice(1) if stride == 0 else slice(None) for stride in ids.strides)]
    for axis, size in enumerate(ids.shape):
        if size > 1:
            first = ids[(slice(None),) * axis + (slice(1),)]
            if (ids == first).all():
                ids = first
    return ids


def places(old: np.ndarray, new: np.ndarray) -> np.ndarray:
    """For each entry of `new` the index in `old` of the same id: its n-th occurrence for the n-th occurrence.

    An id occurs more than once behind a flatten (once for each pixel) and in a depthwise multiplier.

    Raises:
        ModelError: an id of `new` does not occur, or not as often, in `old`.
    """
    often = 1 + max(int(_occurrence(old).max(initial=0)), int(_occurrence(new).max(initial=0)))
    keys, wanted = old * often + _occurrence(old), new * often + _occurrence(new)
    order = np.argsort(keys, kind="stable")
    found = np.searchsorted(keys, wanted, sorter=order)
    if found.size and (found.max() >= len(keys) or not np.array_equal(keys[order[found]], wanted)):
        raise ModelError("The smaller model has a channel that the larger one lacks.")
    return np.asarray(order[found])


def _occurrence(ids: np.ndarray) -> np.ndarray:
    """How many entries before each are the same id."""
    order = np.argsort(ids, kind="stable")
    ranked = ids[order]
    starts = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]]) if ids.size else np.zeros(0, np.int64)
    runs = np.diff(np.r_[starts, len(ids)])
    found = np.empty(len(ids), np.int64)
    found[order] = np.arange(len(ids)) - np.repeat(starts, runs)
    return found
