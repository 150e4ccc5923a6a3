"""Cross-layer equalisation: the same function, with weights that fewer bits can hold.

Where a channel only passes ops that commute with multiplication by a positive number, what makes it can be divided and
what reads it multiplied by the same factor, and no output changes. The factor is chosen so that the largest weight that
makes the channel is as large as the largest that reads it (Nagel et al., "Data-Free Quantization Through Weight
Equalization and Bias Correction", ICCV 2019, section 4.1).

Which channels are one channel is what `mobileprune.channel_ids` knows, so residual adds, concatenations, channel
shuffles and nested models need nothing of their own: channels that meet share a factor. Depthwise convolutions and
batch norms make new channels here, because their weights can take up a factor, too.
"""

import dataclasses
from typing import Any

import keras
import numpy as np

from mobileprune import channel_ops, channel_rules  # noqa: F401  (registers the rules)
from mobileprune.channel_calls import Call, Ids
from mobileprune.channel_ids import ChannelIds
from mobileprune.graph import is_channels_last, leaves
from mobileprune.sparsify import strip_pruning

layers = keras.layers

_DEPTHWISE = (layers.DepthwiseConv1D, layers.DepthwiseConv2D)
_TRANSPOSED = (layers.Conv1DTranspose, layers.Conv2DTranspose)
_SEPARABLE = (layers.SeparableConv1D, layers.SeparableConv2D)
_LINEAR = (layers.Conv1D, layers.Conv2D, layers.Dense, *_TRANSPOSED, *_SEPARABLE)
# Layers f with f(s·x) = s·f(x) for every s > 0, channel by channel.
_HOMOGENEOUS = {
    *(layers.LeakyReLU, layers.PReLU, layers.Identity, layers.InputLayer),
    *(layers.Dropout, layers.SpatialDropout1D, layers.SpatialDropout2D),
    layers.Concatenate,
    *(layers.AveragePooling1D, layers.AveragePooling2D, layers.MaxPooling1D, layers.MaxPooling2D),
    *(layers.GlobalAveragePooling1D, layers.GlobalAveragePooling2D),
    *(layers.GlobalMaxPooling1D, layers.GlobalMaxPooling2D),
    *(layers.ZeroPadding1D, layers.ZeroPadding2D, layers.Cropping1D, layers.Cropping2D),
    *(layers.UpSampling1D, layers.UpSampling2D, layers.Flatten, layers.Reshape, layers.Permute),
}
_HOMOGENEOUS_OPS = {"Relu", "LeakyRelu", "MaxPool", "AveragePool", "Concatenate", "Reshape", "Transpose"}
# The same for what joins tensors of one shape; with a number, or one channel for all, they are another function.
_MERGES = {layers.Add, layers.Subtract, layers.Average, layers.Maximum, layers.Minimum}
_MERGING_OPS = {"Add", "Subtract", "Maximum", "Minimum"}
_RELU6 = keras.activations.relu6
_ACTIVATIONS = (None, keras.activations.linear, keras.activations.relu, keras.activations.leaky_relu)

# Factors stay within this, so that float32 loses nothing to them.
_LARGEST = 2.0**10
_ROUNDS = 50


def equalize(model: Any, *, replace_relu6: bool = False) -> Any:
    """Balances the weights that make each channel with those that read it; the outputs stay what they were.

    A factor passes ReLU, leaky ReLU, pooling, padding, residual adds and concatenations. It does not pass swish,
    sigmoid and the like, multiplications, nor ReLU6, whose clip would have to move with it: channels on both sides of
    such an op stay as they are. In networks like MobileNetV2 that leaves the linear bottlenecks.

    It is made for files with one scale for a whole kernel. With one for each output channel, as `int8` has, kernels
    gain less, and what changes is mainly how much the channels of an activation differ.

    Args:
        model: a built Sequential or functional model; not changed. Sparsity wrappers come off.
        replace_relu6: puts ReLU in the place of ReLU6, so that factors pass. **The outputs then change** wherever an
            activation was above 6; measure what it costs.

    Returns:
        A new, uncompiled model of the same layers; zeros are where they were.

    Raises:
        ModelError: no graph to follow, or a layer that cannot be made anew from its `get_config()`.

    Example:
        >>> balanced = equalize(model)  # doctest: +SKIP
        >>> (variant,) = convert(balanced, ["int8"], calibration=images)  # doctest: +SKIP
    """
    made = strip_pruning(model)
    if replace_relu6:
        _without_relu6(made)
    channels = _Channels(made)
    factors = _factors(channels)
    for changes in channels.changes.values():
        for variable, ids, power in changes:
            values = np.asarray(variable)
            variable.assign((values * factors[ids] ** power).astype(values.dtype))
    return made


def _without_relu6(model: Any) -> None:
    """Replaced in place, which is safe in a model that nobody has compiled."""
    for _, layer in leaves(model):
        if isinstance(layer, layers.ReLU) and layer.max_value == 6:
            layer.max_value = None
        elif getattr(layer, "activation", None) is _RELU6:
            layer.activation = keras.activations.relu


@dataclasses.dataclass
class _Map:
    """How strongly channels make channels: a kernel, with the batch norm that follows it if one does.

    Attributes:
        sizes: magnitudes of the weights, the largest over space, of any shape.
        reads: the ids that each entry reads, of a shape that broadcasts to that of `sizes`; None for a batch norm of
            its own.
        makes: the same for the ids that it makes.
    """

    sizes: np.ndarray
    reads: Ids | None
    makes: Ids


class _Channels(ChannelIds):
    """Ids of channels that must have one factor; frozen are those that must have none.

    Attributes:
        maps: kernels and batch norms, by the path of their layer.
        changes: what takes up factors, by the path of its layer: variables, each with the ids along its axes and the
            power of their factors that it is multiplied by.
    """

    def __init__(self, model: Any) -> None:
        self.maps: dict[str, _Map] = {}
        self.changes: dict[str, list[tuple[Any, Ids, int]]] = {}
        super().__init__(model)

    def _pass(self, call: Call) -> list[Ids]:
        kind = type(call.operation)
        made = None
        if kind in _DEPTHWISE and is_channels_last(call.operation):
            made = self._depthwise(call)
        elif kind is layers.BatchNormalization:
            made = self._batch_norm(call)
        if made is None:
            made = super()._pass(call)
            if not (self._linear(call, made) if kind in _LINEAR else _is_homogeneous(call)):
                self._keep(call, made)
        if not _has_homogeneous_activation(call.operation):
            for array in made:
                self.freeze(array, "its factor would have to pass the activation")
        return made

    def _keep(self, call: Call, made: list[Ids]) -> None:
        for array in (*call.inputs, *made):
            self.freeze(array, f"{call.path!r} does not commute with factors")

    def _depthwise(self, call: Call) -> list[Ids] | None:
        layer, read = call.operation, self.channels(call.inputs[0])
        if read is None:
            return None
        made = self.create(call, len(read) * layer.depth_multiplier)
        grid = made.reshape(len(read), layer.depth_multiplier)
        self.follow(call, "kernel", {-2: read})
        self.follow(call, "bias", {0: made})
        sizes = _sizes(layer.kernel, 2)
        self.maps[call.path] = _Map(sizes, read[:, None], grid)
        self._change(call, (layer.kernel, read[:, None], 1), (layer.kernel, grid, -1), (layer.bias, made, -1))
        return call.spread(made)

    def _batch_norm(self, call: Call) -> list[Ids] | None:
        """What it reads keeps its size, so that it does while training what it did before; what it makes is free."""
        layer = call.operation
        last = layer.axis in (-1, len(call.output_shapes[0]) - 1)
        read = self.channels(call.inputs[0]) if last and len(call.inputs) == 1 else None
        if read is None or layer.gamma is None:
            return None
        self.freeze(call.inputs[0], f"{call.path!r} normalises it")
        made = self.create(call, len(read))
        self.follow(call, "gamma", {0: made})
        self.follow(call, "beta", {0: made})
        gain = np.abs(np.asarray(layer.gamma)) / np.sqrt(np.asarray(layer.moving_variance) + layer.epsilon)
        before = self._paths.get(id(call.node.input_tensors[0]._keras_history.operation), "")
        feeding = self.maps.get(before)
        if feeding is not None and feeding.makes.size == gain.size:
            self.maps[before] = _Map(
                feeding.sizes * gain.reshape(feeding.makes.shape), feeding.reads, made.reshape(feeding.makes.shape)
            )
        else:
            self.maps[call.path] = _Map(gain, None, made)
        self._change(call, (layer.gamma, made, -1), (layer.beta, made, -1))
        return call.spread(made)

    def _linear(self, call: Call, made: list[Ids]) -> bool:
        """Takes note of a kernel; False if it cannot be followed from the channels that it reads to those it makes."""
        layer, kind = call.operation, type(call.operation)
        name = "pointwise_kernel" if kind in _SEPARABLE else "kernel"
        weight = self.weights.get((call.path, name))
        rank = len(weight.shape) if weight else 0
        reads, makes = (rank - 1, rank - 2) if kind in _TRANSPOSED else (rank - 2, rank - 1)
        if weight is None or not {reads, makes} <= set(weight.axes):
            return False
        read, created = weight.axes[reads], weight.axes[makes]
        pair = (read, created[:, None]) if kind in _TRANSPOSED else (read[:, None], created)
        kernel = getattr(layer, name)
        self.maps[call.path] = _Map(_sizes(kernel, 2), *pair)
        self._change(call, (kernel, pair[0], 1), (kernel, pair[1], -1), (layer.bias, created, -1))
        return True

    def _change(self, call: Call, *changes: tuple[Any, Ids, int]) -> None:
        self.changes[call.path] = [change for change in changes if change[0] is not None]


def _sizes(kernel: Any, axes: int) -> np.ndarray:
    """The largest magnitude over all axes but the last `axes`."""
    values = np.abs(np.asarray(kernel, np.float64))
    found: np.ndarray = values.max(axis=tuple(range(values.ndim - axes)))
    return found


def _is_homogeneous(call: Call) -> bool:
    operation, kind = call.operation, type(call.operation)
    if kind is layers.ReLU:
        return operation.max_value is None and not operation.threshold
    is_op = kind.__module__.startswith("keras.src.ops.")
    if kind in _MERGES or (is_op and kind.__name__ in _MERGING_OPS):
        return len(call.inputs) > 1 and len({array.shape for array in call.inputs}) == 1
    return kind in _HOMOGENEOUS or kind is layers.Activation or (is_op and kind.__name__ in _HOMOGENEOUS_OPS)


def _has_homogeneous_activation(operation: Any) -> bool:
    return getattr(operation, "activation", None) in _ACTIVATIONS


def _factors(channels: _Channels) -> np.ndarray:
    """The number by which each channel is divided, by id; shape (ids,)."""
    roots = channels.roots()
    free = np.ones(len(roots), bool)
    free[list(channels.frozen())] = False
    logs = np.zeros(len(roots))
    for _ in range(_ROUNDS):
        made, read = np.zeros(len(roots)), np.zeros(len(roots))
        for each in channels.maps.values():
            sizes = each.sizes / np.exp(logs[roots[each.makes]])
            if each.reads is not None:
                sizes = sizes * np.exp(logs[roots[each.reads]])
                _raise_to(read, roots[each.reads], sizes)
            _raise_to(made, roots[each.makes], sizes)
        both = free & (made > 0) & (read > 0)
        # A square root for the pair of both sides; neighbours that share a kernel settle within some rounds.
        steps = np.where(both, 0.5 * np.log(np.where(both, made, 1) / np.where(both, read, 1)), 0.0)
        moved = np.clip(logs + steps, -np.log(_LARGEST), np.log(_LARGEST))
        if np.abs(moved - logs).max() < 1e-3:
            break
        logs = moved
    return np.asarray(np.exp(logs)[roots])


def _raise_to(largest: np.ndarray, ids: Ids, sizes: np.ndarray) -> None:
    """For each id the largest of its sizes, and of what it was."""
    missing = sizes.ndim - ids.ndim
    shape = (1,) * missing + ids.shape
    others = tuple(axis for axis, size in enumerate(shape) if size == 1)
    np.maximum.at(largest, ids.reshape(shape), sizes.max(axis=others, keepdims=True))
