"""The law of sparse training: however a step is made, the zeros are exact and the schedule's sparsity is reached."""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from sparse_models import batches, dense, fit

from mobileprune.pruning_callbacks import UpdatePruningStep
from mobileprune.pruning_wrapper import numbers_of, wrapped_layers
from mobileprune.schedules import PolynomialDecay
from mobileprune.sparsify import hold_zeros, prune_low_magnitude, prune_now, sparsity, strip_pruning

# It ends between two updates and before the last batch: the steps after it must hold what is there.
SCHEDULE = PolynomialDecay(0.0, 0.75, begin_step=1, end_step=6, frequency=4)
STEPS = 8


def kernels(model):
    pruned = [pruned for layer in wrapped_layers(model) for pruned in layer.pruned_weights()]
    return [np.asarray(weights, np.float32) for _, weights, _ in pruned]


def keeps_the_law(model, wanted=0.75):
    """Whether the zeros are exactly those of the masks, exactly as many as wanted, and the rest is no mask's."""
    every = [pruned for layer in wrapped_layers(model) for pruned in layer.pruned_weights()]
    pairs = [(numbers_of(weights).astype(np.float32), numbers_of(mask)) for _, weights, mask in every]
    return all(np.array_equal(values != 0, mask > 0) and np.mean(mask == 0) == wanted for values, mask in pairs)


def test_the_law_can_be_broken():
    model = prune_now(prune_low_magnitude(dense(), SCHEDULE))
    assert keeps_the_law(model)
    assert not keeps_the_law(model, 0.5)
    kernel = model.layers[1].layer.kernel
    values = np.array(kernel)
    values[values == 0] = 1e-38
    kernel.assign(values)
    assert not keeps_the_law(model)


def averaging(**settings):
    return keras.optimizers.Adam(0.01, use_ema=True, ema_momentum=0.5, **settings)


def scaled():
    return keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.01))


EAGER = {"run_eagerly": True}
GRAPH = {"run_eagerly": False}
WAYS = {
    "eagerly": (None, None, EAGER),
    "in a graph": (None, None, GRAPH),
    "by XLA": (None, None, {"run_eagerly": False, "jit_compile": True}),
    "accumulating gradients": (None, lambda: keras.optimizers.Adam(0.01, gradient_accumulation_steps=3), GRAPH),
    "several steps at once": (None, None, {"run_eagerly": False, "steps_per_execution": 3}),
    "with momentum": (None, lambda: keras.optimizers.SGD(0.1, momentum=0.9), EAGER),
    "with weight decay": (None, lambda: keras.optimizers.AdamW(0.01, weight_decay=0.1), EAGER),
    "mixed float16": ("mixed_float16", scaled, GRAPH),
    "mixed bfloat16": ("mixed_bfloat16", None, EAGER),
    "bfloat16": ("bfloat16", lambda: keras.optimizers.SGD(0.1), EAGER),
    "float16": ("float16", lambda: keras.optimizers.SGD(0.1), EAGER),
    "float64": ("float64", None, EAGER),
    "averaging weights": (None, averaging, EAGER),
    "averages written over": (None, lambda: averaging(ema_overwrite_frequency=2), EAGER),
    "averages written over in a graph": (None, lambda: averaging(ema_overwrite_frequency=3), GRAPH),
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_of_fit_keeps_the_zeros_and_reaches_the_schedule(way):
    policy, optimizer, settings = WAYS[way]
    plain = dense(**({} if policy is None else {"dtype": policy}))
    model = prune_low_magnitude(plain, SCHEDULE)
    fit(model, STEPS, [UpdatePruningStep()], optimizer and optimizer(), **settings)
    assert keeps_the_law(model)
    assert [int(layer.pruning_step) for layer in wrapped_layers(model)] == [STEPS, STEPS]
    stripped = strip_pruning(model)
    assert sparsity(stripped) == 0.75
    image = batches(1)[0]
    np.testing.assert_array_equal(stripped(image), model(image))
    before = [np.asarray(layer.kernel, np.float32) for layer in plain.layers]
    moved = [np.mean(new[new != 0] != old[new != 0]) for new, old in zip(kernels(model), before, strict=True)]
    assert min(moved) > 0.3


@pytest.mark.parametrize("traced", [False, True])
def test_a_loop_by_hand_keeps_the_law(traced):
    model = prune_low_magnitude(dense(), SCHEDULE)
    optimizer = keras.optimizers.Adam(0.01)
    x, y = batches(STEPS)

    def step(image, truth):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((model(image, training=True) - truth) ** 2)
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))

    run = tf.function(step) if traced else step
    callback = UpdatePruningStep()
    callback.set_model(model)
    callback.on_train_begin()
    for at in range(STEPS):
        callback.on_train_batch_begin(at)
        run(tf.constant(x[4 * at : 4 * at + 4], tf.float32), tf.constant(y[4 * at : 4 * at + 4], tf.float32))
    callback.on_train_end()
    assert keeps_the_law(model)
    run(tf.constant(x[:4], tf.float32), tf.constant(y[:4], tf.float32))  # the schedule is finished
    assert keeps_the_law(model)


def test_train_on_batch_keeps_the_law_and_makes_the_steps_of_fit():
    plain = dense()
    fitted, model = (prune_low_magnitude(plain, SCHEDULE) for _ in range(2))
    fit(fitted, STEPS, [UpdatePruningStep()])
    model.compile(keras.optimizers.Adam(0.05), "mse", run_eagerly=True)
    x, y = batches(STEPS)
    callback = UpdatePruningStep()
    callback.set_model(model)
    callback.on_train_begin()
    for at in range(STEPS):
        callback.on_train_batch_begin(at)
        model.train_on_batch(x[4 * at : 4 * at + 4], y[4 * at : 4 * at + 4])
    callback.on_train_end()
    assert keeps_the_law(model)
    for one, other in zip(kernels(fitted), kernels(model), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kept", [1, 3, 5, 7])
def test_a_model_saved_in_the_middle_ends_with_the_same_masks(kept, tmp_path):
    plain = dense()
    x, y = batches(STEPS)
    whole = prune_low_magnitude(plain, SCHEDULE)
    fit(whole, STEPS, [UpdatePruningStep()])
    model = prune_low_magnitude(plain, SCHEDULE)
    model.compile(keras.optimizers.Adam(0.05), "mse", run_eagerly=True)
    for first, last in ((0, kept), (kept, STEPS)):
        part = slice(4 * first, 4 * last)
        model.fit(x[part], y[part], batch_size=4, shuffle=False, verbose=0, callbacks=[UpdatePruningStep()])
        model.save(tmp_path / "model.keras")
        model = keras.models.load_model(tmp_path / "model.keras")
        model.run_eagerly = True
    assert keeps_the_law(model)
    for one, other in zip(kernels(whole), kernels(model), strict=True):
        np.testing.assert_array_equal(one != 0, other != 0)
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("settings", [{}, {"ema_overwrite_frequency": 2}])
def test_held_zeros_stay_when_weights_are_averaged(settings):
    pruned = strip_pruning(prune_now(prune_low_magnitude(dense(), SCHEDULE)))
    holes = [np.asarray(layer.kernel) == 0 for layer in pruned.layers]
    held = fit(hold_zeros(pruned), 5, [UpdatePruningStep()], averaging(**settings))
    assert keeps_the_law(held)
    for hole, layer, old in zip(holes, strip_pruning(held).layers, pruned.layers, strict=True):
        np.testing.assert_array_equal(np.asarray(layer.kernel) == 0, hole)
        assert (np.asarray(layer.kernel) != np.asarray(old.kernel)).any()


MIRRORED = """
import keras
import tensorflow as tf

cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from sparse_models import batches, dense, fit
from test_sparse_training import SCHEDULE, STEPS, keeps_the_law
from mobileprune.pruning_callbacks import UpdatePruningStep
from mobileprune.pruning_wrapper import numbers_of, wrapped_layers
from mobileprune.sparsify import prune_low_magnitude, sparsity, strip_pruning

strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
with strategy.scope():
    model = prune_low_magnitude(dense(), SCHEDULE)
    model.compile(keras.optimizers.Adam(0.05), "mse", jit_compile=False)
assert strategy.num_replicas_in_sync == 2
try:
    fit(model, 1)
except Exception as error:
    assert "nothing updates them" in str(error), error
    with strategy.scope():
        model.compile(keras.optimizers.Adam(0.05), "mse", jit_compile=False)
else:
    raise SystemExit("trained without the callback")
fit(model, STEPS, [UpdatePruningStep()])
assert keeps_the_law(model)
for layer in wrapped_layers(model):
    for variable in (layer.layer.kernel, layer.pruning_step, *layer.masks.values()):
        one, other = variable.value.values
        assert one.device != other.device
        assert bool(tf.reduce_all(one == other))
    assert numbers_of(layer.pruning_step) == STEPS
print(sparsity(strip_pruning(model)))
"""


def test_two_replicas_keep_the_law_and_stay_alike():
    """In a process of its own: logical devices are set up before TensorFlow starts."""
    here = os.path.dirname(__file__)
    paths = [here, os.path.dirname(here), os.path.dirname(os.path.dirname(here))]
    ran = subprocess.run(
        [sys.executable, "-c", MIRRORED],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split()[-1] == "0.75"
