"""Flatbuffer with 16-bit sums in, the same with sums that work at any scale out.

The runtime has two ways to add 16-bit numbers: one for any scales, and an older one, made for LSTM cells, for scales
that are powers of two and of which no input's is above the output's. Unless the file says otherwise, it takes the older
one wherever all three scales are within 0.1% of powers of two, and refuses the file where the other condition does not
hold: so it does with pixels that are scaled to 0 to 2 and then shifted to -1 to 1, as in MobileNetV3.
"""

from typing import Any

from ai_edge_litert import schema_py_generated as schema

from mobileprune.tflite_extras import attached_files
from mobileprune.tflite_graph import read_graph
from mobileprune.tflite_rewrite import builtin_code, packed, unpacked

_OPTIONS = {
    schema.BuiltinOperator.ADD: (schema.BuiltinOptions.AddOptions, schema.AddOptionsT),
    schema.BuiltinOperator.SUB: (schema.BuiltinOptions.SubOptions, schema.SubOptionsT),
}


def with_general_int16(content: bytes) -> bytes:
    """The same network with every 16-bit ADD and SUB computed by the kernel for any scales.

    Args:
        content: a `.tflite`; without 16-bit sums it is what comes back.

    Raises:
        ModelError: not a `.tflite`, or a damaged one.

    Example:
        >>> file = with_general_int16(content)  # doctest: +SKIP
    """
    graph = read_graph(content)
    sums = [op for op in graph.ops if op.name in ("ADD", "SUB") and graph.tensors[op.outputs[0]].dtype == "INT16"]
    if not sums:
        return content
    model = unpacked(content)
    operators = model.subgraphs[0].operators
    for op in sums:
        _set_general(operators[op.index], builtin_code(model.operatorCodes[operators[op.index].opcodeIndex]))
    return packed(model, attached_files(content))


def _set_general(operator: Any, code: int) -> None:
    if operator.builtinOptions is None:
        operator.builtinOptionsType, make = _OPTIONS[code]
        operator.builtinOptions = make()
    operator.builtinOptions.potScaleInt16 = False
