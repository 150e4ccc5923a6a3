"""Keeps accuracy without labels: what removed channels contributed is fitted into the weights that survive.

What a channel gave on average moves into the next bias; what it shared with the survivors moves into their weights by
least squares on calibration activations (He et al. 2017, "Channel Pruning for Accelerating Very Deep Neural Networks",
arXiv:1707.06168; Luo et al. 2017, "ThiNet", arXiv:1707.06342). Both are done layer after layer on the already smaller
network, so that each also corrects what the layers before it could not.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import keras
import numpy as np

from mobileprune.channel_ids import ChannelIds, places
from mobileprune.graph import functional_graph, is_nested, nodes
from mobileprune.linear import LinearMap, linear_maps
from mobileprune.moments import Moments, measure
from mobileprune.playback import Step, play

COMPENSATIONS = ("none", "mean", "least_squares")
# Pulls the fit towards the weights as they are, as a share of the mean variance of what is read.
RIDGE = 1e-3


def reconstruct(
    original: Any, smaller: Any, before: ChannelIds, after: ChannelIds, images: Any, how: str, settings: Any = None
) -> dict[str, str]:
    """Changes the weights of `smaller` so that its layers give what those of `original` give.

    Args:
        original: the model before surgery; not changed.
        smaller: the model after it, with the weights that survived.
        before: the original's ids.
        after: the smaller model's ids, which are survivors of the original's.
        images: calibration images, (images, …), or a list of arrays, one for each input.
        how: `"mean"` moves means into biases; `"least_squares"` fits weights and biases.

    Returns:
        Layers that lost inputs and could not be fitted, by path, each with the reason.
    """
    settings = settings or {}
    sinks = _bias_sinks(smaller)
    originals = _Originals(play(original, images))
    skipped: dict[str, str] = {}
    done: set[str] = set()
    for step in play(smaller, images):
        layer = step.operation
        if not isinstance(layer, keras.Layer) or step.path in done:
            continue
        maps = linear_maps(layer)
        if not maps:
            continue
        done.add(step.path)
        old_inputs = originals.inputs(step.path)
        old_maps = {map.kernel: map for map in linear_maps(before.layers[step.path])}
        for map in maps:
            lost = _lost_inputs(before, after, step.path, map)
            if not lost and not settings.get("all"):
                continue
            if map.reads is None and not settings.get("depthwise"):
                continue
            outputs = _surviving_outputs(before, after, step.path, map)
            sums = measure(map, step.inputs, old_maps[map.kernel], old_inputs, outputs)
            _fit(map, sums, how, sinks.get(step.path), settings)
    return skipped


class _Originals:
    """What the layers of the original model are called on, in whatever order they are asked for."""

    def __init__(self, steps: Iterator[Step]) -> None:
        self._steps, self._kept, self._seen = steps, {}, set()

    def inputs(self, path: str) -> list[list[Any]]:
        while path not in self._kept:
            step = next(self._steps)
            if step.path not in self._seen and isinstance(step.operation, keras.Layer) and linear_maps(step.operation):
                self._seen.add(step.path)
                self._kept[step.path] = step.inputs
        return self._kept.pop(path)


def _lost_inputs(before: ChannelIds, after: ChannelIds, path: str, map: LinearMap) -> bool:
    old, new = before.weights[path, map.kernel], after.weights[path, map.kernel]
    if map.reads is None:
        return False
    axis = map.reads % len(old.shape)
    return old.shape[axis] != new.shape[axis]


def _surviving_outputs(before: ChannelIds, after: ChannelIds, path: str, map: LinearMap) -> np.ndarray | None:
    """Indices of the outputs that are left, among those of the original; None when the kernel says nothing of them."""
    old, new = before.weights[path, map.kernel], after.weights[path, map.kernel]
    axis = len(old.shape) - (2 if map.reads is None else 1)
    if axis not in old.axes:
        return None
    chosen = places(old.axes[axis], new.axes[axis])
    each = old.shape[-1] if map.reads is None else 1
    return (chosen[:, None] * each + np.arange(each)).ravel()


def _fit(map: LinearMap, sums: Moments, how: str, sink: Any, settings: Mapping[str, Any]) -> None:
    weights, offset = map.matrix(), map.offset()
    if how == "least_squares":
        xx, xy, _ = sums.centred()
        strength = settings.get("ridge", RIDGE) * np.maximum(np.trace(xx, axis1=1, axis2=2) / xx.shape[1], 1e-12)
        damped = xx + strength[:, None, None] * np.eye(xx.shape[1])
        weights = weights + np.linalg.solve(damped, xy - xx @ weights)
    mean_x, mean_y = sums.x / sums.count, sums.y / sums.count
    wanted = mean_y - np.einsum("gk,gkm->gm", mean_x, weights)
    if map.bias is None and sink is not None:
        sink.moving_mean.assign_sub((wanted - offset).ravel().astype("float32"))
    map.assign(weights, wanted)


def _bias_sinks(model: Any) -> dict[str, Any]:
    """For layers without a bias the batch normalisation that alone reads them: its mean can take the bias."""
    found: dict[str, Any] = {}
    _sinks(functional_graph(model), "", found)
    return found


def _sinks(graph: Any, prefix: str, found: dict[str, Any]) -> None:
    readers: dict[int, list[Any]] = {}
    for node in nodes(graph):
        if is_nested(node.operation):
            _sinks(functional_graph(node.operation), f"{prefix}{node.operation.name}/", found)
        for tensor in node.input_tensors:
            readers.setdefault(id(tensor), []).append(node.operation)
    for tensor in graph.outputs:
        readers.setdefault(id(tensor), []).append(None)
    for node in nodes(graph):
        reading = [reader for tensor in node.output_tensors for reader in readers.get(id(tensor), [])]
        if len(reading) == 1 and isinstance(reading[0], keras.layers.BatchNormalization):
            found[prefix + node.operation.name] = reading[0]
