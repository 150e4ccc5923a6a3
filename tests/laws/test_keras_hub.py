"""The law on backbones of Keras Hub, whose blocks are layers that call others: written out, they are pruned inside.

Each is smaller by 40% of its parameters at least, and a `.tflite` of what is left says the same.
"""

import keras
import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from architectures import random_inputs, randomise
from laws.removal import check_law, disagreement, law_plan, removable, run

import mobileprune as mp

pytest.importorskip("keras_hub", reason="Keras Hub is not installed: its backbones are not looked at")

from hub_backbones import BACKBONES, with_head

# TensorFlow Lite has no op for the Fourier transform of f_net.
CONVERTED = sorted(BACKBONES.keys() - {"f_net"})


def opened(name, batch_size, seed=0):
    """(the backbone with a head, the same written out), of the same random weights."""
    keras.utils.set_random_seed(seed)
    build, shapes = BACKBONES[name]
    model = randomise(with_head(build()))
    return model, mp.inline_layers(model, shapes, batch_size)


def tokens(model, batch):
    """Random words and features; masks that hide the last word of every second text."""
    found = random_inputs(model, batch=batch)
    for index, tensor in enumerate(model.inputs):
        if "mask" in tensor._keras_history.operation.name:
            found[index] = np.ones_like(found[index])
            found[index][1::2, -1] = 0
        elif "segment" in tensor._keras_history.operation.name:
            found[index] %= 2
    return found


@pytest.mark.parametrize("name", BACKBONES)
def test_backbones_hold_the_law_and_lose_much(name):
    model, flat = opened(name, batch_size=2)
    inputs = tokens(flat, 2)
    by_name = dict(zip((tensor._keras_history.operation.name for tensor in flat.inputs), inputs, strict=True))
    given = [by_name[tensor._keras_history.operation.name] for tensor in model.inputs]
    assert disagreement(run(model, given), run(flat, inputs)) < 1e-5
    _, share = removable(flat)
    assert share >= 0.4
    check_law(flat, inputs=inputs, tolerance=1e-3)


@pytest.mark.parametrize("name", CONVERTED)
def test_pruned_backbones_convert(name):
    _, flat = opened(name, batch_size=1)
    smaller = mp.prune_channels(flat, mp.plan_channels(flat, params=0.6, round_to=1))
    assert smaller.count_params() <= 0.6 * flat.count_params()
    (variant,) = mp.convert(smaller, ["float32"])
    interpreter = Interpreter(model_content=variant.content)
    interpreter.allocate_tensors()
    places = {detail["name"]: detail["index"] for detail in interpreter.get_input_details()}
    expected, found = [], []
    for row in zip(*tokens(smaller, 4), strict=True):
        inputs = [array[None] for array in row]
        for tensor, array in zip(smaller.inputs, inputs, strict=True):
            name = tensor._keras_history.operation.name if len(inputs) > 1 else next(iter(places))
            interpreter.set_tensor(places[name], array)
        interpreter.invoke()
        expected += run(smaller, inputs)
        found.append(interpreter.get_tensor(interpreter.get_output_details()[0]["index"]))
    assert disagreement([np.concatenate(expected)], [np.concatenate(found)]) < 1e-3
    assert np.ptp(np.concatenate(expected), axis=0).max() > 1e-3


def test_planted_weights_of_another_block_break_the_law():
    """Two blocks exchanged where weights are copied: the models differ."""
    model, flat = opened("gpt2", batch_size=2)
    inputs = tokens(flat, 2)
    # The backbone's own name depends on how many there were before.
    first, second = (layer for layer in flat.layers if layer.name.endswith("feedforward_output_dense"))
    first.set_weights(second.get_weights())
    assert disagreement(run(model, inputs), run(flat, inputs)) > 1e-2


def test_what_is_not_opened_keeps_its_channels():
    keras.utils.set_random_seed(0)
    build, shapes = BACKBONES["gpt2"]
    model = with_head(build())
    assert removable(mp.inline_layers(model, shapes, 2))[1] > 2 * removable(model)[1]
    kept = mp.inline_layers(model, shapes, 2, keep=["*transformer_layer_1"])
    assert {type(layer).__name__ for layer in kept.layers} >= {"TransformerDecoder", "EinsumDense"}
    assert law_plan(kept, ratio=0.5, round_to=2).params < kept.count_params()
