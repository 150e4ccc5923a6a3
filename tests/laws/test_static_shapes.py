"""Static arguments of ops say how wide a tensor is. Too wide, they do not fail: `x[..., :5]` of 4 channels has 4.

Each network is cut by a plan that takes chosen channels, so that what every branch must keep is known beforehand.
"""

import dataclasses

import keras
import numpy as np
import pytest
from architectures import random_inputs, randomise
from laws.removal import ChannelGraph, check_law, disagreement, law_plan, prune_channels, run, silence

layers, ops = keras.layers, keras.ops


def _cut(inputs, outputs, removed):
    """(the network, the smaller one, error of the law) without the channels `removed` of layer `wide`."""
    model = randomise(keras.Model(inputs, outputs))
    plan = law_plan(model, ratio=0.1, round_to=1)
    graph = ChannelGraph(model)
    (wide,) = (group for group in graph.groups if "wide" in group.layers)
    assert wide.frozen is None, wide.frozen
    wide_ids = graph.ids.outputs["wide"]
    roots = {graph.ids.root(int(wide_ids[index])) for index in removed}
    units = tuple(unit for unit, root in enumerate(wide.roots) if int(root) in roots)
    groups = tuple(
        dataclasses.replace(entry, remove=units if entry.group == wide.name else ()) for entry in plan.groups
    )
    plan = dataclasses.replace(plan, groups=groups)
    assert silence(graph, plan) > 0
    smaller = prune_channels(model, plan)
    batch = random_inputs(model, batch=3)
    return model, smaller, disagreement(run(model, batch), run(smaller, batch))


def _width(model, name):
    return model.get_layer(name).input.shape[-1]


def _wide(channels):
    inputs = keras.Input((6, 6, 3))
    return inputs, layers.Conv2D(channels, 1, name="wide", activation="relu")(inputs)


@pytest.mark.parametrize(
    ("removed", "widths"),
    [((0, 1), (3, 3)), ((5, 6), (5, 1)), ((1, 7), (4, 2)), ((1, 2, 3, 4), (1, 3))],
)
def test_a_slice_of_channels_ends_where_its_survivors_end(removed, widths):
    inputs, x = _wide(8)
    first = layers.Conv2D(4, 1, name="first")(x[..., :5])
    rest = layers.Conv2D(4, 1, name="rest")(x[..., 5:])
    _, smaller, error = _cut(inputs, [first, rest], removed)
    assert (_width(smaller, "first"), _width(smaller, "rest")) == widths
    assert error < 1e-4


@pytest.mark.parametrize("removed", [(0, 1, 4), (4, 9), (2, 5, 11)])
def test_a_split_keeps_each_part_with_its_reader(removed):
    inputs, x = _wide(12)
    parts = ops.split(x, [3, 8], axis=-1)
    readers = [layers.Conv2D(3, 1, name=f"reader_{number}")(part) for number, part in enumerate(parts[::-1])]
    alive = [index for index in range(12) if index not in removed]
    _, smaller, error = _cut(inputs, readers, removed)
    parts = [range(8, 12), range(3, 8), range(3)]
    kept = [len(set(part) & set(alive)) for part in parts]
    assert [_width(smaller, f"reader_{number}") for number in range(3)] == kept
    assert error < 1e-4


@pytest.mark.parametrize("seed", range(4))
def test_a_stride_over_channels_follows_its_own(seed):
    """What survives of the even and of the odd channels seldom lies at even and odd places again."""
    inputs, x = _wide(12)
    readers = [layers.Conv2D(8, 1, name="even")(x[..., ::2]), layers.Conv2D(8, 1, name="odd")(x[..., 1::2])]
    outputs = [layers.Conv2D(3, 1)(reader) for reader in readers]
    check_law(keras.Model(inputs, outputs), ratio=0.5, round_to=1, seed=seed)


def test_a_reshape_does_not_fold_channels_into_the_batch():
    """With `(-1, 6, 6, 2, 4)` fewer channels would make a smaller batch, and no error."""
    inputs, x = _wide(8)
    x = ops.reshape(ops.transpose(ops.reshape(x, (-1, 6, 6, 2, 4)), (0, 1, 2, 4, 3)), (-1, 6, 6, 8))
    _, smaller, error = _cut(inputs, layers.Conv2D(4, 1, name="reader")(x), (0, 4))
    assert smaller.output_shape == (None, 6, 6, 4)
    assert _width(smaller, "reader") == 6
    assert error < 1e-4


def test_a_constant_for_each_channel_is_cut_with_them():
    inputs, x = _wide(6)
    constant = np.arange(6, dtype="float32")
    x = ops.multiply(ops.add(x, constant), constant[::-1].copy())
    _, smaller, error = _cut(inputs, layers.Conv2D(4, 1, name="reader")(x), (1, 4))
    assert _width(smaller, "reader") == 4
    assert error < 1e-4


def test_a_flattening_reshape_shrinks():
    inputs, x = _wide(6)
    x = layers.Dense(4, name="reader")(ops.reshape(x, (-1, 6 * 6 * 6)))
    _, smaller, error = _cut(inputs, x, (0, 5))
    assert _width(smaller, "reader") == 6 * 6 * 4
    assert error < 1e-4
