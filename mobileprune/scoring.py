"""What an importance may look at: weights, gradients and activations, each computed once for all groups."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from mobileprune.activation_importance import Activity, channel_activity, reconstruction_errors
from mobileprune.channel_calls import Weight, attribute_at
from mobileprune.channel_groups import ChannelGraph, ChannelGroup
from mobileprune.gradients import loss_gradients, squared_gradients
from mobileprune.graph import read_only

# What is added or measured rather than multiplied: its size says nothing about the channel.
ADDED = ("bias", "beta", "moving_mean", "moving_variance")
STATISTICS = ("moving_mean", "moving_variance")


@dataclasses.dataclass(frozen=True, eq=False)
class Scoring:
    """What an importance may look at.

    Attributes:
        model: the model.
        graph: its channel graph.
        calibration: images, or (images, labels), for what looks at images; for gradients batches of either, too.
        seed: for `random`.
    """

    model: Any
    graph: ChannelGraph
    calibration: Any = None
    seed: int = 0
    _sums: dict[tuple[str, str, str], dict[int, np.ndarray]] = dataclasses.field(default_factory=dict, init=False)

    def values(self, layer: str, attribute: str) -> np.ndarray:
        """A weight, by the layer's name in the graph and the attribute's, which may be dotted."""
        return np.asarray(attribute_at(self.graph.ids.layers[layer], attribute))

    def owner(self, weight: Weight) -> str:
        """The class of the layer that holds a weight, be it inside another one."""
        layer = self.graph.ids.layers[weight.layer]
        place = weight.attribute.rpartition(".")[0]
        return type(attribute_at(layer, place) if place else layer).__name__

    def coupled(self, group: ChannelGroup, but: Sequence[str] = ADDED) -> list[tuple[Weight, int, np.ndarray]]:
        """The weights whose axis follows the group, without those whose last name is in `but`."""
        return [entry for entry in self.graph.weights_of(group) if last_name(entry[0]) not in but]

    def sums(self, weight: Weight, measure: np.ufunc) -> dict[int, np.ndarray]:
        """`measure` of a weight's entries, summed over all axes but one: by that axis, for each that follows channels.

        They are kept, because several groups read one weight.
        """
        key = (weight.layer, weight.attribute, measure.__name__)
        if key not in self._sums:
            values = read_only(attribute_at(self.graph.ids.layers[weight.layer], weight.attribute))
            with np.errstate(over="ignore", invalid="ignore"):  # `score` refuses what is not finite
                sizes = measure(values)
                self._sums[key] = {axis: along(sizes, axis) for axis in weight.axes}
        return self._sums[key]

    @property
    def images(self) -> Any:
        """The calibration images without their labels."""
        return self.calibration[0] if isinstance(self.calibration, tuple) else self.calibration

    @functools.cached_property
    def gradients(self) -> dict[tuple[str, str], np.ndarray]:
        """The loss's gradient by (layer, attribute), computed once for all groups: see `loss_gradients`."""
        wanted = self._trained()
        return dict(zip(wanted, loss_gradients(self.model, list(wanted.values()), self.calibration), strict=True))

    @functools.cached_property
    def fisher(self) -> dict[tuple[str, str], np.ndarray]:
        """The diagonal of the empirical Fisher matrix by (layer, attribute): see `squared_gradients`."""
        wanted = self._trained()
        return dict(zip(wanted, squared_gradients(self.model, list(wanted.values()), self.calibration), strict=True))

    @functools.cached_property
    def activity(self) -> dict[str, Activity]:
        """How active the units of each group are: see `channel_activity`."""
        return channel_activity(self.graph, self.graph.groups, self.model, self.images)

    @functools.cached_property
    def reconstruction(self) -> dict[str, np.ndarray]:
        """What each unit alone gives its readers, by group: see `reconstruction_errors`."""
        return reconstruction_errors(self.graph, self.graph.groups, self.model, self.images)

    def _trained(self) -> dict[tuple[str, str], Any]:
        """Every weight that follows channels and has a gradient."""
        weights = [weight for weight in self.graph.ids.weights.values() if last_name(weight) not in STATISTICS]
        return {
            (weight.layer, weight.attribute): attribute_at(self.graph.ids.layers[weight.layer], weight.attribute)
            for weight in weights
            if weight.stored
        }


def last_name(weight: Weight) -> str:
    """A weight's name without those of the inner layers that own it."""
    return weight.attribute.rpartition(".")[2]


def along(values: np.ndarray, axis: int) -> np.ndarray:
    """The sum over all axes but one."""
    others = tuple(other for other in range(values.ndim) if other != axis)
    return np.asarray(values.sum(axis=others, dtype=np.float64))


def per_unit(along: np.ndarray, units: np.ndarray, group: ChannelGroup) -> np.ndarray:
    """One value for each index of an axis, summed by the unit at that index; shape (units,)."""
    return np.bincount(units + 1, weights=along, minlength=group.size + 1)[1:]
