import keras
import numpy as np
import pytest
import tensorflow as tf
from sparse_models import batches, dense, fit
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mobileprune.errors import SparsityError
from mobileprune.pruning_callbacks import PruningSummaries, UpdatePruningStep
from mobileprune.pruning_wrapper import PruneLowMagnitude, wrapped_layers
from mobileprune.schedules import ConstantSparsity, PolynomialDecay
from mobileprune.sparsify import hold_zeros, prune_low_magnitude, prune_now, sparsity, strip_pruning

layers = keras.layers
HALF = ConstantSparsity(0.5, begin_step=0, frequency=1)
LONG = PolynomialDecay(0.0, 0.75, begin_step=1, end_step=1000, frequency=2)
REMEDY = r"first.* follow a schedule, but nothing updates them\. Give mobileprune\.UpdatePruningStep"


def test_the_callback_needs_a_wrapped_model():
    with pytest.raises(SparsityError, match="no wrapped layer"):
        fit(dense(), 1, [UpdatePruningStep()])


@pytest.mark.parametrize("settings", [{}, {"steps_per_execution": 4}, {"steps_per_execution": 16}])
def test_steps_count_batches_however_many_keras_runs_at_once(settings):
    model = prune_low_magnitude(dense(), PolynomialDecay(0.0, 0.75, 0, 10, frequency=100))
    fit(model, 10, [UpdatePruningStep()], **settings)
    assert [int(layer.pruning_step) for layer in model.layers] == [10, 10]
    assert sparsity(model) == 0.75
    fit(model, 10, [UpdatePruningStep()], **settings)
    assert int(model.layers[0].pruning_step) == 20


def test_steps_count_over_epochs_and_in_loops_by_hand():
    model = prune_low_magnitude(dense(), HALF)
    model.compile("sgd", "mse", run_eagerly=True)
    x, y = batches(3)
    model.fit(x, y, batch_size=4, epochs=3, verbose=0, callbacks=[UpdatePruningStep()])
    assert int(model.layers[0].pruning_step) == 9
    callback = UpdatePruningStep()
    callback.set_model(model)
    callback.on_train_begin()
    for _ in range(2):
        for batch in range(3):
            callback.on_train_batch_begin(batch)
            model.train_on_batch(x[:4], y[:4])
    for _ in range(2):
        callback.on_train_batch_begin(-1)
    assert int(model.layers[0].pruning_step) == 9 + 6 + 2


def test_a_shared_layer_counts_each_batch_once():
    left, right = keras.Input((6,)), keras.Input((6,))
    shared = layers.Dense(4, name="shared")
    model = prune_low_magnitude(keras.Model([left, right], layers.Add()([shared(left), shared(right)])), HALF)
    model.compile("sgd", "mse", run_eagerly=True)
    x, y = batches(3)
    model.fit([x, x], y, batch_size=4, verbose=0, callbacks=[UpdatePruningStep()])
    (layer,) = [layer for layer in model.layers if isinstance(layer, PruneLowMagnitude)]
    assert int(layer.pruning_step) == 3


def test_the_zeros_stay_through_every_step_and_the_rest_moves():
    model = prune_low_magnitude(dense(), ConstantSparsity(0.5, 0, end_step=1))
    fit(model, 1, [UpdatePruningStep()])
    before = [np.array(layer.layer.kernel) for layer in model.layers]
    fit(model, 5)  # without the callback: the optimizer alone holds them
    for old, layer in zip(before, model.layers, strict=True):
        new = np.asarray(layer.layer.kernel)
        np.testing.assert_array_equal(new == 0, old == 0)
        # A unit that nothing reads any more gets no gradient, so not all of them.
        assert np.mean(new[old != 0] != old[old != 0]) > 0.5


def steps(model):
    return [int(layer.pruning_step) for layer in wrapped_layers(model)]


def of_unknown_length(count):
    x, y = batches(count)
    signature = tuple(tf.TensorSpec((None, width), tf.float64) for width in (6, 4))
    pairs = list(zip(x.reshape(-1, 4, 6), y.reshape(-1, 4, 4), strict=True))
    return tf.data.Dataset.from_generator(lambda: iter(pairs), output_signature=signature)


@pytest.mark.parametrize("at_once", [1, 4])
@pytest.mark.parametrize("accumulated", [None, 3])
def test_steps_count_batches_of_data_of_unknown_length(at_once, accumulated):
    model = prune_low_magnitude(dense(), PolynomialDecay(0.0, 0.75, 0, 20, frequency=100))
    optimizer = keras.optimizers.SGD(gradient_accumulation_steps=accumulated)
    model.compile(optimizer, "mse", steps_per_execution=at_once, run_eagerly=True)
    model.fit(of_unknown_length(10), epochs=1, verbose=0, callbacks=[UpdatePruningStep()])
    assert steps(model) == [10, 10]
    model.fit(of_unknown_length(10), epochs=2, verbose=0, callbacks=[UpdatePruningStep()])
    assert steps(model) == [30, 30]
    assert sparsity(model) == 0.75


def test_the_batch_that_keras_begins_and_does_not_end_is_not_counted():
    model = prune_low_magnitude(dense(), HALF)
    callback = UpdatePruningStep()
    callback.set_model(model)
    callback.on_train_begin()
    callback.on_epoch_begin(0)
    callback.on_train_batch_begin(0)
    callback.on_train_batch_end(0)
    callback.on_train_batch_begin(1)
    callback.on_epoch_end(0)
    assert steps(model) == [1, 1]


def test_masks_change_at_the_steps_of_the_schedule_and_only_there():
    model = prune_low_magnitude(dense(), PolynomialDecay(0.0, 0.75, begin_step=2, end_step=9, power=1, frequency=3))
    callback = UpdatePruningStep()
    callback.set_model(model)
    callback.on_train_begin()
    found = []
    for _ in range(11):
        callback.on_train_batch_begin(0)
        found.append(sparsity(model))
    wanted = [0, 0, 0, 0, 0.75 * 3 / 7, 0.75 * 3 / 7, 0.75 * 3 / 7, 0.75 * 6 / 7, 0.75, 0.75, 0.75]
    assert found == pytest.approx(wanted, abs=0.02)


def test_layers_of_several_schedules_keep_their_own_time():
    schedules = {"first": ConstantSparsity(0.5, 3, frequency=1), "second": PolynomialDecay(0.0, 0.75, 0, 2)}
    model = prune_low_magnitude(dense(), schedules)
    fit(model, 2, [UpdatePruningStep()])
    assert [np.mean(np.asarray(layer.layer.kernel) == 0) for layer in model.layers] == [0, 0.75]
    fit(model, 1, [UpdatePruningStep()])
    assert [np.mean(np.asarray(layer.layer.kernel) == 0) for layer in model.layers] == [0.5, 0.75]


WAYS = [{"run_eagerly": True}, {"run_eagerly": False}, {"run_eagerly": False, "jit_compile": True}]


@pytest.mark.parametrize("way", WAYS)
def test_training_without_the_callback_is_refused_at_once_and_later(way):
    model = prune_low_magnitude(dense(), LONG)
    with pytest.raises(SparsityError, match=REMEDY):
        fit(model, 1, **way)
    if not way["run_eagerly"]:
        with pytest.raises(SparsityError, match="half made: compile the model again"):
            fit(model, 1, [UpdatePruningStep()])
        model.compile("adam", "mse", **way)
    fit(model, 1, [UpdatePruningStep()])
    # Traced already, the step itself complains; TensorFlow wraps the message in its own error then.
    kind = tf.errors.InvalidArgumentError if way == {"run_eagerly": False} else SparsityError
    with pytest.raises(kind, match=REMEDY):
        fit(model, 1)


def test_train_on_batch_and_loops_without_the_callback_are_refused():
    x, y = batches(1)
    model = prune_low_magnitude(dense(), LONG)
    model.compile("sgd", "mse", run_eagerly=True)
    with pytest.raises(SparsityError, match=REMEDY):
        model.train_on_batch(x, y)

    def step(model, optimizer):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((model(x, training=True) - y) ** 2)
        optimizer.apply_gradients(
            zip(tape.gradient(loss, model.trainable_variables), model.trainable_variables, strict=True)
        )

    for run in (step, tf.function(step)):
        with pytest.raises(SparsityError, match=REMEDY):
            run(prune_low_magnitude(dense(), LONG), keras.optimizers.SGD())


def test_a_finished_schedule_trains_on_without_the_callback():
    model = prune_low_magnitude(dense(), PolynomialDecay(0.0, 0.75, begin_step=0, end_step=3))
    fit(model, 3, [UpdatePruningStep()], run_eagerly=False)
    before = [np.array(layer.layer.kernel) for layer in model.layers]
    fit(model, 3)
    for old, layer in zip(before, model.layers, strict=True):
        np.testing.assert_array_equal(np.asarray(layer.layer.kernel) == 0, old == 0)
        assert (np.asarray(layer.layer.kernel) != old).any()
    assert sparsity(model) == 0.75


def test_what_follows_no_schedule_needs_no_callback():
    pruned = strip_pruning(prune_now(prune_low_magnitude(dense(), HALF)))
    assert sparsity(fit(hold_zeros(pruned), 2)) == 0.5


def test_a_forward_pass_is_no_training():
    model = prune_low_magnitude(dense(), LONG)
    x, y = batches(1)
    model(x, training=True)
    tf.function(model)(x, training=True)
    model.compile("sgd", "mse", run_eagerly=True)
    model.evaluate(x, y, verbose=0)
    model.predict(x, verbose=0)


def test_a_model_without_weights_is_refused_at_the_start():
    callback = UpdatePruningStep()
    callback.set_model(keras.Sequential([prune_low_magnitude(layers.Dense(3, name="d"), HALF)]))
    with pytest.raises(SparsityError, match="'prune_low_magnitude_d' has no weights yet"):
        callback.on_train_begin()


class Stop(keras.callbacks.Callback):
    """Ends the program, as far as Keras can tell, in the middle of an epoch."""

    def on_train_batch_end(self, batch, logs=None):
        if int(self.model.optimizer.iterations) == 6:
            raise KeyboardInterrupt


@pytest.mark.parametrize("first", ["backup", "masks"])
def test_a_backup_goes_on_where_the_masks_were(first, tmp_path):
    """Whichever of the two callbacks stands first: the backup is restored when training begins."""
    schedule = PolynomialDecay(0.0, 0.75, begin_step=0, end_step=12, frequency=5)

    def callbacks():
        both = [keras.callbacks.BackupAndRestore(tmp_path / "backup"), UpdatePruningStep()]
        return both if first == "backup" else both[::-1]

    plain = dense()
    initial = plain.get_weights()

    def wrapped():
        plain.set_weights(initial)
        return prune_low_magnitude(plain, schedule)

    whole = fit(wrapped(), 4, [UpdatePruningStep()], epochs=3)
    with pytest.raises(KeyboardInterrupt):
        fit(wrapped(), 4, [*callbacks(), Stop()], epochs=3)
    resumed = fit(wrapped(), 4, callbacks(), epochs=3)
    assert steps(resumed) == steps(whole) == [12, 12]
    for one, other in zip(whole.get_weights(), resumed.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    assert sparsity(resumed) == 0.75


def test_checkpoints_are_taken_of_wrapped_models(tmp_path):
    model = prune_low_magnitude(dense(), HALF)
    path = str(tmp_path / "{epoch}.keras")
    fit(model, 2, [UpdatePruningStep(), keras.callbacks.ModelCheckpoint(path)], epochs=2)
    x = batches(1)[0]
    loaded = [keras.models.load_model(tmp_path / f"{epoch}.keras") for epoch in (1, 2)]
    assert [steps(one) for one in loaded] == [[2, 2], [4, 4]]
    assert [sparsity(one) for one in loaded] == [0.5, 0.5]
    np.testing.assert_array_equal(loaded[1](x), model(x))
    assert not np.array_equal(loaded[0](x), model(x))


class Sparsities(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.at_test, self.at_epoch = [], []

    def on_test_begin(self, logs=None):
        self.at_test.append(sparsity(self.model))

    def on_epoch_end(self, epoch, logs=None):
        self.at_epoch.append(sparsity(self.model))


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_averages_in_the_place_of_weights_have_the_zeros_too(order):
    model = prune_low_magnitude(dense(), HALF)
    model.compile(keras.optimizers.Adam(0.05, use_ema=True, ema_momentum=0.5), "mse", run_eagerly=True)
    seen = Sparsities()
    both = [UpdatePruningStep(), keras.callbacks.SwapEMAWeights(swap_on_epoch=True)]
    x, y = batches(4)
    model.fit(
        x, y, batch_size=4, epochs=2, verbose=0, validation_data=(x, y), callbacks=[*(both[at] for at in order), seen]
    )
    assert seen.at_test == seen.at_epoch == [0.5, 0.5]
    assert sparsity(model) == 0.5


def scalars(folder):
    events = EventAccumulator(str(folder), size_guidance={"tensors": 0}).Reload()
    return {
        tag: [(event.step, float(tf.make_ndarray(event.tensor_proto))) for event in events.Tensors(tag)]
        for tag in events.Tags()["tensors"]
    }


def test_summaries_are_the_real_sparsity_and_threshold(tmp_path):
    model = prune_low_magnitude(dense(), PolynomialDecay(0.0, 0.75, begin_step=0, end_step=6, frequency=1))
    seen = {"first": [], "second": []}

    class Look(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            for layer in wrapped_layers(self.model):
                kernel = np.abs(layer.layer.kernel)
                seen[layer.layer.name].append((np.mean(kernel == 0), kernel[kernel > 0].min()))

    fit(model, 3, [UpdatePruningStep(), PruningSummaries(str(tmp_path)), Look()], epochs=3)
    written = scalars(tmp_path / "metrics")
    assert set(written) == {
        f"prune_low_magnitude_{name}/kernel/{what}" for name in seen for what in ("sparsity", "threshold")
    }
    for name, values in seen.items():
        for at, what in enumerate(("sparsity", "threshold")):
            found = written[f"prune_low_magnitude_{name}/kernel/{what}"]
            assert [step for step, _ in found] == [3, 6, 9]
            assert [value for _, value in found] == pytest.approx([float(pair[at]) for pair in values], rel=1e-6)
    assert [value for _, value in written["prune_low_magnitude_first/kernel/sparsity"]][1:] == [0.75, 0.75]
    assert (tmp_path / "train").is_dir()  # what TensorBoard's own callback writes


def test_summaries_close_and_open_again(tmp_path):
    model = prune_low_magnitude(dense(), HALF)
    callback = PruningSummaries(str(tmp_path))
    for _ in range(2):
        fit(model, 1, [UpdatePruningStep(), callback])
    assert len(scalars(tmp_path / "metrics")["prune_low_magnitude_first/kernel/sparsity"]) == 2
