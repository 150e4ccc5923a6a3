import keras
import numpy as np
import pytest
from interop.twins import randomized

import mobileprune as mp
from mobileprune.data import load_dataset
from mobileprune.errors import SettingsError
from mobileprune.interop import process
from mobileprune.records import Preprocess

layers = keras.layers
SETTINGS = mp.TrainSettings(epochs=3, batch_size=16, learning_rate=0.01, seed=3)
STEPS = 15  # batches in all
SCHEDULE = mp.PolynomialDecay(0.0, 0.75, begin_step=0, end_step=12, frequency=3)


@pytest.fixture(scope="module")
def dataset():
    return load_dataset("fashion_mnist", Preprocess(28, 28, color="grayscale")).limited(80)


def network():
    block = keras.Sequential([keras.Input((13, 13, 4)), layers.Conv2D(8, 3, strides=2, name="inner")], name="block")
    inputs = keras.Input((28, 28, 1))
    x = layers.Normalization(mean=0.1, variance=2.0)(inputs)
    x = layers.Conv2D(4, 3, strides=2, use_bias=False, name="conv")(x)
    x = block(layers.Activation("hard_swish")(layers.BatchNormalization(momentum=0.9, name="norm")(x)))
    x = layers.DepthwiseConv2D(3, name="depthwise")(x)
    return keras.Model(inputs, layers.Dense(10, name="logits")(layers.GlobalAveragePooling2D()(x)), name="tiny")


def zeros(kernel):
    return float(np.mean(np.asarray(kernel) == 0))


def test_training_with_the_toolkit_gives_an_ordinary_sparse_model(dataset, tmp_path):
    model = randomized(network())
    before = [np.asarray(each) for each in model.weights]
    batches, epochs = [], []
    sparse = mp.train_with_tfmot(
        model,
        dataset,
        SETTINGS,
        SCHEDULE,
        log_dir=tmp_path,
        on_batch=batches.append,
        on_epoch=lambda epoch, figures: epochs.append((epoch, set(figures))),
    )
    assert all(np.array_equal(a, b) for a, b in zip(before, model.weights, strict=True))
    assert isinstance(sparse, keras.Model)
    assert sparse.name == "tiny"
    assert [layer.name for layer in sparse.layers] == [layer.name for layer in model.layers]
    for kernel in (sparse.get_layer("conv").kernel, sparse.get_layer("block").get_layer("inner").kernel):
        assert zeros(kernel) == pytest.approx(0.75, abs=0.03)
    assert zeros(sparse.get_layer("depthwise").kernel) == 0
    assert not np.allclose(sparse.get_layer("norm").moving_mean, model.get_layer("norm").moving_mean)
    assert batches == list(range(1, STEPS + 1))
    assert epochs == [(epoch, {"loss", "accuracy", "val_loss", "val_accuracy"}) for epoch in (1, 2, 3)]
    assert list(tmp_path.rglob("events.out.*"))
    sparse.save(tmp_path / "sparse.keras")
    assert mp.sparsity(mp.load_model(tmp_path / "sparse.keras")) == mp.sparsity(sparse)


class Killed(Exception):
    """Stands for SIGKILL: nothing of the training runs after it."""


def test_a_killed_training_goes_on_where_it_was(dataset, tmp_path):
    model = randomized(network())
    whole = mp.train_with_tfmot(model, dataset, SETTINGS, SCHEDULE)

    def kill(batch):
        if batch == 8:
            raise Killed

    with pytest.raises(Killed):
        mp.train_with_tfmot(model, dataset, SETTINGS, SCHEDULE, checkpoint=tmp_path, on_batch=kill)
    batches = []
    resumed = mp.train_with_tfmot(model, dataset, SETTINGS, SCHEDULE, checkpoint=tmp_path, on_batch=batches.append)
    assert batches == list(range(6, STEPS + 1))
    for a, b in zip(whole.weights, resumed.weights, strict=True):
        assert np.allclose(a, b, atol=1e-5), a.path
    assert not np.allclose(whole.get_layer("conv").kernel, model.get_layer("conv").kernel, atol=1e-3)
    # Finished: nothing is trained again.
    again = mp.train_with_tfmot(model, dataset, SETTINGS, SCHEDULE, checkpoint=tmp_path, on_batch=kill)
    assert all(np.array_equal(a, b) for a, b in zip(again.weights, resumed.weights, strict=True))
    (tmp_path / "epoch_3" / "state.index").write_bytes(b"damaged")
    with pytest.raises(mp.errors.OutputError, match="Delete this folder"):
        mp.train_with_tfmot(model, dataset, SETTINGS, SCHEDULE, checkpoint=tmp_path)


def test_a_schedule_that_would_fall_short_is_an_error(dataset):
    tfmot = process.tfmot()
    for schedule, said in (
        (tfmot.PolynomialDecay(0.0, 0.8, 0, 10, frequency=4), "79.4% in the place of 80.0%"),
        (tfmot.PolynomialDecay(0.0, 0.8, 0, 50, frequency=100), "0.0% in the place of 80.0%"),
        (mp.ConstantSparsity(0.5, begin_step=100), "0.0% in the place of 50.0%"),
        ({"conv": None, "*": mp.ConstantSparsity(0.5, begin_step=100)}, "0.0%"),
    ):
        with pytest.raises(mp.errors.SparsityError, match=said):
            mp.train_with_tfmot(network(), dataset, SETTINGS, schedule)


def test_divergence_is_an_error(dataset):
    hot = mp.TrainSettings(epochs=2, batch_size=16, learning_rate=1e30)
    with pytest.raises(mp.errors.ModelError, match="became NaN"):
        mp.train_with_tfmot(randomized(network()), dataset, hot, mp.ConstantSparsity(0.5, 0, frequency=1))


def fit(twin, callbacks):
    generator = np.random.default_rng(0)
    twin.compile("adam", "mse")
    shape = twin.input_shape[1:]
    twin.fit(generator.normal(size=(32, *shape)), np.ones((32, twin.output_shape[-1])), callbacks=callbacks, verbose=0)


def dense():
    model = keras.Sequential([keras.Input((16,)), layers.Dense(12, name="first"), layers.Dense(8, name="second")])
    return randomized(model)


def test_a_training_loop_of_ones_own_and_layers_by_pattern():
    schedules = {"first": mp.ConstantSparsity(0.5, 0, frequency=1), "second": None}
    sparse = mp.prune_low_magnitude_with_tfmot(dense(), schedules, fit)
    assert zeros(sparse.get_layer("first").kernel) == 0.5
    assert zeros(sparse.get_layer("second").kernel) == 0


def test_blocks_and_patterns():
    schedule = mp.ConstantSparsity(0.5, 0, frequency=1)
    blocks = mp.prune_low_magnitude_with_tfmot(dense(), schedule, fit, block_size=(4, 1), block_pooling_type="MAX")
    pieces = np.asarray(blocks.get_layer("first").kernel).reshape(4, 4, 12) == 0
    assert set(pieces.sum(axis=1).ravel().tolist()) == {0, 4}
    pairs = mp.prune_low_magnitude_with_tfmot(dense(), schedule, fit, sparsity_m_by_n=(2, 4))
    pieces = np.asarray(pairs.get_layer("first").kernel).reshape(4, 4, 12) == 0
    assert set(pieces.sum(axis=1).ravel().tolist()) == {2}


def test_what_the_toolkit_refuses_is_named():
    schedule = mp.ConstantSparsity(0.5, 0)
    with pytest.raises(mp.InteropError, match="tfmot refuses to prune 'inner'"):
        mp.prune_low_magnitude_with_tfmot(network(), schedule, fit, block_size=(2, 2))
    upwards = keras.Sequential([keras.Input((8, 3)), layers.Conv1DTranspose(2, 3, name="upwards")])
    with pytest.raises(mp.InteropError, match="tfmot refuses to prune 'upwards'"):
        mp.prune_low_magnitude_with_tfmot(upwards, schedule, fit)
    with pytest.raises(mp.errors.SparsityError, match="Layers with kernels: first, second"):
        mp.prune_low_magnitude_with_tfmot(dense(), {"head": schedule}, fit)


def test_a_part_of_a_cycle_is_refused(dataset):
    with pytest.raises(SettingsError, match="tfmot trains in a cycle of its own"):
        mp.train_with_tfmot(network(), dataset, mp.TrainSettings(1, 16, start=1), SCHEDULE)
