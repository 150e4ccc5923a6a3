"""The steps that random networks are made of: each takes a tensor of shape (batch, h, w, channels) and returns another.

A step reads its choices (which size, which partner) from a `Pick`, so that a network is told in full by the names of
its steps and one number for each.
"""

import custom_rules  # noqa: F401  (registers the custom layers' channels)
import keras
import numpy as np
from custom_layers import MixNeighbours, ScaleChannels

layers, ops = keras.layers, keras.ops

WIDTHS = (4, 8, 12, 16)
STEPS = {}


class Pick:
    """The choices of one step.

    Args:
        number: what decides them all.
        pool: the tensors that earlier steps made.
    """

    def __init__(self, number, pool):
        self._generator = np.random.default_rng(number)
        self._pool = pool

    def of(self, *values):
        return values[int(self._generator.integers(len(values)))]

    def width(self):
        return self.of(*WIDTHS)

    def constant(self, *shape):
        return self._generator.uniform(0.5, 1.5, shape).astype("float32")

    def partner(self, x, channels=True):
        """An earlier tensor of the same height and width, and of as many channels; through a convolution if need be."""
        fitting = [tensor for tensor in self._pool if tensor.shape[1:3] == x.shape[1:3]]
        same = [tensor for tensor in fitting if tensor.shape == x.shape]
        if channels and same:
            return self.of(*same)
        found = self.of(*fitting, x)
        return layers.Conv2D(x.shape[-1], 1)(found) if channels else found


def step(function):
    STEPS[function.__name__.strip("_")] = function
    return function


def simple_steps(**makers):
    """Steps that call one layer or function, whatever the choices are."""
    for name, make in makers.items():
        STEPS[name] = lambda x, pick, make=make: make(pick)(x)


simple_steps(
    conv=lambda pick: layers.Conv2D(pick.width(), pick.of(1, 3), padding="same", activation=pick.of("relu", "tanh")),
    conv_strided=lambda pick: layers.Conv2D(pick.width(), 3, strides=2, padding="same"),
    depthwise=lambda pick: layers.DepthwiseConv2D(3, padding="same"),
    depthwise_multiplier=lambda pick: layers.DepthwiseConv2D(3, padding="same", depth_multiplier=2),
    separable=lambda pick: layers.SeparableConv2D(pick.width(), 3, padding="same", depth_multiplier=pick.of(1, 2)),
    transposed=lambda pick: layers.Conv2DTranspose(pick.width(), 3, padding="same", strides=pick.of(1, 2)),
    upsampling=lambda pick: layers.UpSampling2D(interpolation=pick.of("nearest", "bilinear")),
    max_pooling=lambda pick: layers.MaxPooling2D(3, strides=1, padding="same"),
    average_pooling=lambda pick: layers.AveragePooling2D(2, padding="same"),
    zero_padding=lambda pick: layers.ZeroPadding2D(((0, 1), (1, 0))),
    dense=lambda pick: layers.Dense(pick.width(), activation="relu"),
    batch_norm=lambda pick: layers.BatchNormalization(),
    layer_norm=lambda pick: layers.LayerNormalization(),
    layer_norm_axes=lambda pick: layers.LayerNormalization(axis=[1, 2, 3]),
    rms_norm=lambda pick: layers.RMSNormalization(),
    group_norm=lambda pick: lambda x: layers.GroupNormalization(pick.of(1, 2, 4))(_with_multiple_of(x, 4)),
    instance_norm=lambda pick: layers.GroupNormalization(-1),
    prelu=lambda pick: layers.PReLU(),
    prelu_shared=lambda pick: layers.PReLU(shared_axes=[1, 2]),
    noise=lambda pick: pick.of(layers.SpatialDropout2D(0.0), layers.GaussianNoise(0.0), layers.Dropout(0.0)),
    activation=lambda pick: layers.Activation(pick.of("relu", "elu", "sigmoid", "softplus", "swish", "gelu")),
    scale_channels=lambda pick: ScaleChannels(),
    unregistered=lambda pick: MixNeighbours(),
    function=lambda pick: pick.of(ops.relu, ops.gelu, ops.tanh, ops.abs, ops.softplus, ops.silu),
    arithmetic=lambda pick: pick.of(lambda x: 0.5 * x + 1.0, lambda x: 1.0 - x, lambda x: x / 2.0, lambda x: -x),
    where=lambda pick: lambda x: ops.where(x > 0, x, 0.1 * x),
    clip=lambda pick: lambda x: ops.clip(x, -1.5, 1.5),
    flip_space=lambda pick: lambda x: ops.flip(x, axis=pick.of(1, 2)),
    flip_channels=lambda pick: lambda x: ops.flip(x, axis=-1),
    roll_space=lambda pick: lambda x: ops.roll(x, pick.of(1, -1), axis=pick.of(1, 2)),
    slice_range=lambda pick: lambda x: x[..., pick.of(0, 1) : pick.of(3, x.shape[-1] - 1)],
    slice_stride=lambda pick: lambda x: x[..., pick.of(0, 1) :: 2],
    slice_rest=lambda pick: lambda x: x[..., 1:],
    slice_space=lambda pick: lambda x: x[:, :-1, 1:, :],
    pad_space=lambda pick: lambda x: ops.pad(x, ((0, 0), (1, 0), (0, 1), (0, 0))),
    pad_channels=lambda pick: lambda x: ops.pad(x, ((0, 0), (0, 0), (0, 0), (pick.of(0, 2), 2))),
    resize=lambda pick: lambda x: ops.image.resize(x, pick.of((4, 4), (5, 3)), interpolation="bilinear"),
    max_pool=lambda pick: lambda x: ops.max_pool(x, 2, strides=1, padding="same"),
    centre=lambda pick: lambda x: x - ops.mean(x, axis=(1, 2), keepdims=True),
    squeeze_expand=lambda pick: lambda x: ops.squeeze(ops.expand_dims(x, pick.of(1, 3, -1)) * 2.0),
)


@step
def grouped_conv(x, pick):
    groups = 2 if x.shape[-1] % 2 == 0 else 1
    return layers.Conv2D(pick.of(4, 8), 1, groups=groups)(x)


@step
def merge(x, pick):
    kind = pick.of(layers.Add, layers.Subtract, layers.Multiply, layers.Average, layers.Maximum, layers.Minimum)
    return kind()([x, pick.partner(x)])


@step
def merge_by_ops(x, pick):
    return pick.of(ops.add, ops.multiply, ops.subtract, ops.maximum)(pick.partner(x), x)


@step
def residual(x, pick):
    y = layers.BatchNormalization()(layers.Conv2D(pick.width(), 3, padding="same")(x))
    return layers.Add()([x, layers.Conv2D(x.shape[-1], 1)(layers.ReLU()(y))])


@step
def concatenate(x, pick):
    parts = [x, pick.partner(x, channels=False), pick.partner(x, channels=False)][: pick.of(2, 3)]
    return pick.of(layers.Concatenate(), lambda tensors: ops.concatenate(tensors, axis=-1))(parts)


@step
def split(x, pick):
    parts = ops.split(x, pick.of([3], [1, 3]), axis=-1)
    convolved = layers.Conv2D(pick.width(), 1, activation="relu")(parts[0])
    return layers.Concatenate()([parts[-1], convolved])


@step
def split_halves(x, pick):
    x = _with_multiple_of(x, 2)
    left, right = ops.split(x, 2, axis=-1)
    return ops.concatenate([layers.Conv2D(right.shape[-1], 1)(right), left], axis=-1)


@step
def shuffle(x, pick):
    x = _with_multiple_of(x, 2)
    _, height, width, channels = x.shape
    if pick.of(True, False):
        x = ops.reshape(x, (-1, height, width, 2, channels // 2))
        return ops.reshape(ops.transpose(x, (0, 1, 2, 4, 3)), (-1, height, width, channels))
    x = layers.Permute((1, 2, 4, 3))(layers.Reshape((height, width, 2, channels // 2))(x))
    return layers.Reshape((height, width, channels))(x)


@step
def take(x, pick):
    indices = [pick.of(*range(x.shape[-1])) for _ in range(pick.width())]
    return ops.take(x, pick.of(indices, np.array(indices)), axis=-1)


@step
def squeeze_and_excite(x, pick):
    keep = pick.of(True, False)
    gate = layers.GlobalAveragePooling2D(keepdims=keep)(x)
    gate = layers.Dense(x.shape[-1], activation="sigmoid")(layers.Dense(4, activation="relu")(gate))
    return layers.Multiply()([x, gate if keep else layers.Reshape((1, 1, x.shape[-1]))(gate)])


@step
def spatial_gate(x, pick):
    return layers.Multiply()([x, layers.Conv2D(1, 3, padding="same", activation="sigmoid")(x)])


@step
def channel_max_gate(x, pick):
    """The maximum is over channels of their own: whether those may go is the engine's choice."""
    summary = ops.max(layers.Conv2D(4, 1)(x), axis=-1, keepdims=True)
    return x * ops.sigmoid(summary)


@step
def shared_conv(x, pick):
    conv = layers.Conv2D(pick.width(), 3, padding="same", activation="relu")
    return pick.of(layers.Add(), layers.Concatenate())([conv(x), conv(pick.partner(x))])


def _nested(shape, width, pick):
    if pick.of(True, False):
        members = [keras.Input(shape), layers.Conv2D(width, 1), layers.ReLU(), layers.Conv2D(pick.width(), 1)]
        return keras.Sequential(members)
    inputs = keras.Input(shape)
    x = layers.Conv2D(width, 3, padding="same")(inputs)
    x = layers.Add()([x, layers.Conv2D(width, 1)(layers.BatchNormalization()(x))])
    return keras.Model(inputs, x)


@step
def nested(x, pick):
    return _nested(x.shape[1:], pick.width(), pick)(x)


@step
def nested_twice(x, pick):
    inner = _nested(x.shape[1:], pick.width(), pick)
    return pick.of(layers.Concatenate(), layers.Subtract())([inner(x), inner(pick.partner(x))])


@step
def nested_in_nested(x, pick):
    inputs = keras.Input(x.shape[1:])
    middle = _nested(x.shape[1:], pick.width(), pick)(inputs)
    return keras.Model(inputs, layers.Concatenate()([inputs, middle]))(x)


@step
def constants(x, pick):
    channels = x.shape[-1]
    return ops.multiply(
        ops.add(x, pick.constant(channels)), pick.of(pick.constant(1, 1, 1, channels), pick.constant(1))
    )


@step
def channels_first_and_back(x, pick):
    x = layers.ReLU()(ops.transpose(x, (0, 3, 1, 2)))
    return pick.of(layers.Permute((2, 3, 1)), lambda y: ops.transpose(y, (0, 2, 3, 1)))(x)


@step
def reshape_and_back(x, pick):
    _, height, width, channels = x.shape
    rows = pick.of(
        lambda: ops.reshape(x, (-1, height * width, channels)),
        lambda: layers.Reshape((-1, channels))(x),
        lambda: ops.reshape(x, (-1, height, width * channels)),
    )()
    return ops.reshape(ops.tanh(rows), (-1, height, width, channels))


@step
def pixel_shuffle(x, pick):
    x = _with_multiple_of(x, 4)
    _, height, width, channels = x.shape
    x = ops.transpose(ops.reshape(x, (-1, height, width, 2, 2, channels // 4)), (0, 1, 3, 2, 4, 5))
    return ops.reshape(x, (-1, 2 * height, 2 * width, channels // 4))


@step
def space_to_depth(x, pick):
    x = layers.ZeroPadding2D(((0, x.shape[1] % 2), (0, x.shape[2] % 2)))(x)
    _, height, width, channels = x.shape
    x = ops.transpose(ops.reshape(x, (-1, height // 2, 2, width // 2, 2, channels)), (0, 1, 3, 2, 4, 5))
    return ops.reshape(x, (-1, height // 2, width // 2, 4 * channels))


@step
def stack(x, pick):
    axis = pick.of(1, 3, -1)
    return pick.of(ops.max, ops.mean, ops.sum)(ops.stack([x, pick.partner(x)], axis=axis), axis=axis)


@step
def interleave(x, pick):
    _, height, width, channels = x.shape
    return ops.reshape(ops.stack([x, pick.partner(x)], axis=-1), (-1, height, width, 2 * channels))


@step
def attention(x, pick):
    _, height, width, channels = x.shape
    tokens = layers.Reshape((-1, channels))(x)
    y = layers.LayerNormalization()(tokens) if pick.of(True, False) else tokens
    y = layers.MultiHeadAttention(pick.of(2, 4), 3)(y, y)
    y = layers.Dense(channels)(layers.Dense(8, activation="gelu")(layers.Add()([tokens, y])))
    return layers.Reshape((height, width, channels))(y)


@step
def cross_attention(x, pick):
    _, height, width, channels = x.shape
    memory = pick.partner(x, channels=False)
    memory = layers.Reshape((-1, memory.shape[-1]))(memory)
    y = layers.MultiHeadAttention(2, 3, value_dim=2)(layers.Reshape((-1, channels))(x), memory)
    return layers.Reshape((height, width, channels))(y)


@step
def grouped_attention(x, pick):
    _, height, width, channels = x.shape
    tokens = layers.Reshape((-1, channels))(x)
    y = layers.GroupQueryAttention(pick.of(3, 4), 4, pick.of(1, 2, 4), use_gate=pick.of(True, False))(tokens, tokens)
    return layers.Reshape((height, width, channels))(y)


@step
def gated_attention(x, pick):
    """Over rows, over columns or over both, without flattening."""
    attention = layers.MultiHeadAttention(2, pick.of(3, 4), 3, use_gate=True, attention_axes=pick.of(None, 1, 2))
    return attention(x, x, use_causal_mask=False)


@step
def einsum_dense(x, pick):
    made = pick.width()
    if pick.of(True, False):
        return layers.EinsumDense("bhwc,cm->bhwm", (*x.shape[1:3], made), bias_axes="m", activation="relu")(x)
    y = layers.EinsumDense("...c,cnm->...nm", (2, made), bias_axes=pick.of("nm", "m"))(x)
    return ops.reshape(layers.EinsumDense("...nm,nmc->...c", x.shape[-1])(y), (-1, *x.shape[1:]))


@step
def einsum_attention(x, pick):
    """Queries and keys multiplied by hand, heads made by a dense layer and a reshape or at once."""
    _, height, width, channels = x.shape
    places = height * width
    tokens = ops.reshape(x, (-1, places, channels))
    if pick.of(True, False):
        query, key, value = (ops.reshape(layers.Dense(8)(tokens), (-1, places, 2, 4)) for _ in range(3))
    else:
        query, key, value = (layers.EinsumDense("btc,cnh->btnh", (places, 2, 4))(tokens) for _ in range(3))
    if pick.of(True, False):
        y = ops.dot_product_attention(query, key, value, scale=pick.of(None, 0.4))
    else:
        scores = ops.softmax(ops.einsum("btnh,bsnh->bnts", query, key) * 0.4)
        y = ops.einsum("bnts,bsnh->btnh", scores, value)
    return ops.reshape(layers.Dense(channels)(ops.reshape(y, (-1, places, 8))), (-1, height, width, channels))


@step
def matmul(x, pick):
    """Rows of pixels compared with rows of pixels, by products over channels; then mixed by them."""
    rows, others = layers.Conv2D(6, 1)(x), layers.Conv2D(6, 1)(pick.partner(x))
    scores = ops.softmax(ops.matmul(rows, ops.transpose(others, (0, 1, 3, 2))))
    return ops.matmul(scores, x)


@step
def conv1d(x, pick):
    _, height, width, channels = x.shape
    made = pick.width()
    y = layers.Conv1D(made, 3, padding="same", activation="relu")(layers.Reshape((height * width, channels))(x))
    return layers.Reshape((height, width, made))(y)


@step
def mix_tokens(x, pick):
    _, height, width, channels = x.shape
    y = layers.Permute((2, 1))(ops.reshape(x, (-1, height * width, channels)))
    y = layers.Dense(height * width)(layers.Dense(8, activation="gelu")(y))
    return layers.Add()([x, layers.Reshape((height, width, channels))(layers.Permute((2, 1))(y))])


@step
def dense_tokens(x, pick):
    _, height, width, channels = x.shape
    y = layers.Dense(pick.width(), activation="tanh")(ops.reshape(x, (-1, height * width, channels)))
    return ops.reshape(y, (-1, height, width, y.shape[-1]))


def _with_multiple_of(x, number):
    """The tensor itself, or a convolution of it, of as many channels as the op needs."""
    channels = x.shape[-1]
    return x if channels % number == 0 else layers.Conv2D(channels - channels % number + number, 1)(x)


def fit(x):
    """The same tensor made small again: at most 8 × 8 and 16 channels, at least 2 × 2 and 4 channels."""
    if max(x.shape[1:3]) > 8:
        x = layers.AveragePooling2D(2, padding="same")(x)
    if min(x.shape[1:3]) < 2:
        x = layers.UpSampling2D()(x)
    return x if 4 <= x.shape[-1] <= 16 else layers.Conv2D(12, 1)(x)
