import dataclasses
import subprocess
import sys

import numpy as np
import pytest

import mobileprune as mp
from mobileprune.interop import process
from mobileprune.interop.schedules import reached_by_tfmot

OURS = (
    mp.ConstantSparsity(0.5, begin_step=3, end_step=-1, frequency=7),
    mp.ConstantSparsity(0.25, begin_step=0, end_step=40, frequency=1),
    mp.PolynomialDecay(0.1, 0.8, begin_step=5, end_step=105, power=2, frequency=20),
)


@pytest.mark.parametrize("schedule", OURS)
def test_there_and_back_says_the_same(schedule):
    theirs = mp.to_tfmot_schedule(schedule)
    assert type(theirs).__module__.startswith("tensorflow_model_optimization.")
    assert mp.schedule_from_tfmot(theirs) == schedule
    for step in range(max(1, schedule.begin_step), 120):
        acts, sparsity = theirs(np.int64(step))
        assert bool(acts) == schedule.should_update(step)
        assert float(sparsity) == pytest.approx(schedule.sparsity(step), abs=1e-6)


def test_a_difference_would_be_noticed():
    theirs = mp.to_tfmot_schedule(OURS[2])
    other = dataclasses.replace(OURS[2], power=3)
    assert float(theirs(np.int64(50))[1]) != pytest.approx(other.sparsity(50), abs=1e-3)
    assert mp.schedule_from_tfmot(theirs) != other


def test_each_side_takes_its_own_as_it_is():
    theirs = process.tfmot().ConstantSparsity(0.5, 0)
    assert mp.to_tfmot_schedule(theirs) is theirs
    assert mp.schedule_from_tfmot(OURS[0]) is OURS[0]


def test_reading_one_needs_neither_the_toolkit_nor_tensorflow():
    code = (
        "import sys, mobileprune as mp\n"
        "class ConstantSparsity:\n"
        "    def get_config(self):\n"
        "        return {'class_name': 'ConstantSparsity', 'config': {'target_sparsity': 0.5, 'begin_step': 0}}\n"
        "assert mp.schedule_from_tfmot(ConstantSparsity()) == mp.ConstantSparsity(0.5, 0)\n"
        "assert not {'tensorflow', 'keras', 'tf_keras', 'tensorflow_model_optimization'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_the_toolkit_reaches_what_a_converted_schedule_promises():
    uneven = mp.PolynomialDecay(0.0, 0.8, begin_step=0, end_step=190, frequency=100)
    theirs = process.tfmot().PolynomialDecay(0.0, 0.8, 0, 190, frequency=100)
    reached, promised = reached_by_tfmot(theirs, 1000)
    assert promised == 0.8
    assert reached == pytest.approx(0.715, abs=1e-3)  # it stops at step 100
    converted = mp.to_tfmot_schedule(uneven)
    assert (converted.end_step, converted.frequency) == (100, 100)
    assert reached_by_tfmot(converted, 1000)[0] == pytest.approx(0.8)
    short = mp.to_tfmot_schedule(dataclasses.replace(uneven, end_step=50))
    assert (short.end_step, short.frequency) == (50, 50)


@pytest.mark.parametrize(
    ("begin", "end", "frequency", "steps", "reached"),
    [
        (0, -1, 10, 9, 0),
        (0, -1, 10, 10, 0.5),
        (5, -1, 10, 5, 0.5),
        (5, 8, 10, 4, 0),
        (0, 5, 10, 50, 0),
        (0, -1, 1, 1, 0.5),
    ],
)
def test_when_the_toolkit_acts(begin, end, frequency, steps, reached):
    schedule = process.tfmot().ConstantSparsity(0.5, begin, end, frequency)
    assert reached_by_tfmot(schedule, steps) == (reached, 0.5)
    # Counted one by one, from its first step, which is number 1.
    assert any(bool(schedule(np.int64(step))[0]) for step in range(1, steps + 1)) == (reached > 0)


def test_what_is_no_schedule_of_either():
    class PolynomialDecay:
        def get_config(self):
            return {"class_name": "PolynomialDecay", "config": {"begin_step": 0}}

    with pytest.raises(mp.MobilePruneError, match="initial_sparsity"):
        mp.schedule_from_tfmot(PolynomialDecay())
    with pytest.raises(mp.MobilePruneError, match="Use one of ConstantSparsity, PolynomialDecay"):
        mp.schedule_from_tfmot(0.5)
    with pytest.raises(mp.MobilePruneError, match="no schedule like float"):
        mp.to_tfmot_schedule(0.5)
    with pytest.raises(mp.MobilePruneError, match="end_step"):
        mp.schedule_from_tfmot(process.tfmot().PolynomialDecay(0.0, 0.5, 10, 10))
