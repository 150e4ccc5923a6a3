"""Regions of a functional graph with one way in and one way out, between two tensors that can stand for each other."""

import dataclasses
from collections import defaultdict
from typing import Any

import keras

from mobileprune.graph import nodes

# Layers that belong to what stands before them: without it they would have nothing to normalise, bend or drop.
_FOLLOWERS = (
    *(keras.layers.BatchNormalization, keras.layers.LayerNormalization, keras.layers.GroupNormalization),
    *(keras.layers.RMSNormalization, keras.layers.UnitNormalization),
    *(keras.layers.Activation, keras.layers.ReLU, keras.layers.LeakyReLU, keras.layers.PReLU, keras.layers.ELU),
    *(keras.layers.Dropout, keras.layers.SpatialDropout1D, keras.layers.SpatialDropout2D, keras.layers.GaussianNoise),
)
_FOLLOWING_OPS = ("Relu", "Relu6", "Silu", "Gelu", "Elu", "LeakyRelu", "HardSilu", "Sigmoid", "Tanh", "Softplus")


@dataclasses.dataclass(frozen=True)
class Region:
    """Calls between two tensors of one shape and type: readers of the exit can read the entry in its place.

    Attributes:
        entry, exit: the tensors.
        calls: Keras' records of the calls between them, in the order of the graph.
        residual: whether the exit is a sum, and the entry one of its terms.
    """

    entry: Any
    exit: Any
    calls: tuple[Any, ...]
    residual: bool


class Regions:
    """The smallest region before each tensor of one graph; larger ones are made of these, one behind another.

    Attributes:
        found: the regions, in the order of their exits.
        refused: for sums of a tensor and what was made of it, whose calls others read, too: (the sum's call, why).
    """

    def __init__(self, graph: Any) -> None:
        self._order = [node for node in nodes(graph) if not isinstance(node.operation, keras.layers.InputLayer)]
        self._place = {id(node): place for place, node in enumerate(self._order)}
        self._maker = {id(tensor): node for node in self._order for tensor in node.output_tensors}
        self._readers: dict[int, list[Any]] = defaultdict(list)
        for node in self._order:
            for key in {id(tensor) for tensor in node.input_tensors}:
                self._readers[key].append(node)
        self.outputs = {id(tensor) for tensor in graph.outputs}
        self.refused: list[tuple[Any, str]] = []
        self.found = [region for node in self._order if (region := self._ending_in(node)) is not None]

    def followed(self, region: Region) -> Region:
        """The region with what belongs to it behind it.

        Behind a plain one these are normalisations, activations and dropout. Behind a residual one only an activation
        that the entry comes from, too: a second one changes nothing where it is a ReLU, and nobody would miss it.
        """
        while (node := self._follower(region)) is not None:
            region = dataclasses.replace(region, exit=node.output_tensors[0], calls=(*region.calls, node))
        return region

    def _follower(self, region: Region) -> Any | None:
        readers = self._readers[id(region.exit)]
        if len(readers) != 1 or id(region.exit) in self.outputs:
            return None
        (node,) = readers
        if len(node.output_tensors) != 1 or not _alike(region.exit, node.output_tensors[0]):
            return None
        if region.residual:
            before = self._maker.get(id(region.entry))
            if before is None or not _is_relu(node.operation) or not _is_relu(before.operation):
                return None
            return node if _signature(node.operation) == _signature(before.operation) else None
        follows = isinstance(node.operation, _FOLLOWERS) or type(node.operation).__name__ in _FOLLOWING_OPS
        return node if follows and len(node.input_tensors) == 1 else None

    def _ending_in(self, node: Any) -> Region | None:
        if len(node.output_tensors) != 1:
            return None
        return (self._residual(node) if _is_sum(node.operation) else None) or self._single_entry(node)

    def _residual(self, node: Any) -> Region | None:
        """Of a sum: the region from the one of its terms that all others are made of.

        Beside that term the calls may read what stands outside, like the memory of a cross-attention.
        """
        terms = list({id(tensor): tensor for tensor in node.input_tensors}.values())
        if len(terms) < 2:
            return None
        for entry in terms:
            if not _alike(entry, node.output_tensors[0]):
                continue
            inside = self._between(entry, node)
            if any(id(self._maker.get(id(term))) not in inside for term in terms if term is not entry):
                continue
            calls = tuple(call for call in self._order if id(call) in inside)
            reader = self._outside(calls, node)
            if reader is None:
                return Region(entry, node.output_tensors[0], calls, residual=True)
            self.refused.append((node, f"what is inside is also read by {reader}"))
        return None

    def _between(self, entry: Any, end: Any) -> set[int]:
        """Ids of the calls up to `end` that anything of `entry` goes through."""
        touched: set[int] = {id(entry)}
        after = set()
        for node in self._order[: self._place[id(end)] + 1]:
            if any(id(tensor) in touched for tensor in node.input_tensors):
                touched |= {id(tensor) for tensor in node.output_tensors}
                after.add(id(node))
        inside, waiting = set(), [end]
        while waiting:
            node = waiting.pop()
            if id(node) in inside or id(node) not in after:
                continue
            inside.add(id(node))
            waiting += [self._maker[id(t)] for t in node.input_tensors if t is not entry and id(t) in self._maker]
        return inside

    def _outside(self, calls: tuple[Any, ...], end: Any) -> str | None:
        """Who reads a tensor inside that is not the exit, and stands outside."""
        inside = {id(call) for call in calls}
        for call in calls:
            for tensor in call.output_tensors if call is not end else ():
                if id(tensor) in self.outputs:
                    return "the model's output"
                for reader in self._readers[id(tensor)]:
                    if id(reader) not in inside:
                        return repr(reader.operation.name)
        return None

    def _single_entry(self, node: Any) -> Region | None:
        """From the exit backwards, the latest call first, until all that is read is one tensor like the exit."""
        exit, inside = node.output_tensors[0], {id(node)}
        read = {id(tensor): tensor for tensor in node.input_tensors}
        while read:
            if len(read) == 1:
                (entry,) = read.values()
                if _alike(entry, exit):
                    calls = tuple(call for call in self._order if id(call) in inside)
                    return Region(entry, exit, calls, residual=False)
            latest = max(read, key=lambda key: self._place[id(self._maker[key])] if key in self._maker else -1)
            maker = self._maker.get(latest)
            if maker is None:
                return None  # an input of the graph
            made = {id(tensor) for tensor in maker.output_tensors}
            if made & self.outputs or any(id(other) not in inside for key in made for other in self._readers[key]):
                return None
            inside.add(id(maker))
            read = {key: tensor for key, tensor in read.items() if key not in made}
            read.update((id(tensor), tensor) for tensor in maker.input_tensors)
        return None


def _alike(one: Any, other: Any) -> bool:
    return tuple(one.shape) == tuple(other.shape) and one.dtype == other.dtype


def _is_sum(operation: Any) -> bool:
    return isinstance(operation, keras.layers.Add) or type(operation).__name__ == "Add"


def _is_relu(operation: Any) -> bool:
    """Whether twice is the same as once."""
    if isinstance(operation, keras.layers.ReLU):
        return not operation.negative_slope and not operation.threshold
    activation = operation.activation if isinstance(operation, keras.layers.Activation) else None
    return activation in (keras.activations.relu, keras.activations.relu6) or type(operation).__name__ in (
        "Relu",
        "Relu6",
    )


def _signature(operation: Any) -> tuple[str, str]:
    """What tells one ReLU from another: its kind and its largest value."""
    activation = getattr(operation, "activation", None)
    return type(operation).__name__, str(getattr(activation, "__name__", getattr(operation, "max_value", "")))
