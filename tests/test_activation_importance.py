import keras
import numpy as np
import pytest
from architectures import ARCHITECTURES, random_inputs, randomise

from mobileprune.activation_importance import channel_activity, reconstruction_errors
from mobileprune.channel_groups import ChannelGraph
from mobileprune.elimination import backward_elimination
from mobileprune.errors import DatasetError

layers = keras.layers


def activity(model, images, name):
    graph = ChannelGraph(model)
    return channel_activity(graph, graph.groups, model, images)[name]


def errors(model, images, name):
    graph = ChannelGraph(model)
    return reconstruction_errors(graph, graph.groups, model, images)[name]


def images_of(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def outputs(model, images, name):
    return np.asarray(keras.Model(model.inputs, model.get_layer(name).output)([images]), np.float64)


def test_activations_by_hand_after_norm_and_activation():
    # Behind the norm the units are x + 1, -x and 2x; behind the ReLU 0, 3 and 0, 2, 0 and 0, 4 for x = -2 and 2.
    model = keras.Sequential(
        [
            keras.Input((1, 1, 1)),
            layers.Conv2D(3, 1, use_bias=False, name="conv"),
            layers.BatchNormalization(epsilon=0, name="norm"),
            layers.ReLU(name="relu"),
            layers.Conv2D(2, 1, name="last"),
        ]
    )
    model.get_layer("conv").kernel.assign(np.ones((1, 1, 1, 3)))
    model.get_layer("norm").gamma.assign([1.0, -1, 2])
    model.get_layer("norm").beta.assign([1.0, 0, 0])
    found = activity(model, np.array([-2.0, 2]).reshape(2, 1, 1, 1).astype("float32"), "conv")
    np.testing.assert_allclose(found.zeros, [0.5, 0.5, 0.5], atol=1e-6)
    np.testing.assert_allclose(found.mean, [1.5, 1, 2], rtol=1e-6)


def test_a_dead_channel_is_zero_everywhere_and_one_without_relu_never():
    model = keras.Sequential(
        [
            keras.Input((5, 5, 2)),
            layers.Conv2D(4, 3, activation="relu", name="conv"),
            layers.Conv2D(6, 1, name="linear"),
            layers.Conv2D(2, 1, name="last"),
        ]
    )
    randomise(model)
    bias = np.array(model.get_layer("conv").bias)
    bias[2] = -100
    model.get_layer("conv").bias.assign(bias)
    images = images_of(6, 5, 5, 2)
    found = activity(model, images, "conv")
    assert found.zeros[2] == 1
    assert found.mean[2] == 0
    assert found.zeros[[0, 1, 3]].max() < 1
    assert activity(model, images, "linear").zeros.max() == 0
    made = outputs(model, images, "conv")
    np.testing.assert_allclose(found.zeros, (made == 0).mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(found.mean, np.abs(made).mean((0, 1, 2)), rtol=1e-5)


def test_every_tensor_that_is_read_counts_once():
    inputs = keras.Input((6, 6, 3))
    x = layers.ReLU(name="first")(layers.Conv2D(4, 3, padding="same", name="stem")(inputs))
    # The tensor behind the stem is read by two layers, that behind the addition by one.
    left = layers.Conv2D(4, 1, name="left")(x)
    right = layers.Conv2D(4, 3, padding="same", name="right")(x)
    second = layers.ReLU(name="second")(layers.Add()([x, left, right]))
    model = randomise(keras.Model(inputs, layers.Conv2D(2, 1, name="last")(second)))
    images = images_of(5, 6, 6, 3)
    found = activity(model, images, "stem")
    made = [outputs(model, images, name) for name in ("first", "second")]
    np.testing.assert_allclose(found.zeros, np.mean([(each == 0).mean((0, 1, 2)) for each in made], 0), rtol=1e-5)
    np.testing.assert_allclose(found.mean, np.mean([np.abs(each).mean((0, 1, 2)) for each in made], 0), rtol=1e-5)


def test_a_unit_that_is_idle_behind_the_stem_and_busy_later_is_not_dead():
    inputs = keras.Input((4,))
    x = layers.Dense(3, activation="relu", name="stem")(inputs)
    x = layers.Add()([x, layers.Dense(3, activation="relu", name="block")(x)])
    model = keras.Model(inputs, layers.Dense(2, name="out")(x))
    model.get_layer("stem").bias.assign([-100.0, 1, -100])
    model.get_layer("block").bias.assign([1.0, 1, -100])
    found = activity(model, images_of(8, 4), "stem")
    assert 0.5 <= found.zeros[0] < 1
    assert found.zeros[2] == 1


def test_behind_a_flatten_all_positions_of_a_channel_count():
    model = keras.Sequential(
        [
            keras.Input((4, 4, 1)),
            layers.Conv2D(3, 1, activation="relu", name="conv"),
            layers.Flatten(),
            layers.Dense(2, name="out"),
        ]
    )
    randomise(model)
    images = images_of(7, 4, 4, 1)
    made = outputs(model, images, "conv")
    np.testing.assert_allclose(activity(model, images, "conv").mean, np.abs(made).mean((0, 1, 2)), rtol=1e-5)


def test_heads_are_read_inside_attention():
    inputs = keras.Input((5, 8))
    model = keras.Model(inputs, layers.MultiHeadAttention(4, 2, name="attention")(inputs, inputs))
    randomise(model)
    layer = model.get_layer("attention")
    kernel, bias = (np.array(weight) for weight in layer.value_dense.weights)
    kernel[:, 1], bias[1] = 0, 0
    layer.value_dense.set_weights([kernel, bias])
    found = activity(model, images_of(3, 5, 8), "attention:heads")
    assert found.zeros.tolist() == [0, 1, 0, 0]
    assert found.mean[1] == 0
    assert found.mean[[0, 2, 3]].min() > 0


def test_a_group_that_no_kernel_reads_has_no_activity():
    inputs = keras.Input((6,))
    model = keras.Model(inputs, layers.Dense(4, name="out")(inputs))
    graph = ChannelGraph(model)
    assert "out" not in channel_activity(graph, graph.groups, model, images_of(3, 6))


def test_batches_of_the_playback_count_by_their_images(monkeypatch):
    monkeypatch.setattr("mobileprune.playback._VALUES_AT_ONCE", 4 * 9)
    model = keras.Sequential([keras.Input((3, 3, 1)), layers.Conv2D(3, 2, name="conv"), layers.Conv2D(1, 1)])
    randomise(model)
    images = images_of(9, 3, 3, 1) * np.arange(1, 10).reshape(-1, 1, 1, 1)  # 4, 4 and 1
    images = images.astype("float32")
    made = outputs(model, images, "conv")
    np.testing.assert_allclose(activity(model, images, "conv").mean, np.abs(made).mean((0, 1, 2)), rtol=1e-5)


def lost(model, images, readers, made, unit):
    """By brute force: for each reader the mean squared change of its outputs when it reads zeros for a unit."""
    total = 0.0
    for reader in readers:
        layer = model.get_layer(reader)
        before = np.asarray(layer(made.astype("float32")), np.float64)
        without = made.copy()
        without[..., unit] = 0
        after = np.asarray(layer(without.astype("float32")), np.float64)
        axes = tuple(range(before.ndim - 1))
        total += np.square(before - after).mean(axes).sum() / before.var(axes).sum()
    return total


@pytest.mark.parametrize("padding", ["valid", "same"])
def test_reconstruction_is_what_readers_lose_by_brute_force(padding):
    inputs = keras.Input((6, 6, 2))
    x = layers.Conv2D(5, 3, activation="relu", name="conv")(inputs)
    left, right = layers.Conv2D(3, 3, padding=padding, name="left"), layers.Conv2D(2, 1, name="right")
    model = randomise(keras.Model(inputs, [left(x), right(x)]))
    images = images_of(20, 6, 6, 2)
    made = outputs(model, images, "conv")
    wanted = [lost(model, images, ("left", "right"), made, unit) for unit in range(5)]
    np.testing.assert_allclose(errors(model, images, "conv"), wanted, rtol=1e-3)
    assert np.std(wanted) > 0.01 * np.mean(wanted)  # so that another unit's figure would be noticed


def test_reconstruction_of_a_grouped_convolution():
    inputs = keras.Input((5, 5, 2))
    x = layers.Conv2D(6, 1, name="conv")(inputs)
    model = randomise(keras.Model(inputs, layers.Conv2D(4, 3, groups=2, name="grouped")(x)))
    images = images_of(12, 5, 5, 2)
    made = outputs(model, images, "conv")
    # Position k of both halves is one unit.
    wanted = [lost(model, images, ("grouped",), made, [unit, unit + 3]) for unit in range(3)]
    np.testing.assert_allclose(errors(model, images, "conv"), wanted, rtol=1e-3)


def test_a_duplicated_channel_is_dear_alone_and_cheap_to_elimination():
    model = keras.Sequential([keras.Input((16,)), layers.Dense(5, name="hidden"), layers.Dense(3, name="out")])
    randomise(model)
    kernel, bias = (np.array(weight) for weight in model.get_layer("hidden").weights)
    kernel[:, 3], bias[3] = kernel[:, 1], bias[1]
    model.get_layer("hidden").set_weights([kernel, bias])
    rows = np.array(model.get_layer("out").kernel)
    rows[1] = rows[3] = 1  # both carry most of the outputs
    rows[4] = 0  # nobody reads this one
    model.get_layer("out").kernel.assign(rows)
    images = images_of(256, 16)
    found = errors(model, images, "hidden")
    assert found.argsort()[0] == 4
    assert found[4] == 0
    assert set(found.argsort()[-2:].tolist()) == {1, 3}
    np.testing.assert_allclose(found[1], found[3], rtol=1e-4)
    graph = ChannelGraph(model)
    order = backward_elimination(graph, graph.groups, model, images)["hidden"].order.tolist()
    assert min(order.index(1), order.index(3)) < 2  # the other one can stand in for it


@pytest.mark.parametrize("name", ["inverted_residual", "squeeze_and_excite", "shared_and_two_headed", "concatenation"])
def test_free_groups_of_networks_are_looked_at_whole(name):
    model = randomise(ARCHITECTURES[name]())
    images = random_inputs(model)
    graph = ChannelGraph(model)
    free = [group for group in graph.groups if not group.frozen]
    active = channel_activity(graph, graph.groups, model, images)
    lost = reconstruction_errors(graph, graph.groups, model, images)
    assert free
    for group in free:
        assert active[group.name].zeros.shape == active[group.name].mean.shape == (group.size,)
        assert (active[group.name].zeros >= 0).all()
        assert (active[group.name].zeros <= 1).all()
        assert (lost[group.name] >= 0).all()
        assert np.isfinite(lost[group.name]).all()


def test_images_that_do_not_fit_are_refused():
    model = keras.Sequential([keras.Input((4,)), layers.Dense(5, name="hidden"), layers.Dense(3)])
    graph = ChannelGraph(model)
    for measure in (channel_activity, reconstruction_errors):
        with pytest.raises(DatasetError, match="calibration data are"):
            measure(graph, graph.groups, model, images_of(3, 5))
