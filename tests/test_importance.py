import keras
import numpy as np
import pytest
from architectures import randomise

from mobileprune.channel_groups import ChannelGraph
from mobileprune.errors import PlanError
from mobileprune.importance import (
    IMPORTANCES,
    WITH_CALIBRATION,
    check_importance,
    importance_name,
    rankings,
    score,
)
from mobileprune.ranking import Ranking
from mobileprune.scoring import Scoring

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


IMAGES = np.random.default_rng(0).normal(size=(12, 4, 4, 3)).astype("float32")


def classifier():
    """`with_norm` with a row of two logits."""
    model = with_norm()
    return keras.Model(model.inputs[0], layers.GlobalAveragePooling2D()(model.outputs[0]))


def group_named(graph, name):
    return next(group for group in graph.groups if group.name == name)


def scores(model, group, importance, seed=0, calibration=None):
    graph = ChannelGraph(model)
    return score(Scoring(model, graph, calibration, seed), group_named(graph, group), importance)


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
    found = scores(randomise(classifier()), "first", importance, calibration=IMAGES)
    assert found.shape == (6,)
    if importance != "apoz":  # without a ReLU no activation is zero
        assert len(set(found.tolist())) == 6


def test_fpgm_by_hand():
    # Producer columns (1, 0, -1) and (-2, 3, 1): squared distance 9 + 9 + 4, mean squared length (2 + 14) / 2.
    # Consumer rows (3, 4) and (0, -1): 9 + 25, mean (25 + 1) / 2.
    np.testing.assert_allclose(scores(two_dense(), "hidden", "fpgm"), [np.sqrt(22 / 8 + 34 / 13)] * 2)


def test_fpgm_by_brute_force():
    model = randomise(with_norm())
    kernels = [
        np.moveaxis(np.asarray(model.get_layer("first").kernel), 3, 0).reshape(6, -1),
        np.asarray(model.get_layer("norm").gamma)[:, None],
        np.moveaxis(np.asarray(model.get_layer("depthwise").kernel), 2, 0).reshape(6, -1),
        np.moveaxis(np.asarray(model.get_layer("last").kernel), 2, 0).reshape(6, -1),
    ]
    places = np.concatenate([part / np.sqrt(np.square(part).sum(1).mean()) for part in kernels], axis=1)
    wanted = [sum(np.linalg.norm(one - other) for other in places) for one in places]
    np.testing.assert_allclose(scores(model, "first", "fpgm"), wanted, rtol=1e-5)
    np.testing.assert_allclose(scores(model, "first", "l2"), np.linalg.norm(places, axis=1), rtol=1e-5)


def test_fpgm_lets_the_unit_in_the_middle_go_where_l2_lets_the_smallest_go():
    wide = keras.Sequential([keras.Input((1,)), layers.Dense(5, name="hidden"), layers.Dense(1, name="out")])
    wide.get_layer("hidden").kernel.assign(np.array([[1.0, 2, 3, 4, 5]]))
    wide.get_layer("out").kernel.assign(np.ones((5, 1)))
    assert scores(wide, "hidden", "fpgm").argmin() == 2
    assert scores(wide, "hidden", "l2").argmin() == 0


def test_fpgm_behind_a_flatten_sees_every_pixels_rows():
    model = keras.Sequential(
        [keras.Input((2, 2, 3)), layers.Conv2D(4, 1, name="conv"), layers.Flatten(), layers.Dense(3, name="out")]
    )
    randomise(model)
    first = np.asarray(model.get_layer("conv").kernel).reshape(3, 4).T
    # Row p * 4 + c of the dense kernel reads pixel p of channel c.
    second = np.asarray(model.get_layer("out").kernel).reshape(4, 4, 3).transpose(1, 0, 2).reshape(4, -1)
    places = np.concatenate([part / np.sqrt(np.square(part).sum(1).mean()) for part in (first, second)], axis=1)
    wanted = [sum(np.linalg.norm(one - other) for other in places) for one in places]
    np.testing.assert_allclose(scores(model, "conv", "fpgm"), wanted, rtol=1e-5)


def by_central_differences(model, group, images, labels):
    """For each unit the slope of the loss when each of its weights is scaled by 1 + t in turn, summed and squared."""

    def loss():
        logits = np.asarray(model(images, training=False), np.float64)
        return float(np.mean(np.log(np.exp(logits).sum(1)) - logits[np.arange(len(labels)), labels]))

    found = []
    for unit in range(6):
        slopes = []
        for layer, attribute, axis in group:
            variable = getattr(model.get_layer(layer), attribute)
            before = np.array(variable)
            values = []
            for step in (1e-2, -1e-2):
                changed = before.copy()
                np.moveaxis(changed, axis, 0)[unit] *= 1 + step
                variable.assign(changed)
                values.append(loss())
            variable.assign(before)
            slopes.append((values[0] - values[1]) / 2e-2)
        found.append(sum(slopes) ** 2)
    return found


def test_taylor_against_finite_differences_over_two_batches():
    model = randomise(classifier())
    labels = np.arange(12) % 2
    group = [("first", "kernel", 3), ("first", "bias", 0), ("norm", "gamma", 0), ("norm", "beta", 0)]
    group += [("depthwise", "kernel", 2), ("depthwise", "bias", 0), ("last", "kernel", 2)]
    batches = [(IMAGES[:3], labels[:3]), (IMAGES[3:], labels[3:])]
    found = scores(model, "first", "taylor", calibration=batches)
    np.testing.assert_allclose(found, by_central_differences(model, group, IMAGES, labels), rtol=0.02, atol=1e-7)
    np.testing.assert_allclose(found, scores(model, "first", "taylor", calibration=(IMAGES, labels)), rtol=1e-3)
    last = scores(model, "first", "taylor", calibration=batches[-1:])
    assert np.abs(last / found - 1).max() > 0.1


def test_taylor_needs_no_labels():
    model = randomise(classifier())
    own = np.asarray(model(IMAGES)).argmax(1)
    found = scores(model, "first", "taylor", calibration=IMAGES)
    np.testing.assert_allclose(found, scores(model, "first", "taylor", calibration=(IMAGES, own)), rtol=1e-4)
    assert found.min() > 0


def test_taylor_without_images_says_what_it_needs():
    with pytest.raises(PlanError, match=r"'taylor' needs calibration="):
        scores(two_dense(), "hidden", "taylor")


def test_gradients_are_computed_once_for_all_groups():
    model = randomise(classifier())
    calls = []

    class Counted(list):
        def __iter__(self):
            calls.append(1)
            return super().__iter__()

    graph = ChannelGraph(model)
    scoring = Scoring(model, graph, Counted([IMAGES]))
    for group in graph.groups:
        score(scoring, group, "taylor")
    assert len(calls) == 1


def test_hessian_by_hand_on_softmax_regression():
    model = keras.Sequential([keras.Input((3,)), layers.Dense(2, name="hidden"), layers.Dense(2, name="out")])
    randomise(model)
    images, labels = IMAGES[:, 0, 0], np.arange(12) % 2
    hidden, out = (np.asarray(model.get_layer(name).kernel, np.float64) for name in ("hidden", "out"))
    bias = np.asarray(model.get_layer("hidden").bias, np.float64)
    read = images @ hidden + bias
    logits = read @ out + np.asarray(model.get_layer("out").bias)
    error = np.exp(logits) / np.exp(logits).sum(1, keepdims=True) - np.eye(2)[labels]
    back = error @ out.T  # the gradient of each image's loss with respect to the hidden units
    wanted = (
        (np.square(np.einsum("ni,nu->niu", images, back)).mean(0) * hidden**2).sum(0)
        + np.square(back).mean(0) * bias**2
        + (np.square(np.einsum("nu,no->nuo", read, error)).mean(0) * out**2).sum(1)
    ) / 2
    np.testing.assert_allclose(scores(model, "hidden", "hessian", calibration=(images, labels)), wanted, rtol=1e-4)
    batches = [(images[:5], labels[:5]), (images[5:], labels[5:])]
    np.testing.assert_allclose(scores(model, "hidden", "hessian", calibration=batches), wanted, rtol=1e-4)


def test_hessian_sees_what_cancels_in_the_mean_gradient():
    # Two images with opposite gradients: the mean is zero and so is every Taylor score.
    model = keras.Sequential([keras.Input((1,)), layers.Dense(2, use_bias=False, name="hidden"), layers.Dense(1)])
    model.layers[0].kernel.assign([[1.0, 0.0]])
    model.layers[1].kernel.assign([[1.0], [0.0]])
    data = np.array([[1.0], [1.0]], "float32"), np.array([0, 1])
    mean = float(1 / (1 + np.exp(-1.0)))
    halves = (data[0], np.array([[mean], [mean]], "float32"))
    assert scores(model, "hidden", "taylor", calibration=halves).max() < 1e-8
    found = scores(model, "hidden", "hessian", calibration=data)
    # w = 1 in both layers, and the gradient of each image is sigmoid(1) - label.
    np.testing.assert_allclose(found, [((mean - 0) ** 2 + (mean - 1) ** 2) / 2, 0], rtol=1e-4, atol=1e-12)


def test_lamp_by_hand_and_over_groups():
    # l2 squared: 2/8 + 25/13 and 14/8 + 1/13.
    small, large = sorted([2 / 8 + 25 / 13, 14 / 8 + 1 / 13])
    found = scores(two_dense(), "hidden", "lamp")
    np.testing.assert_allclose(found, [1, small / (small + large)])
    model = two_dense()
    graph = ChannelGraph(model)
    group = group_named(graph, "hidden")
    for normalise in ("sum", "max", "none"):
        ranking = rankings(Scoring(model, graph), [group], "lamp", normalise)["hidden"]
        np.testing.assert_allclose(ranking.losses, sorted(found))
    assert not np.allclose(rankings(Scoring(model, graph), [group], "l2", "sum")["hidden"].losses, sorted(found))


def test_lamp_gives_equal_units_in_turn_what_is_left():
    model = keras.Sequential([keras.Input((1,)), layers.Dense(4, name="hidden"), layers.Dense(1)])
    for layer in model.layers:
        layer.kernel.assign(np.ones_like(layer.kernel))
    np.testing.assert_allclose(scores(model, "hidden", "lamp"), [1 / 4, 1 / 3, 1 / 2, 1])
    for layer in model.layers:
        layer.kernel.assign(np.zeros_like(layer.kernel))
    assert scores(model, "hidden", "lamp").tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("importance", ["apoz", "activation_mean", "reconstruction", "taylor", "hessian"])
def test_a_dead_channel_goes_first(importance):
    model = keras.Sequential(
        [
            keras.Input((4, 4, 3)),
            layers.Conv2D(6, 3, name="first"),
            layers.BatchNormalization(name="norm"),
            layers.ReLU(),
            layers.Conv2D(2, 1, name="last"),
            layers.GlobalAveragePooling2D(),
        ]
    )
    randomise(model)
    beta = np.array(model.get_layer("norm").beta)
    beta[4] = -100
    model.get_layer("norm").beta.assign(beta)
    kernel = np.array(model.get_layer("last").kernel)
    kernel[:, :, 4] = 100  # by its weights it would be the last to go
    model.get_layer("last").kernel.assign(kernel)
    graph = ChannelGraph(model)
    group = group_named(graph, "first")
    order = {
        name: rankings(Scoring(model, graph, (IMAGES, np.arange(12) % 2)), [group], name)["first"].order.tolist()
        for name in (importance, "l2")
    }
    assert order[importance][0] == 4
    assert order["l2"][-1] == 4


def test_apoz_is_the_share_that_is_not_zero_and_reconstruction_is_absolute():
    model = randomise(classifier())
    graph = ChannelGraph(model)
    scoring = Scoring(model, graph, (IMAGES, None))
    np.testing.assert_array_equal(score(scoring, graph.groups[1], "apoz"), 1 - scoring.activity["first"].zeros)
    made = rankings(scoring, graph.groups[1:2], "reconstruction", "max")["first"]
    assert made.absolute
    np.testing.assert_array_equal(made.losses, np.sort(scoring.reconstruction["first"]))


def test_what_nothing_reads_has_no_activations_and_says_so():
    with pytest.raises(PlanError, match=r"Nothing reads the channels of 'out'.*keep=\['out'\]"):
        scores(two_dense(), "out", "apoz", calibration=np.ones((2, 3), "float32"))


@pytest.mark.parametrize("importance", WITH_CALIBRATION)
def test_what_looks_at_images_says_that_it_needs_them(importance):
    with pytest.raises(PlanError, match=rf"{importance!r} needs calibration="):
        check_importance(importance, None)


def test_attention_can_be_ranked_by_everything():
    inputs = keras.Input((5, 8))
    x = layers.MultiHeadAttention(4, 2, name="attention")(inputs, inputs)
    model = randomise(keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling1D()(x))))
    images = np.random.default_rng(0).normal(size=(6, 5, 8)).astype("float32")
    for importance in set(IMPORTANCES) - {"batch_norm_scale"}:
        assert scores(model, "attention:heads", importance, calibration=images).shape == (4,)


def first_column(graph, group, values):
    """The producer's first row."""
    return values(group.layers[0], "kernel")[0]


def test_a_function_of_ones_own_reads_weights_by_name():
    assert scores(two_dense(), "hidden", first_column).tolist() == [1, -2]
    assert importance_name(first_column) == "first_column"
    assert importance_name("l2") == "l2"


@pytest.mark.parametrize("bad", [lambda *_: np.zeros(3), lambda *_: 1.0, lambda *_: np.array([1.0, np.nan])])
def test_a_function_that_gives_no_scores_is_refused(bad):
    with pytest.raises(PlanError, match=r"<lambda> must give 2 finite scores for 'hidden'. Received"):
        scores(two_dense(), "hidden", bad)


def test_rankings_follow_the_scores():
    model = two_dense()
    graph = ChannelGraph(model)
    found = rankings(Scoring(model, graph), [group_named(graph, "hidden")], first_column, "none")
    assert found["hidden"].order.tolist() == [1, 0]
    assert found["hidden"].losses.tolist() == [-2, 1]


def ranking(count, absolute=False):
    return Ranking(np.arange(count), np.arange(count, dtype=float), absolute)


@pytest.mark.parametrize(
    ("made", "says"),
    [
        ({}, "no ranking for 'hidden'"),
        ({"hidden": ranking(3), "out": ranking(2)}, "'hidden' has 3 units; it has 2"),
        ({"hidden": ranking(2, True), "out": ranking(2)}, "for 'hidden' are absolute and those for 'out' not"),
    ],
)
def test_finished_rankings_must_fit_the_groups(made, says):
    model = two_dense()
    graph = ChannelGraph(model)
    groups = [group_named(graph, name) for name in ("hidden", "out")]
    with pytest.raises(PlanError, match=says):
        rankings(Scoring(model, graph), groups, made)


def test_finished_rankings_are_taken_as_they_are():
    model = two_dense()
    graph = ChannelGraph(model)
    made = {"hidden": ranking(2, True), "elsewhere": ranking(7)}
    assert rankings(Scoring(model, graph), [group_named(graph, "hidden")], made) == {"hidden": made["hidden"]}
    assert importance_name(made) == "rankings"


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
    with pytest.raises(PlanError, match=r"'beauty'.*l1, l2, batch_norm_scale, fpgm, taylor, hessian, .*, random, obs"):
        scores(two_dense(), "hidden", "beauty")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(bad):
    model = two_dense()
    model.get_layer("out").kernel.assign(np.array([[bad, 1], [1, 1]]))
    for importance in ("l1", "l2", "fpgm", "taylor"):
        with pytest.raises(PlanError, match="'hidden' are not all finite"):
            scores(model, "hidden", importance, calibration=np.ones((2, 3), "float32"))
