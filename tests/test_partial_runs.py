import keras
import numpy as np
import pytest
from architectures import ARCHITECTURES, random_inputs, randomise
from laws.removal import disagreement, run

from mobileprune.errors import DatasetError, ModelError
from mobileprune.graph import leaves
from mobileprune.partial_runs import PartialRuns, assigned

layers, ops = keras.layers, keras.ops


def with_weights(model):
    return [layer for _, layer in leaves(model) if layer.weights]


def masked():
    """A mask made at the front counts at the end: it must survive every cut."""
    inputs = keras.Input((6,), dtype="int32")
    x = layers.Embedding(10, 8, mask_zero=True, name="embed")(inputs)
    x = layers.Dense(8, activation="relu", name="first")(x)
    x = layers.Dense(8, activation="relu", name="second")(x)
    return randomise(keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling1D()(x)), name="masked"))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_running_from_any_cut_is_running_the_model(name):
    model = randomise(ARCHITECTURES[name]())
    inputs = random_inputs(model, 3)
    changed = with_weights(model)
    runs = PartialRuns(model, changed)
    head, generator = runs.start(inputs), np.random.default_rng(1)
    unchanged = run(model, inputs)
    for layer in sorted(changed, key=runs.cut):
        runs.advance(head, runs.cut(layer))
        weight = layer.weights[0]
        with assigned([(weight, np.array(weight) * generator.uniform(0.5, 1.5, weight.shape))]):
            expected = run(model, inputs)
            assert disagreement(expected, runs.finish(head)) < 1e-5
        assert disagreement(unchanged, runs.finish(head)) < 1e-5


def test_images_may_leave_the_first_axis():
    inputs = keras.Input((8, 4))
    x = ops.transpose(layers.Dense(8, name="first")(inputs), (1, 0, 2))
    x = ops.transpose(layers.Dense(8, name="second")(x), (1, 0, 2))
    model = randomise(keras.Model(inputs, layers.Dense(3, name="third")(layers.Flatten()(x))))
    runs = PartialRuns(model, with_weights(model))
    for batch in (3, 5):
        given = random_inputs(model, batch)
        head = runs.start(given)
        for name in ("first", "second", "third"):
            runs.advance(head, runs.cut(model.get_layer(name)))
            assert disagreement(run(model, given), runs.finish(head)) < 1e-5


def test_masks_pass_the_cuts():
    model = masked()
    words = np.array([[1, 2, 3, 0, 0, 0], [4, 5, 6, 7, 8, 9]], np.int32)
    runs = PartialRuns(model, with_weights(model))
    head = runs.start(words)
    runs.advance(head, runs.cut(model.get_layer("second")))
    found = runs.finish(head)
    assert disagreement(run(model, [words]), found) < 1e-5
    # Without the mask it would be another answer.
    inside = keras.Model(model.input, model.get_layer("second").output)(words)
    unmasked = np.asarray(model.layers[-1](np.asarray(inside).mean(axis=1)))
    assert disagreement([unmasked], found) > 1e-2


def test_images_go_in_batches_of_about_one_size():
    model = randomise(ARCHITECTURES["sequential_convnet"]())
    images = np.random.default_rng(0).normal(size=(130, 12, 12, 3)).astype("float32")
    runs = PartialRuns(model, with_weights(model))
    head = runs.start(images)
    assert [len(next(iter(batch.values()))) for batch in head.batches] == [44, 43, 43]
    runs.advance(head, runs.cut(with_weights(model)[2]))
    assert disagreement(run(model, [images]), runs.finish(head)) < 1e-5
    assert runs.kept_bytes(images) == 12 * 12 * 16 * 4  # behind the stem, in front of its batch norm


def test_the_cut_never_moves_back():
    model = randomise(ARCHITECTURES["sequential_convnet"]())
    runs = PartialRuns(model, with_weights(model))
    head = runs.start(random_inputs(model, 2))
    runs.advance(head, 2)
    with pytest.raises(ValueError, match="run to cut 2, which lies behind cut 1"):
        runs.advance(head, 1)


def test_weights_come_back_whatever_happens():
    layer = layers.Dense(2)
    layer.build((None, 3))
    before = np.array(layer.kernel)

    def fail():
        with assigned([(layer.kernel, before * 2), (layer.kernel, before * 3)]):
            raise RuntimeError(
                f"while the first weight is {np.array(layer.kernel)[0, 0] / before[0, 0]:g} times its own"
            )

    with pytest.raises(RuntimeError, match="is 3 times its own"):
        fail()
    assert np.array_equal(layer.kernel, before)


def test_bad_input_is_one_clear_error():
    model = ARCHITECTURES["sequential_convnet"]()
    with pytest.raises(ModelError, match="'stranger' is never called"):
        PartialRuns(model, [layers.Dense(2, name="stranger")])
    with pytest.raises(DatasetError, match="calibration data are"):
        PartialRuns(model, []).start(np.zeros((2, 5, 5, 3), "float32"))
