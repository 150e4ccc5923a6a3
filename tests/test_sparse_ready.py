import keras
import numpy as np
import pytest
from xnnpack_models import body, head, network, pointwise

from mobileprune.convert import to_float_flatbuffer
from mobileprune.errors import ModelError, VerificationError
from mobileprune.sparse_path import sparse_path
from mobileprune.sparse_ready import measure_rewrite, sparse_ready

layers = keras.layers


def randomise(model):
    """Weights that keep the signal's size through depthwise layers, too."""
    generator = np.random.default_rng(1)
    for layer in model.layers:
        for variable in layer.weights:
            shape, name = tuple(variable.shape), variable.path.rsplit("/", 1)[-1]
            if len(shape) > 1:
                inputs = np.prod(shape[:2] if isinstance(layer, layers.DepthwiseConv2D) else shape[:-1])
                variable.assign(generator.normal(0, 1.4 / np.sqrt(inputs), shape))
            elif name in ("gamma", "moving_variance"):
                variable.assign(generator.uniform(0.5, 1.5, shape))
            else:
                variable.assign(generator.normal(0, 0.3, shape))
    return model


def smooth(size, count=6, channels=3):
    """Images of soft blobs: shifting them by a pixel does not make others of them."""
    generator = np.random.default_rng(2)
    y, x = np.mgrid[:size, :size] / size * 6.28
    waves = [generator.normal(size=(count, 1, 1, channels)) * f[None, :, :, None] for f in (np.sin(x), np.cos(y))]
    return sum(waves).astype("float32")


def difference(model, other, size, channels=3):
    images = smooth(size, channels=channels)
    outputs = [np.asarray(each(images, training=False)) for each in (model, other)]
    assert np.ptp(outputs[0], axis=0).max() > 1e-3
    assert outputs[0].shape == outputs[1].shape
    return float(np.abs(outputs[0] - outputs[1]).max() / np.abs(outputs[0]).max())


def mobilenet(size=64, **settings):
    return randomise(
        keras.applications.MobileNet(
            (size, size, 3), alpha=0.25, weights=None, classes=10, classifier_activation=None, **settings
        )
    )


def mobilenet_v2(size=64):
    return randomise(
        keras.applications.MobileNetV2(
            (size, size, 3), alpha=0.35, weights=None, classes=10, classifier_activation=None
        )
    )


@pytest.mark.parametrize(
    ("make", "size", "eligible", "exact"),
    [(mobilenet, 128, 13, False), (mobilenet, 64, 13, True), (mobilenet_v2, 128, 34, False)],
)
def test_stock_networks_get_every_1x1_convolution_onto_the_path(make, size, eligible, exact):
    model = make(size)
    before = [np.array(weight) for weight in model.weights]
    ready = sparse_ready(model, exact=exact)
    found = sparse_path(to_float_flatbuffer(ready.model))
    assert (found.reachable, found.convolutions) == (eligible, eligible)
    assert found.obstacles == found.faults_if_sparse == ()
    moved = [change.layer for change in ready.changes if not change.exact]
    assert moved[0] in ("conv1", "Conv1")
    assert len(moved) == 1 if exact else len(moved) == 5
    assert not ready.model.compiled
    for old, weight in zip(before, model.weights, strict=True):
        np.testing.assert_array_equal(old, weight)


def test_all_but_the_stem_is_exact_where_asked():
    model = mobilenet()
    inner = {layer.name: layer for layer in model.layers}
    behind = keras.Model(inner["conv1_relu"].output, model.output)  # without the stem
    ready = sparse_ready(behind, exact=True)
    assert ready.exact
    assert sum("5x5" in change.what for change in ready.changes) == 4
    images = np.random.default_rng(0).normal(size=(3, *behind.input_shape[1:])).astype("float32")
    np.testing.assert_allclose(ready.model(images), behind(images), atol=1e-5 * np.abs(behind(images)).max())
    moved = sparse_ready(behind)
    assert not moved.exact
    assert np.abs(moved.model(images) - behind(images)).max() > 1e-3


def test_difference_notices_a_moved_pixel():
    model = mobilenet()
    assert difference(model, model, 64) == 0
    assert difference(model, sparse_ready(model).model, 64) > 1e-4


def test_odd_sizes_stay_what_they_are():
    """There TensorFlow pads on all sides anyway, and its converter says "same" of whatever does."""
    inputs = keras.Input((33, 33, 3))
    x = layers.Conv2D(8, 3, 2, name="stem")(layers.ZeroPadding2D(1)(inputs))
    model = keras.Model(inputs, head(pointwise(x, 16)))
    assert sparse_ready(model).changes == ()
    assert "'same' at stride 2" in sparse_path(to_float_flatbuffer(model)).sentence()


@pytest.mark.parametrize("before", [((0, 1), (0, 1)), ((0, 1), (1, 1)), ((1, 1), (0, 1))], ids=str)
def test_taps_of_zero_are_exact_for_every_padding(before):
    def middle(x):
        x = layers.ZeroPadding2D(before)(x)
        return pointwise(layers.DepthwiseConv2D(3, 2, name="strided")(x), 8)

    model = randomise(network(middle))
    ready = sparse_ready(model, exact=True)
    assert [change.layer for change in ready.changes] == ["strided"]
    assert ready.model.get_layer("strided").kernel.shape[:2] == (5, 5)
    assert difference(model, ready.model, 32) < 1e-5
    assert sparse_path(to_float_flatbuffer(ready.model)).reachable == 3


def test_a_five_by_five_moves():
    model = randomise(network(lambda x: pointwise(layers.DepthwiseConv2D(5, 2, padding="same", name="strided")(x), 8)))
    ready = sparse_ready(model, exact=True)
    assert [(change.layer, change.exact) for change in ready.changes] == [("strided", False)]
    assert sparse_path(to_float_flatbuffer(ready.model)).reachable == 3


def test_a_grayscale_image_is_read_as_rgb():
    model = randomise(network(channels=1))
    assert sparse_path(to_float_flatbuffer(model)).reachable == 0
    ready = sparse_ready(model)
    assert ready.exact
    assert ready.model.input_shape == model.input_shape
    assert difference(model, ready.model, 32, channels=1) < 1e-5
    assert sparse_path(to_float_flatbuffer(ready.model)).reachable == 2


def test_the_default_network_for_grayscale_photographs_gets_there():
    from mobileprune.models import mobilenet_small

    model = mobilenet_small((32, 32, 1), 10)
    found = sparse_path(to_float_flatbuffer(sparse_ready(model).model))
    assert found.reachable == found.convolutions > 10


HEADS = {
    "reshape": lambda x: layers.Reshape((10,))(layers.Conv2D(10, 1)(pooled(x))),
    "flatten, softmax inside": lambda x: layers.Flatten()(layers.Softmax()(layers.Conv2D(10, 1)(pooled(x)))),
    "two convolutions": lambda x: layers.Flatten()(
        layers.Conv2D(10, 1, use_bias=False)(
            layers.Dropout(0.2)(layers.Activation("hard_silu")(layers.BatchNormalization()(pointwise(pooled(x), 24))))
        )
    ),
    "fork": lambda x: layers.Concatenate()(
        [layers.Flatten()(layers.Conv2D(n, 1)(y)) for y in [pooled(x)] for n in (4, 6)]
    ),
}


def pooled(x):
    return layers.GlobalAveragePooling2D(keepdims=True)(x)


@pytest.mark.parametrize("name", HEADS)
def test_heads_that_break_on_arm_are_rewritten_exactly(name):
    model = randomise(network(last=HEADS[name]))
    assert sparse_path(to_float_flatbuffer(model)).faults_if_sparse
    ready = sparse_ready(model)
    assert ready.exact
    assert difference(model, ready.model, 32) < 1e-5
    found = sparse_path(to_float_flatbuffer(ready.model))
    assert (found.reachable, found.convolutions, found.faults_if_sparse) == (2, 2, ())


def excite(x):
    s = layers.Conv2D(128, 1, activation="sigmoid")(layers.Conv2D(32, 1, activation="relu")(pooled(x)))
    return layers.Multiply()([x, s])


def test_squeeze_and_excite_is_no_head():
    model = randomise(network(excite))
    ready = sparse_ready(model)
    assert ready.changes == ()
    assert difference(model, ready.model, 32) < 1e-6


def test_mobilenet_v3_gets_there_too(tmp_path):
    model = keras.applications.MobileNetV3Small(
        (64, 64, 3), alpha=0.75, weights=None, classes=10, include_preprocessing=False
    )
    ready = sparse_ready(model)
    assert sum("rank 4" in change.what for change in ready.changes) == 9
    found = sparse_path(to_float_flatbuffer(ready.model))
    assert found.reachable == found.convolutions == 40
    assert found.faults_if_sparse == ()
    ready.model.save(tmp_path / "m.keras")
    image = smooth(64, 1)
    np.testing.assert_array_equal(keras.models.load_model(tmp_path / "m.keras")(image), ready.model(image))


def test_hard_sigmoids_are_rewritten_exactly():
    def middle(x):
        s = layers.Conv2D(128, 1)(layers.Conv2D(32, 1, activation="relu")(pooled(x)))
        return pointwise(layers.Multiply()([x, layers.ReLU(6.0)(s + 3.0) * (1.0 / 6.0)]), 96)

    model = randomise(network(middle))
    assert sparse_path(to_float_flatbuffer(model)).reachable == 0
    ready = sparse_ready(model)
    assert ready.exact
    assert difference(model, ready.model, 32) < 1e-5
    assert sparse_path(to_float_flatbuffer(ready.model)).reachable == 5


def test_nested_and_sequential_models():
    inner_input = keras.Input((32, 32, 16))
    inner = keras.Model(inner_input, body(inner_input), name="inner")
    outer = keras.Sequential(
        [
            keras.Input((32 * 2, 32 * 2, 3)),
            layers.Conv2D(16, 3, 2, padding="same", name="stem"),
            inner,
            layers.GlobalAveragePooling2D(),
            layers.Dense(3),
        ]
    )
    randomise(inner)
    ready = sparse_ready(outer)
    assert [change.layer for change in ready.changes] == ["stem"]
    assert sparse_path(to_float_flatbuffer(ready.model)).reachable == 2


def test_what_cannot_change_size_and_what_is_shared_stays():
    shared = layers.DepthwiseConv2D(3, 2, padding="same", name="shared")

    def middle(x):
        x = layers.DepthwiseConv2D(3, 2, name="unpadded")(layers.ZeroPadding2D(3)(x))
        return pointwise(layers.Add()([shared(x), shared(layers.ReLU()(x))]), 8)

    model = randomise(network(middle))
    ready = sparse_ready(model)
    assert ready.changes == ()
    assert difference(model, ready.model, 32) < 1e-6


def test_the_cost_is_measured():
    model = mobilenet()
    cost = measure_rewrite(model, sparse_ready(model), smooth(64))
    assert cost.failures == ()
    assert cost.max_abs_error > 1e-3
    assert 0 <= cost.agreement <= 1
    exact = randomise(network(last=HEADS["reshape"]))
    assert measure_rewrite(exact, sparse_ready(exact), smooth(32)).snr_db > 90
    with pytest.raises(VerificationError, match="2 or more"):
        measure_rewrite(model, sparse_ready(model), smooth(64, count=1))


def test_the_result_trains_and_saves(tmp_path):
    model = sparse_ready(randomise(network(last=HEADS["reshape"], channels=1))).model
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(smooth(32, channels=1), np.arange(6), batch_size=3, verbose=0)
    model.save(tmp_path / "m.keras")
    assert difference(model, keras.models.load_model(tmp_path / "m.keras"), 32, channels=1) < 1e-6


def test_subclassed_models_are_refused():
    class Own(keras.Model):
        def call(self, x):
            return x

    with pytest.raises(ModelError, match="subclassed"):
        sparse_ready(Own())


def test_a_moved_stem_misses_the_first_row_and_column_alone():
    inputs = keras.Input((32, 32, 3))
    x = layers.Conv2D(16, 3, 2, padding="same", name="stem")(inputs)
    stem_only = randomise(keras.Model(inputs, x))
    model = randomise(keras.Model(inputs, head(body(x))))
    images = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype("float32")
    moved = np.asarray(sparse_ready(stem_only, exact=True).model(images))
    np.testing.assert_allclose(moved[:, 1:, 1:], np.asarray(stem_only(images))[:, 1:, 1:], atol=1e-5)
    assert np.abs(moved[:, 0] - np.asarray(stem_only(images))[:, 0]).max() > 0.1
    ready = sparse_ready(model, exact=True)
    assert [(change.layer, change.exact) for change in ready.changes] == [("stem", False)]
    assert sparse_path(to_float_flatbuffer(ready.model)).reachable == 2
    images[:, 0] = images[:, :, 0] = 0
    np.testing.assert_allclose(ready.model(images), model(images), atol=1e-5)
