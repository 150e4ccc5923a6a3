"""Layers that call other layers, written out: their inner layers become part of the model's own graph.

A block of a library is one node of the graph, and its configuration sets one width for much of what is inside. Its
`call` is traced once, and what it calls takes its place; every inner layer can then be pruned for itself.
"""

import fnmatch
from collections.abc import Mapping, Sequence
from typing import Any

import keras

from mobileprune.channel_calls import rule_for
from mobileprune.errors import ModelError
from mobileprune.graph import functional_graph, is_nested, nodes


def inline_layers(
    model: Any,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    batch_size: int | None = None,
    keep: Sequence[str] = (),
) -> Any:
    """A new model of the same layers, weights and outputs, without layers that only call others.

    Nested models and layers from outside Keras that have no channel rule are opened, and what they call is opened in
    turn; inner layers are named `block.inner`. Layers with weights of their own stay, and so do those that draw random
    numbers. A branch that a `call` takes by `training` is that of inference.

    Args:
        model: a built functional or Sequential model; its weights are not changed.
        input_shapes: for each named input its sizes without the batch, where the model leaves them open: calls that
            compute with sizes cannot be traced without.
        batch_size: the batch, where calls compute with it, too; such a model takes batches of this size only.
        keep: patterns of names, shell wildcards, of layers that stay as they are.

    Returns:
        An uncompiled functional model with copies of all weights.

    Raises:
        ModelError: a layer's call cannot be traced, or `input_shapes` names no input.

    Example:
        >>> backbone = keras_hub.models.GPT2Backbone.from_preset("gpt2_base_en")        # doctest: +SKIP
        >>> shapes = {"token_ids": (128,), "padding_mask": (128,)}                      # doctest: +SKIP
        >>> model = mp.inline_layers(backbone, shapes, batch_size=1)                    # doctest: +SKIP
        >>> mp.prune_channels(model, mp.plan_channels(model, params=0.5))               # doctest: +SKIP
    """
    graph = functional_graph(model)
    shapes = dict(input_shapes or {})
    known: dict[int, Any] = {}
    for tensor in graph.inputs:
        name = tensor._keras_history.operation.name
        batch_shape = (batch_size or tensor.shape[0], *shapes.pop(name, tensor.shape[1:]))
        known[id(tensor)] = keras.Input(batch_shape=batch_shape, dtype=tensor.dtype, name=name)
    if shapes:
        names = ", ".join(repr(tensor._keras_history.operation.name) for tensor in graph.inputs)
        raise ModelError(f"{model.name!r} has no input {next(iter(shapes))!r}. Its inputs are {names}.")
    inlining = _Inlining(keep)
    inlining.replay(graph, known, "")
    ends = [keras.tree.map_structure(lambda tensor: known[id(tensor)], end) for end in (graph.input, graph.output)]
    inlining.name_apart(*ends)
    found = keras.Model(*ends, name=model.name)
    inlining.copy_weights(model)
    return found


class _Inlining:
    """Calls made anew on other tensors, those of layers that can be opened by what they call."""

    def __init__(self, keep: Sequence[str]) -> None:
        self._keep = keep
        self._fresh: dict[int, tuple[Any, Any]] = {}
        self._names: set[str] = set()

    def replay(self, graph: Any, known: dict[int, Any], prefix: str) -> None:
        """Makes the calls of a graph anew; `known` has the new inputs by the old ones' ids, and gets all others."""
        for node in nodes(graph):
            if all(id(tensor) in known for tensor in node.output_tensors):
                continue
            args, kwargs = node.arguments.fill_in(known)
            made = self.call(node.operation, args, kwargs, prefix)
            known.update(zip((id(tensor) for tensor in node.output_tensors), keras.tree.flatten(made), strict=True))

    def call(self, operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any], prefix: str) -> Any:
        """One call made anew; `prefix` is the name of the layer around it, with a dot."""
        if not isinstance(operation, keras.Layer):
            return operation(*args, **kwargs)
        path = prefix + operation.name
        if any(fnmatch.fnmatchcase(path, pattern) for pattern in self._keep):
            return self._same(operation, path, args)(*args, **kwargs)
        if is_nested(operation):
            inner = functional_graph(operation)
            given = keras.tree.flatten(args[0] if len(args) == 1 else args)
            known = {id(tensor): new for tensor, new in zip(inner.inputs, given, strict=True)}
            self.replay(inner, known, f"{path}.")
            return keras.tree.map_structure(lambda tensor: known[id(tensor)], inner.output)
        if not _can_be_opened(operation, args, kwargs):
            return self._same(operation, path, args)(*args, **kwargs)
        try:
            return type(operation).call(self._double(operation, f"{path}."), *args, **kwargs)
        except (TypeError, ValueError, AttributeError, NotImplementedError) as error:
            raise ModelError(
                f"What {type(operation).__name__} {path!r} calls cannot be traced: {' '.join(str(error).split())} "
                f"Give input_shapes= and batch_size=, or keep=[{path!r}]."
            ) from error

    def _double(self, layer: Any, prefix: str) -> Any:
        """A double of a layer that shares all it has, but hands calls of its inner layers to `call`."""
        double = object.__new__(type(layer))
        for name, value in vars(layer).items():
            if not name.startswith(_OF_KERAS):
                value = self._handed(value, prefix)
            vars(double)[name] = value
        return double

    def _handed(self, value: Any, prefix: str) -> Any:
        if isinstance(value, keras.Layer):
            return _Handed(self, value, prefix)
        if isinstance(value, list | tuple) and any(isinstance(each, keras.Layer) for each in value):
            return [self._handed(each, prefix) for each in value]
        if isinstance(value, dict) and any(isinstance(each, keras.Layer) for each in value.values()):
            return {key: self._handed(each, prefix) for key, each in value.items()}
        return value

    def _same(self, layer: Any, path: str, args: tuple[Any, ...]) -> Any:
        """The new layer in the place of an old one; the same whenever a shared layer is met again."""
        if id(layer) not in self._fresh:
            try:
                config = layer.get_config()
                if type(layer) is keras.layers.EinsumDense:
                    config["output_shape"] = _known_sizes(layer, args[0].shape)
                new = type(layer).from_config({**config, "name": self._unique(path)})
            except (TypeError, ValueError, AttributeError, NotImplementedError) as error:
                raise ModelError(f"{type(layer).__name__} {path!r} cannot be made anew: {error}") from error
            self._fresh[id(layer)] = (layer, new)
        return self._fresh[id(layer)][1]

    def name_apart(self, inputs: Any, outputs: Any) -> None:
        """Gives functions whose names are those of layers others: Keras numbers both for itself."""
        given = {id(tensor) for tensor in keras.tree.flatten(inputs)}
        names = {operation.name for operation in _operations(outputs, given) if isinstance(operation, keras.Layer)}
        self._names |= names
        for operation in _operations(outputs, given):
            if not isinstance(operation, keras.Layer):
                operation.name = self._unique(operation.name)

    def copy_weights(self, model: Any) -> None:
        """Raises ModelError when a weight of `model` belongs to no layer that was made anew."""
        copied = set()
        for old, new in self._fresh.values():
            for source, destination in zip(old.weights, new.weights, strict=True):
                destination.assign(source)
                copied.add(id(source))
        for weight in model.weights:
            if id(weight) not in copied:
                raise ModelError(
                    f"Weight {weight.path!r} is read outside of the layer that owns it, or by nobody: that cannot be "
                    "traced. Name the layer around it in keep=."
                )

    def _unique(self, name: str) -> str:
        taken, number = name, 1
        while taken in self._names:
            taken, number = f"{name}_{number}", number + 1
        self._names.add(taken)
        return taken


class _Handed:
    """Stands for an inner layer: what is asked of it is the layer's own, but a call is made by `_Inlining.call`."""

    def __init__(self, inlining: _Inlining, layer: Any, prefix: str) -> None:
        self._inlining, self._layer, self._prefix = inlining, layer, prefix

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._inlining.call(self._layer, args, kwargs, self._prefix)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._layer, name)


# Keras' own lists of a layer's parts.
_OF_KERAS = ("_layers", "_tracker", "_obj_", "_metrics", "_losses")


def _can_be_opened(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a layer is one from outside Keras that only calls others, on tensors that carry no mask."""
    own = (*layer._trainable_variables, *layer._non_trainable_variables, *layer._seed_generators)
    masked = any(getattr(value, "_keras_mask", None) is not None for value in keras.tree.flatten((args, kwargs)))
    foreign = type(layer).__module__.partition(".")[0] != "keras"
    return foreign and rule_for(type(layer)) is None and not own and not masked


def _known_sizes(layer: Any, shape: tuple[int | None, ...]) -> list[int | None]:
    """The output's sizes that an EinsumDense is given, and those that it leaves to an input of this shape."""
    given = layer.get_config()["output_shape"]
    sizes = [given] if isinstance(given, int) else list(given)
    read, _, output = layer.equation.replace(" ", "").partition("->")
    known = dict(zip(reversed(read.partition(",")[0]), reversed(shape), strict=False))
    letters = output[len(output) - len(sizes) :]
    return [known.get(letter) if size is None else size for letter, size in zip(letters, sizes, strict=True)]


def _operations(outputs: Any, given: set[int]) -> list[Any]:
    """What leads from tensors with ids in `given` to `outputs`, each once."""
    found: dict[int, Any] = {}
    waiting = list(keras.tree.flatten(outputs))
    while waiting:
        tensor = waiting.pop()
        operation, index, _ = tensor._keras_history
        node = operation._inbound_nodes[index]
        if id(tensor) not in given and id(node) not in found:
            found[id(node)] = operation
            waiting.extend(node.input_tensors)
    return list({id(operation): operation for operation in found.values()}.values())
