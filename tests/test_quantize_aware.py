import keras
import numpy as np
import pytest
from quantizable import images, network

from mobileprune.convert import convert
from mobileprune.data import load_dataset
from mobileprune.errors import ConversionError, DatasetError, ModelError
from mobileprune.fake_quant import quantizers
from mobileprune.layer_names import op_layers
from mobileprune.models import gives_probabilities, load_model
from mobileprune.pruning_callbacks import UpdatePruningStep
from mobileprune.quantize_aware import (
    calibrate_ranges,
    is_quantize_aware,
    quantize_aware,
    strip_quantization,
    unquantized_layers,
)
from mobileprune.schedules import PolynomialDecay
from mobileprune.sparsify import prune_low_magnitude, sparsity, strip_pruning
from mobileprune.tflite_graph import read_graph
from mobileprune.train import TrainSettings, train

layers = keras.layers


def small(activation=None):
    inputs = keras.Input((32, 32, 1), name="image")
    x = layers.Conv2D(8, 3, strides=4, use_bias=False, name="stem")(inputs)
    x = layers.ReLU()(layers.BatchNormalization(name="norm")(x))
    x = layers.Dense(10, activation=activation, name="head")(layers.GlobalAveragePooling2D()(x))
    return keras.Model(inputs, x, name="small")


def test_the_model_given_is_left_alone_and_the_new_one_is_known():
    model = network("inverted_residual")
    before = [np.array(weights) for weights in model.weights]
    aware = quantize_aware(model, images(model, 16))
    assert is_quantize_aware(aware)
    assert not is_quantize_aware(model)
    for old, new in zip(before, model.weights, strict=True):
        np.testing.assert_array_equal(old, new)
    assert {"quant_stem", "quant_head"} <= {layer.name for layer in aware.layers}


def test_calibrated_it_answers_nearly_as_before():
    model = network("squeeze_and_excite")
    inputs = images(model, 64, seed=1)
    expected = model.predict(inputs, verbose=0)
    found = quantize_aware(model, images(model, 64)).predict(inputs, verbose=0)
    noise = ((found - expected) ** 2).mean() / expected.var()
    assert 0 < noise < 0.01


def test_calibration_is_an_array_batches_or_an_array_for_each_input():
    model = small()
    batches = [np.random.default_rng(seed).normal(size=(8, 32, 32, 1)).astype(np.float32) for seed in range(3)]
    ways = [np.concatenate(batches), batches, [(batch, np.zeros(8)) for batch in batches]]
    ranges = [[layer.bounds for layer in quantizers(quantize_aware(model, way))] for way in ways]
    np.testing.assert_allclose(ranges[1], ranges[0], rtol=1e-5)
    np.testing.assert_allclose(ranges[2], ranges[0], rtol=1e-5)
    left, right = keras.Input((8, 8, 3)), keras.Input((8, 8, 3))
    two = keras.Model([left, right], layers.Conv2D(4, 3)(layers.Add()([left, right])))
    calibration = [np.ones((4, 8, 8, 3), np.float32), 2 * np.ones((4, 8, 8, 3), np.float32)]
    aware = quantize_aware(two, calibration)
    assert {(0.0, 1.0), (0.0, 2.0), (0.0, 3.0)} <= {layer.bounds for layer in quantizers(aware)}
    with pytest.raises(DatasetError, match="2 arrays"):
        quantize_aware(two, calibration[0])


def test_calibration_that_cannot_be_meant_is_refused():
    aware = quantize_aware(small())
    wrong = np.zeros((4, 32, 32, 1), np.float32)
    wrong[1, 2, 3] = np.nan
    with pytest.raises(DatasetError, match="NaN"):
        calibrate_ranges(aware, wrong)
    with pytest.raises(DatasetError, match="no images"):
        calibrate_ranges(aware, [])
    model = small()
    model.get_layer("stem").kernel.assign(np.full((3, 3, 1, 8), 3e38))
    with pytest.raises(DatasetError, match="before 're_lu"):
        quantize_aware(model, np.ones((4, 32, 32, 1), np.float32))


def test_layers_that_stay_in_float_are_listed_with_the_reason():
    inputs = keras.Input((8, 8, 3))
    x = layers.LayerNormalization(name="layer_norm")(layers.Conv2D(4, 3, name="conv")(inputs))
    x = layers.Conv2D(4, 3, activation="softplus", name="soft")(layers.BatchNormalization(name="alone")(x))
    x = layers.Dense(4, name="wide")(layers.Add(name="three")([x, x, x]))
    model = keras.Model(inputs, layers.Dense(2, name="head")(layers.Flatten()(x)))
    found = unquantized_layers(model)
    assert list(found) == ["layer_norm", "alone", "soft", "three", "wide"]
    assert "LayerNormalization has no" in found["layer_norm"]
    assert "softplus" in found["soft"]
    assert "more than two" in found["three"]
    aware = quantize_aware(model, np.random.default_rng(0).normal(size=(8, 8, 8, 3)).astype(np.float32))
    assert unquantized_layers(aware) == found
    (variant,) = convert(aware, ["int8_float_io"])
    assert read_graph(variant.content).float_ops()


def test_what_cannot_be_quantized_is_refused():
    aware = quantize_aware(small())
    with pytest.raises(ModelError, match="already"):
        quantize_aware(aware)
    with pytest.raises(ModelError, match="nothing to take off"):
        strip_quantization(small())
    with pytest.raises(ModelError, match="Nothing to quantize"):
        quantize_aware(keras.Sequential([keras.Input((4,)), layers.LayerNormalization()]))
    with pytest.raises(ModelError, match="no Keras model"):
        quantize_aware(layers.Dense(3))


def test_a_shared_norm_is_not_folded():
    inputs = keras.Input((8, 8, 3))
    norm = layers.BatchNormalization(name="norm")
    x = layers.Add()([norm(layers.Conv2D(4, 1)(inputs)), norm(layers.Conv2D(4, 1)(inputs))])
    assert list(unquantized_layers(keras.Model(inputs, x))) == ["norm"]


def test_a_norm_after_a_layer_that_stays_in_float_stays_too():
    inputs = keras.Input((8, 8, 3))
    x = layers.Dense(4, name="wide")(layers.Conv2D(4, 3)(inputs))
    x = layers.BatchNormalization(name="norm")(x)
    model = keras.Model(inputs, x)
    model.get_layer("norm").moving_mean.assign([1.0, 2.0, 3.0, 4.0])
    assert list(unquantized_layers(model)) == ["wide", "norm"]
    values = images(model, 8)
    np.testing.assert_allclose(quantize_aware(model, values)(values), model(values), atol=0.1)


def test_masks_follow_their_schedule_and_survive_saving(tmp_path):
    schedule = PolynomialDecay(0.0, 0.75, begin_step=0, end_step=4, frequency=1)
    model = small()
    aware = quantize_aware(prune_low_magnitude(model, schedule))
    aware.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), run_eagerly=True)
    values, labels = np.random.default_rng(0).normal(size=(16, 32, 32, 1)).astype(np.float32), np.arange(16) % 10
    aware.fit(values, labels, batch_size=4, verbose=0, callbacks=[UpdatePruningStep()])
    assert sparsity(aware) == pytest.approx(0.75, abs=0.01)
    aware.save(tmp_path / "aware.keras")
    loaded = load_model(tmp_path / "aware.keras")
    np.testing.assert_array_equal(loaded.predict(values, verbose=0), aware.predict(values, verbose=0))
    plain = strip_pruning(strip_quantization(loaded))
    assert sparsity(plain) == sparsity(aware)
    assert [layer.name for layer in plain.layers] == [layer.name for layer in model.layers]


def test_without_known_ranges_there_is_no_file():
    with pytest.raises(ModelError, match="not known: train it"):
        convert(quantize_aware(small()), ["int8"])
    model = small()
    model.get_layer("norm").beta.assign(np.full(8, -1e3))
    dead = quantize_aware(model, np.random.default_rng(0).normal(size=(8, 32, 32, 1)).astype(np.float32))
    with pytest.raises(ModelError, match="Nothing but zeros ever came through"):
        convert(dead, ["int8"])


def test_other_recipes_are_made_without_the_rounding():
    model = small()
    calibration = np.random.default_rng(0).normal(size=(16, 32, 32, 1)).astype(np.float32)
    aware = quantize_aware(model, calibration)
    made = convert(aware, ["int8", "float32", "int8_float_io"], name="mine")
    assert [(variant.model, variant.recipe) for variant in made] == [
        ("mine", "int8"),
        ("mine", "float32"),
        ("mine", "int8_float_io"),
    ]
    whole, plain, inside = (read_graph(variant.content) for variant in made)
    assert [whole.inputs[0].dtype, whole.outputs[0].dtype] == ["INT8", "INT8"]
    assert [inside.inputs[0].dtype, inside.outputs[0].dtype] == ["FLOAT32", "FLOAT32"]
    assert plain.histogram() == read_graph(convert(model)[0].content).histogram()
    low, high = next(layer.bounds for layer in quantizers(aware) if layer.name == "image_range")
    assert whole.inputs[0].scales[0] == pytest.approx((high - low) / 255, rel=1e-5)
    with pytest.raises(ConversionError, match="no recipe 'int3'"):
        convert(aware, ["int8", "int3"])


def test_ops_of_its_files_go_by_the_layers_of_the_model():
    model = small()
    aware = quantize_aware(model, np.random.default_rng(0).normal(size=(16, 32, 32, 1)).astype(np.float32))
    for variant in convert(aware, ["int8_float_io", "float32"]):
        graph = read_graph(variant.content)
        layers_of = dict(zip((op.name for op in graph.ops), op_layers(graph), strict=True))
        kernels = {name: layers_of[name] for name in ("CONV_2D", "FULLY_CONNECTED") if name in layers_of}
        assert kernels
        for name, layer in kernels.items():
            kind = keras.layers.Conv2D if name == "CONV_2D" else keras.layers.Dense
            assert isinstance(model.get_layer(layer), kind), layers_of


def test_uint8_files_and_strictness_are_those_of_other_models():
    calibration = np.random.default_rng(0).normal(size=(16, 32, 32, 1)).astype(np.float32)
    (variant,) = convert(quantize_aware(small(), calibration), ["uint8_io"], strict_int8=True)
    graph = read_graph(variant.content)
    assert [graph.inputs[0].dtype, graph.outputs[0].dtype] == ["UINT8", "UINT8"]
    inputs = keras.Input((8, 8, 3))
    model = keras.Model(inputs, layers.LayerNormalization()(layers.Conv2D(4, 3)(inputs)))
    aware = quantize_aware(model, calibration[:, :8, :8].repeat(3, axis=-1))
    convert(aware, ["int8_float_io"])
    with pytest.raises(ConversionError, match=r"leaves .* ops in float"):
        convert(aware, ["int8_float_io"], strict_int8=True)


def test_integer_input_is_refused_where_the_first_layer_stays_in_float():
    inputs = keras.Input((8, 8, 3))
    model = keras.Model(inputs, layers.Conv2D(4, 3)(layers.LayerNormalization()(inputs)))
    aware = quantize_aware(model, np.random.default_rng(0).normal(size=(8, 8, 8, 3)).astype(np.float32))
    with pytest.raises(ConversionError, match="Use 'int8_float_io'"):
        convert(aware, ["int8"])


@pytest.mark.parametrize(("activation", "expected"), [("softmax", True), (None, False)])
def test_whether_it_gives_probabilities_is_still_known(activation, expected):
    assert gives_probabilities(quantize_aware(small(activation))) is expected


def test_training_goes_on_where_it_was_killed(tmp_path):
    data = load_dataset("fashion_mnist").limited(128)
    calibration = data.calibration.images(16)

    def fresh():
        keras.utils.set_random_seed(0)
        return quantize_aware(small(), calibration)

    settings = TrainSettings(2, 32, 1e-2)
    whole = train(fresh(), data, settings, checkpoint=tmp_path / "whole")

    def killed(epoch, logs):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(fresh(), data, settings, checkpoint=tmp_path / "parts", on_epoch=killed)
    resumed = train(fresh(), data, settings, checkpoint=tmp_path / "parts")
    for one, other in zip(whole.weights, resumed.weights, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
    moved = quantize_aware(small(), calibration)
    assert [layer.bounds for layer in quantizers(whole)] != [layer.bounds for layer in quantizers(moved)]
    # The statistics that are folded stay as they were.
    np.testing.assert_array_equal(strip_quantization(whole).get_layer("norm").moving_mean, np.zeros(8))
    whole.save(tmp_path / "aware.keras")
    loaded = load_model(tmp_path / "aware.keras")
    inputs = data.validation.images(16)
    np.testing.assert_array_equal(loaded.predict(inputs, verbose=0), whole.predict(inputs, verbose=0))
