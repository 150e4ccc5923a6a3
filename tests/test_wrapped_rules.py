"""A wrapped model loses channels as the plain one inside does, and stays wrapped."""

import keras
import numpy as np
import pytest
from architectures import ARCHITECTURES, random_inputs, randomise
from laws.removal import ChannelGraph, check_training, disagreement, run, silence, without_randomness
from quantizable import NETWORKS, images, network
from sequence_architectures import SEQUENCES

from mobileprune import (
    UpdatePruningStep,
    convert,
    hold_zeros,
    plan_channels,
    prune_channels,
    prune_low_magnitude,
    quantize_aware,
    strip_pruning,
    verify,
)
from mobileprune.errors import MobilePruneWarning
from mobileprune.fake_quant import quantizers
from mobileprune.pruning_wrapper import wrapped_layers
from mobileprune.quantize_aware import is_quantize_aware, strip_quantization
from mobileprune.schedules import PolynomialDecay
from mobileprune.sparsify import prune_now

layers = keras.layers
SPARSE = {**ARCHITECTURES, **{name: SEQUENCES[name] for name in ("crnn", "bilstm_tagger", "recurrent_kinds", "video")}}


def sparse_model(name):
    """A wrapped model of random weights, half of which are zero."""
    model = without_randomness(randomise(SPARSE[name]()))
    return prune_now(prune_low_magnitude(model, PolynomialDecay(0.0, 0.5, 0, 8)))


def silenced(model, **target):
    """A random plan whose channels nobody reads any more."""
    plan = plan_channels(model, importance="random", **(target or {"ratio": 0.5}), round_to=2)
    assert silence(ChannelGraph(model), plan) > 0
    return plan


@pytest.mark.parametrize("name", SPARSE)
def test_sparse_models_hold_the_law_and_stay_wrapped(name):
    model = sparse_model(name)
    plan = silenced(model)
    smaller = prune_channels(model, plan)
    inputs = random_inputs(model)
    assert disagreement(run(model, inputs), run(smaller, inputs)) < 1e-4
    assert [layer.name for layer in wrapped_layers(smaller)] == [layer.name for layer in wrapped_layers(model)]
    for layer in wrapped_layers(smaller):
        assert layer.pruning_schedule == PolynomialDecay(0.0, 0.5, 0, 8)
        for _, weights, mask in layer.pruned_weights():
            values, kept = np.asarray(weights), np.asarray(mask)
            assert kept.shape == values.shape
            assert not values[kept == 0].any()
            assert 0 < np.count_nonzero(kept) < kept.size


@pytest.mark.parametrize("name", ["residual", "crnn"])
def test_the_plan_counts_what_is_left_without_masks(name):
    model = sparse_model(name)
    plan = plan_channels(model, ratio=0.5, round_to=2)
    smaller = prune_channels(model, plan)
    assert plan.params_before == strip_pruning(model).count_params()
    assert plan.params == strip_pruning(smaller).count_params() < smaller.count_params()


def test_masks_are_cut_with_their_weights():
    """Masks of one kept and one removed channel differ, and stay with their channels."""
    inputs = keras.Input((4,))
    model = randomise(keras.Model(inputs, layers.Dense(3, name="b")(layers.Dense(8, name="a")(inputs))))
    kernel = np.array(model.get_layer("a").kernel)
    kernel[np.arange(8) % 4, np.arange(8)] = 0  # another zero in each column
    model.get_layer("a").kernel.assign(kernel)
    held = hold_zeros(model)
    plan = plan_channels(held, ratio=0.5, round_to=1, importance="random")
    (entry,) = (entry for entry in plan.groups if entry.remove)
    kept = np.setdiff1d(np.arange(8), entry.remove)
    smaller = prune_channels(held, plan)
    first = wrapped_layers(smaller)[0]
    np.testing.assert_array_equal(first.masks["kernel"], (kernel != 0)[:, kept])
    np.testing.assert_array_equal(first.layer.kernel, kernel[:, kept])


def test_a_smaller_sparse_model_is_saved_trains_and_is_stripped(tmp_path):
    model = sparse_model("crnn")
    smaller = prune_channels(model, silenced(model))
    smaller.save(tmp_path / "smaller.keras")
    again = keras.models.load_model(tmp_path / "smaller.keras", safe_mode=True)
    inputs = random_inputs(smaller)
    assert disagreement(run(smaller, inputs), run(again, inputs)) < 1e-6
    again.compile("sgd", "mse", run_eagerly=True)
    again.fit(*inputs, np.zeros((3, *again.output.shape[1:])), verbose=0, callbacks=[UpdatePruningStep()])
    for layer in wrapped_layers(again):
        for _, weights, mask in layer.pruned_weights():
            assert not np.asarray(weights)[np.asarray(mask) == 0].any()
    assert disagreement(run(again, inputs), run(strip_pruning(again), inputs)) < 1e-6


@pytest.mark.parametrize("name", NETWORKS)
def test_quantization_aware_models_hold_the_law_and_stay_so(name):
    """Rounded weights of fewer channels have other steps: what is compared is the plain model inside."""
    model = without_randomness(network(name))
    aware = quantize_aware(model, calibration=images(model, 16))
    plan = silenced(aware)
    smaller = prune_channels(aware, plan)
    assert is_quantize_aware(smaller)
    inside, left = strip_quantization(aware), strip_quantization(smaller)
    assert plan.params_before == inside.count_params()
    assert plan.params == left.count_params() < inside.count_params()
    inputs = [images(model, 4)]
    assert disagreement(run(inside, inputs), run(left, inputs)) < 1e-4
    assert [layer.bounds for layer in quantizers(smaller)] == [layer.bounds for layer in quantizers(aware)]
    check_training(smaller, inputs)


def test_a_smaller_quantization_aware_and_sparse_model_becomes_a_file():
    model = network("inverted_residual")
    aware = quantize_aware(hold_zeros(model), calibration=images(model, 32))
    smaller = prune_channels(aware, plan_channels(aware, ratio=0.25, round_to=2))
    assert len(wrapped_layers(smaller)) == len(wrapped_layers(aware)) > 0
    (variant,) = convert(smaller, ["int8"])
    report = verify(smaller, variant, images(model, 32))
    assert report.snr_db > 20
    assert variant.content


def test_a_batch_norm_that_is_folded_still_ranks_channels():
    model = network("inverted_residual")
    plain = plan_channels(model, ratio=0.25, importance="batch_norm_scale", round_to=2)
    aware = quantize_aware(model, calibration=images(model, 8))
    found = plan_channels(aware, ratio=0.25, importance="batch_norm_scale", round_to=2)
    removed = [[entry.remove for entry in plan.groups if entry.remove] for plan in (plain, found)]
    assert removed[0] == removed[1] != []


def test_wrapped_layers_are_left_unfitted_with_a_warning():
    model = sparse_model("residual")
    plan = plan_channels(model, ratio=0.5, round_to=2)
    with pytest.warns(MobilePruneWarning, match="cannot be fitted: prune_low_magnitude_"):
        smaller = prune_channels(model, plan, "least_squares", random_inputs(model, batch=8)[0])
    for layer in wrapped_layers(smaller):
        for _, weights, mask in layer.pruned_weights():
            assert not np.asarray(weights)[np.asarray(mask) == 0].any()


def test_a_mask_of_another_channel_breaks_the_comparison():
    """The tests above can fail: masks that are cut elsewhere than their weights."""
    model = sparse_model("residual")
    smaller = prune_channels(model, silenced(model))
    wrong = 0
    for layer in wrapped_layers(smaller):
        for _, weights, mask in layer.pruned_weights():
            rolled = np.roll(np.asarray(mask), 1, axis=-1)
            wrong += bool(np.asarray(weights)[rolled == 0].any())
    assert wrong == len(wrapped_layers(smaller))
