"""How channel ids pass through each kind of layer that owns weights or reads several channels at once.

A rule reads the ids of a call's inputs, says which weights follow them, and returns the ids of its outputs. What
merely moves data needs no rule of its own: it is run on the ids (`channel_ops.py`).
"""

import math
from typing import Any

import keras
import numpy as np

from mobileprune.channel_calls import Call, Ids, channel_axis, compact, register_channels
from mobileprune.channel_ids import ChannelIds

layers = keras.layers

_CONVOLUTIONS = (layers.Conv1D, layers.Conv2D, layers.Conv3D)
_TRANSPOSED = (layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose)
_DEPTHWISE = (layers.DepthwiseConv1D, layers.DepthwiseConv2D)
_SEPARABLE = (layers.SeparableConv1D, layers.SeparableConv2D)
_POINTWISE = (
    *(layers.ReLU, layers.LeakyReLU, layers.ELU, layers.Identity, layers.ActivityRegularization),
    *(layers.GaussianNoise, layers.GaussianDropout, layers.SpatialDropout1D, layers.SpatialDropout2D),
    layers.SpatialDropout3D,
)
# Activations that read all channels at once: removing one changes the others.
_MIXING_ACTIVATIONS = {"softmax", "log_softmax", "sparsemax"}
_LIBRARIES = {"keras", "keras_hub", "tensorflow"}
# Functions of Keras, Keras Hub and TensorFlow that act on each value alone. Any other function may do anything.
_POINTWISE_ACTIVATIONS = {
    *("linear", "relu", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "swish", "mish", "sigmoid"),
    *("hard_sigmoid", "log_sigmoid", "sparse_sigmoid", "hard_silu", "hard_swish", "exponential", "threshold"),
    *("softplus", "softsign", "squareplus", "sparse_plus", "soft_shrink", "hard_shrink"),
    *("tanh", "hard_tanh", "tanh_shrink", "gelu_approximate", "quick_gelu"),
}


@register_channels(layers.InputLayer)
def _input(ids: ChannelIds, call: Call) -> list[Ids]:
    shape = call.output_shapes[0]
    created = ids.create(call, shape[-1] if shape else 1)
    ids.freeze(created, f"model input {call.path!r}")
    return call.spread(created)


@register_channels(*_CONVOLUTIONS)
def _convolution(ids: ChannelIds, call: Call) -> list[Ids]:
    layer = call.operation
    read = _read(ids, call)
    if read is None:
        return _refused(ids, call, "kernel")
    if layer.groups == len(read) > 1:
        return _depthwise_by_groups(ids, call, read)
    made = _made(ids, call, layer.filters)
    _keep_groups_alike(ids, layer.groups, read, made)
    ids.follow(call, "kernel", {-2: read[: len(read) // layer.groups], -1: made}, call.positions)
    _follow_bias(ids, call, made)
    return call.spread(made)


def _depthwise_by_groups(ids: ChannelIds, call: Call, read: Ids) -> list[Ids]:
    """A convolution with a group for each channel that it reads: channels pass, and groups go with them."""
    passed = np.repeat(read, call.operation.filters // len(read))
    freeze_if_mixing(ids, call, passed, call.operation.activation)
    ids.resize(call, "groups", read)
    ids.resize(call, "filters", passed)
    ids.follow(call, "kernel", {-1: passed}, call.positions)
    _follow_bias(ids, call, passed)
    return call.spread(passed)


@register_channels(*_TRANSPOSED)
def _transposed(ids: ChannelIds, call: Call) -> list[Ids]:
    read = _read(ids, call)
    if read is None:
        return _refused(ids, call, "kernel")
    made = _made(ids, call, call.operation.filters)
    ids.follow(call, "kernel", {-1: read, -2: made}, math.prod(call.inputs[0].shape) // len(read))
    _follow_bias(ids, call, made)
    return call.spread(made)


@register_channels(*_DEPTHWISE)
def _depthwise(ids: ChannelIds, call: Call) -> list[Ids]:
    read = _read(ids, call)
    if read is None:
        return _refused(ids, call, "kernel")
    passed = np.repeat(read, call.operation.depth_multiplier)
    freeze_if_mixing(ids, call, passed, call.operation.activation)
    ids.follow(call, "kernel", {-2: read}, call.positions)
    _follow_bias(ids, call, passed)
    return call.spread(passed)


@register_channels(*_SEPARABLE)
def _separable(ids: ChannelIds, call: Call) -> list[Ids]:
    read = _read(ids, call)
    if read is None:
        return _refused(ids, call, "depthwise_kernel", "pointwise_kernel")
    layer = call.operation
    made = _made(ids, call, layer.filters)
    passed = np.repeat(read, layer.depth_multiplier)
    ids.follow(call, "depthwise_kernel", {-2: read}, call.positions)
    ids.follow(call, "pointwise_kernel", {-2: passed, -1: made}, call.positions)
    _follow_bias(ids, call, made)
    return call.spread(made)


@register_channels(layers.Dense)
def _dense(ids: ChannelIds, call: Call) -> list[Ids]:
    layer = call.operation
    if layer.quantization_mode is not None or getattr(layer, "lora_enabled", False):
        return ids.refuse(call, f"Dense {call.path!r} is quantized or has LoRA weights", {"kernel": call.positions})
    read = ids.channels(call.inputs[0])
    if read is None:
        # It mixes positions, as in MLP-Mixer: the channels lie along another axis and pass.
        reason = f"Dense {call.path!r} makes positions, not channels"
        ids.create_frozen(call, reason)
        ids.keep_whole(call, reason)
        if not _is_known(layer.activation):
            ids.freeze(call.inputs[0], f"the activation of {call.path!r} may read all channels at once")
        ids.follow(call, "kernel", {}, call.positions)
        return _across(call)
    made = _made(ids, call, layer.units)
    ids.follow(call, "kernel", {0: read, 1: made}, call.positions)
    ids.follow(call, "bias", {0: made})
    return call.spread(made)


@register_channels(layers.BatchNormalization)
def _batch_normalization(ids: ChannelIds, call: Call) -> list[Ids]:
    for mask in call.inputs[1:]:
        # Of which positions the statistics are taken; channels are normalised one by one all the same.
        ids.freeze(mask, f"{call.path!r} is masked by it")
    channels = ids.channels(call.inputs[0], call.operation.axis)
    for attribute in ("gamma", "beta", "moving_mean", "moving_variance"):
        ids.follow(call, attribute, {0: channels})
    return call.inputs[:1]


@register_channels(layers.LayerNormalization, layers.RMSNormalization)
def _layer_normalization(ids: ChannelIds, call: Call) -> list[Ids]:
    layer, array = call.operation, call.inputs[0]
    axes = [layer.axis] if isinstance(layer.axis, int) else list(layer.axis)
    along = {place: _along(ids, array, axis) for place, axis in enumerate(axes)}
    if any(channels is not None for channels in along.values()):
        ids.inexact(array, f"{type(layer).__name__} {call.path!r} reads all channels at once")
    for attribute in ("scale",) if isinstance(layer, layers.RMSNormalization) else ("gamma", "beta"):
        ids.follow(call, attribute, along)
    return call.inputs


@register_channels(layers.UnitNormalization)
def _unit_normalization(ids: ChannelIds, call: Call) -> list[Ids]:
    ids.inexact(call.inputs[0], f"UnitNormalization {call.path!r} reads all channels at once")
    return call.inputs


@register_channels(layers.GroupNormalization)
def _group_normalization(ids: ChannelIds, call: Call) -> list[Ids]:
    layer, array = call.operation, call.inputs[0]
    channels = ids.channels(array, layer.axis)
    if channels is None:
        return ids.refuse(call, f"GroupNormalization {call.path!r} groups positions, not channels")
    if layer.groups == len(channels):  # each channel alone, also known as instance normalisation
        ids.resize(call, "groups", channels)
    else:
        _keep_groups_alike(ids, layer.groups, channels)
        ids.inexact(channels, f"GroupNormalization {call.path!r} reads several channels at once")
    for attribute in ("gamma", "beta"):
        ids.follow(call, attribute, {0: channels})
    return call.inputs


@register_channels(layers.PReLU)
def _prelu(ids: ChannelIds, call: Call) -> list[Ids]:
    array = call.inputs[0]
    slopes = call.operation.alpha.shape
    # A slope that is shared along an axis follows no channel there.
    ids.follow(call, "alpha", {axis: _along(ids, array, axis + 1) for axis, size in enumerate(slopes) if size > 1})
    return call.inputs


@register_channels(*_POINTWISE)
def _pointwise(ids: ChannelIds, call: Call) -> list[Ids]:
    return call.inputs


@register_channels(layers.Dropout)
def _dropout(ids: ChannelIds, call: Call) -> list[Ids]:
    if any((size or 1) > 1 for size in getattr(call.operation, "noise_shape", None) or ()):
        ids.freeze(call.inputs[0], f"Dropout {call.path!r} has a noise_shape of fixed size")
    return call.inputs


@register_channels(layers.Activation)
def _activation(ids: ChannelIds, call: Call) -> list[Ids]:
    freeze_if_mixing(ids, call, call.inputs[0], call.operation.activation)
    return call.inputs


@register_channels(layers.Softmax)
def _softmax(ids: ChannelIds, call: Call) -> list[Ids]:
    if len(call.inputs) > 1:
        array, mask = call.inputs
        mask = mask.reshape((1,) * (array.ndim - mask.ndim) + mask.shape)
        if any(size > 1 and mask.shape[axis] > 1 for axis, size in enumerate(compact(array).shape)):
            return ids.refuse(call, f"{call.path!r} is masked by a tensor")
        ids.freeze(mask, f"{call.path!r} is masked by it")  # at positions, the same for all channels
    axes = call.operation.axis
    axes = [axes] if isinstance(axes, int) else axes
    if any(_along(ids, call.inputs[0], axis) is not None for axis in axes):
        ids.inexact(call.inputs[0], f"softmax of {call.path!r} reads all channels at once")
    return call.inputs[:1]


@register_channels(layers.Rescaling, layers.Normalization)
def _constants(ids: ChannelIds, call: Call) -> list[Ids]:
    layer = call.operation
    if type(layer) is layers.Rescaling and np.ndim(layer.scale) == 0 and np.ndim(layer.offset) == 0:
        return call.inputs
    ids.freeze(call.inputs[0], f"{call.path!r} holds a constant for each channel")
    return call.inputs


def _layer_scale(ids: ChannelIds, call: Call) -> list[Ids]:
    channels = ids.channels(call.inputs[0])
    if channels is not None:
        ids.resize(call, "projection_dim", channels)
        ids.follow(call, "gamma", {0: channels})
    return call.inputs


def _register_convnext() -> None:
    """Keras does not publish the two layers of its ConvNeXt; models that were saved name this module."""
    from keras.src.applications import convnext

    register_channels(convnext.LayerScale)(_layer_scale)
    register_channels(convnext.StochasticDepth)(_pointwise)


_register_convnext()


def _read(ids: ChannelIds, call: Call) -> Ids | None:
    """The channels that a convolution reads, None if they do not lie along the axis of its `data_format`."""
    array = call.inputs[0]
    return ids.channels(array, channel_axis(call.operation, array.ndim))


def _follow_bias(ids: ChannelIds, call: Call, made: Ids) -> None:
    """The bias of a convolution follows its channels."""
    ids.follow(call, "bias", {0: made})
    shape = call.output_shapes[0]
    axis = channel_axis(call.operation, len(shape))
    if call.operation.use_bias and axis != len(shape) - 1:
        output = [made if place == axis else size or 1 for place, size in enumerate(shape)]
        ids.adds_bias(call, [made if place == axis else 1 for place in range(len(shape))], output)


def _made(ids: ChannelIds, call: Call, count: int) -> Ids:
    made = ids.create(call, count)
    ids.resize(call, "units" if isinstance(call.operation, layers.Dense) else "filters", made)
    freeze_if_mixing(ids, call, made, call.operation.activation)
    return made


def _along(ids: ChannelIds, array: Ids, axis: int) -> Ids | None:
    """The channels along an axis; None if it holds none, be it that another does or that all are one."""
    channels = ids.channels(array, axis)
    return None if channels is None or (len(channels) > 1 and (channels == channels[0]).all()) else channels


def _across(call: Call) -> list[Ids]:
    """The input's ids as those of an output that differs only along the last axis, which holds no channels."""
    array = call.inputs[0]
    return [np.broadcast_to(array[..., :1], call.output_shapes[0])]


def _keep_groups_alike(ids: ChannelIds, groups: int, *arrays: Ids) -> None:
    """Groups stay equally wide: position k of every group goes or stays together."""
    if groups > 1:
        for array in arrays:
            parts = array.reshape(groups, -1)
            ids.unify(parts[:1], parts)


def freeze_if_mixing(ids: ChannelIds, call: Call, array: Ids, activation: Any) -> None:
    """Says of a layer's own activation that it reads all channels at once, or may do so."""
    name = getattr(activation, "__name__", type(activation).__name__)
    home = str(getattr(activation, "__module__", "")).partition(".")[0]
    if name in _MIXING_ACTIVATIONS and home in _LIBRARIES:
        ids.inexact(array, f"{name} of {call.path!r} reads all channels at once")
    elif not _is_known(activation):
        ids.freeze(array, f"activation {name!r} of {call.path!r} may read all channels at once")


def _is_known(activation: Any) -> bool:
    """Whether an activation acts on each value alone, or mixes along the last axis only."""
    name = getattr(activation, "__name__", type(activation).__name__)
    home = str(getattr(activation, "__module__", "")).partition(".")[0]
    known = name in _POINTWISE_ACTIVATIONS | _MIXING_ACTIVATIONS and home in _LIBRARIES
    return known or type(activation) in _POINTWISE


def _refused(ids: ChannelIds, call: Call, *kernels: str) -> list[Ids]:
    layer = call.operation
    reason = f"{type(layer).__name__} {call.path!r} is used in a way that cannot be followed"
    return ids.refuse(call, reason, {kernel: _positions(call) for kernel in kernels})


def _positions(call: Call) -> int:
    """How often a kernel is applied, wherever the axis of the channels lies."""
    layer = call.operation
    if isinstance(layer, _TRANSPOSED):
        return math.prod(call.inputs[0].shape) // int(layer.kernel.shape[-1])
    made = math.prod(layer.kernel.shape[-2:]) if isinstance(layer, _DEPTHWISE) else layer.filters
    return int(math.prod(call.output_shapes[0]) // made)
