import dataclasses

import numpy as np
import pytest
from photo_models import edited
from tiny_models import convnet, images, rescaled_weights, variants

from mobileprune.errors import ModelError, VerificationError
from mobileprune.layer_errors import HIGHEST_DB, LayerErrors, _Sums, layer_errors, paired_ops
from mobileprune.report.layer_plot import layer_plot
from mobileprune.tflite_graph import read_graph

IMAGES = images(16, seed=7)
OPS = ["INPUT", "CONV_2D", "DEPTHWISE_CONV_2D", "CONV_2D", "ADD", "MEAN", "FULLY_CONNECTED"]


def errors(recipe, content=None):
    made = variants()
    return layer_errors(made["float32"].content, made[recipe].content if content is None else content, IMAGES)


def test_a_file_does_not_differ_from_itself():
    found = errors("float32")
    assert [layer.op for layer in found.layers] == OPS
    assert {layer.snr_db for layer in found.layers} == {HIGHEST_DB}
    assert found.first_fall() is None
    assert found.unpaired == ()
    assert "No op loses" in found.sentence()


@pytest.mark.parametrize("recipe", ["float16", "dynamic_int8", "int8", "int8_float_io", "int16x8"])
def test_every_recipe_s_ops_are_paired(recipe):
    found = errors(recipe)
    assert [layer.op for layer in found.layers] == OPS
    assert found.unpaired == ()
    floor = 40 if recipe == "float16" else 15
    assert all(layer.snr_db > floor for layer in found.layers)
    integer = recipe.startswith("int")
    assert all((layer.range_used is not None) == integer for layer in found.layers)
    assert LayerErrors.from_json(found.to_json()) == found


def test_the_last_op_agrees_with_the_outputs():
    from mobileprune.verify import verify

    made = variants()
    outputs = verify(convnet(), made["int8"], IMAGES)
    assert errors("int8").layers[-1].snr_db == pytest.approx(outputs.snr_db, abs=1.0)


def test_the_first_op_that_is_wrong_is_named():
    found = errors("int8", rescaled_weights(variants()["int8"].content, 3.0))
    first = found.first_fall()
    assert first == found.layers[-1] == found.worst(1)[0]
    assert (first.layer, first.op) == ("head", "FULLY_CONNECTED")
    assert "head (FULLY_CONNECTED)" in found.sentence()
    assert first.fall_db > 20


def test_noise_that_is_passed_on_is_no_loss():
    def ruin(model):
        graph = model.subgraphs[0]
        stem = graph.tensors[graph.operators[0].inputs[1]].quantization
        stem.scale = [2.0 * scale for scale in stem.scale]

    found = errors("int8", edited(variants()["int8"], ruin).content)
    assert found.first_fall() == found.layers[1]
    assert found.layers[1].layer == "stem"
    assert found.layers[1].fall_db > 20
    assert all(layer.fall_db < found.layers[1].fall_db / 2 for layer in found.layers[2:])
    assert found.layers[-1].snr_db < 15


def test_values_beyond_the_range_are_counted():
    def narrow(model):
        graph = model.subgraphs[0]
        output = graph.tensors[graph.operators[3].outputs[0]].quantization
        output.scale = [output.scale[0] / 4]

    found = errors("int8", edited(variants()["int8"], narrow).content)
    assert found.layers[4].cut > 0.05
    assert found.layers[4].range_used > 0.99
    assert errors("int8").layers[4].cut < 0.01


def test_files_with_other_names_are_paired_by_order():
    def rename(model):
        for number, tensor in enumerate(model.subgraphs[0].tensors):
            tensor.name = f"t{number}"

    other = edited(variants()["int8"], rename)
    assert [layer.snr_db for layer in errors("int8", other.content).layers] == [
        layer.snr_db for layer in errors("int8").layers
    ]


def test_a_file_of_another_model_has_nothing_in_common():
    import keras

    from mobileprune.convert import to_float_flatbuffer

    inputs = keras.Input((16, 16, 3), name="image")
    other = to_float_flatbuffer(keras.Model(inputs, keras.layers.Flatten()(inputs)))
    with pytest.raises(VerificationError, match="no op in common"):
        errors("float32", other)
    assert paired_ops(read_graph(other), read_graph(other)) != []


def test_what_cannot_be_compared_is_an_error():
    content = variants()["float32"].content
    with pytest.raises(VerificationError, match="1 images tell no signal"):
        layer_errors(content, content, IMAGES[:1])
    with pytest.raises(ModelError, match="not a"):
        layer_errors(content, b"rubbish", IMAGES)


def test_sums_are_those_of_all_images_at_once():
    generator = np.random.default_rng(0)
    expected = generator.normal(3, 1, (10, 4, 5)).astype(np.float32)
    actual = expected + generator.normal(0, 0.1, expected.shape).astype(np.float32)
    sums = _Sums((-10.0, 10.0, 0.1))
    for wanted, got in zip(expected, actual, strict=True):
        sums.add(wanted, got)
    signal = ((expected - expected.mean(axis=0)) ** 2).sum()
    noise = ((actual - expected) ** 2).sum()
    assert sums.snr_db == pytest.approx(10 * np.log10(signal / noise), abs=1e-3)
    by_channel = ((expected - expected.mean(axis=0)) ** 2).sum(axis=(0, 1)) / ((actual - expected) ** 2).sum(
        axis=(0, 1)
    )
    assert sums.channel_snr_db == pytest.approx(np.median(10 * np.log10(by_channel)), abs=1e-3)
    assert sums.largest == pytest.approx(np.abs(actual - expected).max())
    assert sums.errors / sums.count == pytest.approx(np.abs(actual - expected).mean(), rel=1e-5)
    assert sums.range_used == pytest.approx((expected.max() - expected.min()) / 20, rel=1e-5)
    assert sums.cut == 0


def test_nan_is_the_worst_there_is():
    sums = _Sums(None)
    for value in (1.0, 2.0):
        sums.add(np.full((1, 2), value, np.float32), np.full((1, 2), np.nan, np.float32))
    assert sums.snr_db == sums.channel_snr_db == -HIGHEST_DB
    assert np.isfinite([sums.largest, sums.errors]).all()


def test_the_plot_shows_every_layer():
    found = errors("int8")
    odd = dataclasses.replace(found.layers[1], layer="a<b>$c")
    drawing = layer_plot(dataclasses.replace(found, layers=(odd, *found.layers[1:])), "net & co")
    assert drawing.startswith("<svg")
    assert "a&lt;b&gt;" in drawing
    assert "net &amp; co" in drawing
