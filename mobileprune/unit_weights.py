"""The weights coupled to units of channel groups in a model that trains: their norms, and making them smaller."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from mobileprune.channel_calls import attribute_at
from mobileprune.channel_groups import ChannelGraph, ChannelGroup
from mobileprune.graph import leaves
from mobileprune.pruning_wrapper import PruneLowMagnitude, wrapped_layers
from mobileprune.sparsify import strip_pruning

_TINY = float(np.finfo(np.float32).tiny)
# Says by layer and name of a weight whether it counts.
Wanted = Callable[[Any, str], bool]


@dataclasses.dataclass(frozen=True, eq=False)
class Coupled:
    """One axis of a variable along which units lie: `units` has the unit at each index, or -1."""

    variable: Any
    axis: int
    units: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Units:
    """The units of one group, and all weights of theirs that count."""

    name: str
    size: int
    coupled: tuple[Coupled, ...]

    def counts(self) -> np.ndarray:
        """How many weights each unit has, shape (units,)."""
        found = np.zeros(self.size)
        for each in self.coupled:
            slices = np.bincount(each.units + 1, minlength=self.size + 1)[1:]
            found += slices * (np.prod(each.variable.shape) / each.variable.shape[each.axis])
        return found

    def each_alone(self) -> list["Units"]:
        """Every index of every weight as a unit of its own."""
        return [
            Units(
                f"{self.name}/{each.variable.path}",
                len(each.units),
                (dataclasses.replace(each, units=np.where(each.units < 0, -1, np.arange(len(each.units)))),),
            )
            for each in self.coupled
        ]


def units_of(
    graph: ChannelGraph, group: ChannelGroup, layers: dict[str, Any], wanted: Wanted, chosen: np.ndarray | None = None
) -> Units | None:
    """A group's units with those of their weights that training moves; None when it moves none.

    Args:
        graph: the model's channel graph, or that of a model with the same layers.
        group: one of its groups.
        layers: the model's layers by path, see `live_layers`.
        wanted: which weights count, by layer and last name.
        chosen: which units count, booleans of shape (units,); all by default.
    """
    found = []
    for weight, axis, units in graph.weights_of(group):
        layer = layers[weight.layer]
        variable = attribute_at(layer, weight.attribute)
        if chosen is not None:
            units = np.where((units >= 0) & chosen[units], units, -1)
        if variable.trainable and wanted(layer, weight.attribute.rpartition(".")[2]) and (units >= 0).any():
            found.append(Coupled(variable, axis, units))
    return Units(group.name, group.size, tuple(found)) if found else None


def plain_model(model: Any) -> Any:
    """A model whose channels can be followed: the model itself, or a copy without what holds its zeros."""
    return strip_pruning(model) if wrapped_layers(model) else model


def live_layers(model: Any) -> dict[str, Any]:
    """The layers that hold the weights, by the path they have in `plain_model`."""
    found = {}
    for path, layer in leaves(model):
        inner = layer.layer if isinstance(layer, PruneLowMagnitude) else layer
        found[path.removesuffix(layer.name) + inner.name] = inner
    return found


class Press:
    """Makes units smaller, those of several groups at once: a weight may belong to units of two.

    Everything is computed where the variables are, in one call.
    """

    def __init__(self, groups: Sequence[Units]) -> None:
        self.groups = tuple(groups)
        self._roots = [np.sqrt(units.counts()).astype(np.float32) for units in self.groups]
        self._factors: list[Any] = []
        # For each variable the axes along which it is multiplied, each with its group.
        self._axes: dict[int, tuple[Any, list[tuple[int, Coupled]]]] = {}
        for number, units in enumerate(self.groups):
            for each in units.coupled:
                self._axes.setdefault(id(each.variable), (each.variable, []))[1].append((number, each))
        self._shrink, self._scale = tf.function(self._shrunk), tf.function(self._multiply)

    def norms(self) -> dict[str, np.ndarray]:
        """The norm of all weights of each unit, by group; shape (units,)."""
        return {units.name: np.asarray(self._norms(units)) for units in self.groups}

    def shrink(self, amount: float) -> None:
        """Group soft-thresholding: multiplies each unit by max(0, 1 - amount × √(its weights) / its norm)."""
        self._factors = self._shrink(tf.constant(amount, tf.float32))

    def scale(self, factor: float) -> None:
        """Multiplies each unit by a factor."""
        self._scale([tf.constant(factor, tf.float32, (units.size,)) for units in self.groups])

    def zero_again(self) -> None:
        """Makes the units zero that the last `shrink` made zero."""
        if self._factors:
            self._scale([tf.cast(factors > 0, tf.float32) for factors in self._factors])

    def _norms(self, units: Units) -> Any:
        total = tf.zeros(units.size)
        for each in units.coupled:
            squares = tf.square(tf.cast(tf.convert_to_tensor(each.variable.value), tf.float32))
            others = [axis for axis in range(len(squares.shape)) if axis != each.axis]
            along = tf.reduce_sum(squares, axis=others)
            total += tf.math.unsorted_segment_sum(along, tf.constant(each.units), units.size)  # drops those of unit -1
        return tf.sqrt(total)

    def _shrunk(self, amount: Any) -> list[Any]:
        factors = [
            tf.maximum(1 - amount * roots / tf.maximum(self._norms(units), _TINY), 0)
            for units, roots in zip(self.groups, self._roots, strict=True)
        ]
        self._multiply(factors)
        return factors

    def _multiply(self, factors: list[Any]) -> None:
        for variable, axes in self._axes.values():
            values = tf.cast(tf.convert_to_tensor(variable.value), tf.float32)
            for number, each in axes:
                along = tf.gather(factors[number], tf.constant(np.maximum(each.units, 0)))
                along = tf.where(tf.constant(each.units >= 0), along, 1.0)
                along = tf.reshape(along, [-1 if axis == each.axis else 1 for axis in range(len(values.shape))])
                values = tf.where(along > 0, values * along, 0.0)  # a product with zero may be a negative zero
            variable.value.assign(tf.cast(values, variable.dtype))
