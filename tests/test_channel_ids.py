import keras
import numpy as np
import pytest
from architectures import ARCHITECTURES

from mobileprune import channel_ops, channel_rules  # noqa: F401  (registers the rules)
from mobileprune.channel_calls import RULES, register_channels
from mobileprune.channel_ids import ChannelIds
from mobileprune.errors import ModelError

layers = keras.layers


def chain(*parts, shape=(4, 4, 3)):
    inputs = keras.Input(shape, name="image")
    x = inputs
    for part in parts:
        x = part(x)
    return keras.Model(inputs, x)


def test_each_channel_that_a_weight_creates_has_its_own_id():
    ids = ChannelIds(chain(layers.Conv2D(5, 1, name="a"), layers.ReLU(), layers.Conv2D(7, 1, name="b")))
    created = np.concatenate([ids.outputs[name] for name in ("image", "a", "b")])
    assert len(set(created.tolist())) == 3 + 5 + 7
    kernel = ids.weights["b", "kernel"]
    np.testing.assert_array_equal(kernel.axes[2], ids.outputs["a"])
    np.testing.assert_array_equal(kernel.axes[3], ids.outputs["b"])
    np.testing.assert_array_equal(ids.weights["b", "bias"].axes[0], ids.outputs["b"])


def test_an_addition_makes_channels_one_and_a_chain_of_additions_all():
    inputs = keras.Input((4,))
    parts = [layers.Dense(3, name=name)(inputs) for name in "abc"]
    model = keras.Model(inputs, layers.Dense(1)(layers.Add()([layers.Add()(parts[:2]), parts[2]])))
    ids = ChannelIds(model)
    roots = ids.roots()
    np.testing.assert_array_equal(roots[ids.outputs["a"]], roots[ids.outputs["b"]])
    np.testing.assert_array_equal(roots[ids.outputs["a"]], roots[ids.outputs["c"]])
    assert len(set(roots[ids.outputs["a"]].tolist())) == 3


def test_flatten_repeats_each_id_once_for_each_pixel():
    ids = ChannelIds(chain(layers.Conv2D(2, 1, name="a"), layers.Flatten(), layers.Dense(1, name="head")))
    np.testing.assert_array_equal(ids.weights["head", "kernel"].axes[0], np.tile(ids.outputs["a"], 16))


def test_a_channel_shuffle_moves_the_ids():
    shuffle = [layers.Reshape((4, 4, 2, 3)), layers.Permute((1, 2, 4, 3)), layers.Reshape((4, 4, 6))]
    ids = ChannelIds(chain(layers.Conv2D(6, 1, name="a"), *shuffle, layers.Conv2D(1, 1, name="b")))
    a = ids.outputs["a"]
    np.testing.assert_array_equal(ids.weights["b", "kernel"].axes[2], a[[0, 3, 1, 4, 2, 5]])
    roots = ids.roots()
    np.testing.assert_array_equal(roots[a[:3]], roots[a[3:]])


def test_a_shared_layer_creates_its_channels_once_and_its_macs_add_up():
    left, right = keras.Input((4, 4, 3)), keras.Input((2, 2, 3))
    tower = layers.Conv2D(5, 1, name="tower")
    model = keras.Model([left, right], [tower(left), tower(right)])
    ids = ChannelIds(model)
    assert len(ids.outputs["tower"]) == 5
    assert ids.weights["tower", "kernel"].positions == 16 + 4


def test_inputs_and_outputs_are_frozen_with_their_reason():
    ids = ChannelIds(chain(layers.Conv2D(5, 1, name="a"), layers.Conv2D(7, 1, name="b")))
    frozen = ids.frozen()
    assert {frozen[channel] for channel in ids.outputs["image"]} == {"model input 'image'"}
    assert {frozen[channel] for channel in ids.outputs["b"]} == {"model output 'b'"}
    assert not set(ids.outputs["a"].tolist()) & set(frozen)


def test_a_reason_reaches_all_channels_that_were_made_one():
    inputs = keras.Input((4,))
    a, b = layers.Dense(3, name="a")(inputs), layers.Dense(3, name="b")(inputs)
    ids = ChannelIds(keras.Model(inputs, [a, layers.Dense(1)(layers.Add()([a, b]))]))
    roots = ids.roots()
    assert {ids.frozen()[root] for root in roots[ids.outputs["b"]]} == {"model output 'a'"}


def test_an_operation_without_a_rule_is_frozen_on_both_sides_and_named():
    ids = ChannelIds(chain(layers.Conv2D(4, 1, name="a"), layers.AlphaDropout(0.1, name="ln"), layers.Conv2D(2, 1)))
    frozen = ids.frozen()
    for name in ("a", "ln:0"):
        assert {frozen[channel] for channel in ids.outputs[name]} == {"AlphaDropout 'ln' has no channel rule"}


def test_a_bare_operation_without_a_rule_is_frozen():
    inputs = keras.Input((4,))
    x = layers.Dense(3, name="a")(inputs)
    ids = ChannelIds(keras.Model(inputs, layers.Dense(1)(keras.ops.cumsum(x, axis=-1))))
    assert all("has no channel rule" in ids.frozen()[channel] for channel in ids.outputs["a"])


def test_an_operation_without_a_rule_may_be_shared_by_tensors_of_different_widths():
    noise = layers.AlphaDropout(0.1, name="noise")
    ids = ChannelIds(chain(layers.Conv2D(5, 1), noise, layers.Conv2D(7, 1), noise, layers.Conv2D(2, 1)))
    assert len(ids.outputs["noise:0"]) == 5
    assert len(ids.outputs["noise:0:7"]) == 7


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_weight_axis_has_an_id_for_each_of_its_entries(name):
    model = ARCHITECTURES[name]()
    ids = ChannelIds(model)
    assert {name for name, _ in ids.weights} == {layer.name for layer in model.layers if layer.weights}
    for weight in ids.weights.values():
        assert weight.axes
        for axis, array in weight.axes.items():
            assert array.shape == (weight.shape[axis],)


def test_nothing_of_the_model_is_changed():
    model = ARCHITECTURES["residual"]()
    config, weights = model.get_config(), model.get_weights()
    ChannelIds(model)
    assert model.get_config() == config
    for before, after in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)


def test_channels_lie_along_the_asked_axis_or_none_do():
    ids = ChannelIds(chain(layers.Conv2D(4, 1, name="a"), layers.Conv2D(1, 1)))
    one, two, three, four = ids.outputs["a"]
    assert ids.channels(np.broadcast_to([one, two], (3, 2))).tolist() == [one, two]
    assert ids.channels(np.full((2, 3), one)).tolist() == [one] * 3
    assert ids.channels(np.broadcast_to([[one], [two]], (2, 3))) is None
    assert ids.channels(np.broadcast_to([[one], [two]], (2, 3)), axis=0).tolist() == [one, two]
    assert len(set(ids.roots()[[one, two, three, four]])) == 4
    ids.channels(np.array([[one, two], [three, four]]))
    assert ids.roots()[[one, two]].tolist() == ids.roots()[[three, four]].tolist()


class Scaled(layers.Layer):
    """A layer of the users': one factor for each channel."""

    def build(self, shape):
        self.factor = self.add_weight(shape=shape[-1:], name="factor")

    def call(self, inputs):
        return inputs * self.factor


def test_a_layer_of_the_users_freezes_what_it_touches_until_it_is_registered():
    model = chain(layers.Conv2D(4, 1, name="a"), Scaled(name="own"), layers.Conv2D(5, 1, name="b"), layers.Conv2D(1, 1))
    ids = ChannelIds(model)
    assert {ids.frozen()[channel] for channel in ids.outputs["a"]} == {"Scaled 'own' has no channel rule"}
    assert not set(ids.outputs["b"].tolist()) & set(ids.frozen())

    @register_channels(Scaled)
    def scaled(ids, call):
        ids.follow(call, "factor", {0: ids.channels(call.inputs[0])})
        return call.inputs

    try:
        known = ChannelIds(model)
    finally:
        del RULES[Scaled]
    assert not set(known.outputs["a"].tolist()) & set(known.frozen())
    np.testing.assert_array_equal(known.weights["own", "factor"].axes[0], known.outputs["a"])


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__(name="own")
        self.dense = layers.Dense(2)

    def call(self, inputs):
        return self.dense(inputs)


def test_models_whose_graph_cannot_be_read_are_refused():
    model = Subclassed()
    model(np.zeros((1, 3)))
    with pytest.raises(ModelError, match=r"'own' \(Subclassed\) is subclassed"):
        ChannelIds(model)
    with pytest.raises(ModelError, match="has no input shape"):
        ChannelIds(keras.Sequential([layers.Dense(2)]))
