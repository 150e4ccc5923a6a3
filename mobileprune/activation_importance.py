"""What channels are on images: how often they are zero, how large, and what those who read them would lose.

A channel's activation is what the layers with kernels read of it: that is after the batch normalisation and the
activation that follow the layer that creates it, wherever these stand. A group is created by several layers and read by
several, a depthwise convolution and the one behind it, or all blocks along a residual stream. All tensors that are
read count, each once and all alike: a unit that is idle behind the stem may be busy two blocks later.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np

from mobileprune.channel_calls import compact
from mobileprune.channel_groups import ChannelGraph, ChannelGroup
from mobileprune.elimination import reading_maps
from mobileprune.linear import linear_maps
from mobileprune.playback import Step, play


@dataclasses.dataclass(frozen=True, eq=False)
class Activity:
    """What a group's units are on images.

    Attributes:
        zeros: share of each unit's activations that are exactly zero, shape (units,).
        mean: each unit's mean absolute activation, shape (units,).
    """

    zeros: np.ndarray
    mean: np.ndarray


def channel_activity(
    graph: ChannelGraph, groups: Sequence[ChannelGroup], model: Any, images: Any
) -> dict[str, Activity]:
    """How often each unit is zero and how large it is, over all images, positions and tensors that are read.

    Args:
        graph: the model's channel graph.
        groups: the groups to look at.
        model: the model; not changed.
        images: calibration images, (images, …), or a list of arrays, one for each input.

    Returns:
        By group name; none for a group that no layer with a kernel reads. What layers read inside themselves, as
        attention its heads, counts where the layer can be written as a matrix (see `mobileprune.linear`).

    Raises:
        DatasetError: the images do not fit the model.

    Example:
        >>> channel_activity(graph, graph.groups, model, images)["stem"].zeros.argmax()         # doctest: +SKIP
        17
    """
    roots = graph.ids.roots()
    # By root: tensors that hold it, and sums over them of the two averages.
    counts, zeros, sizes = np.zeros((3, len(roots)))
    seen: set[int] = set()
    for step in play(model, images):
        for ids, batches in _reads(graph, step, roots, seen):
            found = np.array([_averages(batch, ids) for batch in batches])
            average = np.average(found, axis=0, weights=[len(batch) for batch in batches])
            # Behind a flatten each position of a channel is an entry of its own.
            often = np.bincount(ids.ravel(), minlength=len(roots))
            for total, values in zip((zeros, sizes), average, strict=True):
                total += np.bincount(ids.ravel(), values.ravel(), len(roots)) / np.maximum(often, 1)
            counts += often > 0
    return {
        group.name: Activity(zeros[group.roots] / counts[group.roots], sizes[group.roots] / counts[group.roots])
        for group in groups
        if counts[group.roots].all()
    }


def reconstruction_errors(
    graph: ChannelGraph, groups: Sequence[ChannelGroup], model: Any, images: Any
) -> dict[str, np.ndarray]:
    """What the outputs of all readers lose when one unit alone goes and nothing makes up for it.

    With X what a layer reads and W its weights, the mean squared change of its outputs is that of X_u W_u, the columns
    and rows of the unit: the trace of W_u' E[X_u' X_u] W_u. Each reader's is a share of the variance of its outputs,
    and a unit that several layers read costs what it costs all of them.

    Args:
        graph, groups, model, images: see `channel_activity`.

    Returns:
        By group name shape (units,); none for a group that no layer reads which can be written as a matrix.

    Raises:
        DatasetError: the images do not fit the model.
    """
    roots = graph.ids.roots()
    found: dict[str, np.ndarray] = {}
    for map, sums, ids in reading_maps(graph, groups, model, images):
        products, _ = sums.raw()
        weights = map.matrix()
        products = (products * (weights @ weights.transpose(0, 2, 1))).sum(axis=0) / max(sums.variance(), 1e-12)
        order = np.argsort(roots[ids], kind="stable")
        own, starts = np.unique(roots[ids][order], return_index=True)
        blocks = np.add.reduceat(np.add.reduceat(products[order][:, order], starts, axis=0), starts, axis=1)
        errors = dict(zip(own.tolist(), np.maximum(np.diag(blocks), 0).tolist(), strict=True))
        for group in groups:
            if np.isin(group.roots, own).any():
                total = found.setdefault(group.name, np.zeros(group.size))
                total += [errors.get(root, 0.0) for root in group.roots.tolist()]
    return found


def _reads(
    graph: ChannelGraph, step: Step, roots: np.ndarray, seen: set[int]
) -> Iterator[tuple[np.ndarray, list[Any]]]:
    """What a call reads of channels through its kernels: roots at the tensor's places (batch 1), and its batches."""
    weights = [
        weight
        for (path, _), weight in graph.ids.weights.items()
        if path == step.path and weight.positions and weight.stored
    ]
    if not weights:
        return
    read = {int(root) for weight in weights for ids in weight.axes.values() for root in roots[ids]}
    given: set[int] = set()
    for place, (tensor, ids) in enumerate(zip(step.node.input_tensors, graph.ids.calls[step.path].inputs, strict=True)):
        # A layer that is called again reads the same channels, maybe at more positions.
        ids = compact(roots[compact(ids)])
        own = set(np.unique(ids).tolist())
        given |= own
        fits = ids.ndim == len(tensor.shape) and ids.shape[0] == 1
        if id(tensor) not in seen and fits and own & read:
            seen.add(id(tensor))
            yield ids, step.inputs()[place]
    for map in linear_maps(step.operation, step.node) if isinstance(step.operation, keras.Layer) else ():
        axes = graph.ids.weights[step.path, map.kernel].axes
        for axis in (axis for axis in map.reading_axes if axis in axes):
            if not given & set(roots[axes[axis]].tolist()):
                ids = roots[map.by_column(axes[axis], axis)].reshape(1, 1, -1)
                inputs = step.inputs()
                yield ids, [map.rows([tensor[index] for tensor in inputs]) for index in range(len(inputs[0]))]


def _averages(batch: Any, ids: np.ndarray) -> list[np.ndarray]:
    """Share of zeros and mean absolute value at each place of `ids`, over all along which these are constant."""
    ops = keras.ops
    others = tuple(axis for axis, size in enumerate(ids.shape) if size == 1)
    values = ops.cast(batch, "float32")
    parts = (ops.cast(ops.equal(values, 0), "float32"), ops.abs(values))
    return [np.asarray(ops.mean(part, axis=others, keepdims=True), np.float64) for part in parts]
