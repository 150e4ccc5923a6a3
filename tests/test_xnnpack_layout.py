"""What was seen of LiteRT 2.3.0's XNNPACK on an emulated ARM64 processor, network by network: how many 1x1 convolutions
ran on sparse kernels (its profiler's "SPMM"), and whether the answers were right there."""

import keras
import pytest
from xnnpack_models import depthwise, head, network, pointwise, stem

from mobileprune.convert import to_float_flatbuffer
from mobileprune.sparse_path import sparse_path

layers, ops = keras.layers, keras.ops


def squeeze_and_excite(x):
    s = layers.GlobalAveragePooling2D(keepdims=True)(x)
    s = layers.Conv2D(128, 1, activation="sigmoid")(layers.Conv2D(32, 1, activation="relu")(s))
    return pointwise(layers.Multiply()([x, s]), 96)


def hard_squeeze_and_excite(x):
    s = layers.GlobalAveragePooling2D(keepdims=True)(x)
    s = layers.Conv2D(128, 1)(layers.Conv2D(32, 1, activation="relu")(s))
    return pointwise(layers.Multiply()([x, layers.ReLU(6.0)(s + 3.0) * (1.0 / 6.0)]), 96)


def then(layer):
    """The layer, and a 1x1 convolution behind it."""
    return {"middle": lambda x: pointwise(layer(x), 64)}


def last(function):
    return {"last": function}


def pool(x):
    return layers.GlobalAveragePooling2D()(x)


# Settings of `network`, convolutions on sparse kernels, whether the file broke or answered wrongly.
SEEN = {
    "plain": ({}, 2, False),
    "stem padded as TensorFlow does": (
        {"first": lambda x: layers.Conv2D(16, 3, 2, padding="same", activation="relu6")(x)},
        *(0, False),
    ),
    "asymmetric padding in the middle": (then(lambda x: layers.DepthwiseConv2D(3, 2, padding="same")(x)), 1, True),
    "pool keeping dimensions, convolution, flatten": (
        last(lambda x: layers.Flatten()(layers.Conv2D(10, 1)(layers.GlobalAveragePooling2D(keepdims=True)(x)))),
        *(2, True),
    ),
    "pool keeping dimensions, flatten, dense": (
        last(lambda x: layers.Dense(10)(layers.Flatten()(layers.GlobalAveragePooling2D(keepdims=True)(x)))),
        *(2, False),
    ),
    "pool at the end": (last(lambda x: pool(pointwise(x, 10))), 3, False),
    "pool and softmax": (last(lambda x: layers.Softmax()(pool(pointwise(x, 10)))), 3, False),
    "two dense layers": (last(lambda x: layers.Dense(10)(layers.Dense(64, activation="relu")(pool(x)))), 2, False),
    "two heads": (last(lambda x: layers.Concatenate()([layers.Dense(4)(pool(x)), head(pointwise(x, 64))])), 3, False),
    "flatten": (last(lambda x: layers.Dense(10)(layers.Flatten()(x))), 0, False),
    "largest of the image": (last(lambda x: layers.Dense(10)(layers.GlobalMaxPooling2D()(x))), 0, False),
    "average pooling": (last(lambda x: layers.Dense(10)(layers.Flatten()(layers.AveragePooling2D(8)(x)))), 0, False),
    "squeeze and excite": ({"middle": squeeze_and_excite}, 5, False),
    "squeeze and excite with a hard sigmoid": ({"middle": hard_squeeze_and_excite}, 0, False),
    "residual": ({"middle": lambda x: layers.Add()([x, pointwise(depthwise(x), 128)])}, 3, False),
    "a tensor added to itself": (then(lambda x: layers.Add()([x, x])), 0, False),
    "a tensor times itself": (then(lambda x: ops.multiply(x, x)), 3, False),
    "hard swish": (then(lambda x: layers.Activation("hard_silu")(x)), 3, False),
    "swish": (then(lambda x: layers.Activation("silu")(x)), 3, False),
    "leaky": (then(lambda x: layers.LeakyReLU()(x)), 3, False),
    "parametric": (then(lambda x: layers.PReLU(shared_axes=[1, 2])(x)), 1, True),
    "max pooling": (then(lambda x: layers.MaxPooling2D()(x)), 1, True),
    "subtraction": ({"middle": lambda x: pointwise(layers.Subtract()([x, pointwise(x, 128)]), 64)}, 0, False),
    "concatenation": ({"middle": lambda x: pointwise(layers.Concatenate()([x, pointwise(x, 32)]), 64)}, 0, False),
    "bilinear resize": (then(lambda x: layers.UpSampling2D(2, interpolation="bilinear")(x)), 3, False),
    "five by five": (then(lambda x: depthwise(x, 2, 5)), 3, False),
    "not square": ({"first": lambda x: stem(layers.Cropping2D(((0, 8), (0, 0)))(x))}, 2, False),
    "mean over channels": (last(lambda x: layers.Dense(10)(layers.Flatten()(ops.mean(x, axis=3)))), 2, False),
    "mean over height": (last(lambda x: layers.Dense(10)(layers.Flatten()(ops.mean(x, axis=1)))), 2, True),
    "mean over height, kept": (then(lambda x: ops.mean(x, axis=1, keepdims=True)), 3, True),
}


@pytest.mark.parametrize("name", SEEN)
def test_the_layout_is_what_was_seen_on_arm(name):
    settings, convolutions, broken = SEEN[name]
    found = sparse_path(to_float_flatbuffer(network(**settings)))
    assert (found.reachable, bool(found.faults_if_sparse)) == (convolutions, broken)
    assert found.taken == 0  # dense weights
    assert found.faults == ()
