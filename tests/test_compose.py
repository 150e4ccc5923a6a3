import dataclasses

import architectures
import numpy as np
import pytest
from architectures import randomise

from mobileprune.compose import compose_plans
from mobileprune.errors import PlanError
from mobileprune.plan import plan_channels
from mobileprune.prune import prune_channels
from mobileprune.pruning_plan import PruningPlan, cost_of_plan

NETWORKS = (
    "sequential_convnet",
    "residual",
    "inverted_residual",
    "concatenation",
    "squeeze_and_excite",
    "channel_shuffle",
    "shared_and_two_headed",
)


def cuts(name):
    """A network, three plans in turn, and what they leave."""
    first = getattr(architectures, name)()
    randomise(first)
    plans, present = [], first
    for seed, ratio in enumerate((0.2, 0.3, 0.4)):
        plans.append(plan_channels(present, ratio=ratio, importance="random", round_to=1, seed=seed))
        present = prune_channels(present, plans[-1])
    return first, plans, present


def same(one, other):
    pairs = list(zip(one.get_weights(), other.get_weights(), strict=True))
    return all(mine.shape == theirs.shape and np.array_equal(mine, theirs) for mine, theirs in pairs)


@pytest.mark.parametrize("name", NETWORKS)
def test_one_plan_leaves_what_the_cuts_in_turn_leave(name, tmp_path):
    first, plans, present = cuts(name)
    whole = compose_plans(first, plans)
    assert same(prune_channels(first, PruningPlan.load(whole.save(tmp_path / "plan.json"))), present)
    assert (whole.macs, whole.params) == (plans[-1].macs, plans[-1].params)
    assert (whole.macs_before, whole.params_before) == (plans[0].macs_before, plans[0].params_before)
    cost = cost_of_plan(first, whole)
    assert (cost.macs, cost.params) == (whole.macs, whole.params)
    assert [entry.frozen for entry in whole.groups] == [entry.frozen for entry in plans[0].groups]
    # The comparison sees a single channel.
    entries = list(whole.groups)
    index, entry = next((i, e) for i, e in enumerate(entries) if e.remove and len(e.remove) < e.size - 1)
    spare = next(unit for unit in range(entry.size) if unit not in entry.remove)
    entries[index] = type(entry)(entry.group, entry.size, (*entry.remove[1:], spare), entry.frozen)
    other = type(whole)(**{**vars(whole), "groups": tuple(entries)})
    assert not same(prune_channels(first, other), present)


def test_a_single_plan_composes_to_itself():
    model = architectures.residual()
    plan = plan_channels(model, macs=0.5, round_to=1)
    assert compose_plans(model, [plan]) == plan


def test_plans_that_do_not_follow_each_other_are_refused():
    model = architectures.residual()
    plan = plan_channels(model, ratio=0.5, round_to=1)
    with pytest.raises(PlanError, match="The plan is for another model"):
        compose_plans(model, [plan, plan])
    with pytest.raises(PlanError, match="There is no plan to compose"):
        compose_plans(model, [])
    with pytest.raises(PlanError, match="Only the first of several plans may remove whole blocks"):
        compose_plans(model, [plan, dataclasses.replace(plan, blocks=("any",))])
