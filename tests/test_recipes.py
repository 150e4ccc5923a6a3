import numpy as np
import pytest
from tiny_models import DENSE_RECIPES, SIZE, images, reference, variants

from mobileprune.calibration import calibrate
from mobileprune.errors import ConversionError, DatasetError
from mobileprune.recipes import make_variants, quantize
from mobileprune.tflite_graph import read_graph
from mobileprune.tflite_runner import TfliteRunner


@pytest.fixture
def content():
    return variants()["float32"].content


def test_float32_is_the_file_itself(content):
    assert quantize(content, "float32") is content


@pytest.mark.parametrize("recipe", DENSE_RECIPES, ids=str)
def test_input_and_output_are_as_the_recipe_says(recipe):
    graph = read_graph(variants()[recipe.name].content)
    assert {tensor.dtype for tensor in graph.inputs + graph.outputs} == {recipe.io.upper()}


def test_ranges_depend_neither_on_the_order_nor_on_the_batches(content):
    data = images(40, seed=1)
    as_array = calibrate(content, data)
    backwards = calibrate(content, iter([data[30:][::-1], data[:30]]))
    with_labels = calibrate(content, [(data[:7], np.zeros(7)), (data[7:], np.zeros(33))])
    for name, extremes in as_array.items():
        for other in (backwards, with_labels):
            assert extremes == other[name]


def test_the_range_of_the_input_is_that_of_the_data(content):
    data = images(40, seed=1)
    tensor = read_graph(quantize(content, "int8", calibrate(content, data))).inputs[0]
    low = (-128 - tensor.zero_points[0]) * tensor.scales[0]
    assert low == pytest.approx(data.min(), abs=tensor.scales[0])
    assert low + 255 * tensor.scales[0] == pytest.approx(data.max(), abs=tensor.scales[0])


def test_calibration_on_real_images_beats_a_wrong_scale(content):
    """The figure that shows that calibration matters, and that this test could fail."""

    def error(data):
        (variant,) = make_variants(content, ["int8"], data)
        with TfliteRunner(variant.content) as runner:
            return np.std(runner.run(images(256, seed=7)) - reference())

    assert error(images(100, seed=1)) < 0.2 * error(images(100, seed=1) * 30)


def test_unknown_recipes_are_listed(content):
    with pytest.raises(ConversionError, match=r"'int2'\. Known: float32, float16, dynamic_int8, int8, int8_float_io"):
        make_variants(content, ["int2"])


def test_missing_calibration_is_refused_with_the_way_out(content):
    for refused in (lambda: make_variants(content, ["int8"]), lambda: quantize(content, "int8")):
        with pytest.raises(ConversionError, match=r"'int8' needs calibration data.*Give calibration="):
            refused()


def with_nan() -> np.ndarray:
    data = images(20)
    data[3, 0, 0] = np.nan
    data[5, 0, 0, 0] = np.inf
    return data


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (with_nan(), r"image 3 holds 3 values that are NaN or infinite \(2 such images"),
        ([images(10), with_nan()], "image 13 holds 3 values"),
        (np.zeros((9, SIZE, SIZE, 3), np.float32), "All 9 calibration images hold the one value 0"),
        (np.full((9, SIZE, SIZE, 3), 0.5, np.float32), "hold the one value 0.5"),
        (images(0), "no images"),
        ([], "no images"),
        ((images(4) * 50).astype(np.uint8), "are uint8, not float32"),
        (images(4)[..., :1], r"shape \(4, 16, 16, 1\), but the model takes \(N, 16, 16, 3\)"),
        (images(4)[0], r"shape \(16, 16, 3\)"),
        (17, "type int"),
    ],
)
def test_data_that_cannot_be_meant_is_refused(content, data, message):
    with pytest.raises(DatasetError, match=message):
        make_variants(content, ["int8"], data)


def test_graphs_with_a_fixed_reshape_are_calibrated():
    """In batches of another size than the file's, such a graph fails at allocation."""
    import keras

    from mobileprune.convert import to_float_flatbuffer

    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(8, 1)(keras.layers.GlobalAveragePooling2D(keepdims=True)(inputs))
    model = keras.Model(inputs, keras.layers.Dense(4)(keras.layers.Flatten()(inputs * x[..., :3])))
    for batch in (1, 4):
        content = to_float_flatbuffer(model, batch=batch)
        (variant,) = make_variants(content, ["int8"], images(10, size=8))
        assert read_graph(variant.content).float_ops() == ()


@pytest.mark.parametrize("value", [-1.0, 0.0])
def test_nan_and_infinity_inside_the_model_are_refused(value):
    import keras

    from mobileprune.convert import convert

    inputs = keras.Input((4, 4, 3))
    model = keras.Model(inputs, keras.layers.Conv2D(2, 1)(keras.ops.log(inputs)))
    data = np.full((40, 4, 4, 3), 2, np.float32)
    data[35, 0, 0] = value
    with pytest.raises(ConversionError, match="from number 35 on, the model computes NaN or infinity"):
        convert(model, ["int8"], calibration=data)


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


def test_a_damaged_file_is_refused(content):
    from mobileprune.errors import ModelError

    with pytest.raises(ModelError):
        quantize(content[:1000], "float16")
