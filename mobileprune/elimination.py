"""Backward elimination: which channels go when the survivors' weights are fitted anew afterwards.

The cheapest channel to lose is the one that the others can stand in for. With H the inverse covariance of what a layer
reads and W its weights, dropping channel j and re-fitting the rest costs ||W_j||² / H_jj; it is dropped, H and W are
brought up to date by a step of rank one, and so on (Hassibi & Stork 1992, "Optimal Brain Surgeon"; whole channels as in
Meng et al. 2024, "OSSCAR", arXiv:2403.12983). A group that several layers read costs what it costs all of them.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np

from mobileprune.channel_groups import ChannelGraph, ChannelGroup
from mobileprune.errors import PlanError
from mobileprune.linear import LinearMap, linear_maps
from mobileprune.moments import Moments, measure
from mobileprune.playback import play
from mobileprune.ranking import Ranking

# Added to the covariance's diagonal, as a share of its mean.
_DAMPING = 1e-2
# Wide groups lose several channels at a time, in so many steps: a tenth of the time, and the same channels nearly.
_STEPS = 64
_ROUNDING = 1e-6
# In the place of a column's unit once it is dropped; columns of other groups have -1.
_DROPPED = -2


@dataclasses.dataclass
class Reader:
    """A layer that reads channels, as elimination sees it.

    Attributes:
        inverse: inverse covariance of what it reads, shape (groups, columns, columns).
        weights: its matrix, shape (groups, columns, outputs), scaled so that squared errors of all readers have one
            unit: shares of the variance of their outputs.
        ids: the channel id of each column, shape (columns,).
    """

    inverse: np.ndarray
    weights: np.ndarray
    ids: np.ndarray


def backward_elimination(
    graph: ChannelGraph, groups: Sequence[ChannelGroup], model: Any, images: Any
) -> dict[str, Ranking]:
    """The order in which each group's units go, and what each costs its readers, by group name.

    Args:
        graph: the model's channel graph.
        groups: the groups to rank.
        model: the model; not changed.
        images: calibration images, (images, …), or a list of arrays, one for each input.

    Returns:
        Rankings in one unit, shares of the variance of what the readers give; none for a group that no layer reads
        whose weights can be fitted.

    Raises:
        DatasetError: the images do not fit the model.

    Example:
        >>> backward_elimination(graph, graph.groups, model, images)["stem"].order[:3]          # doctest: +SKIP
        array([4, 17, 2])
    """
    roots = graph.ids.roots()
    reading = [_reader(*read) for read in reading_maps(graph, groups, model, images)]
    found = {group.name: _eliminate(roots, group, reading) for group in groups}
    return {name: ranking for name, ranking in found.items() if ranking is not None}


def reading_maps(
    graph: ChannelGraph, groups: Sequence[ChannelGroup], model: Any, images: Any
) -> Iterator[tuple[LinearMap, Moments, np.ndarray]]:
    """Every linear map that reads one of the groups: the map, the moments of what it reads and makes, its columns' ids.

    A layer that is called several times is looked at on its first call; one that reads channels along two axes of its
    kernel, as the output of attention does with heads and their width, comes once for each.

    Args:
        graph, groups, model, images: see `backward_elimination`.
    """
    roots = graph.ids.roots()
    wanted = np.zeros(len(roots), bool)
    for group in groups:
        wanted[group.roots] = True
    seen: set[str] = set()
    for step in play(model, images):
        if step.path in seen or not isinstance(step.operation, keras.Layer):
            continue
        seen.add(step.path)
        for map in linear_maps(step.operation, step.node):
            # Attention that cannot be followed has no weight on record.
            weight = graph.ids.weights.get((step.path, map.kernel))
            axes = {} if weight is None else weight.axes
            read = [axis for axis in map.reading_axes if axis in axes and wanted[roots[axes[axis]]].any()]
            if read:
                inputs = step.inputs()
                sums = measure(map, inputs, map, inputs)
                for axis in read:
                    yield map, sums, map.by_column(axes[axis], axis)


def _reader(map: LinearMap, sums: Moments, ids: np.ndarray) -> Reader:
    xx, _ = sums.centred()
    columns = xx.shape[1]
    # Where the images hardly differ, rounding is all that is left of the covariance.
    least = _ROUNDING * np.trace(sums.raw()[0], axis1=1, axis2=2) / columns
    damping = np.maximum(_DAMPING * np.trace(xx, axis1=1, axis2=2) / columns, np.maximum(least, 1e-12))
    inverse = np.linalg.inv(xx + damping[:, None, None] * np.eye(columns))
    scale = 1 / np.sqrt(max(sums.variance(), 1e-12))
    return Reader(inverse.astype(np.float32), (map.matrix() * scale).astype(np.float32), ids)


def _eliminate(roots: np.ndarray, group: ChannelGroup, reading: list[Reader]) -> Ranking | None:
    unit = np.full(len(roots), -1)
    unit[group.roots] = np.arange(group.size)
    states = []
    for reader in reading:
        units = unit[roots[reader.ids]]
        if (units >= 0).any():
            states.append(_State(reader.inverse, reader.weights, units, group.size))
    if not states:
        return None
    at_once = max(1, group.size // _STEPS)
    order: list[int] = []
    losses: list[float] = []
    left = np.ones(group.size, bool)
    while left.any():
        costs = np.sum([state.costs() for state in states], axis=0)
        if not np.isfinite(costs[left]).all():
            raise PlanError(f"What reads {group.name!r} has weights or activations that are not finite.")
        candidates = np.flatnonzero(left)
        going = candidates[np.argsort(costs[left], kind="stable")[:at_once]]
        spent = sum(state.remove(going) for state in states)
        order.extend(going.tolist())
        # Together they cost more than each alone: what they cost is shared out as they would have cost alone.
        alone = np.maximum(costs[going], 1e-30)
        losses.extend((spent * alone / alone.sum()).tolist())
        left[going] = False
    return Ranking(np.array(order), np.array(losses), absolute=True)


class _State:
    """One reader while units are dropped."""

    def __init__(self, inverse: np.ndarray, weights: np.ndarray, units: np.ndarray, count: int) -> None:
        self.inverse, self.weights, self.units, self.count = inverse.copy(), weights.copy(), units, count

    def costs(self) -> np.ndarray:
        """What dropping each unit alone would cost, shape (units,)."""
        found = np.zeros(self.count)
        inside = self.units >= 0
        counts = np.bincount(self.units[inside], minlength=self.count)
        widths = np.unique(counts[counts > 0])
        for width in widths:
            members = np.flatnonzero(counts == width)
            position = np.full(self.count, -1)
            position[members] = np.arange(len(members))
            places = np.flatnonzero(inside & np.isin(self.units, members))
            places = places[np.argsort(position[self.units[places]], kind="stable")]
            columns = places.reshape(len(members), width)
            block = self.inverse[:, columns[:, :, None], columns[:, None, :]]
            rows = self.weights[:, columns]
            if width == 1:
                cost = (rows[:, :, 0] ** 2).sum(-1) / np.maximum(block[:, :, 0, 0], 1e-30)
            else:
                cost = np.einsum("gukn,gukn->gu", rows, np.linalg.solve(block, rows))
            found[members] = cost.sum(0)
        return found

    def remove(self, units: np.ndarray) -> float:
        """Drops units, fits the rest anew and returns what that cost."""
        gone = np.isin(self.units, units)
        if not gone.any():
            return 0.0
        block = self.inverse[:, gone][:, :, gone]
        rows = self.weights[:, gone]
        solved = np.linalg.solve(block, np.concatenate([rows, self.inverse[:, gone]], axis=2))
        fitted, carried = solved[:, :, : rows.shape[2]], solved[:, :, rows.shape[2] :]
        across = self.inverse[:, :, gone]
        cost = float((rows * fitted).sum())
        self.weights -= across @ fitted
        self.inverse -= across @ carried
        # Rows of dropped columns are zero now; cutting them out each time would cost more than all the rest.
        self.units[gone] = _DROPPED
        dropped = self.units == _DROPPED
        if dropped.sum() * 8 >= len(dropped):
            keep = ~dropped
            self.weights = self.weights[:, keep]
            self.inverse = self.inverse[:, keep][:, :, keep]
            self.units = self.units[keep]
        return cost
