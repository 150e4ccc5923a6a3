"""Which ops a `.tflite` runs, what each costs time for, and the same ops and files with other channel counts.

Latency depends on an op's kind, options, types and shapes, not on its weights. So a file with other channel counts
needs no conversion to be timed: its tensors are cut or repeated to the new shapes. A padding goes with the op that
reads it, because runtimes fuse the two.
"""

import copy
import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from mobileprune.errors import ModelError, SettingsError
from mobileprune.tflite_graph import BITS, read_graph
from mobileprune.tflite_rewrite import packed, unpacked

Shape = tuple[int, ...]
# They change no data, or work on constants once, when the file is loaded.
FREE_OPS = ("RESHAPE", "EXPAND_DIMS", "SQUEEZE", "SHAPE")
STORED_OPS = ("DEQUANTIZE", "DENSIFY")
# What reads a padding and takes it in.
PADDED_OPS = ("CONV_2D", "DEPTHWISE_CONV_2D")
_BYTES = {"FLOAT32": 4, "FLOAT16": 2, "BFLOAT16": 2, "INT8": 1, "UINT8": 1, "INT16": 2, "INT32": 4, "INT64": 8}
_BYTES |= {"BOOL": 1, "FLOAT64": 8, "UINT32": 4, "UINT16": 2, "UINT64": 8}
# Their constants say where channels begin and end, which a cut would have to move.
_FIXED_OPS = ("SLICE", "STRIDED_SLICE", "SPLIT", "SPLIT_V", "GATHER", "TRANSPOSE", "BATCH_TO_SPACE_ND", "TILE")


@dataclasses.dataclass(frozen=True, eq=False)
class Unit:
    """Ops of a file that are timed together: one, or a padding and what reads it.

    Attributes:
        ops: their indices in the file.
        name: for people: kinds, and the layer where the file tells it.
        reads: activations from outside, each once.
        makes: the last op's output.
        vectors: the ids of the channels that its activations have, each different vector once; one count each makes
            a size of the unit.
        places: for each activation in it the index of its vector; those of fixed channels are missing.
    """

    ops: tuple[int, ...]
    name: str
    reads: tuple[int, ...]
    makes: int
    vectors: tuple[np.ndarray, ...]
    places: Mapping[int, int]

    @property
    def full(self) -> Shape:
        """The counts in the file itself."""
        return tuple(len(vector) for vector in self.vectors)

    def counts(self, alive: np.ndarray) -> Shape:
        """The counts when only the channels in `alive` (booleans by id) are left."""
        return tuple(int(np.count_nonzero(alive[vector])) for vector in self.vectors)


class ResizableFile:
    """A `.tflite` whose channel counts can be changed.

    Args:
        content: the file.
        follows: for each activation whose last axis has channels that may go, their ids; see
            `mobileprune.network_latency`. Tensors that are missing keep their shapes.

    Raises:
        ModelError: a damaged file.

    Example:
        >>> ResizableFile(content, follows).resized(alive)      # doctest: +SKIP
    """

    def __init__(self, content: bytes, follows: Mapping[int, np.ndarray]) -> None:
        self.graph = read_graph(content)
        self._model = unpacked(content)
        self._main = self._model.subgraphs[0]
        self._follows = follows
        self._stored = {
            index: op.inputs[0]
            for op in self.graph.ops
            if op.name in STORED_OPS and op.inputs and self.graph.tensors[op.inputs[0]].constant
            for index in op.outputs
        }

    def is_constant(self, index: int) -> bool:
        """Whether a tensor is stored in the file, packed or not."""
        return index < 0 or index in self._stored or self.graph.tensors[index].constant

    @functools.cached_property
    def units(self) -> list[Unit]:
        """Everything that takes time, in the order of the file."""
        readers: dict[int, list[int]] = {}
        for op in self.graph.ops:
            for index in op.inputs:
                readers.setdefault(index, []).append(op.index)
        padded = {}
        for op in self.graph.ops:
            after = readers.get(op.outputs[0], []) if op.outputs else []
            if op.name in ("PAD", "PADV2") and len(after) == 1 and self.graph.ops[after[0]].name in PADDED_OPS:
                padded[after[0]] = op.index
        found = []
        for op in self.graph.ops:
            if op.index in padded.values() or not op.outputs or self._is_free(op):
                continue
            found.append(self._unit((padded[op.index], op.index) if op.index in padded else (op.index,)))
        return found

    def _is_free(self, op: Any) -> bool:
        return op.name in FREE_OPS or all(self.is_constant(index) for index in op.inputs)

    def _unit(self, ops: tuple[int, ...]) -> Unit:
        inside = [self.graph.ops[index] for index in ops]
        made = {index for op in inside for index in op.outputs}
        reads = tuple(
            dict.fromkeys(
                index for op in inside for index in op.inputs if index not in made and not self.is_constant(index)
            )
        )
        vectors: dict[bytes, int] = {}
        kept: list[np.ndarray] = []
        places = {}
        for index in (*reads, *made):
            vector = self._follows.get(index)
            if vector is not None:
                key = vector.tobytes()
                if key not in vectors:
                    vectors[key] = len(kept)
                    kept.append(vector)
                places[index] = vectors[key]
        last = inside[-1].outputs[0]
        layer = self.graph.tensors[last].name
        return Unit(ops, f"{'+'.join(op.name for op in inside)} {layer!r}", reads, last, tuple(kept), places)

    def shapes(self, unit: Unit, counts: Shape) -> Callable[[int], Shape]:
        """The shape of each activation in a unit when its vectors have these counts."""
        if len(counts) != len(unit.vectors):
            raise SettingsError(
                f"{unit.name} has {len(unit.vectors)} vectors of channels; {len(counts)} counts were given."
            )

        def shape(index: int) -> Shape:
            own = tuple(max(1, size) for size in self.graph.tensors[index].shape)
            return (*own[:-1], counts[unit.places[index]]) if index in unit.places else own

        return shape

    def signature(self, unit: Unit, counts: Shape) -> str:
        """All that the unit's latency depends on, as one line of text: kinds, options, types and shapes."""
        shape = self.shapes(unit, counts)
        parts = []
        for number in unit.ops:
            op = self.graph.ops[number]
            tensors = [
                "-"
                if index < 0
                else f"{self._dtype(index)}{'*' if self.is_constant(index) else ''}[{'x'.join(map(str, each))}]"
                for index, each in zip(op.inputs, self.input_shapes(number, shape), strict=True)
            ]
            made = [f"{self._dtype(index)}[{'x'.join(map(str, shape(index)))}]" for index in op.outputs]
            parts.append(f"{op.name}({self._options(number)}) {' '.join(tensors)} -> {' '.join(made)}")
        return "; ".join(parts)

    def _options(self, number: int) -> str:
        held = self._main.operators[number].builtinOptions
        options = {} if held is None else vars(held)
        return ",".join(
            f"{name}={value}" for name, value in sorted(options.items()) if isinstance(value, (int, float, str))
        )

    def _dtype(self, index: int) -> str:
        return self.graph.tensors[index].dtype.lower()

    def input_shapes(self, number: int, shape: Callable[[int], Shape]) -> list[Shape]:
        """The shapes of all that an op reads, constants included, given those of the activations.

        Raises:
            ModelError: an op whose constants do not follow from its shapes.
        """
        op = self.graph.ops[number]
        own = [() if index < 0 else self.graph.tensors[index].shape for index in op.inputs]
        activations = [at for at, index in enumerate(op.inputs) if not self.is_constant(index)]
        made = shape(op.outputs[0])
        data = activations[0] if activations else 0
        before, after = own[data], shape(op.inputs[data]) if activations else own[data]
        if op.name in _FIXED_OPS and before != after:
            raise ModelError(
                f"{op.name} {self.graph.tensors[op.outputs[0]].name!r} places channels by constants; its latency with "
                "fewer of them is not known. Keep the layers around it with keep=."
            )
        found = []
        for at, index in enumerate(op.inputs):
            if index >= 0 and not self.is_constant(index):
                found.append(shape(index))
            elif index >= 0:
                found.append(_constant_shape(op.name, at, own[at], before, after, made))
            else:
                found.append(())
        return found

    def resized(self, alive: np.ndarray) -> bytes:
        """The whole file with only the channels in `alive` (booleans by id). Its weights mean nothing any more."""

        def shape(index: int) -> Shape:
            own, vector = self.graph.tensors[index].shape, self._follows.get(index)
            return own if vector is None else (*own[:-1], int(np.count_nonzero(alive[vector])))

        model = copy.copy(self._model)
        # Packing empties those that are not used any more.
        model.buffers = [copy.copy(buffer) for buffer in self._model.buffers]
        graph = copy.copy(self._main)
        graph.tensors = [copy.copy(tensor) for tensor in graph.tensors]
        model.subgraphs = [graph, *self._model.subgraphs[1:]]
        done: set[int] = set()
        operators = []
        for op in self.graph.ops:
            operators.append(self.resized_op(op.index, shape))
            wanted = list(zip(op.inputs, self.input_shapes(op.index, shape), strict=True))
            wanted += [(index, shape(index)) for index in op.outputs]
            for index, size in wanted:
                if index < 0 or index in done:
                    continue
                if index in self._stored:
                    done.add(self._stored[index])
                    self._store(model, graph.tensors, self._stored[index], size)
                elif self.is_constant(index) and op.name in STORED_OPS:
                    continue  # its reader says
                done.add(index)
                self._store(model, graph.tensors, index, size)
            if op.name == "RESHAPE" and len(op.inputs) > 1 and self.is_constant(op.inputs[1]):
                _put(model, graph.tensors[op.inputs[1]], np.asarray(shape(op.outputs[0]), np.int32).view(np.uint8))
        graph.operators = operators
        return packed(model)

    def resized_op(self, number: int, shape: Callable[[int], Shape]) -> Any:
        """The schema's object of an op, with its options as the new shapes need them."""
        op = copy.copy(self._main.operators[number])
        options = op.builtinOptions
        if options is not None and getattr(options, "newShape", None) is not None:
            op.builtinOptions = copy.copy(options)
            op.builtinOptions.newShape = np.asarray(shape(self.graph.ops[number].outputs[0]), np.int32)
        return op

    def tensor(self, model: Any, index: int, size: Shape) -> Any:
        """A tensor for another file, of another shape: with data of its own in `model` where it is a constant."""
        stored = self._stored.get(index)
        made = copy.copy(self._main.tensors[index])
        made.name, made.buffer, made.shapeSignature, made.sparsity = b"", 0, None, None
        _shape_tensor(made, size)
        if stored is not None:
            _put(model, made, np.resize(np.linspace(-0.1, 0.1, 1009, dtype=np.float32), math.prod(size)).view(np.uint8))
        elif self.graph.tensors[index].constant:
            _put(model, made, self._data(index, size))
        return made

    def constant(self, model: Any, index: int, size: Shape) -> Any:
        """The same of an activation, as a constant of the other file."""
        made = self.tensor(model, index, size)
        dtype = self.graph.tensors[index].dtype
        count = math.prod(size) * _BYTES[dtype]
        if dtype == "FLOAT32":
            data = np.resize(np.linspace(0.1, 1.0, 1009, dtype=np.float32), math.prod(size)).view(np.uint8)
        else:
            data = np.resize(np.arange(1, 100, dtype=np.uint8), count)
        _put(model, made, data)
        return made

    @property
    def codes(self) -> list[Any]:
        """The file's op codes."""
        return list(self._model.operatorCodes)

    def _store(self, model: Any, tensors: list[Any], index: int, size: Shape) -> None:
        known = self.graph.tensors[index]
        _shape_tensor(tensors[index], size)
        if known.constant and size != known.shape:
            _put(model, tensors[index], self._data(index, size))

    def _data(self, index: int, size: Shape) -> np.ndarray:
        """The constant's bytes, cut or repeated."""
        known = self.graph.tensors[index]
        if known.sparse:
            raise ModelError(f"{known.name!r} is stored sparse; the latency of other channel counts is not known.")
        bits = BITS.get(known.dtype) or 8 * _BYTES[known.dtype]
        data = np.frombuffer(known.data or b"\0", np.uint8)
        return np.resize(data, (math.prod(size) * bits + 7) // 8)


def _constant_shape(kind: str, place: int, own: Shape, before: Shape, after: Shape, made: Shape) -> Shape:
    """The shape of a constant input of an op whose activation went from `before` to `after` and that gives `made`."""
    if kind == "CONV_2D":
        if place == 2:
            return made[-1:]
        groups = before[-1] // own[-1]
        each = after[-1] // groups if after[-1] % groups == 0 else own[-1]
        return (made[-1], *own[1:-1], max(1, each))
    if kind == "DEPTHWISE_CONV_2D":
        return (*own[:-1], made[-1])
    if kind == "FULLY_CONNECTED":
        return made[-1:] if place == 2 else (made[-1], own[-1] * after[-1] // before[-1])
    if kind == "TRANSPOSE_CONV" and place:
        return made[-1:] if place == 3 else (made[-1], *own[1:-1], after[-1])
    if kind in ("RESHAPE", "PAD", "PADV2", "MEAN", "SUM"):
        return own
    # Elementwise: scales and offsets of the channels.
    return (*own[:-1], made[-1]) if own and own[-1] == before[-1] > 1 else own


def _shape_tensor(tensor: Any, size: Shape) -> None:
    """Gives a schema tensor a new shape, and scales for each of its channels."""
    tensor.shape, tensor.shapeSignature = np.asarray(size, np.int32), None
    quantization = tensor.quantization
    if quantization is not None and quantization.scale is not None and len(quantization.scale) > 1:
        count = size[quantization.quantizedDimension]
        changed = copy.copy(quantization)
        changed.scale = np.resize(quantization.scale, count)
        if quantization.zeroPoint is not None and len(quantization.zeroPoint):
            changed.zeroPoint = np.resize(quantization.zeroPoint, count)
        for bound in ("min", "max"):
            if getattr(quantization, bound) is not None and len(getattr(quantization, bound)) > 1:
                setattr(changed, bound, np.resize(getattr(quantization, bound), count))
        tensor.quantization = changed


def _put(model: Any, tensor: Any, data: np.ndarray) -> None:
    buffer = schema.BufferT()
    buffer.data = np.ascontiguousarray(data)
    model.buffers.append(buffer)
    tensor.buffer = len(model.buffers) - 1
