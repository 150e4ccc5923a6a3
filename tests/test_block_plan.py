import dataclasses
import functools

import keras
import numpy as np
import pytest
from architectures import random_inputs
from laws.block_removal import answers, difference
from plan_networks import four_blocks

from mobileprune import block_plan
from mobileprune.block_plan import BlockChoice, check_blocks, surviving_patterns
from mobileprune.block_removal import layers_behind, remove_blocks
from mobileprune.blocks import BlockGraph
from mobileprune.errors import PlanError
from mobileprune.inspect import model_facts
from mobileprune.plan import plan_channels
from mobileprune.prune import prune_channels
from mobileprune.pruning_plan import PruningPlan, cost_of_plan
from mobileprune.rerun import Rerun

layers = keras.layers


model = functools.cache(four_blocks)  # planning never changes it


@functools.cache
def images():
    return random_inputs(model(), batch=32)[0]


def plan(**arguments):
    return plan_channels(model(), **{"round_to": 4, "calibration": images(), **arguments})


def test_blocks_go_first_and_the_target_counts_from_the_whole_model():
    made = plan(macs=0.5, blocks=1)
    assert made.blocks == ("block_3",)
    assert made.macs_before == model_facts(model()).macs
    assert made.macs <= 0.5 * made.macs_before
    assert "block_3_expand" not in {entry.group for entry in made.groups}
    smaller = prune_channels(model(), made)
    assert model_facts(smaller) == dataclasses.replace(model_facts(smaller), macs=made.macs, params=made.params)
    assert cost_of_plan(model(), made).macs == made.macs
    assert {layer.name for layer in smaller.layers} & {"block_3_expand", "block_3_add"} == set()


def test_a_plan_without_blocks_is_what_it_was():
    assert plan(macs=0.5) == plan(macs=0.5, blocks=0) == plan(macs=0.5, blocks=[])
    assert plan(macs=0.5).blocks == ()


def test_blocks_pass_through_json_and_old_plans_are_read(tmp_path):
    made = plan(macs=0.5, blocks=2)
    assert PruningPlan.load(made.save(tmp_path / "plan.json")) == made
    old = {name: value for name, value in plan(macs=0.5).to_json().items() if name != "blocks"}
    assert PruningPlan.from_json(old) == plan(macs=0.5)


def test_a_plan_of_blocks_alone_removes_just_these():
    made = plan(macs=1.0, blocks=["block_2", "block_4"], calibration=None)
    smaller, cut = prune_channels(model(), made), remove_blocks(model(), ["block_2", "block_4"])
    assert difference(answers(cut, [images()]), answers(smaller, [images()])) < 1e-6
    assert made.macs == model_facts(cut).macs
    assert not any(entry.remove for entry in made.groups)


@pytest.mark.parametrize("target", ["macs", "params", "file_bytes"])
def test_no_block_goes_that_alone_would_reach_the_target(target):
    made = plan(**{target: 0.9}, blocks=3)
    assert made.blocks == ()
    assert any(entry.remove for entry in made.groups)
    fewer = plan(**{target: 0.6}, blocks=3)
    assert 1 <= len(fewer.blocks) <= 2


def test_the_other_targets_count_what_blocks_leave():
    half = plan(ratio=0.5, blocks=1, round_to=1)
    assert half.blocks == ("block_3",)
    assert all(2 * len(entry.remove) == entry.size for entry in half.groups if not entry.frozen)
    named = plan(channels={"block_3_expand": 16, "block_1_*expand": 8}, blocks=1)
    assert "block_3" not in named.blocks
    assert "block_1" not in named.blocks
    assert len(next(entry for entry in named.groups if entry.group == "block_3_expand").remove) == 16


def chosen(blocks, **limits):
    return BlockChoice(model(), blocks, images(), layers=_creators(), **limits).names


def _creators():
    return [layer.name for layer in model().layers if layer.weights]


def test_as_many_go_as_are_allowed_least_missed_first():
    assert chosen(1) == ("block_3",)
    assert len(chosen(3)) == 3
    assert set(chosen(9)) >= {"block_1", "block_2", "block_3", "block_4"}
    of_block = {block.name: block.macs for block in BlockGraph(model()).blocks}
    share = (of_block["block_3"] + 1) / model_facts(model()).macs
    assert chosen(share) == ("block_3",)
    assert chosen(share / 2) == ()


def test_auto_stops_where_answers_change(monkeypatch):
    whole = answers(model(), [images()])[0].argmax(-1)

    def agreement(names):
        return np.mean(answers(remove_blocks(model(), names), [images()])[0].argmax(-1) == whole)

    names = chosen("auto")
    assert names[0] == "block_3"
    assert agreement(names) >= block_plan.AUTO_AGREEMENT
    others = {"block_1", "block_2", "block_4"} - set(names)
    assert others
    assert all(agreement([*names, other]) < block_plan.AUTO_AGREEMENT for other in others)
    monkeypatch.setattr(block_plan, "AUTO_AGREEMENT", 0.0)
    assert len(chosen("auto")) == 4


def test_auto_of_a_model_that_is_no_classifier_goes_by_its_error(monkeypatch):
    inputs = model().inputs
    last = model().get_layer("block_4_add").output
    maps = keras.Model(inputs, layers.Conv2D(2, 1, name="maps")(last), name="maps")
    assert BlockChoice(maps, "auto", images()).names == ("block_3",)
    monkeypatch.setattr(block_plan, "AUTO_AGREEMENT", 1.0)
    assert BlockChoice(maps, "auto", images()).names == ()


def test_labels_are_used_where_calibration_has_them():
    labels = answers(model(), [images()])[0].argmax(-1)
    assert plan(macs=0.5, blocks=1, calibration=(images(), labels)).blocks == ("block_3",)


def test_keep_and_prune_only_hold_for_blocks():
    assert "block_3" not in chosen(4, keep=["block_3_expand"])
    assert chosen(4, prune_only=["block_2_*"]) == ("block_2",)
    with pytest.raises(PlanError, match="'block_3' holds layers of keep="):
        plan(macs=0.5, blocks=["block_3"], keep=["block_3_*"])
    made = plan(macs=0.6, blocks=1, keep=["block_3_*", "block_1_*"])
    assert made.blocks in (("block_2",), ("block_4",))


def test_limits_for_layers_that_went_are_forgotten():
    made = plan(
        macs=0.6, blocks=1, min_channels={"block_3_expand": 8, "block_1_expand": 24}, max_ratio={"block_3*": 0.5}
    )
    assert made.blocks == ("block_3",)
    sizes = {entry.group: entry.size - len(entry.remove) for entry in made.groups}
    assert sizes["block_1_expand"] >= 24
    # A list that only named what went does not free everything else.
    only = plan(macs=0.9, blocks=["block_3"], prune_only=["block_3_*"])
    assert not any(entry.remove for entry in only.groups)
    assert surviving_patterns({"keep": ["a", "b*"], "round_to": 8}, ["a", "b"], ["b"]) == {
        "keep": ["b*"],
        "round_to": 8,
    }


@pytest.mark.parametrize("wrong", [-1, True, 1.0, 0.0, 1.5, "most", object()])
def test_limits_that_make_no_sense_are_refused(wrong):
    with pytest.raises(PlanError, match="is none of these"):
        check_blocks(wrong)


def test_what_cannot_be_is_refused():
    with pytest.raises(PlanError, match="blocks=1 needs calibration="):
        plan(macs=0.5, blocks=1, calibration=None)
    with pytest.raises(PlanError, match="has no block 'block_9'"):
        plan(macs=0.5, blocks=["block_9"])
    other = dataclasses.replace(plan(macs=0.5), blocks=("block_9",))
    with pytest.raises(PlanError, match="has no block 'block_9'"):
        prune_channels(model(), other)
    edited = dataclasses.replace(plan(macs=0.5), blocks=("block_3",))
    with pytest.raises(PlanError, match="The plan is for another model: 'block_3_expand'"):
        prune_channels(model(), edited)


def test_the_layers_behind_a_block_are_those_that_read_something_else():
    behind = layers_behind(model(), ["block_3"])
    assert behind[0] == "block_4_expand"
    assert "head" in behind
    assert not {"block_3_expand", "block_3_add", "block_2_expand"} & set(behind)
    assert Rerun(model()).behind({}) == []


def test_least_squares_makes_up_for_blocks():
    def error(other):
        whole, cut = (answers(each, [images()])[0] for each in (model(), other))
        return float(np.square(whole - cut).mean())

    made = plan(macs=1.0, blocks=["block_2"])
    as_cut = error(prune_channels(model(), made))
    fitted = error(prune_channels(model(), made, "least_squares", images()))
    assert fitted < as_cut / 2
    both = plan(macs=0.6, blocks=["block_2"], importance="obs")
    assert error(prune_channels(model(), both, "least_squares", images())) < error(prune_channels(model(), both)) / 2
