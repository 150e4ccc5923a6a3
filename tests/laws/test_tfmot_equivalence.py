"""The law: with the same data, optimizer and schedule, masks and weights develop as in the TensorFlow Model
Optimization toolkit, which trains the twin of the model in tf_keras; and where they differ on purpose, how."""

import itertools

import keras
import numpy as np
import pytest

import mobileprune as mp
from mobileprune.interop import process
from mobileprune.interop.bridge import tf_keras_leaves

layers = keras.layers
STEPS, BATCH = 200, 8


def network():
    inputs = keras.Input((6, 6, 4))
    x = layers.Conv2D(6, 3, activation="relu", name="conv")(inputs)
    x = layers.Dense(10, activation="tanh", name="first")(layers.Flatten()(x))
    return keras.Model(inputs, layers.Dense(6, name="second")(x), name="net")


@pytest.fixture(scope="module")
def data():
    generator = np.random.default_rng(5)
    x = generator.normal(size=(STEPS, BATCH, 6, 6, 4)).astype("float32")
    return x, generator.normal(size=(STEPS, BATCH, 6)).astype("float32")


OPTIMIZERS = {
    "adam": lambda kind: kind.Adam(1e-2),
    "momentum": lambda kind: kind.SGD(0.05, momentum=0.9),
}


def ours(model, schedule, optimizer, data, steps=STEPS, **pattern):
    """Masks after each step, by layer, and the trained model."""
    wrapped = mp.prune_low_magnitude(model, schedule, **pattern)
    wrapped.compile(OPTIMIZERS[optimizer](keras.optimizers), "mse", jit_compile=False)
    found = {layer.layer.name: layer for layer in wrapped.layers if isinstance(layer, mp.PruneLowMagnitude)}
    history = []

    class Look(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            history.append({name: np.asarray(layer.masks["kernel"]) > 0 for name, layer in found.items()})

    flat = [values[:steps].reshape(-1, *values.shape[2:]) for values in data]
    wrapped.fit(*flat, batch_size=BATCH, shuffle=False, verbose=0, callbacks=[mp.UpdatePruningStep(), Look()])
    return history, mp.strip_pruning(wrapped)


def theirs(model, schedule, optimizer, data, steps=STEPS, **pattern):
    """The same from the toolkit."""
    old, history = process.tf_keras(), []

    def train(twin, callbacks):
        twin.compile(OPTIMIZERS[optimizer](old.optimizers), "mse")
        found = {name: layer for name, layer in tf_keras_leaves(twin) if hasattr(layer, "pruning_vars")}

        class Look(old.callbacks.Callback):
            def on_train_batch_end(self, batch, logs=None):
                history.append({name: layer.pruning_vars[0][1].numpy() > 0 for name, layer in found.items()})

        flat = [values[:steps].reshape(-1, *values.shape[2:]) for values in data]
        twin.fit(*flat, batch_size=BATCH, shuffle=False, verbose=0, callbacks=[*callbacks, Look()])

    return history, mp.prune_low_magnitude_with_tfmot(model, schedule, train, **pattern)


def differences(one, other):
    """Where two histories of masks differ: (step from 1, layer, number of weights)."""
    assert len(one) == len(other)
    assert all(set(a) == set(b) for a, b in zip(one, other, strict=True))
    found = []
    for step, (a, b) in enumerate(zip(one, other, strict=True), start=1):
        found += [(step, name, int(np.sum(a[name] != b[name]))) for name in a if (a[name] != b[name]).any()]
    return found


def distance(one, other):
    """The largest difference between two models' weights, as a share of the largest weight of its kind."""
    pairs = [(np.asarray(a), np.asarray(b)) for a, b in zip(one.weights, other.weights, strict=True)]
    return max(float(np.abs(a - b).max() / np.abs(a).max()) for a, b in pairs)


def updates(history):
    """The steps at which any mask changed, the first of the masks included."""
    changed = [any((a[name] != b[name]).any() for name in a) for a, b in itertools.pairwise(history)]
    return [1, *(step for step, each in enumerate(changed, start=2) if each)]


def back(history):
    """How many weights came back after they had been zeroed, over all updates."""
    return sum(int(np.sum(b[name] & ~a[name])) for a, b in itertools.pairwise(history) for name in a)


def zeros(history, name="first"):
    return float(np.mean(~history[-1][name]))


def hold(schedule, optimizer, data, their_schedule=None, steps=STEPS, **pattern):
    """The law for one case; returns the masks' history."""
    keras.utils.set_random_seed(1)
    model = network() if not pattern else flat_network()
    toolkit = mp.to_tfmot_schedule(schedule) if their_schedule is None else their_schedule
    (masks, trained), (their_masks, their_trained) = (
        ours(model, schedule, optimizer, data, steps, **pattern),
        theirs(model, toolkit, optimizer, data, steps, **pattern),
    )
    assert len(masks) == steps
    assert differences(masks, their_masks) == []
    assert distance(trained, their_trained) < 1e-4
    assert distance(trained, model) > 0.01  # it did train
    return masks


def flat_network():
    inputs = keras.Input((6, 6, 4))
    x = layers.Dense(12, activation="tanh", name="first")(layers.Flatten()(inputs))
    return keras.Model(inputs, layers.Dense(6, name="second")(x), name="flat")


SPAN = {"begin_step": 20, "end_step": 180}
CONSTANT = {frequency: mp.ConstantSparsity(0.6, **SPAN, frequency=frequency) for frequency in (1, 20)}
# Numbers that leave no half weight to round: the toolkit computes the sparsity in single precision.
DECAY = {frequency: mp.PolynomialDecay(0.1, 0.83, **SPAN, frequency=frequency) for frequency in (1, 20)}


@pytest.mark.parametrize("optimizer", ["adam", "momentum"])
@pytest.mark.parametrize("frequency", [1, 20])
def test_polynomial_decay(optimizer, frequency, data):
    masks = hold(DECAY[frequency], optimizer, data)
    assert zeros(masks) == pytest.approx(0.83, abs=0.01)
    assert len(updates(masks)) >= (9 if frequency == 20 else 100)
    assert updates(masks)[-1] <= 180


@pytest.mark.parametrize("optimizer", ["adam", "momentum"])
@pytest.mark.parametrize("frequency", [1, 20])
def test_constant_sparsity(optimizer, frequency, data):
    masks = hold(CONSTANT[frequency], optimizer, data)
    assert zeros(masks) == pytest.approx(0.6, abs=0.01)
    assert masks[18]["first"].all()
    assert not masks[19]["first"].all()


@pytest.mark.parametrize(("block", "pooling"), [((2, 2), "AVG"), ((2, 2), "MAX"), ((4, 1), "AVG"), ((3, 2), "MAX")])
def test_blocks(block, pooling, data):
    mask = hold(DECAY[20], "adam", data, block_size=block, block_pooling_type=pooling)[-1]["first"]
    rows, columns = block
    counts = mask.reshape(mask.shape[0] // rows, rows, mask.shape[1] // columns, columns).sum(axis=(1, 3))
    assert set(counts.ravel().tolist()) == {0, rows * columns}


def test_two_of_four(data):
    once = mp.ConstantSparsity(0.5, begin_step=1, end_step=1, frequency=1)
    masks = hold(once, "adam", data, sparsity_m_by_n=(2, 4))
    assert set(masks[-1]["first"].reshape(-1, 4, 12).sum(axis=1).ravel().tolist()) == {2}


# The comparison can fail.


@pytest.mark.parametrize("change", [{"final_sparsity": 0.82}, {"begin_step": 21, "end_step": 181}])
def test_another_schedule_is_noticed(change, data):
    model = network()
    settings = {"initial_sparsity": 0.1, "final_sparsity": 0.83, **SPAN, "frequency": 20}
    other = process.tfmot().PolynomialDecay(**{**settings, **change})
    masks, trained = ours(model, DECAY[20], "momentum", data, steps=60)
    their_masks, their_trained = theirs(model, other, "momentum", data, steps=60)
    assert differences(masks, their_masks)
    assert distance(trained, their_trained) > 1e-4


def test_other_masks_and_weights_are_noticed():
    model, other = network(), network()
    assert distance(model, model) == 0
    assert distance(model, other) > 0.1
    mask = {"first": np.array([True, False])}
    assert differences([mask, mask], [mask, {"first": np.array([False, True])}]) == [(2, "first", 2)]


# Where the two differ on purpose.


def test_the_final_sparsity_is_reached_whatever_the_frequency(data):
    uneven = {"begin_step": 0, "end_step": 190, "frequency": 100}
    model = network()
    masks, trained = ours(model, mp.PolynomialDecay(0.0, 0.8, **uneven), "adam", data)
    their_masks, their_trained = theirs(model, process.tfmot().PolynomialDecay(0.0, 0.8, **uneven), "adam", data)
    assert zeros(masks) == pytest.approx(0.8, abs=0.005)
    assert zeros(their_masks) == pytest.approx(0.715, abs=0.005)
    assert mp.sparsity(trained) > 0.79 > 0.72 > mp.sparsity(their_trained)


def test_a_decay_shorter_than_its_frequency_acts(data):
    short = {"begin_step": 0, "end_step": 50, "frequency": 100}
    model = network()
    masks, _ = ours(model, mp.PolynomialDecay(0.0, 0.8, **short), "adam", data, steps=60)
    their_masks, _ = theirs(model, process.tfmot().PolynomialDecay(0.0, 0.8, **short), "adam", data, steps=60)
    assert zeros(masks) == pytest.approx(0.8, abs=0.005)
    assert zeros(their_masks) == 0  # and it says nothing


def test_a_zero_comes_back_where_the_step_was_large_enough(data):
    # The toolkit zeroes only after it has chosen: what an optimizer's step made of a zero takes part in the choice.
    masks = hold(mp.ConstantSparsity(0.6, begin_step=20, frequency=1), "momentum", data)
    assert back(masks) > 0


def test_nested_zeros_never_come_back(data):
    schedule = mp.ConstantSparsity(0.6, begin_step=20, frequency=1)
    masks, _ = ours(network(), schedule, "momentum", data, nested=True)
    assert back(masks) == 0


def test_blocks_are_judged_by_their_own_weights():
    # Where blocks do not divide the kernel, the toolkit pads it on both sides before it pools, and so judges each
    # block by neighbours of its weights: here it zeroes the largest weight of all.
    model = keras.Sequential([keras.Input((6,)), layers.Dense(2, name="first")])
    column = np.array([1, 1, 1, 9, 2, 2], "float32")
    model.get_layer("first").set_weights([np.stack([column, 1.01 * column], axis=1), np.zeros(2, "float32")])
    half = mp.ConstantSparsity(0.5, begin_step=1, end_step=1, frequency=1)
    still = (np.zeros((1, 2, 6), "float32"), np.zeros((1, 2, 2), "float32"))
    masks, _ = ours(model, half, "adam", still, steps=1, block_size=(4, 1))
    their_masks, _ = theirs(model, half, "adam", still, steps=1, block_size=(4, 1))
    for column in (0, 1):
        assert masks[0]["first"][:, column].tolist() == [True] * 4 + [False] * 2
        assert their_masks[0]["first"][:, column].tolist() == [False] * 4 + [True] * 2


def test_two_of_four_follows_the_weights(data):
    always = mp.ConstantSparsity(0.5, begin_step=0, frequency=20)
    masks, _ = ours(flat_network(), always, "momentum", data, sparsity_m_by_n=(2, 4))
    their_masks, _ = theirs(flat_network(), always, "momentum", data, sparsity_m_by_n=(2, 4))
    assert updates(their_masks) == [1]
    assert masks[18]["first"].all()
    assert {step for step in updates(masks) if step > 1} <= set(range(20, 201, 20))
    assert 20 in updates(masks)


@pytest.mark.parametrize("kept", [3, 4])
def test_among_equal_weights_the_first_ones_stay(kept, data):
    model = keras.Sequential([keras.Input((8,)), layers.Dense(1, name="first")])
    sizes = np.array([4, 2, 2, 2, 2, 1, 1, 1], "float32")[:, None]
    model.get_layer("first").set_weights([sizes, np.zeros(1, "float32")])
    once = mp.ConstantSparsity(1 - kept / 8, begin_step=1, end_step=1, frequency=1)
    still = (np.zeros((1, 2, 8), "float32"), np.zeros((1, 2, 1), "float32"))
    masks, _ = ours(model, once, "adam", still, steps=1)
    their_masks, _ = theirs(model, once, "adam", still, steps=1)
    assert masks[0]["first"].ravel().tolist() == [True] * kept + [False] * (8 - kept)
    assert their_masks[0]["first"].ravel().tolist() == [True] * 5 + [False] * 3


def test_schedules_survive_their_configuration():
    for schedule in (CONSTANT[20], DECAY[20]):
        again = mp.schedules.schedule_from_config(schedule.get_config())
        assert again == schedule
        toolkit = mp.to_tfmot_schedule(schedule)
        with pytest.raises(TypeError):
            type(toolkit).from_config(toolkit.get_config())
