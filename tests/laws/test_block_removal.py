"""The law of block removal: a model without blocks is the model in which they are identities."""

import dataclasses

import keras
import numpy as np
import pytest
from architectures import ARCHITECTURES, random_inputs, randomise
from hypothesis import given, settings
from hypothesis import strategies as st
from laws.block_removal import answers, as_identity, difference, ends_of
from op_architectures import OPS
from zoo_architectures import ZOO

from mobileprune import block_removal
from mobileprune.block_removal import BlockRemoval, remove_blocks
from mobileprune.blocks import BlockGraph, removable_blocks
from mobileprune.graph import leaves

layers = keras.layers

NETWORKS = {**ARCHITECTURES, **ZOO, **OPS}
WITH_BLOCKS = (
    *("residual", "inverted_residual", "resnext", "vit_learned_positions", "vit_constant_positions", "mlp_mixer"),
    *("nested_deeply", "convnext_custom_scale", "convnext_keras_scale", "shufflenet_v2_ops", "unet", "conv1d"),
)


def apart(model):
    """Blocks that can all go together: the first one, then each that overlaps none before."""
    graph, chosen = BlockGraph(model), []
    for place in sorted(graph.places.values(), key=lambda place: -len(place.block.layers)):
        if not any(place.overlaps(other) for other in chosen):
            chosen.append(place)
    return [place.block for place in chosen]


def names(tensors):
    return [tensor._keras_history.operation.name for tensor in tensors]


def holds(model, blocks, tolerance=1e-5):
    """Whether the law holds; also that weights and names are what they were."""
    inputs = random_inputs(model, batch=2)
    before = answers(model, inputs)
    smaller = remove_blocks(model, blocks)
    if difference(as_identity(model, inputs, ends_of(blocks)), answers(smaller, inputs)) > tolerance:
        return False
    old = dict(leaves(model))
    for path, layer in leaves(smaller):
        kept = old.get(path)
        if kept is not None:
            same = [np.array_equal(a, b) for a, b in zip(kept.get_weights(), layer.get_weights(), strict=True)]
            assert kept is not layer or not kept.weights, f"{path} is shared with the old model"
            assert all(same), path
    assert difference(before, answers(model, inputs)) == 0, "the old model was changed"
    return True


@pytest.mark.parametrize("name", NETWORKS)
def test_each_block_and_all_of_them_can_go(name):
    model = randomise(NETWORKS[name]())
    blocks = removable_blocks(model)
    assert bool(blocks) or name not in WITH_BLOCKS
    for block in blocks[:: max(1, len(blocks) // 6)]:
        assert holds(model, [block]), block.name
    if blocks:
        assert holds(model, apart(model))


@pytest.mark.parametrize("name", WITH_BLOCKS)
def test_a_removed_block_is_missed(name):
    """Else the law would say nothing: outputs without a block differ from the whole model's."""
    model = randomise(NETWORKS[name]())
    inputs = random_inputs(model, batch=2)
    assert difference(answers(model, inputs), answers(remove_blocks(model, apart(model)), inputs)) > 1e-2


@pytest.mark.parametrize("name", WITH_BLOCKS)
def test_the_smaller_model_is_an_ordinary_one(name, tmp_path):
    model = randomise(NETWORKS[name]())
    blocks = apart(model)
    smaller = remove_blocks(model, blocks)
    assert "mobileprune" not in smaller.to_json()
    smaller.save(tmp_path / "smaller.keras")
    again = keras.models.load_model(tmp_path / "smaller.keras", safe_mode=True)
    inputs = random_inputs(model)
    assert difference(answers(smaller, inputs), answers(again, inputs)) < 1e-6
    assert smaller.count_params() == model.count_params() - sum(block.params for block in blocks)
    assert names(smaller.inputs) == names(model.inputs)
    assert names(smaller.outputs) == names(model.outputs)


APPLICATIONS = {
    "ResNet50": (keras.applications.ResNet50, 32),
    "MobileNetV2": (keras.applications.MobileNetV2, 32),
    "EfficientNetB0": (keras.applications.EfficientNetB0, 32),
    "ConvNeXtTiny": (keras.applications.ConvNeXtTiny, 32),
}


@pytest.mark.parametrize("name", APPLICATIONS)
def test_networks_of_keras_hold_the_law(name):
    build, size = APPLICATIONS[name]
    model = randomise(build(weights=None, input_shape=(size, size, 3), classes=10))
    residual = [block for block in removable_blocks(model) if block.kind == "residual"]
    assert len(residual) == {"ResNet50": 12, "MobileNetV2": 10, "EfficientNetB0": 9, "ConvNeXtTiny": 18}[name]
    assert holds(model, residual[::3])


@st.composite
def programs(draw):
    """A random residual network: for each block its kind, whether the stage begins anew, and its nesting."""
    kinds = st.sampled_from(["plain", "residual", "gated", "bottleneck", "nested", "two_terms"])
    return draw(st.lists(st.tuples(kinds, st.booleans()), min_size=1, max_size=5))


def build(program):
    inputs = keras.Input((6, 6, 3))
    x, width = layers.Conv2D(4, 3, padding="same")(inputs), 4
    for kind, widen in program:
        if widen:
            width += 2
            x = layers.Conv2D(width, 1, activation="tanh")(x)
        y = layers.Conv2D(width, 3, padding="same")(x)
        if kind == "plain":
            x = layers.ReLU()(layers.BatchNormalization()(y))
        elif kind == "residual":
            x = layers.Add()([x, y])
        elif kind == "gated":
            gate = layers.Dense(width, activation="sigmoid")(layers.GlobalAveragePooling2D(keepdims=True)(y))
            x = keras.ops.add(x, layers.Multiply()([y, gate]))
        elif kind == "bottleneck":
            y = layers.Conv2D(2 * width, 1, activation="relu")(x)
            x = layers.Add()([layers.Conv2D(width, 1)(y), x])
        elif kind == "nested":
            inner = keras.Input(x.shape[1:])
            body = layers.Add()([inner, layers.Conv2D(width, 3, padding="same")(inner)])
            x = layers.Add()([x, keras.Model(inner, layers.Conv2D(width, 1)(body))(x)])
        else:
            x = layers.Add()([x, y, layers.Conv2D(width, 1)(x)])
    return keras.Model(inputs, layers.Dense(3)(layers.Flatten()(x)))


@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(programs(), st.randoms(use_true_random=False))
def test_random_residual_networks_hold_the_law(program, random):
    model = randomise(build(program))
    blocks = apart(model)
    assert len(blocks) >= len(program), program
    assert holds(model, random.sample(blocks, random.randint(1, len(blocks))), tolerance=1e-4)


# The law must be able to fail: mistakes planted in what is read in the place of a block.


@pytest.mark.parametrize("name", ["residual", "inverted_residual", "vit_learned_positions", "mlp_mixer"])
def test_reading_another_tensor_breaks_the_law(name, monkeypatch):
    model = randomise(NETWORKS[name]())
    last = [block for block in removable_blocks(model) if block.kind == "residual"][-1]
    first = BlockGraph(model)
    wrong = next(place.region.entry for place in first.places.values() if place.block.kind == "residual")
    inputs = random_inputs(model, batch=2)
    expected = as_identity(model, inputs, ends_of([last]))
    right = BlockGraph.chosen

    def planted(self, blocks):
        return [_with_entry(place, wrong) for place in right(self, blocks)]

    monkeypatch.setattr(BlockGraph, "chosen", planted)
    assert difference(expected, answers(remove_blocks(model, [last.name]), inputs)) > 1e-3


def _with_entry(place, entry):
    return dataclasses.replace(place, region=dataclasses.replace(place.region, entry=entry))


@pytest.mark.parametrize("name", ["residual", "inverted_residual", "resnext"])
def test_weights_that_are_not_carried_over_break_the_law(name, monkeypatch):
    model = randomise(NETWORKS[name]())
    blocks = apart(model)[:1]
    monkeypatch.setattr(block_removal, "_copy_weights", lambda old, new: None)
    inputs = random_inputs(model, batch=2)
    expected = as_identity(model, inputs, ends_of(blocks))
    assert difference(expected, answers(BlockRemoval(BlockGraph(model), blocks).model, inputs)) > 1e-3
