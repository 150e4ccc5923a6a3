"""Models of stock layers from Keras 3 to Keras 2 and back: the same graph, made anew call by call."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from mobileprune.errors import InteropError
from mobileprune.graph import functional_graph, nodes
from mobileprune.interop import operations, process
from mobileprune.interop.layers import Side, carry_weights, converted


def to_tf_keras(model: Any) -> Any:
    """The same model in tf_keras (Keras 2), for tools that know nothing else.

    Args:
        model: a built Sequential or functional Keras 3 model of stock layers and common `keras.ops`; not changed.

    Returns:
        A new uncompiled tf_keras model with equal outputs and weights and the same names of layers. Activations that
        Keras 2 lacks (`relu6`, `hard_silu`) are registered with it as `mobileprune>NAME`.

    Raises:
        InteropError: layers, settings or operations without an equivalent; they are listed.
        ModelError: the model is subclassed or has no input shape.

    Example:
        >>> twin = to_tf_keras(keras.applications.MobileNetV2(weights=None))        # doctest: +SKIP
        >>> twin.save("mobilenet_v2.h5")                                            # doctest: +SKIP
    """
    return _Rebuild(_new(), _old()).model(model)


def to_keras_3(model: Any) -> Any:
    """The plain Keras 3 model of a tf_keras one; wrappers of tfmot come off, with exact zeros where masks are 0."""
    return _Rebuild(_old(), _new()).model(model)


def tf_keras_leaves(model: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every layer of a tf_keras model that is no nested model, wrapped or not, by the path that `graph.leaves` gives
    its twin."""
    for layer in model.layers:
        if isinstance(layer, process.tf_keras().Model):
            yield from tf_keras_leaves(layer, f"{prefix}{layer.name}/")
        else:
            yield prefix + unwrapped(layer).name, layer


def unwrapped(layer: Any) -> Any:
    """The layer inside tfmot's wrapper; other layers as they are."""
    return layer.layer if is_wrapped(layer) else layer


def is_wrapped(layer: Any) -> bool:
    kind = type(layer)
    return kind.__name__ == "PruneLowMagnitude" and kind.__module__.startswith("tensorflow_model_optimization.")


def project(layer: Any) -> None:
    """Zeroes what the masks of tfmot's wrapper remove: it does so itself only before the next batch."""
    for weights, mask, _ in getattr(layer, "pruning_vars", ()) if is_wrapped(layer) else ():
        # Not a product: that leaves negative zeros, whose sign bits make files compress worse.
        weights.assign(np.where(mask.numpy() > 0, weights.numpy(), 0).astype(weights.numpy().dtype))


def _new() -> Side:
    return Side(keras, is_new=True)


def _old() -> Side:
    return Side(process.tf_keras(), is_new=False)


@dataclasses.dataclass(frozen=True)
class _Call:
    """A call of a graph: what was called, with what, and the tensors that came out."""

    operation: Any
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    outputs: list[Any]
    is_input: bool


class _Rebuild:
    """The models of `target` for models of `source`; a layer that occurs twice is made once."""

    def __init__(self, source: Side, target: Side) -> None:
        self.source, self.target = source, target
        self.made: dict[int, list[Any]] = {}
        self.pairs: list[tuple[Any, Any]] = []

    def model(self, model: Any) -> Any:
        missing = list(dict.fromkeys(self._missing(model)))
        if missing:
            more = f"; … ({len(missing)} in all)" if len(missing) > 8 else ""
            raise InteropError(
                f"{model.name!r} has no equal in {self.target.title}: {'; '.join(missing[:8])}{more}. Replace "
                "these by stock layers that both know. mobileprune's own prune_low_magnitude "
                "needs no tf_keras."
            )
        made = self._graph(model)
        for old, new in self.pairs:
            carry_weights(old, new)
            new.trainable = old.trainable
        return made

    def _missing(self, model: Any) -> Iterator[str]:
        """Says of everything that cannot be converted what and why, and converts the rest."""
        for call in self._calls(model):
            operation = call.operation
            try:
                if self._is_model(operation):
                    yield from self._missing(operation)
                elif call.keywords.get("training") is True and not self.source.is_new:
                    yield f"{operation.name!r} ({type(operation).__name__}): it was called with training=True"
                elif not call.is_input and id(operation) not in self.made:
                    self._make(operation)
            except InteropError as error:
                yield f"{operation.name!r} ({type(operation).__name__}): {error}"

    def _make(self, operation: Any) -> None:
        if not isinstance(operation, self.source.keras.layers.Layer) or _is_function(operation):
            self._function(operation)
            return
        layer = unwrapped(operation)
        project(operation)
        twins = converted(layer, self.source, self.target)
        self.made[id(operation)] = twins
        self.pairs.append((layer, twins[0]))

    def _function(self, operation: Any) -> Any:
        if self.source.is_new:
            return operations.for_keras_2(operation)
        return operations.for_keras_3(operation.get_config()["function"])

    def _graph(self, model: Any) -> Any:
        kinds = self.target.keras
        if isinstance(model, self.source.keras.Sequential):
            calls = list(self._calls(model))
            twins = [twin for layer in model.layers for twin in self._twins(layer)]
            head = self._input(calls[0].outputs[0], calls[0].operation.name)
            return kinds.Sequential([head, *twins], name=model.name)
        known: dict[int, Any] = {}
        for call in self._calls(model):
            if call.is_input:
                made = self._input(call.outputs[0], call.operation.name)
            else:
                arguments, keywords = _filled((call.arguments, call.keywords), known)
                made = self._called(call.operation, arguments, keywords)
            for old, new in zip(call.outputs, _flat(made), strict=True):
                known[id(old)] = new
        ends = (model.input, model.output) if self.source.is_new else (model._nested_inputs, model._nested_outputs)
        inputs, outputs = _filled(ends, known)
        return kinds.Model(inputs, outputs, name=model.name)

    def _twins(self, layer: Any) -> list[Any]:
        if not self._is_model(layer):
            return self.made.get(id(layer), [])  # an input layer has none
        if id(layer) not in self.made:
            self.made[id(layer)] = [self._graph(layer)]
        return self.made[id(layer)]

    def _called(self, operation: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        # Keras 3 passes its own mode to every layer, whatever the layer was called with when the graph was made.
        keywords = {key: value for key, value in keywords.items() if value is not None and key != "training"}
        if not self._is_model(operation) and id(operation) not in self.made:
            return self._function(operation)(*arguments, **keywords)
        first, *others = self._twins(operation)
        outputs = first(*arguments, **keywords)
        for layer in others:
            outputs = layer(outputs)
        return outputs

    def _is_model(self, operation: Any) -> bool:
        return isinstance(operation, self.source.keras.Model)

    def _input(self, tensor: Any, name: str) -> Any:
        dtype = tensor.dtype if self.source.is_new else tensor.dtype.name
        return self.target.keras.Input(batch_shape=tuple(tensor.shape), dtype=dtype, name=name)

    def _calls(self, model: Any) -> Iterator[_Call]:
        if self.source.is_new:
            for node in nodes(functional_graph(model)):
                arguments = node.arguments
                is_input = isinstance(node.operation, keras.layers.InputLayer)
                yield _Call(node.operation, arguments.args, arguments.kwargs, list(node.output_tensors), is_input)
            return
        if not getattr(model, "_is_graph_network", False):
            raise InteropError(
                f"the connections of {model.name!r} ({type(model).__name__}) cannot be read: it is subclassed, "
                "or has no input shape. Build it as Model(inputs, outputs)"
            )
        for depth in sorted(model._nodes_by_depth, reverse=True):
            for node in model._nodes_by_depth[depth]:
                yield _Call(node.layer, node.call_args, node.call_kwargs, _flat(node.outputs), node.is_input)


def _is_function(operation: Any) -> bool:
    return type(operation).__name__ in ("TFOpLambda", "SlicingOpLambda")


def _flat(structure: Any) -> list[Any]:
    return list(keras.tree.flatten(structure))


def _filled(structure: Any, known: dict[int, Any]) -> Any:
    return keras.tree.map_structure(lambda each: known.get(id(each), each), structure)
