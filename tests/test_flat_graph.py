import keras
import numpy as np
import pytest

from mobileprune.errors import ModelError
from mobileprune.flat_graph import FlatGraph

layers = keras.layers


def nested():
    """A tower that is called twice, inside a model that is called once."""
    tower_input = keras.Input((4,), name="tower_input")
    tower = keras.Model(tower_input, layers.Dense(4, name="dense")(tower_input), name="tower")
    inner_input = keras.Input((4,), name="inner_input")
    inner = keras.Model(inner_input, layers.Add(name="add")([tower(inner_input), inner_input]), name="inner")
    inputs = keras.Input((4,))
    return keras.Model(inputs, layers.Dense(2, name="head")(tower(inner(inputs)))), tower


def test_nested_models_are_opened_at_each_call():
    model, tower = nested()
    flat = FlatGraph(model)
    assert [call.node.operation.name for call in flat.calls] == ["dense", "add", "dense", "head"]
    first, add, second, head = flat.calls
    assert first.reads == tuple(flat.inputs)
    assert add.reads == (*first.makes, *flat.inputs)
    assert second.reads == add.makes
    assert (head.reads, head.makes) == (second.makes, tuple(flat.outputs))
    assert flat.numbers(id(tower.outputs[0])) == [*first.makes, *second.makes]
    assert flat.numbers(id(tower.inputs[0])) == [*flat.inputs, *add.makes]
    assert flat.numbers(0) == []


def test_the_calls_one_after_another_are_the_model():
    model, _ = nested()
    flat = FlatGraph(model)
    images = np.random.default_rng(0).normal(size=(3, 4)).astype("float32")
    known = dict(zip(flat.inputs, [keras.ops.convert_to_tensor(images)], strict=True))
    for call in flat.calls:
        known.update(zip(call.makes, call.run(known), strict=True))
    np.testing.assert_allclose(known[flat.outputs[0]], model(images), rtol=1e-5)


def test_a_model_without_a_graph_is_refused():
    class Subclassed(keras.Model):
        def call(self, x):
            return x

    with pytest.raises(ModelError):
        FlatGraph(Subclassed())
