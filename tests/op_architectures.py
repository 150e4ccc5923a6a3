"""Networks that show one kind of op each: `keras.ops` functions, slices, reshapes, normalisations, attention gates.

The first convolution of each feeds the ops, the last ones read them, so a wrong cut anywhere changes the output.
"""

import keras
import numpy as np
from zoo_architectures import classify, conv

layers, ops = keras.layers, keras.ops


def _constant(*shape):
    return np.random.default_rng(7).uniform(0.5, 1.5, shape).astype("float32")


def _finish(inputs, x, name):
    """Two more convolutions and a classifier: channels that can go whatever happens to those before."""
    x = layers.Conv2D(24, 1, activation="relu")(x)
    return keras.Model(inputs, classify(layers.Conv2D(16, 3, padding="same", activation="tanh")(x)), name=name)


def pointwise_ops():
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(16, 3)(inputs)
    y = ops.relu(layers.Conv2D(16, 1)(x))
    x = ops.add(ops.multiply(x, 0.5), y)
    x = ops.where(x > 0, x, 0.1 * x)
    x = ops.maximum(ops.clip(x, -2.0, 2.0), ops.tanh(y) - 1.0)
    x = ops.sqrt(ops.square(x) + 1.0) / (1.0 + ops.abs(y))
    return _finish(inputs, ops.gelu(x) - ops.sigmoid(-y), "pointwise_ops")


def constants():
    """NumPy arrays with a value for each channel: surgery has to cut them as it cuts weights."""
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(16, 3)(inputs / 2.0)
    x = ops.multiply(ops.add(x, _constant(16)), _constant(1, 1, 1, 16))
    x = layers.Conv2D(24, 1, activation="relu")(x)
    x = ops.subtract(x, _constant(6, 6, 24)) * _constant(6, 6, 1)
    return _finish(inputs, ops.maximum(x, _constant(24) - 1.0), "constants")


def slices():
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(20, 3, activation="relu")(inputs)
    parts = ops.split(x, [4, 12], axis=-1)
    y = ops.concatenate([parts[2], x[..., 2:7], parts[0]], axis=-1)
    z = x[:, 1:, :-1, ::2] * x[:, :-1, 1:, 1::2]
    y = layers.Conv2D(16, 2)(y)
    return _finish(inputs, layers.Concatenate()([y[..., 1:], z, y[..., -1:]]), "slices")


def reordered_channels():
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(16, 3, activation="relu")(inputs)
    x = ops.flip(x, axis=-1) - 0.5 * ops.take(x, [3, 0, 1, 2, 7, 6, 5, 4, 8, 9, 10, 11, 15, 14, 13, 12], axis=-1)
    x = layers.Conv2D(24, 1)(x)
    x = ops.take(x, np.array([1, 1, 5, 9, 20, 23, 0, 7]), axis=-1)
    return _finish(inputs, layers.ReLU()(x), "reordered_channels")


def rolled_channels():
    """A shift by whole channels leaves no two in their place: each must follow its own."""
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(16, 3, activation="relu")(inputs)
    x = ops.concatenate([ops.roll(x, 3, axis=-1), ops.roll(x, 1, axis=1)], axis=-1)
    return _finish(inputs, x, "rolled_channels")


def reshapes():
    """The channel axis moves, splits, joins others and comes back, by static sizes and by -1."""
    inputs = keras.Input((6, 6, 3))
    x = layers.Conv2D(16, 1)(inputs)
    x = ops.reshape(x, (-1, 36, 16))
    x = ops.transpose(layers.Dense(24, activation="relu")(x), (0, 2, 1))
    x = ops.expand_dims(ops.transpose(ops.reshape(x, (-1, 24, 6, 6)), (0, 2, 3, 1)), -1)
    x = ops.squeeze(x, -1)
    x = layers.Conv2D(16, 3)(x)
    y = ops.mean(x, axis=(1, 2))
    x = layers.Dense(24, activation="relu")(ops.reshape(x, (-1, 4 * 4 * 16)))
    return keras.Model(inputs, layers.Dense(5)(ops.concatenate([x, y], axis=1)), name="reshapes")


def pixel_shuffle():
    """Depth to space by hand: four channels become one, at four places."""
    inputs = keras.Input((6, 6, 3))
    x = layers.Conv2D(32, 3, padding="same", activation="relu")(inputs)
    x = ops.reshape(x, (-1, 6, 6, 2, 2, 8))
    x = ops.reshape(ops.transpose(x, (0, 1, 3, 2, 4, 5)), (-1, 12, 12, 8))
    return _finish(inputs, x, "pixel_shuffle")


def space_to_depth():
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(12, 3, padding="same", activation="relu")(inputs)
    x = ops.transpose(ops.reshape(x, (-1, 4, 2, 4, 2, 12)), (0, 1, 3, 2, 4, 5))
    return _finish(inputs, ops.reshape(x, (-1, 4, 4, 48)), "space_to_depth")


def stacked():
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(16, 3)(inputs)
    y = layers.Conv2D(16, 3, activation="tanh")(inputs)
    together = ops.stack([x, y], axis=-1)
    x = ops.max(together, axis=-1) * ops.mean(ops.stack([x, y], axis=1), axis=1)
    return _finish(inputs, ops.concatenate([x, ops.reshape(together, (-1, 6, 6, 32))], -1), "stacked")


def spatial_ops():
    inputs = keras.Input((8, 8, 3))
    x = ops.relu(layers.Conv2D(16, 3, padding="same")(inputs))
    x = ops.roll(ops.flip(x, axis=2), 1, axis=1)
    x = ops.pad(x, ((0, 0), (1, 1), (2, 0), (0, 0)))
    x = ops.image.resize(ops.max_pool(x, 2, padding="same"), (9, 9), interpolation="bilinear")
    x = ops.average_pool(x, 3, strides=2, padding="valid")
    x = x - ops.mean(x, axis=(1, 2), keepdims=True) + ops.max(x, axis=1, keepdims=True)
    return _finish(inputs, x, "spatial_ops")


def padded_channels():
    """The parameter-free shortcut of the first ResNet: strided, with zeros for the channels that it lacks."""
    inputs = keras.Input((8, 8, 3))
    x = conv(inputs, 12)
    y = layers.Conv2D(24, 3, strides=2, padding="same")(x)
    shortcut = ops.pad(x[:, ::2, ::2, :], ((0, 0), (0, 0), (0, 0), (6, 6)))
    return _finish(inputs, ops.relu(ops.add(shortcut, y)), "padded_channels")


def group_normalisations():
    inputs = keras.Input((8, 8, 3))
    x = layers.GroupNormalization(4)(layers.Conv2D(24, 3)(inputs))
    x = layers.GroupNormalization(-1)(layers.Conv2D(16, 3, activation="relu")(layers.ReLU()(x)))
    x = layers.GroupNormalization(1)(layers.Conv2D(24, 1)(x))
    return _finish(inputs, layers.ReLU()(x), "group_normalisations")


def layer_normalisations():
    """Over rank 2, 3 and 4, over a list of axes, and behind a flatten that shows each channel many times."""
    inputs = keras.Input((6, 6, 3))
    x = layers.LayerNormalization(axis=[1, 2, 3])(layers.Conv2D(16, 3, activation="relu")(inputs))
    x = layers.LayerNormalization()(layers.Conv2D(24, 1)(x))
    x = layers.LayerNormalization(axis=[2])(layers.Reshape((16, 24))(x))
    x = layers.LayerNormalization(axis=-1)(layers.Flatten()(layers.Dense(16, activation="relu")(x)))
    x = layers.LayerNormalization(center=False)(layers.Dense(24)(x))
    return keras.Model(inputs, layers.Dense(5)(x), name="layer_normalisations")


def parametric_and_noisy():
    inputs = keras.Input((8, 8, 3))
    x = layers.PReLU(shared_axes=[1, 2])(layers.Conv2D(16, 3)(inputs))
    x = layers.PReLU()(layers.Conv2D(24, 1)(layers.SpatialDropout2D(0.0)(x)))
    x = layers.PReLU(shared_axes=[1])(layers.Conv2D(16, 1)(layers.GaussianNoise(0.0)(x)))
    x = layers.LeakyReLU()(layers.GaussianDropout(0.0)(x))
    return _finish(inputs, x, "parametric_and_noisy")


def depthwise_and_separable():
    inputs = keras.Input((8, 8, 3))
    x = layers.DepthwiseConv2D(3, depth_multiplier=3, padding="same")(layers.Conv2D(16, 1)(inputs))
    x = layers.SeparableConv2D(24, 3, depth_multiplier=2, activation="relu")(x)
    x = layers.DepthwiseConv2D(3, depth_multiplier=2, activation="relu")(x)
    x = layers.Conv2D(24, 3, groups=4, padding="same")(layers.Conv2D(24, 1)(x))
    return _finish(inputs, x, "depthwise_and_separable")


def dense_on_many_axes():
    inputs = keras.Input((6, 6, 3))
    x = layers.Dense(24, activation="relu")(layers.Dense(16, activation="gelu")(inputs))
    x = layers.Reshape((36, 24))(layers.BatchNormalization()(x))
    x = layers.Dense(16, activation="tanh")(layers.Dense(32, activation="relu", use_bias=False)(x))
    return keras.Model(inputs, layers.Dense(5)(layers.Flatten()(x)), name="dense_on_many_axes")


def squeeze_with_keepdims():
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(24, 3, activation="silu")(inputs)
    gate = layers.GlobalAveragePooling2D(keepdims=True)(x)
    gate = layers.Conv2D(24, 1, activation="hard_sigmoid")(layers.Conv2D(12, 1, activation="relu")(gate))
    x = layers.DepthwiseConv2D(3)(layers.Multiply()([x, gate]))
    x = x * ops.sigmoid(layers.Dense(24)(layers.GlobalMaxPooling2D(keepdims=True)(x)))
    return _finish(inputs, x, "squeeze_with_keepdims")


def spatial_attention():
    """One-channel gates multiplied with many channels: the gate must not tie them to one another."""
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(24, 3, activation="relu")(inputs)
    x = layers.Multiply()([x, layers.Conv2D(1, 3, padding="same", activation="sigmoid")(x)])
    x = layers.Conv2D(32, 3, activation="relu")(x)
    x = layers.Maximum()([x, layers.Conv2D(1, 1)(x)])
    x = layers.Conv2D(8, 1, name="reduced")(x)
    summary = ops.concatenate([ops.max(x, -1, keepdims=True), ops.mean(x, -1, keepdims=True)], -1)
    x = x * layers.Conv2D(1, 3, padding="same", activation="sigmoid")(summary)
    return _finish(inputs, x, "spatial_attention")


OPS = {
    build.__name__: build
    for build in (
        *(pointwise_ops, constants, slices, reordered_channels, rolled_channels, reshapes, pixel_shuffle),
        *(space_to_depth, stacked, spatial_ops, padded_channels, group_normalisations, layer_normalisations),
        *(parametric_and_noisy, depthwise_and_separable, dense_on_many_axes, squeeze_with_keepdims),
        *(spatial_attention,),
    )
}
