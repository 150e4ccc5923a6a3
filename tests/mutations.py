"""Damaged `.tflite` files: some bytes changed at random, or one field of an otherwise sound flatbuffer made wrong."""

import random
import struct
from collections.abc import Callable, Iterator
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

WRONG_NUMBERS = (-(2**31), -129, -2, -1, 0, 1, 2, 3, 5, 8, 17, 127, 255, 256, 65535, 65536, 2**28, 2**31 - 1)
WRONG_SCALES = (0.0, -1.0, 1e-45, 1e-12, 1e12, 3e38, float("inf"), float("-inf"), float("nan"))
WRONG_POINTS = (-(2**63), -(2**31), -300, -1, 1, 128, 300, 2**31, 2**63 - 1)
# What says where something is; the flatbuffer stays one that can be read.
Change = tuple[str, Callable[[random.Random], None]]


def damaged(content: bytes, generator: random.Random) -> tuple[bytes, str]:
    """The file with bytes changed, cut off, moved or blanked, and what was done."""
    harmed, kind = bytearray(content), generator.choice(("bytes", "bytes", "header", "cut", "blank", "copy"))
    if kind in ("bytes", "header"):
        # The tables are at both ends, the weights between them.
        limit = min(len(harmed), 200) if kind == "header" else len(harmed)
        for _ in range(generator.choice((1, 2, 4, 16))):
            harmed[generator.randrange(8 if kind == "header" else 0, limit)] = generator.randrange(256)
    elif kind == "cut":
        del harmed[generator.randrange(len(harmed)) :]
    else:
        start, size = generator.randrange(len(harmed)), generator.randrange(1, 65)
        other = generator.randrange(len(harmed))
        piece = bytes(size) if kind == "blank" else bytes(harmed[other : other + size])
        harmed[start : start + len(piece)] = piece
    return bytes(harmed), kind


def with_a_wrong_field(content: bytes, generator: random.Random) -> tuple[bytes, str]:
    """The file written anew with one field of another value, and which one."""
    while True:
        model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content, 0))
        kinds: dict[str, list[Change]] = {}
        for where, change in _changes(model):
            kinds.setdefault(where.split(" ")[0], []).append((where, change))
        where, change = generator.choice(kinds[generator.choice(sorted(kinds))])  # each kind of field as often
        change(generator)
        builder = flatbuffers.Builder(len(content))
        try:
            builder.Finish(model.Pack(builder), b"TFL3")
        except (TypeError, struct.error, OverflowError, flatbuffers.builder.OffsetArithmeticError):
            continue  # a value that its field cannot hold; draw again
        return bytes(builder.Output()), where


def _changes(model: Any) -> Iterator[Change]:
    for number, code in enumerate(model.operatorCodes):
        yield f"op_code {number}", _sets(code, "builtinCode", range(-1, 210))
        yield f"old_op_code {number}", _sets(code, "deprecatedBuiltinCode", range(-1, 128))
        yield f"version {number}", _sets(code, "version", (-1, 0, 2, 3, 5, 12, 99, 2**31 - 1))
    graph = model.subgraphs[0]
    for kind in ("inputs", "outputs"):
        yield f"graph_{kind}", _one_of(graph, kind, WRONG_NUMBERS)
        yield f"graph_{kind}_count", _length(graph, kind)
    for number, tensor in enumerate(graph.tensors):
        yield from _tensor_changes(f"{number} {tensor.name!r}", tensor)
    for number, op in enumerate(graph.operators):
        for kind in ("inputs", "outputs"):
            yield f"op_{kind} {number}", _one_of(op, kind, (*WRONG_NUMBERS, *range(len(graph.tensors))))
            yield f"op_{kind}_count {number}", _length(op, kind)
        yield f"op_kind {number}", _sets(op, "opcodeIndex", (*range(len(model.operatorCodes)), 99, 2**32 - 1))
        yield f"options_kind {number}", _sets(op, "builtinOptionsType", range(120))
        for field, value in vars(op.builtinOptions).items() if op.builtinOptions is not None else ():
            if isinstance(value, (int, float)):
                yield f"options.{field} {number}", _sets(op.builtinOptions, field, WRONG_NUMBERS)
    for number, buffer in enumerate(model.buffers):
        if buffer.data is not None and len(buffer.data):
            yield f"buffer_size {number}", _length(buffer, "data")
            yield f"buffer_offset {number}", _sets(buffer, "offset", (2, 100, 2**31, 2**62))
    for signature in model.signatureDefs or ():
        yield "signature_graph", _sets(signature, "subgraphIndex", (1, 7, 2**32 - 1))
        yield "signature_key", _sets(signature, "signatureKey", (None, b"", b"\xff\xfe", b"[/x]\n\x1b[31m"))
        for entry in (*signature.inputs, *signature.outputs):
            yield "signature_tensor", _sets(entry, "tensorIndex", (1, 99, 2**32 - 1))
            yield "signature_name", _sets(entry, "name", (None, b"\xff"))


def _tensor_changes(name: str, tensor: Any) -> Iterator[Change]:
    yield f"type {name}", _sets(tensor, "type", range(-1, 26))
    yield f"buffer {name}", _sets(tensor, "buffer", (0, 1, 2, 3, 9999, 2**32 - 1))
    yield f"variable {name}", _sets(tensor, "isVariable", (True,))
    yield f"name {name}", _sets(tensor, "name", (None, b"", b"\xff\xfe", b"[/x]\n\x1b[31m"))
    yield f"shape {name}", _one_of(tensor, "shape", WRONG_NUMBERS)
    yield f"rank {name}", _length(tensor, "shape")
    yield f"shape_signature {name}", _sets(tensor, "shapeSignature", ([-1], [-1] * 4, [2**31 - 1] * 4, [0, -5], [1]))
    quantization = tensor.quantization
    if quantization is not None and quantization.scale is not None and len(quantization.scale):
        yield f"scale {name}", _one_of(quantization, "scale", WRONG_SCALES)
        yield f"scale_count {name}", _length(quantization, "scale")
        yield f"zero_point {name}", _one_of(quantization, "zeroPoint", WRONG_POINTS)
        yield f"zero_point_count {name}", _length(quantization, "zeroPoint")
        yield f"quantized_dimension {name}", _sets(quantization, "quantizedDimension", WRONG_NUMBERS)
    if tensor.sparsity is not None:
        sparsity = tensor.sparsity
        yield f"traversal {name}", _one_of(sparsity, "traversalOrder", WRONG_NUMBERS)
        yield f"traversal_count {name}", _length(sparsity, "traversalOrder")
        yield f"block_map {name}", _sets(sparsity, "blockMap", ([0], [-1, 9], [2**31 - 1]))
        yield f"dimension_count {name}", _length(sparsity, "dimMetadata")
        for dimension in sparsity.dimMetadata:
            yield f"dense_size {name}", _sets(dimension, "denseSize", WRONG_NUMBERS)
            yield f"dimension_format {name}", _sets(dimension, "format", (0, 1, 2))
            for kind in ("arraySegments", "arrayIndices"):
                if getattr(dimension, kind) is not None:
                    yield f"sparse_{kind} {name}", _one_of(getattr(dimension, kind), "values", WRONG_NUMBERS)
                    yield f"sparse_{kind}_count {name}", _length(getattr(dimension, kind), "values")
                    yield f"sparse_{kind}_type {name}", _sets(dimension, f"{kind}Type", (0, 1, 2, 3))


def _sets(owner: Any, field: str, values: Any) -> Callable[[random.Random], None]:
    return lambda generator: setattr(owner, field, generator.choice(tuple(values)))


def _one_of(owner: Any, field: str, values: Any) -> Callable[[random.Random], None]:
    """Changes one entry of a list."""

    def change(generator: random.Random) -> None:
        old = getattr(owner, field)
        if old is None or not len(old):
            setattr(owner, field, [generator.choice(tuple(values))])
            return
        new = [each.item() if isinstance(each, np.generic) else each for each in old]
        new[generator.randrange(len(new))] = generator.choice(tuple(values))
        setattr(owner, field, new)

    return change


def _length(owner: Any, field: str) -> Callable[[random.Random], None]:
    """Makes a list empty, shorter or longer."""

    def change(generator: random.Random) -> None:
        old = list(getattr(owner, field) if getattr(owner, field) is not None else ())
        new: Any = generator.choice((old[:0], old[:-1], old[: len(old) // 2], old + old[-1:], old + old))
        if field == "data":
            new = np.array(new, np.uint8)
        setattr(owner, field, new)

    return change
