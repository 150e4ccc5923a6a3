"""Flatbuffer with int8 input and output in, the same with uint8 ones out: cameras and image decoders give uint8.

A QUANTIZE op in front of the graph and one behind it move the numbers by 128: with equal scales and zero points 128
apart, stored integers stand for the same real values. The runtime does that by flipping one bit of each byte.
"""

import copy
from typing import Any

from ai_edge_litert import schema_py_generated as schema

from mobileprune.errors import ConversionError
from mobileprune.tflite_extras import attached_files
from mobileprune.tflite_graph import GraphTensor, read_graph
from mobileprune.tflite_rewrite import packed, storage_op, unpacked

SHIFT = 128


def with_uint8_io(content: bytes) -> bytes:
    """The same network with uint8 in place of int8 inputs and outputs.

    For all bytes x, and to the last bit: `new(x) == old(x - 128) + 128`. Names and signatures stay what they were.

    Args:
        content: a `.tflite` whose inputs and outputs are all int8, each with one scale, as of the recipe `int8`.

    Returns:
        The file, larger by two ops.

    Raises:
        ConversionError: an input or output is not int8; the message says which, and what it is.
        ModelError: not a `.tflite`, or a damaged one.

    Example:
        >>> file = with_uint8_io(variant.content)  # doctest: +SKIP
        >>> read_graph(file).inputs[0].dtype  # doctest: +SKIP
        'UINT8'
    """
    graph = read_graph(content)
    for kind, ends in (("input", graph.inputs), ("output", graph.outputs)):
        for tensor in ends:
            _check(kind, tensor)
    model = unpacked(content)
    main = model.subgraphs[0]
    # An output that is an input, too, gets one tensor as each.
    inputs = {tensor.index: _outside(main, tensor.index) for tensor in graph.inputs}
    outputs = {tensor.index: _outside(main, tensor.index) for tensor in graph.outputs}
    in_front = [storage_op(model, "Quantize", outside, inside) for inside, outside in inputs.items()]
    behind = [storage_op(model, "Quantize", inside, outside) for inside, outside in outputs.items()]
    main.operators = [*in_front, *main.operators, *behind]
    main.inputs = [inputs[int(index)] for index in main.inputs]
    main.outputs = [outputs[int(index)] for index in main.outputs]
    for inside in inputs.keys() | outputs.keys():
        main.tensors[inside].name = bytes(main.tensors[inside].name or b"") + b"/int8"
    for signature in model.signatureDefs or ():
        if signature.subgraphIndex == 0:
            for entries, moved in ((signature.inputs, inputs), (signature.outputs, outputs)):
                for entry in entries or ():
                    entry.tensorIndex = moved.get(entry.tensorIndex, entry.tensorIndex)
    return packed(model, attached_files(content))


def _check(kind: str, tensor: GraphTensor) -> None:
    if tensor.dtype != "INT8":
        raise ConversionError(
            f"The {kind} {tensor.name!r} is {tensor.dtype}; only files with int8 inputs and outputs can take uint8. "
            "Give the file of recipe 'int8'."
        )
    if len(tensor.scales) != 1 or len(tensor.zero_points) != 1:
        raise ConversionError(
            f"The {kind} {tensor.name!r} has {len(tensor.scales)} scales and {len(tensor.zero_points)} zero points; "
            "one of each is needed. Convert the model again."
        )
    if tensor.constant:
        raise ConversionError(f"The {kind} {tensor.name!r} is a constant of the file: there is nothing to convert.")


def _outside(main: Any, index: int) -> int:
    """Adds the uint8 twin of a tensor, under its name, and returns the twin's index."""
    tensor = copy.copy(main.tensors[index])
    tensor.type = schema.TensorType.UINT8
    tensor.quantization = copy.copy(tensor.quantization)
    tensor.quantization.zeroPoint = [int(tensor.quantization.zeroPoint[0]) + SHIFT]
    tensor.buffer = 0  # by convention the empty one: computed
    main.tensors.append(tensor)
    return len(main.tensors) - 1
