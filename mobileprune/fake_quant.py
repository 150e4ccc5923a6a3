"""Layers that compute in float what an int8 file will compute: values rounded to 256 steps, gradients passed through.

Weights of convolutions have a range for each output channel, those of dense layers one range, all symmetric around zero
and without the step -128, so that a zero stays a zero. Activations have one range for each tensor. Both as in Jacob et
al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", CVPR 2018
(arXiv:1712.05877); batch normalisation is folded into the weights with its moving statistics, which stay as they are
(section 3.2.2 of Krishnamoorthi, arXiv:1806.08342, from its first step on).
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from mobileprune.errors import SettingsError
from mobileprune.pruning_wrapper import PruneLowMagnitude

layers = keras.layers
ops = keras.ops

PREFIX = "quant_"
# A channel whose weights are all but zero would get steps so small that its bias leaves the 32 bits that it has.
_LEAST_OF_LARGEST = 1e-4
_LEAST_RANGE = 1e-5


@keras.saving.register_keras_serializable(package="mobileprune")
class FakeQuantize(keras.layers.Layer):
    """Rounds a tensor of any shape to the 256 values that int8 has for its range.

    Args:
        fixed: the range (smallest, largest) where the runtime prescribes it; None learns it: the moving average of the
            smallest and largest value of each training batch.
        momentum: how much of the average each batch leaves as it was.
        members: how many tensors share the range, as those that are concatenated do. Each has an average of its own,
            and the range holds them all.

    While `trainable` is False the range stays as it is. Before anything is known of a range, values pass as they are.

    Raises:
        SettingsError: a range or a momentum that cannot be meant.

    Example:
        >>> layer = FakeQuantize(fixed=(0.0, 255.0))
        >>> [float(value) for value in layer(np.array([-3.0, 7.4, 300.0], "float32"))]
        [0.0, 7.0, 255.0]
    """

    def __init__(
        self, fixed: tuple[float, float] | None = None, momentum: float = 0.99, members: int = 1, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        if fixed is not None and not fixed[0] <= 0.0 <= fixed[1] > fixed[0]:
            raise SettingsError(f"The range {tuple(fixed)} does not hold zero, which padding and sparse weights need.")
        if not 0.0 <= momentum < 1.0:
            raise SettingsError(f"momentum={momentum} is not at least 0 and below 1.")
        self.fixed = None if fixed is None else (float(fixed[0]), float(fixed[1]))
        self.momentum, self.members = momentum, members
        self.supports_masking = True
        # Set for a while by `measured_ranges` and `constants`; no part of the layer's configuration.
        self._seen: list[tuple[int, float, float]] | None = None
        self._constant: tuple[float, float] | None = None

    def build(self, input_shape: Any = None) -> None:
        if self.fixed is None:
            self.minimum, self.maximum = (
                self.add_weight(name=name, shape=(self.members,), initializer="zeros", dtype="float32", trainable=False)
                for name in ("minimum", "maximum")
            )
        self.built = True

    def call(self, inputs: Any, training: bool | None = None, member: int | None = 0) -> Any:
        """Fake-quantizes `inputs`, the `member`-th tensor of the range; None is for averages of such tensors."""
        if self._seen is not None:
            if member is not None and self.fixed is None:
                self._seen.append((member, float(ops.min(inputs)), float(ops.max(inputs))))
            return inputs
        bounds = self.fixed or self._constant
        if bounds is not None:
            return to_range(inputs, bounds)
        low, high = self.minimum.value, self.maximum.value
        learning = training and self.trainable and member is not None
        if learning:
            low, high = self._averaged(inputs, low, high, member)
        low, high = tf.reduce_min(low), tf.reduce_max(high)
        known = high > low
        high = tf.where(known, high, low + 1.0)
        if member is None:
            # Averages of few numbers often lie in the middle of two steps, where the runtime rounds away from the
            # integer 0 and not upwards.
            middle = low + (high - low) * (128 / 255)
            nudge = ops.cast((high - low) / 255 * 0.01, inputs.dtype)
            rounded = to_range(inputs + nudge * tf.sign(inputs - ops.cast(middle, inputs.dtype)), (low, high))
        else:
            rounded = to_range(inputs, (low, high))
        return rounded if learning else tf.where(known, rounded, inputs)

    def _averaged(self, inputs: Any, low: Any, high: Any, member: int | None) -> tuple[Any, Any]:
        """The averages after this batch, which are also kept."""
        values = tf.stop_gradient(ops.cast(inputs, "float32"))
        step = tf.where(high > low, 1.0 - self.momentum, 1.0) * tf.one_hot(member, self.members)
        low = low + step * (tf.minimum(tf.reduce_min(values), 0.0) - low)
        high = high + step * (tf.maximum(tf.reduce_max(values), 0.0) - high)
        self.minimum.assign(low)
        self.maximum.assign(high)
        return low, high

    @property
    def bounds(self) -> tuple[float, float]:
        """The range as it is now; (0, 0) before anything is known."""
        if self.fixed is not None:
            return self.fixed
        return float(ops.convert_to_numpy(self.minimum).min()), float(ops.convert_to_numpy(self.maximum).max())

    def compute_output_spec(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        return keras.KerasTensor(inputs.shape, inputs.dtype)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "fixed": self.fixed, "momentum": self.momentum, "members": self.members}


@keras.saving.register_keras_serializable(package="mobileprune")
class QuantizedKernel(keras.layers.Layer):
    """A Conv2D, DepthwiseConv2D, SeparableConv2D or Dense layer with fake-quantized weights.

    Args:
        layer: the layer, or a `PruneLowMagnitude` around it: its masks hold, and zeros stay zeros in int8.
        norm: the batch normalisation after it, folded into the weights with its moving statistics; its gamma and beta
            train.
        activated: whether the layer's own activation is applied here; otherwise by a layer that follows.

    Shapes of inputs and outputs are the layer's own.
    """

    def __init__(self, layer: Any, norm: Any | None = None, activated: bool = True, **kwargs: Any) -> None:
        kwargs.setdefault("name", PREFIX + layer.name)
        kwargs.setdefault("dtype", layer.dtype_policy)
        super().__init__(**kwargs)
        self.layer, self.norm, self.activated = layer, norm, activated
        self.core = layer.layer if isinstance(layer, PruneLowMagnitude) else layer
        separable = isinstance(self.core, layers.SeparableConv2D)
        self.between = FakeQuantize(name=f"{layer.name}_between") if separable else None
        self._constants: list[np.ndarray] | None = None

    def build(self, input_shape: Any) -> None:
        if not self.layer.built:
            self.layer.build(input_shape)
            self.layer.built = True
        if self.norm is not None and not self.norm.built:
            self.norm.build(self.layer.compute_output_shape(input_shape))
            self.norm.built = True
        if self.between is not None:
            self.between.build()
        self.built = True

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        core = self.core
        *kernels, bias = self.folded() if self._constants is None else map(ops.convert_to_tensor, self._constants)
        kernels = [ops.cast(_rounded(kernel), self.compute_dtype) for kernel in kernels]
        if isinstance(core, layers.Dense):
            outputs = ops.matmul(inputs, kernels[0])
        else:
            how = {"padding": core.padding, "data_format": core.data_format}
            strides, dilation = core.strides, core.dilation_rate
            outputs = inputs
            if not isinstance(core, layers.Conv2D):
                taps = ops.reshape(kernels[0], (*core.kernel_size, inputs.shape[-1], -1))
                outputs = ops.depthwise_conv(inputs, taps, strides=strides, dilation_rate=dilation, **how)
                strides, dilation = (1, 1), (1, 1)
            if self.between is not None:
                outputs = self.between(outputs, training=training)
            if not isinstance(core, layers.DepthwiseConv2D):
                outputs = ops.conv(outputs, kernels[-1], strides=strides, dilation_rate=dilation, **how)
        outputs = ops.add(outputs, ops.cast(bias, self.compute_dtype))
        return core.activation(outputs) if self.activated and core.activation is not None else outputs

    def folded(self) -> list[Any]:
        """The kernels, their output channels last, depthwise ones of shape (rows, columns, channels); then the bias.

        Batch normalisation is in the last kernel and in the bias.
        """
        core = self.core
        if isinstance(core, layers.Conv2D | layers.Dense):
            kernels = [ops.convert_to_tensor(core.kernel)]
        else:
            depthwise = isinstance(core, layers.DepthwiseConv2D)
            taps = ops.convert_to_tensor(core.kernel if depthwise else core.depthwise_kernel)
            kernels = [ops.reshape(taps, (*core.kernel_size, -1))]
            if not depthwise:
                kernels.append(ops.convert_to_tensor(core.pointwise_kernel))
        bias = ops.convert_to_tensor(core.bias) if core.use_bias else ops.zeros(kernels[-1].shape[-1:])
        if self.norm is None:
            return [*kernels, bias]
        norm = self.norm
        factor = ops.rsqrt(norm.moving_variance + norm.epsilon)
        factor = factor * norm.gamma if norm.scale else factor
        bias = (bias - norm.moving_mean) * factor
        return [*kernels[:-1], kernels[-1] * factor, bias + norm.beta if norm.center else bias]

    def compute_output_shape(self, input_shape: Any) -> Any:
        return self.layer.compute_output_shape(input_shape)

    def get_config(self) -> dict[str, Any]:
        parts = {"layer": self.layer, "norm": self.norm}
        saved = {name: part and keras.saving.serialize_keras_object(part) for name, part in parts.items()}
        return {**super().get_config(), **saved, "activated": self.activated}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> "QuantizedKernel":
        made = {
            name: config[name] and keras.saving.deserialize_keras_object(config[name], custom_objects=custom_objects)
            for name in ("layer", "norm")
        }
        return cls(**{**config, **made})


@keras.saving.register_keras_serializable(package="mobileprune")
class QuantizedActivation(keras.layers.Layer):
    """An activation that the file computes in several steps, or one that stood inside a layer with weights.

    Args:
        activation: its name in Keras.
        layer: the layer in whose place it stands; None if it was an argument of the layer before.
    """

    def __init__(self, activation: str, layer: Any | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.activation, self.layer = keras.activations.get(activation), layer
        self.supports_masking = True

    def call(self, inputs: Any) -> Any:
        kind = keras.activations.serialize(self.activation)
        if kind == "silu":
            return inputs * to_range(ops.sigmoid(inputs), FIXED_RANGES["sigmoid"])
        if kind == "hard_sigmoid":
            return to_range(ops.relu6(inputs + 3.0), (0.0, 6.0)) * (1.0 / 6.0)
        return self.activation(inputs)

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        layer = self.layer and keras.saving.serialize_keras_object(self.layer)
        return {**super().get_config(), "activation": keras.activations.serialize(self.activation), "layer": layer}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> "QuantizedActivation":
        layer = config.pop("layer")
        return cls(
            **config, layer=layer and keras.saving.deserialize_keras_object(layer, custom_objects=custom_objects)
        )


# What the kernels of the runtime prescribe: steps of 1/256 from 0, and of 1/128 around 0.
FIXED_RANGES = {
    "sigmoid": (0.0, 255 / 256),
    "softmax": (0.0, 255 / 256),
    "hard_sigmoid": (0.0, 1.0),
    "tanh": (-1.0, 127 / 128),
}


def quantizers(model: Any) -> list[FakeQuantize]:
    """Every layer of a model that rounds activations, each once."""
    return [layer for layer in model._flatten_layers() if isinstance(layer, FakeQuantize)]


@contextlib.contextmanager
def measured_ranges(model: Any) -> Iterator[None]:
    """Inside, calls of the model round no activations; afterwards its ranges are the extremes that were met."""
    learning = [layer for layer in quantizers(model) if layer.fixed is None]
    try:
        for layer in learning:
            layer._seen = []
        yield
        for layer in learning:
            low, high = np.zeros(layer.members), np.zeros(layer.members)
            for member, smallest, largest in layer._seen or ():
                # Not Python's min and max, which lose NaN.
                low[member], high[member] = np.minimum(low[member], smallest), np.maximum(high[member], largest)
            layer.minimum.assign(low)
            layer.maximum.assign(high)
    finally:
        for layer in learning:
            layer._seen = None


@contextlib.contextmanager
def constants(model: Any) -> Iterator[None]:
    """Inside, what is traced of the model holds weights and ranges as numbers, as the converter wants them."""
    weighted = [layer for layer in model._flatten_layers() if isinstance(layer, QuantizedKernel)]
    learning = [layer for layer in quantizers(model) if layer.fixed is None]
    try:
        for layer in weighted:
            layer._constants = [ops.convert_to_numpy(part) for part in layer.folded()]
        for layer in learning:
            layer._constant = layer.bounds
        yield
    finally:
        for layer in weighted:
            layer._constants = None
        for layer in learning:
            layer._constant = None


def _rounded(kernel: Any) -> Any:
    """A kernel with every weight at one of 255 values: for each channel, its last axis, or in all if it is a matrix."""
    kernel = ops.cast(kernel, "float32")
    axes = None if len(kernel.shape) == 2 else tuple(range(len(kernel.shape) - 1))
    largest = tf.stop_gradient(tf.reduce_max(tf.abs(kernel), axis=axes))
    largest = tf.maximum(largest, tf.maximum(_LEAST_OF_LARGEST * tf.reduce_max(largest), _LEAST_RANGE))
    of_channels = tf.quantization.fake_quant_with_min_max_vars_per_channel
    rounding = tf.quantization.fake_quant_with_min_max_vars if axes is None else of_channels
    return rounding(kernel, -largest, largest, narrow_range=True)


def to_range(values: Any, bounds: tuple[Any, Any]) -> Any:
    """Values of any precision rounded to the 256 steps of a range."""
    rounded = tf.quantization.fake_quant_with_min_max_vars(ops.cast(values, "float32"), *bounds)
    return ops.cast(rounded, values.dtype)
