import keras
import numpy as np
import pytest

from mobileprune.channel_calls import CONSTANT, compact
from mobileprune.channel_groups import ChannelGraph
from mobileprune.channel_ids import ChannelIds
from mobileprune.channel_ops import moved
from mobileprune.errors import ModelError
from mobileprune.plan import plan_channels

layers, ops = keras.layers, keras.ops


def read(op):
    """The ids behind `op` on a convolution's map, as numbers of the convolution's channels, and the model's ids."""
    inputs = keras.Input((6, 6, 3))
    made = layers.Conv2D(8, 1, name="a")(inputs)
    found = op(made)
    ids = ChannelIds(keras.Model(inputs, layers.Activation("relu", name="reader")(found)))
    (array,) = ids.calls["reader"].inputs
    return number(array, ids), ids


def number(array, ids, name="a"):
    """Ids as places among the layer's channels, -1 for constants and -2 for what the layer did not create."""
    small = compact(array)
    place = {int(channel): index for index, channel in enumerate(ids.outputs[name])} | {CONSTANT: -1}
    return np.vectorize(lambda channel: place.get(int(channel), -2))(small)


def group(model, name="a"):
    return next(one for one in ChannelGraph(model).groups if name in one.layers)


def ending(inputs, x):
    """A model whose output is no channel of `x`."""
    return keras.Model(inputs, layers.Dense(2, name="head")(layers.Flatten()(x)))


def mapped(op, filters=8):
    inputs = keras.Input((6, 6, 3))
    return ending(inputs, op(layers.Conv2D(filters, 1, name="a")(inputs)))


def tied(model, name="a"):
    """Sets of the layer's channels that live or die together, each as a sorted list."""
    ids = ChannelIds(model)
    roots = ids.roots()[ids.outputs[name]]
    return sorted(sorted(np.flatnonzero(roots == root).tolist()) for root in set(roots.tolist()))


def test_number_tells_channels_constants_and_strangers_apart():
    _, ids = read(lambda x: x)
    a = ids.outputs["a"]
    assert number(np.array([a[2], CONSTANT, a[-1] + 1, a[0]]), ids).tolist() == [2, -1, -2, 0]


@pytest.mark.parametrize(
    "op",
    [
        *(layers.MaxPooling2D(), layers.AveragePooling2D(3), layers.UpSampling2D(), layers.Resizing(3, 4)),
        *(layers.GlobalAveragePooling2D(), layers.GlobalMaxPooling2D(keepdims=True)),
        *(layers.ZeroPadding2D(), layers.Cropping2D(), lambda x: ops.max_pool(x, 2), lambda x: ops.average_pool(x, 2)),
        *(lambda x: ops.image.resize(x, (4, 4)), lambda x: ops.image.pad_images(x, 1, 1, 1, 1)),
        lambda x: ops.image.crop_images(x, 1, 1, 1, 1),
    ],
)
def test_windows_over_space_pass_channels(op):
    found, ids = read(op)
    assert found.ravel().tolist() == list(range(8))
    assert len(set(ids.roots()[ids.outputs["a"]].tolist())) == 8


@pytest.mark.parametrize(
    "op",
    [
        layers.AveragePooling2D(2, data_format="channels_first"),
        lambda x: ops.max_pool(ops.transpose(x, (0, 3, 1, 2)), 2),
    ],
)
def test_windows_that_move_over_channels_are_refused(op):
    assert "moves over the axis of the channels" in group(mapped(op)).frozen


@pytest.mark.parametrize("merge", [layers.Add, layers.Subtract, layers.Multiply, layers.Average, layers.Maximum])
def test_channels_that_a_merge_layer_joins_are_one(merge):
    inputs = keras.Input((4, 4, 3))
    a, b = (layers.Conv2D(5, 1, name=name)(inputs) for name in "ab")
    ids = ChannelIds(ending(inputs, merge()([a, b])))
    roots = ids.roots()
    np.testing.assert_array_equal(roots[ids.outputs["a"]], roots[ids.outputs["b"]])
    assert len(set(roots[ids.outputs["a"]].tolist())) == 5


def test_a_gate_over_space_and_one_over_channels():
    inputs = keras.Input((4, 4, 3))
    x, space = layers.Conv2D(6, 1, name="a")(inputs), layers.Conv2D(1, 1, name="space")(inputs)
    channel = layers.Dense(6, name="channel")(layers.GlobalAveragePooling2D(keepdims=True)(inputs))
    model = ending(inputs, ops.multiply(ops.multiply(x, space), channel))
    assert group(model).layers == ("a", "channel")
    assert group(model).frozen is None
    assert "spreads it over all channels" in group(model, "space").frozen


def test_two_tensors_that_each_lack_an_axis_of_the_other_are_spread_and_stay():
    inputs = keras.Input((5,))
    row, column = layers.Dense(4, name="row")(inputs), layers.Dense(6, name="column")(inputs)
    model = ending(inputs, ops.multiply(ops.expand_dims(row, 1), ops.expand_dims(column, 2)))
    for name in ("row", "column"):
        assert "spreads it over all channels" in group(model, name).frozen


def test_a_tensor_of_lower_rank_meets_the_last_axes():
    image, vector = keras.Input((4, 4, 3)), keras.Input((1, 3))
    x, y = layers.Conv2D(6, 1, name="a")(image), layers.Dense(6, name="b")(vector)
    model = keras.Model([image, vector], layers.GlobalMaxPooling2D()(layers.Conv2D(2, 1)(ops.add(x, y[0]))))
    assert set(group(model).layers) == {"a", "b"}


@pytest.mark.parametrize("constant", [2.0, np.ones(8, "float32"), np.ones((6, 6, 1), "float32")])
def test_constants_leave_channels_as_they_are(constant):
    found, ids = read(lambda x: ops.maximum(ops.multiply(x, constant), 0.0))
    assert found.ravel().tolist() == list(range(8))
    assert len(set(ids.roots()[ids.outputs["a"]].tolist())) == 8


@pytest.mark.parametrize("keepdims", [False, True])
def test_a_reduction_over_space_keeps_channels(keepdims):
    found, ids = read(lambda x: ops.max(ops.mean(x, axis=1, keepdims=True), axis=[1, -2], keepdims=keepdims))
    assert found.ravel().tolist() == list(range(8))
    assert ids.calls["reader"].inputs[0].shape == ((1, 1, 1, 8) if keepdims else (1, 8))
    assert ids.mixed() == {}


@pytest.mark.parametrize(
    "op",
    [
        *(
            lambda x: ops.mean(x, axis=-1),
            lambda x: ops.sum(x, axis=(1, 3), keepdims=True),
            lambda x: ops.var(x, keepdims=True),
        ),
        *(lambda x: ops.softmax(x, axis=-1), lambda x: ops.log_softmax(x, axis=(1, 3)), lambda x: ops.normalize(x)),
    ],
)
def test_what_reduces_over_channels_is_inexact(op):
    _, ids = read(op)
    mixed = ids.mixed()
    assert all("reads all channels at once" in mixed[channel] for channel in ids.outputs["a"])


def test_a_reduction_to_one_number_is_inexact():
    inputs = keras.Input((4, 4, 3))
    x = layers.Conv2D(8, 1, name="a")(inputs)
    model = ending(inputs, ops.divide(x, ops.max(x)))
    assert "reads all channels at once" in group(model).inexact
    assert group(model).frozen is None


def test_what_a_reduction_over_channels_gives_is_no_channel():
    found, _ = read(lambda x: ops.sum(x, axis=-1, keepdims=True))
    assert found.ravel().tolist() == [-1]


def test_a_softmax_over_space_is_exact():
    found, ids = read(lambda x: ops.softmax(ops.softmax(x, axis=1), axis=(1, -2)))
    assert ids.mixed() == {}
    assert found.ravel().tolist() == list(range(8))


@pytest.mark.parametrize("mode", ["constant", "reflect", "symmetric"])
def test_padding_around_space_passes_channels(mode):
    found, _ = read(lambda x: ops.pad(x, ((0, 0), (1, 1), (2, 0), (0, 0)), mode=mode))
    assert found.ravel().tolist() == list(range(8))


def test_padding_beside_channels_adds_what_is_no_channel():
    found, _ = read(lambda x: ops.pad(x, ((0, 0), (0, 0), (0, 0), (1, 2))))
    assert found.ravel().tolist() == [-1, *range(8), -1, -1]
    model = mapped(lambda x: ops.pad(x, ((0, 0), (0, 0), (0, 0), (1, 1)), mode="reflect"))
    assert "pads with copies of other channels" in group(model).frozen


def test_padded_channels_that_an_addition_joins_to_others_freeze_those():
    inputs = keras.Input((4, 4, 3))
    narrow, wide = layers.Conv2D(4, 1, name="a")(inputs), layers.Conv2D(8, 1, name="b")(inputs)
    model = ending(inputs, ops.add(ops.pad(narrow, ((0, 0), (0, 0), (0, 0), (2, 2))), wide))
    found = [one for one in ChannelGraph(model).groups if "b" in one.layers]
    assert {(one.size, one.frozen) for one in found} == {
        (4, None),
        (4, "joined with zeros or other values that are no channel"),
    }


@pytest.mark.parametrize(
    ("op", "expected"),
    [
        (lambda x: ops.flip(x, axis=-1), list(range(8))[::-1]),
        (lambda x: layers.Concatenate()([x, x]), [*range(8), *range(8)]),
        (lambda x: ops.tile(x, (1, 1, 1, 2)), [*range(8), *range(8)]),
        (lambda x: ops.repeat(x, 2, axis=-1), np.repeat(range(8), 2).tolist()),
        (lambda x: ops.roll(x, 3, axis=-1), [5, 6, 7, 0, 1, 2, 3, 4]),
        (lambda x: x[..., 6:1:-2], [6, 4, 2]),
        (lambda x: x[:, None, 0, ..., 3], [3]),
        (lambda x: ops.take(x, [5, 5, 0], axis=-1), [5, 5, 0]),
        (lambda x: ops.split(x, [2, 5], axis=-1)[1], [2, 3, 4]),
        (lambda x: ops.slice(x[0], (0, 0, 4), (6, 6, 3)), [4, 5, 6]),
        (lambda x: ops.unstack(x, axis=1)[2], list(range(8))),
        (lambda x: ops.broadcast_to(ops.mean(x, (0, 1, 2)), (4, 3, 8)), list(range(8))),
        (lambda x: layers.RepeatVector(3)(layers.GlobalMaxPooling2D()(x)), list(range(8))),
    ],
)
def test_moves_and_selections_are_run_on_the_ids(op, expected):
    found, _ = read(op)
    assert found.ravel().tolist() == expected


def test_flatten_and_transpose_move_channels_with_their_axis():
    assert read(layers.Permute((3, 1, 2)))[0].shape == (1, 8, 1, 1)
    assert read(layers.Flatten())[0].ravel().tolist() == list(range(8)) * 36


def test_constants_that_a_move_joins_to_channels_freeze_them():
    model = mapped(lambda x: ops.concatenate([x, np.ones((1, 6, 6, 2), "float32")], axis=-1))
    assert "joins constants to channels" in group(model).frozen


def test_a_selection_needs_one_survivor_of_what_it_selects():
    model = mapped(lambda x: layers.Concatenate()([layers.Conv2D(4, 1)(x[..., :2]), x]))
    ids = ChannelIds(model)
    ((reader, needed),) = ids.needed
    assert reader.startswith("get_item")
    assert needed.tolist() == ids.outputs["a"][:2].tolist()
    plan = plan_channels(model, channels={"a": 4}, importance=lambda graph, group, values: np.arange(group.size))
    removed = next(entry.remove for entry in plan.groups if entry.group == "a")
    assert len(removed) == 4
    assert not {0, 1} <= set(removed)


def test_selections_that_keep_all_channels_need_nothing():
    assert ChannelIds(mapped(lambda x: ops.roll(x[:, 1:], 1, axis=-1))).needed == []


def test_computed_indices_are_refused():
    inputs, index = keras.Input((4, 4, 3)), keras.Input((5,), dtype="int32", batch_size=1)
    x = ops.take(layers.Conv2D(6, 1, name="a")(inputs), index[0], axis=-1)
    model = keras.Model([inputs, index], layers.Conv2D(2, 1)(x))
    assert "selects by computed indices" in group(model).frozen


@pytest.mark.parametrize("op", [lambda x: ops.roll(x, 3), lambda x: ops.take(x, np.arange(5))], ids=["roll", "take"])
def test_selections_from_all_axes_at_once_are_refused(op):
    inputs = keras.Input((6, 6, 3), batch_size=1)
    found = ops.reshape(op(layers.Conv2D(8, 1, name="a")(inputs)), (1, -1))
    assert "selects from all axes" in group(keras.Model(inputs, layers.Dense(2)(found))).frozen


def test_unstacked_channels_are_one_because_each_becomes_a_tensor():
    assert tied(mapped(lambda x: ops.stack(ops.unstack(x, axis=-1), axis=-1))) == [list(range(8))]
    assert len(tied(mapped(lambda x: ops.stack(ops.unstack(x, axis=1), axis=1)))) == 8


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((6, 6, 2, 4), [[0, 4], [1, 5], [2, 6], [3, 7]]),
        ((6, 6, 4, 2), [[0, 1], [2, 3], [4, 5], [6, 7]]),
        ((6, 6, 8, 1), [[unit] for unit in range(8)]),
        ((36, 8), [[unit] for unit in range(8)]),
        ((6, 48), [[unit] for unit in range(8)]),
        ((288,), [[unit] for unit in range(8)]),
        ((6, 6, 2, 2, 2), [[0, 2, 4, 6], [1, 3, 5, 7]]),
    ],
)
def test_a_reshape_ties_channels_to_whole_slices_of_the_widest_axis(shape, expected):
    assert tied(mapped(layers.Reshape(shape))) == expected
    assert tied(mapped(lambda x: ops.reshape(x, (-1, *shape)))) == expected


def test_a_shared_reshape_ties_what_it_is_called_on():
    inputs, reshape = keras.Input((5,)), layers.Reshape((2, 4))
    a, b = (reshape(layers.Dense(8, name=name)(inputs)) for name in "ab")
    model = ending(inputs, layers.Concatenate()([layers.Dense(2)(a), layers.Dense(2)(b)]))
    assert set(group(model).layers) == {"a", "b"}
    assert group(model).size == 4


def test_a_call_that_does_not_give_the_shape_its_model_says_is_reported():
    class Liar(keras.layers.Layer):
        def call(self, inputs):
            return inputs[..., :2]

        def compute_output_spec(self, inputs):
            return keras.KerasTensor((None, 5), inputs.dtype)

    inputs = keras.Input((4,))
    ids = ChannelIds(keras.Model(inputs, Liar(name="liar")(inputs)))
    with pytest.raises(ModelError, match=r"'liar' gives shape \(1, 2\) where its model says \(None, 5\)"):
        moved(ids.calls["liar"], lambda array: ops.convert_to_tensor(array))


@pytest.mark.parametrize(
    "crop", [lambda x: x[:, 1:, 1:, :], lambda x: keras.ops.reshape(x, (-1, 4, 4, 8))], ids=["slice", "reshape"]
)
def test_what_needs_sizes_that_the_model_leaves_open_is_refused(crop):
    inputs = keras.Input((None, None, 3))
    x = crop(layers.Conv2D(8, 1, name="a")(inputs))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(6, 1, name="b")(x))
    model = keras.Model(inputs, layers.Dense(2)(x))
    reasons = {group.name: group.frozen for group in ChannelGraph(model).groups}
    assert "needs sizes that the model leaves open" in reasons["a"]
    assert reasons["b"] is None


@pytest.mark.parametrize(
    "joined",
    [
        lambda x, y: layers.Concatenate(name="move")([x, y]),
        lambda x, y: layers.Concatenate(axis=1, name="move")([x, y]),
        lambda x, y: layers.Concatenate(name="move")([layers.Reshape((2, 4, 4))(x), layers.Reshape((2, 4, 4))(y)]),
        lambda x, y: layers.Reshape((-1, 2, 4), name="move")(x),
    ],
    ids=["channels", "rows", "mixed", "reshape"],
)
def test_what_numpy_moves_lies_where_keras_moves_it(joined):
    x, y = inputs = [keras.Input((2, 2, 8)), keras.Input((2, 2, 8))]
    model = keras.Model(inputs, joined(layers.Conv2D(8, 1)(x), layers.Conv2D(8, 1)(y)))
    call = ChannelIds(model).calls["move"]
    (expected,) = moved(call, lambda array: keras.ops.convert_to_tensor(np.array(array)))
    np.testing.assert_array_equal(call.outputs[0], expected)
