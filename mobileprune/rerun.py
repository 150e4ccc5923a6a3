"""Runs a model call by call, and again only what depends on a tensor that another stands in for.

What leaving out a block does to the outputs is known without building the model that lacks it, and without what stands
before the block: its part of the network is all that is computed anew.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import keras
import numpy as np

from mobileprune.errors import DatasetError
from mobileprune.flat_graph import FlatGraph
from mobileprune.graph import functional_graph

# Keras keeps nothing here, but all tensors of a batch are held: images of so many input values at once.
_VALUES_AT_ONCE = 2**19

Tensors = dict[int, Any]
"""Tensors of one batch by their number in the flat graph."""


class Rerun:
    """A model as a flat list of calls; nested models are looked into.

    Args:
        model: a built functional or Sequential model; not changed.
    """

    def __init__(self, model: Any) -> None:
        self._inputs = functional_graph(model).inputs
        self._flat = FlatGraph(model)

    def run(self, batch: list[np.ndarray]) -> Tensors:
        """All tensors of one batch in inference mode."""
        inputs = zip(self._flat.inputs, self._inputs, batch, strict=True)
        known = {number: keras.ops.cast(array, tensor.dtype) for number, tensor, array in inputs}
        for call in self._flat.calls:
            known.update(zip(call.makes, call.run(known), strict=True))
        return known

    def again(self, known: Tensors, instead: Mapping[int, Any]) -> Tensors:
        """The tensors when others stand in for some; those that nothing changes are taken from `known`.

        Args:
            known: what `run` or `again` gave.
            instead: for ids of tensors of the graph, or of nested ones, those that are read in their place.
        """
        if not instead:
            return known
        found, changed = dict(known), set()
        # In the order in which they are made, so that one substitution sees what became of the others.
        waiting = {
            replaced: read
            for exit, entry in instead.items()
            for replaced, read in zip(self._flat.numbers(exit), self._flat.numbers(id(entry)), strict=True)
        }
        for call in self._flat.calls:
            if any(key in waiting for key in call.makes):
                for key in call.makes:
                    if key in waiting:
                        found[key] = found[waiting[key]]
                        changed.add(key)
            elif any(key in changed for key in call.reads):
                found.update(zip(call.makes, call.run(found), strict=True))
                changed.update(call.makes)
        return found

    def behind(self, instead: Mapping[int, Any]) -> list[Any]:
        """The layers and ops that what these tensors replace goes through, each once, in the order of the graph."""
        touched = {number for exit in instead for number in self._flat.numbers(exit)}
        found: dict[int, Any] = {}
        for call in self._flat.calls:
            if any(key in touched for key in call.reads):
                touched.update(call.makes)
                found[id(call.node.operation)] = call.node.operation
        return list(found.values())

    def tensors(self, known: Tensors, tensor: Any) -> list[Any]:
        """What a tensor of the graph, or of a nested one, was in each call of its graph."""
        return [known[number] for number in self._flat.numbers(id(tensor))]

    def answers(self, known: Tensors) -> list[np.ndarray]:
        """The model's outputs."""
        return [np.asarray(known[number]) for number in self._flat.outputs]

    def batches(self, images: Any) -> Iterator[list[np.ndarray]]:
        """Cuts calibration images into batches of a size whose tensors all fit into memory.

        Args:
            images: an array (images, …) for a model of one input, or a list of arrays, one for each input.

        Raises:
            DatasetError: they do not fit the model's inputs.
        """
        given = [np.asarray(array) for array in (images if isinstance(images, list | tuple) else [images])]
        inputs = self._inputs
        fits = len(given) == len(inputs) and all(
            array.ndim == len(tensor.shape)
            and len(array) == len(given[0]) > 0
            and all(said in (None, size) for said, size in zip(tensor.shape[1:], array.shape[1:], strict=True))
            for array, tensor in zip(given, inputs, strict=True)
        )
        if not fits:
            wanted, got = [tuple(tensor.shape) for tensor in inputs], [array.shape for array in given]
            raise DatasetError(f"The model reads {wanted}; calibration data are {got}.")
        if any(array.dtype.kind == "f" and not np.isfinite(array).all() for array in given):
            raise DatasetError("The calibration data hold values that are NaN or infinite.")
        at_once = max(1, min(64, _VALUES_AT_ONCE // max(1, sum(array[0].size for array in given))))
        for start in range(0, len(given[0]), at_once):
            yield [array[start : start + at_once] for array in given]
