import keras
import numpy as np
import pytest
from architectures import ARCHITECTURES, random_inputs, randomise
from laws.block_removal import answers, difference
from zoo_architectures import ZOO

from mobileprune.graph import functional_graph
from mobileprune.rerun import Rerun

layers = keras.layers
NETWORKS = {
    **ARCHITECTURES,
    **{name: ZOO[name] for name in ("siamese", "nested_deeply", "nested_outputs", "cross_attention", "ssd")},
}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_outputs_are_the_models(name):
    model = randomise(NETWORKS[name]())
    inputs = random_inputs(model, batch=2)
    runs = Rerun(model)
    assert difference(answers(model, inputs), runs.answers(runs.run(inputs))) < 1e-5


def twice():
    """A nested model that is called twice, with its first layer's output at hand."""
    inner = keras.Input((4,))
    first = layers.Dense(4, name="first")(inner)
    second = layers.Dense(4, name="second")(first)
    tower = keras.Model(inner, layers.Dense(4, name="third")(second), name="tower")
    left, right = keras.Input((4,), name="left"), keras.Input((4,), name="right")
    joined = layers.Concatenate(name="joined")([tower(left), tower(layers.ReLU(name="relu")(right))])
    return randomise(keras.Model([left, right], layers.Dense(2, name="head")(joined))), tower, first, second


def test_a_tensor_of_a_nested_model_is_replaced_in_every_call():
    model, tower, first, second = twice()
    inputs = random_inputs(model, batch=3)
    runs = Rerun(model)
    known = runs.run(inputs)
    found = runs.answers(runs.again(known, {id(second): first}))
    assert len(runs.tensors(known, second)) == 2
    shorter = keras.Model(functional_graph(tower).inputs, tower.get_layer("third")(first))
    halves = [shorter(inputs[0]), shorter(np.maximum(inputs[1], 0))]
    expected = [np.asarray(model.get_layer("head")(keras.ops.concatenate(halves, axis=-1)))]
    assert difference(expected, found) < 1e-5
    assert difference(answers(model, inputs), found) > 1e-3


def test_what_was_known_stays_as_it_was():
    model, _, first, second = twice()
    inputs = random_inputs(model, batch=3)
    runs = Rerun(model)
    known = runs.run(inputs)
    runs.again(known, {id(second): first})
    assert difference(answers(model, inputs), runs.answers(known)) < 1e-5
    assert runs.again(known, {}) is known


def test_what_stands_behind_is_told_once_each():
    model, _, first, second = twice()
    behind = [operation.name for operation in Rerun(model).behind({id(second): first})]
    assert behind == ["third", "joined", "head"]
