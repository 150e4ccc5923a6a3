import warnings

import numpy as np
import pytest
from tiny_models import SIZE, images, reference, variants

from mobileprune.calibration import WINDOW, Ranges, calibrate
from mobileprune.errors import ConversionError, DatasetError, SettingsError
from mobileprune.histograms import METHODS
from mobileprune.recipes import make_variants, quantize
from mobileprune.tflite_graph import read_graph
from mobileprune.tflite_runner import TfliteRunner

pytestmark = pytest.mark.filterwarnings("ignore:.*calibration images")


@pytest.fixture
def content():
    return variants()["float32"].content


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
        ((images(4) * 50).astype(np.int32), "takes ids.* quantize it with 'dynamic_int8'"),
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


def test_every_method_measures_the_same_tensors_and_only_clips(content):
    """The runtime's profiler and the histograms see the same values: their extremes agree."""
    data = images(48, seed=1)
    extremes = calibrate(content, data)
    graph = read_graph(content)
    ends = {tensor.name for tensor in graph.inputs + graph.outputs}
    for method in METHODS:
        ranges = calibrate(content, data, method, percentile=99.0)
        clipped = 0
        for name, found in ranges.items():
            low, high = min(0.0, float(extremes[name]["min"][0])), max(0.0, float(extremes[name]["max"][0]))
            slack = 1e-5 * (high - low)
            assert low - slack <= found["min"][0] <= 0 <= found["max"][0] <= high + slack
            inside = found["max"][0] - found["min"][0] < 0.999 * (high - low)
            assert not (inside and name in ends)
            clipped += inside
        assert clipped
        assert read_graph(quantize(content, "int8", ranges)).float_ops() == ()
    whole = calibrate(content, data, "percentile", percentile=100.0)
    for name, found in whole.items():
        low, high = min(0.0, float(extremes[name]["min"][0])), max(0.0, float(extremes[name]["max"][0]))
        assert (found["min"][0], found["max"][0]) == pytest.approx((low, high), rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_histograms_depend_neither_on_the_order_nor_on_the_batches(content, method):
    data = images(40, seed=1)
    ranges = calibrate(content, data, method)
    assert calibrate(content, iter([data[30:][::-1], data[:30]]), method) == ranges


def test_a_given_input_range_is_exact_whatever_the_images(content):
    for seed in (1, 2):
        data = images(40, seed=seed).clip(-2, 2)
        ranges = calibrate(content, data, input_range=(-127 / 64, 128 / 64))
        (tensor,) = read_graph(quantize(content, "int8", ranges)).inputs
        assert (tensor.scales, tensor.zero_points) == ((1 / 64,), (-1,))


@pytest.mark.parametrize(
    ("low", "high", "message"),
    [
        (0, 255, r"values from 0\.?.* to 25\d.*, but preprocessing makes -1 to 1"),
        (-1, 1.5, r"to 1\.5, but preprocessing makes -1 to 1"),
        (0, 0.15, r"7\.5% of the range from -1 to 1"),
    ],
)
def test_images_of_another_scale_are_refused(content, low, high, message):
    data = np.random.default_rng(0).uniform(low, high, (40, SIZE, SIZE, 3)).astype(np.float32)
    data[0, 0, 0] = low, high, low
    with pytest.raises(DatasetError, match=message):
        calibrate(content, data, input_range=(-1.0, 1.0))


def test_images_that_fill_half_of_their_range_are_doubted(content):
    """0 to 1 for a model that takes -1 to 1."""
    data = np.random.default_rng(0).uniform(0, 1, (40, SIZE, SIZE, 3)).astype(np.float32)
    with pytest.warns(UserWarning, match=r"40 calibration images hold values from .* only, 50.0% of the range"):
        calibrate(content, data, input_range=(-1.0, 1.0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        calibrate(content, np.concatenate([data, -data] * 2), input_range=(-1.0, 1.0))


def test_enough_images_settle(content):
    few = calibrate(content, images(WINDOW - 1, seed=1)).settling
    assert (few.images, few.window, few.moved, few.settled) == (WINDOW - 1, 0, np.inf, False)
    many = calibrate(content, images(400, seed=1)).settling
    assert many.images == 400
    assert WINDOW <= many.window < 2 * WINDOW
    assert many.settled
    assert many.tensor in {tensor.name for tensor in read_graph(content).tensors}


def test_ranges_that_still_move_are_told_with_their_figure(content):
    data = images(80, seed=1)
    data[60:] *= 2
    with pytest.warns(UserWarning, match=r"80 calibration images are too few: the last \d+ still moved .* by \d\d%"):
        ranges = calibrate(content, data)
    assert not ranges.settling.settled
    early, late = (calibrate(content, data[:count])[ranges.settling.tensor] for count in (48, 80))
    ends = [(each["min"][0], each["max"][0]) for each in (early, late)]
    moved = max(abs(ends[1][end] - ends[0][end]) for end in (0, 1)) / (ends[1][1] - ends[1][0])
    assert ranges.settling.moved == pytest.approx(moved)
    with pytest.warns(UserWarning, match="Only 20 calibration images: too few to tell"):
        calibrate(content, data[:20])


def test_it_stops_when_the_ranges_have_settled(content):
    taken = []

    def batches():
        for seed in range(1000):
            taken.append(seed)
            yield images(16, seed=seed)

    ranges = calibrate(content, batches(), stop_when_settled=True)
    assert ranges.settling.settled
    assert WINDOW < ranges.settling.images <= 16 * len(taken) < 1000
    used = np.concatenate([images(16, seed=seed) for seed in taken])[: ranges.settling.images]
    assert calibrate(content, used) == ranges


def test_settings_that_cannot_be_meant(content):
    with pytest.raises(SettingsError, match=r"no range method 'entropy'. Known: minmax, percentile, mse"):
        calibrate(content, images(40), "entropy")
    for wrong in (50, 100.5, float("nan")):
        with pytest.raises(SettingsError, match="percentile is"):
            calibrate(content, images(40), "percentile", percentile=wrong)
    for wrong in ((1.0, -1.0), (0.0, np.inf)):
        with pytest.raises(SettingsError, match="two finite numbers"):
            calibrate(content, images(40), input_range=wrong)


@pytest.mark.parametrize("method", METHODS)
def test_histograms_refuse_nan_inside_the_model(method):
    import keras

    from mobileprune.convert import to_float_flatbuffer

    inputs = keras.Input((4, 4, 3))
    content = to_float_flatbuffer(keras.Model(inputs, keras.layers.Conv2D(2, 1)(keras.ops.log(inputs))))
    data = np.full((40, 4, 4, 3), 2, np.float32)
    data[35, 0, 0] = -1
    with pytest.raises(ConversionError, match="from number 35 on, the model computes NaN or infinity"):
        calibrate(content, data, method)


def test_ranges_are_a_dictionary_that_quantizers_take(content):
    ranges = calibrate(content, images(40))
    assert isinstance(ranges, Ranges)
    assert quantize(content, "int8", dict(ranges)) == quantize(content, "int8", ranges)
