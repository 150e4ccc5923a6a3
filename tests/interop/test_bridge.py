import functools

import keras
import numpy as np
import pytest
from interop.twins import TOLERANCE, largest_difference, outputs, randomized, sample
from keras.src.applications.efficientnet import EfficientNet
from keras.src.applications.resnet import ResNet, stack_residual_blocks_v1

import mobileprune as mp
from mobileprune.graph import leaves
from mobileprune.interop import process
from mobileprune.interop.bridge import tf_keras_leaves

layers = keras.layers


def nested():
    """A block that is called twice, inside a block, with layers of its own between."""
    inner = keras.Sequential(
        [keras.Input((8, 8, 4)), layers.Conv2D(4, 3, padding="same"), layers.BatchNormalization()], name="inner"
    )
    start = keras.Input((8, 8, 4))
    outer = keras.Model(start, layers.ReLU()(inner(layers.LeakyReLU(0.1)(inner(start)))), name="outer")
    inputs = keras.Input((8, 8, 4), name="image")
    return keras.Model(inputs, layers.Flatten()(outer(inputs) + outer(inputs * 0.5)), name="nested")


def shared():
    """A dense layer and a convolution that are called several times."""
    inputs = [keras.Input((6, 3), name="left"), keras.Input((6, 3), name="right")]
    conv, dense = layers.Conv1D(5, 3, activation="relu", name="conv"), layers.Dense(4, name="dense")
    left, right = (dense(layers.GlobalAveragePooling1D(keepdims=False)(conv(each))) for each in inputs)
    return keras.Model(inputs, layers.Concatenate()([left, right, layers.Multiply()([left, right])]), name="shared")


def several():
    """Two inputs, and outputs in a dictionary."""
    image, number = keras.Input((8, 8, 3), name="image"), keras.Input((4,), name="number")
    x = layers.DepthwiseConv2D(3, strides=2, padding="same", depth_multiplier=2)(image)
    x = layers.SeparableConv2D(8, 3, activation="silu")(layers.ZeroPadding2D(((0, 1), (1, 0)))(x))
    x = layers.GlobalMaxPooling2D()(x)
    y = layers.Dense(8, activation="gelu", kernel_regularizer="l2", kernel_constraint="non_neg")(number)
    x = layers.Average()([x, y])
    return keras.Model([image, number], {"class": layers.Dense(3)(x), "box": layers.Dense(4)(x)}, name="several")


def functions():
    """Functions on tensors between the layers."""
    ops, x = keras.ops, keras.Input((8, 8, 6), name="image")
    y = ops.relu6(x + 3.0) / 6.0 - ops.maximum(x, 0.2) * ops.sigmoid(-x)
    y = ops.concatenate([y[..., :3], ops.transpose(y, (0, 2, 1, 3))[:, :, :, 3:]], axis=-1)
    y = ops.reshape(y, (-1, 64, 6)) + ops.expand_dims(ops.mean(y, axis=(1, 2)), 1)
    y = ops.softmax(ops.squeeze(ops.max(y, axis=2, keepdims=True), -1), axis=-1)
    return keras.Model(x, ops.hard_silu(y) + ops.sum(ops.square(y), axis=1, keepdims=True), name="functions")


def mode_of_its_own():
    """A batch normalisation that stays in inference mode, frozen layers and another precision."""
    inputs = keras.Input((8, 8, 3))
    x = layers.BatchNormalization(axis=-1, synchronized=True)(layers.Conv2D(4, 3, groups=1)(inputs), training=False)
    x = layers.Conv2DTranspose(4, 3, strides=2, trainable=False)(x)
    return keras.Model(inputs, layers.GroupNormalization(2)(layers.LayerNormalization()(x)), name="own_mode")


def recurrent():
    inputs = keras.Input((7, 5))
    x = layers.Bidirectional(layers.LSTM(3, return_sequences=True))(inputs)
    x = layers.TimeDistributed(layers.Dense(4, activation="tanh"))(x)
    x = x + layers.MultiHeadAttention(2, 3)(x, x)
    return keras.Model(inputs, layers.GRU(3)(x), name="recurrent")


def measured():
    """What is measured on data and not trained."""
    normalization = layers.Normalization(axis=-1, name="normalization")
    normalization.adapt(np.random.default_rng(0).normal(3, 2, (50, 8, 8, 3)))
    inputs = keras.Input((8, 8, 3))
    fixed = layers.Normalization(mean=0.5, variance=4.0, name="fixed")
    x = fixed(normalization(layers.Rescaling(2.0, offset=[1.0, 2.0, 3.0])(inputs)))
    return keras.Model(inputs, layers.Conv2D(2, 3)(x), name="measured")


BY_HAND = (nested, shared, several, functions, mode_of_its_own, recurrent, measured)


def architecture(name):
    widths = {"MobileNet": 0.25, "MobileNetV2": 0.35}
    choice = {"alpha": widths[name]} if name in widths else {}
    build = getattr(keras.applications, name)
    return build(input_shape=(32, 32, 3), weights=None, classes=5, classifier_activation=None, **choice)


def there_and_back(model):
    """Checks the twin and the model that comes back from it."""
    untouched = [np.asarray(each) for each in model.weights]
    twin = mp.to_tf_keras(model)
    assert isinstance(twin, process.tf_keras().Model)
    inputs = sample(model)
    assert max(float(np.ptp(each)) for each in outputs(model, inputs)) > 1e-4  # else equality says nothing
    assert largest_difference(model, twin, inputs) < TOLERANCE
    back = mp.from_tf_keras(twin)
    assert isinstance(back, keras.Model)
    assert largest_difference(model, back, inputs) < TOLERANCE
    for one, other in ((model, twin), (twin, back)):
        pairs = zip(named(one), named(other), strict=True)
        assert all(a == b for a, b in pairs if not a.startswith("tf."))
    assert all(np.array_equal(a, b) for a, b in zip(untouched, model.weights, strict=True))
    return twin, back


def named(model):
    found = leaves(model) if isinstance(model, keras.Model) else tf_keras_leaves(model)
    return sorted(path for path, layer in found if not type(layer).__name__.endswith("OpLambda"))


@pytest.mark.parametrize("build", BY_HAND, ids=lambda build: build.__name__)
def test_models_made_by_hand(build):
    there_and_back(randomized(build()) if build is not measured else build())


@pytest.mark.parametrize("name", ["MobileNet", "MobileNetV2", "MobileNetV3Small"])
def test_architectures(name):
    there_and_back(randomized(architecture(name)))


def test_shallow_relatives_of_deep_architectures():
    choice = {"weights": None, "input_shape": (32, 32, 3), "classes": 5, "classifier_activation": None}
    there_and_back(randomized(EfficientNet(0.5, 0.3, 32, name="efficientnet", weights_name="", **choice)))
    stack = functools.partial(stack_residual_blocks_v1, filters=8, blocks=2, name="stack")
    there_and_back(randomized(ResNet(stack, False, True, name="resnet", weights_name="", **choice)))


@pytest.mark.parametrize("build", [nested, several])
def test_a_difference_would_be_noticed(build):
    model = randomized(build())
    twin = mp.to_tf_keras(model)
    weights = next(each for each in model.trainable_weights if each.shape and "bias" in each.path)
    values = np.asarray(weights).copy()
    values.flat[0] += 0.01 * max(1.0, np.abs(values).max())
    weights.assign(values)
    assert largest_difference(model, twin, sample(model)) > 10 * TOLERANCE


def test_outputs_of_other_shapes_are_no_equals():
    one, other = (keras.Sequential([keras.Input((3,)), layers.Dense(units)]) for units in (2, 1))
    assert largest_difference(one, other, sample(one)) == np.inf


def test_structures_names_and_flags_cross():
    twin, back = there_and_back(randomized(several()))
    assert set(twin.output) == set(back.output) == {"class", "box"}
    assert (twin.name, back.name) == ("several", "several")
    assert [each.name.split(":")[0] for each in twin.inputs] == ["image", "number"]
    dense = next(layer for layer in twin.layers if getattr(layer, "kernel_regularizer", None))
    assert type(dense.kernel_regularizer).__name__ == "L2"
    assert type(dense.kernel_constraint).__name__ == "NonNeg"

    model = randomized(mode_of_its_own())
    twin, back = there_and_back(model)
    frozen = [[layer.trainable for layer in each.layers if "conv2d_transpose" in layer.name] for each in (twin, back)]
    assert frozen == [[False], [False]]
    batch = np.random.default_rng(0).normal(5, 3, (4, 8, 8, 3)).astype("float32")
    for mode in (True, False):
        one, *others = (np.asarray(each(batch, training=mode)) for each in (model, twin, back))
        assert all(np.allclose(one, other, atol=1e-5) for other in others)


def test_a_sequential_model_stays_one():
    model = keras.Sequential([keras.Input((4,), name="numbers"), layers.Dense(3), layers.Softmax()], name="stack")
    twin, back = there_and_back(randomized(model))
    assert isinstance(twin, process.tf_keras().Sequential)
    assert isinstance(back, keras.Sequential)
    assert twin.name == back.name == "stack"


def test_training_mode_is_equal_too():
    model = randomized(keras.Sequential([keras.Input((4,)), layers.Dense(3), layers.BatchNormalization()]))
    twin, batch = mp.to_tf_keras(model), sample(model, batch=16)
    assert np.allclose(model(batch, training=True), twin(batch, training=True), atol=1e-5)
    assert np.allclose(model(batch), twin(batch), atol=1e-5)  # the statistics moved alike


def test_mixed_precision_crosses():
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3, dtype="mixed_bfloat16"), layers.Dense(2)])
    twin = mp.to_tf_keras(randomized(model))
    assert [layer.compute_dtype for layer in twin.layers] == ["bfloat16", "float32"]
    assert [layer.dtype_policy.name for layer in mp.from_tf_keras(twin).layers] == ["mixed_bfloat16", "float32"]


def test_everything_without_an_equal_is_named():
    inputs = keras.Input((8,))
    x = layers.RMSNormalization(name="root")(inputs)
    x = layers.Lambda(lambda x: x * 2, name="twice")(x)
    x = layers.Dense(4, activation="sparsemax", name="thin")(keras.ops.cumsum(x, axis=1))
    x = keras.Sequential([keras.Input((4,)), layers.Dense(2, activation="glu", name="gate")], name="block")(x)
    model = keras.Model(inputs, x, name="strange")
    with pytest.raises(mp.InteropError) as caught:
        mp.to_tf_keras(model)
    said = str(caught.value)
    for part in (
        "'strange'",
        "'root' (RMSNormalization)",
        "'twice' (Lambda)",
        "sparsemax",
        "(Cumsum)",
        "glu",
        "Replace",
    ):
        assert part in said


def test_a_setting_that_would_be_lost_is_an_error():
    padded = layers.Resizing(4, 4, pad_to_aspect_ratio=True, name="small")
    with pytest.raises(mp.InteropError, match=r"'small' \(Resizing\): .*pad_to_aspect_ratio=True"):
        mp.to_tf_keras(keras.Sequential([keras.Input((8, 6, 3)), padded]))


def test_layers_of_the_users_own_are_refused():
    class Twice(layers.Layer):
        def call(self, x):
            return 2 * x

    with pytest.raises(mp.InteropError, match=r"'mine' \(Twice\)"):
        mp.to_tf_keras(keras.Sequential([keras.Input((8,)), Twice(name="mine")]))


def test_a_subclassed_model_is_refused():
    class Mine(keras.Model):
        def call(self, x):
            return x

    with pytest.raises(mp.MobilePruneError, match="subclassed"):
        mp.to_tf_keras(Mine())


def test_keras_2_models_that_cannot_come_over_are_refused():
    old = process.tf_keras()
    local = old.Sequential([old.Input((6, 2)), old.layers.LocallyConnected1D(3, 2, name="local")])
    with pytest.raises(mp.InteropError, match=r"'local' \(LocallyConnected1D\): Keras 3 has no such layer"):
        mp.from_tf_keras(local)
    with pytest.raises(mp.InteropError, match="no input shape"):
        mp.from_tf_keras(old.Sequential([old.layers.Dense(2)]))
    with pytest.raises(mp.InteropError, match="takes a tf_keras model"):
        mp.from_tf_keras(keras.Sequential([keras.Input((2,))]))


def test_a_layer_that_is_always_in_training_mode_is_refused():
    old = process.tf_keras()
    inputs = old.Input((4,))
    model = old.Model(inputs, old.layers.Dropout(0.5, name="always")(inputs, training=True))
    with pytest.raises(mp.InteropError, match=r"'always' \(Dropout\): it was called with training=True"):
        mp.from_tf_keras(model)


def test_functions_of_tensorflow_come_over():
    import tensorflow as tf

    old = process.tf_keras()
    inputs = old.Input((8, 8, 6))
    x = tf.nn.relu6(inputs + 3.0) * (1.0 / 6.0) - tf.math.reduce_mean(inputs, axis=[1, 2], keepdims=True)
    x = tf.concat([x[:, 1:, :, 2:], tf.nn.leaky_relu(x[:, 1:, :, :2], alpha=0.3)], axis=-1)
    x = tf.transpose(tf.reshape(x, [-1, 56, 6]), perm=[0, 2, 1])
    model = old.Model(inputs, tf.squeeze(tf.expand_dims(tf.nn.softmax(x / 2.0), -1), axis=-1))
    assert largest_difference(model, mp.from_tf_keras(model), sample(model)) < TOLERANCE
