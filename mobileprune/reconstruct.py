"""Keeps accuracy without labels: what removed channels contributed is fitted into the weights that survive.

What a channel gave on average moves into the next bias; what it shared with the survivors moves into their weights by
least squares on calibration activations (He et al. 2017, "Channel Pruning for Accelerating Very Deep Neural Networks",
arXiv:1707.06168; Luo et al. 2017, "ThiNet", arXiv:1707.06342). Both are done layer after layer on the already smaller
network, so that each also corrects what the layers before it could not.
"""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import keras
import numpy as np

from mobileprune.channel_calls import Weight, places
from mobileprune.channel_ids import ChannelIds
from mobileprune.graph import functional_graph, is_nested, nodes
from mobileprune.linear import LinearMap, linear_maps
from mobileprune.moments import Moments, measure
from mobileprune.playback import Step, play

Weights = Mapping[tuple[str, str], Weight]
COMPENSATIONS = ("none", "mean", "least_squares")
# Pulls the fit towards the weights as they are, as a share of the mean variance of what is read.
_RIDGE = 1e-3
# Kernels whose outputs are the layer's own: queries, keys and values are not.
LAST_KERNELS = ("kernel", "pointwise_kernel", "output_dense")


def reconstruct(
    original: Any, smaller: Any, before: ChannelIds, after: Weights, images: Any, how: str, also: Collection[str] = ()
) -> list[str]:
    """Changes the weights of `smaller` so that its layers give what those of `original` give.

    Every layer that lost channels which it read is fitted once, in the order of the graph, a shared one on its first
    call. What it gives before its activation is compared.

    Args:
        original: the model before surgery; not changed.
        smaller: the model after it, with the weights that survived.
        before: the original's ids.
        after: the smaller model's weights that follow channels, with the survivors' ids.
        images: calibration images, (images, …), or a list of arrays, one for each input.
        how: `"mean"` moves means into biases; `"least_squares"` fits weights and biases.
        also: paths of layers that are fitted although they lost no channels: what they read is not what it was.

    Returns:
        Paths of the layers that lost channels which they read and whose kind cannot be fitted.

    Raises:
        DatasetError: the images do not fit the model.
    """
    changed, unfitted = _changed(before, after, also)
    sinks = bias_sinks(smaller)
    originals = Originals(play(original, images), set(changed))
    fitted: set[str] = set()
    for step in play(smaller, images):
        if step.path not in changed or step.path in fitted:
            continue
        fitted.add(step.path)
        old_layer, old_node, old_inputs = originals.call(step.path)
        maps = zip(linear_maps(step.operation, step.node), linear_maps(old_layer, old_node), strict=True)
        for map, old in maps:
            sums = measure(map, step.inputs(), old, old_inputs, _surviving_outputs(before, after, step.path, old))
            # Surgery has made the queries of narrower heads smaller: that is what they should go on giving.
            sums = sums.scaled(after[step.path, map.kernel].factor)
            _fit(map, sums, how, sinks.get(step.path) if map.kernel.startswith(LAST_KERNELS) else None)
    return unfitted


class Originals:
    """What layers of the original model are called on, in whatever order they are asked for.

    Args:
        steps: the original, played.
        wanted: paths of the layers that will be asked for, each once; what nobody asks for is held until the end.
    """

    def __init__(self, steps: Iterator[Step], wanted: set[str]) -> None:
        self._steps, self._wanted = steps, wanted
        self._found: dict[str, tuple[Any, Any, list[list[Any]]]] = {}

    def call(self, path: str) -> tuple[Any, Any, list[list[Any]]]:
        """The layer, Keras' record of its first call and the batches that it reads there."""
        while path not in self._found:
            step = next(self._steps)
            if step.path in self._wanted:
                self._wanted.remove(step.path)
                self._found[step.path] = (step.operation, step.node, step.inputs())
        return self._found.pop(path)


def _changed(before: ChannelIds, after: Weights, also: Collection[str]) -> tuple[list[str], list[str]]:
    """Layers that read fewer channels than they did: those that can be fitted, and those that cannot."""
    fitting, others = [], []
    for path, layer in before.layers.items():
        maps = linear_maps(layer, before.calls[path].node)
        # Attention that cannot be followed has no weight on record, and loses nothing.
        maps = [map for map in maps if (path, map.kernel) in before.weights]
        shapes = {map.kernel: (map.shape, after[path, map.kernel].shape) for map in maps}
        if (maps and path in also) or any(
            shapes[map.kernel][0][axis] != shapes[map.kernel][1][axis] for map in maps for axis in map.reading_axes
        ):
            fitting.append(path)
        elif not maps and _reads_less(path, before, after):
            others.append(path)
    return fitting, others


def _reads_less(path: str, before: ChannelIds, after: Weights) -> bool:
    """Whether a kernel of the layer shrank along channels that the layer does not make itself."""
    own = before.outputs.get(path, np.zeros(0, np.int64))
    for (owner, name), old in before.weights.items():
        if owner == path and old.positions and old.stored and len(old.axes) > 1:
            new = after[path, name]
            if any(
                old.shape[axis] != new.shape[axis] and not np.isin(ids, own).any() for axis, ids in old.axes.items()
            ):
                return True
    return False


def _surviving_outputs(before: ChannelIds, after: Weights, path: str, map: LinearMap) -> np.ndarray | None:
    """Indices of the outputs that are left, among those of the original; None when all are."""
    old, new = before.weights[path, map.kernel], after[path, map.kernel]
    if map.makes not in old.axes:
        return None
    return map.outputs_of(*(places(old.axes[axis], new.axes[axis]) for axis in map.making_axes))


def _fit(map: LinearMap, sums: Moments, how: str, sink: Any) -> None:
    weights, offset = map.matrix(), map.offset()
    if sink is not None and sink.moving_mean.shape != (offset.size,):
        sink = None  # what a transposed convolution gives is still to be added up
    shifts = map.bias is not None or sink is not None
    if how == "least_squares":
        xx, xy = sums.centred() if shifts else sums.raw()
        strength = _RIDGE * np.maximum(np.trace(xx, axis1=1, axis2=2) / xx.shape[1], 1e-12)
        damped = xx + strength[:, None, None] * np.eye(xx.shape[1])
        weights = weights + np.linalg.solve(damped, xy - xx @ weights)
    if shifts:
        given = np.einsum("gk,gkm->gm", sums.x, weights) / sums.count
        wanted = sums.y / sums.count - given
        if map.bias is None:
            sink.moving_mean.assign_sub((wanted - offset).ravel().astype("float32"))
        offset = wanted
    map.assign(weights, offset)


def bias_sinks(model: Any) -> dict[str, Any]:
    """For layers without an activation the batch normalisation that alone reads them: its mean can take the bias.

    Args:
        model: a built model.

    Returns:
        The batch normalisations by the paths of the layers before them.
    """
    found: dict[str, Any] = {}
    _sinks(functional_graph(model), "", found)
    return found


def _sinks(graph: Any, prefix: str, found: dict[str, Any]) -> None:
    # In all calls of both the one must feed the other and nothing else, or others would see the shift.
    makers: dict[int, Any] = {}
    reads: dict[Any, set[Any]] = {}
    read_by: dict[Any, set[Any]] = {}
    for node in nodes(graph):
        if is_nested(node.operation):
            _sinks(functional_graph(node.operation), f"{prefix}{node.operation.name}/", found)
        for tensor in node.input_tensors:
            reads.setdefault(node.operation, set()).add(makers[id(tensor)])
            read_by.setdefault(makers[id(tensor)], set()).add(node.operation)
        makers.update((id(tensor), node.operation) for tensor in node.output_tensors)
    for tensor in graph.outputs:
        read_by.setdefault(makers[id(tensor)], set()).add(None)
    for operation, readers in read_by.items():
        (norm, *others) = readers
        if others or not isinstance(norm, keras.layers.BatchNormalization) or reads[norm] != {operation}:
            continue
        if getattr(operation, "activation", None) in (None, keras.activations.linear) and _is_over_the_last_axis(norm):
            found[prefix + operation.name] = norm


def _is_over_the_last_axis(norm: Any) -> bool:
    return bool(norm.axis in (-1, len(norm.input.shape) - 1))
