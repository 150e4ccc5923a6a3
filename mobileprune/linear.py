"""The linear maps inside layers: which rows of activations multiply which matrix of weights.

A convolution reads patches, a dense layer its last axis, attention what its heads have mixed. Written as matrices all
of them are one thing, Y = X W + b for each group of a grouped convolution, and can be re-fitted by least squares.
"""

import dataclasses
from collections.abc import Callable
from operator import attrgetter
from typing import Any

import keras
import numpy as np
import tensorflow as tf

layers = keras.layers
ops = keras.ops

_CONVOLUTIONS = (layers.Conv1D, layers.Conv2D)
_DEPTHWISE = (layers.DepthwiseConv1D, layers.DepthwiseConv2D)


@dataclasses.dataclass(frozen=True)
class LinearMap:
    """One linear map of a layer.

    Attributes:
        layer: the Keras layer.
        kernel: the attribute that holds its weights, dotted for inner layers.
        bias: the attribute that holds its bias; None if the layer has none.
        groups: into how many equal parts inputs and outputs fall; 1 for most layers.
        rows: of the call's inputs the rows that the weights multiply: shape (rows, groups, columns).
        reads: the kernel's axis along which it reads channels; None where channels only pass (depthwise).
    """

    layer: Any
    kernel: str
    bias: str | None
    groups: int
    rows: Callable[[list[Any]], Any]
    reads: int | None

    def matrix(self) -> np.ndarray:
        """The weights, shape (groups, columns, outputs of a group)."""
        values = np.asarray(attrgetter(self.kernel)(self.layer), np.float64)
        return np.ascontiguousarray(self._to_matrix(values))

    def offset(self) -> np.ndarray:
        """The bias, shape (groups, outputs of a group); zeros without one."""
        shape = (self.groups, self.matrix().shape[-1])
        if self.bias is None:
            return np.zeros(shape)
        return np.asarray(attrgetter(self.bias)(self.layer), np.float64).reshape(shape)

    def assign(self, matrix: np.ndarray, offset: np.ndarray | None = None) -> None:
        """Writes weights, and a bias where `offset` is given, back into the layer."""
        variable = attrgetter(self.kernel)(self.layer)
        variable.assign(self._from_matrix(matrix, tuple(variable.shape)).astype("float32"))
        if offset is not None and self.bias is not None:
            bias = attrgetter(self.bias)(self.layer)
            bias.assign(offset.reshape(tuple(bias.shape)).astype("float32"))

    def columns(self, per_channel: np.ndarray) -> np.ndarray:
        """Values given along the kernel's reading axis, shape (channels,), for each column of the matrix."""
        shape = tuple(attrgetter(self.kernel)(self.layer).shape)
        assert_reads = self.reads if self.reads is not None else 0
        along = [1] * len(shape)
        along[assert_reads % len(shape)] = -1
        spread = np.broadcast_to(per_channel.reshape(along), shape)
        return np.asarray(self._to_matrix(spread)[0, :, 0])

    def apply(self, inputs: list[Any]) -> Any:
        """Y = X W + b before any activation, shape (rows, groups, outputs of a group)."""
        rows = self.rows(inputs)
        made = ops.einsum("ngk,gkm->ngm", rows, ops.convert_to_tensor(self.matrix().astype("float32")))
        return made + ops.convert_to_tensor(self.offset().astype("float32"))

    def _to_matrix(self, values: np.ndarray) -> np.ndarray:
        if isinstance(self.layer, _DEPTHWISE):
            *taps, channels, multiplier = values.shape
            return np.moveaxis(values.reshape(-1, channels, multiplier), 1, 0)
        if self.kernel == "output_dense.kernel":
            return values.reshape(1, -1, values.shape[-1])
        if self.kernel.endswith("_dense.kernel"):
            return values.reshape(1, values.shape[0], -1)
        columns = values.reshape(-1, self.groups, values.shape[-1] // self.groups)
        return np.moveaxis(columns, 1, 0)

    def _from_matrix(self, matrix: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        return np.moveaxis(matrix, 0, 1).reshape(shape) if matrix.shape[0] > 1 else matrix[0].reshape(shape)


def linear_maps(layer: Any) -> list[LinearMap]:
    """The linear maps of a layer that can be re-fitted; empty for all other layers."""
    kind = type(layer)
    if getattr(layer, "data_format", "channels_last") != "channels_last" or getattr(layer, "padding", "") == "causal":
        return []
    if kind in _CONVOLUTIONS:
        bias = "bias" if layer.use_bias else None
        return [LinearMap(layer, "kernel", bias, layer.groups, lambda inputs: _patches(layer, inputs[0]), -2)]
    if kind in _DEPTHWISE:
        bias = "bias" if layer.use_bias else None
        channels = int(layer.kernel.shape[-2])
        return [LinearMap(layer, "kernel", bias, channels, lambda inputs: _patches(layer, inputs[0]), None)]
    if kind is layers.Dense and layer.quantization_mode is None and not getattr(layer, "lora_enabled", False):
        bias = "bias" if layer.use_bias else None
        return [LinearMap(layer, "kernel", bias, 1, lambda inputs: _flat(inputs[0]), 0)]
    return []


def _flat(tensor: Any) -> Any:
    return ops.reshape(tensor, (-1, 1, tensor.shape[-1]))


def _patches(layer: Any, tensor: Any) -> Any:
    """What each output position reads, shape (rows, groups, columns), in the order of the kernel's entries."""
    channels = int(tensor.shape[-1])
    groups = channels if isinstance(layer, _DEPTHWISE) else layer.groups
    size, strides, dilation = layer.kernel_size, layer.strides, layer.dilation_rate
    if len(size) == 1:
        tensor = ops.expand_dims(tensor, 1)
        size, strides, dilation = (1, *size), (1, *strides), (1, *dilation)
    if size == (1, 1):
        found = tensor[:, :: strides[0], :: strides[1]]
    else:
        each = ([1, *values, 1] for values in (size, strides, dilation))
        found = tf.image.extract_patches(tensor, *each, padding=layer.padding.upper())
    taps = size[0] * size[1]
    found = ops.reshape(found, (-1, taps, groups, channels // groups))
    return ops.reshape(ops.transpose(found, (0, 2, 1, 3)), (-1, groups, taps * (channels // groups)))
