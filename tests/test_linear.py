import math
from operator import attrgetter

import keras
import numpy as np
import pytest
from architectures import randomise

from mobileprune.channel_groups import ChannelGraph
from mobileprune.linear import linear_maps

layers, ops = keras.layers, keras.ops


def built(layer, *shapes, **arguments):
    """A layer with random weights, Keras' record of its call on fresh inputs, and inputs for it."""
    tensors = [keras.Input(shape) for shape in shapes]
    randomise(keras.Model(tensors, layer(*tensors, **arguments)))
    generator = np.random.default_rng(1)
    inputs = [ops.convert_to_tensor(generator.normal(size=(3, *shape)).astype("float32")) for shape in shapes]
    return layer, layer._inbound_nodes[-1], inputs


CONVOLUTIONS = {
    "1x1": (layers.Conv2D(6, 1), (5, 6, 4)),
    "3x3": (layers.Conv2D(6, 3), (5, 6, 4)),
    "same": (layers.Conv2D(6, 3, padding="same"), (5, 6, 4)),
    "oblong": (layers.Conv2D(6, (1, 3), padding="same"), (5, 6, 4)),
    "strides": (layers.Conv2D(6, 3, strides=2, padding="same"), (8, 7, 4)),
    "1x1 strides": (layers.Conv2D(6, 1, strides=(2, 3)), (8, 7, 4)),
    "1x1 strides same": (layers.Conv2D(6, 1, strides=2, padding="same"), (8, 7, 4)),
    "2x2 strides same": (layers.Conv2D(6, 2, strides=3, padding="same"), (8, 7, 4)),
    "dilation": (layers.Conv2D(6, 3, dilation_rate=2, padding="same"), (8, 7, 4)),
    "dilation valid": (layers.Conv2D(6, (3, 2), dilation_rate=(2, 3)), (8, 7, 4)),
    "no bias": (layers.Conv2D(6, 3, use_bias=False), (5, 6, 4)),
    "groups": (layers.Conv2D(6, 3, groups=2), (5, 6, 4)),
    "groups 1x1": (layers.Conv2D(9, 1, groups=3), (5, 6, 6)),
    "1d": (layers.Conv1D(6, 3), (9, 4)),
    "1d same strides": (layers.Conv1D(6, 4, strides=2, padding="same"), (9, 4)),
    "1d dilation groups": (layers.Conv1D(6, 3, dilation_rate=3, groups=2, padding="same"), (9, 4)),
    "1d of size one": (layers.Conv1D(6, 1, strides=2), (9, 4)),
    "separable": (layers.SeparableConv2D(6, 3, depth_multiplier=2, padding="same"), (6, 6, 4)),
    "separable strides": (layers.SeparableConv2D(6, 3, strides=2, use_bias=False), (7, 7, 4)),
    "separable dilation": (layers.SeparableConv2D(6, 3, dilation_rate=2), (7, 7, 4)),
    "separable 1d": (layers.SeparableConv1D(6, 3, strides=2, depth_multiplier=2), (9, 4)),
    "3d": (layers.Conv3D(6, (2, 3, 1)), (4, 5, 6, 4)),
    "3d groups strides": (layers.Conv3D(6, 3, strides=2, groups=2, padding="same"), (5, 6, 7, 4)),
    "3d of size one": (layers.Conv3D(6, 1, strides=(1, 2, 3)), (4, 5, 6, 4)),
    "channels first": (layers.Conv2D(6, 3, data_format="channels_first"), (4, 5, 6)),
    "separable channels first": (layers.SeparableConv2D(6, 3, data_format="channels_first"), (4, 5, 6)),
    "over time": (layers.TimeDistributed(layers.Conv2D(6, 3, padding="same")), (3, 5, 6, 4)),
    "dense over time": (layers.TimeDistributed(layers.Dense(6)), (3, 4)),
    "dense": (layers.Dense(5), (4,)),
    "dense of rank 3": (layers.Dense(5), (3, 4)),
    "dense of rank 4": (layers.Dense(5, use_bias=False), (2, 3, 4)),
}


def close(found, wanted):
    """Whether rows of (groups, outputs) are the layer's own outputs at all positions."""
    found, wanted = np.asarray(found), np.asarray(wanted)
    return found.size == wanted.size and np.allclose(found.reshape(wanted.shape), wanted, 1e-4, 1e-5)


def test_close_notices_an_error_and_a_missing_row():
    values = np.arange(12.0).reshape(2, 2, 3)
    assert close(values.reshape(4, 1, 3), values)
    assert not close(values.reshape(4, 1, 3) + 0.01, values)
    assert not close(values[:1].reshape(2, 1, 3), values)


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_map_gives_what_its_layer_gives(name):
    layer, shape = CONVOLUTIONS[name]
    layer, node, inputs = built(type(layer).from_config(layer.get_config()), shape)
    (map,) = linear_maps(layer, node)
    wanted = layer(*inputs)
    if getattr(layer, "data_format", "") == "channels_first":
        wanted = ops.moveaxis(wanted, 1, -1)
    assert close(map.apply(inputs), wanted)
    assert map.matrix().shape == (map.groups, map.rows(inputs).shape[-1], map.offset().shape[-1])


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_matrix_written_as_a_kernel_is_the_kernel(name):
    layer, shape = CONVOLUTIONS[name]
    layer, node, _ = built(layer, shape)
    (map,) = linear_maps(layer, node)
    kernel = np.asarray(attrgetter(map.kernel)(layer))
    np.testing.assert_array_equal(map.to_kernel(map.matrix()), kernel)
    assert not np.array_equal(map.to_kernel(map.matrix()[:, ::-1]), kernel)


def test_a_map_stops_before_the_activation():
    layer, node, inputs = built(layers.Conv2D(6, 3, activation="relu"), (5, 6, 4))
    (map,) = linear_maps(layer, node)
    assert close(ops.relu(map.apply(inputs)), layer(*inputs))
    assert float(ops.min(map.apply(inputs))) < -0.1


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (layers.Conv2DTranspose(5, 3, strides=3), (4, 4, 6)),
        (layers.Conv2DTranspose(5, (2, 1), strides=(2, 1)), (4, 4, 6)),
        (layers.Conv1DTranspose(5, 2, strides=2), (7, 6)),
    ],
    ids=["square", "oblong", "1d"],
)
def test_a_transposed_convolution_without_overlaps_is_its_map_rearranged(layer, shape):
    layer, node, inputs = built(layer, shape)
    (map,) = linear_maps(layer, node)
    assert map.bias is None
    rank, kernel = len(shape) - 1, layer.kernel_size
    found = np.asarray(map.apply(inputs)).reshape(3, *shape[:-1], *kernel, 5)
    order = [0, *(axis for pair in range(rank) for axis in (1 + pair, 1 + rank + pair)), 2 * rank + 1]
    whole = found.transpose(order).reshape(3, *(a * b for a, b in zip(shape, kernel, strict=False)), 5)
    np.testing.assert_allclose(whole + layer.bias, layer(*inputs), rtol=1e-4, atol=1e-5)


def attention(**config):
    return layers.MultiHeadAttention(**{"num_heads": 2, "key_dim": 3, **config})


ATTENTIONS = {
    "self": (attention(), [(5, 4)], lambda x: (x, x), {}),
    "cross": (attention(value_dim=5), [(5, 4), (7, 6)], lambda q, v: (q, v), {}),
    "key of its own": (attention(), [(5, 4), (7, 6), (7, 3)], lambda q, v, k: (q, v, k), {}),
    "key is the query": (attention(), [(5, 4), (5, 6)], lambda q, v: (q, v, q), {}),
    "no bias": (attention(use_bias=False), [(5, 4), (7, 6)], lambda q, v: (q, v), {}),
    "another width": (attention(output_shape=9, dropout=0.5), [(5, 4)], lambda x: (x, x), {}),
    "causal": (attention(), [(5, 4)], lambda x: (x, x), {"use_causal_mask": True}),
    "scores": (attention(), [(5, 4)], lambda x: (x, x), {"return_attention_scores": True}),
}


@pytest.mark.parametrize("name", ATTENTIONS)
def test_the_four_maps_of_attention(name):
    layer, shapes, arrange, arguments = ATTENTIONS[name]
    layer = type(layer).from_config(layer.get_config())
    tensors = [keras.Input(shape) for shape in shapes]
    randomise(keras.Model(tensors, layer(*arrange(*tensors), **arguments)))
    node = layer._inbound_nodes[-1]
    inputs = [np.random.default_rng(i).normal(size=(2, *shape)).astype("float32") for i, shape in enumerate(shapes)]
    known = {id(tensor): ops.convert_to_tensor(array) for tensor, array in zip(tensors, inputs, strict=True)}
    given = [known[id(tensor)] for tensor in node.input_tensors]
    query, value, *key = [known[id(tensor)] for tensor in arrange(*tensors)]
    maps = {map.kernel.partition("_")[0]: map for map in linear_maps(layer, node)}
    assert list(maps) == ["query", "key", "value", "output"]
    assert close(maps["query"].apply(given), layer.query_dense(query))
    assert close(maps["value"].apply(given), layer.value_dense(value))
    assert close(maps["key"].apply(given), layer.key_dense(*(key or [value])))
    assert close(maps["output"].apply(given), keras.tree.flatten(layer(query, value, *key, **arguments))[0])


@pytest.mark.parametrize("name", [*CONVOLUTIONS, "transposed", "attention"])
def test_writing_back_what_was_read_changes_nothing_and_other_values_arrive(name):
    extra = {"transposed": (layers.Conv2DTranspose(5, 3), (4, 4, 6)), "attention": (attention(value_dim=5), (5, 4))}
    layer, shape = {**CONVOLUTIONS, **extra}[name]
    layer = type(layer).from_config(layer.get_config())
    tensor = keras.Input(shape)
    randomise(keras.Model(tensor, layer(tensor, tensor) if name == "attention" else layer(tensor)))
    before = layer.get_weights()
    for map in linear_maps(layer, layer._inbound_nodes[-1]):
        map.assign(map.matrix(), map.offset())
        for old, new in zip(before, layer.get_weights(), strict=True):
            np.testing.assert_array_equal(old, new)
        generator = np.random.default_rng(0)
        matrix, offset = generator.normal(size=map.matrix().shape), generator.normal(size=map.offset().shape)
        map.assign(matrix, offset)
        np.testing.assert_allclose(map.matrix(), matrix, rtol=1e-6)
        np.testing.assert_allclose(map.offset(), offset if map.bias else 0 * offset, rtol=1e-6)
        assert (map.bias is None) == (name == "transposed" or getattr(layer, "use_bias", True) is False)
        layer.set_weights(before)


def test_by_column_by_hand():
    layer, node, _ = built(layers.Conv2D(6, (1, 2)), (5, 6, 3))
    (map,) = linear_maps(layer, node)
    assert map.by_column(np.array([7, 8, 9])).tolist() == [7, 8, 9, 7, 8, 9]
    layer, node, _ = built(layers.Conv2D(6, 2, groups=2), (5, 6, 4))
    (map,) = linear_maps(layer, node)
    assert map.by_column(np.array([7, 8])).tolist() == [7, 8] * 4
    layer, node, _ = built(layers.Conv2DTranspose(6, 2), (5, 6, 4))
    (map,) = linear_maps(layer, node)
    assert map.by_column(np.array([3, 1, 2, 9])).tolist() == [3, 1, 2, 9]


def test_columns_of_attention_by_hand():
    inputs = keras.Input((5, 4))
    layer = attention(value_dim=2)
    layer(inputs, inputs)
    *readers, output = linear_maps(layer, layer._inbound_nodes[-1])
    assert [map.by_column(np.arange(4)).tolist() for map in readers] == [[0, 1, 2, 3]] * 3
    assert output.by_column(np.array([5, 8])).tolist() == [5, 5, 8, 8]
    assert [map.outputs_of(np.array([1])).tolist() for map in readers] == [[3, 4, 5], [3, 4, 5], [2, 3]]
    assert output.outputs_of(np.array([3, 0])).tolist() == [3, 0]
    # The width of the heads: queries make it, the output reads it.
    assert [map.making_axes for map in readers] == [(1, 2)] * 3
    assert [map.outputs_of(np.array([1]), np.array([0, 1])).tolist() for map in readers] == [[3, 4], [3, 4], [2, 3]]
    assert (output.reading_axes, output.making_axes) == ((0, 1), (2,))
    assert output.by_column(np.array([5, 8]), 1).tolist() == [5, 8, 5, 8]


@pytest.mark.parametrize(
    ("layer", "shape", "expected"),
    [
        (layers.Dense(5), (4,), [4, 1]),
        (layers.Conv2D(6, 3), (5, 5, 4), [4, 1]),
        (layers.Conv2D(6, 1, groups=2), (5, 5, 4), [4, 1]),
        (layers.Conv2DTranspose(5, (1, 2)), (4, 4, 3), [4, 1, 9, 6]),
    ],
    ids=["dense", "conv", "groups", "transposed"],
)
def test_outputs_of_by_hand(layer, shape, expected):
    layer, node, inputs = built(layer, shape)
    (map,) = linear_maps(layer, node)
    assert map.outputs_of(np.array([4, 1])).tolist() == expected
    whole = np.asarray(map.apply(inputs)).reshape(-1, math.prod(map.offset().shape))
    kept = attrgetter(map.kernel)(layer)
    kept.assign(
        np.asarray(kept)
        * np.isin(np.arange(map.shape[map.makes]), [4, 1]).reshape(
            [-1 if axis == map.makes else 1 for axis in range(len(map.shape))]
        )
    )
    changed = np.asarray(map.apply(inputs)).reshape(whole.shape)
    np.testing.assert_array_equal(np.flatnonzero((whole == changed).all(0)), sorted(expected))


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (layers.Conv1D(6, 3, padding="causal"), (9, 4)),
        (layers.DepthwiseConv2D(3), (5, 5, 4)),
        (layers.Conv2D(4, 3, groups=4), (5, 5, 4)),
        (layers.Conv3D(6, 2, dilation_rate=2), (5, 5, 5, 4)),
        (layers.ConvLSTM1D(6, 3), (5, 7, 4)),
        (layers.RNN(layers.LSTMCell(6)), (5, 4)),
        (layers.BatchNormalization(), (4,)),
        (layers.EinsumDense("ab,bc->ac", 5), (4,)),
    ],
)
def test_layers_that_cannot_be_fitted_have_no_maps(layer, shape):
    inputs = keras.Input(shape)
    layer(inputs)
    assert linear_maps(layer, layer._inbound_nodes[-1]) == []


def _simple(sums, units):
    return ops.tanh(sums)


def _lstm(sums, units):
    """The states that follow from the sums before the gates, step by step."""
    carry, found = ops.zeros_like(sums[:, 0, :units]), []
    for step in range(sums.shape[1]):
        enters, forgets, candidate, leaves = ops.split(sums[:, step], 4, axis=-1)
        carry = ops.sigmoid(forgets) * carry + ops.sigmoid(enters) * ops.tanh(candidate)
        found.append(ops.sigmoid(leaves) * ops.tanh(carry))
    return ops.stack(found, axis=1)


@pytest.mark.parametrize(("kind", "states"), [(layers.SimpleRNN, _simple), (layers.LSTM, _lstm)])
@pytest.mark.parametrize("way", ["forwards", "both ways"])
def test_the_maps_of_recurrent_layers_are_what_their_gates_read(kind, states, way):
    layer, units = kind(5, return_sequences=True), 5
    if way == "both ways":
        layer = layers.Bidirectional(layer, merge_mode="concat")
    layer, node, inputs = built(layer, (6, 4))
    maps = linear_maps(layer, node)
    wanted = ops.split(layer(*inputs), len(maps) // 2, axis=-1)
    assert len(wanted) == {"forwards": 1, "both ways": 2}[way]
    for reads, before, output in zip(maps[::2], maps[1::2], wanted, strict=True):
        given = [inputs[0]] if output is wanted[0] else [ops.flip(inputs[0], axis=1)]
        # The sequence is read in the order in which it is given, the states in the order in which they are made.
        sums = ops.reshape(reads.apply(given) + before.apply(inputs), (3, 6, -1))
        found = states(sums, units)
        assert close(found, output if output is wanted[0] else ops.flip(output, axis=1))
        assert not close(states(ops.reshape(reads.apply(given), (3, 6, -1)), units), found)


@pytest.mark.parametrize(
    ("layer", "count"),
    [
        (layers.GRU(5), 2),
        (layers.GRU(5, reset_after=False), 1),  # what it reads of the states is scaled by a gate before
        (layers.Bidirectional(layers.GRU(5)), 4),
    ],
)
def test_gated_units_that_reset_first_have_one_map(layer, count):
    layer, node, inputs = built(layer, (6, 4))
    maps = linear_maps(layer, node)
    assert len(maps) == count
    assert all(
        map.rows(inputs).shape == (18, 1, 4 if place % 2 == 0 or count == 1 else 5) for place, map in enumerate(maps)
    )


def test_states_that_are_given_are_not_guessed():
    tensors = [keras.Input((6, 4)), keras.Input((5,))]
    layer = layers.SimpleRNN(5)
    layer(tensors[0], initial_state=tensors[1])
    (map,) = linear_maps(layer, layer._inbound_nodes[-1])
    assert map.kernel == "cell.kernel"


def test_dense_layers_with_other_weights_than_their_kernel_have_no_maps():
    layer, node, _ = built(layers.Dense(5), (4,))
    layer.enable_lora(2)
    assert linear_maps(layer, node) == []
    layer, node, _ = built(layers.Dense(5), (4,))
    layer.quantize("int8")
    assert linear_maps(layer, node) == []


def test_attention_masked_by_a_tensor_has_no_maps():
    inputs, mask = keras.Input((5, 4)), keras.Input((5, 5), dtype="bool")
    layer = attention()
    layer(inputs, inputs, attention_mask=mask)
    assert linear_maps(layer, layer._inbound_nodes[-1]) == []
    assert linear_maps(*built(attention(use_gate=True), (5, 4), (5, 4))[:2]) == []


def test_attention_masked_by_what_an_embedding_says_has_no_maps():
    words = keras.Input((5,), dtype="int32")
    x = layers.Embedding(9, 4, mask_zero=True)(words)
    layer = attention()
    layer(x, x)
    assert linear_maps(layer, layer._inbound_nodes[-1]) == []


def test_rows_of_a_map_follow_its_ids():
    """Columns whose ids are removed are the columns that channels of the input fill."""
    inputs = keras.Input((5, 5, 4))
    layer = layers.Conv2D(6, 3, name="reader")
    ids = ChannelGraph(keras.Model(inputs, layer(layers.Conv2D(4, 1, name="a")(inputs)))).ids
    (map,) = linear_maps(layer, layer._inbound_nodes[-1])
    columns = map.by_column(ids.weights["reader", "kernel"].axes[map.reads])
    image = np.zeros((1, 5, 5, 4), "float32")
    image[..., 2] = 1
    filled = np.asarray(map.rows([ops.convert_to_tensor(image)])).any((0, 1))
    np.testing.assert_array_equal(filled, columns == ids.outputs["a"][2])
