"""Which values of a `.tflite` XNNPACK lays out channel by channel (NCHW), so that its sparse kernels can run.

A model of what XNNPACK does when it prepares a graph with sparse weights (`xnn_subgraph_rewrite_for_nchw` in its
src/subgraph.c, and the TensorFlow Lite delegate in front of it), step by step, on the sources of August 2026. Clusters
of ops that know the layout are grown from the ops that can end them towards the image; a cluster is used when nothing
outside reads inside it and more than two thirds of the weights of its 1x1 convolutions are zero. Nothing is run here.
"""

import dataclasses
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from mobileprune.tflite_graph import FLOATS, STORAGE_OPS, GraphOp, GraphTensor, TfliteGraph

UNARY_OPS = (
    *("ABS", "CEIL", "COS", "ELU", "EXP", "FLOOR", "GELU", "HARD_SWISH", "LEAKY_RELU", "LOGISTIC", "LOG", "NEG"),
    *("RELU", "RELU6", "RELU_N1_TO_1", "ROUND", "RSQRT", "SIN", "SQRT", "SQUARE", "TANH"),
)
REDUCTIONS = ("MEAN", "SUM")
FLOAT_ONLY = "only float files have the path"
_SAME = schema.Padding.SAME
_NO_ACTIVATION_KERNEL = (
    schema.ActivationFunctionType.TANH,
    schema.ActivationFunctionType.SIGN_BIT,
)


@dataclasses.dataclass
class Node:
    """One op as XNNPACK sees it.

    Attributes:
        op: the op in the file.
        reads: the computed tensors that it reads.
        writes: the tensors that it computes.
        inside: whether it can work on the layout.
        start: whether it can turn the image into the layout.
        end: whether it can turn the layout back.
        why: why it is none of these; empty if it is one.
        kernel: the weights of a 1x1 convolution.
        leader: number of the last node of its cluster.
        refused: whether its cluster was refused on its account.
        mixes: whether it is a mean over height or width alone, which XNNPACK does along the wrong axis of the layout.
    """

    op: GraphOp
    reads: tuple[int, ...]
    writes: tuple[int, ...]
    inside: bool = False
    start: bool = False
    end: bool = False
    why: str = ""
    kernel: GraphTensor | None = None
    leader: int = 0
    refused: bool = False
    mixes: bool = False

    @property
    def member(self) -> bool:
        return self.inside or self.end


@dataclasses.dataclass
class Layout:
    """The nodes in order, the tensors in the layout, and what made clusters fail.

    Attributes:
        nodes: every op but those that only change how weights are stored and paddings that became part of a
            convolution.
        nchw: indices of the tensors that get the layout.
        zeros: zeros among the weights of the 1x1 convolutions of the clusters that were not refused.
        weights: how many weights these have.
        causes: pairs of a node and the number of the node, or None for the file's input or output, on whose account it
            was refused.
    """

    nodes: list[Node]
    nchw: set[int]
    zeros: int = 0
    weights: int = 0
    causes: list[tuple[int, int | None]] = dataclasses.field(default_factory=list)


def layout(content: bytes, graph: TfliteGraph, assume_zeros: bool = False) -> Layout:
    """What becomes of a file that holds sparse weights.

    Args:
        content: the bytes of the file.
        graph: what `read_graph` made of them.
        assume_zeros: takes every cluster to have enough zeros.
    """
    nodes = _Reader(content, graph).nodes()
    made = Layout(nodes, set())
    producers = {tensor: number for number, node in enumerate(nodes) for tensor in node.writes}
    if not _grow(made, producers):
        return made
    _refuse_readers_outside(made, graph)
    zeros, weights = [0] * len(nodes), [0] * len(nodes)
    for node in nodes:
        if node.kernel is not None and not nodes[node.leader].refused:
            weights[node.leader] += node.kernel.size
            zeros[node.leader] += node.kernel.size - node.kernel.nonzeros()
            made.weights += node.kernel.size
            made.zeros += node.kernel.size - node.kernel.nonzeros()
    for node in nodes:
        used = assume_zeros or zeros[node.leader] * 3 > weights[node.leader] * 2
        if node.member and not nodes[node.leader].refused and weights[node.leader] and used:
            made.nchw |= set(node.reads)
    return made


def _grow(made: Layout, producers: dict[int, int]) -> bool:
    """Joins nodes to clusters, beginning at those that can end one; whether any were joined."""
    nodes = made.nodes
    for number, node in enumerate(nodes):
        node.leader = number
    joined = False
    for number, node in enumerate(nodes):
        if node.end:
            joined |= _join(made, number, producers)
    update = joined
    while update:
        update = False
        for number, node in enumerate(nodes):
            if node.member and not node.refused:
                update |= _join(made, number, producers)
    for node in nodes:
        nodes[node.leader].refused |= node.refused
    return joined


def _join(made: Layout, number: int, producers: dict[int, int]) -> bool:
    """Joins a node to those that compute what it reads, or refuses it; whether a cluster has grown."""
    node, grown = made.nodes[number], False
    for tensor in node.reads:
        source = producers.get(tensor)
        producer = made.nodes[source] if source is not None else None
        if producer is None or not (producer.start or producer.inside) or producer.refused:
            node.refused = True
            if producer is None or not producer.refused:
                made.causes.append((number, source))
            continue
        producer.end = False
        if producer.leader != node.leader:
            producer.leader = node.leader = max(producer.leader, node.leader)
            grown = True
    return grown


def _refuse_readers_outside(made: Layout, graph: TfliteGraph) -> None:
    nodes = made.nodes
    outside: dict[int, list[int | None]] = {tensor.index: [None] for tensor in graph.outputs}
    for number, node in enumerate(nodes):
        if not node.member or nodes[node.leader].refused:
            for tensor in node.reads:
                outside.setdefault(tensor, []).append(number)
    accepted = [n for n, node in enumerate(nodes) if node.member and not nodes[node.leader].refused]
    for number in accepted:
        for tensor in nodes[number].reads:
            # XNNPACK counts one reader that reads twice as two, and then finds one missing; of x * x it makes a square.
            op = nodes[number].op
            twice = [number] if op.name != "MUL" and op.inputs.count(tensor) > 1 else []
            for reader in [*outside.get(tensor, ()), *twice]:
                nodes[nodes[number].leader].refused = True
                made.causes.append((number, reader))


class _Reader:
    """Turns the ops of a file into nodes."""

    def __init__(self, content: bytes, graph: TfliteGraph) -> None:
        self._graph = graph
        self._ops = schema.Model.GetRootAs(content, 0).Subgraphs(0)
        self._stored: dict[int, GraphTensor] = {tensor.index: tensor for tensor in graph.tensors if tensor.constant}

    def nodes(self) -> list[Node]:
        nodes: list[Node] = []
        paddings: dict[int, tuple[Node, np.ndarray]] = {}
        readers: dict[int, int] = {tensor.index: 1 for tensor in self._graph.outputs}
        for op in self._graph.ops:
            for tensor in set(op.inputs):
                readers[tensor] = readers.get(tensor, 0) + 1
        for op in self._graph.ops:
            if op.name in STORAGE_OPS and op.inputs and op.inputs[0] in self._stored:
                self._stored[op.outputs[0]] = self._stored[op.inputs[0]]
                continue
            node = Node(op, self._computed(op), op.outputs)
            padding = np.zeros(4, int)
            if len(node.reads) == 1 and node.reads[0] in paddings and self._takes_padding(op):
                pad, padding = paddings[node.reads[0]]
                nodes.remove(pad)
                node.reads = pad.reads
            node.why = self._judge(node, padding)
            nodes.append(node)
            if op.name == "PAD" and readers.get(op.outputs[0]) == 1 and (spatial := self._spatial(op)) is not None:
                paddings[op.outputs[0]] = (node, spatial)
        return nodes

    def _axes(self, op: GraphOp) -> set[int]:
        stored = self._stored.get(op.inputs[1])
        if stored is None or stored.data is None or stored.dtype != "INT32":
            return set()
        return {int(axis) % 4 for axis in np.frombuffer(stored.data, np.int32)}

    def _computed(self, op: GraphOp) -> tuple[int, ...]:
        found = [index for index in op.inputs if index >= 0 and index not in self._stored]
        return tuple(dict.fromkeys(found))

    def _takes_padding(self, op: GraphOp) -> bool:
        if op.name not in ("CONV_2D", "DEPTHWISE_CONV_2D"):
            return False
        options = self._options(op)
        strided = max(options.StrideH(), options.StrideW()) > 1
        return not (self._is_pointwise(op) or (options.Padding() == _SAME and strided))

    def _spatial(self, op: GraphOp) -> np.ndarray | None:
        """Top, bottom, left and right of a padding that leaves batch and channels alone."""
        stored = self._stored.get(op.inputs[1])
        if stored is None or stored.data is None or len(self._shape(op.outputs[0])) != 4 or stored.dtype != "INT32":
            return None
        amounts = np.frombuffer(stored.data, np.int32).reshape(-1, 2)
        return None if amounts[[0, 3]].any() else amounts[1:3].ravel().astype(int)

    def _judge(self, node: Node, padding: np.ndarray) -> str:
        """Sets what the node can be, or says why it is nothing."""
        op = node.op
        for index in (*op.inputs, *op.outputs):
            tensor = self._stored.get(index, self._graph.tensors[index])
            if index >= 0 and tensor.dtype not in FLOATS and tensor.dtype not in ("INT32", "INT64"):
                return f"it computes with {tensor.dtype.lower()}; {FLOAT_ONLY}"
        if op.name == "CONV_2D":
            return self._judge_convolution(node, padding)
        if op.name == "DEPTHWISE_CONV_2D":
            return self._judge_depthwise(node, padding)
        if op.name == "FULLY_CONNECTED":
            return self._judge_dense(node)
        if op.name in ("ADD", "MUL"):
            return self._judge_binary(node)
        if op.name == "DEPTH_TO_SPACE":
            node.end = True
            return ""
        if any(len(self._shape(index)) != 4 for index in op.inputs[:1]):
            return "its input is not of rank 4 (batch, height, width, channels)"
        if op.name in REDUCTIONS:
            node.inside = node.end = True
            node.mixes = len({1, 2} & self._axes(op)) == 1
        elif op.name in UNARY_OPS or (op.name == "RESIZE_BILINEAR" and min(self._shape(op.inputs[0])[1:3]) > 1):
            node.inside = True
        else:
            return "XNNPACK's sparse layout has no such op"
        return ""

    def _judge_convolution(self, node: Node, padding: np.ndarray) -> str:
        options, kernel = self._options(node.op), self._shape(node.op.inputs[1])
        if self._is_pointwise(node.op):
            node.inside, node.kernel = True, self._stored[node.op.inputs[1]]
            return ""
        if self._shape(node.op.inputs[0])[3] != kernel[3]:
            return "its channels are in groups"
        if max(options.DilationHFactor(), options.DilationWFactor()) != 1:
            return "it is dilated"
        if kernel[1:3] == (1, 1):
            return "a 1x1 convolution must have stride 1 and no padding"
        if kernel[1:3] != (3, 3):
            return f"its kernel is {kernel[1]}x{kernel[2]}; only 1x1 and, at the image, 3x3 are known"
        wrong = self._wrong_padding(node.op, padding, 1)
        if wrong:
            return wrong
        if (options.StrideH(), options.StrideW()) != (2, 2) or kernel[3] != 3:
            return (
                f"a 3x3 convolution must have stride 2 and 3 input channels (an RGB image); this one has stride "
                f"{options.StrideH()} and {kernel[3]} input channels"
            )
        node.start = True
        return ""

    def _judge_depthwise(self, node: Node, padding: np.ndarray) -> str:
        options, kernel = self._options(node.op), self._shape(node.op.inputs[1])
        if max(options.DilationHFactor(), options.DilationWFactor()) != 1:
            return "it is dilated"
        if self._shape(node.op.inputs[0])[3] != kernel[3]:
            return "its depth multiplier is not 1"
        if options.StrideH() != options.StrideW() or options.StrideH() not in (1, 2):
            return f"its stride is {options.StrideH()}x{options.StrideW()}; 1 and 2 are known"
        if kernel[1] != kernel[2] or kernel[1] not in (3, 5):
            return f"its kernel is {kernel[1]}x{kernel[2]}; 3x3 and 5x5 are known"
        wrong = self._wrong_padding(node.op, padding, kernel[1] // 2)
        node.inside = not wrong
        return wrong

    def _judge_dense(self, node: Node) -> str:
        options = self._options(node.op)
        if not options.KeepNumDims():
            return "a dense layer reads what was flattened"
        node.inside, node.kernel = node.op.inputs[1] in self._stored, self._stored.get(node.op.inputs[1])
        return "" if node.inside else "its weights are computed"

    def _judge_binary(self, node: Node) -> str:
        if self._options(node.op).FusedActivationFunction() in _NO_ACTIVATION_KERNEL:
            return "its activation is not among XNNPACK's"
        first, second = node.op.inputs[:2]
        for index in (first, second):
            if len(self._shape(index)) != 4:
                return f"it combines with a tensor of rank {len(self._shape(index))}; both must be of rank 4"
        # Of a constant, wherever it stands, XNNPACK looks at the shape of the first input.
        if (first in self._stored or second in self._stored) and sum(size != 1 for size in self._shape(first)) > 1:
            return "it combines with a constant that is more than one number or one vector"
        node.inside = True
        return ""

    def _wrong_padding(self, op: GraphOp, padding: np.ndarray, wanted: int) -> str:
        options = self._options(op)
        if options.Padding() == _SAME and max(options.StrideH(), options.StrideW()) > 1:
            return (
                f"its padding is TensorFlow's 'same' at stride {options.StrideH()}; it must be {wanted} on every side "
                f"(ZeroPadding2D({wanted}), then 'valid')"
            )
        if options.Padding() == _SAME:
            size = np.array(self._shape(op.inputs[1])[1:3]) - 1
            padding = padding + np.stack([size // 2, size - size // 2], axis=1).ravel()
        if (padding != wanted).any():
            return f"its padding (top, bottom, left, right) is {tuple(map(int, padding))}; it must be {wanted} each"
        return ""

    def _is_pointwise(self, op: GraphOp) -> bool:
        """Whether XNNPACK makes it a product of matrices at once."""
        if op.name != "CONV_2D":
            return False
        options, kernel = self._options(op), self._shape(op.inputs[1])
        same_channels = self._shape(op.inputs[0])[3] == kernel[3]
        strides = (options.StrideH(), options.StrideW())
        return kernel[1:3] == (1, 1) and strides == (1, 1) and same_channels and op.inputs[1] in self._stored

    def _shape(self, index: int) -> tuple[int, ...]:
        return self._graph.tensors[index].shape

    def _options(self, op: GraphOp) -> Any:
        stored = self._ops.Operators(op.index)
        kinds = schema.BuiltinOptions
        known: dict[int, Any] = {
            kinds.Conv2DOptions: schema.Conv2DOptions,
            kinds.DepthwiseConv2DOptions: schema.DepthwiseConv2DOptions,
            kinds.FullyConnectedOptions: schema.FullyConnectedOptions,
            kinds.AddOptions: schema.AddOptions,
            kinds.MulOptions: schema.MulOptions,
        }
        options = known[stored.BuiltinOptionsType()]()
        table = stored.BuiltinOptions()
        options.Init(table.Bytes, table.Pos)
        return options
