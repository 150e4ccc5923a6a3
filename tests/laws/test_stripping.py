"""The laws of sparsity: stripping changes no output, zeros stay zeros, targets are reached, files carry it all."""

import subprocess
import sys
import zipfile

import keras
import numpy as np
import pytest
from architectures import ARCHITECTURES, random_inputs, randomise
from hypothesis import given, settings
from hypothesis import strategies as st

from mobileprune.graph import functional_graph
from mobileprune.masks import kept_count, magnitude_mask
from mobileprune.prunable import prunable_weights
from mobileprune.pruning_callbacks import UpdatePruningStep
from mobileprune.pruning_wrapper import PruneLowMagnitude
from mobileprune.schedules import ConstantSparsity, PolynomialDecay
from mobileprune.sparsify import hold_zeros, prune_low_magnitude, sparsity, strip_pruning

layers = keras.layers


def outputs(model, inputs):
    found = model(inputs if len(inputs) > 1 else inputs[0], training=False)
    return [np.asarray(tensor) for tensor in keras.tree.flatten(found)]


def equal(left, right, inputs):
    pairs = zip(outputs(left, inputs), outputs(right, inputs), strict=True)
    return all(one.dtype == other.dtype and np.array_equal(one, other) for one, other in pairs)


def kernels(model):
    inner = [layer.layer if isinstance(layer, PruneLowMagnitude) else layer for layer in model.layers]
    return {
        f"{layer.name}.{name}": np.array(weights)
        for layer in inner
        for name, weights in prunable_weights(layer).items()
    }


def data_for(model, batch, seed=0):
    generator = np.random.default_rng(seed)
    graph = functional_graph(model)
    inputs = random_inputs(model, batch, seed)
    targets = keras.tree.map_structure(lambda tensor: generator.random((batch, *tensor.shape[1:])), graph.output)
    return inputs if len(inputs) > 1 else inputs[0], targets


def train(model, steps, callbacks=(), optimizer=None, seed=0, batch_size=2):
    if not model.compiled:
        # Eagerly: the same steps without the seconds of tracing.
        model.compile(optimizer or keras.optimizers.Adam(0.01), "mse", run_eagerly=True)
    x, y = data_for(model, steps * batch_size, seed)
    model.fit(x, y, batch_size=batch_size, shuffle=False, verbose=0, callbacks=list(callbacks))
    return model


def make_sparse(model, share):
    for layer in model.layers:
        for variable in prunable_weights(layer).values():
            values = np.array(variable)
            variable.assign(np.where(magnitude_mask(values, share), values, 0))
    return model


def test_equal_tells_one_wrong_weight():
    model = randomise(ARCHITECTURES["residual"]())
    other = strip_pruning(model)
    inputs = random_inputs(model)
    assert equal(model, other, inputs)
    bias = np.array(other.layers[-1].bias)
    bias[0] += 1e-5
    other.layers[-1].bias.assign(bias)
    assert not equal(model, other, inputs)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_strip_after_training_keeps_every_output_and_every_zero(name):
    model = randomise(ARCHITECTURES[name]())
    sparse = prune_low_magnitude(model, PolynomialDecay(0.0, 0.75, begin_step=0, end_step=3, frequency=2))
    train(sparse, 3, [UpdatePruningStep()])
    stripped = strip_pruning(sparse)
    assert equal(sparse, stripped, random_inputs(model))
    assert [layer.name for layer in stripped.layers] == [layer.name for layer in model.layers]
    assert [type(layer) for layer in stripped.layers] == [type(layer) for layer in model.layers]
    found, trained = kernels(stripped), kernels(sparse)
    for place, values in found.items():
        assert np.count_nonzero(values) == round(values.size * 0.25)
        np.testing.assert_array_equal(values, trained[place])
        assert not np.signbit(values[values == 0]).any()  # every zero has the same bits
    assert any(not np.array_equal(values, kernels(model)[place]) for place, values in found.items())


@pytest.mark.parametrize("use_ema", [False, True], ids=["Adam", "Adam with weight averages"])
@pytest.mark.parametrize("name", ["inverted_residual", "grouped_and_transposed", "shared_and_two_headed"])
def test_hold_zeros_keeps_exactly_the_zeros_through_training(name, use_ema):
    model = make_sparse(randomise(ARCHITECTURES[name]()), 0.6)
    before = kernels(model)
    held = hold_zeros(model)
    train(held, 3, [UpdatePruningStep()], keras.optimizers.Adam(0.01, use_ema=use_ema, ema_momentum=0.5))
    assert sparsity(held) == sparsity(model)
    assert equal(held, strip_pruning(held), random_inputs(model))
    moved = 0
    for place, values in kernels(strip_pruning(held)).items():
        np.testing.assert_array_equal(values == 0, before[place] == 0)
        moved += np.count_nonzero(values != before[place])
    assert moved > 0


def test_without_holding_the_zeros_are_lost():
    model = make_sparse(randomise(ARCHITECTURES["inverted_residual"]()), 0.6)
    before = sparsity(model)
    assert sparsity(train(model, 3)) < 0.2 * before


def test_hold_zeros_in_a_compiled_graph_without_the_callback():
    model = make_sparse(randomise(ARCHITECTURES["sequential_convnet"]()), 0.6)
    held = hold_zeros(model)
    held.compile(keras.optimizers.Adam(0.01), "mse", steps_per_execution=2)
    held.fit(*data_for(held, 8), batch_size=2, verbose=0)
    assert sparsity(held) == sparsity(model)


def driven(schedule, steps):
    """A small wrapped model after `steps` batches that the callback saw, and its sparsity after each."""
    model = randomise(keras.Sequential([keras.Input((10,)), layers.Dense(20)]))
    wrapped = prune_low_magnitude(model, schedule)
    callback = UpdatePruningStep()
    callback.set_model(wrapped)
    callback.on_train_begin()
    seen = [sparsity(wrapped)]
    for batch in range(steps):
        callback.on_train_batch_begin(batch)
        seen.append(sparsity(wrapped))
    return seen


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 6), st.integers(1, 12), st.integers(1, 300), st.sampled_from([0.1, 0.5, 0.8, 0.95]))
def test_the_final_sparsity_is_reached_at_the_end_step_whatever_the_frequency(begin, length, frequency, final):
    end = begin + length
    seen = driven(PolynomialDecay(0.0, final, begin, end, frequency=frequency), end + 2)
    assert seen[end:] == [(200 - kept_count(200, final)) / 200] * 3
    assert seen[: begin + 1] == [0.0] * (begin + 1)
    assert seen == sorted(seen)


def test_the_final_sparsity_is_reached_by_a_real_training_shorter_than_the_frequency():
    model = ARCHITECTURES["sequential_convnet"]()
    sparse = prune_low_magnitude(model, PolynomialDecay(0.0, 0.8, begin_step=0, end_step=5))
    train(sparse, 4, [UpdatePruningStep()])
    assert sparsity(sparse) == 0.0
    train(sparse, 1, [UpdatePruningStep()])
    assert sparsity(sparse) == pytest.approx(0.8, abs=0.01)


def state(model):
    """Kernels, masks and steps of the wrapped layers, by name."""
    found = kernels(model)
    for layer in model.layers:
        if isinstance(layer, PruneLowMagnitude):
            found[f"{layer.name} step"] = np.array(layer.pruning_step)
            found |= {f"{layer.name} mask {name}": np.array(mask) for name, mask in layer.masks.items()}
    return found


def same_state(left, right):
    left, right = state(left), state(right)
    return left.keys() == right.keys() and all(np.array_equal(left[name], right[name]) for name in left)


def test_same_state_tells_a_mask_and_a_step():
    model = prune_low_magnitude(ARCHITECTURES["residual"](), ConstantSparsity(0.5, 0))
    other = keras.models.clone_model(model)
    other.set_weights(model.get_weights())
    assert same_state(model, other)
    layer = next(layer for layer in other.layers if isinstance(layer, PruneLowMagnitude))
    layer.pruning_step.assign(1)
    assert not same_state(model, other)
    layer.pruning_step.assign(0)
    layer.update_masks(0)
    layer.layer.kernel.assign(next(iter(kernels(model).values())))
    assert not same_state(model, other)


def test_a_saved_wrapped_model_goes_on_where_it_stopped(tmp_path):
    schedule = PolynomialDecay(0.0, 0.8, begin_step=1, end_step=6, frequency=2)
    model = prune_low_magnitude(randomise(ARCHITECTURES["residual"]()), schedule)
    train(model, 3, [UpdatePruningStep()])
    model.save(tmp_path / "wrapped.keras")
    reloaded = keras.models.load_model(tmp_path / "wrapped.keras")
    assert same_state(model, reloaded)
    wrapped = [layer for layer in reloaded.layers if isinstance(layer, PruneLowMagnitude)]
    assert {layer.pruning_schedule for layer in wrapped} == {schedule}
    assert {int(layer.pruning_step) for layer in wrapped} == {3}
    assert equal(model, reloaded, random_inputs(model))
    reloaded.run_eagerly = True
    for one in (model, reloaded):
        train(one, 3, [UpdatePruningStep()], seed=1)
    left, right = state(model), state(reloaded)
    for name, values in left.items():
        np.testing.assert_allclose(right[name], values, rtol=1e-5, atol=1e-6, err_msg=name)
    assert sparsity(reloaded) == sparsity(model) == pytest.approx(0.8, abs=0.01)


def test_a_saved_held_model_still_holds_its_zeros(tmp_path):
    held = hold_zeros(make_sparse(randomise(ARCHITECTURES["squeeze_and_excite"]()), 0.6))
    before = sparsity(held)
    held.save(tmp_path / "held.keras")
    reloaded = keras.models.load_model(tmp_path / "held.keras")
    assert same_state(held, reloaded)
    assert sparsity(train(reloaded, 2)) == before
    assert equal(reloaded, strip_pruning(reloaded), random_inputs(held))


ALONE = """
import sys
sys.modules["mobileprune"] = None  # any import of it fails
import keras, numpy
model = keras.models.load_model("stripped.keras", safe_mode=True)
numpy.save("found.npy", model(numpy.load("image.npy"), training=False))
print(",".join(layer.name for layer in model.layers))
"""


def test_a_stripped_model_loads_where_mobileprune_is_not_installed(tmp_path):
    model = randomise(ARCHITECTURES["sequential_convnet"]())
    sparse = train(prune_low_magnitude(model, ConstantSparsity(0.5, 0)), 1, [UpdatePruningStep()])
    stripped = strip_pruning(sparse)
    stripped.save(tmp_path / "stripped.keras")
    image = random_inputs(model)[0]
    np.save(tmp_path / "image.npy", image)
    ran = subprocess.run([sys.executable, "-c", ALONE], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip().split(",") == [layer.name for layer in model.layers]
    np.testing.assert_array_equal(np.load(tmp_path / "found.npy"), outputs(sparse, [image])[0])
    with zipfile.ZipFile(tmp_path / "stripped.keras") as archive:
        assert b"mobileprune" not in archive.read("config.json")
