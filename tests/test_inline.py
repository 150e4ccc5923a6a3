import keras
import numpy as np
import pytest
from architectures import random_inputs, randomise
from laws.removal import check_law, disagreement, removable, run

import mobileprune as mp
from mobileprune.errors import ModelError

layers, ops = keras.layers, keras.ops


@keras.saving.register_keras_serializable("test_inline")
class Block(layers.Layer):
    """A residual block of inner layers, with a list of them and another block inside."""

    def __init__(self, width, inner=True, **kwargs):
        super().__init__(**kwargs)
        self.width, self.inner = width, inner
        self.parts = [layers.Dense(width, activation="relu", name="part") for _ in range(2)]
        self.block = Block(width, inner=False, name="block") if inner else None
        self.drop = layers.Dropout(0.5)

    def build(self, shape):
        self.out = layers.Dense(shape[-1], name="out")
        self.out.build((*shape[:-1], self.width))
        self.parts[0].build(shape)
        self.parts[1].build((*shape[:-1], self.width))
        if self.block is not None:
            self.block.build((*shape[:-1], self.width))

    def call(self, x, training=None):
        y = self.parts[1](self.parts[0](x))
        if self.block is not None:
            y = self.block(y)
        return x + self.drop(self.out(y), training=training)

    def get_config(self):
        return {**super().get_config(), "width": self.width, "inner": self.inner}


class Owner(layers.Layer):
    """A layer with a weight of its own."""

    def build(self, shape):
        self.weight = self.add_weight(shape=(shape[-1],), name="weight")
        self.inner = layers.Dense(4)
        self.inner.build(shape)

    def call(self, x):
        return self.inner(x * self.weight)


class Thief(layers.Layer):
    """A layer that reads a weight of an inner layer, past it."""

    def build(self, shape):
        self.inner = layers.Dense(4)
        self.inner.build(shape)

    def call(self, x):
        return ops.matmul(x, ops.convert_to_tensor(self.inner.kernel))


class Sized(layers.Layer):
    """A layer that computes with the batch."""

    def call(self, x):
        return x + ops.reshape(ops.arange(ops.shape(x)[0], dtype="float32"), (-1, 1))


def around(*made, shape=(8,), **names):
    inputs = keras.Input(shape, name="image")
    x = layers.Dense(16, name="before")(inputs)
    for each in made:
        x = each(x)
    return randomise(keras.Model(inputs, layers.Dense(3, name="after")(x), name="net"))


def test_inner_layers_take_the_block_s_place():
    model = around(Block(24, name="one"), Block(24, name="two"))
    flat = mp.inline_layers(model)
    inputs = random_inputs(model)
    assert disagreement(run(model, inputs), run(flat, inputs)) == 0
    assert flat.count_params() == model.count_params()
    assert not any(isinstance(layer, Block) for layer in flat.layers)
    names = {layer.name for layer in flat.layers}
    assert names >= {"before", "one.part", "one.part_1", "one.block.out", "two.out", "after"}
    assert removable(model)[1] == 0
    assert removable(flat)[1] > 0.7
    check_law(flat)
    flat.get_layer("before").kernel.assign(np.zeros((8, 16)))
    assert np.asarray(model.get_layer("before").kernel).any(), "weights are copies"


def test_a_block_that_is_called_twice_is_opened_once():
    block = Block(24, name="one")
    flat = mp.inline_layers(around(block, block))
    assert sum(layer.name.startswith("one.part") for layer in flat.layers) == 2
    assert len(flat.get_layer("one.out")._inbound_nodes) == 2


def test_nested_models_are_opened_too():
    tower = around(Block(24, name="one"))
    inputs = keras.Input((8,))
    model = keras.Model(inputs, layers.Dense(2)(tower(inputs)))
    flat = mp.inline_layers(model)
    assert {layer.name for layer in flat.layers} >= {"net.before", "net.one.part"}
    assert disagreement(run(model, random_inputs(model)), run(flat, random_inputs(model))) == 0


def test_dropout_inside_is_still_dropout():
    flat = mp.inline_layers(around(Block(24, name="one")))
    inputs = random_inputs(flat)
    assert disagreement(run(flat, inputs, training=True), run(flat, inputs)) > 0.01


def test_what_keep_names_stays():
    flat = mp.inline_layers(around(Block(24, name="one"), Block(24, name="two")), keep=["one", "two.block"])
    assert {layer.name for layer in flat.layers if isinstance(layer, Block)} == {"one", "two.block"}


def test_a_layer_with_weights_of_its_own_stays():
    flat = mp.inline_layers(around(Owner(name="owner")))
    assert isinstance(flat.get_layer("owner"), Owner)


def test_a_weight_that_is_read_past_its_layer_is_an_error():
    with pytest.raises(ModelError, match="is read outside of the layer that owns it"):
        mp.inline_layers(around(Thief(name="thief")))


def test_calls_that_compute_with_sizes_need_them():
    model = around(Sized(name="sized"))
    with pytest.raises(ModelError, match=r"Sized 'sized' calls cannot be traced.*Give input_shapes= and batch_size="):
        mp.inline_layers(model)
    flat = mp.inline_layers(model, batch_size=3)
    inputs = random_inputs(model)
    assert flat.input_shape == (3, 8)
    assert disagreement(run(model, inputs), run(flat, inputs)) < 1e-6


def test_sizes_are_given_by_the_names_of_inputs():
    inputs = keras.Input((None, 8), name="image")
    model = keras.Model(inputs, layers.Dense(3)(inputs))
    assert mp.inline_layers(model, {"image": (5, 8)}).input_shape == (None, 5, 8)
    with pytest.raises(ModelError, match=r"has no input 'picture'\. Its inputs are 'image'"):
        mp.inline_layers(model, {"picture": (5, 8)})
