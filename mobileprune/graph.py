"""Reading and rebuilding the graph of a Keras model."""

from collections.abc import Callable, Iterator, Mapping
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


def nodes(graph: Any) -> Iterator[Any]:
    """The calls of a functional graph, each after those that it reads from."""
    for depth in sorted(graph._nodes_by_depth, reverse=True):
        yield from graph._nodes_by_depth[depth]


def is_nested(operation: Any) -> bool:
    """Whether a layer is a model with a graph of its own."""
    return isinstance(operation, keras.Sequential) or (
        isinstance(operation, keras.Model) and hasattr(operation, "_nodes_by_depth")
    )


def model_over_time(operation: Any) -> Any | None:
    """The model with a graph of its own that a `TimeDistributed` runs on each time step; None for anything else."""
    inner = operation.layer if type(operation) is keras.layers.TimeDistributed else None
    return inner if is_nested(inner) else None


def is_channels_last(operation: Any) -> bool:
    """Whether a layer or op takes its channels from the last axis."""
    return bool((getattr(operation, "data_format", None) or keras.config.image_data_format()) == "channels_last")


def leaves(model: Any, prefix: str = "", over_time: bool = False) -> Iterator[tuple[str, Any]]:
    """Every layer that is no nested model, by its path (`outer/inner`), in the order of the model's layers.

    Args:
        model: the model.
        prefix: of all paths.
        over_time: whether models that are run on each time step are looked into, too.
    """
    for layer in model.layers:
        inner = model_over_time(layer) if over_time else None
        if is_nested(layer):
            yield from leaves(layer, f"{prefix}{layer.name}/", over_time)
        elif inner is not None:
            yield from leaves(inner, f"{prefix}{layer.name}/{inner.name}/", over_time)
        else:
            yield prefix + layer.name, layer


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


def rebuild(
    model: Any,
    layer_for: Callable[[Any], Any],
    call_for: Callable[[Any, tuple[Any, ...], dict[str, Any]], Any],
    shape_for: Callable[[Any], tuple[int | None, ...]],
    instead: Mapping[int, Any] | None = None,
) -> Any:
    """A new uncompiled model with the calls of `model`, each made anew.

    Args:
        model: a built functional or Sequential model; not changed.
        layer_for: the new layer in the place of a layer.
        call_for: makes a call anew: receives Keras' record of the old one and the new arguments, returns the outputs.
            A Sequential model calls its layers itself.
        shape_for: the shape of the new input tensor in the place of an old one, with the batch.
        instead: for ids of tensors the tensors that stand earlier and are read in their place; calls that nobody
            reads then are not made.
    """
    graph = functional_graph(model)
    instead = resolved(instead or {})
    live = live_calls(graph, instead)
    if isinstance(model, keras.Sequential):
        head = _same_input(graph.inputs[0], shape_for(graph.inputs[0]))
        left = {id(node.operation) for node in nodes(graph) if id(node) in live}
        kept = [layer_for(layer) for layer in model.layers if id(layer) in left]
        # Keras does not call a Sequential of no layers.
        return keras.Sequential([head, *(kept or [keras.layers.Identity(name="nothing")])], name=model.name)
    known: dict[int, Any] = {}
    for node in nodes(graph):
        if isinstance(node.operation, keras.layers.InputLayer):
            made = _same_input(node.output_tensors[0], shape_for(node.output_tensors[0]))
        elif id(node) in live:
            made = call_for(node, *node.arguments.fill_in(known))
        else:
            continue
        for old, new in zip(node.output_tensors, keras.tree.flatten(made), strict=True):
            known[id(old)] = new
            known.update((key, new) for key, tensor in instead.items() if tensor is old)
    inputs, outputs = (
        keras.tree.map_structure(lambda tensor: known[id(tensor)], ends) for ends in (graph.input, graph.output)
    )
    return keras.Model(inputs, outputs, name=model.name)


def resolved(instead: Mapping[int, Any]) -> dict[int, Any]:
    """The same substitutions, each by a tensor that is not substituted itself."""
    found = {}
    for key, tensor in instead.items():
        while id(tensor) in instead:
            tensor = instead[id(tensor)]
        found[key] = tensor
    return found


def live_calls(graph: Any, instead: Mapping[int, Any]) -> set[int]:
    """Ids of Keras' records of the calls that the outputs of a graph depend on.

    Args:
        graph: a functional graph.
        instead: for ids of tensors those that are read in their place, see `resolved`.
    """
    needed = {id(instead.get(id(tensor), tensor)) for tensor in graph.outputs}
    live = set()
    for node in reversed(list(nodes(graph))):
        if any(id(tensor) in needed for tensor in node.output_tensors):
            live.add(id(node))
            needed |= {id(instead.get(id(tensor), tensor)) for tensor in node.input_tensors}
    return live


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


def read_only(weight: Any) -> np.ndarray:
    """A weight's values, of a variable without the copy that numpy makes of it: not to be kept or written to."""
    values = np.asarray(weight.value.value() if isinstance(weight, keras.Variable) else weight).view()
    values.flags.writeable = False
    return values


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


def _same_input(tensor: Any, shape: tuple[int | None, ...] | None = None) -> Any:
    name = tensor._keras_history.operation.name
    return keras.Input(batch_shape=tensor.shape if shape is None else shape, dtype=tensor.dtype, name=name)
