"""Which calls of a network int8 arithmetic knows, and which of them the runtime computes as one."""

import dataclasses
import enum
from collections import Counter, defaultdict
from typing import Any

import keras
import numpy as np

from mobileprune.fake_quant import FIXED_RANGES
from mobileprune.graph import is_channels_last, nodes
from mobileprune.pruning_wrapper import PruneLowMagnitude
from mobileprune.union import Union

layers = keras.layers


class Kind(enum.Enum):
    """What becomes of a call."""

    KERNEL = "weights and outputs are rounded"
    NORM = "folded into the weights before it"
    FUSED = "computed with the call before it, whose outputs are not rounded in between"
    OWN = "outputs are rounded to a range of their own"
    AVERAGE = "outputs are rounded, to the range of the inputs"
    SAME = "outputs are some of the inputs, and have their range"
    FLOAT = "stays in float"


@dataclasses.dataclass(frozen=True)
class Treatment:
    """What becomes of a call, and why where it stays in float.

    Attributes:
        kind: see `Kind`.
        reason: one clause.
        fixed: the range of its outputs where the runtime prescribes it.
        steps: the activation that is computed apart from the layer's weights, or in several steps.
    """

    kind: Kind
    reason: str = ""
    fixed: tuple[float, float] | None = None
    steps: str | None = None


_KERNELS = (layers.Conv2D, layers.DepthwiseConv2D, layers.SeparableConv2D, layers.Dense)
_SAME = (
    *(layers.MaxPooling2D, layers.GlobalMaxPooling2D, layers.Flatten, layers.Reshape, layers.Permute),
    *(layers.ZeroPadding2D, layers.Cropping2D, layers.Identity, layers.ActivityRegularization),
    *(layers.Dropout, layers.SpatialDropout2D, layers.GaussianDropout, layers.GaussianNoise),
)
_MERGES = (layers.Add, layers.Subtract, layers.Multiply)
_FUSED = ("relu", "relu6")
_ACTIVATIONS = ("hard_silu", "silu", "sigmoid", "hard_sigmoid", "tanh", "softmax", "leaky_relu")
_IN_STEPS = ("silu", "hard_sigmoid")


class Patterns:
    """What becomes of every call of a functional graph."""

    def __init__(self, graph: Any) -> None:
        self._outputs = {id(tensor) for tensor in graph.outputs}
        self._readers: dict[int, list[Any]] = defaultdict(list)
        self._calls: dict[int, list[Any]] = defaultdict(list)
        self._source: dict[int, Any] = {}
        for node in nodes(graph):
            self._calls[id(node.operation)].append(node)
            self._source |= {id(tensor): node for tensor in node.output_tensors}
            for tensor in node.input_tensors:
                self._readers[id(tensor)].append(node)
        self._graph = graph
        self._ranges = self._shared_ranges()

    def range_of(self, tensor: Any) -> tuple[int, int]:
        """Which range a tensor has, and how many tensors it is made for: of those that are derived none counts."""
        root = self._ranges.root(self._numbers[id(tensor)])
        return root, self._members[root]

    def _shared_ranges(self) -> Union:
        """Sets of tensors that the runtime wants in one range: what moves data, and concatenates, does not scale."""
        self._numbers = {tensor: number for number, tensor in enumerate(self._source)}
        union, derived = Union(len(self._numbers)), set()
        for node in nodes(self._graph):
            if self.treatment(node).kind in (Kind.SAME, Kind.AVERAGE):
                output = self._numbers[id(node.output_tensors[0])]
                derived.add(output)
                for tensor in node.input_tensors:
                    union.join(np.array([output]), np.array([self._numbers[id(tensor)]]))
        made = [union.root(number) for number in range(len(self._numbers)) if number not in derived]
        self._members = Counter(made)
        return union

    def treatment(self, node: Any) -> Treatment:
        """What becomes of one call."""
        operation = node.operation
        kind = type(operation)
        if type(core_of(operation)) in _KERNELS:
            return _treat_kernel(core_of(operation), node)
        if isinstance(operation, PruneLowMagnitude):
            return Treatment(Kind.FLOAT, f"{type(operation.layer).__name__} has no quantization-aware form here")
        if kind is layers.BatchNormalization:
            source = self._source[id(node.input_tensors[0])]
            if self.norm_of(source.operation) is operation:
                return Treatment(Kind.NORM)
            return Treatment(Kind.FLOAT, "it is not the only reader of one convolution or dense layer")
        if not is_channels_last(operation):
            return Treatment(Kind.FLOAT, "its channels come first")
        if kind in _SAME:
            return Treatment(Kind.SAME)
        if kind is layers.AveragePooling2D:
            return Treatment(Kind.AVERAGE)
        if kind is layers.GlobalAveragePooling2D:
            return Treatment(Kind.OWN)
        if kind is layers.Concatenate:
            return Treatment(Kind.SAME)
        if _merges(operation):
            known = len(node.input_tensors) <= 2
            return Treatment(Kind.OWN) if known else Treatment(Kind.FLOAT, "it merges more than two tensors")
        return self._treat_activation(node)

    def norm_of(self, operation: Any) -> Any | None:
        """The batch normalisation that can be folded into a layer's weights; None if there is none."""
        core = core_of(operation)
        if type(core) not in _KERNELS or activation_name(core) != "linear":
            return None
        calls = self._calls[id(operation)]
        if any(_treat_kernel(core, node).kind is not Kind.KERNEL for node in calls):
            return None
        found = None
        for node in calls:
            reader = self._only_reader(node.output_tensors[0])
            norm = None if reader is None else reader.operation
            if type(norm) is not layers.BatchNormalization or (found is not None and norm is not found):
                return None
            found = norm
        if found is None or found.axis not in (-1, len(calls[0].output_tensors[0].shape) - 1):
            return None
        return found if len(self._calls[id(found)]) == len(calls) else None

    def _treat_activation(self, node: Any) -> Treatment:
        name = _name_of_activation(node.operation)
        if name == "linear":
            return Treatment(Kind.SAME)
        if name in _FUSED:
            return Treatment(Kind.FUSED if self._follows_alone(node) else Kind.OWN)
        if name in _ACTIVATIONS:
            return Treatment(Kind.OWN, fixed=FIXED_RANGES.get(name), steps=name if name in _IN_STEPS else None)
        return Treatment(Kind.FLOAT, f"{name or type(node.operation).__name__} has no quantization-aware form here")

    def _follows_alone(self, node: Any) -> bool:
        """Whether the call alone reads what weights, or the merging of two tensors, have just computed."""
        tensor = node.input_tensors[0]
        source = self._source[id(tensor)]
        if self._only_reader(tensor) is not node:
            return False
        treated = self.treatment(source)
        if treated.kind is Kind.KERNEL:
            return activation_name(core_of(source.operation)) == "linear"
        return treated.kind is Kind.NORM or (treated.kind is Kind.OWN and _merges(source.operation))

    def _only_reader(self, tensor: Any) -> Any | None:
        readers = self._readers[id(tensor)]
        return readers[0] if len(readers) == 1 and id(tensor) not in self._outputs else None


def core_of(operation: Any) -> Any:
    """The layer itself, without a `PruneLowMagnitude` around it."""
    return operation.layer if isinstance(operation, PruneLowMagnitude) else operation


def activation_name(layer: Any) -> str:
    """Keras' name of the activation that a layer has as an argument; empty for functions that have none."""
    if getattr(layer, "activation", None) is None:
        return "linear"
    name = keras.activations.serialize(layer.activation)
    return name if isinstance(name, str) else ""


def _merges(operation: Any) -> bool:
    """Whether a layer or function of keras.ops adds, subtracts or multiplies."""
    if isinstance(operation, keras.Layer):
        return type(operation) in _MERGES
    return type(operation).__name__ in [kind.__name__ for kind in _MERGES]


def _treat_kernel(core: Any, node: Any) -> Treatment:
    if not is_channels_last(core):
        return Treatment(Kind.FLOAT, "its channels come first")
    if isinstance(core, layers.Dense) and len(node.input_tensors[0].shape) != 2:
        return Treatment(Kind.FLOAT, "a dense layer is quantized on matrices (batch, features) only")
    name = activation_name(core)
    if name not in ("linear", *_FUSED, *_ACTIVATIONS):
        return Treatment(Kind.FLOAT, f"its activation {name or 'function'} has no quantization-aware form here")
    if getattr(core, "lora_enabled", False) or getattr(core, "quantization_mode", None):
        return Treatment(Kind.FLOAT, "it has low-rank or quantized weights of Keras' own")
    if name in ("linear", *_FUSED):
        return Treatment(Kind.KERNEL)
    return Treatment(Kind.KERNEL, fixed=FIXED_RANGES.get(name), steps=name)


def _name_of_activation(operation: Any) -> str:
    """Keras' name of the activation that a layer is; empty for any other layer."""
    kind = type(operation)
    if kind is layers.Activation:
        return activation_name(operation)
    if kind is layers.ReLU and not operation.negative_slope and not operation.threshold:
        return {None: "relu", 6.0: "relu6"}.get(operation.max_value, "")
    if kind is layers.Softmax and operation.axis == -1:
        return "softmax"
    return "leaky_relu" if kind is layers.LeakyReLU else ""
