import keras
import numpy as np
import pytest
from architectures import ARCHITECTURES, random_inputs, randomise
from op_architectures import OPS
from zoo_architectures import ZOO

from mobileprune.equalize import equalize
from mobileprune.schedules import ConstantSparsity
from mobileprune.sparsify import prune_low_magnitude, prune_now, sparsity

layers = keras.layers
NETWORKS = {**ARCHITECTURES, **ZOO, **OPS}
# Nothing in these passes factors: normalisations over channels, swish and softmax stand in every way.
UNTOUCHED = {
    *("vit_constant_positions", "vit_learned_positions", "mlp_mixer", "layer_normalisations"),
    *("convnext_custom_scale", "convnext_keras_scale", "gpt_tied", "gpt_grouped", "einsum_attention"),
}


def difference(model, other, inputs, training=False):
    """The largest difference of two models' outputs, as a share of the largest output."""
    answers = [keras.tree.flatten(each(inputs, training=training)) for each in (model, other)]
    pairs = [tuple(map(np.asarray, pair)) for pair in zip(*answers, strict=True)]
    return max(np.abs(one - two).max() / max(np.abs(one).max(), 1e-6) for one, two in pairs)


def changed(model, other):
    """Names of the layers whose weights differ."""
    pairs = zip(model._flatten_layers(), other._flatten_layers(), strict=True)
    return {
        one.name
        for one, two in pairs
        if not isinstance(one, keras.Model)
        and any(not np.array_equal(a, b) for a, b in zip(one.get_weights(), two.get_weights(), strict=True))
    }


def called(model):
    inputs = random_inputs(model)
    return inputs if len(inputs) > 1 else inputs[0]


@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_stay(name):
    model = randomise(NETWORKS[name]())
    balanced = equalize(model)
    assert bool(changed(model, balanced)) == (name not in UNTOUCHED)
    assert difference(model, balanced, called(model)) < 1e-4


def chain(activation="relu"):
    """Convolution, batch norm, depthwise, convolution, dense layer, with channels of very different sizes."""
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(8, 3, name="first")(inputs)
    x = layers.Activation(activation)(layers.BatchNormalization(name="norm")(x))
    x = layers.Activation(activation)(layers.DepthwiseConv2D(3, depth_multiplier=2, name="depthwise")(x))
    x = layers.Conv2D(6, 1, activation=activation, name="second")(x)
    outputs = layers.Dense(4, name="head")(layers.Flatten()(x))
    model = randomise(keras.Model(inputs, outputs))
    for name in ("depthwise", "second"):
        layer = model.get_layer(name)
        kernel = np.asarray(layer.kernel)
        factors = np.geomspace(0.01, 3, kernel.shape[2]).reshape(1, 1, -1, 1)
        layer.kernel.assign(kernel * factors)
    return model


def spread(kernel, axis):
    """The largest over the smallest channel of a kernel along an axis."""
    values = np.abs(np.asarray(kernel))
    largest = values.max(axis=tuple(other for other in range(values.ndim) if other != axis))
    return largest.max() / largest.min()


def test_each_channel_is_made_as_strongly_as_it_is_read():
    model = chain()
    balanced = equalize(model)
    first, norm, depthwise, second, head = (
        balanced.get_layer(name) for name in ("first", "norm", "depthwise", "second", "head")
    )
    folded = np.abs(np.asarray(first.kernel)).max(axis=(0, 1, 2)) * np.abs(np.asarray(norm.gamma))
    made = folded / np.sqrt(np.asarray(norm.moving_variance) + norm.epsilon)
    middle = np.abs(np.asarray(depthwise.kernel)).max(axis=(0, 1))
    np.testing.assert_allclose(made, middle.max(axis=1), rtol=0.01)
    reads = np.abs(np.asarray(second.kernel)).max(axis=(0, 1, 3))
    np.testing.assert_allclose(middle.reshape(-1), reads, rtol=0.01)
    made = np.abs(np.asarray(second.kernel)).max(axis=(0, 1, 2))
    np.testing.assert_allclose(made, np.abs(np.asarray(head.kernel)).reshape(16, 6, 4).max(axis=(0, 2)), rtol=0.01)
    assert spread(second.kernel, 2) < 0.3 * spread(model.get_layer("second").kernel, 2)


def test_training_goes_on_as_before():
    """What batch norms read keeps its size: with the statistics of a batch, too, the outputs are the same."""
    model = chain()
    balanced = equalize(model)
    assert changed(model, balanced) == {"norm", "depthwise", "second", "head"}
    assert difference(model, balanced, called(model), training=True) < 1e-4


def test_nothing_passes_relu6_unless_it_is_replaced():
    model = chain("relu6")
    assert changed(model, equalize(model)) == set()
    replaced = equalize(model, replace_relu6=True)
    assert changed(model, replaced) == {"norm", "depthwise", "second", "head"}
    assert model.get_layer("second").activation is keras.activations.relu6
    assert difference(chain("relu"), replaced, called(model)) < 1e-4
    assert difference(model, replaced, 40 * called(model)) > 1e-2


def test_the_comparison_notices_another_model():
    model = chain()
    other = keras.models.clone_model(model)
    other.set_weights([1.01 * weight for weight in model.get_weights()])
    assert difference(model, other, called(model)) > 1e-3
    assert changed(model, other) == {"first", "norm", "depthwise", "second", "head"}


@pytest.mark.parametrize("activation", ["sigmoid", "swish", "elu", "softmax"])
def test_nothing_passes_other_activations(activation):
    model = chain(activation)
    assert changed(model, equalize(model)) == set()


def test_dead_channels_and_those_that_nobody_reads_stay():
    model = chain()
    kernel = np.asarray(model.get_layer("second").kernel).copy()
    kernel[:, :, 3] = 0  # nobody reads it
    kernel[..., 2] = 0  # nothing makes it
    model.get_layer("second").kernel.assign(kernel)
    balanced = equalize(model)
    assert all(np.isfinite(weight).all() for weight in balanced.get_weights())
    assert difference(model, balanced, called(model)) < 1e-4


def test_zeros_stay_and_wrappers_come_off():
    model = chain()
    sparse = prune_now(prune_low_magnitude(model, ConstantSparsity(0.5, begin_step=0, frequency=1)))
    balanced = equalize(sparse)
    assert [type(layer) for layer in balanced.layers] == [type(layer) for layer in model.layers]
    assert sparsity(balanced) == sparsity(sparse) >= 0.5
    assert difference(sparse, balanced, called(model)) < 1e-4


def test_the_model_itself_is_left_alone():
    model = chain()
    before = [weight.copy() for weight in model.get_weights()]
    equalize(model, replace_relu6=True)
    assert all(map(np.array_equal, before, model.get_weights()))


def test_equal_models_are_left_as_they_are():
    """A second pass finds nothing to do."""
    balanced = equalize(chain())
    again = equalize(balanced)
    for one, two in zip(balanced.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_allclose(one, two, rtol=0.01)
