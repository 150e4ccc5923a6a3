import keras
import numpy as np
import pytest
from architectures import random_inputs
from plan_networks import four_blocks

from mobileprune.errors import OutputError, PlanError
from mobileprune.inspect import model_facts
from mobileprune.iterative import prune_iteratively
from mobileprune.plan import plan_channels
from mobileprune.prune import prune_channels
from mobileprune.records import Latency
from mobileprune.step_targets import measured_once, without_chosen_blocks

layers = keras.layers
# One of the patterns matches layers of the block alone that goes.
LIMITS = {"round_to": 2, "max_ratio": {"block_3_*": 0.5, "*": 0.9}}


def images(model):
    return random_inputs(model, batch=24)[0]


def untrained(model, step, folder):
    generator = np.random.default_rng(step)
    for variable in model.trainable_variables:
        variable.assign(generator.normal(size=variable.shape))
    return model


@pytest.mark.parametrize(
    "target", [{"macs": 0.5}, {"macs": 120000}, {"params": 0.5}, {"file_bytes": 0.6}, {"ratio": 0.5}], ids=str
)
def test_blocks_go_in_the_first_step_and_the_target_counts_from_the_whole_network(target):
    model = four_blocks()
    done = prune_iteratively(
        model, steps=3, finetune=untrained, blocks=1, calibration=images(model), **LIMITS, **target
    )
    assert [step.blocks for step in done.steps] == [("block_3",), (), ()]
    assert done.plan.blocks == ("block_3",)
    before, after = model_facts(model), model_facts(done.model)
    assert (done.plan.macs_before, done.plan.params_before) == (before.macs, before.params)
    assert (done.plan.macs, done.plan.params) == (after.macs, after.params)
    assert "step" not in done.plan.target.partition(",")[0]
    for name in ("macs", "params"):
        if name in target:
            wanted = target[name] if target[name] > 1 else target[name] * getattr(before, name)
            assert 0.8 * wanted < getattr(after, name) <= wanted
    if "ratio" in target:
        assert done.model.get_layer("block_1_expand").filters == 16
    # All at once from the first network: the same widths.
    at_once = prune_channels(model, done.plan)
    assert [weight.shape for weight in at_once.weights] == [weight.shape for weight in done.model.weights]


def test_explicit_counts_may_name_layers_that_go():
    model = four_blocks()
    chosen = {"block_[12]_expand": 8, "block_3_expand": 16}
    done = prune_iteratively(
        model, steps=2, finetune=untrained, blocks=["block_4"], calibration=images(model), channels=chosen
    )
    assert done.plan.blocks == ("block_4",)
    assert [done.model.get_layer(f"block_{number}_expand").filters for number in (1, 2, 3)] == [8, 8, 16]


def test_a_killed_job_keeps_the_blocks_that_it_chose(tmp_path):
    class Killed(Exception):
        pass

    def killed(model, step, folder):
        raise Killed

    model, some = four_blocks(), images(four_blocks())
    arguments = {"steps": 2, "macs": 0.5, "blocks": 1, "calibration": some, "checkpoint": tmp_path}
    whole = prune_iteratively(model, finetune=untrained, **{**arguments, "checkpoint": None})
    with pytest.raises(Killed):
        prune_iteratively(model, finetune=killed, **arguments)
    # Other images would choose another block; what was begun is what goes on.
    flat = {**arguments, "calibration": np.zeros_like(some)}
    done = prune_iteratively(model, finetune=untrained, **flat)
    assert done.steps[0] == whole.steps[0]
    assert done.plan.blocks == ("block_3",)
    with pytest.raises(OutputError, match=r"holds the steps of blocks=1, not 2"):
        prune_iteratively(model, finetune=untrained, **{**arguments, "blocks": 2})


def test_a_speed_up_counts_from_the_network_with_its_blocks(tmp_path):
    model = four_blocks()
    first = without_chosen_blocks(model, ["block_3"], images(model), {"speedup": 2.0, "device": timed}, tmp_path)
    whole = measured_once(model, {"device": timed}, None)
    assert first.planning["speedup"] is None
    assert first.planning["latency_ms"] == pytest.approx(whole / 2)
    assert measured_once(first.model, {"device": timed}, None) < whole


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ({"speedup": 40.0}, "latency cannot go below"),
        ({"latency_ms": 1e-6}, "latency cannot go below"),
        ({"speedup": 0.5}, "asks for half of the latency"),
        ({"latency_ms": -1.0}, "leaves no channels"),
    ],
    ids=str,
)
def test_a_latency_that_cannot_be_is_refused_before_anything_is_trained(target, said):
    def never(present, step, folder):
        raise AssertionError("trained")

    with pytest.raises(PlanError, match=said):
        prune_iteratively(four_blocks(), steps=3, finetune=never, device=timed, **target)


def test_groups_that_share_a_layer_have_limits_of_their_own():
    """Some channels of `wide` are added to those of `side`: two groups, of 64 and 32."""
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(96, 1, activation="relu", name="wide")(inputs)
    tail = layers.Add()([x[..., 64:], layers.Conv2D(32, 1, name="side")(inputs)])
    x = layers.Conv2D(16, 1, name="narrow")(layers.Concatenate()([x[..., :64], tail]))
    model = keras.Model(inputs, layers.Dense(5)(layers.GlobalAveragePooling2D()(x)))

    def kept(plan):
        return {entry.group: entry.size - len(entry.remove) for entry in plan.groups}

    done = prune_iteratively(model, steps=3, finetune=untrained, ratio=0.5)
    assert kept(done.plan) == kept(plan_channels(model, ratio=0.5))


def timed(variants):
    """A device on which a file takes a microsecond for each kilobyte."""
    times = [len(variant.content) / 1e6 for variant in variants]
    return [Latency("phone", "LiteRT 9", 1, "XNNPACK", ms, ms, ms, 3, 1.0, 0) for ms in times]
