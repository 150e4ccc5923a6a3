import dataclasses
import fnmatch

import numpy as np
import pytest
from architectures import randomise
from test_sensitivity import inputs_for, small

from mobileprune.convert import convert
from mobileprune.errors import SettingsError
from mobileprune.inspect import model_facts
from mobileprune.one_shot import prune_one_shot
from mobileprune.plan import plan_channels
from mobileprune.prunable import prunable_weights
from mobileprune.prune import prune_channels
from mobileprune.schedules import ConstantSparsity
from mobileprune.sensitivity import analyse_sensitivity
from mobileprune.sensitivity_allocation import _convex, channel_rankings, mixed_bits, sparsity_shares
from mobileprune.sensitivity_record import PartSensitivity, Sensitivity, SensitivityPoint
from mobileprune.sparsify import prune_low_magnitude, sparsity
from mobileprune.tflite_graph import read_graph


def record(kind, losses, amounts, size=10, agreement=True):
    """A record of parts `a`, `b`, … that lose so much of their agreement."""
    parts = [
        PartSensitivity(
            chr(ord("a") + place),
            size,
            tuple(
                SensitivityPoint(
                    amount, amount, 1 - loss if agreement else None, None, loss if agreement else None, 10.0
                )
                for amount, loss in zip(amounts, own, strict=True)
            ),
            tuple(range(size)) if kind == "channels" else (),
        )
        for place, own in enumerate(losses)
    ]
    return Sensitivity("net", kind, 8, None, "l2" if kind == "channels" else "", tuple(parts))


def planted():
    """`project` gives next to nothing, so that nobody misses what `wide` makes or what `project` reads."""
    model = randomise(small())
    for name in ("kernel", "bias"):
        variable = getattr(model.get_layer("project"), name)
        variable.assign(np.array(variable) * 1e-4)
    return model, inputs_for(model, 24)


def test_a_planted_insensitive_group_loses_most_channels():
    model, images = planted()
    found = analyse_sensitivity(model, images, ratios=(0.25, 0.5, 0.75), only=["stem", "wide", "last"])
    plan = plan_channels(model, params=0.6, importance=channel_rankings(found), round_to=1)
    lost = {group.group: len(group.remove) / group.size for group in plan.groups}
    assert lost["wide"] >= 0.8
    assert lost["wide"] > max(lost["stem"], lost["last"]) + 0.3
    assert model_facts(prune_channels(model, plan)).params == plan.params


def test_a_planted_insensitive_layer_gets_most_zeros():
    model, images = planted()
    found = analyse_sensitivity(model, images, kind="sparsity", ratios=(0.3, 0.6, 0.9))
    shares = sparsity_shares(found, 0.5)
    others = max(share for name, share in shares.items() if name not in ("wide", "project"))
    assert min(shares["wide"], shares["project"]) == pytest.approx(0.9, abs=0.02)
    assert others < 0.7
    sparse = prune_one_shot(model, shares, method="magnitude")
    assert sparsity(sparse) == pytest.approx(0.5, abs=0.03)
    schedules = {name: ConstantSparsity(share, 0) for name, share in shares.items()}
    wrapped = prune_low_magnitude(model, schedules)
    assert wrapped.get_layer("prune_low_magnitude_wide").pruning_schedule.target_sparsity == shares["wide"]
    zeros = np.mean(np.array(prunable_weights(sparse.get_layer("project"))["kernel"]) == 0)
    assert zeros == pytest.approx(shares["project"], abs=0.02)


def test_a_planted_insensitive_layer_gets_the_fewest_bits():
    model, images = planted()
    found = analyse_sensitivity(model, images, kind="quantization", bits=(8, 4))
    recipe = mixed_bits(found, 7.0)
    fewest = {rule.layer for rule in recipe.rules if rule.precision == "dynamic_int4"}
    assert {"wide", "project"} <= fewest
    assert fewest < {part.name for part in found.parts} - {"depthwise"}
    (made,) = convert(model, [recipe])
    kinds = {tensor.dtype for tensor in read_graph(made.content).tensors}
    assert {"INT8", "INT4"} <= kinds
    assert {rule.precision for rule in mixed_bits(found, 32).rules} == set()


@pytest.mark.parametrize("by", [None, "divergence", "agreement", "snr_db"])
def test_every_figure_can_be_the_loss(by):
    found = record("channels", [[0.1, 0.5], [0.1, 0.5]], [0.3, 0.6])
    assert channel_rankings(found, by)["a"].order.tolist() == list(range(10))


def test_losses_of_a_group_rise_as_measured():
    losses = channel_rankings(record("channels", [[0.1, 0.5]], [0.5, 1.0]))["a"].losses
    assert losses == pytest.approx([0.02] * 5 + [0.08] * 5)
    assert losses.sum() == pytest.approx(0.5)


def test_a_curve_becomes_convex_and_never_falls():
    share, loss = _convex([0.2, 0.4, 0.6, 0.8], [0.4, 0.1, 0.6, 0.5])
    assert share.tolist() == [0.0, 0.4, 0.8]
    assert loss.tolist() == [0.0, 0.1, 0.5]
    assert _convex([0.5, 0.5, 0.0], [0.2, 0.3, 0.0])[1].tolist() == [0.0, 0.2]


def test_bits_go_where_they_are_missed_least():
    found = record("quantization", [[0.0, 0.9], [0.0, 0.1]], [8, 4])
    assert [rule.layer for rule in mixed_bits(found, 6).rules if rule.precision == "dynamic_int4"] == ["b"]
    assert "6.00 bits" in mixed_bits(found, 6).description
    assert len({rule.layer for rule in mixed_bits(found, 4).rules if rule.precision == "dynamic_int4"}) == 2
    # From float to 8 bits where that costs less.
    one = record("quantization", [[0.5, 0.9], [0.1, 0.9]], [8, 4])
    assert [rule.layer for rule in mixed_bits(one, 20).rules] == ["b"]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: channel_rankings(record("sparsity", [[0.1]], [0.5])), "kind='channels' is needed"),
        (lambda: sparsity_shares(record("channels", [[0.1]], [0.5]), 0.5), "kind='sparsity' is needed"),
        (lambda: mixed_bits(record("channels", [[0.1]], [0.5]), 8), "kind='quantization' is needed"),
        (lambda: sparsity_shares(record("sparsity", [[0.1]], [0.5]), 0.6), "reaches from 0 to 0.5"),
        (lambda: mixed_bits(record("quantization", [[0.1]], [8]), 6), "reaches from 8 to 32"),
        (lambda: mixed_bits(record("quantization", [[0.1]], [6]), 6), "No recipe has weights of 6 bits"),
        (lambda: channel_rankings(record("channels", [], [])), "empty"),
        (lambda: channel_rankings(record("channels", [[0.0]], [0.0])), "No ratio was large enough to take a channel"),
        (lambda: channel_rankings(record("channels", [[0.1]], [0.5]), "accuracy"), "this analysis has divergence"),
        (lambda: channel_rankings(record("channels", [[0.1]], [0.5], agreement=False), "agreement"), "has snr_db"),
    ],
)
def test_bad_input_is_one_clear_error(make, said):
    with pytest.raises(SettingsError, match=said):
        make()


def test_a_layer_s_name_is_no_pattern():
    found = record("sparsity", [[0.1, 0.2]], [0.5, 0.9])
    odd = dataclasses.replace(found, parts=(dataclasses.replace(found.parts[0], name="odd[1]"),))
    assert fnmatch.filter(["odd[1]", "odd1"], next(iter(sparsity_shares(odd, 0.5)))) == ["odd[1]"]
