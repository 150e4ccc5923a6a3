import keras
import numpy as np
import pytest
from architectures import randomise
from laws.removal import check_law

from mobileprune.channel_groups import ChannelGraph, channel_groups
from mobileprune.channel_ids import ChannelIds
from mobileprune.errors import PlanError
from mobileprune.plan import plan_channels
from mobileprune.prune import prune_channels

layers = keras.layers


def chain(*parts, shape=(6, 6, 4)):
    inputs = keras.Input(shape)
    x = inputs
    for part in parts:
        x = part(x)
    return keras.Model(inputs, layers.Dense(2, name="head")(layers.Flatten()(x)))


def group_of(model, name):
    return next(group for group in channel_groups(model) if name in group.layers)


def reason(model, name):
    return group_of(model, name).frozen


ACTIVATIONS = sorted(set(dir(keras.activations)) - {"get", "serialize", "deserialize"} - {"glu", "threshold"})
ACTIVATIONS = [name for name in ACTIVATIONS if not name.startswith("_")]


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_is_inexact_exactly_when_it_mixes_channels(name):
    values = np.random.default_rng(0).normal(size=(5, 6)).astype("float32")
    function = keras.activations.get(name)
    whole, part = np.asarray(function(values))[:, :4], np.asarray(function(values[:, :4]))
    mixes = not np.allclose(whole, part, atol=1e-6)
    assert mixes == (name in ("softmax", "log_softmax", "sparsemax"))
    for model in (
        chain(layers.Conv2D(8, 1, activation=name, name="a")),
        chain(layers.Conv2D(8, 1, name="a"), layers.Activation(name)),
    ):
        assert (group_of(model, "a").inexact is not None) == mixes
        assert reason(model, "a") is None


def normalised(x):
    return x / (1.0 + keras.ops.sum(keras.ops.abs(x), axis=-1, keepdims=True))


def relu(x):
    return normalised(x)


@pytest.mark.parametrize("function", [normalised, relu], ids=["own name", "a known name"])
def test_a_function_of_the_users_may_mix_channels_and_is_frozen(function):
    model = chain(layers.Conv2D(8, 1, activation=function, name="a"), layers.Conv2D(8, 1, name="b"))
    assert "may read all channels at once" in reason(model, "a")
    assert reason(model, "b") is None
    assert "may read all channels" in reason(chain(layers.Dense(8, name="a"), layers.Activation(function)), "a")


def test_activation_layers_as_activations():
    assert reason(chain(layers.Conv2D(8, 1, activation=layers.ReLU(6.0), name="a")), "a") is None
    assert "'PReLU'" in reason(chain(layers.Conv2D(8, 1, activation=layers.PReLU(), name="a")), "a")


def test_tensorflow_functions_as_activations_act_on_each_value_alone():
    import tensorflow as tf

    assert reason(chain(layers.Conv2D(8, 1, activation=tf.nn.relu6, name="a")), "a") is None
    assert "softmax" in reason(chain(layers.Conv2D(8, 1, activation=tf.nn.softmax, name="a")), "a")


@pytest.mark.parametrize(
    ("layer", "says"),
    [
        (layers.Normalization(name="norm", mean=[0.0] * 8, variance=[1.0] * 8), "constant for each channel"),
        (layers.Rescaling([1.0] * 8, name="scale"), "constant for each channel"),
        (layers.AlphaDropout(0.1, name="alpha"), "AlphaDropout 'alpha' has no channel rule"),
        (layers.Dropout(0.1, noise_shape=(None, 1, 1, 8), name="drop"), "has a noise_shape of fixed size"),
        (layers.Conv2D(2, 1, data_format="channels_first", name="first"), "cannot be followed"),
        (layers.MaxPooling2D(data_format="channels_first", name="pool"), "over the axis of the channels"),
    ],
    ids=lambda value: value.name if isinstance(value, keras.Layer) else "",
)
def test_what_is_unknown_or_holds_constants_freezes_channels(layer, says):
    assert says in reason(chain(layers.Conv2D(8, 1, name="a"), layer), "a")


@pytest.mark.parametrize(
    ("layer", "says"),
    [
        (layers.Softmax(name="soft"), "softmax of 'soft' reads all channels"),
        (layers.LayerNormalization(name="ln"), "LayerNormalization 'ln' reads all channels"),
        (layers.RMSNormalization(name="rms"), "RMSNormalization 'rms' reads all channels"),
        (layers.UnitNormalization(name="unit"), "UnitNormalization 'unit' reads all channels"),
        (layers.GroupNormalization(4, name="gn"), "GroupNormalization 'gn' reads several channels"),
        (layers.BatchNormalization(axis=1, name="bn"), None),
        (layers.LayerNormalization(axis=(1, 2), name="space"), None),
        (layers.GroupNormalization(-1, name="instance"), None),
        (layers.PReLU(name="prelu"), None),
        (layers.PReLU(shared_axes=[1, 2], name="prelu_by_channel"), None),
        (layers.PReLU(shared_axes=[1, 2, 3], name="prelu_shared"), None),
    ],
    ids=lambda value: value.name if isinstance(value, keras.Layer) else "",
)
def test_what_reads_all_channels_is_inexact_and_all_of_it_shrinks(layer, says):
    model = randomise(chain(layers.Conv2D(8, 1, name="a"), layer))
    group = group_of(model, "a")
    assert group.frozen is None
    assert (group.inexact is None) if says is None else (says in group.inexact)
    smaller = prune_channels(model, plan_channels(model, ratio=0.5, round_to=1))
    assert smaller.get_layer("a").filters == 4
    assert smaller.predict(np.ones((2, 6, 6, 4)), verbose=0).shape == (2, 2)


@pytest.mark.parametrize(
    "layer",
    [
        *(layers.ReLU(6.0), layers.LeakyReLU(), layers.ELU(), layers.Dropout(0.5), layers.SpatialDropout2D(0.5)),
        *(layers.GaussianNoise(0.1), layers.GaussianDropout(0.1), layers.Rescaling(0.5, 1.0), layers.Identity()),
        *(layers.MaxPooling2D(), layers.AveragePooling2D(2), layers.GlobalAveragePooling2D(keepdims=True)),
        *(layers.ZeroPadding2D(), layers.Cropping2D(), layers.UpSampling2D(), layers.BatchNormalization()),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_what_keeps_channels_apart_freezes_nothing(layer):
    model = randomise(chain(layers.Conv2D(8, 1, name="a"), layer))
    assert reason(model, "a") is None
    smaller = prune_channels(model, plan_channels(model, ratio=0.5, round_to=1))
    assert smaller.get_layer("a").filters == 4


def test_grouped_convolutions_tie_equal_positions_of_their_groups():
    model = chain(layers.Conv2D(8, 1, name="a"), layers.Conv2D(12, 3, groups=2, name="grouped"))
    ids = ChannelIds(model)
    roots = ids.roots()
    for name, half in (("a", 4), ("grouped", 6)):
        created = roots[ids.outputs[name]]
        np.testing.assert_array_equal(created[:half], created[half:])
        assert len(set(created.tolist())) == half


def test_a_depthwise_convolution_passes_channels_on_and_multiplies_them():
    model = chain(
        layers.Conv2D(3, 1, name="a"), layers.DepthwiseConv2D(1, depth_multiplier=2), layers.Conv2D(2, 1, name="b")
    )
    ids = ChannelIds(model)
    np.testing.assert_array_equal(ids.weights["b", "kernel"].axes[2], np.repeat(ids.outputs["a"], 2))


def test_a_transposed_convolution_reads_along_its_last_axis():
    ids = ChannelIds(chain(layers.Conv2D(3, 1, name="a"), layers.Conv2DTranspose(5, 2, name="up")))
    kernel = ids.weights["up", "kernel"]
    np.testing.assert_array_equal(kernel.axes[3], ids.outputs["a"])
    np.testing.assert_array_equal(kernel.axes[2], ids.outputs["up"])


def test_a_gate_with_one_channel_scales_all_channels_and_stays():
    inputs = keras.Input((4, 4, 3))
    x, gate = layers.Conv2D(8, 1, name="x")(inputs), layers.Conv2D(1, 1, activation="sigmoid", name="gate")(inputs)
    model = keras.Model(inputs, layers.Conv2D(2, 1)(layers.Multiply()([x, gate])))
    assert (group_of(model, "x").size, reason(model, "x")) == (8, None)
    assert "spreads it over all channels" in reason(model, "gate")


def test_an_addition_with_the_input_keeps_its_channels():
    inputs = keras.Input((4, 4, 8), name="image")
    model = keras.Model(inputs, layers.Conv2D(2, 1)(layers.Add()([inputs, layers.Conv2D(8, 1, name="a")(inputs)])))
    assert reason(model, "a") == "model input 'image'"


def stacked(between=()):
    """A convolution over two maps one above the other: channel k of both is channel k of what it reads."""
    inputs = keras.Input((4, 4, 3))
    shared = layers.Conv2D(16, 1, name="shared")
    first = [layers.Conv2D(16, 1, name=name)(inputs) for name in ("a", "b", "alone")]
    calls = [lambda: shared(layers.Concatenate(axis=1)(first[:2])), lambda: shared(first[2])]
    found = [calls[index]() for index in between]
    pooled = [layers.GlobalAveragePooling2D()(x) for x in found]
    head = layers.Dense(2)(layers.Concatenate()(pooled) if len(pooled) > 1 else pooled[0])
    return keras.Model(inputs, head)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_maps_one_above_the_other_lose_the_same_channels_in_all_calls_of_a_shared_layer(order):
    model = stacked(order)
    assert set(group_of(model, "a").layers) == {"a", "b", "alone"}
    smaller = prune_channels(model, plan_channels(model, ratio=0.5))
    assert [smaller.get_layer(name).filters for name in ("a", "b", "alone", "shared")] == [8, 8, 8, 8]


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_shared_layer_stays_whole_in_all_calls_when_one_cannot_be_followed(order):
    inputs = keras.Input((4, 16, 16))
    shared = layers.Conv2D(16, 1, name="shared")
    a, alone = (layers.Conv2D(16, 1, name=name)(inputs) for name in ("a", "alone"))
    found = [[lambda: shared(layers.Permute((1, 3, 2))(a)), lambda: shared(alone)][index]() for index in order]
    model = randomise(keras.Model(inputs, layers.Dense(2)(layers.GlobalAveragePooling2D()(layers.Add()(found)))))
    for name in ("a", "alone", "shared"):
        assert reason(model, name) == "Conv2D 'shared' is used in a way that cannot be followed"
    smaller = prune_channels(model, plan_channels(model, ratio=0.5))
    image = np.random.default_rng(0).normal(size=(2, 4, 16, 16)).astype("float32")
    np.testing.assert_array_equal(smaller(image), model(image))


@pytest.mark.parametrize(
    ("layer", "macs"),
    [
        (lambda: layers.Conv2D(8, 3, padding="same"), 4 * 5 * 9 * 3 * 8),
        (lambda: layers.Conv2DTranspose(8, 3, strides=2, padding="same"), 4 * 5 * 9 * 3 * 8),
        (lambda: layers.DepthwiseConv2D(3, padding="same", depth_multiplier=2), 4 * 5 * 9 * 3 * 2),
        (lambda: layers.SeparableConv2D(8, 3, padding="same"), 4 * 5 * (9 * 3 + 3 * 8)),
    ],
    ids=["conv", "transposed", "depthwise", "separable"],
)
def test_macs_do_not_depend_on_the_data_format(layer, macs):
    for data_format, shape in (("channels_last", (4, 5, 3)), ("channels_first", (3, 4, 5))):
        inputs = keras.Input(shape)
        made = layer()
        made = type(made).from_config({**made.get_config(), "data_format": data_format})
        graph = ChannelGraph(keras.Model(inputs, made(inputs)))
        assert graph.cost(graph.everything()).macs == macs


def test_a_shared_reshape_loses_the_same_channels_in_all_calls():
    inputs = keras.Input((4, 4, 3))
    reshape = layers.Reshape((1, 1, 16))
    maps = [layers.Conv2D(16, 1, name=name)(inputs) for name in ("a", "b")]
    vectors = [reshape(layers.GlobalAveragePooling2D()(x)) for x in maps]
    model = keras.Model(inputs, layers.Concatenate()([layers.Conv2D(3, 1)(x) for x in vectors]))
    (group,) = [group for group in channel_groups(model) if "a" in group.layers]
    assert set(group.layers) == {"a", "b"}
    assert prune_channels(model, plan_channels(model, ratio=0.5)).get_layer("b").filters == 8


def test_a_reshape_that_spreads_channels_over_axes_ties_whole_slices():
    model = chain(layers.Conv2D(8, 1, name="a"), layers.Reshape((36, 2, 4)), layers.Dense(3, name="mix"))
    (group,) = [group for group in channel_groups(model) if "a" in group.layers]
    assert group.size == 4


def masked_softmax(x, mask):
    return layers.Softmax(name="reader")(x, mask=keras.ops.greater(mask, 0))


def masked_attention(x, mask):
    tokens, wide = layers.Reshape((1, 8))(x), layers.Reshape((1, 8))(mask)
    mixed = layers.MultiHeadAttention(2, 4, name="reader")(tokens, tokens, attention_mask=wide[..., :1] > 0)
    return layers.Flatten()(mixed)


@pytest.mark.parametrize("read", [masked_softmax, masked_attention])
def test_a_mask_that_is_computed_keeps_its_channels(read):
    inputs = keras.Input((5,))
    x, mask = layers.Dense(8, name="x")(inputs), layers.Dense(8, name="mask")(inputs)
    model = keras.Model(inputs, layers.Dense(3)(read(x, mask)))
    smaller = prune_channels(model, plan_channels(model, ratio=0.5, round_to=1))
    assert smaller(np.ones((2, 5), "float32")).shape == (2, 3)


def test_windows_that_are_folded_into_the_batch_count_all_their_positions():
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(8, 1)(inputs)
    graph = ChannelGraph(keras.Model(inputs, layers.Dense(6)(keras.ops.reshape(x, (-1, 8)))))
    assert graph.cost(graph.everything()).macs == 64 * 3 * 8 + 64 * 8 * 6


def _channels_first(filters, width, bias=True):
    first = {"data_format": "channels_first"}
    inputs = keras.Input((3, 5, width))
    x = layers.ReLU()(layers.Conv2D(filters, 1, use_bias=bias, name="conv", **first)(inputs))
    return keras.Model(inputs, layers.Dense(2)(layers.GlobalAveragePooling2D(**first)(x)))


def test_a_bias_that_keras_would_add_to_the_width_is_not_cut_into():
    """With as many channels, that come first, as the outputs are wide, Keras takes the width for them."""
    (group,) = (group for group in channel_groups(_channels_first(8, 8)) if group.name == "conv")
    assert "adds a bias of 'conv' along the wrong axis" in group.frozen
    model = _channels_first(8, 4)
    with pytest.raises(PlanError, match="leaves 'conv' as many channels as another axis of its outputs is long"):
        prune_channels(model, plan_channels(model, channels={"conv": 4}))
    for ratio, kept in ((0.25, 6), (0.5, 3), (0.75, 2)):
        smaller = prune_channels(model, plan_channels(model, ratio=ratio, round_to=1))
        assert smaller.get_layer("conv").filters == kept
        check_law(_channels_first(8, 4), ratio=ratio, round_to=1)
    # At the least number there is only one way to go, and where a budget forbids it none.
    plan = plan_channels(model, ratio=0.5, round_to=1, min_channels=4)
    assert prune_channels(model, plan).get_layer("conv").filters == 5
    with pytest.raises(PlanError, match=r"macs: .* were asked, and .* is what is left where no layer"):
        plan_channels(model, macs=0.5, round_to=1, min_channels=4)
    check_law(_channels_first(8, 4, bias=False), ratio=0.5, round_to=1)


def test_a_bias_that_is_misplaced_already_does_not_hide_another():
    """The first one stays as Keras computes it; the plan steps around the second."""
    first = {"data_format": "channels_first", "padding": "same"}
    inputs = keras.Input((3, 5, 8))
    x = layers.ReLU()(layers.Conv2D(8, 1, name="as_wide", **first)(inputs))
    x = layers.ReLU()(layers.Conv2D(16, 1, name="wider", **first)(x))
    model = keras.Model(inputs, layers.Dense(2)(layers.GlobalAveragePooling2D(data_format="channels_first")(x)))
    kept = {entry.group: entry.size - len(entry.remove) for entry in plan_channels(model, ratio=0.5, round_to=1).groups}
    assert (kept["as_wide"], kept["wider"]) == (8, 7)
    check_law(model, ratio=0.5, round_to=1)


def test_keras_still_mistakes_the_width_for_the_channels():
    """When this fails, Keras has mended it: `mobileprune.added_bias` and what calls it can go."""
    layer = layers.Conv2D(4, 1, data_format="channels_first", bias_initializer="uniform")
    found = np.asarray(layer(np.zeros((1, 3, 5, 4), "float32")))
    np.testing.assert_allclose(found, np.broadcast_to(layer.bias, found.shape))
    assert np.ptp(found, axis=-1).max() > 0
