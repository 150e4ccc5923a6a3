import keras
import numpy as np
import pytest
import tensorflow as tf

from mobileprune.errors import SettingsError
from mobileprune.fake_quant import FakeQuantize, QuantizedActivation, QuantizedKernel, constants, measured_ranges
from mobileprune.pruning_wrapper import PruneLowMagnitude

layers = keras.layers


def built(layer, shape=(None, 4)):
    layer.build(shape)
    return layer


def test_a_range_starts_from_the_first_batch_and_follows_slowly():
    layer = built(FakeQuantize(momentum=0.9))
    layer(np.float32([[-1.0, 0.0, 2.0, 3.0]]), training=True)
    assert layer.bounds == (-1.0, 3.0)
    layer(np.float32([[-2.0, 0.0, 2.0, 5.0]]), training=True)
    np.testing.assert_allclose(layer.bounds, (-1.1, 3.2), rtol=1e-6)


def test_a_range_always_holds_zero():
    layer = built(FakeQuantize())
    layer(np.float32([[2.0, 3.0, 4.0, 5.0]]), training=True)
    assert layer.bounds == (0.0, 5.0)


@pytest.mark.parametrize("how", ["inference", "frozen"])
def test_a_range_stays_when_nothing_trains(how):
    layer = built(FakeQuantize())
    layer(np.float32([[0.0, 1.0]]), training=True)
    layer.trainable = how != "frozen"
    layer(np.float32([[0.0, 9.0]]), training=how == "frozen")
    assert layer.bounds == (0.0, 1.0)


def test_values_get_256_steps_and_zero_is_one_of_them():
    layer = FakeQuantize(fixed=(-1.0, 2.0))
    found = np.asarray(layer(np.linspace(-2, 3, 5001, dtype=np.float32)))
    assert len(np.unique(found)) == 256
    assert float(layer(np.float32(0.0))) == 0.0
    assert np.abs(np.diff(np.unique(found)) - 3 / 255).max() < 1e-6


def test_without_a_range_values_pass():
    values = np.float32([[0.1234, -5.4321]])
    np.testing.assert_array_equal(built(FakeQuantize())(values), values)
    # A batch of nothing but zeros tells no range either.
    layer = built(FakeQuantize())
    np.testing.assert_array_equal(layer(0 * values, training=True), 0 * values)
    assert layer.bounds == (0.0, 0.0)


def test_members_of_a_range_have_averages_of_their_own():
    layer = built(FakeQuantize(members=2, momentum=0.5))
    layer(np.float32([1.0, -1.0]), training=True, member=0)
    layer(np.float32([9.0, 0.0]), training=True, member=1)
    assert layer.bounds == (-1.0, 9.0)
    layer(np.float32([3.0, 0.0]), training=True, member=0)
    assert layer.bounds == (-0.5, 9.0)
    layer(np.float32([30.0, 0.0]), training=True, member=None)
    assert layer.bounds == (-0.5, 9.0)


def test_gradients_pass_inside_the_range_only():
    layer = FakeQuantize(fixed=(0.0, 1.0))
    values = tf.constant([-0.5, 0.3, 0.7, 1.5])
    with tf.GradientTape() as tape:
        tape.watch(values)
        total = tf.reduce_sum(layer(values))
    np.testing.assert_array_equal(tape.gradient(total, values), [0.0, 1.0, 1.0, 0.0])


def test_measured_ranges_are_the_extremes_and_nothing_is_rounded_meanwhile():
    inputs = keras.Input((2,))
    model = keras.Model(inputs, FakeQuantize()(inputs))
    with measured_ranges(model):
        for values in ([[-1.0, 0.123]], [[0.5, 4.0]], [[0.0, 1.0]]):
            np.testing.assert_array_equal(model(np.float32(values)), np.float32(values))
    assert model.layers[-1].bounds == (-1.0, 4.0)


def test_what_cannot_be_a_range_or_momentum_is_refused():
    with pytest.raises(SettingsError, match="does not hold zero"):
        FakeQuantize(fixed=(1.0, 2.0))
    with pytest.raises(SettingsError, match="momentum"):
        FakeQuantize(momentum=1.0)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (layers.Conv2D(6, 3, strides=2, padding="same"), (None, 8, 8, 4)),
        (layers.Conv2D(6, 3, groups=2, dilation_rate=2, activation="relu"), (None, 8, 8, 4)),
        (layers.DepthwiseConv2D(3, depth_multiplier=2, strides=2), (None, 8, 8, 4)),
        (layers.SeparableConv2D(6, 3, depth_multiplier=2, strides=2, padding="same"), (None, 8, 8, 4)),
        (layers.Dense(6, activation="relu"), (None, 8)),
    ],
    ids=["conv", "grouped", "depthwise", "separable", "dense"],
)
def test_a_kernel_layer_is_the_layer_and_its_norm_but_for_the_rounding(layer, shape):
    layer = type(layer).from_config(layer.get_config())
    norm = layers.BatchNormalization() if layer.activation is keras.activations.linear else None
    wrapped = built(QuantizedKernel(layer, norm), shape)
    generator = np.random.default_rng(0)
    for weights in (*layer.weights, *(norm.weights if norm else ())):
        weights.assign(generator.uniform(0.5, 1.5, weights.shape) * (-1.0) ** ("kernel" in weights.path))
    inputs = generator.normal(size=(3, *shape[1:])).astype(np.float32)
    expected = layer(inputs) if norm is None else norm(layer(inputs), training=False)
    found = np.asarray(wrapped(inputs, training=True))
    assert found.shape == tuple(wrapped.compute_output_shape((3, *shape[1:])))
    error = np.abs(found - expected).max() / np.abs(expected).max()
    assert 0 < error < 0.01


def test_kernels_have_255_values_a_channel_and_zeros_stay_zeros():
    kernel = np.random.default_rng(0).normal(size=(1, 1, 400, 3)).astype(np.float32) * [1.0, 0.01, 100.0]
    kernel[0, 0, :40] = 0
    layer = layers.Conv2D(3, 1, use_bias=False)
    wrapped = built(QuantizedKernel(layer), (None, 1, 1, 400))
    layer.kernel.assign(kernel)
    rounded = np.asarray(wrapped(np.eye(400, dtype=np.float32).reshape(400, 1, 1, 400)))[:, 0, 0]
    assert (rounded[:40] == 0).all()
    steps = np.abs(kernel).max(axis=(0, 1, 2)) / 127
    assert np.abs(rounded - kernel[0, 0]).max(axis=0) == pytest.approx(steps / 2, rel=0.1)
    np.testing.assert_allclose(rounded / steps, np.rint(rounded / steps), atol=1e-3)


def test_a_dead_channel_keeps_its_bias():
    layer = layers.Conv2D(2, 1)
    wrapped = built(QuantizedKernel(layer), (None, 1, 1, 2))
    layer.kernel.assign(np.zeros((1, 1, 2, 2)))
    layer.bias.assign([1.0, -2.0])
    np.testing.assert_array_equal(wrapped(np.ones((1, 1, 1, 2), np.float32))[0, 0, 0], [1.0, -2.0])


def test_masks_of_a_wrapped_layer_still_hold():
    inner = PruneLowMagnitude(layers.Dense(4), None)
    wrapped = built(QuantizedKernel(inner), (None, 6))
    values = np.random.default_rng(0).normal(size=(6, 4))
    values[::2] = 0
    inner.layer.kernel.assign(values)
    inner.mask_zeros()
    model = keras.Sequential([keras.Input((6,)), wrapped])
    model.compile(keras.optimizers.Adam(0.1), "mse", run_eagerly=True)
    model.fit(np.ones((8, 6), np.float32), np.ones((8, 4), np.float32), verbose=0)
    after = np.asarray(inner.layer.kernel)
    assert (after[::2] == 0).all()
    assert (after[1::2] != values[1::2]).all()


@pytest.mark.parametrize("name", ["silu", "hard_sigmoid", "tanh"])
def test_activations_in_steps_are_the_activations_but_for_the_rounding(name):
    values = np.linspace(-5, 5, 101, dtype=np.float32)
    expected = np.asarray(keras.activations.get(name)(values))
    assert np.abs(np.asarray(QuantizedActivation(name)(values)) - expected).max() < 0.025


def test_the_layers_survive_saving(tmp_path):
    inputs = keras.Input((8, 8, 4))
    x = FakeQuantize(members=2)(inputs)
    x = QuantizedKernel(layers.SeparableConv2D(6, 3, use_bias=False), layers.BatchNormalization())(x)
    x = QuantizedActivation("silu", layers.Activation("silu", name="swish"))(FakeQuantize(fixed=(-2.0, 2.0))(x))
    model = keras.Model(inputs, x)
    values = np.random.default_rng(0).normal(size=(2, 8, 8, 4)).astype(np.float32)
    model(values, training=True)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", safe_mode=True)
    np.testing.assert_array_equal(loaded(values), model(values))
    assert loaded.layers[-1].layer.name == "swish"


def test_constants_change_nothing_and_end():
    inputs = keras.Input((8,))
    model = keras.Model(inputs, FakeQuantize()(QuantizedKernel(layers.Dense(4))(inputs)))
    values = np.random.default_rng(0).normal(size=(2, 8)).astype(np.float32)
    model(values, training=True)
    before = np.asarray(model(values))
    with constants(model):
        model.layers[1].layer.kernel.assign(model.layers[1].layer.kernel * 2)
        np.testing.assert_allclose(model(values), before, atol=1e-6)
    assert not np.allclose(model(values), before)
