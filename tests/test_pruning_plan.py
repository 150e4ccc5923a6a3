import dataclasses
import functools
import json

import pytest
from plan_networks import chain

from mobileprune.channel_groups import Cost
from mobileprune.errors import OutputError, PlanError
from mobileprune.inspect import model_facts
from mobileprune.plan import plan_channels
from mobileprune.prune import prune_channels
from mobileprune.pruning_plan import GroupPlan, PruningPlan, cost_of_plan

model = functools.cache(chain)  # planning never changes it


def test_a_plan_goes_through_json_and_a_file(tmp_path):
    plan = plan_channels(model(), macs=0.5, keep=["stem"])
    assert PruningPlan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    path = plan.save(tmp_path / "plans" / "plan.json")
    assert PruningPlan.load(path) == plan
    assert json.loads(path.read_text())["target"] == "macs=0.5"
    assert dataclasses.replace(plan, macs=plan.macs + 1) != PruningPlan.load(path)


def test_a_saved_plan_has_a_line_for_each_list(tmp_path):
    plan = plan_channels(model(), ratio=0.5, round_to=1)
    lines = plan.save(tmp_path / "plan.json").read_text().splitlines()
    assert len(lines) == 12 + 2 + 6 * len(plan.groups) + 1
    small = next(entry for entry in plan.groups if entry.group == "small")
    assert f'      "remove": {json.dumps(small.remove)},' in lines


def test_a_plan_of_an_earlier_version_can_be_read(tmp_path):
    plan = plan_channels(model(), macs=0.5)
    data = plan.to_json()
    del data["normalise"]
    assert PruningPlan.from_json(data) == plan


def test_an_edited_plan_is_counted_again():
    plan = plan_channels(model(), macs=0.5)
    assert cost_of_plan(model(), plan) == Cost(plan.macs, plan.params)
    groups = tuple(
        dataclasses.replace(entry, remove=(0, 1, 2)) if entry.group == "stem" else entry for entry in plan.groups
    )
    edited = dataclasses.replace(plan, groups=groups)
    facts = model_facts(prune_channels(model(), edited))
    assert cost_of_plan(model(), edited) == Cost(facts.macs, facts.params)
    assert cost_of_plan(model(), edited).macs != plan.macs


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        (GroupPlan("elsewhere", 32, (1,)), "'elsewhere' of 32 channels; found no such group"),
        (GroupPlan("stem", 16, (1,)), "'stem' of 16 channels; found 32 channels"),
        (GroupPlan("stem", 32, (32,)), "channel 32 of 'stem', which has 32"),
        (GroupPlan("stem", 32, tuple(range(32))), "all 32 channels of 'stem'"),
        (GroupPlan("head", 5, (0,)), "'head', which must stay"),
    ],
)
def test_a_plan_that_does_not_fit_has_no_cost(entry, says):
    plan = dataclasses.replace(plan_channels(model(), macs=1.0), groups=(entry,))
    with pytest.raises(PlanError, match=says):
        cost_of_plan(model(), plan)


def test_a_file_that_is_no_plan_is_refused(tmp_path):
    path = tmp_path / "plan.json"
    path.write_text('{"model": "chain"}')
    with pytest.raises(OutputError, match="Not a complete PruningPlan"):
        PruningPlan.load(path)
    path.write_text('{"channels": 3}')
    with pytest.raises(OutputError, match="no field 'channels'"):
        PruningPlan.load(path)
