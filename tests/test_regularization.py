import json
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from architectures import ARCHITECTURES, random_inputs, randomise

import mobileprune as mp
from mobileprune.channel_groups import ChannelGraph
from mobileprune.errors import PlanError, SettingsError
from mobileprune.regularization import BatchNormL1, GroupLasso, GrowingRegularization

layers = keras.layers


def chain(width=6):
    """8 inputs, `width` hidden units, 3 outputs: the weights of the hidden units overlap with no other group's."""
    model = keras.Sequential(
        [
            keras.Input((8,), name="features"),
            layers.Dense(width, activation="relu", name="hidden"),
            layers.Dense(3, name="out"),
        ],
        name="chain",
    )
    return randomise(model)


def convnet():
    return randomise(ARCHITECTURES["sequential_convnet"]())


def data(count=32, seed=0):
    generator = np.random.default_rng(seed)
    return generator.normal(size=(count, 8)).astype("float32"), generator.integers(0, 3, count)


def compiled(model, optimizer=None, **settings):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer or keras.optimizers.SGD(0.1), loss, **settings)
    return model


def fit(model, *callbacks, epochs=1, batch_size=8, **settings):
    images, labels = data()
    return model.fit(
        images, labels, batch_size, epochs, shuffle=False, verbose=0, callbacks=list(callbacks), **settings
    )


def unit_plan(model, remove, name="hidden"):
    """A plan that removes these units of one group."""
    plan = mp.plan_channels(model, ratio=0.5, round_to=1)
    groups = [{**group.to_json(), "remove": list(remove) if group.group == name else []} for group in plan.groups]
    return mp.PruningPlan.from_json({**plan.to_json(), "groups": groups})


def by_hand(kernel, out, amount):
    """Group soft-thresholding of the hidden units of `chain`, in closed form."""
    norms = np.sqrt((kernel**2).sum(0) + (out**2).sum(1))
    count = kernel.shape[0] + out.shape[1]
    factors = np.maximum(0, 1 - amount * np.sqrt(count) / norms)
    return kernel * factors, out * factors[:, None]


def kernels(model):
    return [np.array(model.get_layer(name).kernel) for name in ("hidden", "out")]


def after_one_step(model, optimizer):
    """The weights after a step of the optimizer alone."""
    twin = keras.models.clone_model(model)
    twin.set_weights(model.get_weights())
    images, labels = data(8)
    compiled(twin, optimizer).train_on_batch(images, labels)
    return twin


@pytest.mark.parametrize("optimizer", ["SGD", "Adam", "AdamW", "RMSprop"])
def test_group_lasso_in_closed_form(optimizer):
    make = getattr(keras.optimizers, optimizer)
    model = chain()
    hidden, out = (model.get_layer(name).kernel for name in ("hidden", "out"))
    hidden.assign(hidden * [0.1, 1, 1, 0.1, 1, 1])
    out.assign(out * np.array([[0.1], [1], [1], [0.1], [1], [1]]))
    strength = 7.5
    stepped = after_one_step(model, make(0.02))
    wanted = by_hand(*kernels(stepped), amount=0.02 * strength)
    biases = [np.array(layer.bias) for layer in stepped.layers]
    images, labels = data(8)
    compiled(model, make(0.02)).fit(images, labels, 8, verbose=0, callbacks=[GroupLasso(strength)])
    for found, expected in zip(kernels(model), wanted, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)
    assert [not row.any() for row in kernels(model)[1]] == [True, False, False, True, False, False]
    for layer, bias in zip(model.layers, biases, strict=True):
        np.testing.assert_allclose(layer.bias, bias, rtol=1e-5)


def test_the_closed_form_notices_another_strength():
    model = chain()
    wanted = by_hand(*kernels(after_one_step(model, keras.optimizers.SGD(0.05))), amount=0.05)
    images, labels = data(8)
    compiled(model, keras.optimizers.SGD(0.05)).fit(images, labels, 8, verbose=0, callbacks=[GroupLasso(1.1)])
    assert np.abs(kernels(model)[0] - wanted[0]).max() > 1e-4


def test_a_kernel_between_two_groups_is_pressed_by_both():
    model = keras.Sequential(
        [
            keras.Input((2,)),
            layers.Dense(2, use_bias=False, name="first"),
            layers.Dense(2, use_bias=False, name="second"),
            layers.Dense(1, use_bias=False, name="out"),
        ]
    )
    randomise(model)
    first, second, out = (np.array(layer.kernel) for layer in model.layers)
    lasso = started(compiled(model, keras.optimizers.SGD(0.0)), GroupLasso(1.0))
    lasso._press.shrink(0.01)
    a = 1 - 0.01 * np.sqrt(4) / np.sqrt((first**2).sum(0) + (second**2).sum(1))
    b = 1 - 0.01 * np.sqrt(3) / np.sqrt((second**2).sum(0) + (out**2).sum(1))
    np.testing.assert_allclose(model.layers[0].kernel, first * a, rtol=1e-5)
    np.testing.assert_allclose(model.layers[1].kernel, second * a[:, None] * b, rtol=1e-5)
    np.testing.assert_allclose(model.layers[2].kernel, out * b[:, None], rtol=1e-5)


def started(model, callback):
    callback.set_model(model)
    callback.on_train_begin()
    return callback


def test_batch_norm_scales_in_closed_form():
    model = convnet()
    norm = next(layer for layer in model.layers if isinstance(layer, layers.BatchNormalization))
    before, others = np.array(norm.gamma), [np.array(weight) for weight in model.layers[0].weights]
    callback = started(compiled(model), BatchNormL1(0.5))
    callback._press.shrink(0.8)
    wanted = np.sign(before) * np.maximum(np.abs(before) - 0.8, 0)
    np.testing.assert_allclose(norm.gamma, wanted, rtol=1e-5, atol=1e-7)
    assert 0 < np.count_nonzero(wanted) < len(wanted)
    for weight, old in zip(model.layers[0].weights, others, strict=True):
        np.testing.assert_array_equal(weight, old)


def test_growing_regularization_in_closed_form():
    model = chain()
    plan = unit_plan(model, [1, 4])
    rate = keras.optimizers.schedules.PolynomialDecay(0.1, 4, 0.05)
    callback = GrowingRegularization(plan, growth=2.0, every=2, begin_step=1)
    assert [callback.factor(step) for step in range(6)] == [0, 0, 0, 2, 2, 4]
    assert GrowingRegularization(plan, growth=2.0, every=2, ceiling=3.0).factor(100) == 3
    # With a gradient of zero only the penalty acts.
    model.compile(keras.optimizers.SGD(rate), lambda _, found: 0 * keras.ops.sum(found))
    before, out = kernels(model)
    fit(model, callback)  # 4 batches
    kept = 1 / (1 + float(rate(3)) * 2)
    for found, old in zip(kernels(model), (before.T, out), strict=True):
        found = found.T if found.shape[0] == 8 else found
        np.testing.assert_allclose(found[[1, 4]], old[[1, 4]] * kept, rtol=1e-5)
        np.testing.assert_array_equal(found[[0, 2, 3, 5]], old[[0, 2, 3, 5]])


def test_growing_brings_the_plans_units_near_zero_and_the_cut_changes_nothing():
    model = compiled(chain(), keras.optimizers.Adam(0.01))
    plan = unit_plan(model, [0, 2, 5])
    images, _ = data()
    grown = GrowingRegularization(plan, growth=5.0, every=1)
    fit(model, grown, epochs=40)
    norms = grown.norms()["hidden"]
    kept = started(model, GroupLasso(1.0)).norms()["hidden"]
    assert norms[[1, 3, 4]].tolist() == [0, 0, 0]  # not pressed
    assert norms[[0, 2, 5]].max() < 0.01 * kept[[1, 3, 4]].min()
    smaller = mp.prune_channels(model, plan)
    change = np.abs(smaller.predict(images, verbose=0) - model.predict(images, verbose=0)).max()
    other = mp.prune_channels(model, unit_plan(model, [1, 3, 4]))
    assert change < 1e-3 < np.abs(other.predict(images, verbose=0) - model.predict(images, verbose=0)).max()


def test_units_that_are_zero_can_go_without_a_trace():
    model = compiled(convnet(), keras.optimizers.SGD(0.0))
    lasso = started(model, GroupLasso(1.0))
    for _ in range(200):
        lasso._press.shrink(0.005)
        norms = lasso.norms()
        gone = {name: np.flatnonzero(values == 0) for name, values in norms.items()}
        if sum(map(len, gone.values())) >= 8:
            break
    plan = mp.plan_channels(model, ratio=0.5, round_to=1)
    groups = [{**group.to_json(), "remove": gone.get(group.group, np.zeros(0, int)).tolist()} for group in plan.groups]
    plan = mp.PruningPlan.from_json({**plan.to_json(), "groups": groups})
    smaller = mp.prune_channels(model, plan)
    assert smaller.count_params() < model.count_params()
    images = random_inputs(model)
    np.testing.assert_allclose(smaller(images), model(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["residual", "inverted_residual", "grouped_and_transposed", "channel_shuffle"])
def test_every_weight_of_a_free_unit_is_pressed(name):
    model = randomise(ARCHITECTURES[name]())
    compiled(model)
    graph = ChannelGraph(model)
    lasso = started(model, GroupLasso(1.0))
    free = {group.name for group in graph.groups if not group.frozen}
    assert set(lasso.norms()) == free
    lasso._press.shrink(1e6)
    frozen = {
        id(variable): np.array(variable)
        for variable in model.trainable_variables
        if variable.path.endswith(("bias", "beta"))
    }
    assert all(values.max() == 0 for values in lasso.norms().values())
    for variable in model.trainable_variables:
        if id(variable) in frozen:
            assert np.abs(variable).max() > 0


def loop_by_hand(model, callback, batches, optimizer=None):
    images, labels = data()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    optimizer = optimizer or model.optimizer
    callback.set_model(model)
    callback.on_train_begin()
    for batch in range(batches):
        part = slice(8 * batch, 8 * batch + 8)
        with tf.GradientTape() as tape:
            value = loss(labels[part], model(images[part], training=True))
        optimizer.apply(tape.gradient(value, model.trainable_variables), model.trainable_variables)
        callback.on_train_batch_end(batch)
    callback.on_train_end()


def test_every_loop_does_the_same():
    schedule = keras.optimizers.schedules.CosineDecay(0.1, 8)
    found = []
    for way in ("fit", "train_on_batch", "by hand", "uncompiled", "jit", "eager"):
        model = chain()
        optimizer = keras.optimizers.SGD(schedule)
        if way == "uncompiled":
            optimizer.build(model.trainable_variables)
            loop_by_hand(model, GroupLasso(2.0, optimizer=optimizer), 4, optimizer)
        else:
            compiled(model, optimizer, jit_compile=way == "jit", run_eagerly=way == "eager")
            if way == "by hand":
                loop_by_hand(model, GroupLasso(2.0), 4)
            elif way == "train_on_batch":
                images, labels = data()
                callback = started(model, GroupLasso(2.0))
                for batch in range(4):
                    model.train_on_batch(images[8 * batch : 8 * batch + 8], labels[8 * batch : 8 * batch + 8])
                    callback.on_train_batch_end(batch)
            else:
                fit(model, GroupLasso(2.0))
        found.append(model.get_weights())
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            np.testing.assert_allclose(two, one, rtol=1e-4, atol=1e-6)
    plain = compiled(chain(), keras.optimizers.SGD(schedule))
    fit(plain)
    assert np.abs(plain.get_weights()[0] - found[0][0]).max() > 0.01


def test_accumulated_gradients_and_several_steps_at_once_press_as_often_as_there_are_steps():
    rates = []

    class Noted(GroupLasso):
        def _act(self, found):
            rates.append(found)
            super()._act(found)

    schedule = keras.optimizers.schedules.PolynomialDecay(1.0, 10, 0.0)
    fit(compiled(chain(), keras.optimizers.SGD(schedule, gradient_accumulation_steps=2)), Noted(0.01))
    assert [[step for step, _ in each] for each in rates] == [[1], [3]]
    np.testing.assert_allclose([each[0][1] for each in rates], [0.9, 0.7])
    rates.clear()
    fit(compiled(chain(), keras.optimizers.SGD(schedule), steps_per_execution=3), Noted(0.01))
    assert [[step for step, _ in each] for each in rates] == [[0, 1, 2], [3]]


def test_mixed_precision_and_loss_scaling():
    model = keras.Sequential(
        [
            keras.Input((8,)),
            layers.Dense(6, activation="relu", name="hidden", dtype="mixed_float16"),
            layers.Dense(3, name="out", dtype="mixed_float16"),
        ]
    )
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.01), initial_scale=64.0)
    lasso = GroupLasso(20.0)
    fit(compiled(model, optimizer), lasso, epochs=3)
    assert min(values.min() for values in lasso.norms().values()) == 0
    assert all(np.isfinite(weight).all() for weight in model.get_weights())


def test_zeros_survive_an_optimizer_that_averages_weights():
    def zeros(*callbacks):
        model = compiled(chain(), keras.optimizers.SGD(0.05, use_ema=True, ema_momentum=0.5))
        fit(model, *callbacks, epochs=6)
        return sum(not row.any() for row in kernels(model)[1])

    class Forgetful(GroupLasso):
        def on_train_end(self, logs=None):
            pass

    assert zeros(GroupLasso(1.5)) > 0
    assert zeros(Forgetful(1.5)) == 0


def test_masks_are_left_alone():
    sparse = chain()
    kernel = np.array(sparse.get_layer("hidden").kernel)
    kernel[::2] = 0
    sparse.get_layer("hidden").kernel.assign(kernel)
    held = compiled(mp.hold_zeros(sparse), keras.optimizers.Adam(0.01))
    lasso = GroupLasso(5.0)
    fit(held, lasso, mp.UpdatePruningStep(), epochs=3)
    assert set(lasso.norms()) == {"hidden"}
    stripped = mp.strip_pruning(held)
    trained = np.array(stripped.get_layer("hidden").kernel)
    assert (trained[::2] == 0).all()
    free = mp.strip_pruning(fit_held(sparse))
    assert np.abs(trained).sum() < 0.8 * np.abs(free.get_layer("hidden").kernel).sum()
    schedule = mp.PolynomialDecay(0.0, 0.5, begin_step=0, end_step=8, frequency=1)
    wrapped = compiled(mp.prune_low_magnitude(chain(), schedule), keras.optimizers.Adam(0.01))
    fit(wrapped, mp.UpdatePruningStep(), GroupLasso(0.1), epochs=3)
    assert mp.sparsity(wrapped) >= 0.5


def fit_held(sparse):
    held = compiled(mp.hold_zeros(sparse), keras.optimizers.Adam(0.01))
    fit(held, mp.UpdatePruningStep(), epochs=3)
    return held


def test_nested_models_are_pressed_inside():
    inner = keras.Sequential([keras.Input((8,)), layers.Dense(5, name="a"), layers.Dense(8, name="b")], name="inner")
    inputs = keras.Input((8,))
    model = randomise(keras.Model(inputs, layers.Dense(3, name="out")(inner(inputs))))
    for whole in (model, mp.hold_zeros(model)):
        lasso = started(compiled(whole), GroupLasso(1.0))
        lasso._press.shrink(1e6)
        assert {name: values.max() for name, values in lasso.norms().items()} == {"inner/a": 0, "inner/b": 0}


def test_layers_that_do_not_train_are_not_pressed():
    model = chain()
    model.get_layer("hidden").trainable = False
    before = np.array(model.get_layer("hidden").kernel)
    fit(compiled(model), GroupLasso(100.0))
    np.testing.assert_array_equal(model.get_layer("hidden").kernel, before)
    assert not np.array(model.get_layer("out").kernel).any()


TWO_DEVICES = """
import keras
import numpy as np
import tensorflow as tf

import mobileprune as mp

(cpu,) = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)


def trained():
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((8,)), keras.layers.Dense(6, activation="relu"), keras.layers.Dense(3)], name="chain"
    )
    model.compile(keras.optimizers.SGD(0.1), "mse")
    generator = np.random.default_rng(0)
    data = generator.normal(size=(32, 8)), generator.normal(size=(32, 3))
    lasso = mp.GroupLasso(2.5)
    model.fit(*data, batch_size=8, epochs=2, shuffle=False, verbose=0, callbacks=[lasso])
    for weight in model.weights:
        copies = getattr(weight.value, "values", [weight.value])
        assert all(bool(tf.reduce_all(copy == copies[0])) for copy in copies)
    return [np.asarray(tf.convert_to_tensor(weight.value)) for weight in model.weights], lasso.norms()


alone, _ = trained()
with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
    mirrored, norms = trained()
for one, two in zip(alone, mirrored, strict=True):
    np.testing.assert_allclose(two, one, rtol=1e-4, atol=1e-6)
(found,) = norms.values()
print("alike", int((found == 0).sum()))
"""


def test_two_devices_agree_with_one():
    done = subprocess.run([sys.executable, "-c", TWO_DEVICES], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith("alike")
    assert int(done.stdout.split()[1]) > 0


def small_convnet(dataset):
    return keras.Sequential(
        [
            keras.Input(dataset.calibration.images(1).shape[1:], name="image"),
            layers.Conv2D(16, 3, strides=2, use_bias=False, name="first"),
            layers.BatchNormalization(name="norm"),
            layers.ReLU(name="relu"),
            layers.Conv2D(24, 3, strides=2, activation="relu", name="second"),
            layers.GlobalAveragePooling2D(name="pool"),
            layers.Dense(len(dataset.labels), name="logits"),
        ]
    )


@pytest.mark.parametrize("kind", ["lasso", "growing"])
def test_a_run_that_was_killed_goes_on_to_the_same_bits(tmp_path, kind):
    dataset = mp.load_dataset("fashion_mnist").limited(64)
    settings = mp.TrainSettings(epochs=3, batch_size=16, learning_rate=0.01)

    def model():
        keras.utils.set_random_seed(1)
        return small_convnet(dataset)

    plan = mp.plan_channels(model(), ratio=0.5, importance="random", round_to=4)

    def callback():
        return GroupLasso(0.5) if kind == "lasso" else GrowingRegularization(plan, growth=3.0, every=2)

    class Killed(Exception):
        pass

    def kill(epoch, _):
        if epoch == 2:
            raise Killed

    wanted = mp.train(model(), dataset, settings, callbacks=[callback()], checkpoint=tmp_path / "whole")
    with pytest.raises(Killed):
        mp.train(model(), dataset, settings, callbacks=[callback()], checkpoint=tmp_path / "killed", on_epoch=kill)
    found = mp.train(model(), dataset, settings, callbacks=[callback()], checkpoint=tmp_path / "killed")
    for one, two in zip(wanted.get_weights(), found.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)


def test_configurations_round_trip():
    plan = unit_plan(chain(), [1])
    for callback in (
        GroupLasso(0.3, keep=["a"], prune_only=["b*"]),
        BatchNormL1(0.2),
        GrowingRegularization(plan, 0.5, 3, 7, 2.0),
        GrowingRegularization(plan),
    ):
        config = json.loads(json.dumps(callback.get_config()))
        again = type(callback).from_config(config)
        assert again.get_config() == callback.get_config()
        known = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(callback))
        assert type(known) is type(callback)
        assert known.get_config() == callback.get_config()


@pytest.mark.parametrize(
    ("make", "error", "said"),
    [
        (lambda: GroupLasso(0), SettingsError, "strength=0 presses nothing"),
        (lambda: GroupLasso(float("nan")), SettingsError, "strength=nan presses nothing"),
        (lambda: BatchNormL1(-1), SettingsError, "strength=-1 presses nothing"),
        (lambda: GrowingRegularization(unit_plan(chain(), [1]), growth=0), SettingsError, "growth=0.*cannot be meant"),
        (lambda: GrowingRegularization(unit_plan(chain(), [1]), every=0), SettingsError, "every=0"),
        (lambda: BatchNormL1(1), PlanError, "BatchNormL1 finds no weights of 'chain' to press"),
        (lambda: GroupLasso(1, keep=["hidden"]), PlanError, "GroupLasso finds no weights"),
        (lambda: GroupLasso(1, keep=["nothing"]), PlanError, "keep='nothing' matches no layer"),
        (lambda: GrowingRegularization(unit_plan(chain(), [])), PlanError, "removes no channels"),
        (lambda: GrowingRegularization(unit_plan(chain(7), [1])), PlanError, "The plan is for another model"),
    ],
)
def test_what_cannot_be_meant_is_refused(make, error, said):
    with pytest.raises(error, match=said):
        fit(compiled(chain()), make())


def test_without_an_optimizer_there_is_no_learning_rate():
    with pytest.raises(SettingsError, match=r"'chain' has none: compile it, or give optimizer="):
        started(chain(), GroupLasso(1.0))


def test_real_training_with_the_lasso_leaves_less_to_lose():
    dataset = mp.load_dataset("fashion_mnist").limited(256)
    settings = mp.TrainSettings(epochs=4, batch_size=16, learning_rate=0.01, augment=False)
    images = dataset.calibration.images(64)
    found = {}
    for name, callbacks in {"plain": [], "lasso": [GroupLasso(1.0)]}.items():
        keras.utils.set_random_seed(0)
        model = mp.train(small_convnet(dataset), dataset, settings, callbacks=callbacks)
        norms = started(model, GroupLasso(1.0)).norms()
        plan = mp.plan_channels(model, ratio=0.25, importance="l2", round_to=1)
        smaller = mp.prune_channels(model, plan)
        change = np.abs(smaller.predict(images, verbose=0) - model.predict(images, verbose=0)).mean()
        found[name] = norms, float(change)
    plain, lasso = found["plain"], found["lasso"]
    for group in ("first", "second"):
        assert lasso[0][group].sum() < plain[0][group].sum()
    assert sum(int((values == 0).sum()) for values in plain[0].values()) == 0
    assert sum(int((values == 0).sum()) for values in lasso[0].values()) > 0
    assert lasso[1] < plain[1] / 2
