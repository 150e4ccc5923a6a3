"""The law on random networks: whatever ops follow one another, a cut is right or is not made.

A network is a list of (step, number); what fails is printed as such a list and shrunk by hypothesis.
"""

import dataclasses
from collections import Counter

import keras
import numpy as np
import pytest
import random_sequence_ops  # noqa: F401  (more steps)
from architectures import random_inputs
from hypothesis import HealthCheck, given, note, seed, settings
from hypothesis import strategies as st
from laws.removal import check_law, law_plan
from random_ops import STEPS, Pick, fit

from mobileprune import surgery
from mobileprune.errors import PlanError

PARTS, EXAMPLES = 10, 100
STEADY = settings(
    derandomize=True,
    deadline=None,
    print_blob=True,
    database=None,
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
)

layers = keras.layers


@dataclasses.dataclass(frozen=True)
class Program:
    """A network and a plan for it, in a form that prints well."""

    steps: tuple[tuple[str, int], ...]
    ends: tuple[str, ...]
    target: dict[str, float]
    round_to: int


# Hypothesis draws what stands first most often: what is hardest to get right.
ENDS = {
    "flatten_dense": lambda x: layers.Dense(4)(layers.Flatten()(x)),
    "average_dense": lambda x: layers.Dense(4)(layers.GlobalAveragePooling2D()(x)),
    "maximum_dense": lambda x: layers.Dense(4)(keras.ops.max(x, axis=(1, 2))),
    "conv": lambda x: layers.Conv2D(3, 1)(x),
}


def programs(part):
    """Programs of this part, each with a step of the part's own share, so that no step is left to chance alone."""
    numbers, names = st.integers(0, 999), sorted(STEPS)
    own = st.tuples(st.sampled_from(names[part::PARTS]), numbers)
    any_step = st.tuples(st.sampled_from(names), numbers)
    return st.builds(
        Program,
        steps=st.tuples(any_step, own, st.lists(any_step, min_size=1, max_size=6)).map(lambda t: (t[0], t[1], *t[2])),
        ends=st.lists(st.sampled_from(list(ENDS)), min_size=1, max_size=2).map(tuple),
        target=st.one_of(
            st.sampled_from([0.5, 0.3, 0.7]).map(lambda share: {"ratio": share}),
            st.sampled_from([0.6, 0.4, 0.8]).map(lambda share: {"macs": share}),
        ),
        round_to=st.sampled_from([1, 2, 4]),
    )


def build(program):
    """The network of a program: each step reads the newest tensor, merges read earlier ones, too.

    Names are counted from the start, because random plans follow them: a program then is the same cut everywhere.
    """
    keras.utils.clear_session(free_memory=False)
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(8, 3, strides=2, padding="same")(inputs)
    pool = [x]
    for name, number in program.steps:
        x = fit(STEPS[name](x, Pick(number, pool)))
        pool.append(x)
    last = layers.Conv2D(8, 1, activation="relu")(x)
    outputs = [ENDS[end](tensor) for end, tensor in zip(program.ends, (last, pool[len(pool) // 2]), strict=False)]
    return keras.Model(inputs, outputs if len(outputs) > 1 else outputs[0])


def plan_of(program, model):
    """The program's plan; where its share of the MACs cannot be reached, half of every group."""
    try:
        return law_plan(model, **program.target, round_to=program.round_to)
    except PlanError as error:
        if "cannot go below" not in str(error):
            raise
        return law_plan(model, ratio=0.5, round_to=program.round_to)


@pytest.mark.parametrize("part", range(PARTS))
def test_random_networks_hold_the_law(part):
    cut = []

    @seed(part)
    @settings(STEADY, max_examples=EXAMPLES)
    @given(programs(part))
    def holds(program):
        note(str(program))
        model = build(program)
        plan = plan_of(program, model)
        cut.append(any(entry.remove for entry in plan.groups))
        if cut[-1]:
            inputs = random_inputs(model, batch=2)
            check_law(model, plan, inputs=inputs, training=[False], strict=False, tolerance=1e-3)

    holds()
    assert len(cut) >= EXAMPLES
    assert np.mean(cut) > 0.8, "a law about networks that lose nothing says nothing"


def test_the_random_networks_have_every_step_in_them():
    """Counted over the very programs of the test above, without pruning any."""
    seen, ends = Counter(), Counter()
    for part in range(PARTS):

        @seed(part)
        @settings(STEADY, max_examples=EXAMPLES)
        @given(programs(part))
        def count(program):
            seen.update({name for name, _ in program.steps})
            ends.update({f"{len(program.ends)} outputs", *program.ends, str(program.target), program.round_to})

        count()
    assert seen.keys() == STEPS.keys()
    assert min(seen.values()) >= 3, seen.most_common()[-5:]
    assert min(ends.values()) >= 10, ends


def test_the_law_on_random_networks_can_fail(monkeypatch):
    """With indices off by one wherever channels are removed, nearly every network that is cut says so."""
    right, caught = surgery.places, []

    def wrong(old, new):
        places = right(old, new)
        return (places + 1) % len(old) if len(places) < len(old) else places

    monkeypatch.setattr(surgery, "places", wrong)

    @seed(0)
    @settings(STEADY, max_examples=25)
    @given(programs(0))
    def breaks(program):
        model = build(program)
        plan = plan_of(program, model)
        if any(entry.remove for entry in plan.groups):
            inputs = random_inputs(model, batch=2)
            try:
                check_law(model, plan, inputs=inputs, training=[False], strict=False, tolerance=1e-3)
            except AssertionError:
                caught.append(True)
            else:
                caught.append(False)

    breaks()
    assert np.mean(caught) > 0.8


@pytest.mark.parametrize("name", STEPS)
def test_each_step_makes_a_network_that_runs(name):
    """Every step, first in a network and after itself, with several choices."""
    for number in range(4):
        model = build(Program(((name, number), ("conv", 1), (name, number + 50)), ("conv", "flatten_dense"), {}, 1))
        found = model(random_inputs(model, batch=2)[0])
        assert all(np.isfinite(output).all() and len(output) == 2 for output in found)
