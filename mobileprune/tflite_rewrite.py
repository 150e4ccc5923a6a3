"""Takes a `.tflite` apart into the schema's objects, and makes a file of them again, as every rewrite needs."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from mobileprune.errors import ModelError
from mobileprune.tflite_extras import with_attached
from mobileprune.tflite_graph import DAMAGE

FILE_IDENTIFIER = b"TFL3"
# The schema asks for it, so that constants can be read from the mapped file with vector instructions.
BUFFER_ALIGNMENT = 16


def unpacked(content: bytes) -> Any:
    """The schema's `ModelT` of a file whose main graph `read_graph` has accepted.

    Data that some writers put behind the flatbuffer is taken in: its offsets would not hold in another file. Attached
    files (see `attached_files`) are left out.

    Raises:
        ModelError: another part of the file is damaged.

    Example:
        >>> model = unpacked(content)  # doctest: +SKIP
        >>> model.description = b"rewritten"  # doctest: +SKIP
        >>> content = packed(model)  # doctest: +SKIP
    """
    try:
        model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content, 0))
        _gather(model, content)
        _check_indices(model)
    except DAMAGE as error:
        raise ModelError(
            f"The .tflite is damaged: {type(error).__name__}: {error}. Convert the model again."
        ) from error
    return model


def packed(model: Any, attached: Mapping[str, bytes] = MappingProxyType({})) -> bytes:
    """The file of the schema's `ModelT`. Buffers that nothing refers to any more become empty.

    The same objects give the same bytes.

    Args:
        model: what `unpacked` made.
        attached: files for the archive behind it, as of `attached_files`.
    """
    used = {tensor.buffer for graph in model.subgraphs for tensor in graph.tensors}
    used |= {entry.buffer for entry in model.metadata or ()}
    for place, buffer in enumerate(model.buffers):
        if place not in used:
            buffer.data = None
    size = sum(len(buffer.data) for buffer in model.buffers if buffer.data is not None)
    builder = _Builder(size + 4096)
    builder.Finish(model.Pack(builder), FILE_IDENTIFIER)
    return with_attached(bytes(builder.Output()), attached)


def add_buffer(model: Any, data: bytes | np.ndarray) -> int:
    """Appends a buffer of bytes and returns its index."""
    buffer = schema.BufferT()
    buffer.data = np.frombuffer(data, np.uint8) if isinstance(data, bytes) else data.view(np.uint8)
    model.buffers.append(buffer)
    return len(model.buffers) - 1


def set_metadata(model: Any, name: str, data: bytes) -> None:
    """Makes `data` the named entry of metadata, in the place of the one that was there."""
    named = [entry for entry in model.metadata or () if entry.name == name.encode()]
    others = [entry for entry in model.metadata or () if entry.name != name.encode()]
    taken = {entry.buffer for entry in others} | {
        tensor.buffer for graph in model.subgraphs for tensor in graph.tensors
    }
    entry = named[0] if named else schema.MetadataT()
    entry.name = name.encode()
    if named and 0 < entry.buffer < len(model.buffers) and entry.buffer not in taken:
        model.buffers[entry.buffer].data = np.frombuffer(data, np.uint8)
    else:
        entry.buffer = add_buffer(model, data)
    model.metadata = [*others, entry]


def operator_code(model: Any, code: int, version: int = 1) -> int:
    """The index of a built-in op among the file's op codes, appended where the file has none of that version."""
    for index, known in enumerate(model.operatorCodes):
        if builtin_code(known) == code and known.version == version:
            return index
    added = schema.OperatorCodeT()
    # Codes up to 127 stand in a byte of their own too, for old readers; 127 sends these to the wide field.
    added.builtinCode, added.deprecatedBuiltinCode = code, min(code, 127)
    added.version = version
    model.operatorCodes.append(added)
    return len(model.operatorCodes) - 1


def storage_op(model: Any, kind: Literal["Quantize", "Densify"], source: int, target: int) -> Any:
    """A new op that only stores one tensor in another way; its caller puts it in its place in a graph.

    Args:
        model: the file that it is for, which gets the op's code.
        kind: the op as the schema's tables call it.
        source: index of the tensor that it reads.
        target: index of the tensor that it writes.
    """
    op = schema.OperatorT()
    op.opcodeIndex = operator_code(model, getattr(schema.BuiltinOperator, kind.upper()))
    op.inputs, op.outputs = [source], [target]
    op.builtinOptionsType = getattr(schema.BuiltinOptions, f"{kind}Options")
    op.builtinOptions = getattr(schema, f"{kind}OptionsT")()
    return op


def builtin_code(code: Any) -> int:
    """Which built-in op an op code means: old writers fill the narrow field only."""
    return max(int(code.builtinCode), int(code.deprecatedBuiltinCode))


class _Builder(flatbuffers.Builder):
    """Aligns vectors of bytes, which in a `.tflite` hold the constants."""

    def CreateNumpyVector(self, values: np.ndarray) -> Any:
        if values.dtype != np.uint8:
            return super().CreateNumpyVector(values)
        self.StartVector(1, len(values), BUFFER_ALIGNMENT)
        self.head -= len(values)
        self.Bytes[self.head : self.head + len(values)] = values.tobytes()
        self.vectorNumElems = len(values)
        return self.EndVector()


def _check_indices(model: Any) -> None:
    """`read_graph` has seen to the main graph; there may be others."""
    for graph in model.subgraphs:
        for op in graph.operators:
            if not 0 <= op.opcodeIndex < len(model.operatorCodes):
                raise ValueError(f"op code {op.opcodeIndex} of {len(model.operatorCodes)}")
            for indices, lowest in ((op.inputs, -1), (op.outputs, 0)):
                for index in () if indices is None else indices:
                    if not lowest <= index < len(graph.tensors):
                        raise ValueError(f"tensor {index} of {len(graph.tensors)}")


def _gather(model: Any, content: bytes) -> None:
    for buffer in model.buffers:
        if buffer.offset > 1:
            buffer.data = np.frombuffer(content, np.uint8, buffer.size, buffer.offset)
            buffer.offset = buffer.size = 0
    for graph in model.subgraphs:
        for op in graph.operators:
            if op.largeCustomOptionsOffset > 1:
                start, size = op.largeCustomOptionsOffset, op.largeCustomOptionsSize
                op.customOptions = np.frombuffer(content, np.uint8, size, start)
                op.largeCustomOptionsOffset = op.largeCustomOptionsSize = 0
