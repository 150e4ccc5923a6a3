import keras
import numpy as np
import pytest
from architectures import ARCHITECTURES

from mobileprune.errors import ModelError
from mobileprune.inspect import LayerFacts, layer_facts, model_facts, record_of_layers
from mobileprune.schedules import ConstantSparsity
from mobileprune.sparsify import prune_low_magnitude

layers = keras.layers


def macs(layer, *shapes):
    inputs = [keras.Input(shape) for shape in shapes]
    return model_facts(keras.Model(inputs, [layer(tensor) for tensor in inputs])).macs


@pytest.mark.parametrize(
    ("layer", "shape", "by_hand"),
    [
        (layers.Conv2D(16, 3), (10, 12, 3), 8 * 10 * 9 * 3 * 16),
        (layers.Conv2D(16, (3, 5), strides=2, padding="same", use_bias=False), (9, 12, 3), 5 * 6 * 15 * 3 * 16),
        (layers.Conv2D(16, 3, dilation_rate=2), (10, 10, 3), 6 * 6 * 9 * 3 * 16),
        (layers.Conv2D(16, 3, groups=4, padding="same"), (6, 6, 8), 36 * 9 * 2 * 16),
        (layers.Conv1D(16, 3, padding="causal"), (10, 3), 10 * 3 * 3 * 16),
        (layers.DepthwiseConv2D(3, padding="same"), (6, 6, 8), 36 * 9 * 8),
        (layers.DepthwiseConv2D(3, strides=2, depth_multiplier=3), (7, 7, 8), 9 * 9 * 8 * 3),
        (layers.DepthwiseConv1D(3), (7, 8), 5 * 3 * 8),
        (layers.SeparableConv2D(16, 3), (6, 6, 8), 16 * (9 * 8 + 8 * 16)),
        (layers.SeparableConv2D(16, 3, depth_multiplier=2, strides=2), (7, 7, 8), 9 * (9 * 16 + 16 * 16)),
        (layers.SeparableConv1D(16, 3), (7, 8), 5 * (3 * 8 + 8 * 16)),
        (layers.Conv2DTranspose(16, 3, strides=2, padding="same"), (5, 6, 8), 30 * 9 * 8 * 16),
        (layers.Conv2DTranspose(16, 3), (5, 6, 8), 30 * 9 * 8 * 16),
        (layers.Conv1DTranspose(16, 4, strides=3), (5, 8), 5 * 4 * 8 * 16),
        (layers.Dense(16), (8,), 8 * 16),
        (layers.Dense(16), (5, 6, 8), 30 * 8 * 16),
        (layers.BatchNormalization(), (5, 6, 8), 0),
        (layers.MaxPooling2D(), (6, 6, 8), 0),
    ],
)
def test_macs_of_one_layer_by_hand(layer, shape, by_hand):
    assert macs(layer, shape) == by_hand


def test_macs_of_a_shared_layer_count_each_call():
    assert macs(layers.Conv2D(16, 1), (4, 4, 3), (2, 2, 3)) == (16 + 4) * 3 * 16


@pytest.mark.parametrize(
    ("build", "expected"),
    [("MobileNetV2", (300_774_272, 3_538_984)), ("MobileNet", (568_740_352, 4_253_864))],
)
def test_published_networks_at_224_pixels(build, expected):
    facts = model_facts(getattr(keras.applications, build)(weights=None))
    assert (facts.macs, facts.params) == expected


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_layers_add_up_to_the_model(name):
    model = ARCHITECTURES[name]()
    rows, facts = layer_facts(model), model_facts(model)
    assert sum(row.macs for row in rows) == facts.macs
    assert sum(row.params for row in rows) == facts.params == model.count_params()
    assert {row.name for row in rows} == {layer.name for layer in model.layers if layer.weights}


def test_layer_facts_by_hand():
    model = keras.Sequential(
        [
            keras.Input((4, 4, 3)),
            layers.Conv2D(6, 1, name="conv"),
            layers.BatchNormalization(name="norm"),
            layers.ReLU(),
            layers.DepthwiseConv2D(3, name="depthwise"),
            layers.Flatten(),
            layers.Dense(5, name="head"),
        ]
    )
    kernel = np.ones((1, 1, 3, 6), "float32")
    kernel[..., :2] = 0
    model.get_layer("conv").kernel.assign(kernel)
    model.get_layer("depthwise").kernel.assign(np.zeros((3, 3, 6, 1)))
    assert layer_facts(model) == [
        LayerFacts("conv", "Conv2D", 6, 16 * 18, 24, 6 / 18),
        LayerFacts("norm", "BatchNormalization", 0, 0, 24, 0.0),
        LayerFacts("depthwise", "DepthwiseConv2D", 0, 4 * 54, 60, 0.0),
        LayerFacts("head", "Dense", 5, 24 * 5, 125, 0.0),
    ]
    assert model_facts(model).sparsity == 6 / (18 + 120)


def test_a_wrapped_model_counts_like_the_plain_one():
    model = ARCHITECTURES["inverted_residual"]()
    wrapped = prune_low_magnitude(model, ConstantSparsity(0.5, 0))
    assert model_facts(wrapped) == model_facts(model)
    assert layer_facts(wrapped) == layer_facts(model)


def test_a_nested_model_counts_like_the_flat_one():
    base = keras.Sequential([keras.Input((4, 4, 3)), layers.Conv2D(8, 1, name="inner")], name="base")
    base.get_layer("inner").kernel.assign(np.eye(3, 8)[None, None])
    model = keras.Sequential([keras.Input((4, 4, 3)), base, layers.Flatten(), layers.Dense(4, name="head")])
    facts = model_facts(model)
    assert facts.macs == 16 * 24 + 128 * 4
    assert facts.params == model.count_params()
    assert facts.sparsity == 21 / (24 + 128 * 4)
    assert [row.name for row in layer_facts(model)] == ["base/inner", "head"]
    assert sum(row.params for row in layer_facts(model)) == facts.params


def test_a_layer_that_is_wrapped_inside_a_nested_model_counts_like_a_plain_one():
    def model(wrap):
        conv = wrap(layers.Conv2D(8, 1, name="inner"))
        base = keras.Sequential([keras.Input((4, 4, 3)), conv], name="base")
        return keras.Sequential([keras.Input((4, 4, 3)), base, layers.Flatten(), layers.Dense(4, name="head")])

    wrapped = model(lambda layer: prune_low_magnitude(layer, ConstantSparsity(0.5, 0)))
    facts = model_facts(model(lambda layer: layer))
    assert (model_facts(wrapped).macs, model_facts(wrapped).params) == (facts.macs, facts.params)


def test_models_that_cannot_be_read_are_refused():
    class Own(keras.Model):
        def __init__(self):
            super().__init__(name="own")
            self.dense = layers.Dense(2)

        def call(self, inputs):
            return self.dense(inputs)

    own = Own()
    own(np.zeros((1, 3)))
    for model in (own, keras.Sequential([keras.Input((3,)), own]), keras.Sequential([layers.Dense(2)])):
        with pytest.raises(ModelError):
            model_facts(model)


def test_nothing_of_the_model_is_changed():
    base = keras.Sequential([keras.Input((4, 4, 3)), layers.Conv2D(8, 1)], name="base")
    model = keras.Sequential([keras.Input((4, 4, 3)), base, layers.Flatten(), layers.Dense(4)])
    config, weights = model.get_config(), model.get_weights()
    model_facts(model)
    layer_facts(model)
    assert model.get_config() == config
    for before, after in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)


def test_the_record_has_the_layers_with_kernels_and_of_deep_networks_the_largest():
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(4, 3, name="small")(inputs)
    x = keras.layers.BatchNormalization(name="norm")(x)
    x = keras.layers.Conv2D(32, 3, name="large")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, keras.layers.Dense(5, name="head")(x))
    assert [layer.name for layer in record_of_layers(model)] == ["small", "large", "head"]
    assert [layer.name for layer in record_of_layers(model, most=2)] == ["large", "head"]
    assert set(record_of_layers(model)) <= set(layer_facts(model))
