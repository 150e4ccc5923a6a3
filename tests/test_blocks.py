import dataclasses

import keras
import numpy as np
import pytest
from architectures import ARCHITECTURES, random_inputs, randomise
from laws.block_removal import answers, difference

from mobileprune.block_removal import remove_blocks
from mobileprune.blocks import Block, BlockGraph, removable_blocks
from mobileprune.errors import ModelError, PlanError
from mobileprune.inspect import model_facts

layers = keras.layers


def conv(x, name, filters=8, size=3):
    x = layers.Conv2D(filters, size, padding="same", use_bias=False, name=f"{name}_conv")(x)
    return layers.ReLU(name=f"{name}_relu")(layers.BatchNormalization(name=f"{name}_norm")(x))


def network(body, channels=8):
    """A stem, what `body` makes of it, and a head."""
    inputs = keras.Input((6, 6, 3), name="image")
    x = body(layers.Conv2D(channels, 3, padding="same", name="stem")(inputs))
    return keras.Model(inputs, layers.Dense(3, name="head")(layers.GlobalAveragePooling2D()(x)), name="net")


def found(model):
    return {block.name: block for block in removable_blocks(model)}


def test_a_residual_block_says_what_it_is():
    def body(x):
        y = layers.Conv2D(16, 1, use_bias=False, name="block_1_expand")(x)
        y = layers.Conv2D(8, 1, name="block_1_project")(layers.ReLU(name="block_1_relu")(y))
        return layers.Add(name="block_1_add")([y, x])

    (block,) = removable_blocks(network(body))
    assert block == Block(
        name="block_1",
        kind="residual",
        layers=("block_1_expand", "block_1_relu", "block_1_project", "block_1_add"),
        entry="stem",
        exit="block_1_add",
        shape=(6, 6, 8),
        macs=36 * 2 * 8 * 16,
        params=8 * 16 + 16 * 8 + 8,
    )
    assert Block.from_json(block.to_json()) == block


def test_normalisation_and_activation_belong_to_the_layer_before_them():
    blocks = found(network(lambda x: conv(conv(layers.ReLU()(layers.BatchNormalization()(x)), "a"), "b")))
    assert {name: block.layers for name, block in blocks.items()} == {
        "a": ("a_conv", "a_norm", "a_relu"),
        "b": ("b_conv", "b_norm", "b_relu"),
    }


def test_what_others_read_ends_a_block():
    def body(x):
        y = layers.Conv2D(8, 3, padding="same", name="read_twice")(x)
        return layers.Concatenate()([layers.ReLU()(y), y])

    assert found(network(body))["read_twice"].layers == ("read_twice",)


def test_a_branch_is_no_block_beside_its_sum():
    """It would leave twice the entry."""
    blocks = found(network(lambda x: layers.Add(name="sum")([x, layers.Conv2D(8, 1, name="branch")(x)])))
    assert [block.kind for block in blocks.values()] == ["residual"]


def test_the_relu_behind_a_sum_of_what_came_out_of_a_relu_goes_with_it():
    def body(x):
        x = layers.ReLU(name="before")(x)
        return layers.ReLU(name="after")(layers.Add()([x, layers.Conv2D(8, 1)(x)]))

    (block,) = removable_blocks(network(body))
    assert block.exit == "after"
    (other,) = removable_blocks(
        network(lambda x: layers.ReLU(name="after")(layers.Add(name="sum")([x, layers.Conv2D(8, 1)(x)])))
    )
    assert other.exit == "sum"


def test_attention_may_read_a_memory_from_outside():
    tokens, memory = keras.Input((4, 8), name="tokens"), keras.Input((5, 8), name="memory")
    x = layers.Dense(8, name="first")(tokens)
    y = layers.MultiHeadAttention(2, 4, name="attention")(layers.LayerNormalization(name="norm")(x), memory)
    model = keras.Model([tokens, memory], layers.Dense(2, name="head")(layers.Add(name="sum")([x, y])), name="net")
    block = next(block for block in removable_blocks(model) if block.kind == "residual")
    assert (block.layers, block.entry) == (("norm", "attention", "sum"), "first")
    smaller = remove_blocks(model, [block])
    # Nobody reads the memory any more, and the model still takes it.
    assert [tensor._keras_history.operation.name for tensor in smaller.inputs] == ["tokens", "memory"]
    assert answers(smaller, random_inputs(model))[0].shape[1:] == (4, 2)


def test_a_sum_whose_inside_is_read_outside_is_refused():
    def body(x):
        y = layers.Conv2D(8, 1, name="branch")(x)
        total = layers.Add(name="sum")([x, y])
        return layers.Concatenate(name="outside")([total, y])

    model = network(body)
    assert "sum" not in {block.exit for block in removable_blocks(model) if block.kind == "residual"}
    with pytest.raises(PlanError, match="'sum' cannot be removed: what is inside is also read by 'outside'"):
        remove_blocks(model, ["sum"])


def test_shared_layers_stay():
    shared = layers.Conv2D(8, 3, padding="same", name="shared")

    def body(x):
        x = layers.MaxPooling2D()(layers.Add(name="first")([x, shared(x)]))
        return layers.Add(name="second")([x, shared(x)])

    model = network(body)
    assert removable_blocks(model) == []
    with pytest.raises(PlanError, match="'first' cannot be removed: 'shared' is also used elsewhere"):
        remove_blocks(model, ["first"])


def test_a_layer_that_is_called_twice_within_one_block_goes_with_it():
    shared = layers.Conv2D(8, 3, padding="same", name="shared")
    model = network(lambda x: layers.Add(name="sum")([x, shared(layers.ReLU()(shared(x)))]))
    (block,) = [block for block in removable_blocks(model) if block.kind == "residual"]
    assert block.macs == 2 * 36 * 9 * 64
    assert block.params == shared.count_params()


def test_what_gives_the_output_stays():
    inputs = keras.Input((6, 6, 3))
    x = layers.Conv2D(4, 3, padding="same", name="stem")(inputs)
    model = keras.Model(inputs, layers.Add(name="out")([x, layers.Conv2D(4, 1, name="branch")(x)]))
    assert not removable_blocks(model)
    with pytest.raises(PlanError, match="'out' cannot be removed: what it gives is the model's output"):
        remove_blocks(model, ["out"])


def test_an_inner_output_stays():
    inputs = keras.Input((6, 6, 3))
    x = layers.Conv2D(4, 3, padding="same", name="stem")(inputs)
    y = layers.Conv2D(4, 1, name="branch")(x)
    last = layers.Dense(2, name="head")(layers.Flatten()(layers.Add(name="sum")([x, y])))
    with pytest.raises(PlanError, match="also read by the model's output"):
        remove_blocks(keras.Model(inputs, [last, y]), ["sum"])


def test_blocks_of_nested_models_go_from_every_call():
    inner = keras.Input((6, 6, 8))
    tower = keras.Model(
        inner, layers.Add(name="sum")([inner, layers.Conv2D(8, 3, padding="same")(inner)]), name="tower"
    )
    inputs = keras.Input((6, 6, 3))
    stem = layers.Conv2D(8, 1)
    x = layers.Concatenate()([tower(stem(inputs)), tower(layers.ReLU()(stem(inputs)))])
    model = randomise(keras.Model(inputs, layers.Dense(2)(layers.Flatten()(x))))
    # The tower as a whole is shared, and within it the sum is all there is.
    assert removable_blocks(model) == []


def test_a_sequential_loses_layers_and_stays_one():
    model = keras.Sequential([keras.Input((6, 6, 4)), layers.Conv2D(4, 1, name="a"), layers.ReLU(name="a_relu")])
    model.add(layers.Conv2D(4, 1, name="b"))
    model.add(layers.Conv2D(3, 1, name="c"))
    smaller = remove_blocks(randomise(model), ["a", "b"])
    assert isinstance(smaller, keras.Sequential)
    assert [layer.name for layer in smaller.layers] == ["c"]


def test_a_nested_sequential_that_loses_all_layers_passes_on_what_it_reads():
    body = keras.Sequential(
        [keras.Input((6, 6, 8)), layers.Conv2D(8, 1, name="a"), layers.Conv2D(8, 1, name="b")], name="body"
    )
    model = randomise(network(body))
    inner = [block.name for block in removable_blocks(model) if block.name.startswith("body/")]
    smaller = remove_blocks(model, inner)
    expected = keras.Model(
        model.inputs, model.get_layer("head")(layers.GlobalAveragePooling2D()(model.get_layer("stem").output))
    )
    inputs = random_inputs(model)
    assert difference(answers(expected, inputs), answers(smaller, inputs)) < 1e-6


def test_what_goes_with_blocks_is_what_the_model_lacks():
    model = ARCHITECTURES["inverted_residual"]()
    before = model_facts(model)
    for block in removable_blocks(model):
        after = model_facts(remove_blocks(model, [block]))
        assert (before.macs - after.macs, before.params - after.params) == (block.macs, block.params)


def test_unknown_overlapping_and_single_names_are_refused():
    model = ARCHITECTURES["residual"]()
    with pytest.raises(PlanError, match=r"has no block 'nothing'\. Blocks: "):
        remove_blocks(model, ["nothing"])
    with pytest.raises(PlanError, match=r"Write blocks=\['add'\]"):
        remove_blocks(model, "add")
    graph = BlockGraph(model)
    one, other = list(graph.places.values())[:2]
    calls = other.region.calls
    graph.places["x"] = dataclasses.replace(one, region=dataclasses.replace(one.region, calls=calls[:2]))
    graph.places["y"] = dataclasses.replace(one, region=dataclasses.replace(one.region, calls=calls[1:3]))
    with pytest.raises(PlanError, match="overlap"):
        graph.chosen(["x", "y"])


def test_a_subclassed_model_is_refused():
    class Own(keras.Model):
        pass

    with pytest.raises(ModelError, match="subclassed"):
        removable_blocks(Own())


def test_no_blocks_give_a_copy():
    model = randomise(ARCHITECTURES["residual"]())
    copy = remove_blocks(model, [])
    inputs = random_inputs(model)
    assert difference(answers(model, inputs), answers(copy, inputs)) == 0
    copy.layers[1].kernel.assign(np.zeros(copy.layers[1].kernel.shape))
    assert np.any(model.layers[1].kernel)
