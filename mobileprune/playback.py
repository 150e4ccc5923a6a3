"""Runs a model call by call over calibration images, keeping only the tensors that are still to be read.

What stands between the calls may look at activations and change weights: the calls that follow see the change. One
pass over the network is enough to re-fit every layer on what the layers before it have become.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from mobileprune.errors import DatasetError
from mobileprune.graph import functional_graph, is_nested, model_over_time, nodes

# As many input values are run at once: more would only cost memory.
_VALUES_AT_ONCE = 2**22


class Step:
    """One call of the graph, about to be made.

    Attributes:
        path: the name of the layer or op; inside nested models `outer/inner`.
        operation: the Keras layer or op.
        node: Keras' record of the call.
    """

    def __init__(self, path: str, node: Any, tape: "_Tape") -> None:
        self.path, self.operation = path, node.operation
        self.node, self._tape = node, tape

    def inputs(self) -> list[list[Any]]:
        """For each tensor that the call reads its batches."""
        self._tape.catch_up()
        return [self._tape.tensors[id(tensor)] for tensor in self.node.input_tensors]


def play(model: Any, images: Any) -> Iterator[Step]:
    """Steps through all calls of a model in inference mode, each before it is made.

    Args:
        model: a built functional or Sequential model; nested models are stepped through, too.
        images: an array (images, …) for a model of one input, or a list of arrays, one for each input.

    Raises:
        DatasetError: the images do not fit the model's inputs.
    """
    graph = functional_graph(model)
    given = checked_inputs(model, images)
    at_once = max(1, min(64, _VALUES_AT_ONCE // max(1, sum(array[0].size for array in given))))
    tensors = {
        id(tensor): [keras.ops.cast(array[at : at + at_once], tensor.dtype) for at in range(0, len(array), at_once)]
        for array, tensor in zip(given, graph.inputs, strict=True)
    }
    yield from _play(graph, tensors, "")


def checked_inputs(model: Any, images: Any) -> list[np.ndarray]:
    """The images as a list of arrays, one for each of the model's inputs.

    Raises:
        DatasetError: they do not fit the model's inputs, or hold values that are not finite.
    """
    inputs = functional_graph(model).inputs
    given = [np.asarray(array) for array in (images if isinstance(images, list | tuple) else [images])]
    if len(given) != len(inputs):
        raise DatasetError(f"{model.name!r} has {len(inputs)} inputs; calibration data for {len(given)} were given.")
    for array, tensor in zip(given, inputs, strict=True):
        fits = array.ndim == len(tensor.shape) and all(
            said in (None, size) for said, size in zip(tensor.shape[1:], array.shape[1:], strict=True)
        )
        if not fits or not len(array) or len(array) != len(given[0]):
            raise DatasetError(f"Input {tensor.name!r} is {tuple(tensor.shape)}; calibration data are {array.shape}.")
    for array, tensor in zip(given, inputs, strict=True):
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise DatasetError(f"The calibration data for {tensor.name!r} hold values that are NaN or infinite.")
    return given


class _Tape:
    """The tensors of one graph that are still to be read, and the calls that nobody has asked for yet.

    Calls are made when somebody asks for a tensor, all that wait at once and batch by batch: what lies between two
    questions is never held for more than one batch.
    """

    def __init__(self, graph: Any, tensors: dict[int, list[Any]], calls: list[Any]) -> None:
        self.tensors = tensors
        self._waiting: list[Any] = []
        self._readers = Counter(key for node in calls for key in {id(tensor) for tensor in node.input_tensors})
        self._readers.update(id(tensor) for tensor in graph.outputs)

    def add(self, node: Any) -> None:
        self._waiting.append(node)

    def forget(self, node: Any) -> None:
        """Says that a call is made by somebody else."""
        for key in {id(tensor) for tensor in node.input_tensors}:
            self._readers[key] -= 1
            if self._readers[key] <= 0:
                del self.tensors[key]

    def catch_up(self) -> None:
        """Makes all calls that wait and forgets what nobody reads any more."""
        if not self._waiting:
            return
        for node in self._waiting:
            self._readers.subtract({id(tensor) for tensor in node.input_tensors})
        made = {id(tensor) for node in self._waiting for tensor in node.output_tensors}
        kept: dict[int, list[Any]] = {key: [] for key in made if self._readers[key] > 0}
        batches = len(next(iter(self.tensors.values())))
        for index in range(batches):
            known = {key: found[index] for key, found in self.tensors.items()}
            for node in self._waiting:
                args, kwargs = node.arguments.fill_in(known)
                outputs = keras.tree.flatten(node.operation(*args, **kwargs))
                known.update(zip((id(tensor) for tensor in node.output_tensors), outputs, strict=True))
            for key, found in kept.items():
                found.append(known[key])
        self._waiting = []
        for key in [key for key in self.tensors if self._readers[key] <= 0]:
            del self.tensors[key]
        self.tensors.update(kept)


def _play(graph: Any, tensors: dict[int, list[Any]], prefix: str) -> Iterator[Step]:
    calls = [node for node in nodes(graph) if not isinstance(node.operation, keras.layers.InputLayer)]
    tape = _Tape(graph, tensors, calls)
    for node in calls:
        path = prefix + node.operation.name
        over_time = model_over_time(node.operation)
        if over_time is not None:
            tape.catch_up()
            inner = functional_graph(over_time)
            batches = tensors[id(node.input_tensors[0])]
            steps = batches[0].shape[1]
            inside = {id(inner.inputs[0]): [_steps_as_images(batch) for batch in batches]}
            del batches
            tape.forget(node)
            yield from _play(inner, inside, f"{path}/{over_time.name}/")
            found = inside[id(inner.outputs[0])]
            tensors[id(node.output_tensors[0])] = [_images_as_steps(batch, steps) for batch in found]
        elif is_nested(node.operation):
            tape.catch_up()
            inner = functional_graph(node.operation)
            read = [tensors[id(tensor)] for tensor in node.input_tensors]
            inside = {id(tensor): batches for tensor, batches in zip(inner.inputs, read, strict=True)}
            del read
            tape.forget(node)
            yield from _play(inner, inside, f"{path}/")
            tensors.update((id(t), inside[id(i)]) for t, i in zip(node.output_tensors, inner.outputs, strict=True))
        else:
            yield Step(path, node, tape)
            tape.add(node)
    tape.catch_up()


def _steps_as_images(batch: Any) -> Any:
    return keras.ops.reshape(batch, (-1, *batch.shape[2:]))


def _images_as_steps(batch: Any, steps: int) -> Any:
    return keras.ops.reshape(batch, (-1, steps, *batch.shape[1:]))
