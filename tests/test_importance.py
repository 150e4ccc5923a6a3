import keras
import numpy as np
import pytest
from architectures import randomise

from mobileprune.channel_groups import ChannelGraph
from mobileprune.errors import PlanError
from mobileprune.importance import IMPORTANCES, score

layers = keras.layers


def two_dense():
    """3 inputs, 2 hidden units, 2 outputs."""
    model = keras.Sequential([keras.Input((3,)), layers.Dense(2, name="hidden"), layers.Dense(2, name="out")])
    model.get_layer("hidden").set_weights([np.array([[1.0, -2], [0, 3], [-1, 1]]), np.array([100.0, 0])])
    model.get_layer("out").set_weights([np.array([[3.0, 4], [0, -1]]), np.array([0.0, 50])])
    return model


def with_norm():
    return keras.Sequential(
        [
            keras.Input((4, 4, 3)),
            layers.Conv2D(6, 3, name="first"),
            layers.BatchNormalization(name="norm"),
            layers.DepthwiseConv2D(1, name="depthwise"),
            layers.Conv2D(2, 1, name="last"),
        ]
    )


def read(graph):
    return lambda layer, attribute: np.asarray(getattr(graph.ids.layers[layer], attribute))


def group_named(graph, name):
    return next(group for group in graph.groups if group.name == name)


def scores(model, group, importance, seed=0):
    graph = ChannelGraph(model)
    return score(graph, group_named(graph, group), importance, read(graph), seed)


def test_l1_by_hand():
    # Column sums 2 and 6 of the producer (mean 4), row sums 7 and 1 of the consumer (mean 4); biases do not count.
    np.testing.assert_allclose(scores(two_dense(), "hidden", "l1"), [2 / 4 + 7 / 4, 6 / 4 + 1 / 4])


def test_l2_by_hand():
    # Squares: 2 and 14 (mean 8), 25 and 1 (mean 13).
    np.testing.assert_allclose(scores(two_dense(), "hidden", "l2"), np.sqrt([2 / 8 + 25 / 13, 14 / 8 + 1 / 13]))


def test_l1_counts_kernels_scales_and_depthwise_kernels_but_no_statistics():
    model = randomise(with_norm())
    norm, depthwise = model.get_layer("norm"), model.get_layer("depthwise")
    parts = [
        np.abs(model.get_layer("first").kernel).sum((0, 1, 2)),
        np.abs(norm.gamma),
        np.abs(depthwise.kernel).sum((0, 1, 3)),
        np.abs(model.get_layer("last").kernel).sum((0, 1, 3)),
    ]
    before = scores(model, "first", "l1")
    np.testing.assert_allclose(before, sum(part / part.mean() for part in parts), rtol=1e-5)
    for variable in (norm.beta, norm.moving_mean, norm.moving_variance, depthwise.bias):
        variable.assign(np.arange(6.0))
    np.testing.assert_array_equal(scores(model, "first", "l1"), before)


@pytest.mark.parametrize("importance", ["l1", "l2"])
def test_the_scale_of_a_whole_layer_does_not_matter(importance):
    model = two_dense()
    before = scores(model, "hidden", importance)
    out = model.get_layer("out")
    out.kernel.assign(out.kernel * 1000)
    np.testing.assert_allclose(scores(model, "hidden", importance), before, rtol=1e-6)


@pytest.mark.parametrize("importance", ["l1", "l2"])
def test_weights_that_are_all_zero_score_zero(importance):
    model = two_dense()
    for layer in model.layers:
        layer.set_weights([np.zeros_like(values) for values in layer.get_weights()])
    assert scores(model, "hidden", importance).tolist() == [0, 0]


def test_batch_norm_scale_is_the_absolute_gamma():
    model = with_norm()
    gamma = np.array([1.0, -5, 0, 2, -3, 4])
    model.get_layer("norm").gamma.assign(gamma)
    np.testing.assert_array_equal(scores(model, "first", "batch_norm_scale"), np.abs(gamma))


def test_batch_norm_scale_needs_a_batch_norm():
    with pytest.raises(PlanError, match=r"No batch-norm scale follows 'hidden'.*l2"):
        scores(two_dense(), "hidden", "batch_norm_scale")


def test_random_depends_on_the_seed_and_the_group_only():
    model = with_norm()
    first = scores(model, "first", "random", seed=1)
    np.testing.assert_array_equal(scores(randomise(model), "first", "random", seed=1), first)
    assert not np.array_equal(scores(model, "first", "random", seed=2), first)
    assert not np.array_equal(scores(model, "last", "random", seed=1), first[:2])


@pytest.mark.parametrize("importance", IMPORTANCES)
def test_every_importance_gives_one_score_a_unit(importance):
    assert scores(randomise(with_norm()), "first", importance).shape == (6,)


def test_units_joined_by_a_residual_are_scored_by_all_their_layers():
    inputs = keras.Input((4,))
    left, right = layers.Dense(3, name="left")(inputs), layers.Dense(3, name="right")(inputs)
    model = keras.Model(inputs, layers.Dense(1, name="out")(layers.Add()([left, right])))
    for name in ("left", "right", "out"):
        model.get_layer(name).kernel.assign(np.ones_like(model.get_layer(name).kernel))
    np.testing.assert_allclose(scores(model, "left", "l1"), [3, 3, 3])
    model.get_layer("right").kernel.assign(np.array([[0.0, 1, 2]] * 4))
    np.testing.assert_allclose(scores(model, "left", "l1"), [2, 3, 4])


def test_an_unknown_importance_lists_the_known_ones():
    with pytest.raises(PlanError, match=r"'taylor'.*l1, l2, batch_norm_scale, random"):
        scores(two_dense(), "hidden", "taylor")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(bad):
    model = two_dense()
    model.get_layer("out").kernel.assign(np.array([[bad, 1], [1, 1]]))
    with pytest.raises(PlanError, match="'hidden' are not all finite"):
        scores(model, "hidden", "l2")
