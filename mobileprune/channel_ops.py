"""How channel ids pass through what owns no weights: moves of data, element-wise ops, reductions, pooling.

Each rule serves a layer and the functions of `keras.ops` that do the same. What only moves data is run on the ids: what
it does with the ids is what it does with the channels.
"""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from mobileprune.channel_calls import CONSTANT, Call, Ids, channel_axis, compact, register_channels, rule_for_ops
from mobileprune.channel_ids import ChannelIds
from mobileprune.errors import ModelError

layers = keras.layers

# Windows over space: the same channels at other positions.
_WINDOWS = (
    *(layers.AveragePooling1D, layers.AveragePooling2D, layers.MaxPooling1D, layers.MaxPooling2D),
    *(layers.GlobalAveragePooling1D, layers.GlobalAveragePooling2D),
    *(layers.GlobalMaxPooling1D, layers.GlobalMaxPooling2D),
    *(layers.AveragePooling3D, layers.MaxPooling3D, layers.GlobalAveragePooling3D, layers.GlobalMaxPooling3D),
    *(layers.ZeroPadding3D, layers.Cropping3D, layers.UpSampling3D),
    *(layers.ZeroPadding1D, layers.ZeroPadding2D, layers.Cropping1D, layers.Cropping2D),
    *(layers.UpSampling1D, layers.UpSampling2D, layers.Resizing),
)
_WINDOW_OPS = (
    *("MaxPool", "AveragePool", "AdaptiveMaxPool", "AdaptiveAveragePool"),
    *("Resize", "PadImages", "CropImages"),
)
_MERGES = (layers.Add, layers.Subtract, layers.Multiply, layers.Average, layers.Maximum, layers.Minimum)
# One output value for each input value, or for the values of several tensors at one place.
_ELEMENTWISE_OPS = (
    *("Absolute", "Abs", "Fabs", "Negative", "Sign", "Square", "Sqrt", "Rsqrt", "Cbrt", "Reciprocal", "Exp", "Exp2"),
    *("Expm1", "Log", "Log10", "Log1p", "Log2", "Sin", "Cos", "Tan", "Sinh", "Cosh", "Tanh", "Arcsin", "Arccos"),
    *("Arctan", "Arcsinh", "Arccosh", "Arctanh", "Erf", "Erfc", "Erfinv", "Ceil", "Floor", "Round", "Trunc", "Clip"),
    *("NanToNum", "Isfinite", "Isinf", "Isnan", "LogicalNot", "Cast", "SaturateCast", "StopGradient", "Copy"),
    *("ConvertToTensor", "OnesLike", "ZerosLike", "Relu", "ReLU", "Relu6", "Sigmoid", "SparseSigmoid", "Softplus"),
    *("Softsign", "SoftShrink", "SparsePlus", "Silu", "Squareplus", "LogSigmoid", "LeakyRelu", "HardSigmoid"),
    *("HardSilu", "Elu", "Selu", "Gelu", "Celu", "TanhShrink", "HardTanh", "HardShrink", "Threshold", "Mish"),
    *("Add", "Subtract", "Multiply", "Divide", "TrueDivide", "DivideNoNan", "FloorDivide", "Power", "Mod", "Fmod"),
    *("Maximum", "Minimum", "Fmax", "Fmin", "Where", "Equal", "NotEqual", "Greater", "GreaterEqual", "Less"),
    *("LessEqual", "LogicalAnd", "LogicalOr", "LogicalXor", "Logaddexp", "Logaddexp2", "Arctan2", "Hypot"),
)
_REDUCTION_OPS = (
    *("Mean", "Sum", "Max", "Min", "Amax", "Amin", "Prod", "Var", "Std", "Median", "Any", "All", "Logsumexp"),
    *("CountNonzero", "Nanmean", "Nansum", "Nanmax", "Nanmin"),
)
_MOVES = (layers.Flatten, layers.Permute, layers.Concatenate, layers.RepeatVector)
_MOVE_OPS = (
    *("Transpose", "Swapaxes", "Moveaxis", "ExpandDims", "Ravel", "Rot90", "Concatenate", "Stack"),
    *("Hstack", "Vstack", "Dstack", "Append", "BroadcastTo", "Tile", "Repeat", "Flip", "Fliplr", "Flipud"),
)
# Moves that leave some of what they read behind, or put it elsewhere by index.
SELECTIONS = (*("GetItem", "Slice", "Take", "Split", "Hsplit", "Vsplit", "Dsplit", "ArraySplit", "Unstack", "Roll"),)


@register_channels(*_WINDOWS)
@rule_for_ops(*_WINDOW_OPS)
def _windows(ids: ChannelIds, call: Call) -> list[Ids]:
    array = call.inputs[0]
    for mask in call.inputs[1:]:
        ids.freeze(mask, f"{call.path!r} is masked by it")
    channels = ids.channels(array, channel_axis(call.operation, array.ndim))
    if channels is None:
        return ids.refuse(call, f"{type(call.operation).__name__} {call.path!r} moves over the axis of the channels")
    return call.spread(channels)


@register_channels(*_MERGES)
@rule_for_ops(*_ELEMENTWISE_OPS)
def _elementwise(ids: ChannelIds, call: Call) -> list[Ids]:
    """Ids that meet are unified; what has size 1 where the others have channels reaches all of them and stays."""
    if not call.inputs or _holds_arrays(call.operation):
        return ids.refuse(call, f"{call.path!r} holds an array, or reads nothing")
    rank = len(call.output_shapes[0])
    aligned = [array.reshape((1,) * (rank - array.ndim) + array.shape) for array in call.inputs]
    small = [compact(array) for array in aligned]
    meeting, shapes = [], np.broadcast_shapes(*(array.shape for array in small))
    for array, whole in zip(small, aligned, strict=True):
        if any(size > 1 and whole.shape[axis] == 1 for axis, size in enumerate(shapes)):
            ids.freeze(array, f"{call.path!r} spreads it over all channels")
        else:
            meeting.append(array)
    # Two tensors may each lack an axis of the other: then all are spread, and nobody's channels go on alone.
    found = meeting[0] if meeting else np.full((1,) * rank, CONSTANT)
    for other in meeting[1:]:
        ids.unify(found, other)
        found = np.broadcast_to(found, np.broadcast_shapes(found.shape, other.shape))
    if not meeting:
        for array in call.inputs:
            ids.freeze(array, f"{call.path!r} spreads it over all channels")
    return [np.broadcast_to(found, call.output_shapes[0])]


def _holds_arrays(operation: Any) -> bool:
    """Whether an op keeps arrays of its own, as `clip` and `repeat` do, which could not be cut with the channels."""
    entries = {"Clip": ("x_min", "x_max"), "Repeat": ("repeats",)}.get(type(operation).__name__, ())
    return any(np.ndim(getattr(operation, entry)) > 0 for entry in entries)


@rule_for_ops(*_REDUCTION_OPS)
def _reduction(ids: ChannelIds, call: Call) -> list[Ids]:
    operation, array = call.operation, call.inputs[0]
    axes = getattr(operation, "axis", None)
    axes = range(array.ndim) if axes is None else [axes] if isinstance(axes, int) else axes
    reduced = sorted(axis % array.ndim for axis in axes)
    small = compact(array)
    spread = [axis for axis, size in enumerate(small.shape) if size > 1]
    widest = max(spread, key=lambda axis: (small.shape[axis], axis), default=None)
    for axis in spread:
        # Of several axes the widest holds the channels: along the others values of one channel are merged.
        if axis != widest and (axis in reduced or widest in reduced):
            first = small.take([0], axis)
            ids.unify(first, small)
            small = first
    if any(small.shape[axis] > 1 for axis in reduced):
        ids.inexact(array, f"{type(operation).__name__} {call.path!r} reads all channels at once")
        return [np.full(shape, CONSTANT) for shape in call.output_shapes]
    kept = small if getattr(operation, "keepdims", False) else np.squeeze(small, tuple(reduced))
    return [np.broadcast_to(kept, call.output_shapes[0])]


@rule_for_ops("Softmax", "LogSoftmax", "Sparsemax", "Normalize")
def _over_an_axis(ids: ChannelIds, call: Call) -> list[Ids]:
    array = call.inputs[0]
    axes = getattr(call.operation, "axis", -1)
    axes = range(array.ndim) if axes is None else [axes] if isinstance(axes, int) else axes
    small = compact(array)
    if any(small.shape[axis] > 1 for axis in axes):
        ids.inexact(array, f"{type(call.operation).__name__} {call.path!r} reads all channels at once")
    return call.inputs


@register_channels(*_MOVES)
@rule_for_ops(*_MOVE_OPS)
def _move(ids: ChannelIds, call: Call) -> list[Ids]:
    if call.has_constants or _holds_arrays(call.operation):
        return ids.refuse(call, f"{call.path!r} joins constants to channels")
    found = _moved_ids(ids, call)
    if found is None:
        return _refused_open(ids, call)
    for array in found:
        ids.keep_rectangular(array)
    return found


@rule_for_ops("Squeeze")
def _squeeze(ids: ChannelIds, call: Call) -> list[Ids]:
    # Not run: at batch 1 it would squeeze the batch, too.
    return [call.inputs[0].reshape(call.output_shapes[0])]


@register_channels(layers.Reshape)
@rule_for_ops("Reshape", "DepthToSpace", "SpaceToDepth")
def _reshape(ids: ChannelIds, call: Call) -> list[Ids]:
    found = _move(ids, call)
    if call.path in ids.calls:
        # A shared layer has one target shape, so what it is called on must lose the same channels.
        ids.unify(ids.calls[call.path].outputs[0], found[0])
    return found


@rule_for_ops(*SELECTIONS)
def _selection(ids: ChannelIds, call: Call) -> list[Ids]:
    array = call.inputs[0]
    if len(call.inputs) > 1:
        return ids.refuse(call, f"{call.path!r} selects by computed indices")
    if type(call.operation).__name__ == "Unstack":
        small = compact(array)
        ids.unify(small.take([0], call.operation.axis), small)
    axis = getattr(call.operation, "axis", 0)
    if axis is None:
        return ids.refuse(call, f"{call.path!r} selects from all axes as if they were one")
    if isinstance(axis, list | tuple) and any(compact(array).shape[each] > 1 for each in axis):
        return ids.refuse(call, f"{call.path!r} moves channels along several axes")
    if type(call.operation).__name__ == "Take" and np.ndim(call.node.arguments.args[1]) > 1:
        return ids.refuse(call, f"{call.path!r} takes by a table of indices")
    found = _moved_ids(ids, call)
    if found is None:
        return _refused_open(ids, call)
    for part in found:
        ids.keep_rectangular(part)
        if np.unique(compact(part)).size < np.unique(compact(array)).size:
            ids.need_one(part, call.path)
    return found


@rule_for_ops("Pad")
def _pad(ids: ChannelIds, call: Call) -> list[Ids]:
    """Around space the channels stay what they are; beside channels come values that are none."""
    array = call.inputs[0]
    small = compact(array)
    widths = np.broadcast_to(np.asarray(call.operation.pad_width), (array.ndim, 2))
    beside = [pair if size > 1 else (0, 0) for pair, size in zip(widths.tolist(), small.shape, strict=True)]
    if call.operation.mode != "constant" and np.any(beside):
        return ids.refuse(call, f"{call.path!r} pads with copies of other channels")
    return [np.broadcast_to(np.pad(small, beside, constant_values=CONSTANT), call.output_shapes[0])]


def moved(call: Call, fill: Any) -> list[np.ndarray]:
    """The call run on what `fill` makes of the ids; the results at batch 1.

    Raises:
        ModelError: the result has another shape than the call's own.
    """
    try:
        found = [np.asarray(keras.ops.convert_to_numpy(tensor)) for tensor in call.run(fill)]
    except tf.errors.OpError as error:
        raise ModelError(f"{call.path!r} cannot be run on ids: {error.message}") from error
    for array, tensor in zip(found, call.node.output_tensors, strict=True):
        known = tuple(tensor.shape)
        fits = array.ndim == len(known) and all(
            size in (None, got) for size, got in zip(known[1:], array.shape[1:], strict=True)
        )
        if not fits:
            raise ModelError(f"{call.path!r} gives shape {array.shape} where its model says {known}.")
    return found


def _moved_ids(ids: ChannelIds, call: Call) -> list[Ids] | None:
    """The call run on the ids; None where it needs sizes that the model leaves open."""
    in_numpy = _IN_NUMPY.get(type(call.operation))
    try:
        found = [in_numpy(call)] if in_numpy else moved(call, _ids_tensor)
    except (ModelError, ValueError):
        if not ids.open_sizes:
            raise
        return None  # the sizes that stand for open ones do not suit it
    return None if ids.open_sizes and any(array.size == 0 for array in found) else found


def _reshaped(call: Call) -> Ids:
    array = call.inputs[0]
    return array.reshape(array.shape[0], *call.operation.target_shape)


def _concatenated(call: Call) -> Ids:
    """Along the other axes most ids are alike: there one of them is joined for all."""
    along = call.operation.axis % call.inputs[0].ndim
    alike = [
        axis != along and not any(array.strides[axis] for array in call.inputs)
        for axis in range(len(call.output_shapes[0]))
    ]
    once = tuple(slice(1) if same else slice(None) for same in alike)
    return np.broadcast_to(np.concatenate([array[once] for array in call.inputs], along), call.output_shapes[0])


# Moves that occur in every block of common networks, without the detour through tensors.
_IN_NUMPY = {layers.Reshape: _reshaped, layers.Concatenate: _concatenated}


def _refused_open(ids: ChannelIds, call: Call) -> list[Ids]:
    return ids.refuse(call, f"{call.path!r} needs sizes that the model leaves open: build it with fixed ones")


def _ids_tensor(ids: Ids) -> Any:
    return keras.ops.convert_to_tensor(np.array(ids), "int64")
