import keras
import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from architectures import random_inputs, randomise
from laws.removal import check_law, disagreement, law_plan, removable, run, silence, without_randomness
from zoo_architectures import ZOO

import mobileprune as mp
from mobileprune.channel_groups import ChannelGraph
from mobileprune.channel_ids import ChannelIds
from mobileprune.errors import PlanError

layers = keras.layers


def network(attention, shape=(6, 12), width=16, **arguments):
    """A layer that is attended to by itself, between two dense ones."""
    inputs = keras.Input(shape)
    x = layers.Dense(width, name="before")(inputs)
    x = attention(x, x, **arguments)
    return keras.Model(inputs, layers.Dense(3, name="head")(layers.Flatten()(x)))


def group_of(model, name):
    return next(group for group in mp.channel_groups(model) if group.name == name)


ATTENTIONS = {
    "wide": (lambda: layers.MultiHeadAttention(4, 6, name="att"), {}),
    "causal": (lambda: layers.MultiHeadAttention(4, 6, name="att"), {"use_causal_mask": True}),
    "values of another width": (lambda: layers.MultiHeadAttention(2, 6, 10, name="att"), {}),
    "no bias": (lambda: layers.MultiHeadAttention(2, 6, use_bias=False, name="att"), {}),
    "an output of its own": (lambda: layers.MultiHeadAttention(2, 6, output_shape=10, name="att"), {}),
    "gate": (lambda: layers.MultiHeadAttention(2, 6, 8, use_gate=True, name="att"), {}),
    "window": (lambda: layers.MultiHeadAttention(2, 6, sliding_window=2, name="att"), {"use_causal_mask": True}),
    "shared keys": (lambda: layers.GroupQueryAttention(6, 8, 4, name="att"), {"use_causal_mask": True}),
    "one key": (lambda: layers.GroupQueryAttention(6, 4, 1, use_bias=False, name="att"), {}),
    "gated queries": (lambda: layers.GroupQueryAttention(6, 4, 2, use_gate=True, name="att"), {}),
}


@pytest.mark.parametrize("name", ATTENTIONS)
def test_heads_and_their_width_go(name):
    make, arguments = ATTENTIONS[name]
    model = network(make(), **arguments)
    free = {group.name for group in mp.channel_groups(model) if not group.frozen}
    widths = {"att:width"} if "Group" in type(make()).__name__ else {"att:keys", "att:values"}
    heads = {"att:queries"} if name == "one key" else {"att:heads"}
    assert free >= widths | heads | {"before"}
    smaller, _ = check_law(model)
    config = smaller.get_layer("att").get_config()
    assert config.get("key_dim", config.get("head_dim")) == 4  # of 6, by twos
    assert removable(model)[1] > 0.7


@pytest.mark.parametrize("kind", [layers.MultiHeadAttention, layers.GroupQueryAttention])
def test_heads_of_one_column_are_not_as_many_as_positions(kind):
    """Keras would add their biases along positions."""
    heads = (6, 4) if kind is layers.MultiHeadAttention else (4, 6, 6)
    width = "keys" if kind is layers.MultiHeadAttention else "width"
    model = network(kind(*heads, name="att"), shape=(3, 12))
    with pytest.raises(PlanError, match="leaves 'att' as many channels as another axis"):
        mp.prune_channels(model, mp.plan_channels(model, channels={"att:heads": 3, f"att:{width}": 1}))
    plan = mp.plan_channels(model, ratio=0.5, round_to=1, max_ratio={f"att:{width}": 0.75, "*": 0.5}, keep=["before"])
    assert {len(each.remove) for each in plan.groups if each.group == "att:heads"} == {3}  # two columns are left
    check_law(model, ratio=0.75, round_to=1)
    for channels in ({"att:heads": 2, f"att:{width}": 1}, {"att:heads": 3, f"att:{width}": 2}):
        check_law(model, channels=channels)
    without = network(kind(*heads, use_bias=False, name="att"), shape=(3, 12))
    check_law(without, channels={"att:heads": 3, f"att:{width}": 1})


@pytest.mark.parametrize("axes", [None, 1, 2, (1, 2)])
def test_attention_over_several_axes(axes):
    model = network(layers.MultiHeadAttention(2, 4, name="att", attention_axes=axes), (3, 4, 6))
    check_law(model)
    pairs = {None: 12 * 12, 1: 12 * 3, 2: 12 * 4, (1, 2): 12 * 12}[axes]
    scores = ChannelGraph(model).ids.weights["att", "scores"]
    assert (scores.shape, scores.positions) == ((2, 4), pairs)


@pytest.mark.parametrize("kind", ["MultiHeadAttention", "GroupQueryAttention"])
def test_without_the_scale_of_the_queries_the_law_breaks(kind, monkeypatch):
    make = {"MultiHeadAttention": lambda: layers.MultiHeadAttention(2, 6, name="att")}
    make["GroupQueryAttention"] = lambda: layers.GroupQueryAttention(6, 2, 2, name="att")
    model = without_randomness(randomise(network(make[kind]())))
    plan = law_plan(model, ratio=0.5, round_to=1)
    silence(ChannelGraph(model), plan)
    inputs = random_inputs(model)
    assert disagreement(run(model, inputs), run(mp.prune_channels(model, plan), inputs)) < 1e-5
    monkeypatch.setattr(ChannelIds, "rescale", lambda *_: None)
    assert disagreement(run(model, inputs), run(mp.prune_channels(model, plan), inputs)) > 1e-3


def test_the_scale_is_the_root_of_the_share_that_is_left():
    model = randomise(network(layers.MultiHeadAttention(2, 8, name="att")))
    smaller = mp.prune_channels(model, mp.plan_channels(model, channels={"att:keys": 2}))
    old, new = (np.asarray(each.get_layer("att").query_dense.kernel) for each in (model, smaller))
    assert new.shape == (16, 2, 2)
    kept = [any(np.allclose(old[..., column] / 2, new[..., place]) for place in range(2)) for column in range(8)]
    assert sum(kept) == 2


def test_least_squares_keeps_the_scale_of_narrower_heads():
    """Columns that are copies of others are missed by nobody, and queries are fitted to what surgery made of them."""
    model = randomise(network(layers.MultiHeadAttention(2, 8, name="att")))
    images = random_inputs(model, batch=64)[0]
    plan = mp.plan_channels(model, channels={"att:keys": 4, "before": 12})
    as_cut = mp.prune_channels(model, plan)
    fitted = mp.prune_channels(model, plan, compensate="least_squares", calibration=images)
    errors = [np.mean((run(model, [images])[0] - run(each, [images])[0]) ** 2) for each in (as_cut, fitted)]
    assert errors[1] < errors[0] / 2


def test_queries_of_grouped_attention_stay_as_wide_as_its_values():
    memory, inputs = keras.Input((5, 8)), keras.Input((6, 8))
    query, value = layers.Dense(16, name="q")(inputs), layers.Dense(16, name="v")(memory)
    x = layers.GroupQueryAttention(4, 4, 2, name="att")(query, value)
    model = keras.Model([inputs, memory], layers.Dense(3)(layers.Flatten()(x)))
    assert set(group_of(model, "q").layers) >= {"q", "v"}
    check_law(model)


def test_attention_with_an_output_of_two_axes_is_refused():
    inputs = keras.Input((6, 8))
    x = layers.MultiHeadAttention(2, 4, output_shape=(2, 4), name="att")(inputs, inputs)
    model = keras.Model(inputs, layers.Dense(3)(layers.Flatten()(x)))
    assert "an output of several axes" in " ".join(group.frozen or "" for group in mp.channel_groups(model))


def test_scores_that_are_read_keep_the_heads():
    inputs = keras.Input((6, 8))
    x, scores = layers.MultiHeadAttention(2, 4, name="att")(inputs, inputs, return_attention_scores=True)
    model = keras.Model(inputs, [layers.Dense(3)(x), scores])
    assert "scores of 'att' are read" in group_of(model, "att:heads").frozen
    assert group_of(model, "att:keys").frozen is None


@pytest.mark.parametrize("name", ["gpt_tied", "gpt_grouped"])
def test_a_pruned_decoder_says_the_same_as_a_tflite_file(name):
    model = randomise(ZOO[name]())
    smaller = mp.prune_channels(model, mp.plan_channels(model, params=0.6, round_to=2))
    assert smaller.count_params() <= 0.6 * model.count_params()
    (variant,) = mp.convert(smaller, ["float32"])
    interpreter = Interpreter(model_content=variant.content)
    interpreter.allocate_tensors()
    words = random_inputs(smaller, batch=8)[0]
    found = []
    for row in words:
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], row[None])
        interpreter.invoke()
        found.append(interpreter.get_tensor(interpreter.get_output_details()[0]["index"]))
    assert disagreement(run(smaller, [words]), [np.concatenate(found)]) < 1e-4
