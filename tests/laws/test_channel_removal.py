"""The law of channel pruning on hand-built networks: what nobody reads can go, and nothing else changes.

`EXPECTED` also holds the engine to how much it can remove: a law that holds because nothing was cut is worth nothing.
"""

import subprocess
import sys
import zlib
from pathlib import Path

import keras
import numpy as np
import pytest
from architectures import ARCHITECTURES, random_inputs, randomise
from laws.removal import (
    ChannelGraph,
    check_law,
    check_training,
    disagreement,
    frozen_layers,
    law_plan,
    mixed_groups,
    prune_channels,
    removable,
    run,
    silence,
    survivors,
    without_randomness,
)
from op_architectures import OPS
from sequence_architectures import SEQUENCES
from zoo_architectures import ZOO

from mobileprune import surgery

NETWORKS = {**ARCHITECTURES, **ZOO, **OPS, **SEQUENCES}

# For each network: how many groups can lose channels, and the share of parameters gone without 75% of each of them.
# Counted by hand; lower than what is possible only where an engine may rightly keep more (see the networks).
EXPECTED = {
    "sequential_convnet": (3, 0.7),
    "residual": (4, 0.7),
    "inverted_residual": (3, 0.65),
    "concatenation": (4, 0.6),
    "squeeze_and_excite": (3, 0.7),
    "grouped_and_transposed": (4, 0.7),
    "channel_shuffle": (2, 0.6),
    "shared_and_two_headed": (3, 0.6),
    "shufflenet_v2_ops": (8, 0.5),
    "shufflenet_v2_layers": (8, 0.5),
    "resnext": (9, 0.7),
    "unet": (7, 0.7),
    "vit_constant_positions": (5, 0.65),
    "vit_learned_positions": (5, 0.65),
    "cross_attention": (5, 0.6),
    "gpt_tied": (9, 0.7),
    "gpt_grouped": (7, 0.7),
    "einsum_attention": (6, 0.6),
    "ssd": (6, 0.65),
    "siamese": (4, 0.7),
    "nested_deeply": (3, 0.7),
    "sequential_of_models": (4, 0.7),
    "nested_outputs": (3, 0.7),
    "mlp_mixer": (2, 0.35),
    "convnext_custom_scale": (4, 0.7),
    "convnext_keras_scale": (4, 0.7),
    "conv1d": (3, 0.7),
    "many_inputs_and_outputs": (3, 0.7),
    "unregistered_layer": (4, 0.6),
    "pointwise_ops": (3, 0.7),
    "constants": (4, 0.7),
    "slices": (4, 0.7),
    "reordered_channels": (4, 0.6),
    "rolled_channels": (2, 0.5),
    "reshapes": (4, 0.7),
    "pixel_shuffle": (3, 0.7),
    "space_to_depth": (3, 0.7),
    "stacked": (3, 0.7),
    "spatial_ops": (3, 0.7),
    "padded_channels": (2, 0.5),
    "group_normalisations": (5, 0.6),
    "layer_normalisations": (4, 0.7),
    "parametric_and_noisy": (5, 0.7),
    "depthwise_and_separable": (6, 0.6),
    "dense_on_many_axes": (4, 0.7),
    "squeeze_with_keepdims": (4, 0.7),
    "spatial_attention": (4, 0.6),
    "crnn": (5, 0.7),
    "bilstm_tagger": (3, 0.7),
    "convnet_3d": (4, 0.7),
    "channels_first": (4, 0.7),
    "recurrent_kinds": (7, 0.7),
    "merged_directions": (7, 0.7),
    "video": (7, 0.7),
    "masked_words": (3, 0.65),
}
HALVED = (
    *("shufflenet_v2_ops", "shufflenet_v2_layers", "resnext", "unet", "vit_constant_positions", "siamese", "ssd"),
    *("vit_learned_positions", "convnext_custom_scale", "nested_deeply", "inverted_residual", "dense_on_many_axes"),
)
# Networks in which an op reduces over channels or a stack of them: such groups may be called inexact, too.
REDUCING = {"spatial_attention", "stacked"}


def test_every_network_has_its_expectation():
    assert NETWORKS.keys() == EXPECTED.keys() >= set(HALVED)


@pytest.mark.parametrize("name", NETWORKS)
def test_removing_what_nobody_reads_changes_nothing(name):
    check_law(NETWORKS[name]())


@pytest.mark.parametrize("name", HALVED)
def test_half_of_the_macs_can_go(name):
    _, plan = check_law(NETWORKS[name](), macs=0.5, round_to=2, seed=1)
    assert plan.macs <= 0.5 * plan.macs_before


@pytest.mark.parametrize("name", NETWORKS)
def test_much_of_each_network_can_go(name):
    groups, share = removable(NETWORKS[name]())
    least_groups, least_share = EXPECTED[name]
    assert len(groups) >= least_groups, groups
    assert share >= least_share


@pytest.mark.parametrize("name", NETWORKS)
def test_groups_are_inexact_where_a_normalisation_sees_them_and_nowhere_else(name):
    graph = ChannelGraph(NETWORKS[name]())
    inexact = {group.name for group in graph.groups if group.inexact and not group.frozen}
    mixed = {group.name for group in graph.groups if not group.frozen} & mixed_groups(graph)
    assert inexact >= mixed
    if name not in REDUCING:
        assert inexact == mixed


@pytest.mark.parametrize("name", NETWORKS)
def test_the_smaller_model_is_an_ordinary_one(name, tmp_path):
    """It is saved and read back in Keras' safe mode, names nothing of mobileprune, and learns."""
    model = without_randomness(randomise(NETWORKS[name]()))
    smaller = prune_channels(model, law_plan(model, ratio=0.5, round_to=2))
    assert "mobileprune" not in smaller.to_json()
    smaller.save(tmp_path / "smaller.keras")
    again = keras.models.load_model(tmp_path / "smaller.keras", safe_mode=True)
    inputs = random_inputs(smaller)
    found = run(smaller, inputs)
    assert disagreement(found, run(again, inputs)) < 1e-6
    assert [tensor.shape for tensor in smaller.outputs] == [tensor.shape for tensor in model.outputs]
    check_training(again, inputs)


def test_the_smaller_model_is_read_without_mobileprune(tmp_path):
    """In a process of its own that cannot import mobileprune, with nothing but the user's own layers."""
    expected, inputs = {}, {}
    for name in ("shared_and_two_headed", "residual", "unregistered_layer", "vit_learned_positions"):
        model = randomise(NETWORKS[name]())
        smaller = prune_channels(model, law_plan(model, ratio=0.5, round_to=2))
        smaller.save(tmp_path / f"{name}.keras")
        inputs[name] = random_inputs(smaller)
        expected[name] = run(smaller, inputs[name])
        np.savez(tmp_path / f"{name}.npz", *inputs[name])
    program = """
import glob, sys
sys.modules["mobileprune"] = None
import custom_layers, keras, numpy as np
for path in glob.glob(sys.argv[1] + "/*.keras"):
    model = keras.models.load_model(path, safe_mode=True)
    inputs = list(np.load(path[:-6] + ".npz").values())
    found = keras.tree.flatten(model(inputs if len(inputs) > 1 else inputs[0]))
    np.savez(path[:-6] + ".found.npz", *map(np.asarray, found))
"""
    tests = str(Path(__file__).parents[1])
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True, cwd=tests, timeout=300)
    for name, outputs in expected.items():
        assert disagreement(outputs, list(np.load(tmp_path / f"{name}.found.npz").values())) < 1e-5, name


def test_a_layer_without_a_rule_freezes_only_what_it_touches():
    frozen = {name.split(":")[0] for name in frozen_layers(ZOO["unregistered_layer"]())}
    # Besides the network's input and its output, which are always frozen.
    assert {"touched", "mystery"} <= frozen
    assert len(frozen) == 4, frozen


# The law must be able to fail: mistakes planted where surgery reads which old index goes where.


def _off_by_one(places, old):
    return (places + 1) % len(old)


def _swapped(places, old):
    places = places.copy()
    places[[0, -1]] = places[[-1, 0]]
    return places


def _error_with_mistakes(name, monkeypatch, mistake, everywhere):
    model = without_randomness(randomise(NETWORKS[name]()))
    plan = law_plan(model, ratio=0.5, round_to=2)
    graph = ChannelGraph(model)
    silence(graph, plan)
    right, planted = surgery.places, []

    def wrong(old, new):
        places = right(old, new)
        # Where channels were removed and at least two are left, a mistake is one.
        if (everywhere or not planted) and 1 < len(places) < len(old) and places[0] != places[-1]:
            planted.append(len(old))
            return mistake(places, old)
        return places

    monkeypatch.setattr(surgery, "places", wrong)
    smaller = prune_channels(model, plan)
    assert planted
    inputs = random_inputs(model)
    return disagreement(run(model, inputs, alive=survivors(graph, plan)), run(smaller, inputs))


@pytest.mark.parametrize("name", NETWORKS)
def test_slices_that_are_off_by_one_break_the_law(name, monkeypatch):
    assert _error_with_mistakes(name, monkeypatch, _off_by_one, everywhere=True) > 1e-2


@pytest.mark.parametrize("name", NETWORKS)
def test_two_channels_swapped_in_one_weight_break_the_law(name, monkeypatch):
    """In one weight only: swapped everywhere, all would agree again."""
    assert _error_with_mistakes(name, monkeypatch, _swapped, everywhere=False) > 1e-3


@pytest.mark.parametrize("name", ["residual", "inverted_residual", "unet", "ssd"])
def test_a_channel_that_is_still_read_breaks_the_law(name):
    """Without silencing, what was removed is missed: the law does not hold for any model whatever."""
    model = without_randomness(randomise(NETWORKS[name](), seed=zlib.crc32(name.encode())))
    smaller = prune_channels(model, law_plan(model, ratio=0.5, round_to=2))
    inputs = random_inputs(model)
    assert disagreement(run(model, inputs), run(smaller, inputs)) > 1e-2
