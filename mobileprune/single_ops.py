"""Tiny `.tflite` files that repeat one op of a file: what a latency table times."""

import dataclasses
import math
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from mobileprune.errors import ModelError
from mobileprune.op_signatures import ResizableFile, Shape, Unit
from mobileprune.tflite_rewrite import packed

# Together the copies' weights are larger than a core's own cache, as those of a network are.
COLD_BYTES = 4 << 20
MOST_BYTES = 64 << 20
MOST_COPIES = 16
# One invocation does at least so much, or the clock and the call count for too much.
LEAST_MACS = 4_000_000


@dataclasses.dataclass(frozen=True)
class SingleOp:
    """A file of `copies` copies of one op, side by side, each with weights and an output of its own."""

    content: bytes = dataclasses.field(repr=False)
    copies: int


def single_op(file: ResizableFile, unit: Unit, counts: Shape) -> SingleOp:
    """The file that repeats a unit at these channel counts.

    Args:
        file: where the unit is from.
        unit: one of its units.
        counts: channels of each of the unit's vectors.

    Raises:
        ModelError: the unit reads no activation.
    """
    if not unit.reads:
        raise ModelError(f"{unit.name} reads nothing that is computed; it takes no time.")
    shape = file.shapes(unit, counts)
    copies = _copies(file, unit, counts)
    model = schema.ModelT()
    model.version = 3
    model.description = b"one op, several times"
    model.operatorCodes = file.codes
    model.buffers = [schema.BufferT()]
    graph = schema.SubGraphT()
    graph.name = b"main"
    graph.tensors, graph.operators = [], []
    model.subgraphs = [graph]

    def add(tensor: Any) -> int:
        tensor.name = f"t{len(graph.tensors)}".encode()
        graph.tensors.append(tensor)
        return len(graph.tensors) - 1

    fed = unit.reads[0]
    entry = add(file.tensor(model, fed, shape(fed)))
    outside = {fed: entry}
    for index in unit.reads[1:]:
        # Files with one input can be timed everywhere: what has the same shape is the same tensor.
        same = shape(index) == shape(fed) and file.graph.tensors[index].dtype == file.graph.tensors[fed].dtype
        outside[index] = entry if same else add(file.constant(model, index, shape(index)))
    outputs = []
    for _ in range(copies):
        inside = dict(outside)
        for number in unit.ops:
            op = file.resized_op(number, shape)
            known = file.graph.ops[number]
            op.inputs = []
            for index, size in zip(known.inputs, file.input_shapes(number, shape), strict=True):
                if index >= 0 and index not in inside:
                    made = add(file.tensor(model, index, size))
                    op.inputs.append(made)
                else:
                    op.inputs.append(inside.get(index, -1))
            for index in known.outputs:
                inside[index] = add(file.tensor(model, index, shape(index)))
            op.outputs = [inside[index] for index in known.outputs]
            graph.operators.append(op)
        outputs.append(inside[unit.makes])
    graph.inputs, graph.outputs = [entry], outputs
    return SingleOp(packed(model), copies)


def _copies(file: ResizableFile, unit: Unit, counts: Shape) -> int:
    shape = file.shapes(unit, counts)
    weights, each = 0, math.prod(shape(unit.makes))
    for number in unit.ops:
        known = file.graph.ops[number]
        for index, size in zip(known.inputs, file.input_shapes(number, shape), strict=True):
            if index >= 0 and file.is_constant(index):
                weights += 4 * math.prod(size)
    written = 4 * each
    macs = max(each, weights // 4 * each // max(1, shape(unit.makes)[-1]))
    wanted = max(LEAST_MACS // macs, COLD_BYTES // (weights + written))
    most = min(MOST_COPIES, max(1, MOST_BYTES // (weights + written)))
    return int(min(max(2, wanted), most)) if most > 1 else 1


def empty_op() -> bytes:
    """A file that does next to nothing: what one invocation costs apart from its ops."""
    model = schema.ModelT()
    model.version = 3
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.RELU
    code.version = 1
    model.operatorCodes, model.buffers = [code], [schema.BufferT()]
    graph = schema.SubGraphT()
    graph.name, graph.tensors = b"main", []
    for name in (b"t0", b"t1"):
        tensor = schema.TensorT()
        tensor.name, tensor.buffer, tensor.type = name, 0, schema.TensorType.FLOAT32
        tensor.shape = np.array([1, 1, 1, 8], np.int32)
        graph.tensors.append(tensor)
    op = schema.OperatorT()
    op.opcodeIndex, op.inputs, op.outputs = 0, [0], [1]
    graph.operators, graph.inputs, graph.outputs = [op], [0], [1]
    model.subgraphs = [graph]
    return packed(model)
