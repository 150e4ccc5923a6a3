"""From channel ids to groups: which channels a plan can remove, what each is worth in MACs, and why others stay."""

import dataclasses
import functools
import itertools
import math
from collections import defaultdict
from typing import Any

import numpy as np

from mobileprune import (  # noqa: F401  (registers the rules)
    attention_rules,
    channel_ops,
    channel_rules,
    einsum_rules,
    embedding_rules,
    keras_hub_rules,
    recurrent_rules,
    wrapped_rules,
)
from mobileprune.channel_calls import Ids, Weight
from mobileprune.channel_ids import ChannelIds


@dataclasses.dataclass(frozen=True)
class ChannelGroup:
    """Channels that the same layers create: one choice of how many (and which) of them to keep.

    Attributes:
        name: the first layer that creates them and names no other group; numbered when each of them does.
        labels: the same with what they are where a layer creates several kinds, `attention:heads`.
        layers: all layers that create them; each has its channel k in the same unit as the others' channel k when a
            residual add or a multiplication joins them.
        roots: the id that stands for each unit, shape (units,). A unit is kept or removed as a whole.
        frozen: why no unit may be removed, or None.
        inexact: why removing a unit changes what the others become, or None: a layer normalisation, say.
    """

    name: str
    layers: tuple[str, ...]
    roots: Ids = dataclasses.field(repr=False, compare=False)
    frozen: str | None = None
    inexact: str | None = None
    labels: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """What patterns may call the group's layers: labels, then layers."""
        return tuple(dict.fromkeys((*self.labels, *self.layers)))

    @property
    def size(self) -> int:
        """The number of units."""
        return len(self.roots)


@dataclasses.dataclass(frozen=True)
class Cost:
    """What one inference costs: multiply-accumulates, and parameters of the layers that hold channels."""

    macs: int
    params: int


class ChannelGraph:
    """The ids of a model, read as groups, with the cost of any choice of survivors.

    Example:
        >>> graph = ChannelGraph(model)                                     # doctest: +SKIP
        >>> graph.cost(graph.everything()).macs                             # doctest: +SKIP
        300774272
    """

    def __init__(self, model: Any) -> None:
        self.ids = ChannelIds(model)
        self._roots = self.ids.roots()
        self.groups = self._find_groups()
        # Many weights follow the same ids: kernels, scales and means of one convolution and its batch norm.
        distinct: dict[bytes, int] = {}
        self._vectors: list[np.ndarray] = []
        self._axes: list[tuple[Weight, dict[int, int]]] = []
        # MACs and parameters for each combination of survivors, by the vectors that count them.
        self._each: dict[tuple[int, ...], Cost] = defaultdict(lambda: Cost(0, 0))
        for weight in self.ids.weights.values():
            followed = {}
            for axis, ids in weight.axes.items():
                roots = self._roots[ids]
                followed[axis] = distinct.setdefault(roots.tobytes(), len(self._vectors))
                if followed[axis] == len(self._vectors):
                    self._vectors.append(roots)
            fixed = math.prod(size for axis, size in enumerate(weight.shape) if axis not in followed)
            self._axes.append((weight, followed))
            known = self._each[vectors := tuple(sorted(followed.values()))]
            params = known.params + fixed * weight.stored
            self._each[vectors] = Cost(known.macs + fixed * weight.positions, params)
        # Parameters of weights that follow no channel never change.
        counted = sum(math.prod(weight.shape) for weight in self.ids.weights.values() if weight.stored)
        self._fixed_params = int(model.count_params()) - self.ids.aside - counted

    def everything(self) -> np.ndarray:
        """The choice that keeps every channel: booleans by id, shape (ids,)."""
        return np.ones(len(self._roots), bool)

    def without(self, removed_roots: Ids) -> np.ndarray:
        """The choice that removes the units with these roots: booleans by id, shape (ids,)."""
        gone = np.zeros(len(self._roots), bool)
        gone[removed_roots] = True
        alive: np.ndarray = ~gone[self._roots]
        return alive

    def cost(self, alive: np.ndarray) -> Cost:
        """MACs and parameters when only the channels in `alive` (booleans by id) are left."""
        macs, params = 0, self._fixed_params
        counts = [int(np.count_nonzero(alive[roots])) for roots in self._vectors]
        for vectors, each in self._each.items():
            times = math.prod(counts[vector] for vector in vectors)
            macs += times * each.macs
            params += times * each.params
        return Cost(macs, params)

    def weights_of(self, group: ChannelGroup) -> list[tuple[Weight, int, np.ndarray]]:
        """Every weight axis that follows the group: (weight, axis, unit at each index or -1)."""
        return self._coupled[group.name]

    @functools.cached_property
    def _coupled(self) -> dict[str, list[tuple[Weight, int, np.ndarray]]]:
        group_of, unit = np.full(len(self._roots), -1), np.full(len(self._roots), -1)
        for index, group in enumerate(self.groups):
            group_of[group.roots] = index
            unit[group.roots] = np.arange(group.size)
        # For each vector of roots the groups in it, each with its unit at each index.
        parts = []
        for roots in self._vectors:
            members, units = group_of[roots], unit[roots]
            present = np.flatnonzero(np.bincount(members + 1, minlength=1)[1:]).tolist()
            parts.append([(index, np.where(members == index, units, -1)) for index in present])
        found: list[list[tuple[Weight, int, np.ndarray]]] = [[] for _ in self.groups]
        for weight, axes in self._axes:
            for axis, vector in axes.items() if weight.stored else ():
                for index, units in parts[vector]:
                    found[index].append((weight, axis, units))
        return {group.name: entries for group, entries in zip(self.groups, found, strict=True)}

    def _find_groups(self) -> list[ChannelGroup]:
        # Roots that the same layers create are a family: each label splits off those that it creates, too.
        family = np.zeros(len(self._roots), np.int64)
        makers: list[tuple[str, ...]] = [()]
        for label, created in self.ids.outputs.items():
            roots = np.unique(self._roots[created])
            before, place = np.unique(family[roots], return_inverse=True)
            family[roots] = len(makers) + place
            makers += [(*makers[number], label) for number in before]
        frozen, mixed = self.ids.frozen(), self.ids.mixed()
        # What may not go is a group of its own beside what may.
        members: dict[tuple[int, str | None], list[int]] = defaultdict(list)
        made = np.flatnonzero(family)
        for root, number in zip(made.tolist(), family[made].tolist(), strict=True):
            members[number, frozen.get(root)].append(root)
        groups: list[ChannelGroup] = []
        for (number, reason), own in members.items():
            inexact = next((mixed[root] for root in own if root in mixed), None)
            labels = makers[number]
            layers = tuple(dict.fromkeys(label.partition(":")[0] for label in labels))
            name = _unique_name(labels, groups)
            groups.append(ChannelGroup(name, layers, np.array(own), reason, inexact, labels))
        return groups


def channel_groups(model: Any) -> list[ChannelGroup]:
    """The channel groups of a built Sequential or functional model, in the order of the graph. Read-only.

    Example:
        >>> [group.name for group in channel_groups(model) if group.frozen is None]     # doctest: +SKIP
        ['stem', 'block_1_expand', …]
    """
    return ChannelGraph(model).groups


def _unique_name(labels: tuple[str, ...], groups: list[ChannelGroup]) -> str:
    taken = {group.name for group in groups}
    numbered = (f"{labels[0]}#{number}" for number in itertools.count(2))
    return next(name for name in itertools.chain(labels, numbered) if name not in taken)
