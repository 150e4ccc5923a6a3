import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mobileprune.errors import SparsityError
from mobileprune.schedules import SCHEDULES, ConstantSparsity, PolynomialDecay, PruningSchedule, schedule_from_config

SPARSITIES = st.floats(0, 1, exclude_max=True)


@st.composite
def decays(draw):
    begin = draw(st.integers(0, 500))
    return PolynomialDecay(
        draw(SPARSITIES),
        draw(SPARSITIES),
        begin,
        begin + draw(st.integers(1, 500)),
        draw(st.floats(0.1, 5)),
        draw(st.integers(1, 1000)),
    )


@given(decays())
def test_polynomial_decay_at_its_begin_and_its_end(schedule):
    assert schedule.sparsity(schedule.begin_step) == pytest.approx(schedule.initial_sparsity, abs=1e-12)
    assert schedule.sparsity(schedule.end_step) == schedule.final_sparsity
    assert schedule.sparsity(schedule.end_step + 1000) == schedule.final_sparsity
    if schedule.begin_step:
        assert schedule.sparsity(schedule.begin_step - 1) == 0.0


@given(decays())
def test_polynomial_decay_acts_first_at_its_begin_and_last_at_its_end(schedule):
    acting = [step for step in range(schedule.end_step + 2000) if schedule.should_update(step)]
    assert acting[-1] == schedule.end_step
    inner = {step for step in acting if step != schedule.end_step}
    # The first batch is step 1.
    assert inner == set(range(schedule.begin_step, schedule.end_step, schedule.frequency)) - {0}


@given(decays(), st.integers(0, 1200), st.integers(0, 1200))
def test_polynomial_decay_moves_one_way(schedule, one, other):
    early, late = sorted((max(one, schedule.begin_step), max(other, schedule.begin_step)))
    rise = schedule.sparsity(late) - schedule.sparsity(early)
    assert rise * (schedule.final_sparsity - schedule.initial_sparsity) >= -1e-12


def test_polynomial_decay_in_the_middle_by_hand():
    schedule = PolynomialDecay(0.2, 0.8, begin_step=10, end_step=20, power=2, frequency=5)
    assert schedule.sparsity(15) == pytest.approx(0.8 - 0.6 * 0.25)
    assert PolynomialDecay(0.2, 0.8, 10, 20, power=1).sparsity(15) == pytest.approx(0.5)


def test_the_defaults_are_those_of_the_toolkit():
    schedule = PolynomialDecay(0.0, 0.5, 0, 100)
    assert (schedule.power, schedule.frequency) == (3, 100)
    constant = ConstantSparsity(0.5, 0)
    assert (constant.end_step, constant.frequency) == (-1, 100)


def test_constant_sparsity():
    schedule = ConstantSparsity(0.5, begin_step=10, end_step=25, frequency=10)
    assert [schedule.sparsity(step) for step in (0, 9, 10, 25, 99)] == [0, 0, 0.5, 0.5, 0.5]
    assert [step for step in range(100) if schedule.should_update(step)] == [10, 20, 25]
    endless = ConstantSparsity(0.5, begin_step=3, frequency=1000)
    assert [step for step in range(5000) if endless.should_update(step)] == [3, 1003, 2003, 3003, 4003]


@given(decays())
def test_a_config_round_trips_through_json(schedule):
    assert schedule_from_config(json.loads(json.dumps(schedule.get_config()))) == schedule


def test_a_constant_config_round_trips_through_json():
    schedule = ConstantSparsity(0.3, 7, 19, 4)
    restored = schedule_from_config(json.loads(json.dumps(schedule.get_config())))
    assert restored == schedule
    assert restored != ConstantSparsity(0.3, 7, 19, 5)


@pytest.mark.parametrize("value", [-0.1, 1.0, 1.5, float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["initial_sparsity", "final_sparsity", "target_sparsity"])
def test_a_sparsity_out_of_range_is_refused(name, value):
    constant = name == "target_sparsity"
    kind, rest = (ConstantSparsity, {}) if constant else (PolynomialDecay, {"end_step": 9})
    others = {} if constant else {"initial_sparsity": 0.0, "final_sparsity": 0.5}
    with pytest.raises(SparsityError, match=name):
        kind(**{**others, name: value}, begin_step=0, **rest)


@pytest.mark.parametrize("steps", [(-1, 10, 1), (0, 10, 0), (0, 10, -3)])
@pytest.mark.parametrize("kind", SCHEDULES)
def test_senseless_steps_are_refused(kind, steps):
    begin, end, frequency = steps
    config = {"begin_step": begin, "end_step": end, "frequency": frequency}
    sparsities = [0.5] if kind == "ConstantSparsity" else [0.0, 0.5]
    with pytest.raises(SparsityError, match=f"begin_step={begin}, frequency={frequency}"):
        SCHEDULES[kind](*sparsities, **config)


@pytest.mark.parametrize("end", [-1, 0, 49, 50])
def test_a_decay_that_would_never_act_is_refused(end):
    with pytest.raises(SparsityError, match="begin"):
        PolynomialDecay(0.0, 0.8, begin_step=50, end_step=end)


def test_a_constant_schedule_that_would_never_act_is_refused():
    for begin, end in ((50, 49), (0, 0)):
        with pytest.raises(SparsityError, match="ends before it can act"):
            ConstantSparsity(0.5, begin_step=begin, end_step=end)
    assert ConstantSparsity(0.5, begin_step=50, end_step=50).should_update(50)


@pytest.mark.parametrize("power", [0, -1, float("nan")])
def test_a_power_that_never_reaches_the_final_sparsity_is_refused(power):
    with pytest.raises(SparsityError, match="power"):
        PolynomialDecay(0.0, 0.8, 0, 10, power=power)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"class_name": "CubicRise", "config": {}}, "CubicRise.*ConstantSparsity, PolynomialDecay"),
        ({}, "Unknown schedule None"),
        ({"class_name": "ConstantSparsity"}, "config"),
        ({"class_name": "ConstantSparsity", "config": {"begin_step": 1}}, "target_sparsity"),
        ({"class_name": "ConstantSparsity", "config": {"target_sparsity": 0.1, "begin_step": 1, "x": 1}}, "x"),
        ({"class_name": "ConstantSparsity", "config": {"target_sparsity": 2.0, "begin_step": 1}}, "Received: 2.0"),
    ],
)
def test_a_config_that_is_none_is_refused(config, says):
    with pytest.raises(SparsityError, match=says):
        schedule_from_config(config)


def test_the_base_schedule_says_what_to_use_instead():
    for method in (PruningSchedule().sparsity, PruningSchedule().should_update):
        with pytest.raises(TypeError, match="PolynomialDecay"):
            method(0)


@pytest.mark.parametrize(
    "arguments", [("0.5", 0), (None, 0), (0.5, "0"), (0.5, 0.5), (0.5, 0, None), (0.5, 0, -1, 2.5)]
)
def test_what_is_no_number_is_refused(arguments):
    with pytest.raises(SparsityError, match="Received"):
        ConstantSparsity(*arguments)


def test_a_power_that_is_no_number_and_a_config_that_is_no_mapping_are_refused():
    with pytest.raises(SparsityError, match=r"power.*Received: '3'"):
        PolynomialDecay(0.0, 0.5, 0, 9, power="3")
    for config in (None, [], {"class_name": ["ConstantSparsity"]}):
        with pytest.raises(SparsityError, match="Unknown schedule"):
            schedule_from_config(config)
