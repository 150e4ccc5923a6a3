import keras
import numpy as np
import pytest
from architectures import randomise
from laws.removal import check_law

import mobileprune as mp
from mobileprune.channel_groups import ChannelGraph

layers, ops = keras.layers, keras.ops


def network(function, shape=(6, 12)):
    """What a function makes of two dense layers, read by a third."""
    inputs = keras.Input(shape)
    a, b = layers.Dense(8, name="a")(inputs), layers.Dense(8, name="b")(inputs)
    return keras.Model(inputs, layers.Dense(3, name="head")(layers.Flatten()(function(a, b))))


def groups(model):
    return {group.name: group for group in mp.channel_groups(model)}


def scores(a, b):
    return ops.softmax(ops.einsum("btc,bsc->bts", a, b))


PRODUCTS = {
    "einsum": lambda a, b: scores(a, b),
    "einsum with an ellipsis": lambda a, b: ops.einsum("...tc,...sc->...ts", a, b),
    "einsum that keeps channels": lambda a, b: ops.einsum("btc,bsc->btsc", a, b),
    "mixture": lambda a, b: ops.einsum("bts,bsc->btc", scores(a, a), b),
    "matmul": lambda a, b: ops.matmul(a, ops.transpose(b, (0, 2, 1))),
    "matmul with a constant": lambda a, b: ops.matmul(np.eye(6, dtype="float32")[:4], a * b),
    "matmul of other ranks": lambda a, b: ops.matmul(ops.expand_dims(a, 1), ops.transpose(b, (0, 2, 1))[:, None]),
    "attention": lambda a, b: ops.dot_product_attention(*(ops.reshape(x, (-1, 6, 2, 4)) for x in (a, b, a))),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_channels_that_are_multiplied_go_together(name):
    model = network(PRODUCTS[name])
    free = [group for group in groups(model).values() if not group.frozen]
    assert {layer for group in free for layer in group.layers} == {"a", "b"}
    smaller, _ = check_law(model)
    assert smaller.get_layer("a").units == smaller.get_layer("b").units == 4


def test_a_bias_of_an_einsum_keeps_its_axis():
    """Of a width of eight four are left, as many as there are heads: Keras would add the heads' bias to the width."""
    dense = layers.EinsumDense("btc,cnh->btnh", (6, 4, 8), bias_axes="n", name="made")
    inputs = keras.Input((6, 12))
    y = layers.Dense(3)(layers.Flatten()(layers.EinsumDense("btnh,nhm->btm", (6, 5))(dense(inputs))))
    model = keras.Model(inputs, y)
    for ratio in (0.25, 0.5, 0.75):
        check_law(model, ratio=ratio, round_to=1)


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (lambda a, b: ops.einsum("btc,bsd->btcsd", a, b), "each with each"),
        (lambda a, b: ops.einsum("btc,cd->btd", a, np.ones((8, 4), "float32")) + b[..., :4], "holds no channels"),
        (lambda a, b: ops.matmul(a, np.ones((8, 4), "float32")) + b[..., :4], "holds no channels"),
        (lambda a, b: ops.einsum("btt->bt", scores(a, b)), "takes a diagonal"),
        (lambda a, b: ops.tensordot(a, b, axes=((0, 1), (0, 1))), "no channel rule"),
    ],
    ids=["outer", "constant", "matmul", "diagonal", "unknown"],
)
def test_products_that_cannot_be_followed_keep_channels(function, says):
    reasons = " ".join(group.frozen or "" for group in mp.channel_groups(network(function)))
    assert says in reasons


def test_a_sum_over_channels_is_inexact():
    model = network(lambda a, b: ops.einsum("btc->bt", a) + ops.einsum("btc->bt", b))
    assert "sums over all channels" in groups(model)["a"].inexact


EQUATIONS = {
    "dense": ("btc,cm->btm", (None, 10), "m"),
    "several axes": ("btc,cnm->btnm", (6, 2, 10), "nm"),
    "ellipsis": ("...c,cm->...m", 10, "m"),
    "bias of one axis": ("btc,cnm->btnm", (6, 2, 10), "m"),
    "channels that pass": ("btc,ts->bsc", (5, 8), None),
    "a weight for each channel": ("btc,c->btc", (None, 8), "c"),
}


@pytest.mark.parametrize("name", EQUATIONS)
def test_einsum_dense_makes_reads_and_passes_channels(name):
    equation, shape, bias = EQUATIONS[name]
    inputs = keras.Input((6, 12))
    x = layers.Dense(8, name="a")(inputs)
    x = layers.EinsumDense(equation, shape, bias_axes=bias, activation="relu", name="made")(x)
    x = ops.reshape(x, (-1, 6, 20)) if len(x.shape) == 4 else x
    x = layers.GlobalAveragePooling1D()(layers.Dense(4, name="b")(x))
    model = keras.Model(inputs, layers.Dense(3)(x))
    check_law(model)
    assert groups(model)["a"].frozen is None


def test_macs_of_products_by_hand():
    model = network(lambda a, b: ops.einsum("btc,bsc->bts", a, b))
    graph = ChannelGraph(model)
    assert graph.cost(graph.everything()).macs == 2 * 6 * 12 * 8 + 6 * 6 * 8 + 36 * 3
    wide = keras.Input((6, 12))
    dense = keras.Model(wide, layers.EinsumDense("btc,cnm->btnm", (None, 2, 5))(wide))
    graph = ChannelGraph(dense)
    assert graph.cost(graph.everything()).macs == 6 * 12 * 10


def test_attention_without_a_scale_goes_on_dividing_by_the_width_that_it_had():
    """Without this the smaller model's scores would be too large: the law breaks."""
    model = network(PRODUCTS["attention"])
    smaller, _ = check_law(model)
    (call,) = [op for op in smaller.operations if type(op).__name__ == "DotProductAttention"]
    assert call._inbound_nodes[-1].arguments.kwargs["scale"] == pytest.approx(0.5)


def test_einsum_dense_that_is_quantized_is_kept():
    inputs = keras.Input((6, 12))
    layer = layers.EinsumDense("btc,cm->btm", (None, 8), name="made")
    model = keras.Model(inputs, layers.Dense(3)(layer(layers.Dense(8, name="a")(inputs))))
    layer.enable_lora(2)
    assert "LoRA" in groups(randomise(model))["a"].frozen
