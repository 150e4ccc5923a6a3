"""What judges the engine is judged first: the twin of each normalisation, and the comparison itself."""

import keras
import numpy as np
import pytest
from architectures import random_inputs, randomise
from laws.removal import SEEN_BY, _normalised, disagreement, mixes_channels, run, without_randomness
from zoo_architectures import ZOO

layers = keras.layers

NORMALISATIONS = {
    "layer": lambda: layers.LayerNormalization(),
    "layer_first_axis": lambda: layers.LayerNormalization(axis=1),
    "layer_all_axes": lambda: layers.LayerNormalization(axis=[1, 2, 3]),
    "layer_no_gamma": lambda: layers.LayerNormalization(scale=False),
    "rms": lambda: layers.RMSNormalization(),
    "group": lambda: layers.GroupNormalization(4),
    "group_no_beta": lambda: layers.GroupNormalization(2, center=False),
}


def _built(name):
    model = randomise(keras.Sequential([keras.Input((5, 6, 12)), NORMALISATIONS[name]()]))
    return model, model.layers[-1], random_inputs(model)[0]


def _weight(layer):
    return next(getattr(layer, name) for name in SEEN_BY[type(layer)] if getattr(layer, name) is not None)


@pytest.mark.parametrize("name", NORMALISATIONS)
def test_with_all_alive_the_twin_is_the_layer(name):
    model, layer, x = _built(name)
    twin = _normalised(layer, x, np.ones(_weight(layer).shape, bool))
    np.testing.assert_allclose(twin, model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", sorted(set(NORMALISATIONS) - {"layer_first_axis"}))
def test_the_twin_does_with_all_channels_what_the_layer_does_with_the_survivors(name):
    _, layer, x = _built(name)
    kept = np.array([0, 2, 4, 5, 7, 10]) if "group" not in name else np.array([0, 2, 3, 4, 6, 7, 10, 11])
    alive = np.zeros(_weight(layer).shape, bool)
    alive[..., kept] = True
    smaller = type(layer).from_config(layer.get_config())
    smaller.build(x[..., kept].shape)
    for small, large in zip(smaller.weights, layer.weights, strict=True):
        small.assign(np.array(large)[..., kept])
    twin = np.asarray(_normalised(layer, x, alive))
    np.testing.assert_allclose(twin[..., kept], smaller(x[..., kept]), rtol=1e-4, atol=1e-5)
    assert np.abs(twin - layer(x)).max() > 0.01


def test_instance_normalisation_mixes_no_channels():
    layer = layers.GroupNormalization(-1)
    layer.build((None, 4, 4, 6))
    assert not mixes_channels(layer)


@pytest.mark.parametrize("name", ["vit_learned_positions", "nested_deeply", "ssd", "shufflenet_v2_ops", "siamese"])
def test_the_twin_walks_the_graph_as_keras_does(name):
    """With a mask for a layer that is not there, every operation of the graph is called as it is."""
    model = without_randomness(randomise(ZOO[name]()))
    inputs = random_inputs(model)
    for training in (False, True):
        walked = run(model, inputs, training, alive={-1: None})
        assert disagreement(run(model, inputs, training), walked) < 1e-5


def test_outputs_of_another_shape_or_without_numbers_disagree():
    some = [np.arange(6.0).reshape(2, 3)]
    assert disagreement(some, some) == 0
    assert disagreement(some, [some[0][:, :2]]) == np.inf
    assert disagreement(some, [some[0] * np.nan]) == np.inf
    assert disagreement(some, [some[0] + 0.5]) == pytest.approx(0.1)
