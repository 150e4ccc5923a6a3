import keras
import numpy as np
import pytest
from architectures import random_inputs, randomise
from zoo_architectures import ZOO

from mobileprune import elimination
from mobileprune.channel_groups import ChannelGraph
from mobileprune.elimination import backward_elimination
from mobileprune.errors import DatasetError

layers, ops = keras.layers, keras.ops
DAMPING = 1e-2


def mixed(shape, seed=0):
    """Values whose last axis is correlated and of different sizes."""
    generator = np.random.default_rng(seed)
    width = shape[-1]
    return (generator.normal(size=shape) @ generator.normal(size=(width, width)) + 1).astype("float32")


class Problem:
    """One reader as plain least squares: rows that are damped by rows of their own, and what it should give."""

    def __init__(self, rows, weights, units):
        rows = rows - rows.mean(0)
        columns = rows.shape[1]
        damping = DAMPING * (rows**2).mean(0).mean()
        scale = np.sqrt((rows @ weights).var(0).sum() * len(rows))
        damped = np.concatenate([rows, np.sqrt(damping * len(rows)) * np.eye(columns)])
        self.rows, self.wanted, self.units = damped, damped @ weights / scale, np.asarray(units)

    def error(self, left):
        """The squared error when columns of the units in `left` are fitted by least squares."""
        kept = self.rows[:, np.isin(self.units, [*left, -1])]
        fitted = np.linalg.lstsq(kept, self.wanted, rcond=None)[0]
        return float(((kept @ fitted - self.wanted) ** 2).sum())


def by_brute_force(problems, size):
    """The greedy order and losses when the fit is solved anew without each unit in turn."""
    left, order, losses, spent = set(range(size)), [], [], 0.0
    while left:
        errors = {unit: sum(problem.error(left - {unit}) for problem in problems) for unit in sorted(left)}
        cheapest = min(errors, key=errors.get)
        order.append(cheapest)
        losses.append(errors[cheapest] - spent)
        spent = errors[cheapest]
        left.remove(cheapest)
    return order, losses


def test_brute_force_by_hand():
    """Orthogonal columns of sizes 1, 2 and 3 under equal weights cost their squares."""
    problem = Problem.__new__(Problem)
    problem.rows, problem.units = np.diag([3.0, 1.0, 2.0]), np.arange(3)
    problem.wanted = problem.rows @ np.ones((3, 1))
    order, losses = by_brute_force([problem], 3)
    assert order == [1, 2, 0]
    np.testing.assert_allclose(losses, [1, 4, 9])


def ranking_of(model, images, name="a"):
    graph = ChannelGraph(model)
    group = next(one for one in graph.groups if name in one.layers)
    return backward_elimination(graph, [group], model, images).get(group.name)


def check(ranking, problems, size):
    order, losses = by_brute_force(problems, size)
    assert ranking.order.tolist() == order
    np.testing.assert_allclose(ranking.losses, losses, rtol=5e-3, atol=1e-5)
    assert ranking.absolute


def test_check_notices_another_order_and_another_loss():
    from mobileprune.ranking import Ranking

    rows, weights = mixed((50, 4)), np.random.default_rng(0).normal(size=(4, 2))
    problem = Problem(rows, weights, range(4))
    order, losses = by_brute_force([problem], 4)
    check(Ranking(order, losses, True), [problem], 4)
    with pytest.raises(AssertionError):
        check(Ranking(order[::-1], losses, True), [problem], 4)
    with pytest.raises(AssertionError):
        check(Ranking(order, np.array(losses) * 1.1, True), [problem], 4)


def passing(width, *readers, shape=()):
    """A model whose layer `a` gives its input as it is, so that what its readers read is known."""
    inputs = keras.Input((*shape, width))
    x = layers.Dense(width, name="a")(inputs)
    outputs = [layers.Dense(1)(layers.Flatten()(layers.ReLU()(reader(x)))) for reader in readers]
    model = randomise(keras.Model(inputs, outputs))
    model.get_layer("a").kernel.assign(np.eye(width))
    model.get_layer("a").bias.assign(np.zeros(width))
    return model


@pytest.mark.parametrize("seed", range(4))
def test_a_dense_layer_loses_what_least_squares_says(seed):
    reader = layers.Dense(4)
    model = passing(9, reader)
    images = mixed((200, 9), seed)
    check(ranking_of(model, images), [Problem(images, np.asarray(reader.kernel), range(9))], 9)


def test_a_convolution_loses_the_columns_of_a_channel_at_once():
    reader = layers.Conv2D(3, (2, 3))
    model = passing(5, reader, shape=(4, 5))
    images = mixed((60, 4, 5, 5))
    patches = np.stack([images[:, y : y + 3, x : x + 3] for y in range(2) for x in range(3)], axis=-2)
    rows = patches.reshape(-1, 30)
    problem = Problem(rows, np.asarray(reader.kernel).reshape(30, 3), np.tile(np.arange(5), 6))
    check(ranking_of(model, images), [problem], 5)


def test_a_group_with_two_readers_costs_what_both_lose():
    dense, conv = layers.Dense(4), layers.Conv1D(2, 2)
    model = passing(6, dense, conv, shape=(5,))
    images = mixed((80, 5, 6))
    pairs = np.concatenate([images[:, :-1], images[:, 1:]], axis=-1).reshape(-1, 12)
    problems = [
        Problem(images.reshape(-1, 6), np.asarray(dense.kernel), range(6)),
        Problem(pairs, np.asarray(conv.kernel).reshape(12, 2), [*range(6), *range(6)]),
    ]
    check(ranking_of(model, images), problems, 6)
    alone = [by_brute_force([problem], 6)[1] for problem in problems]
    assert not np.allclose(alone[0], ranking_of(model, images).losses, rtol=0.05)


def test_a_grouped_convolution_loses_a_channel_of_every_group_at_once():
    reader = layers.Conv1D(4, 1, groups=2)
    model = passing(6, reader, shape=(5,))
    images = mixed((80, 5, 6))
    rows, kernel = images.reshape(-1, 6), np.asarray(reader.kernel)[0]
    halves = [
        Problem(rows[:, at : at + 3], kernel[:, 2 * number : 2 * number + 2], range(3))
        for number, at in enumerate((0, 3))
    ]
    # Both halves are shares of what the whole layer gives.
    outputs = rows @ np.block([[kernel[:, :2], np.zeros((3, 2))], [np.zeros((3, 2)), kernel[:, 2:]]])
    for number, problem in enumerate(halves):
        part = outputs[:, 2 * number : 2 * number + 2]
        problem.wanted = problem.wanted * np.sqrt(part.var(0).sum() / outputs.var(0).sum())
    check(ranking_of(model, images), halves, 3)


def test_channels_that_are_not_the_groups_stay_and_help():
    """What comes from another layer is never dropped, and can stand in for what is."""
    inputs = keras.Input((6,))
    a, other = layers.Dense(3, name="a")(inputs), layers.Dense(3, name="other")(inputs)
    reader = layers.Dense(4)
    model = randomise(keras.Model(inputs, layers.Dense(1)(layers.ReLU()(reader(layers.Concatenate()([a, other]))))))
    images = mixed((100, 6))
    rows = np.concatenate([np.asarray(model.get_layer(name)(images)) for name in ("a", "other")], 1)
    check(ranking_of(model, images), [Problem(rows, np.asarray(reader.kernel), [0, 1, 2, -1, -1, -1])], 3)


@pytest.mark.parametrize("kind", ["dense", "conv"])
def test_one_of_two_equal_channels_goes_first_and_costs_nothing(kind):
    reader = layers.Dense(4) if kind == "dense" else layers.Conv1D(4, 3)
    model = passing(6, reader, shape=(5,))
    images = np.random.default_rng(0).normal(size=(100, 5, 6)).astype("float32")
    images[..., 4] = images[..., 1]
    ranking = ranking_of(model, images)
    assert ranking.order[0] in (1, 4)
    assert ranking.losses[0] < 0.01 < 3 * ranking.losses[1:].min()
    # The other one is then worth what both gave.
    assert ranking.order[1] not in (1, 4)


def test_a_channel_that_never_changes_goes_first_and_costs_nothing():
    model = passing(6, layers.Dense(4))
    images = mixed((100, 6))
    images[:, 3] = 5.0
    ranking = ranking_of(model, images)
    assert ranking.order[0] == 3
    assert ranking.losses[0] < 0.05 * ranking.losses[1:].max()


def test_groups_that_no_fittable_layer_reads_get_no_ranking():
    inputs = keras.Input((8, 4))
    x = layers.Conv1D(6, 1, name="a")(inputs)
    x = layers.Conv1D(5, 2, padding="causal", name="causal")(x)
    model = randomise(keras.Model(inputs, layers.Dense(2, name="head")(layers.Dense(3, name="b")(x))))
    graph = ChannelGraph(model)
    found = backward_elimination(graph, graph.groups, model, random_inputs(model)[0])
    assert {"causal", "b"} <= set(found)
    assert not {"a", "head"} & set(found)


def test_attention_over_several_axes_is_ranked_like_any():
    inputs = keras.Input((3, 4, 6))
    x = layers.Dense(8, name="a")(inputs)
    x = layers.Dense(8, name="b")(layers.MultiHeadAttention(2, 4, name="attention")(x, x))
    model = randomise(keras.Model(inputs, layers.Dense(2)(x)))
    graph = ChannelGraph(model)
    found = backward_elimination(graph, graph.groups, model, random_inputs(model)[0])
    assert set(found) >= {"a", "b", "attention:heads", "attention:values"}


@pytest.mark.parametrize("name", ["vit_learned_positions", "resnext", "siamese", "nested_deeply", "cross_attention"])
def test_every_free_group_of_a_network_is_ranked_whole(name):
    model = randomise(ZOO[name]())
    graph = ChannelGraph(model)
    free = [group for group in graph.groups if not group.frozen]
    before = model.get_weights()
    inputs = random_inputs(model, batch=8)
    found = backward_elimination(graph, free, model, inputs if len(inputs) > 1 else inputs[0])
    # The width of queries and keys is read by their product, and by no map.
    assert set(found) == {group.name for group in free if not group.name.endswith(":keys")}
    for group in (group for group in free if group.name in found):
        ranking = found[group.name]
        assert sorted(ranking.order.tolist()) == list(range(group.size))
        assert (ranking.losses >= -1e-6).all()
        assert ranking.losses.sum() > 0
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_wide_groups_lose_several_units_at_a_time_and_share_the_cost(monkeypatch):
    reader = layers.Dense(4)
    model = passing(12, reader)
    images = mixed((300, 12))
    one = ranking_of(model, images)
    monkeypatch.setattr(elimination, "_STEPS", 4)
    three = ranking_of(model, images)
    assert sorted(three.order.tolist()) == list(range(12))
    problem = Problem(images, np.asarray(reader.kernel), range(12))
    spent = [problem.error(set(three.order[count:].tolist())) for count in (3, 6, 9, 12)]
    np.testing.assert_allclose(np.cumsum(three.losses)[2::3], spent, rtol=5e-3, atol=1e-5)
    np.testing.assert_allclose(three.losses.sum(), one.losses.sum(), rtol=1e-3)


def test_images_that_do_not_fit_are_refused():
    model = passing(6, layers.Dense(4))
    with pytest.raises(DatasetError, match=r"calibration data are \(3, 5\)"):
        ranking_of(model, np.ones((3, 5)))
