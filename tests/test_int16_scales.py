import numpy as np
import pytest
from tiny_models import variants

from mobileprune.convert import convert
from mobileprune.errors import ModelError
from mobileprune.int16_scales import with_general_int16
from mobileprune.tflite_graph import read_graph
from mobileprune.tflite_rewrite import packed, unpacked
from mobileprune.verify import verify


def sums(model):
    return [op.builtinOptions for op in model.subgraphs[0].operators if hasattr(op.builtinOptions, "potScaleInt16")]


@pytest.mark.filterwarnings("ignore:.*calibration images")
@pytest.mark.parametrize("subtract", [False, True])
def test_pixels_scaled_by_powers_of_two_can_be_shifted(subtract):
    import keras

    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Rescaling(1 / 127.5)(inputs)
    x = keras.ops.subtract(x, np.ones((1, 1, 1, 3), "float32")) if subtract else keras.layers.Rescaling(1.0, -1.0)(x)
    x = keras.layers.Conv2D(4, 3, padding="same")(x)  # what pads with zeros cannot take the shift in
    model = keras.Model(inputs, keras.layers.Flatten()(x))
    pixels = np.random.default_rng(0).uniform(0, 255, (40, 8, 8, 3)).astype(np.float32)
    pixels[0, 0, 0], pixels[0, 0, 1] = 0, 255
    (variant,) = convert(model, ["int16x8"], calibration=pixels)

    assert ("SUB" if subtract else "ADD") in read_graph(variant.content).histogram()
    report = verify(model, variant, pixels)
    report.raise_if_failed()
    assert report.snr_db > 30


def test_only_16_bit_sums_change():
    int16 = variants()["int16x8"].content
    assert [each.potScaleInt16 for each in sums(unpacked(int16))] == [False]
    assert with_general_int16(int16) == packed(unpacked(int16))
    for recipe in ("float32", "int8"):
        assert with_general_int16(variants()[recipe].content) is variants()[recipe].content


def test_sums_without_options_get_some():
    model = unpacked(variants()["int16x8"].content)
    for op in model.subgraphs[0].operators:
        if hasattr(op.builtinOptions, "potScaleInt16"):
            op.builtinOptions, op.builtinOptionsType = None, 0
    content = with_general_int16(packed(model))
    assert [each.potScaleInt16 for each in sums(unpacked(content))] == [False]


def test_a_damaged_file_is_refused():
    with pytest.raises(ModelError):
        with_general_int16(variants()["int16x8"].content[:500])
