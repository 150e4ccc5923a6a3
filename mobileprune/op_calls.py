"""Each op of a `.tflite` with the tensors that it reads and writes, as what decides about versions asks for them."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from mobileprune.tflite_graph import OP_NAMES, TYPE_NAMES
from mobileprune.tflite_rewrite import builtin_code


@dataclasses.dataclass(frozen=True)
class Call:
    """One op of a file with the tensors it reads and writes, as the schema's objects; None is an absent input."""

    name: str
    inputs: tuple[Any, ...]
    outputs: tuple[Any, ...]
    options: Any

    def kind(self, position: int = 0) -> str:
        """The type of an input; empty where it is absent."""
        return _kind(self.inputs, position)

    def answer(self) -> str:
        """The type of the first output."""
        return _kind(self.outputs, 0)

    def shape(self, position: int = 0) -> tuple[int, ...]:
        """An input's shape; empty where it is absent."""
        return _shape(self.inputs, position)

    def rank(self, position: int = 0) -> int:
        return len(self.shape(position))

    def option(self, name: str) -> Any:
        """An option's value, 0 where the op has no such option."""
        return getattr(self.options, name, 0)

    def scales(self, position: int) -> tuple[float, ...]:
        return _scales(self.inputs[position]) if position < len(self.inputs) else ()

    def answer_scales(self) -> tuple[float, ...]:
        """The scales of the first output."""
        return _scales(self.outputs[0])

    def per_channel(self, position: int, axis: int) -> bool:
        """Whether an input has as many scales as channels along `axis`."""
        shape = self.shape(position)
        return bool(shape) and len(self.scales(position)) == shape[axis]

    def types(self) -> tuple[str, str, str]:
        """Of the input, the weights and the output."""
        return self.kind(), self.kind(1), self.answer()

    def broadcasts_in_5d(self) -> bool:
        shapes = [self.shape(position) for position in range(2)]
        return shapes[0] != shapes[1] and max(map(len, shapes)) > 4


def calls(model: Any) -> Iterator[tuple[Any, Call]]:
    """Each op of the schema's `ModelT`, all graphs, with the op code that it refers to."""
    for graph in model.subgraphs:
        for op in graph.operators:
            code = model.operatorCodes[op.opcodeIndex]
            name = OP_NAMES.get(builtin_code(code), "CUSTOM")
            yield code, Call(name, _tensors(graph, op.inputs), _tensors(graph, op.outputs), op.builtinOptions)


def _tensors(graph: Any, indices: Any) -> tuple[Any, ...]:
    return tuple(graph.tensors[index] if index >= 0 else None for index in (() if indices is None else indices))


def _kind(tensors: tuple[Any, ...], position: int) -> str:
    if position >= len(tensors) or tensors[position] is None:
        return ""
    return str(TYPE_NAMES.get(tensors[position].type, ""))


def _shape(tensors: tuple[Any, ...], position: int) -> tuple[int, ...]:
    if position >= len(tensors) or tensors[position] is None or tensors[position].shape is None:
        return ()
    return tuple(int(size) for size in tensors[position].shape)


def _scales(tensor: Any) -> tuple[float, ...]:
    quantization = None if tensor is None else tensor.quantization
    return () if quantization is None or quantization.scale is None else tuple(map(float, quantization.scale))
