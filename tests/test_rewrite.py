import dataclasses

import keras
import numpy as np
import pytest
from architectures import random_inputs, randomise
from laws.removal import disagreement, run, silence

from mobileprune.channel_groups import ChannelGraph
from mobileprune.errors import PlanError
from mobileprune.plan import plan_channels
from mobileprune.prune import prune_channels
from mobileprune.rewrite import call_again, surviving_shape, survivors_by_axis

layers, ops = keras.layers, keras.ops
GONE = (0, 3, 4)


def mapped(op, width=8, batch=None):
    """A model that runs `op` on a map of `width` channels; every value that it gives is read by weights."""
    inputs = keras.Input((6, 6, 3), batch_size=batch)
    x = op(layers.Conv2D(width, 1, name="a")(inputs))
    parts = [layers.Dense(3)(layers.Flatten()(part)) for part in (x if isinstance(x, list | tuple) else [x])]
    return randomise(keras.Model(inputs, layers.Concatenate()(parts) if len(parts) > 1 else parts[0]))


def removing(model, units):
    """A plan that removes these units of the first group that may lose any."""
    plan = plan_channels(model, ratio=0.3, round_to=1, importance="random")
    first = next(entry.group for entry in plan.groups if entry.frozen is None)
    return dataclasses.replace(
        plan,
        groups=tuple(
            dataclasses.replace(entry, remove=tuple(units) if entry.group == first else ()) for entry in plan.groups
        ),
    )


def check(op, units=GONE, batch=None):
    """Removes units that nobody reads: the smaller model says what the larger one says, and reads only survivors.

    Which these are is told by `op` itself, run on numbers that are NaN where a channel is removed. Returns the smaller
    model.
    """
    model = mapped(op, batch=batch)
    plan = removing(model, units)
    silenced = silence(ChannelGraph(model), plan)
    smaller = prune_channels(model, plan)
    marked = np.ones((batch or 1, 6, 6, 8), "float32")
    marked[..., units_lost(plan, model)] = np.nan
    parts = [np.asarray(part)[0].ravel() for part in keras.tree.flatten(op(marked))]
    left = [int(np.isfinite(part).sum()) for part in parts]
    assert [layer.kernel.shape[0] for layer in smaller.layers if type(layer) is layers.Dense] == left
    assert (silenced > 0) == (sum(left) < sum(map(len, parts)))
    assert smaller.get_layer("a").filters < 8
    inputs = random_inputs(model, batch or 3)
    assert disagreement(run(model, inputs), run(smaller, inputs)) < 1e-5
    return smaller


def units_lost(plan, model):
    """Places of removed channels among those of the layer: a unit may be several."""
    graph = ChannelGraph(model)
    roots = [group.roots[list(entry.remove)] for entry, group in zip(plan.groups, graph.groups, strict=True)]
    return ~graph.without(np.concatenate(roots))[graph.ids.outputs["a"]]


def test_disagreement_notices_that_what_is_removed_is_read():
    model = mapped(lambda x: x)
    smaller = prune_channels(model, removing(model, GONE))
    assert disagreement(run(model, random_inputs(model)), run(smaller, random_inputs(model))) > 1e-2


def kinds(model):
    return [type(operation).__name__ for operation in model.operations]


def made(model, kind):
    return next(operation for operation in model.operations if type(operation).__name__ == kind)


@pytest.mark.parametrize(
    ("shape", "units", "expected"),
    [
        ((-1, 36, 8), GONE, (-1, 36, 5)),
        ((-1, 6, 48), GONE, (-1, 6, 30)),
        ((-1, 288), GONE, (-1, 180)),
        ((-1, 6, 6, 2, 4), (1, 2), (-1, 6, 6, 2, 2)),
        ((-1, 6, 6, 4, 2), (0,), (-1, 6, 6, 3, 2)),
        ((-1, 2, 3, 6, 8), GONE, (-1, 2, 3, 6, 5)),
    ],
)
def test_a_reshape_gets_the_sizes_that_survive_and_keeps_its_minus_one(shape, units, expected):
    smaller = check(lambda x: ops.reshape(x, shape), units)
    assert tuple(made(smaller, "Reshape").newshape) == expected


def test_a_minus_one_along_the_channels_becomes_what_survives():
    smaller = check(lambda x: ops.reshape(x, (3, 36, -1)), batch=3)
    assert tuple(made(smaller, "Reshape").newshape) == (3, 36, 5)


def test_a_broadcast_gets_the_sizes_that_survive():
    smaller = check(lambda x: ops.broadcast_to(ops.mean(x, 1, keepdims=True), (3, 4, 6, 8)), batch=3)
    assert tuple(made(smaller, "BroadcastTo").shape) == (3, 4, 6, 5)


SLICES = [
    *(np.s_[..., 2:7], np.s_[..., ::2], np.s_[..., 1::2], np.s_[..., ::-1], np.s_[..., 6:0:-2], np.s_[..., 5]),
    *(np.s_[..., -1], np.s_[:, 0], np.s_[:, 1:, ::2, 1:3], np.s_[:, :, 4, 2:6], np.s_[:, None, 2, ..., 5:]),
    *(np.s_[:, ..., None, 3:6], np.s_[..., 6, None], np.s_[:, 0, 1, 5], np.s_[:, -1:, ..., 1:-1], np.s_[:, 2, ...]),
    *(np.s_[:, :, None, 1], np.s_[..., None, 0:4], np.s_[:, 1:4]),
]


@pytest.mark.parametrize("key", SLICES, ids=str)
@pytest.mark.parametrize("units", [GONE, (0, 2, 3, 4)], ids=str)
def test_slices_take_the_survivors_of_what_they_took(key, units):
    check(lambda x: x[key], units)


@pytest.mark.parametrize(
    "op",
    [
        lambda x: ops.slice(x, (0, 0, 0, 2), (3, 6, 6, 4)),
        lambda x: ops.slice(x, (0, 2, 1, 0), (3, 3, 4, 8)),
        lambda x: ops.slice(x, (0, 2, 1, 3), (3, 3, 4, 5)),
    ],
    ids=["channels", "space", "both"],
)
def test_a_slice_of_start_and_shape_keeps_its_part_of_space(op):
    check(op, batch=3)
    check(op, (0, 1, 2, 4, 5, 6), batch=3)


INDEXED = {
    "permutation": lambda x: ops.take(x, [3, 0, 1, 2, 7, 6, 5, 4], axis=-1),
    "with repeats": lambda x: ops.take(x, np.array([5, 5, 0, 7]), axis=-1),
    "few": lambda x: ops.take(x, [2, 7], axis=3),
    "along space": lambda x: ops.take(x, [5, 2, 2], axis=1),
    "one": lambda x: ops.take(x, 6, axis=-1),
    "all in order": lambda x: ops.take(x, list(range(8)), axis=-1),
    "roll": lambda x: ops.roll(x, 3, axis=-1),
    "roll back": lambda x: ops.roll(x, -9, axis=3),
    "roll once around": lambda x: ops.roll(x, 8, axis=-1),
    "roll over space": lambda x: ops.roll(x, 2, axis=1),
    "roll and slice": lambda x: ops.roll(x, 2, axis=1)[..., ::2],
    "unstack space": lambda x: ops.unstack(x, axis=1),
    "halves": lambda x: ops.split(x, 2, axis=-1),
    "quarters": lambda x: ops.split(x, 4, axis=-1),
    "two places": lambda x: ops.split(x, [1, 5], axis=-1),
    "split space": lambda x: ops.split(x, [1, 5], axis=2),
}


@pytest.mark.parametrize("name", INDEXED)
def test_indices_shifts_and_splits_follow_the_channels_that_survive(name):
    check(INDEXED[name], (1, 4, 7))


def test_a_split_gives_parts_of_unequal_sizes_when_unequal_numbers_survive():
    smaller = check(INDEXED["halves"], (0, 1, 3, 4))
    assert [layer.kernel.shape[0] for layer in smaller.layers if type(layer) is layers.Dense] == [36, 108]


def test_what_selects_along_space_stays_the_operation_that_it_was():
    assert "Split" in kinds(check(INDEXED["split space"]))
    assert made(check(INDEXED["roll over space"]), "Roll").shift == 2


def constant(*shape):
    return np.random.default_rng(3).uniform(0.5, 1.5, shape).astype("float32")


@pytest.mark.parametrize("shape", [(8,), (1, 8), (6, 6, 8), (1, 1, 1, 8), (6, 1, 1), (6, 6, 1), ()])
def test_constants_lose_the_entries_of_removed_channels(shape):
    values = constant(*shape)
    smaller = check(lambda x: ops.maximum(ops.multiply(x, values), -constant(*shape)))
    node = made(smaller, "Multiply")._inbound_nodes[-1]
    expected = np.delete(values, GONE, -1) if shape and shape[-1] == 8 else values
    np.testing.assert_array_equal(node.arguments.args[1], expected)


def test_a_constant_that_meets_channels_on_another_axis_is_cut_there():
    smaller = check(lambda x: ops.add(ops.transpose(x, (0, 3, 1, 2)), constant(8, 1, 6)))
    assert made(smaller, "Add")._inbound_nodes[-1].arguments.args[1].shape == (5, 1, 6)


def test_a_constant_comes_first_and_a_number_stays_a_number():
    smaller = check(lambda x: ops.subtract(constant(8), ops.multiply(x, 2.0)))
    assert made(smaller, "Subtract")._inbound_nodes[-1].arguments.args[0].shape == (5,)
    assert made(smaller, "Multiply")._inbound_nodes[-1].arguments.args[1] == 2.0


def test_what_loses_nothing_is_the_same_operation():
    inputs = keras.Input((6,))
    x = ops.reshape(inputs, (-1, 2, 3))
    model = randomise(keras.Model(inputs, layers.Dense(2)(layers.Dense(8, name="a")(layers.Flatten()(x)))))
    smaller = prune_channels(model, removing(model, GONE))
    assert made(smaller, "Reshape") is made(model, "Reshape")


def alive_without(graph, places):
    alive = graph.everything()
    alive[graph.ids.outputs["a"][list(places)]] = False
    return alive


@pytest.mark.parametrize(
    ("op", "says"),
    [
        (lambda x: ops.reshape(x, (-1, 6, 6, 2, 4)), "cannot be reshaped by 'reshape"),
        (lambda x: ops.reshape(x, (-1, 6, 6, 2, 4))[..., 0, :], "cannot be selected by 'get_item"),
    ],
    ids=["reshape", "selection"],
)
def test_survivors_that_fill_no_rectangle_are_refused(op, says):
    model = mapped(op)
    graph = ChannelGraph(model)
    last = model.operations[-3]
    call = graph.ids.calls[last.name]
    node = last._inbound_nodes[-1]
    with pytest.raises(PlanError, match=says):
        call_again(call, alive_without(graph, (1,)), node.arguments.args, node.arguments.kwargs)


def test_survivors_by_axis_and_the_shape_that_they_fill():
    model = mapped(lambda x: ops.reshape(x, (-1, 6, 6, 2, 4)))
    graph = ChannelGraph(model)
    call = graph.ids.calls[made(model, "Reshape").name]
    alive = alive_without(graph, (1, 5))
    kept = survivors_by_axis(call.outputs[0], alive)
    assert [along.tolist() for along in kept[3:]] == [[True, True], [True, False, True, True]]
    assert all(along.all() for along in kept[:3])
    assert surviving_shape(call, alive, (None, 6, 6, 2, 4)) == (None, 6, 6, 2, 3)


def test_a_squeeze_of_all_single_sizes_leaves_a_single_channel_its_axis():
    inputs = keras.Input((1, 6, 3))
    x = ops.squeeze(layers.Conv2D(8, 1, name="a")(inputs))
    model = keras.Model(inputs, layers.Dense(2)(layers.Flatten()(layers.Conv1D(4, 1)(x))))
    smaller = prune_channels(model, plan_channels(model, channels={"a": 1}))
    assert smaller(np.ones((2, 1, 6, 3), "float32")).shape == (2, 2)
