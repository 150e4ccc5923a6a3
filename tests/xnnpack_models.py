"""Small networks that meet the conditions of XNNPACK's sparse kernels, each but for what a test breaks."""

import keras
import numpy as np

layers = keras.layers
SIZE = 32


def stem(x, padding=1, filters=16, size=3, strides=2):
    x = layers.ZeroPadding2D(padding)(x)
    return layers.Conv2D(filters, size, strides, activation="relu6", name="stem")(x)


def depthwise(x, strides=1, size=3, **settings):
    if strides == 2:
        return layers.DepthwiseConv2D(size, 2, **settings)(layers.ZeroPadding2D(size // 2)(x))
    return layers.DepthwiseConv2D(size, padding="same", activation="relu", **settings)(x)


def pointwise(x, filters, **settings):
    return layers.Conv2D(filters, 1, activation="relu6", **settings)(x)


def body(x):
    """Two 1x1 convolutions behind depthwise ones."""
    return pointwise(depthwise(pointwise(depthwise(x), 64), 2), 128)


def head(x):
    return layers.Dense(10)(layers.GlobalAveragePooling2D()(x))


def network(middle=None, first=stem, last=head, channels=3):
    """stem → body → `middle` → head, with biases that are not zero."""
    keras.utils.set_random_seed(1)
    inputs = keras.Input((SIZE, SIZE, channels), name="image")
    x = body(first(inputs))
    model = keras.Model(inputs, last(middle(x) if middle else x), name="net")
    generator = np.random.default_rng(5)
    for layer in model.layers:
        if getattr(layer, "bias", None) is not None:
            layer.bias.assign(generator.uniform(-0.2, 0.2, layer.bias.shape))
    return model


def with_zeros(model, share=0.8, kinds=(layers.Conv2D,)):
    """Sets a random share of every 1x1 kernel (and of other kinds of layers) to zero, in place."""
    generator = np.random.default_rng(0)
    for layer in model.layers:
        if type(layer) in kinds and getattr(layer, "kernel_size", (1, 1)) == (1, 1):
            kernel = np.array(layer.kernel)
            kernel[generator.random(kernel.shape) < share] = 0
            layer.kernel.assign(kernel)
    return model


def images(count=8, channels=3):
    return np.random.default_rng(3).uniform(-1, 1, (count, SIZE, SIZE, channels)).astype("float32")
