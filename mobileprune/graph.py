"""Reading and rebuilding the graph of a Keras model."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from mobileprune.errors import ModelError


def functional_graph(model: Any) -> Any:
    """The functional graph of a built Sequential or functional model.

    Raises:
        ModelError: there is none.
    """
    if isinstance(model, keras.Sequential):
        graph = model._functional if model.built else None
        if graph is None:
            raise ModelError(f"Sequential model {model.name!r} has no input shape. Start it with keras.Input(shape).")
        return graph
    if hasattr(model, "_nodes_by_depth") and getattr(model, "operations", None):
        return model
    raise ModelError(
        f"Model {model.name!r} ({type(model).__name__}) is subclassed: its layers' connections cannot be read. "
        "Build it as keras.Model(inputs, outputs) from the same layers."
    )


def clone(model: Any, clone_layer: Callable[[Any], Any]) -> Any:
    """A new uncompiled model of the same graph with `clone_layer(layer)` in the place of each layer.

    Weights are what `clone_layer` made them; names of the model and of its inputs stay.
    """
    if isinstance(model, keras.Sequential):
        head = _same_input(functional_graph(model).inputs[0])
        return keras.Sequential([head, *(clone_layer(layer) for layer in model.layers)], name=model.name)
    functional_graph(model)
    inputs = keras.tree.map_structure(_same_input, model.input)
    # A fresh Model over the same graph: cloning a compiled one would try to compile the clone.
    plain = keras.Model(model.input, model.output, name=model.name)
    return keras.models.clone_model(plain, input_tensors=inputs, clone_function=clone_layer)


def same_layer(layer: Any) -> Any:
    """A fresh layer of the same configuration."""
    return type(layer).from_config(layer.get_config())


def inline_nested(model: Any) -> Any:
    """The same model with the layers of nested models in the outer graph, sharing all weights.

    A nested model that was called with `training=False` follows the outer model's mode afterwards.

    Raises:
        ModelError: a nested model is subclassed, or two layers have the same name.
    """
    if not any(isinstance(layer, keras.Model) for layer in model.layers):
        return model

    def call(operation: Any, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(operation, keras.Model):
            return operation(*args, **kwargs)
        return functional_graph(operation)._run_through_graph(args[0], operation_fn=lambda inner: inner, call_fn=call)

    graph = functional_graph(model)
    inputs = keras.tree.map_structure(_same_input, graph.input)
    outputs = graph._run_through_graph(inputs, operation_fn=lambda layer: layer, call_fn=call)
    try:
        return keras.Model(inputs, outputs, name=model.name)
    except ValueError as error:
        raise ModelError(f"The models nested in {model.name!r} cannot be joined: {error}") from error


def check_finite(model: Any) -> None:
    """Refuses a model with NaN or infinite weights, naming the first such weight by its path.

    Raises:
        ModelError: with how many of its values are not finite.
    """
    for variable in model.variables:
        values = np.asarray(variable.value)
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            wrong = int(np.size(values) - np.count_nonzero(np.isfinite(values)))
            raise ModelError(
                f"Weight {variable.path!r} holds {wrong} values that are NaN or infinite, of {values.size}. "
                "Train again with a lower learning rate, or go back to an earlier checkpoint."
            )


def _same_input(tensor: Any) -> Any:
    name = tensor._keras_history.operation.name
    return keras.Input(batch_shape=tensor.shape, dtype=tensor.dtype, name=name)
