"""Hand-built networks of the families that people bring: their blocks in full, their sizes as small as can be.

Channels are many enough for a plan that keeps half of the MACs, and tensors tiny, so that a law can hold on all of
them within seconds.
"""

import custom_rules  # noqa: F401  (registers the custom layers' channels)
import keras
import numpy as np
from custom_layers import AddPositions, MixNeighbours, ScaleChannels

layers, ops = keras.layers, keras.ops


def conv(x, filters, size=3, strides=1, activation="relu", **options):
    x = layers.Conv2D(filters, size, strides=strides, padding="same", use_bias=False, **options)(x)
    x = layers.BatchNormalization()(x)
    return layers.Activation(activation)(x) if activation else x


def _depthwise(x, strides=1):
    return layers.BatchNormalization()(layers.DepthwiseConv2D(3, strides=strides, padding="same", use_bias=False)(x))


def classify(x, classes=5):
    return layers.Dense(classes)(layers.GlobalAveragePooling2D()(x))


def _split_by_op(x):
    return ops.split(x, 2, axis=-1)


def _split_by_slicing(x):
    half = x.shape[-1] // 2
    return x[..., :half], x[..., half:]


def _shuffle_by_ops(x):
    _, height, width, channels = x.shape
    x = ops.reshape(x, (-1, height, width, 2, channels // 2))
    return ops.reshape(ops.transpose(x, (0, 1, 2, 4, 3)), (-1, height, width, channels))


def _shuffle_by_layers(x):
    _, height, width, channels = x.shape
    x = layers.Reshape((height, width, 2, channels // 2))(x)
    return layers.Reshape((height, width, channels))(layers.Permute((1, 2, 4, 3))(x))


def _shufflenet_v2(split, shuffle, name):
    inputs = keras.Input((16, 16, 3))
    x = layers.MaxPooling2D(3, strides=2, padding="same")(conv(inputs, 12, strides=1))
    for width in (24, 32):
        left = conv(_depthwise(x, 2), width // 2, 1)
        right = conv(_depthwise(conv(x, width // 2, 1), 2), width // 2, 1)
        x = shuffle(layers.Concatenate()([left, right]))
        for _ in range(2):
            left, right = split(x)
            right = conv(_depthwise(conv(right, width // 2, 1)), width // 2, 1)
            x = shuffle(layers.Concatenate()([left, right]))
    return keras.Model(inputs, classify(conv(x, 48, 1)), name=name)


def shufflenet_v2_ops():
    return _shufflenet_v2(_split_by_op, _shuffle_by_ops, "shufflenet_v2_ops")


def shufflenet_v2_layers():
    return _shufflenet_v2(_split_by_slicing, _shuffle_by_layers, "shufflenet_v2_layers")


def resnext():
    inputs = keras.Input((12, 12, 3))
    x = conv(inputs, 16)
    for width, strides in ((32, 1), (32, 1), (48, 2)):
        y = conv(conv(x, width, 1), width, strides=strides, groups=4)
        y = conv(y, width, 1, activation=None)
        if strides > 1 or x.shape[-1] != width:
            x = conv(x, width, 1, strides, activation=None)
        x = layers.ReLU()(layers.Add()([x, y]))
    return keras.Model(inputs, classify(x), name="resnext")


def unet():
    inputs = keras.Input((16, 16, 3))
    first = conv(conv(inputs, 8), 8)
    second = conv(layers.MaxPooling2D()(first), 16)
    x = conv(layers.MaxPooling2D()(second), 32)
    x = layers.Conv2DTranspose(16, 2, strides=2)(x)
    x = conv(layers.Concatenate()([second, x]), 16)
    x = layers.UpSampling2D(interpolation="bilinear")(x)
    x = conv(layers.Concatenate()([x, first]), 8)
    return keras.Model(inputs, layers.Conv2D(2, 1, activation="sigmoid")(x), name="unet")


def _encoder(x, heads, width):
    y = layers.LayerNormalization(epsilon=1e-6)(x)
    y = layers.MultiHeadAttention(heads, width // heads)(y, y)
    x = layers.Add()([x, y])
    y = layers.LayerNormalization(epsilon=1e-6)(x)
    y = layers.Dense(width)(layers.Dropout(0.0)(layers.Dense(2 * width, activation="gelu")(y)))
    return layers.Add()([x, y])


def _tokens(inputs, width, patch=4):
    x = layers.Conv2D(width, patch, strides=patch)(inputs)
    return layers.Reshape((-1, width))(x)


def vit_constant_positions():
    inputs = keras.Input((16, 16, 3))
    x = _tokens(inputs, 24)
    x = ops.add(x, np.random.default_rng(5).normal(size=(1, 16, 24)).astype("float32"))
    for _ in range(2):
        x = _encoder(x, 4, 24)
    x = ops.mean(layers.LayerNormalization()(x), axis=1)
    return keras.Model(inputs, layers.Dense(5)(x), name="vit_constant_positions")


def vit_learned_positions():
    inputs = keras.Input((16, 16, 3))
    x = AddPositions()(_tokens(inputs, 32))
    for _ in range(2):
        x = _encoder(x, 4, 32)
    x = layers.GlobalAveragePooling1D()(layers.RMSNormalization()(x))
    return keras.Model(inputs, layers.Dense(5)(x), name="vit_learned_positions")


def cross_attention():
    """Queries of one width attend to a memory of another; key and value come from different tensors."""
    image, text = keras.Input((8, 8, 3), name="image"), keras.Input((6,), dtype="int32", name="text")
    memory = layers.Reshape((16, 24))(layers.Conv2D(24, 2, strides=2, activation="relu")(image))
    queries = layers.Embedding(10, 16)(text)
    keys = layers.Dense(20, activation="tanh")(memory)
    x = layers.MultiHeadAttention(4, 6, value_dim=8)(queries, memory, keys)
    x = layers.Dense(24, activation="relu")(layers.Concatenate()([x, queries]))
    return keras.Model([image, text], layers.Dense(3)(layers.GlobalMaxPooling1D()(x)), name="cross_attention")


def gpt_tied():
    """A decoder as GPT-2 is one: learned positions, causal attention, and words that are read as they are written."""
    words = keras.Input((8,), dtype="int32")
    table = layers.ReversibleEmbedding(20, 24)
    x = AddPositions()(table(words))
    for _ in range(2):
        y = layers.LayerNormalization()(x)
        x = layers.Add()([x, layers.MultiHeadAttention(3, 8)(y, y, use_causal_mask=True)])
        y = layers.Dense(48, activation="gelu")(layers.LayerNormalization()(x))
        x = layers.Add()([x, layers.Dense(24)(y)])
    return keras.Model(words, table(layers.LayerNormalization()(x), reverse=True), name="gpt_tied")


def gpt_grouped():
    """A decoder as Llama is one: queries that share keys, a gate in front of the second dense layer, a head apart."""
    words = keras.Input((8,), dtype="int32")
    x = layers.Embedding(20, 24)(words)
    for _ in range(2):
        y = layers.RMSNormalization()(x)
        attention = layers.GroupQueryAttention(8, 4, 2, use_bias=False)
        x = layers.Add()([x, attention(y, y, use_causal_mask=True)])
        y = layers.RMSNormalization()(x)
        y = ops.silu(layers.Dense(32, use_bias=False)(y)) * layers.Dense(32, use_bias=False)(y)
        x = layers.Add()([x, layers.Dense(24, use_bias=False)(y)])
    return keras.Model(words, layers.Dense(20)(layers.RMSNormalization()(x)), name="gpt_grouped")


def einsum_attention():
    """Attention written out: heads by EinsumDense, pairs of columns turned by their position, products, a softmax."""
    inputs = keras.Input((6, 12))
    x = layers.Dense(24)(inputs)
    query, key, value = (
        layers.EinsumDense("btm,mnh->btnh", (None, 4, 8), bias_axes=bias)(x) for bias in ("nh", "h", None)
    )
    angles = np.outer(np.arange(6), 0.3 ** np.arange(4)).astype("float32")
    turn = np.concatenate([angles, angles], axis=-1)[:, None]

    def turned(y):
        left, right = ops.split(y, 2, axis=-1)
        return y * np.cos(turn) + ops.concatenate([-right, left], axis=-1) * np.sin(turn)

    scores = ops.softmax(ops.einsum("btnh,bsnh->bnts", turned(query), turned(key)) * 0.3)
    y = layers.EinsumDense("btnh,nhm->btm", (None, 24), bias_axes="m")(ops.einsum("bnts,bsnh->btnh", scores, value))
    x = layers.Add()([x, y])
    heads = [ops.reshape(layers.Dense(16)(x), (-1, 6, 2, 8)) for _ in range(3)]
    y = ops.reshape(ops.dot_product_attention(*heads), (-1, 6, 16))
    left, right = (ops.transpose(layers.Dense(16)(y), (0, 2, 1)) for _ in range(2))
    y = ops.matmul(ops.softmax(ops.matmul(ops.transpose(left, (0, 2, 1)), right)), layers.Dense(16)(y))
    return keras.Model(inputs, layers.Dense(5)(layers.GlobalAveragePooling1D()(y)), name="einsum_attention")


def ssd():
    inputs = keras.Input((16, 16, 3))
    x = conv(conv(inputs, 16, strides=2), 24)
    maps = [x]
    for width in (32, 32):
        maps.append(conv(conv(maps[-1], 16, 1), width, strides=2))
    boxes, scores = [], []
    for number, (feature, anchors) in enumerate(zip(maps, (2, 3, 3), strict=True)):
        box = layers.Conv2D(4 * anchors, 3, padding="same", name=f"boxes_{number}")(feature)
        score = layers.Conv2D(3 * anchors, 3, padding="same", name=f"scores_{number}")(feature)
        boxes.append(layers.Reshape((-1, 4))(box))
        scores.append(layers.Reshape((-1, 3))(score))
    outputs = {
        "boxes": layers.Concatenate(axis=1, name="all_boxes")(boxes),
        "scores": layers.Softmax(name="all_scores")(layers.Concatenate(axis=1)(scores)),
    }
    return keras.Model(inputs, outputs, name="ssd")


def _tower(name="tower"):
    inputs = keras.Input((12, 12, 3))
    x = layers.MaxPooling2D()(conv(inputs, 16))
    x = layers.GlobalAveragePooling2D()(conv(x, 32))
    return keras.Model(inputs, layers.Dense(16)(x), name=name)


def siamese():
    """A nested model that is called twice: its channels are cut once, and both calls read the same weights."""
    left, right = keras.Input((12, 12, 3), name="left"), keras.Input((12, 12, 3), name="right")
    tower = _tower()
    distance = ops.abs(layers.Subtract()([tower(left), tower(right)]))
    x = layers.Dense(12, activation="tanh")(distance)
    return keras.Model([left, right], layers.Dense(1)(x), name="siamese")


def nested_deeply():
    """A Sequential in a functional model in a functional model, with a residual around a nested one."""
    block = keras.Sequential(
        [keras.Input((8, 8, 16)), layers.Conv2D(24, 3, padding="same"), layers.ReLU(), layers.Conv2D(16, 1)],
        name="block",
    )
    middle_inputs = keras.Input((8, 8, 3))
    x = conv(middle_inputs, 16)
    middle = keras.Model(middle_inputs, layers.Add()([x, block(x)]), name="middle")
    inputs = keras.Input((8, 8, 3))
    x = layers.MaxPooling2D()(middle(inputs))
    x = conv(x, 32)
    return keras.Model(inputs, classify(x), name="nested_deeply")


def sequential_of_models():
    head = keras.Sequential([keras.Input((16,)), layers.Dense(24, activation="relu"), layers.Dense(5)], name="head")
    return keras.Sequential(
        [keras.Input((12, 12, 3)), _tower("body"), layers.ReLU(), head], name="sequential_of_models"
    )


def nested_outputs():
    """A nested backbone of two outputs; the outer model joins them again."""
    backbone_inputs = keras.Input((8, 8, 3))
    low = conv(backbone_inputs, 16)
    backbone = keras.Model(backbone_inputs, {"low": low, "high": conv(low, 24, strides=2)}, name="backbone")
    inputs = keras.Input((8, 8, 3))
    features = backbone(inputs)
    x = layers.Concatenate()([features["low"], layers.UpSampling2D()(features["high"])])
    return keras.Model(inputs, layers.Conv2D(3, 1)(conv(x, 16)), name="nested_outputs")


def mlp_mixer():
    inputs = keras.Input((16, 16, 3))
    x = _tokens(inputs, 24)
    for _ in range(2):
        y = layers.Permute((2, 1))(layers.LayerNormalization()(x))
        y = layers.Dense(16)(layers.Dense(32, activation="gelu")(y))
        x = layers.Add()([x, layers.Permute((2, 1))(y)])
        y = layers.Dense(48, activation="gelu")(layers.LayerNormalization()(x))
        x = layers.Add()([x, layers.Dense(24)(y)])
    return keras.Model(inputs, layers.Dense(5)(layers.GlobalAveragePooling1D()(x)), name="mlp_mixer")


def _convnext(scale, name):
    inputs = keras.Input((12, 12, 3))
    x = layers.LayerNormalization(epsilon=1e-6)(layers.Conv2D(16, 2, strides=2)(inputs))
    for _ in range(2):
        y = layers.LayerNormalization(epsilon=1e-6)(layers.DepthwiseConv2D(3, padding="same")(x))
        y = layers.Dense(16)(layers.Dense(48, activation="gelu")(y))
        x = layers.Add()([x, scale()(y)])
    x = layers.Conv2D(32, 2, strides=2)(layers.LayerNormalization(epsilon=1e-6)(x))
    return keras.Model(inputs, classify(layers.LayerNormalization()(x)), name=name)


def convnext_custom_scale():
    return _convnext(ScaleChannels, "convnext_custom_scale")


def convnext_keras_scale():
    from keras.src.applications.convnext import LayerScale

    return _convnext(lambda: LayerScale(0.5, 16), "convnext_keras_scale")


def conv1d():
    inputs = keras.Input((32, 4))
    x = layers.Conv1D(16, 5, padding="causal", dilation_rate=2)(inputs)
    x = layers.BatchNormalization()(x)
    x = layers.MaxPooling1D()(layers.SeparableConv1D(24, 3, padding="same", activation="relu")(x))
    y = layers.DepthwiseConv1D(3, padding="same", depth_multiplier=2)(x)
    x = layers.Add()([x, layers.Conv1D(24, 1)(y)])
    x = layers.UpSampling1D()(layers.AveragePooling1D(2)(x))
    x = layers.Conv1DTranspose(16, 4, strides=2, padding="same", activation="elu")(x)
    x = layers.Cropping1D(1)(layers.ZeroPadding1D(2)(x))
    return keras.Model(inputs, layers.Dense(4)(layers.GlobalMaxPooling1D()(x)), name="conv1d")


def many_inputs_and_outputs():
    """An image modulated, channel by channel, by a vector; one output early, one late."""
    image, facts = keras.Input((8, 8, 3), name="image"), keras.Input((7,), name="facts")
    hidden = layers.Dense(24, activation="relu")(facts)
    x = layers.Conv2D(16, 3, padding="same")(image)
    scale = layers.Reshape((1, 1, 16))(layers.Dense(16)(hidden))
    shift = ops.expand_dims(ops.expand_dims(layers.Dense(16)(hidden), 1), 1)
    x = layers.ReLU()(ops.add(ops.multiply(x, scale), shift))
    early = layers.Dense(2, name="early")(layers.GlobalMaxPooling2D()(x))
    x = layers.Flatten()(conv(x, 24, strides=2))
    late = layers.Dense(3, name="late")(layers.Concatenate()([x, hidden]))
    return keras.Model([image, facts], [early, late], name="many_inputs_and_outputs")


def unregistered_layer():
    inputs = keras.Input((8, 8, 3))
    x = conv(conv(inputs, 24), 32)
    x = MixNeighbours(name="mystery")(layers.Conv2D(8, 1, name="touched")(x))
    return keras.Model(inputs, classify(conv(conv(x, 32), 24)), name="unregistered_layer")


ZOO = {
    build.__name__: build
    for build in (
        *(shufflenet_v2_ops, shufflenet_v2_layers, resnext, unet, vit_constant_positions, vit_learned_positions),
        *(cross_attention, gpt_tied, gpt_grouped, einsum_attention, ssd, siamese, nested_deeply),
        *(sequential_of_models, nested_outputs, mlp_mixer),
        *(convnext_custom_scale, convnext_keras_scale, conv1d, many_inputs_and_outputs, unregistered_layer),
    )
}
