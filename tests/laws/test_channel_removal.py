"""The law of channel pruning: what nobody reads can go, and nothing else changes."""

import keras
import numpy as np
import pytest
from architectures import ARCHITECTURES, random_inputs, randomise

from mobileprune import surgery
from mobileprune.channel_groups import ChannelGraph
from mobileprune.plan import plan_channels
from mobileprune.prune import prune_channels

# The axis along which a kernel reads its input.
READING_AXIS = {
    (keras.layers.Conv1D, "kernel"): -2,
    (keras.layers.Conv2D, "kernel"): -2,
    (keras.layers.Dense, "kernel"): 0,
    (keras.layers.Conv2DTranspose, "kernel"): -1,
    (keras.layers.SeparableConv2D, "pointwise_kernel"): -2,
}


def silence_removed_channels(model, plan):
    """Sets to zero what every consumer reads of the channels that the plan removes."""
    graph = ChannelGraph(model)
    entries = {entry.group: entry for entry in plan.groups}
    silenced = 0
    for group in graph.groups:
        gone = np.zeros(group.size, bool)
        gone[list(entries[group.name].remove)] = True
        for weight, axis, units in graph.weights_of(group):
            layer = graph.ids.layers[weight.layer]
            reading = READING_AXIS.get((type(layer), weight.attribute))
            if reading is None or axis != reading % len(weight.shape):
                continue
            variable = getattr(layer, weight.attribute)
            values = np.moveaxis(np.array(variable), axis, 0)
            dead = (units >= 0) & gone[units]
            if getattr(layer, "groups", 1) > 1 and dead.any():
                # Group g of the filters reads its own slice; unified positions make the slices' fates equal.
                silenced += 1
            values[dead] = 0
            silenced += int(dead.sum())
            variable.assign(np.moveaxis(values, 0, axis))
    return silenced


def outputs(model, inputs, training):
    found = model(inputs if len(inputs) > 1 else inputs[0], training=training)
    return [np.asarray(tensor) for tensor in keras.tree.flatten(found)]


def pruned_pair(name, seed=0):
    model = randomise(ARCHITECTURES[name](), seed)
    plan = plan_channels(model, macs=0.6, importance="random", scope="global", round_to=4, seed=seed)
    assert silence_removed_channels(model, plan) > 0
    return model, plan


@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_removing_what_nobody_reads_changes_nothing(name, training):
    model, plan = pruned_pair(name)
    smaller = prune_channels(model, plan)
    assert smaller.count_params() == plan.params < model.count_params()
    inputs = random_inputs(model)
    for large, small in zip(outputs(model, inputs, training), outputs(smaller, inputs, training), strict=True):
        np.testing.assert_allclose(small, large, rtol=1e-4, atol=1e-4 * np.abs(large).max())


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_slice_that_is_off_by_one_breaks_the_law(name, monkeypatch):
    model, plan = pruned_pair(name)
    right = surgery.places
    monkeypatch.setattr(surgery, "places", lambda old, new: (right(old, new) + 1) % len(old))
    wrong = prune_channels(model, plan)
    inputs = random_inputs(model)
    pairs = zip(outputs(model, inputs, False), outputs(wrong, inputs, False), strict=True)
    assert any(np.abs(small - large).max() > 1e-2 * np.abs(large).max() for large, small in pairs)
