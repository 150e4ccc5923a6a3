"""How channel ids pass through each kind of layer.

A rule reads the ids of a call's inputs, says which weights follow them, and returns the ids of its outputs. Only
layers that own weights or combine channels need one; what merely moves data is run on the ids.
"""

from typing import Any

import keras
import numpy as np

from mobileprune.channel_ids import Call, ChannelIds, Ids, channel_vector, compact, rule

layers = keras.layers

_CONVOLUTIONS = (layers.Conv1D, layers.Conv2D)
_TRANSPOSED = (layers.Conv1DTranspose, layers.Conv2DTranspose)
_DEPTHWISE = (layers.DepthwiseConv1D, layers.DepthwiseConv2D)
_SEPARABLE = (layers.SeparableConv1D, layers.SeparableConv2D)
_POOLS = (
    *(layers.AveragePooling1D, layers.AveragePooling2D, layers.MaxPooling1D, layers.MaxPooling2D),
    *(layers.GlobalAveragePooling1D, layers.GlobalAveragePooling2D),
    *(layers.GlobalMaxPooling1D, layers.GlobalMaxPooling2D),
    *(layers.ZeroPadding1D, layers.ZeroPadding2D, layers.Cropping1D, layers.Cropping2D),
    *(layers.UpSampling1D, layers.UpSampling2D),
)
_POINTWISE = (
    *(layers.ReLU, layers.LeakyReLU, layers.ELU, layers.Dropout, layers.SpatialDropout1D, layers.SpatialDropout2D),
    *(layers.GaussianNoise, layers.GaussianDropout, layers.Identity),
)
_MERGES = (layers.Add, layers.Subtract, layers.Multiply, layers.Average, layers.Maximum, layers.Minimum)
_MOVERS = (layers.Reshape, layers.Flatten, layers.Permute, layers.Concatenate)
# Activations that read all channels at once: removing one changes the others.
_MIXING_ACTIVATIONS = {"softmax", "log_softmax", "sparsemax"}
_LIBRARIES = {"keras", "tensorflow"}
# Functions of Keras and TensorFlow that act on each value alone. Any other function may read all channels.
_POINTWISE_ACTIVATIONS = {
    *("linear", "relu", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "swish", "mish"),
    *(
        "sigmoid",
        "hard_sigmoid",
        "log_sigmoid",
        "sparse_sigmoid",
        "hard_silu",
        "hard_swish",
        "exponential",
        "threshold",
    ),
    *("softplus", "softsign", "squareplus", "sparse_plus", "soft_shrink", "hard_shrink"),
    *("tanh", "hard_tanh", "tanh_shrink"),
}


@rule(layers.InputLayer)
def _input(ids: ChannelIds, call: Call) -> list[Ids]:
    shape = call.output_shapes[0]
    created = ids.create(call.operation.name, shape[-1] if shape else 1)
    ids.freeze(created, "model input")
    return [np.broadcast_to(created, shape)]


@rule(*_CONVOLUTIONS)
def _convolution(ids: ChannelIds, call: Call) -> list[Ids]:
    layer = call.operation
    vector = channel_vector(call.inputs[0])
    if vector is None or not _channels_last(layer):
        return _frozen(ids, call)
    created = _created(ids, layer, layer.filters)
    if layer.groups > 1:
        # The groups stay equally wide, so position k of every group goes or stays together.
        for array in (vector, created):
            for part in np.split(array, layer.groups)[1:]:
                ids.unify(array[: len(part)], part)
    first_group = vector[: len(vector) // layer.groups]
    _follow_kernel(ids, layer, "kernel", {-2: first_group, -1: created}, call)
    ids.follow(layer, "bias", {0: created})
    return [np.broadcast_to(created, call.output_shapes[0])]


@rule(*_TRANSPOSED)
def _transposed(ids: ChannelIds, call: Call) -> list[Ids]:
    layer = call.operation
    vector = channel_vector(call.inputs[0])
    if vector is None or not _channels_last(layer):
        return _frozen(ids, call)
    created = _created(ids, layer, layer.filters)
    positions = int(np.prod(call.inputs[0].shape[:-1]))
    ids.follow(layer, "kernel", {-1: vector, -2: created}, positions)
    ids.follow(layer, "bias", {0: created})
    return [np.broadcast_to(created, call.output_shapes[0])]


@rule(*_DEPTHWISE)
def _depthwise(ids: ChannelIds, call: Call) -> list[Ids]:
    layer = call.operation
    vector = channel_vector(call.inputs[0])
    if vector is None or not _channels_last(layer):
        return _frozen(ids, call)
    _follow_kernel(ids, layer, "kernel", {-2: vector}, call)
    passed = np.repeat(vector, layer.depth_multiplier)
    ids.follow(layer, "bias", {0: passed})
    return [np.broadcast_to(passed, call.output_shapes[0])]


@rule(*_SEPARABLE)
def _separable(ids: ChannelIds, call: Call) -> list[Ids]:
    layer = call.operation
    vector = channel_vector(call.inputs[0])
    if vector is None or not _channels_last(layer):
        return _frozen(ids, call)
    created = _created(ids, layer, layer.filters)
    _follow_kernel(ids, layer, "depthwise_kernel", {-2: vector}, call)
    _follow_kernel(ids, layer, "pointwise_kernel", {-2: np.repeat(vector, layer.depth_multiplier), -1: created}, call)
    ids.follow(layer, "bias", {0: created})
    return [np.broadcast_to(created, call.output_shapes[0])]


@rule(layers.Dense)
def _dense(ids: ChannelIds, call: Call) -> list[Ids]:
    layer = call.operation
    vector = channel_vector(call.inputs[0])
    if vector is None or layer.quantization_mode is not None or getattr(layer, "lora_enabled", False):
        return _frozen(ids, call)
    created = _created(ids, layer, layer.units)
    _follow_kernel(ids, layer, "kernel", {0: vector, 1: created}, call)
    ids.follow(layer, "bias", {0: created})
    return [np.broadcast_to(created, call.output_shapes[0])]


@rule(layers.BatchNormalization)
def _batch_normalization(ids: ChannelIds, call: Call) -> list[Ids]:
    layer = call.operation
    vector = channel_vector(call.inputs[0])
    if vector is None or layer.axis not in (-1, call.inputs[0].ndim):
        return _frozen(ids, call)
    for attribute in ("gamma", "beta", "moving_mean", "moving_variance"):
        ids.follow(layer, attribute, {0: vector})
    return call.inputs


@rule(*_POINTWISE)
def _pointwise(ids: ChannelIds, call: Call) -> list[Ids]:
    return call.inputs


@rule(layers.Activation)
def _activation(ids: ChannelIds, call: Call) -> list[Ids]:
    _freeze_if_mixing(ids, call.operation, compact(call.inputs[0]))
    return call.inputs


@rule(layers.Softmax)
def _softmax(ids: ChannelIds, call: Call) -> list[Ids]:
    ids.freeze(compact(call.inputs[0]), f"softmax of {call.operation.name!r} reads all channels at once")
    return call.inputs


@rule(layers.Rescaling, layers.Normalization)
def _constants(ids: ChannelIds, call: Call) -> list[Ids]:
    layer = call.operation
    if type(layer) is layers.Rescaling and np.ndim(layer.scale) == 0 and np.ndim(layer.offset) == 0:
        return call.inputs
    ids.freeze(compact(call.inputs[0]), f"{layer.name!r} holds a constant for each channel")
    return call.inputs


@rule(*_POOLS)
def _spatial(ids: ChannelIds, call: Call) -> list[Ids]:
    vector = channel_vector(call.inputs[0])
    if vector is None or not _channels_last(call.operation):
        return _frozen(ids, call)
    return [np.broadcast_to(vector, call.output_shapes[0])]


@rule(*_MERGES)
def _merge(ids: ChannelIds, call: Call) -> list[Ids]:
    small = np.broadcast_arrays(*(compact(array) for array in _aligned(call.inputs)))
    for other in small[1:]:
        ids.unify(small[0], other)
    return [np.broadcast_to(small[0], call.output_shapes[0])]


@rule(*_MOVERS)
def _mover(ids: ChannelIds, call: Call) -> list[Ids]:
    # The op itself is the rule: what it does with the ids is what it does with the channels.
    batch = [keras.ops.convert_to_tensor(np.ascontiguousarray(array)[None], "int64") for array in call.inputs]
    moved = call.operation(batch if len(batch) > 1 else batch[0])
    array = np.asarray(keras.ops.convert_to_numpy(moved))[0]
    if array.shape != call.output_shapes[0]:
        return _frozen(ids, call)
    if isinstance(call.operation, layers.Reshape):
        _keep_rectangular(ids, array)
        if call.operation.name in ids.tensors:
            # A shared reshape has one target shape, so what it is called on must lose the same channels.
            ids.unify(ids.tensors[call.operation.name], array)
    return [array]


def _keep_rectangular(ids: ChannelIds, array: Ids) -> None:
    """When a reshape spreads channels over several axes, whole slices along the last of them go or stay.

    Any other set of survivors would leave holes that no shape describes.
    """
    small = compact(array)
    spread = [axis for axis, size in enumerate(small.shape) if size > 1]
    for axis in spread[:-1]:
        ids.unify(np.broadcast_to(small.take([0], axis), small.shape), small)


def _channels_last(layer: Any) -> bool:
    return getattr(layer, "data_format", "channels_last") == "channels_last"


def _created(ids: ChannelIds, layer: Any, count: int) -> Ids:
    created = ids.create(layer.name, count)
    _freeze_if_mixing(ids, layer, created)
    return created


def _freeze_if_mixing(ids: ChannelIds, layer: Any, array: Ids) -> None:
    activation = layer.activation
    name = getattr(activation, "__name__", type(activation).__name__)
    home = str(getattr(activation, "__module__", "")).partition(".")[0]
    if name in _MIXING_ACTIVATIONS:
        ids.freeze(array, f"{name} of {layer.name!r} reads all channels at once")
    elif type(activation) not in _POINTWISE and not (name in _POINTWISE_ACTIVATIONS and home in _LIBRARIES):
        ids.freeze(array, f"activation {name!r} of {layer.name!r} may read all channels at once")


def _follow_kernel(ids: ChannelIds, layer: Any, attribute: str, axes: dict[int, Ids], call: Call) -> None:
    # Every output position reads the whole kernel once.
    ids.follow(layer, attribute, axes, positions=int(np.prod(call.output_shapes[0][:-1])))


def _aligned(arrays: list[Ids]) -> list[Ids]:
    rank = max(array.ndim for array in arrays)
    return [array.reshape((1,) * (rank - array.ndim) + array.shape) for array in arrays]


def _frozen(ids: ChannelIds, call: Call) -> list[Ids]:
    """For a call that its rule cannot follow: all channels stay, and the layer's weights stay whole."""
    layer = call.operation
    reason = f"{type(layer).__name__} {layer.name!r} is used in a way that cannot be followed"
    for array in call.inputs:
        ids.freeze(compact(array), reason)
    ids.keep_whole(layer, reason)
    for attribute in ("kernel", "depthwise_kernel", "pointwise_kernel"):
        if getattr(layer, attribute, None) is not None:
            ids.follow(layer, attribute, {}, _positions(layer, call))
    shape = call.output_shapes[0]
    return [np.broadcast_to(ids.create_frozen(layer, 0, shape[-1], reason), shape)]


def _positions(layer: Any, call: Call) -> int:
    """How often a kernel is applied, wherever the channels' axis lies."""
    if isinstance(layer, _TRANSPOSED):
        return int(np.prod(call.inputs[0].shape)) // int(layer.kernel.shape[-1])
    if isinstance(layer, _DEPTHWISE):
        channels = int(np.prod(layer.kernel.shape[-2:]))
    else:
        channels = layer.units if isinstance(layer, layers.Dense) else layer.filters
    return int(np.prod(call.output_shapes[0])) // channels
