"""Runs a model call by call over calibration images, keeping only the tensors that are still to be read.

What stands between the calls may look at activations and change weights: the calls that follow see the change. One
pass over the network is enough to re-fit every layer on what the layers before it have become.
"""

import dataclasses
from collections import Counter
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from mobileprune.errors import DatasetError
from mobileprune.graph import functional_graph, is_nested, nodes

# As many input values are run at once: more would only cost memory.
_VALUES_AT_ONCE = 2**22


@dataclasses.dataclass
class Step:
    """One call of the graph, about to be made.

    Attributes:
        path: the name of the layer or op; inside nested models `outer/inner`.
        node: Keras' record of the call.
        tensors: the tensors that are still to be read by `id` of the graph's own, each as a list of batches.
    """

    path: str
    node: Any
    tensors: dict[int, list[Any]]
    _outputs: list[list[Any]] | None = None

    @property
    def operation(self) -> Any:
        """The Keras layer or op."""
        return self.node.operation

    @property
    def inputs(self) -> list[list[Any]]:
        """For each tensor that the call reads its batches."""
        return [self.tensors[id(tensor)] for tensor in self.node.input_tensors]

    @property
    def outputs(self) -> list[list[Any]]:
        """For each tensor that the call writes its batches; computed when first asked for."""
        if self._outputs is None:
            batches = []
            for index in range(len(self.inputs[0])):
                known = {id(tensor): self.tensors[id(tensor)][index] for tensor in self.node.input_tensors}
                args, kwargs = self.node.arguments.fill_in(known)
                batches.append(keras.tree.flatten(self.operation(*args, **kwargs)))
            self._outputs = [list(parts) for parts in zip(*batches, strict=True)]
        return self._outputs


def play(model: Any, images: Any) -> Iterator[Step]:
    """Steps through all calls of a model in inference mode, each before it is made.

    Args:
        model: a built functional or Sequential model; nested models are stepped through, too.
        images: an array (images, …) for a model of one input, or a list of arrays, one for each input.

    Raises:
        DatasetError: the images do not fit the model's inputs.
    """
    graph = functional_graph(model)
    given = [np.asarray(array, np.float32) for array in (images if isinstance(images, list | tuple) else [images])]
    if len(given) != len(graph.inputs):
        raise DatasetError(f"{model.name!r} has {len(graph.inputs)} inputs; calibration data for {len(given)} were given.")
    for array, tensor in zip(given, graph.inputs, strict=True):
        fits = array.ndim == len(tensor.shape) and all(
            said in (None, size) for said, size in zip(tensor.shape[1:], array.shape[1:], strict=True)
        )
        if not fits or not len(array) or len(array) != len(given[0]):
            raise DatasetError(f"Input {tensor.name!r} is {tuple(tensor.shape)}; calibration data are {array.shape}.")
    at_once = max(1, min(64, _VALUES_AT_ONCE // max(1, sum(array[0].size for array in given))))
    tensors = {
        id(tensor): [keras.ops.convert_to_tensor(array[at : at + at_once]) for at in range(0, len(array), at_once)]
        for array, tensor in zip(given, graph.inputs, strict=True)
    }
    yield from _play(graph, tensors, "")


def _play(graph: Any, tensors: dict[int, list[Any]], prefix: str) -> Iterator[Step]:
    calls = [node for node in nodes(graph) if not isinstance(node.operation, keras.layers.InputLayer)]
    waiting = Counter(id(tensor) for node in calls for tensor in {id(t): t for t in node.input_tensors}.values())
    waiting.update(id(tensor) for tensor in graph.outputs)
    for node in calls:
        path = prefix + node.operation.name
        step = Step(path, node, tensors)
        if is_nested(node.operation):
            inner = functional_graph(node.operation)
            inside = {id(tensor): batches for tensor, batches in zip(inner.inputs, step.inputs, strict=True)}
            yield from _play(inner, inside, f"{path}/")
            made = [inside[id(tensor)] for tensor in inner.outputs]
        else:
            yield step
            made = step.outputs
        for tensor, batches in zip(node.output_tensors, made, strict=True):
            if waiting[id(tensor)]:
                tensors[id(tensor)] = batches
        for tensor in {id(t): t for t in node.input_tensors}:
            waiting[tensor] -= 1
            if not waiting[tensor]:
                del tensors[tensor]
