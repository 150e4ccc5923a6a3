"""Which Keras layer an op of a `.tflite` comes from: the file's tensors carry the answer in their names.

`mobileprune.convert` calls every tensor `<layer>:<what>`: `block_1_expand:Conv2D` for what that layer's op answers,
`block_1_expand:kernel` and `block_1_expand:bias` for its weights, `encoder/block_1_expand:Conv2D` where the layer is
inside a nested model. Quantizing and storing sparsely only add to the end of names, so every file made from that one
has them, too. Nothing else writes a colon with letters behind it: files from elsewhere have layers nowhere.
"""

import dataclasses

from mobileprune.tflite_graph import TfliteGraph, read_graph

SEPARATOR = ":"


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
