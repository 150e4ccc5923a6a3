"""What a model answers once some of its weights are others, computed anew only from the first changed call on.

The graph is cut in front of every layer whose weights may change. What lies between two cuts is one traced function
that reads weights from their variables, so it serves for every value that they may get. The tensors that cross a cut
are kept for all images, and the cut only ever moves towards the outputs: whoever changes layers in the order of the
graph runs what lies in front of them once.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras.src.backend.common.masking import get_keras_mask, set_keras_mask

from mobileprune.errors import ModelError
from mobileprune.flat_graph import FlatGraph
from mobileprune.graph import functional_graph
from mobileprune.playback import checked_inputs

# More images at once only fall out of the processor's caches.
_MOST_AT_ONCE, _VALUES_AT_ONCE = 64, 2**22
_TENSOR, _MASK = "tensor ", "mask of "

Tensors = dict[str, Any]
"""Tensors of one batch by their key; the masks that Keras attaches to tensors beside them."""


@dataclasses.dataclass
class Head:
    """How far a network has been run; `PartialRuns.advance` moves it.

    Attributes:
        cut: the number of the cut; everything in front of it has been run.
        batches: for each batch of images the tensors that are still to be read.
    """

    cut: int
    batches: list[Tensors]


class PartialRuns:
    """A model that can be run from any of its changed layers on.

    Args:
        model: a built functional or Sequential model; nested models are cut inside, too.
        changed: the layers whose weights will change.

    Raises:
        ModelError: the model is subclassed or not built, or a layer is none of the model's.

    Example:
        >>> runs = PartialRuns(model, [layer])                          # doctest: +SKIP
        >>> head = runs.start(images)                                   # doctest: +SKIP
        >>> runs.advance(head, runs.cut(layer))                         # doctest: +SKIP
        >>> with assigned([(layer.kernel, kernel)]):                    # doctest: +SKIP
        ...     outputs = runs.finish(head)
    """

    def __init__(self, model: Any, changed: Collection[Any]) -> None:
        self._model = model
        flat = FlatGraph(model)
        self._calls = flat.calls
        self._inputs, self._outputs = [_key(each) for each in flat.inputs], [_key(each) for each in flat.outputs]
        first: dict[int, int] = {}
        for place, call in enumerate(self._calls):
            first.setdefault(id(call.node.operation), place)
        for layer in changed:
            if id(layer) not in first:
                raise ModelError(f"{type(layer).__name__} {layer.name!r} is never called in model {model.name!r}.")
        cuts = sorted({0, *(first[id(layer)] for layer in changed)})
        self._cut_of = {id(layer): cuts.index(first[id(layer)]) for layer in changed}
        self._ends = [*cuts[1:], len(self._calls)]
        self._functions: dict[Any, Callable[[Tensors], Tensors]] = {}

    def cut(self, *layers: Any) -> int:
        """The number of the last cut that lies in front of all calls of these layers."""
        return min(self._cut_of[id(layer)] for layer in layers)

    @property
    def last_cut(self) -> int:
        """The number of the cut behind all calls."""
        return len(self._ends)

    def start(self, images: Any) -> Head:
        """Nothing has been run yet.

        Args:
            images: an array (images, …), or a list of arrays, one for each input.

        Raises:
            DatasetError: the images do not fit the model's inputs.
        """
        given = checked_inputs(self._model, images)
        values = sum(array[0].size for array in given)
        batches = -(-len(given[0]) // max(1, min(_MOST_AT_ONCE, _VALUES_AT_ONCE // max(1, values))))
        tensors = functional_graph(self._model).inputs
        parts = [np.array_split(array, batches) for array in given]
        return Head(
            0,
            [
                {
                    key: keras.ops.cast(part, tensor.dtype)
                    for key, part, tensor in zip(self._inputs, batch, tensors, strict=True)
                }
                for batch in zip(*parts, strict=True)
            ],
        )

    def advance(self, head: Head, cut: int) -> None:
        """Runs on to a cut further back, with the weights as they are now."""
        if cut < head.cut:
            raise ValueError(f"The network has been run to cut {head.cut}, which lies behind cut {cut}.")
        while head.cut < cut:
            function = self._function(head.cut, head.batches[0])
            # One batch after the other lets go of what it came from.
            for place, batch in enumerate(head.batches):
                head.batches[place] = function(batch)
            head.cut += 1

    def finish(self, head: Head) -> list[np.ndarray]:
        """The model's outputs, each (images, …), with the weights as they are now; `head` stays where it is."""
        found: list[list[np.ndarray]] = []
        for batch in head.batches:
            tensors = batch
            for number in range(head.cut, self.last_cut):
                tensors = self._function(number, tensors)(tensors)
            found.append([np.asarray(tensors[key]) for key in self._outputs])
        return [np.concatenate(batches) for batches in zip(*found, strict=True)]

    def kept_bytes(self, images: Any) -> int:
        """The most bytes that an image takes at any cut, found by running one."""
        one = [array[:1] for array in checked_inputs(self._model, images)]
        head, most = self.start(one), 0
        for cut in range(self.last_cut):
            self.advance(head, cut)
            most = max(
                most, sum(tensor.shape.num_elements() * tensor.dtype.size for tensor in head.batches[0].values())
            )
        return most

    def _function(self, number: int, tensors: Tensors) -> Callable[[Tensors], Tensors]:
        """What runs from one cut to the next, traced when it is first needed, for any number of images.

        Only where images do not stay on the first axis it is traced for each number of them.
        """
        wanted = number, tuple((key, tuple(tensor.shape[1:])) for key, tensor in sorted(tensors.items()))
        if wanted not in self._functions:
            begin = self._ends[number - 1] if number else 0
            calls, rest = self._calls[begin : self._ends[number]], self._calls[self._ends[number] :]
            kept = {_key(number) for call in rest for number in call.reads} | set(self._outputs)

            def run(given: Tensors) -> Tensors:
                known = {_number(key): tensor for key, tensor in given.items() if not key.startswith(_MASK)}
                for number, tensor in known.items():
                    if _MASK + _key(number) in given:
                        set_keras_mask(tensor, given[_MASK + _key(number)])
                for call in calls:
                    known.update(zip(call.makes, call.run(known), strict=True))
                left = {_key(number): tensor for number, tensor in known.items() if _key(number) in kept}
                masks = {_MASK + key: get_keras_mask(tensor) for key, tensor in left.items()}
                return left | {key: mask for key, mask in masks.items() if mask is not None}

            signature = {
                key: tf.TensorSpec([None, *tensor.shape[1:]] if tensor.shape.rank else [], tensor.dtype)
                for key, tensor in tensors.items()
            }
            self._functions[wanted] = tf.function(run, autograph=False).get_concrete_function(signature)
        return self._functions[wanted]


@contextlib.contextmanager
def assigned(weights: Sequence[tuple[Any, np.ndarray]]) -> Iterator[None]:
    """Inside, variables have other values; afterwards they have their own again, whatever happened."""
    before = [(variable, np.array(variable)) for variable, _ in weights]
    try:
        for variable, values in weights:
            variable.assign(values)
        yield
    finally:
        for variable, values in before:
            variable.assign(values)


def _key(number: int) -> str:
    """What a traced function calls a tensor of the flat graph: it takes strings only."""
    return f"{_TENSOR}{number}"


def _number(key: str) -> int:
    return int(key.removeprefix(_TENSOR))
