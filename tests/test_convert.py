import numpy as np
import pytest
from tiny_models import DENSE_RECIPES, convnet, images, shared_convnet

from mobileprune.convert import convert, to_float_flatbuffer
from mobileprune.errors import ConversionError, ModelError
from mobileprune.tflite_graph import read_graph
from mobileprune.tflite_runner import TfliteRunner


def test_every_recipe_comes_out_in_order_and_smaller_than_float():
    recipes = [recipe.name for recipe in DENSE_RECIPES]
    variants = convert(shared_convnet(), recipes, calibration=images(20), name="base")
    assert [(variant.model, variant.recipe) for variant in variants] == [("base", recipe) for recipe in recipes]
    assert all(len(variant.content) < len(variants[0].content) for variant in variants[1:])


def test_the_default_is_one_float_file():
    (variant,) = convert(shared_convnet())
    assert (variant.model, variant.recipe) == ("model", "float32")


def test_the_model_is_left_alone_and_its_training_mode_is_not_converted():
    import keras

    inputs = keras.Input((8,))
    x = keras.layers.Dropout(0.9)(keras.layers.BatchNormalization()(inputs))
    model = keras.Model(inputs, keras.layers.Dense(3)(x))
    model.layers[1].moving_mean.assign(np.arange(8.0))
    model.layers[1].moving_variance.assign(np.arange(1.0, 9.0))
    before = [np.array(variable) for variable in model.variables]
    batch = np.random.default_rng(0).normal(size=(5, 8)).astype(np.float32)
    with TfliteRunner(to_float_flatbuffer(model)) as runner:
        np.testing.assert_allclose(runner.run(batch), model(batch, training=False), atol=1e-5)
    for old, variable in zip(before, model.variables, strict=True):
        np.testing.assert_array_equal(old, variable)


def test_layer_names_survive():
    names = " ".join(tensor.name for tensor in read_graph(to_float_flatbuffer(shared_convnet())).tensors)
    for layer in ("stem", "depthwise", "project", "head"):
        assert layer in names


def test_the_batch_is_one_or_as_asked():
    assert read_graph(to_float_flatbuffer(shared_convnet())).inputs[0].shape[0] == 1
    assert read_graph(to_float_flatbuffer(shared_convnet(), batch=8)).inputs[0].shape[0] == 8
    assert read_graph(to_float_flatbuffer(shared_convnet(), batch=None)).inputs[0].shape[0] == -1


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_named(value):
    model = convnet(seed=5)
    kernel = model.get_layer("depthwise").kernel
    values = kernel.numpy()
    values[0, 0, :2] = value
    kernel.assign(values)
    with pytest.raises(ModelError, match=r"depthwise/kernel' holds 2 values"):
        convert(model)


def test_models_without_a_fixed_size_are_refused():
    import keras

    with pytest.raises(ModelError, match="Build it"):
        convert(keras.Sequential([keras.layers.Dense(2)]))
    inputs = keras.Input((None, None, 3))
    with pytest.raises(ModelError, match="fixed sizes"):
        convert(keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(inputs)))


def test_names_and_data_are_checked_before_the_slow_part():
    with pytest.raises(ConversionError, match=r"no recipe 'int3'\. Known: float32, float16"):
        convert(None, ["float32", "int3"])
    with pytest.raises(ConversionError, match="needs calibration data"):
        convert(None, ["float32", "int8"])


def test_what_the_converter_says_is_in_the_error_and_not_on_the_terminal(capfd):
    import keras
    import tensorflow as tf

    class Unsupported(keras.layers.Layer):
        def call(self, inputs):
            return tf.raw_ops.Betainc(a=inputs, b=inputs, x=inputs)

        def compute_output_shape(self, shape):
            return shape

    inputs = keras.Input((4,))
    model = keras.Model(inputs, Unsupported()(inputs), name="special")
    with pytest.raises(ConversionError, match=r"'special' does not convert.*Betainc") as caught:
        convert(model)
    assert "\n" not in str(caught.value)
    convert(shared_convnet(), ["float32", "int8"], calibration=images(20))
    assert capfd.readouterr() == ("", "")
