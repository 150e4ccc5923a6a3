import dataclasses
import json

import keras
import numpy as np
import pytest
from killing import KillAt, Killed

from mobileprune.data import load_dataset
from mobileprune.errors import ModelError, OutputError, SettingsError
from mobileprune.pruning_callbacks import UpdatePruningStep
from mobileprune.records import Preprocess
from mobileprune.schedules import PolynomialDecay
from mobileprune.sparsify import prune_low_magnitude, sparsity, strip_pruning
from mobileprune.train import (
    TrainSettings,
    compile_classifier,
    load_checkpoint,
    recalibrate,
    save_checkpoint,
    set_seed,
    train,
    validate,
)

layers = keras.layers
SETTINGS = TrainSettings(epochs=4, batch_size=16, learning_rate=0.01, seed=3)
STEPS = 5  # batches in an epoch


@pytest.fixture(scope="module")
def dataset():
    return load_dataset("fashion_mnist", Preprocess(28, 28, color="grayscale")).limited(80)


def network(activation=None):
    set_seed(1)
    inputs = keras.Input((28, 28, 1))
    x = layers.Conv2D(4, 3, strides=2, use_bias=False, name="conv")(inputs)
    x = layers.ReLU()(layers.BatchNormalization(momentum=0.9, name="norm")(x))
    x = layers.Dropout(0.2, name="dropout")(layers.GlobalAveragePooling2D()(x))
    return keras.Model(inputs, layers.Dense(10, activation=activation, name="logits")(x), name="tiny")


def weights(model):
    return {variable.path: np.array(variable) for variable in model.variables}


def test_steps_count_the_last_small_batch():
    assert TrainSettings(epochs=3, batch_size=64).steps(130) == 9
    assert TrainSettings(epochs=0).steps(130) == 0


def test_parts_of_a_cycle_have_the_rates_of_the_whole():
    whole = TrainSettings(epochs=6, batch_size=16, learning_rate=0.01)
    parts = [
        dataclasses.replace(whole, epochs=1, cycle=6),
        dataclasses.replace(whole, epochs=2, start=1, cycle=6),
        dataclasses.replace(whole, epochs=3, start=3),
    ]
    rates = [float(part.rates(80)(step)) for part in parts for step in range(part.steps(80))]
    np.testing.assert_allclose(rates, [float(whole.rates(80)(step)) for step in range(6 * STEPS)], rtol=1e-6)
    # Else the first part would end at zero.
    assert rates[4] > 0.009


def test_a_part_that_does_not_fit_its_cycle_is_refused():
    with pytest.raises(SettingsError, match=r"3 epochs after 4 others are no part of a cycle of 6"):
        TrainSettings(epochs=3, start=4, cycle=6)


def test_a_resumed_part_of_a_cycle_equals_one_that_was_not_interrupted(dataset, tmp_path):
    part = dataclasses.replace(SETTINGS, epochs=3, start=2, cycle=7)
    whole = train(network(), dataset, part, checkpoint=tmp_path / "whole")
    with pytest.raises(Killed):
        train(network(), dataset, part, checkpoint=tmp_path / "killed", callbacks=[KillAt(STEPS + 2)])
    resumed = train(network(), dataset, part, checkpoint=tmp_path / "killed")
    for mine, theirs in zip(resumed.variables, whole.variables, strict=True):
        np.testing.assert_array_equal(np.array(mine), np.array(theirs), err_msg=mine.path)
    rate = float(resumed.optimizer.learning_rate)
    assert rate == pytest.approx(float(TrainSettings(7, 16, 0.01).rates(80)(5 * STEPS)), rel=1e-5)


def test_parts_see_other_images_than_the_epochs_before_them(dataset):
    def first_loss(start):
        losses = []
        note = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: losses.append(logs["loss"]))
        train(network(), dataset, TrainSettings(1, 16, start=start, cycle=2), callbacks=[note])
        return losses[0]  # of fresh weights, whatever the rate

    assert first_loss(0) == first_loss(0)
    assert first_loss(1) != pytest.approx(first_loss(0), rel=1e-4)


def test_fused_norms_train_the_same_network(dataset, tmp_path):
    def trained(epochs, folder, fused, *callbacks):
        settings = TrainSettings(epochs, 16, fused_norms=fused)
        return train(network(), dataset, settings, checkpoint=tmp_path / folder, callbacks=callbacks)

    plain, fused = trained(2, "plain", False), trained(2, "fused", True)
    for mine, theirs in zip(fused.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-2, atol=1e-4)
    with pytest.raises(Killed):
        trained(2, "killed", True, KillAt(STEPS + 2))
    resumed = trained(2, "killed", True)
    for mine, theirs in zip(resumed.get_weights(), fused.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_no_epochs_change_nothing(dataset, tmp_path):
    model = network()
    before = weights(model)
    assert train(model, dataset, TrainSettings(epochs=0), checkpoint=tmp_path) is model
    for path, value in weights(model).items():
        np.testing.assert_array_equal(value, before[path])
    assert list(tmp_path.iterdir()) == []


def test_training_learns_and_reports_every_epoch_and_batch(dataset):
    epochs, batches = [], []
    model = train(
        network(),
        dataset,
        TrainSettings(epochs=12, batch_size=16, learning_rate=0.02),
        on_epoch=lambda epoch, figures: epochs.append((epoch, figures)),
        on_batch=batches.append,
    )
    assert [epoch for epoch, _ in epochs] == list(range(1, 13))
    assert batches == list(range(1, 12 * STEPS + 1))
    assert {"loss", "accuracy", "val_loss", "val_accuracy"} <= set(epochs[0][1])
    assert epochs[-1][1]["loss"] < epochs[0][1]["loss"]
    assert epochs[-1][1]["val_accuracy"] == pytest.approx(validate(model, dataset))


def test_a_resumed_training_equals_one_that_was_not_interrupted(dataset, tmp_path):
    whole = train(network(), dataset, SETTINGS, checkpoint=tmp_path / "whole")
    folder = tmp_path / "killed"
    # In the third epoch: two are finished.
    with pytest.raises(Killed):
        train(network(), dataset, SETTINGS, checkpoint=folder, callbacks=[KillAt(2 * STEPS + 2)])
    assert json.loads((folder / "epoch.json").read_text())["epoch"] == 2
    set_seed(99)  # another process draws other numbers
    epochs, batches = [], []
    fresh = network()
    resumed = train(
        fresh,
        dataset,
        SETTINGS,
        checkpoint=folder,
        on_epoch=lambda epoch, figures: epochs.append(epoch),
        on_batch=batches.append,
    )
    assert epochs == [3, 4]
    assert batches == list(range(2 * STEPS + 1, 4 * STEPS + 1))
    assert resumed is not fresh
    assert int(resumed.optimizer.iterations) == int(whole.optimizer.iterations) == 4 * STEPS
    for mine, theirs in zip(resumed.variables, whole.variables, strict=True):
        np.testing.assert_array_equal(np.array(mine), np.array(theirs), err_msg=mine.path)
    for mine, theirs in zip(resumed.optimizer.variables, whole.optimizer.variables, strict=True):
        np.testing.assert_array_equal(np.array(mine), np.array(theirs), err_msg=mine.path)


def test_what_dropout_draws_depends_on_the_settings_alone(dataset):
    first = train(network(), dataset, TrainSettings(epochs=1, seed=3))
    model = network()
    model(np.ones((1, 28, 28, 1), np.float32), training=True)  # draws from the model's generator
    again = train(model, dataset, TrainSettings(epochs=1, seed=3))
    other = train(network(), dataset, TrainSettings(epochs=1, seed=4))
    assert not np.array_equal(weights(first)["conv/kernel"], weights(other)["conv/kernel"])
    moved = {"norm/moving_mean", "norm/moving_variance"}
    for path, value in weights(again).items():
        if path not in moved and "seed_generator" not in path:
            np.testing.assert_array_equal(value, weights(first)[path], err_msg=path)


def test_two_kills_repeat_no_finished_epoch(dataset, tmp_path):
    epochs = []

    def attempt(*callbacks):
        return train(
            network(),
            dataset,
            SETTINGS,
            checkpoint=tmp_path,
            callbacks=callbacks,
            on_epoch=lambda epoch, figures: epochs.append(epoch),
        )

    with pytest.raises(Killed):
        attempt(KillAt(STEPS + 1))
    with pytest.raises(Killed):
        attempt(KillAt(2 * STEPS + 1))
    attempt()
    attempt()  # all epochs are done: nothing is left
    assert epochs == [1, 2, 3, 4]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["epoch.json", "epoch_4.keras"]


def test_a_kill_before_the_first_epoch_ended_starts_anew(dataset, tmp_path):
    with pytest.raises(Killed):
        train(network(), dataset, SETTINGS, checkpoint=tmp_path, callbacks=[KillAt(2)])
    model = train(network(), dataset, SETTINGS, checkpoint=tmp_path)
    assert int(model.optimizer.iterations) == 4 * STEPS


def test_a_resumed_sparse_training_keeps_masks_and_schedule(dataset, tmp_path):
    schedule = PolynomialDecay(0.0, 0.75, begin_step=0, end_step=3 * STEPS, frequency=2)

    def attempt(folder, *callbacks):
        wrapped = prune_low_magnitude(network(), schedule, nested=True)
        return train(wrapped, dataset, SETTINGS, checkpoint=folder, callbacks=[UpdatePruningStep(), *callbacks])

    whole = strip_pruning(attempt(tmp_path / "whole"))
    with pytest.raises(Killed):
        attempt(tmp_path / "killed", KillAt(STEPS + 3))
    resumed = strip_pruning(attempt(tmp_path / "killed"))
    assert sparsity(resumed) == pytest.approx(0.75, abs=0.01)
    for mine, theirs in zip(resumed.get_weights(), whole.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_a_loss_that_is_no_number_is_one_clear_error(dataset, tmp_path):
    model = network()
    with pytest.raises(ModelError, match=r"The loss of 'tiny' became NaN\. Lower its learning rate\."):
        train(model, dataset, TrainSettings(epochs=3, learning_rate=1e38), checkpoint=tmp_path)
    # What diverged is not kept, or every later attempt would go on from it.
    for kept in tmp_path.glob("*.keras"):
        assert all(np.isfinite(value).all() for value in load_checkpoint(kept).get_weights())


def test_a_damaged_checkpoint_is_named_with_the_way_out(dataset, tmp_path):
    with pytest.raises(Killed):
        train(network(), dataset, SETTINGS, checkpoint=tmp_path, callbacks=[KillAt(STEPS + 1)])
    kept = tmp_path / "epoch_1.keras"
    kept.write_bytes(kept.read_bytes()[:1000])
    with pytest.raises(OutputError, match=r"Cannot read the checkpoint .*epoch_1\.keras: .*Delete its folder") as error:
        train(network(), dataset, SETTINGS, checkpoint=tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", ["", "{}", "[3]", '{"epoch": "two"}', '{"epoch": 1, "random": 5}'])
def test_a_damaged_epoch_record_is_one_clear_error(dataset, tmp_path, content):
    (tmp_path / "epoch.json").write_text(content)
    with pytest.raises(OutputError, match=r"epoch\.json"):
        train(network(), dataset, SETTINGS, checkpoint=tmp_path)


def test_a_checkpoint_keeps_model_and_optimizer_and_leaves_no_other_file(dataset, tmp_path):
    model = train(network(), dataset, TrainSettings(epochs=1, batch_size=16))
    path = tmp_path / "deep" / "model.keras"
    save_checkpoint(model, path)
    assert [entry.name for entry in path.parent.iterdir()] == ["model.keras"]
    again = load_checkpoint(path)
    for mine, theirs in zip(again.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert int(again.optimizer.iterations) == STEPS


def test_a_checkpoint_that_cannot_be_written_is_one_clear_error(tmp_path):
    (tmp_path / "taken").write_text("x")
    with pytest.raises(OutputError, match=r"Cannot write .*model\.keras"):
        save_checkpoint(network(), tmp_path / "taken" / "model.keras")


@pytest.mark.parametrize("activation", [None, "softmax"])
def test_the_loss_reads_the_outputs_for_what_they_are(dataset, activation):
    model = network(activation)
    compile_classifier(model)
    images, labels = next(dataset.train.numpy_batches(32))
    outputs = np.array(model(images, training=False)).astype(np.float64)
    odds = outputs if activation else np.exp(outputs) / np.exp(outputs).sum(axis=1, keepdims=True)
    expected = -np.log(odds[np.arange(len(labels)), labels]).mean()
    assert model.evaluate(images, labels, verbose=0)[0] == pytest.approx(expected, rel=1e-4)


def test_validation_reads_the_validation_split(dataset):
    model = network()
    images, labels = dataset.validation.images(), dataset.validation.labels
    expected = np.mean(model.predict(images, verbose=0).argmax(axis=1) == labels)
    assert validate(model, dataset) == pytest.approx(expected)


def test_the_seed_decides_fresh_weights():
    def kernel(seed):
        set_seed(seed)
        return np.array(layers.Dense(3).build((None, 2)) or keras.random.uniform((4,)))

    np.testing.assert_array_equal(kernel(5), kernel(5))
    assert not np.array_equal(kernel(5), kernel(6))


def test_recalibration_gives_the_mean_of_the_batches_statistics():
    model = network()
    norm = model.get_layer("norm")
    norm.moving_mean.assign(np.full(4, 1e6))
    norm.moving_variance.assign(np.full(4, 1e6))
    images = np.random.default_rng(0).normal(2.0, 3.0, (96, 28, 28, 1)).astype(np.float32)
    before = model.get_layer("conv")(images).numpy().astype(np.float64).reshape(3, -1, 4)
    assert recalibrate(model, images, batch_size=32) is model
    np.testing.assert_allclose(norm.moving_mean, before.mean(axis=1).mean(axis=0), rtol=1e-4)
    np.testing.assert_allclose(norm.moving_variance, before.var(axis=1).mean(axis=0), rtol=1e-4)


def test_recalibration_leaves_a_small_last_batch_out():
    images = np.random.default_rng(0).normal(size=(70, 28, 28, 1)).astype(np.float32)
    images[64:] += 100
    one, other = network(), network()
    recalibrate(one, images, batch_size=32)
    recalibrate(other, images[:64], batch_size=32)
    np.testing.assert_array_equal(one.get_layer("norm").moving_mean, other.get_layer("norm").moving_mean)


def test_recalibration_takes_fewer_large_images_at_once():
    norm = layers.BatchNormalization(name="norm")
    model = keras.Sequential([keras.Input((512, 512, 1)), layers.AveragePooling2D(512), norm])
    images = np.zeros((20, 512, 512, 1), np.float32)
    images[16:] = 3.0
    recalibrate(model, images)  # in batches of 8, 8 and 4, which count alike
    np.testing.assert_allclose(norm.moving_mean, [1.0], rtol=1e-6)


def test_recalibration_changes_statistics_and_nothing_else():
    model = network()
    norm = model.get_layer("norm")
    norm.trainable, norm.momentum = False, 0.87
    before = weights(model)
    recalibrate(model, np.random.default_rng(0).normal(size=(40, 28, 28, 1)).astype(np.float32))
    assert (norm.trainable, norm.momentum) == (False, 0.87)
    changed = {path for path, value in weights(model).items() if not np.array_equal(value, before[path])}
    assert {path for path in changed if "seed_generator" not in path} == {"norm/moving_mean", "norm/moving_variance"}


def test_recalibration_reaches_a_norm_inside_a_nested_model():
    inputs = keras.Input((28, 28, 1))
    body = network()
    outer = keras.Model(inputs, body(inputs))
    recalibrate(outer, np.random.default_rng(0).normal(5.0, 1.0, (40, 28, 28, 1)).astype(np.float32))
    alone = network()
    recalibrate(alone, np.random.default_rng(0).normal(5.0, 1.0, (40, 28, 28, 1)).astype(np.float32))
    np.testing.assert_allclose(body.get_layer("norm").moving_mean, alone.get_layer("norm").moving_mean, rtol=1e-5)


def test_a_model_without_norms_is_recalibrated_to_itself():
    model = keras.Sequential([keras.Input((4,)), layers.Dense(2)])
    before = model.get_weights()
    recalibrate(model, np.ones((8, 4), np.float32))
    for mine, theirs in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(mine, theirs)
