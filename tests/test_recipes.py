import pytest
from tiny_models import DENSE_RECIPES, images, variants

from mobileprune.errors import ConversionError
from mobileprune.recipes import make_variants, quantize
from mobileprune.tflite_graph import read_graph


@pytest.fixture
def content():
    return variants()["float32"].content


def test_float32_is_the_file_itself(content):
    assert quantize(content, "float32") is content


@pytest.mark.parametrize("recipe", DENSE_RECIPES, ids=str)
def test_input_and_output_are_as_the_recipe_says(recipe):
    graph = read_graph(variants()[recipe.name].content)
    assert {tensor.dtype for tensor in graph.inputs + graph.outputs} == {recipe.io.upper()}


def test_unknown_recipes_are_listed(content):
    known = "float32, float16, dynamic_int8, int8, int8_float_io, uint8_io"
    with pytest.raises(ConversionError, match=rf"'int2'\. Known: {known}"):
        make_variants(content, ["int2"])


def test_missing_calibration_is_refused_with_the_way_out(content):
    for refused in (lambda: make_variants(content, ["int8"]), lambda: quantize(content, "int8")):
        with pytest.raises(ConversionError, match=r"'int8' needs calibration data.*Give calibration="):
            refused()


def test_an_op_that_stays_in_float_is_seen():
    import keras

    from mobileprune.convert import convert

    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(4, 3)(inputs)
    model = keras.Model(inputs, keras.layers.ELU()(keras.layers.GlobalAveragePooling2D()(x)))
    for variant in convert(model, ["int8", "int8_float_io"], calibration=images(10, size=8)):
        graph = read_graph(variant.content)
        assert [op.name for op in graph.float_ops()] == ["ELU"]
        assert graph.outputs[0].dtype == ("INT8" if variant.recipe == "int8" else "FLOAT32")


def test_an_output_of_integers_is_no_lack_of_the_quantizer():
    import keras

    from mobileprune.convert import convert

    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Dense(6)(keras.layers.GlobalAveragePooling2D()(inputs))
    model = keras.Model(inputs, keras.ops.top_k(x, 2)[1])
    with pytest.raises(ConversionError, match=r"output .* in INT32, because the model itself computes integers there"):
        convert(model, ["int8"], calibration=images(10, size=8))


def test_a_damaged_file_is_refused(content):
    from mobileprune.errors import ModelError

    with pytest.raises(ModelError):
        quantize(content[:1000], "float16")
