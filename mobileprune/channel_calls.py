"""What channel rules are made of: calls in the graph, weights that follow channels, and the register of the rules."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from mobileprune.errors import ModelError

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
    """

    operation: Any
    path: str
    inputs: list[Ids]
    output_shapes: list[tuple[int, ...]]
    node: Any = dataclasses.field(repr=False)
    outputs: list[Ids] = dataclasses.field(default_factory=list)

    @property
    def positions(self) -> int:
        """How many positions the first output has: all its axes but the last."""
        return math.prod(self.output_shapes[0][:-1])

    def spread(self, ids: Ids, output: int = 0) -> list[Ids]:
        """`ids`, one for each channel, as the ids of the output: the same at every position."""
        return [np.broadcast_to(ids, self.output_shapes[output])]

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
    """

    layer: str
    attribute: str
    shape: tuple[int, ...]
    axes: dict[int, Ids]
    positions: int = 0
    stored: bool = True


# Receives the `ChannelIds` of the walk and the call, and returns the ids of each output.
Rule = Callable[[Any, Call], list[Ids]]
RULES: dict[type, Rule] = {}
# Functions of `keras.ops` appear in a graph as objects of classes that Keras does not publish: known by their names.
OP_RULES: dict[str, Rule] = {}


def register_channels(*kinds: type) -> Callable[[Rule], Rule]:
    """Registers how channels pass through calls of the given layer classes (of them exactly, not their subclasses).

    The decorated function receives the `ChannelIds` and the `Call`, says which of the layer's weights follow which
    channels, and returns the ids of each output. What it may use: `ids.channels`, `ids.create`, `ids.follow`,
    `ids.resize`, `ids.unify`, `ids.freeze`, `ids.inexact`, and all of `Call`.

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
