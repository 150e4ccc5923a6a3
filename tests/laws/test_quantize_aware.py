"""The laws of quantization-aware training: the file says what the model said, and what is taken off leaves nothing."""

import keras
import numpy as np
import pytest
from architectures import randomise
from quantizable import CLASSES, NETWORKS, images, network

from mobileprune.convert import to_learned_flatbuffer
from mobileprune.fake_quant import quantizers
from mobileprune.masks import magnitude_mask
from mobileprune.prunable import prunable_weights
from mobileprune.quantize_aware import quantize_aware, strip_quantization, unquantized_layers
from mobileprune.records import Variant
from mobileprune.sparsify import hold_zeros, sparsity, strip_pruning
from mobileprune.tflite_graph import read_graph
from mobileprune.verify import verify

layers = keras.layers


def fit(model, inputs, epochs=1, **settings):
    generator = np.random.default_rng(3)
    labels = generator.integers(0, CLASSES, len(inputs))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-3), loss, run_eagerly=not settings, **settings)
    model.fit(inputs, labels, batch_size=16, epochs=epochs, verbose=0)
    return model


def checked(aware, inputs):
    """What the int8 file is, and how it agrees with the fake-quantized model."""
    content = to_learned_flatbuffer(aware, "int8_float_io")
    return read_graph(content), verify(aware, Variant(aware.name, "int8_float_io", content), inputs)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_int8_file_agrees_with_the_trained_model(name):
    model = network(name)
    assert unquantized_layers(model) == {}
    aware = fit(quantize_aware(model, images(model, 64, seed=1)), images(model, 64, seed=2))
    graph, report = checked(aware, images(model, 200, seed=3))
    report.raise_if_failed()
    # Random networks have more images between two classes than trained ones.
    assert report.agreement >= 0.98
    assert report.snr_db >= 30
    assert graph.float_ops() == ()
    assert all(tensor.dtype == "INT8" for tensor in graph.weights())
    assert graph.histogram().get("DEQUANTIZE", 0) == 1  # the output's


def test_agreement_tells_one_wrong_range():
    model = network("inverted_residual")
    aware = quantize_aware(model, images(model, 64, seed=1))
    content = to_learned_flatbuffer(aware, "int8_float_io")
    wrong = quantizers(aware)[1]
    wrong.maximum.assign(wrong.maximum * 0.3)
    report = verify(aware, Variant("wrong", "int8_float_io", content), images(model, 200, seed=3))
    assert report.snr_db < 20
    assert report.agreement < 0.97


@pytest.mark.parametrize("name", NETWORKS)
def test_taken_off_at_once_nothing_has_changed(name):
    model = network(name)
    inputs = images(model, 8)
    stripped = strip_quantization(quantize_aware(model, images(model, 16, seed=1)))
    np.testing.assert_array_equal(stripped(inputs, training=False), model(inputs, training=False))
    assert stripped.count_params() == model.count_params()
    if name != "nested_and_shared":
        assert [layer.name for layer in stripped.layers] == [layer.name for layer in model.layers]
        assert [type(layer) for layer in stripped.layers] == [type(layer) for layer in model.layers]


def made_sparse(model, share=0.6):
    for layer in model.layers:
        for variable in prunable_weights(layer).values():
            values = np.array(variable)
            variable.assign(np.where(magnitude_mask(values, share), values, 0))
    return model


def zeros(model):
    return {weights.path: np.array(weights) == 0 for weights in model.weights if "kernel" in weights.path}


def zero_fraction(model):
    return np.concatenate([found.ravel() for found in zeros(model).values()]).mean()


@pytest.mark.parametrize("name", ["inverted_residual", "separable_and_pooled"])
def test_zeros_are_exactly_where_they_were(name):
    model = made_sparse(network(name))
    aware = fit(quantize_aware(hold_zeros(model), images(model, 32, seed=1)), images(model, 64, seed=2))
    plain = strip_pruning(strip_quantization(aware))
    assert sparsity(plain) == sparsity(model) > 0.5
    before = zeros(model)
    for place, found in zeros(plain).items():
        np.testing.assert_array_equal(found, before[place])
    assert any(not np.array_equal(new, old) for new, old in zip(plain.get_weights(), model.get_weights(), strict=True))
    # Weights smaller than half a step join them in the file.
    assert read_graph(to_learned_flatbuffer(aware)).zero_fraction() >= zero_fraction(model) > 0.3


def test_without_holding_them_zeros_are_lost():
    model = made_sparse(network("inverted_residual"))
    aware = fit(quantize_aware(model, images(model, 32, seed=1)), images(model, 64, seed=2))
    assert sparsity(strip_quantization(aware)) < 0.1


def test_graph_and_xla_train_as_eager_does():
    inputs = keras.Input((8, 8, 3))
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(8, 3, strides=2)(inputs)))
    model = randomise(keras.Model(inputs, layers.Dense(CLASSES)(layers.Flatten()(layers.Concatenate()([x, x])))))
    calibration, batches = images(model, 32, seed=1), images(model, 32, seed=2)
    trained = [
        fit(quantize_aware(model, calibration), batches, **settings)
        for settings in ({}, {"jit_compile": False}, {"jit_compile": True})
    ]
    for other in trained[1:]:
        for one, two in zip(trained[0].weights, other.weights, strict=True):
            np.testing.assert_allclose(one, two, rtol=1e-3, atol=1e-3, err_msg=one.path)
