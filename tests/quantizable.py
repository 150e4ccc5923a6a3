"""Small networks of everything that quantization-aware training knows, every weight and statistic random."""

import keras
import numpy as np
from architectures import randomise

layers = keras.layers
CLASSES = 5


def _head(x):
    return layers.Dense(CLASSES, name="head")(x)


def separable_and_pooled():
    inputs = keras.Input((12, 12, 3))
    x = layers.SeparableConv2D(16, 3, strides=2, padding="same", use_bias=False)(inputs)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.AveragePooling2D(2)(layers.ZeroPadding2D()(x))
    x = layers.SeparableConv2D(8, 3, depth_multiplier=2, activation="relu")(x)
    return keras.Model(inputs, _head(layers.Flatten()(layers.MaxPooling2D(2)(x))), name="separable_and_pooled")


def hard_activations():
    inputs = keras.Input((16, 16, 3))
    x = layers.Conv2D(16, 3, strides=2, padding="same", use_bias=False)(inputs)
    x = layers.Activation("hard_swish")(layers.BatchNormalization()(x))
    s = layers.GlobalAveragePooling2D(keepdims=True)(x)
    s = layers.Conv2D(16, 1)(layers.Conv2D(8, 1, activation="relu")(s))
    x = layers.Multiply()([x, layers.ReLU(6.0)(s + 3.0) * (1.0 / 6.0)])
    y = layers.Conv2D(16, 1, activation="hard_sigmoid")(x)
    x = layers.ReLU(6.0)(layers.Add()([x, y]))
    x = layers.Dropout(0.2)(layers.GlobalAveragePooling2D()(x))
    return keras.Model(inputs, layers.Softmax()(_head(x)), name="hard_activations")


def squeeze_and_excite():
    inputs = keras.Input((12, 12, 3))
    x = layers.Activation("silu")(layers.BatchNormalization()(layers.Conv2D(32, 3, name="stem")(inputs)))
    s = layers.Reshape((1, 1, 32))(layers.GlobalAveragePooling2D()(x))
    s = layers.Conv2D(16, 1, activation="swish")(s)
    x = layers.Multiply()([x, layers.Conv2D(32, 1, activation="sigmoid")(s)])
    x = layers.LeakyReLU(0.1)(layers.Conv2D(16, 1)(x))
    return keras.Model(inputs, _head(layers.GlobalAveragePooling2D()(x)), name="squeeze_and_excite")


def inverted_residual():
    inputs = keras.Input((16, 16, 3))
    x = layers.Conv2D(16, 3, strides=2, padding="same", use_bias=False, name="stem")(inputs)
    x = layers.ReLU(6.0)(layers.BatchNormalization()(x))
    y = layers.ReLU(6.0)(layers.BatchNormalization()(layers.Conv2D(48, 1, use_bias=False)(x)))
    y = layers.DepthwiseConv2D(3, padding="same", use_bias=False)(y)
    y = layers.ReLU(6.0)(layers.BatchNormalization()(y))
    y = layers.BatchNormalization()(layers.Conv2D(16, 1, use_bias=False)(y))
    x = layers.Add()([x, y])
    x = layers.DepthwiseConv2D(3, strides=2, depth_multiplier=2)(layers.ZeroPadding2D(((0, 1), (0, 1)))(x))
    return keras.Model(inputs, _head(layers.GlobalMaxPooling2D()(x)), name="inverted_residual")


def concatenated():
    inputs = keras.Input((12, 12, 3))
    stem = layers.Conv2D(16, 3, padding="same")(inputs)
    gate = layers.Conv2D(16, 1, activation="sigmoid")(stem)
    x = layers.Concatenate()([layers.Conv2D(16, 1, activation="relu")(stem), stem, layers.Multiply()([stem, gate])])
    x = layers.Conv2D(24, 3, strides=2, groups=2)(x)
    x = layers.Concatenate()([x, layers.Cropping2D(((1, 0), (1, 0)))(layers.MaxPooling2D()(stem))])
    return keras.Model(inputs, _head(layers.Flatten()(x)), name="concatenated")


def nested_and_shared():
    inner = keras.Sequential(
        [
            keras.Input((12, 12, 3)),
            layers.Conv2D(8, 3, name="tower"),
            layers.BatchNormalization(name="tower_norm"),
            layers.ReLU(name="tower_relu"),
        ],
        name="inner",
    )
    inputs = keras.Input((12, 12, 3))
    turned = layers.Permute((2, 1, 3))(inputs)
    x = layers.Conv2D(16, 3, strides=2)(layers.Subtract()([inner(inputs), inner(turned)]))
    return keras.Model(inputs, _head(layers.GlobalAveragePooling2D()(x)), name="nested_and_shared")


NETWORKS = {
    build.__name__: build
    for build in (
        separable_and_pooled,
        hard_activations,
        squeeze_and_excite,
        inverted_residual,
        concatenated,
        nested_and_shared,
    )
}


def network(name, seed=0):
    """A network with random weights whose classes all occur."""
    model = randomise(NETWORKS[name](), seed)
    head = model.get_layer("head")
    inputs = images(model, 128, seed=99)
    logits = np.asarray(keras.Model(model.input, head.output)(inputs, training=False))
    bias = np.asarray(head.bias)
    head.kernel.assign(head.kernel * 2.0 / logits.std(axis=0))
    head.bias.assign(2.0 * (bias - logits.mean(axis=0)) / logits.std(axis=0))
    return model


def images(model, count, seed=0):
    """Coarse patches with some noise, as `tiny_models.images`, in the size of the model."""
    size = model.inputs[0].shape[1]
    generator = np.random.default_rng(seed)
    patches = generator.normal(size=(count, 4, 4, 3)).repeat(size // 4, axis=1).repeat(size // 4, axis=2)
    return (patches + generator.normal(0, 0.2, (count, size, size, 3))).astype(np.float32)
