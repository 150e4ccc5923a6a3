"""A model as one list of calls: what is run again from a change on has no use for models inside models."""

import dataclasses
import itertools
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import keras

from mobileprune.graph import functional_graph, is_nested, nodes


@dataclasses.dataclass(frozen=True)
class FlatCall:
    """One call of a layer or op that is no nested model: its Keras node, and the numbers of the tensors around it."""

    node: Any
    reads: tuple[int, ...]
    makes: tuple[int, ...]

    def run(self, tensors: Mapping[int, Any]) -> list[Any]:
        """What it makes of tensors by number, in the order of `makes`."""
        given = {id(kept): tensors[number] for kept, number in zip(self.node.input_tensors, self.reads, strict=True)}
        args, kwargs = self.node.arguments.fill_in(given)
        made: list[Any] = keras.tree.flatten(self.node.operation(*args, **kwargs))
        return made


class FlatGraph:
    """The calls of a model in order, nested models looked into at each of their calls.

    Args:
        model: a built functional or Sequential model; not changed.

    Attributes:
        calls: in an order in which each reads only what is there.
        inputs, outputs: numbers of the model's own tensors, in its order.

    Raises:
        ModelError: the model is subclassed or not built.
    """

    def __init__(self, model: Any) -> None:
        graph = functional_graph(model)
        self.calls: list[FlatCall] = []
        self._free = itertools.count()
        self._numbers: dict[int, list[int]] = defaultdict(list)
        known = {id(tensor): next(self._free) for tensor in graph.inputs}
        self.inputs = list(known.values())
        self._flatten(graph, known)
        self.outputs = [known[id(tensor)] for tensor in graph.outputs]

    def numbers(self, tensor: int) -> list[int]:
        """The numbers of a tensor of the graph or of a nested one, given by its `id`: one in each call of its graph."""
        return self._numbers.get(tensor, [])

    def _flatten(self, graph: Any, known: dict[int, int]) -> None:
        """Adds the calls of a graph; `known` has the numbers of its inputs and gets those of all its tensors."""
        for tensor in graph.inputs:
            self._numbers[id(tensor)].append(known[id(tensor)])
        for node in nodes(graph):
            if isinstance(node.operation, keras.layers.InputLayer):
                continue
            reads = tuple(known[id(tensor)] for tensor in node.input_tensors)
            if is_nested(node.operation):
                inner = functional_graph(node.operation)
                inside = dict(zip(map(id, inner.inputs), reads, strict=True))
                self._flatten(inner, inside)
                makes = tuple(inside[id(tensor)] for tensor in inner.outputs)
            else:
                makes = tuple(next(self._free) for _ in node.output_tensors)
                self.calls.append(FlatCall(node, reads, makes))
            for tensor, number in zip(node.output_tensors, makes, strict=True):
                known[id(tensor)] = number
                self._numbers[id(tensor)].append(number)
