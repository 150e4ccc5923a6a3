import keras
import numpy as np
import pytest

import mobileprune as mp
from mobileprune.interop import activations, process

BOTH = sorted({*activations._SAME, *activations._TWINS, "hard_swish"})


@pytest.fixture(scope="module")
def numbers():
    return np.linspace(-8, 8, 801, dtype=np.float32)[None].repeat(2, axis=0)


@pytest.mark.parametrize("name", BOTH)
def test_a_function_of_keras_3_is_the_same_in_keras_2(name, numbers):
    model = keras.Sequential([keras.Input((801,)), keras.layers.Activation(name, name="it")])
    twin = mp.to_tf_keras(model)
    assert np.allclose(model(numbers), twin(numbers), atol=1e-5)
    assert [layer.name for layer in twin.layers] == ["it"]
    assert np.allclose(model(numbers), mp.from_tf_keras(twin)(numbers), atol=1e-5)


def test_every_function_of_keras_2_comes_over(numbers):
    old = process.tf_keras()
    names = {name for name in dir(old.activations) if not name.startswith("_")} - {"get", "serialize", "deserialize"}
    assert len(names) > 10
    for name in names:
        model = old.Sequential([old.Input((801,)), old.layers.Activation(name)])
        assert np.allclose(model(numbers), mp.from_tf_keras(model)(numbers), atol=1e-5), name


def test_the_two_hard_sigmoids_differ_and_both_cross(numbers):
    old = process.tf_keras()
    assert not np.allclose(*(each.layers.Activation("hard_sigmoid")(numbers) for each in (old, keras)), atol=1e-2)
    model = old.Sequential([old.Input((801,)), old.layers.Dense(5, activation="hard_sigmoid", name="dense")])
    back = mp.from_tf_keras(model)
    assert [layer.name for layer in back.layers] == ["dense", "dense_hard_sigmoid_slope", "dense_hard_sigmoid"]
    assert np.allclose(model(numbers), back(numbers), atol=1e-5)


def test_where_the_other_hard_sigmoid_would_be_needed_is_an_error():
    old = process.tf_keras()
    model = old.Sequential([old.Input((4, 3)), old.layers.LSTM(2, recurrent_activation="hard_sigmoid", name="lstm")])
    with pytest.raises(mp.InteropError, match=r"'lstm' \(LSTM\): Keras 3 has another hard_sigmoid"):
        mp.from_tf_keras(model)


@pytest.mark.parametrize("kind", ["h5", "keras"])
def test_functions_that_keras_2_lacks_survive_cloning_and_files(kind, tmp_path, numbers):
    model = keras.Sequential([keras.Input((801,)), keras.layers.Dense(3, activation="hard_silu")])
    twin = mp.to_tf_keras(model)
    clone = process.tf_keras().models.clone_model(twin)
    clone.set_weights(twin.get_weights())
    assert np.allclose(clone(numbers), model(numbers), atol=1e-5)
    twin.save(tmp_path / f"twin.{kind}")
    assert np.allclose(mp.from_tf_keras(tmp_path / f"twin.{kind}")(numbers), model(numbers), atol=1e-5)


def test_names_that_are_none():
    with pytest.raises(mp.InteropError, match="no stock function"):
        activations.plain_name(3)
    with pytest.raises(mp.InteropError, match="Keras 3 has no activation 'wavy'"):
        activations.for_keras_3("wavy")
