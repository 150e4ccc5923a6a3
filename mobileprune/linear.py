"""The linear maps inside layers: which rows of activations multiply which matrix of weights.

A convolution reads patches, a dense layer its last axis, attention what its heads have mixed. Written as matrices all
of them are one thing, Y = X W + b for each group of a grouped convolution, and can be fitted anew by least squares.
"""

import dataclasses
import math
from collections.abc import Callable
from operator import attrgetter
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from mobileprune.graph import is_channels_last

layers = keras.layers
ops = keras.ops

_CONVOLUTIONS = (layers.Conv1D, layers.Conv2D, layers.Conv3D)
_RECURRENT = (layers.LSTM, layers.GRU, layers.SimpleRNN)
_TRANSPOSED = (layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose)
_SEPARABLE = (layers.SeparableConv1D, layers.SeparableConv2D)


@dataclasses.dataclass(frozen=True)
class LinearMap:
    """One linear map of a layer.

    Attributes:
        layer: the Keras layer.
        kernel: the attribute that holds its weights, dotted for inner layers.
        bias: the attribute that holds its bias; None if it has none.
        rows: makes of the tensors that the layer is called on the rows that the weights multiply, shape
            (rows, groups, columns).
        reads: the kernel's axis along which it reads channels.
        makes: the kernel's axis along which it makes them.
        groups: into how many equal parts inputs and outputs fall; 1 but for grouped convolutions.
        order: the kernel's axes in the order (columns …, outputs …).
        columns_end: how many of the axes in `order` make up the columns.
        width: of a kernel of attention the axis of the width of its heads, which it reads or makes besides; else None.
    """

    layer: Any
    kernel: str
    bias: str | None
    rows: Callable[[list[Any]], Any]
    reads: int
    makes: int
    groups: int
    order: tuple[int, ...]
    columns_end: int
    width: int | None = None

    @property
    def reading_axes(self) -> tuple[int, ...]:
        """The kernel's axes along which it reads channels."""
        return (self.reads,) if self.width is None or self.width in self.making_axes else (self.reads, self.width)

    @property
    def making_axes(self) -> tuple[int, ...]:
        """The kernel's axes along which it makes them."""
        outputs = self.order[self.columns_end :]
        return (self.makes,) if self.width is None or self.width not in outputs else (self.makes, self.width)

    @property
    def shape(self) -> tuple[int, ...]:
        """The kernel's shape."""
        return tuple(attrgetter(self.kernel)(self.layer).shape)

    def matrix(self) -> np.ndarray:
        """The weights, shape (groups, columns, outputs of a group)."""
        return self.to_matrix(np.asarray(attrgetter(self.kernel)(self.layer), np.float64))

    def offset(self) -> np.ndarray:
        """The bias, shape (groups, outputs of a group); zeros without one."""
        outputs = math.prod(self.shape[axis] for axis in self.order[self.columns_end :])
        if self.bias is None:
            return np.zeros((self.groups, outputs // self.groups))
        return np.asarray(attrgetter(self.bias)(self.layer), np.float64).reshape(self.groups, -1)

    def assign(self, matrix: np.ndarray, offset: np.ndarray) -> None:
        """Writes weights, and the bias if the layer has one, back into it."""
        attrgetter(self.kernel)(self.layer).assign(self.to_kernel(matrix).astype("float32"))
        if self.bias is not None:
            bias = attrgetter(self.bias)(self.layer)
            bias.assign(offset.reshape(tuple(bias.shape)).astype("float32"))

    def to_matrix(self, values: np.ndarray) -> np.ndarray:
        """One value for each weight, from the kernel's shape to the matrix' (groups, columns, outputs of a group)."""
        ordered = values.transpose(self.order)
        columns = math.prod(ordered.shape[: self.columns_end])
        return np.moveaxis(ordered.reshape(columns, self.groups, -1), 1, 0)

    def to_kernel(self, matrix: np.ndarray) -> np.ndarray:
        """The inverse of `to_matrix`."""
        shape = [self.shape[axis] for axis in self.order]
        return np.moveaxis(matrix, 0, 1).reshape(shape).transpose(np.argsort(self.order))

    def by_column(self, values: np.ndarray, axis: int | None = None) -> np.ndarray:
        """What is given for each entry of a reading axis (`reads` by default), for each column of the matrix."""
        along = self._along(values, self.reads if axis is None else axis)
        return np.asarray(self.to_matrix(along)[0, :, 0])

    def outputs_of(self, made: np.ndarray, width: np.ndarray | None = None) -> np.ndarray:
        """The matrix' outputs, counted through all groups, that belong to entries `made` of the making axis.

        With `width` only those of them that belong to these entries of the axis `width`.
        """
        axes = self.order[self.columns_end :]
        shape = [self.shape[axis] for axis in axes]
        grid = np.arange(math.prod(shape)).reshape(shape).take(made, axes.index(self.makes))
        if width is not None and self.width is not None:
            grid = grid.take(width, axes.index(self.width))
        return grid.ravel()

    def apply(self, inputs: list[Any]) -> Any:
        """Y = X W + b before any activation, shape (rows, groups, outputs of a group)."""
        weights = ops.convert_to_tensor(self.matrix().astype("float32"))
        made = ops.einsum("ngk,gkm->ngm", ops.cast(self.rows(inputs), "float32"), weights)
        return made + ops.convert_to_tensor(self.offset().astype("float32"))

    def _along(self, values: np.ndarray, axis: int) -> np.ndarray:
        along = [-1 if other == axis else 1 for other in range(len(self.shape))]
        return np.broadcast_to(values.reshape(along), self.shape)


def linear_maps(layer: Any, node: Any) -> list[LinearMap]:
    """The linear maps through which a layer reads channels; empty where there are none that can be fitted.

    Args:
        layer: a Keras layer.
        node: Keras' record of one of its calls, which says what attention takes for query, value and key.
    """
    kind = type(layer)
    if getattr(layer, "padding", "") == "causal":
        return []
    if hasattr(layer, "data_format") and not is_channels_last(layer):
        return [_read_last(map) for map in _convolutions(layer)]
    if maps := _convolutions(layer):
        return maps
    if kind is layers.Dense and layer.quantization_mode is None and not getattr(layer, "lora_enabled", False):
        return [_map(layer, "kernel", lambda inputs: _flat(inputs[0]), 0, 1)]
    if kind is layers.MultiHeadAttention:
        return _attention(layer, node)
    if kind in _RECURRENT:
        return _recurrent(layer, layer, node, "cell")
    if kind is layers.Bidirectional and all(type(one) in _RECURRENT for one in _directions(layer)):
        places = ("forward_layer.cell", "backward_layer.cell")
        return [m for one, at in zip(_directions(layer), places, strict=True) for m in _recurrent(layer, one, node, at)]
    if kind is layers.TimeDistributed and not isinstance(layer.layer, keras.Model):
        return [_over_time(map, layer) for map in linear_maps(layer.layer, node)]
    return []


def _convolutions(layer: Any) -> list[LinearMap]:
    """The map of a convolution on tensors whose channels come last."""
    kind = type(layer)
    dilated = len(getattr(layer, "kernel_size", ())) == 3 and any(rate > 1 for rate in layer.dilation_rate)
    if kind in _CONVOLUTIONS and layer.groups < layer.filters and not dilated:
        return [_map(layer, "kernel", lambda inputs: _patches(layer, inputs[0]), -2, -1, layer.groups)]
    if kind in _TRANSPOSED:
        # Overlaps are added later: what each input position gives is linear in what it reads.
        return [_map(layer, "kernel", lambda inputs: _flat(inputs[0]), -1, -2, bias=False)]
    if kind in _SEPARABLE:
        return [_map(layer, "pointwise_kernel", lambda inputs: _flat(_depthwise(layer, inputs[0])), -2, -1)]
    return []


def _read_last(map: LinearMap) -> LinearMap:
    """The map on tensors whose channels come first."""
    return dataclasses.replace(map, rows=lambda inputs: map.rows([ops.moveaxis(inputs[0], 1, -1)]))


def _map(
    layer: Any, kernel: str, rows: Any, reads: int, makes: int, groups: int = 1, bias: bool | None = None
) -> LinearMap:
    rank = len(attrgetter(kernel)(layer).shape)
    reads, makes = reads % rank, makes % rank
    owner, _, _ = kernel.rpartition(".")
    name = f"{owner}.bias" if owner else "bias"
    has_bias = getattr(attrgetter(owner)(layer) if owner else layer, "bias", None) is not None if bias is None else bias
    if isinstance(layer, _TRANSPOSED):
        order, columns_end = (reads, *(axis for axis in range(rank) if axis != reads)), 1
    elif kernel == "output_dense.kernel":
        order, columns_end = tuple(range(rank)), 2
    else:
        order, columns_end = tuple(range(rank)), reads + 1
    width = None
    if isinstance(layer, layers.MultiHeadAttention):
        width = 1 if kernel == "output_dense.kernel" else 2
    return LinearMap(layer, kernel, name if has_bias else None, rows, reads, makes, groups, order, columns_end, width)


def _directions(layer: Any) -> tuple[Any, Any]:
    return layer.forward_layer, layer.backward_layer


def _over_time(map: LinearMap, layer: Any) -> LinearMap:
    """The map of a layer inside a `TimeDistributed`, which reads every time step as an image."""

    def rows(inputs: list[Any]) -> Any:
        return map.rows([ops.reshape(inputs[0], (-1, *inputs[0].shape[2:]))])

    bias = None if map.bias is None else f"layer.{map.bias}"
    return dataclasses.replace(map, layer=layer, kernel=f"layer.{map.kernel}", bias=bias, rows=rows)


def _recurrent(layer: Any, direction: Any, node: Any, cell: str) -> list[LinearMap]:
    """What the gates read of the sequence, and what they read of the step before where that can be told.

    Args:
        layer: the layer that is called.
        direction: itself, or the layer inside it that goes one way.
        node: Keras' record of the call.
        cell: the attribute of `layer` that holds the cell.
    """
    # The bias belongs to both sums: the first has it. Two of them, as `reset_after` has, are left as they are.
    one_bias = direction.cell.bias is not None and len(direction.cell.bias.shape) == 1
    maps = [_map(layer, f"{cell}.kernel", lambda inputs: _flat(inputs[0]), 0, 1, bias=one_bias)]
    resets_first = isinstance(direction, layers.GRU) and not direction.cell.reset_after
    if len(node.input_tensors) > 1 or direction.stateful or resets_first:
        return maps
    before = _map(
        layer, f"{cell}.recurrent_kernel", lambda inputs: _flat(_states(direction, inputs[0])), 0, 1, bias=False
    )
    return [*maps, before]


def _states_of(layer: Any) -> Any:
    return lambda inputs: _flat(_states(layer, inputs[0]))


def _states(layer: Any, tensor: Any) -> Any:
    """The state that each step of a recurrent layer begins with, shape (batch, steps, units)."""
    config = {**layer.get_config(), "return_sequences": True, "return_state": False, "dropout": 0.0}
    twin = type(layer).from_config(config)
    twin.build(tensor.shape)
    for new, old in zip(twin.weights, layer.weights, strict=True):
        new.assign(old)
    after = twin(tensor)
    return ops.concatenate([ops.zeros_like(after[:, :1]), after[:, :-1]], axis=1)


def _attention(layer: Any, node: Any) -> list[LinearMap]:
    """Queries, keys and values, and what mixes the heads at the end; none for attention that is masked or gated."""
    names = ("query", "value", "key")
    given = {**dict(zip(names, node.arguments.args, strict=False)), **node.arguments.kwargs}
    tensors = {name: given[name] for name in names if given.get(name) is not None}
    others = {name: value for name, value in given.items() if name not in (*names, "return_attention_scores")}
    masked = any(isinstance(value, keras.KerasTensor) for value in others.values())
    # An embedding's mask travels with its tensors.
    masked = masked or any(getattr(tensor, "_keras_mask", None) is not None for tensor in tensors.values())
    if masked or layer.get_config().get("use_gate"):
        return []
    order = [id(tensor) for tensor in node.input_tensors]
    place = {name: order.index(id(tensor)) for name, tensor in tensors.items()}
    place.setdefault("key", place["value"])

    def heads(inputs: list[Any]) -> Any:
        return _flat(_without_output(layer, [inputs[place[name]] for name in names], others))

    def reader(name: str) -> Any:
        return lambda inputs: _flat(inputs[place[name]])

    return [
        *(_map(layer, f"{name}_dense.kernel", reader(name), 0, 1) for name in ("query", "key", "value")),
        _map(layer, "output_dense.kernel", heads, 0, 2),
    ]


def _without_output(layer: Any, inputs: list[Any], arguments: dict[str, Any]) -> Any:
    """What the heads give before the last dense layer mixes them, shape (batch, positions, heads times width)."""
    heads, width, _ = layer.output_dense.kernel.shape
    config = {**layer.get_config(), "output_shape": heads * width, "use_bias": layer.query_dense.bias is not None}
    plain = layers.MultiHeadAttention.from_config(config)
    plain.build(*(tensor.shape for tensor in inputs))
    for name in ("query_dense", "key_dense", "value_dense"):
        for new, old in zip(getattr(plain, name).weights, getattr(layer, name).weights, strict=True):
            new.assign(old)
    plain.output_dense.kernel.assign(np.eye(heads * width).reshape(heads, width, -1))
    if plain.output_dense.bias is not None:
        plain.output_dense.bias.assign(np.zeros(heads * width))
    query, value, key = inputs
    return plain(query, value, key, **arguments)


def _flat(tensor: Any) -> Any:
    return ops.reshape(tensor, (-1, 1, tensor.shape[-1]))


def _depthwise(layer: Any, tensor: Any) -> Any:
    return ops.depthwise_conv(
        tensor,
        layer.depthwise_kernel,
        strides=layer.strides,
        padding=layer.padding,
        dilation_rate=layer.dilation_rate,
        data_format="channels_last",
    )


def _patches(layer: Any, tensor: Any) -> Any:
    """What each output position reads, shape (rows, groups, columns), in the order of the kernel's entries."""
    channels = int(tensor.shape[-1])
    size, strides, dilation = layer.kernel_size, layer.strides, layer.dilation_rate
    if len(size) == 1:
        tensor = ops.expand_dims(tensor, 1)
        size, strides, dilation = (1, *size), (1, *strides), (1, *dilation)
    if all(taps == 1 for taps in size):
        found = tensor[(slice(None), *(slice(None, None, step) for step in strides))]
    elif len(size) == 3:
        each = ([1, *values, 1] for values in (size, strides))
        found = tf.extract_volume_patches(tensor, *each, padding=layer.padding.upper())
    else:
        each = ([1, *values, 1] for values in (size, strides, dilation))
        found = tf.image.extract_patches(tensor, *each, padding=layer.padding.upper())
    taps, groups = math.prod(size), layer.groups
    found = ops.reshape(found, (-1, taps, groups, channels // groups))
    return ops.reshape(ops.transpose(found, (0, 2, 1, 3)), (-1, groups, taps * (channels // groups)))
