"""Which Keras layer an op of a `.tflite` comes from: the file's tensors carry the answer in their names.

`mobileprune.convert` calls every tensor `<layer>:<what>`: `block_1_expand:Conv2D` for what that layer's op answers,
`block_1_expand:kernel` and `block_1_expand:bias` for its weights, `encoder/block_1_expand:Conv2D` where the layer is
inside a nested model. Quantizing and storing sparsely only add to the end of names, so every file made from that one
has them, too. Nothing else writes a colon with letters behind it: files from elsewhere have layers nowhere.

The converter itself joins the names of all that it fused into an op, changes those that stand twice, calls the last op
`StatefulPartitionedCall` and constants of equal value as the first of them. So each call of a layer is traced under a
number (`call_scope`), and `with_layer_names` finds the numbers in those names again and writes readable ones.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from mobileprune.tflite_graph import KERNEL_OPS, OP_NAMES, TfliteGraph, read_graph
from mobileprune.tflite_rewrite import builtin_code, packed, unpacked

SEPARATOR = ":"
# One of the joined names: the call's number, and at the end what was done in it.
_NUMBERED = re.compile(r"(?:^|;)call\.(\d+)/(?:[^;]*/)?([^;/]*)")
# What the inputs of ops with weights are called, by their place.
_WEIGHTS = {1: "kernel", 2: "bias"}
_Found = list[tuple[str, str]]


@dataclasses.dataclass(frozen=True)
class Call:
    """One call of a Keras layer or op while the model was traced.

    Attributes:
        layer: its path: the names of the layers around it and its own, joined by `/`, without the model's.
        kernels: how many values each of its own weights with two or more axes has.
    """

    layer: str
    kernels: tuple[int, ...] = ()


def call_scope(number: int) -> str:
    """The name scope that the `number`th call is traced under: absolute, so that no other name stands before it."""
    return f"call.{number}/"


def layer_of(tensor_name: str) -> str:
    """The path of the Keras layer that a tensor belongs to; empty where its name does not tell.

    Example:
        >>> layer_of("encoder/block_1_expand:Conv2D_quantized")
        'encoder/block_1_expand'
        >>> layer_of("StatefulPartitionedCall:0")
        ''
    """
    layer, _, what = tensor_name.rpartition(SEPARATOR)
    return layer if what[:1].isalpha() else ""


def op_layers(graph: TfliteGraph) -> tuple[str, ...]:
    """The path of the Keras layer of each op of the main subgraph, in order; empty where the file does not tell.

    An op into which the converter fused several layers (convolution, batch normalization, activation) counts to the
    layer that has the kernel, else to the first of them.

    Example:
        >>> op_layers(read_graph(variant.content))  # doctest: +SKIP
        ('stem', 'depthwise', 'project', 'add', 'global_average_pooling2d', 'head')
    """
    return tuple(layer_of(graph.tensors[op.outputs[0]].name) if op.outputs else "" for op in graph.ops)


@dataclasses.dataclass(frozen=True)
class FloatOp:
    """An op that computes in floating point: its place in the graph, its kind, its Keras layer (empty if unknown) and
    the name of its first output."""

    index: int
    op: str
    layer: str
    tensor: str

    def __str__(self) -> str:
        return f"{self.op} of {self.layer!r}" if self.layer else f"{self.op} {self.tensor!r}"


def float_layers(content: bytes) -> tuple[FloatOp, ...]:
    """The ops of a file that compute in floating point, with their Keras layers.

    See `TfliteGraph.float_ops` for what does not count; in files of `int8` and `int16x8` what is left is what the
    quantizer has no kernel for.

    Raises:
        ModelError: not a `.tflite`, or a damaged one.

    Example:
        >>> for op in float_layers(variant.content):  # doctest: +SKIP
        ...     print(op)
        ELU of 'elu_3'
    """
    graph = read_graph(content)
    layers = op_layers(graph)
    return tuple(
        FloatOp(op.index, op.name, layers[op.index], graph.tensors[op.outputs[0]].name) for op in graph.float_ops()
    )


def with_layer_names(content: bytes, calls: Sequence[Call], outputs: Mapping[str, int]) -> bytes:
    """Renames the tensors of a file that was traced under `call_scope`s; what it computes stays the same.

    Args:
        content: the `.tflite`, as converted.
        calls: the calls in the order in which they began, which is that of their numbers.
        outputs: for each output of the signature the number of the call that made it.

    Returns:
        The file with names `<layer>:<what>`; inputs are called as the signature calls them.

    Raises:
        ModelError: a damaged file.
    """
    model = unpacked(content)
    namer = _Namer(calls)
    for place, graph in enumerate(model.subgraphs):
        signature = next((each for each in model.signatureDefs or () if each.subgraphIndex == place), None)
        made = {}
        for entry in (signature.outputs or ()) if signature else ():
            number = outputs.get(entry.name.decode())
            if number is not None:
                made[entry.tensorIndex] = number
        for entry in (signature.inputs or ()) if signature else ():
            namer.name(graph.tensors[entry.tensorIndex], entry.name.decode())
        namer.name_graph(model, graph, made)
    return packed(model)


class _Namer:
    """Gives every tensor a name that no other has."""

    def __init__(self, calls: Sequence[Call]) -> None:
        self._calls = calls
        self._by_kernel: dict[int, list[int]] = collections.defaultdict(list)
        for number, call in enumerate(calls):
            for size in call.kernels:
                self._by_kernel[size].append(number)
        self._used: collections.Counter[str] = collections.Counter()
        self._done: set[int] = set()

    def name(self, tensor: Any, name: str) -> None:
        if id(tensor) in self._done:
            return
        self._done.add(id(tensor))
        self._used[name] += 1
        while self._used[name] > 1:  # the name with a number may be taken, too
            name = f"{name}_{self._used[name]}"
            self._used[name] += 1
        tensor.name = name.encode()

    def name_graph(self, model: Any, graph: Any, made: Mapping[int, int]) -> None:
        """Names the tensors of one subgraph; `made` are the calls that made its outputs, by tensor."""
        # Old names are read before any is replaced.
        found = [_NUMBERED.findall((tensor.name or b"").decode()) for tensor in graph.tensors]
        layers: dict[int, str] = {}  # tensor -> the layer that made it
        for op in graph.operators:
            code = model.operatorCodes[op.opcodeIndex]
            kind = OP_NAMES.get(builtin_code(code), "OP") if code.customCode is None else code.customCode.decode()
            op.inputs, op.outputs = ([int(at) for at in ([] if of is None else of)] for of in (op.inputs, op.outputs))
            has_kernel = kind in KERNEL_OPS and len(op.inputs) > 1 and op.inputs[1] >= 0
            kernel = graph.tensors[op.inputs[1]] if has_kernel else None
            if kernel is not None and model.buffers[kernel.buffer].data is None:
                kernel = None  # computed: no weight
            number = self._call(op, kind, kernel, found, made)
            if number is not None:
                layer = self._calls[number].layer
            else:  # what the converter adds of its own belongs to what it reads
                layer = next((layers[index] for index in op.inputs if index in layers), "")
            layers |= dict.fromkeys(op.outputs, layer)
            if not layer:
                continue
            for index in op.outputs:
                self.name(graph.tensors[index], f"{layer}{SEPARATOR}{kind}")
            for place, index in enumerate(op.inputs):
                if index >= 0 and model.buffers[graph.tensors[index].buffer].data is not None:
                    what = _WEIGHTS.get(place) if kind in KERNEL_OPS else None
                    self.name(graph.tensors[index], f"{layer}{SEPARATOR}{what or 'constant'}")
        for tensor in graph.tensors:
            self.name(tensor, (tensor.name or b"").decode())

    def _call(self, op: Any, kind: str, kernel: Any, found: list[_Found], made: Mapping[int, int]) -> int | None:
        """The number of the call that an op belongs to, which may hold what several layers do."""
        own = [each for index in op.outputs for each in found[index]]
        last = [made[index] for index in op.outputs if index in made]  # the last op has lost its names
        if kernel is not None:
            # Padding, batch normalization and activation went into the op whose kernel this is.
            size = math.prod(int(extent) for extent in kernel.shape)
            named = [int(number) for number, _ in (*found[op.inputs[1]], *own)] + last
            # Some grouped convolutions lose their own name to the batch normalization behind them.
            near = (each for number in named for each in sorted(self._by_kernel[size], key=lambda at: abs(at - number)))
            number = next((number for number in named if size in self._calls[number].kernels), next(near, None))
            if number is not None:
                return number
        alike = [int(number) for number, done in own if _alike(done, kind)]
        return min(alike or last or [int(number) for number, _ in own], default=None)


def _alike(done: str, kind: str) -> bool:
    """Whether TensorFlow's name of an op speaks of a kind: `add_1` of ADD, `MaxPool2d` of MAX_POOL_2D, `MatMul` of
    BATCH_MATMUL."""
    ours, theirs = (re.sub("[^a-z]", "", each.lower()) for each in (kind, done))
    return bool(theirs) and (ours.startswith(theirs) or ours.endswith(theirs) or theirs.startswith(ours))
