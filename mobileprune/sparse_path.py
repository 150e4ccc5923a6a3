"""Will a `.tflite` run on XNNPACK's sparse kernels on ARM, how much of it, and if not, which op is in the way?

XNNPACK multiplies only by what is not zero when a whole network meets its conditions (Elsen et al., "Fast Sparse
ConvNets", CVPR 2020): float weights; a 3x3 stride-2 convolution of an RGB image with padding 1 on every side; then 1x1
convolutions, depthwise ones of 3x3 and 5x5 padded all round, elementwise ops; at the end a mean over the image; nothing
inside read from outside; more than two thirds of the 1x1 weights zero; and weights stored sparsely in the file. One op
that breaks a condition in the middle does worse than to keep the path from being taken: XNNPACK then takes it for what
comes before, and reads the result in the wrong order. `check_arm` refuses such files. On x86 with AVX the path is
never taken, so that neither the gain nor the fault is seen there.
"""

import dataclasses
import math

from mobileprune.errors import ModelError, VerificationError, known_names
from mobileprune.json_record import Record
from mobileprune.tflite_graph import DAMAGE, KERNEL_OPS, TfliteGraph, read_graph
from mobileprune.xnnpack_layout import FLOAT_ONLY, REDUCTIONS, Layout, layout

# Ops that write the ordinary layout whatever they read.
_TURN_BACK = (*REDUCTIONS, "DEPTH_TO_SPACE")
NEEDED_ZEROS = 2 / 3


@dataclasses.dataclass(frozen=True)
class Obstacle(Record):
    """An op that keeps the sparse path from being taken.

    Attributes:
        op: its number in the file; -1 for the whole file.
        kind: what it is, `DEPTHWISE_CONV_2D`, ….
        tensor: the name of what it computes.
        reason: what about it, one clause.
    """

    op: int
    kind: str
    tensor: str
    reason: str

    def __str__(self) -> str:
        return f"{self.kind} {self.op} ({self.tensor.split(';')[0]}): {self.reason}" if self.op >= 0 else self.reason


@dataclasses.dataclass(frozen=True)
class SparsePath(Record):
    """What XNNPACK will do with a file on ARM.

    Attributes:
        convolutions: how many 1x1 convolutions the file has.
        taken: how many of them run on sparse kernels, the file being as it is.
        reachable: how many would, if their weights were sparse enough and so stored.
        macs: multiply-accumulates of one inference, zeros included.
        macs_taken: of these, in the 1x1 convolutions on sparse kernels.
        macs_reachable: the same, if their weights were sparse enough and so stored.
        zeros: share of zeros among the weights of the 1x1 convolutions that could be on the path, 0 to 1.
        stored_sparse: whether any weight is stored sparsely.
        obstacles: the ops in the way.
        faults: ops that would read what the sparse kernels write in the wrong order, the file being as it is: on ARM
            it fails when it is loaded, or gives wrong answers.
        faults_if_sparse: the same, if the weights were sparse enough and so stored.
    """

    convolutions: int
    taken: int
    reachable: int
    macs: int
    macs_taken: int
    macs_reachable: int
    zeros: float
    stored_sparse: bool
    obstacles: tuple[Obstacle, ...] = ()
    faults: tuple[Obstacle, ...] = ()
    faults_if_sparse: tuple[Obstacle, ...] = ()

    def sentence(self) -> str:
        """The verdict for people, in one sentence or two."""
        if self.faults:
            return f"Sparse inference on ARM would break this file: {_listed(self.faults)}"
        share = self.macs_taken / self.macs if self.macs else 0.0
        if self.taken:
            return (
                f"Sparse inference on ARM: yes, {self.taken} of {self.convolutions} 1x1 convolutions with {share:.0%} "
                f"of the MACs; {self.zeros:.0%} of their weights are zero."
            )
        said = "Sparse inference on ARM: no. "
        if self.faults_if_sparse:
            return f"{said}With sparse weights it would break: {_listed(self.faults_if_sparse)}"
        if self.reachable:
            share = self.macs_reachable / self.macs
            missing = [] if self.zeros > NEEDED_ZEROS else [f"more than 67% zeros in their place of {self.zeros:.0%}"]
            missing += [] if self.stored_sparse else ["a sparse recipe"]
            return (
                f"{said}{self.reachable} of {self.convolutions} 1x1 convolutions with {share:.0%} of the MACs can get "
                f"there; missing: {' and '.join(missing)}."
            )
        return f"{said}In the way: {_listed(self.obstacles)}"


def sparse_path(content: bytes) -> SparsePath:
    """Reads whether XNNPACK's sparse kernels will run a file on ARM, by their conditions; runs nothing.

    Args:
        content: a `.tflite`, with dense or sparse weights.

    Raises:
        ModelError: not a `.tflite`, or a damaged one.

    Example:
        >>> sparse_path(variant.content).sentence()  # doctest: +SKIP
        'Sparse inference on ARM: yes, 35 of 35 1x1 convolutions with 88% of the MACs; 90% of their weights are zero.'
    """
    graph = read_graph(content)
    stored_sparse = any(tensor.sparse for tensor in graph.tensors)
    try:
        possible = layout(content, graph, assume_zeros=True)
        real = layout(content, graph)
        if not stored_sparse:
            real.nchw.clear()
        macs = _macs(graph)
        return SparsePath(
            convolutions=sum(node.op.name == "CONV_2D" and node.kernel is not None for node in real.nodes),
            taken=len(_on_path(real)),
            reachable=len(_on_path(possible)),
            macs=sum(macs.values()),
            macs_taken=sum(macs[index] for index in _on_path(real)),
            macs_reachable=sum(macs[index] for index in _on_path(possible)),
            zeros=real.zeros / real.weights if real.weights else 0.0,
            stored_sparse=stored_sparse,
            obstacles=_obstacles(graph, possible),
            faults=_faults(graph, real),
            faults_if_sparse=_faults(graph, possible),
        )
    except DAMAGE as error:
        raise ModelError(
            f"The .tflite is damaged: {type(error).__name__}: {error}. Convert the model again."
        ) from error


def check_arm(content: bytes) -> None:
    """Refuses a file that runs on x86, and fails or answers wrongly on ARM because of its sparse weights.

    Known: an op that XNNPACK's sparse layout does not know, anywhere between the first convolution and the mean
    (asymmetric padding at stride 2, a max pooling, a concatenation), while what comes before it is taken; and a 1x1
    convolution behind a mean with `keepdims=True`, which fails when the file is loaded.

    Raises:
        VerificationError: names the op.
        ModelError: not a `.tflite`, or a damaged one.

    Example:
        >>> check_arm(encode_sparse(content))  # doctest: +SKIP
    """
    faults = sparse_path(content).faults
    if faults:
        raise VerificationError(
            f"On ARM this file fails or answers wrongly, though it runs on x86: {_listed(faults)} Rewrite the model "
            "(sparse_ready), or ship dense weights."
        )


def _on_path(made: Layout) -> list[int]:
    """Numbers of the 1x1 convolutions that write the layout."""
    return [
        node.op.index
        for node in made.nodes
        if node.op.name == "CONV_2D" and node.kernel is not None and made.nchw.intersection(node.writes)
    ]


def _faults(graph: TfliteGraph, made: Layout) -> tuple[Obstacle, ...]:
    found = []
    for node in made.nodes:
        reads = [index for index in node.reads if index in made.nchw and len(graph.tensors[index].shape) == 4]
        if reads and node.mixes:
            reason = "it is not over height and width together, and runs along the wrong axis of the sparse layout"
            found.append(Obstacle(node.op.index, node.op.name, graph.tensors[node.writes[0]].name, reason))
        if not reads or made.nchw.intersection(node.writes) or node.op.name in _TURN_BACK:
            continue
        readers = [other for other in made.nodes if set(other.reads) & set(node.writes)]
        behind = [f"{other.op.name} {other.op.index} ({other.why or 'not part of it'})" for other in readers]
        reason = f"it must go on in the sparse layout, and what reads it cannot: {known_names(behind, 3) or 'nothing'}"
        found.append(Obstacle(node.op.index, node.op.name, graph.tensors[node.writes[0]].name, reason))
    return tuple(found)


def _obstacles(graph: TfliteGraph, possible: Layout) -> tuple[Obstacle, ...]:
    nodes, found = possible.nodes, {}
    kernels = [node for node in nodes if node.kernel is not None]
    if kernels and all(possible.nchw.intersection(node.writes) for node in kernels):
        return ()
    for number, cause in possible.causes:
        node = nodes[number if cause is None else cause]
        if cause is None:
            reason = (
                "the file answers what it reads, which must stay inside"
                if set(node.reads) & {tensor.index for tensor in graph.outputs}
                else "it reads the image; in front of it a 3x3 convolution with stride 2 and padding 1 is missing"
            )
        elif cause == number:
            reason = "it reads the same tensor twice"
        else:
            reason = node.why or "it reads what must stay inside, and is not part of it"
        found[node.op.index] = reason
    if not found:
        # Files of integers have no op at all that could be part of it; one example says so.
        found = {node.op.index: node.why for node in reversed(nodes) if node.why.endswith(FLOAT_ONLY)}
        found = dict(list(found.items())[-1:])
    if not found and not kernels:
        return (Obstacle(-1, "", "", "the file has no 1x1 convolution"),)
    if not found:
        reason = "no mean over the image (global average pooling), nor depth-to-space, ends what the kernels know"
        return (Obstacle(-1, "", "", reason),)
    made = [
        Obstacle(op.index, op.name, graph.tensors[op.outputs[0]].name, found[op.index])
        for op in graph.ops
        if op.index in found
    ]
    return tuple(made)


def _macs(graph: TfliteGraph) -> dict[int, int]:
    """Multiply-accumulates of each op with a kernel."""
    counts = {}
    for op in graph.ops:
        if op.name in KERNEL_OPS and len(op.inputs) > 1:
            kernel, output = graph.tensors[op.inputs[1]].shape, graph.tensors[op.outputs[0]].shape
            if op.name == "DEPTHWISE_CONV_2D":
                counts[op.index] = math.prod(output[1:]) * math.prod(kernel[1:3])
            elif op.name == "TRANSPOSE_CONV":
                counts[op.index] = math.prod(graph.tensors[op.inputs[2]].shape[1:3]) * math.prod(kernel)
            elif op.name in ("CONV_2D", "FULLY_CONNECTED"):
                counts[op.index] = math.prod(output[1:]) * math.prod(kernel[1:])
    return counts


def _listed(obstacles: tuple[Obstacle, ...]) -> str:
    shown = "; ".join(map(str, obstacles[:3]))
    return shown + (f"; and {len(obstacles) - 3} more." if len(obstacles) > 3 else ".")
