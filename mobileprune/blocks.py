"""Which blocks and layers a model can do without: those whose input and output can stand for each other.

A residual branch adds to its input, so the input alone has the right shape (BlockDrop, Wu et al. 2018,
arXiv:1711.08393; ShortGPT, Men et al. 2024, arXiv:2403.03853). The same holds for any part of the graph between two
tensors of one shape and type. `mobileprune.block_removal` takes them out.
"""

import dataclasses
import fnmatch
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import keras

from mobileprune.channel_groups import ChannelGraph
from mobileprune.errors import PlanError, known_names
from mobileprune.graph import functional_graph, is_nested, nodes
from mobileprune.json_record import Record
from mobileprune.regions import Region, Regions


@dataclasses.dataclass(frozen=True)
class Block(Record):
    """A part of a model that can be left out.

    Attributes:
        name: what its layers' names begin with, `block_3`; else its first and last layer, `conv2d_7..add_2`.
        kind: `"residual"` when the exit is a sum and the entry one of its terms, else `"plain"`.
        layers: paths of its layers and ops, in the order of the graph; inside nested models `outer/inner`.
        entry: what writes the tensor that is read instead, by path; `split:1` is the second of several.
        exit: what writes the tensor that goes, by path.
        shape: of both tensors, without the batch.
        macs: multiply-accumulates that go with it.
        params: the same of parameters.
    """

    name: str
    kind: str
    layers: tuple[str, ...]
    entry: str
    exit: str
    shape: tuple[int | None, ...]
    macs: int
    params: int


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a block stands: its region, in the graph of which model."""

    block: Block
    region: Region
    model: Any

    def holds(self, other: "Place") -> bool:
        """Whether all calls of the other are among its own."""
        return {id(call) for call in other.region.calls} <= {id(call) for call in self.region.calls}

    def overlaps(self, other: "Place") -> bool:
        """Whether the two have calls in common."""
        return _overlap(self.region, other.region) != "no"


class BlockGraph:
    """The blocks of a model, and where each of them stands.

    Args:
        model: a built Sequential or functional model; not changed.

    Attributes:
        places: the blocks that can be left out, by name, in the order of the graph; of nested models too.
        model: the model.
        refused: for parts that look like blocks why they are none, by the path of their last layer.

    Raises:
        ModelError: the model, or one nested in it, is subclassed or not built.
    """

    def __init__(self, model: Any) -> None:
        self.places: dict[str, Place] = {}
        self.refused: dict[str, str] = {}
        self.model = model
        self._graph = ChannelGraph(model)
        self._macs: Counter[str] = Counter()
        for weight in self._graph.ids.weights.values():
            self._macs[weight.layer] += weight.positions * math.prod(weight.shape)
        self._owners = list(_models(model, ""))
        self._calls = Counter(
            id(node.operation) for _, owner in self._owners for node in nodes(functional_graph(owner))
        )
        found = [entry for prefix, owner in self._owners for entry in self._blocks_of(owner, prefix)]
        names = _names([block for block, _, _ in found], list(self._graph.ids.calls))
        for (block, region, owner), name in zip(found, names, strict=True):
            self.places[name] = Place(dataclasses.replace(block, name=name), region, owner)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the whole model."""
        return sum(self._macs.values())

    @property
    def blocks(self) -> list[Block]:
        """The blocks, in the order of the graph."""
        return [place.block for place in self.places.values()]

    def path(self, operation: Any) -> str:
        """The path of a layer or op."""
        return self._graph.ids.path(operation)

    def chosen(self, blocks: Sequence[str | Block]) -> list[Place]:
        """Where the blocks of these names stand.

        Raises:
            PlanError: the model has no such block, it cannot be left out, or two of them overlap.
        """
        if isinstance(blocks, str):
            raise PlanError(f"blocks is a list of names. Write blocks=[{blocks!r}].")
        names = list(dict.fromkeys(block.name if isinstance(block, Block) else block for block in blocks))
        for name in names:
            if name not in self.places:
                why = self.refused.get(str(name).rpartition("..")[2])
                raise PlanError(
                    f"{name!r} cannot be removed: {why}."
                    if why
                    else f"{self.model.name!r} has no block {name!r}. Blocks: {known_names(self.places) or 'none'}."
                )
        places = [self.places[name] for name in names]
        for index, one in enumerate(places):
            for other in places[:index]:
                if _overlap(one.region, other.region) == "partly":
                    raise PlanError(f"Blocks {other.block.name!r} and {one.block.name!r} overlap. Remove one of them.")
        return places

    def protected(self, patterns: Sequence[str]) -> set[str]:
        """Names of the blocks that hold a layer which a pattern matches."""
        return {
            name
            for name, place in self.places.items()
            if any(fnmatch.fnmatchcase(layer, pattern) for layer in place.block.layers for pattern in patterns)
        }

    def _blocks_of(self, owner: Any, prefix: str) -> Iterator[tuple[Block, Region, Any]]:
        graph = functional_graph(owner)
        regions = Regions(graph)
        for node, reason in regions.refused:
            self.refused[prefix + node.operation.name] = reason
        inputs = {id(tensor) for tensor in graph.inputs}
        # A normalisation or an activation alone is none.
        computing = (region for region in regions.found if region.residual or self._computes(region, prefix))
        for region in _distinct([regions.followed(region) for region in computing]):
            layers = [path for call in region.calls for path in self._paths(call.operation, prefix)]
            path = prefix + region.exit._keras_history.operation.name
            if id(region.exit) in regions.outputs and (owner is self.model or id(region.entry) in inputs):
                if owner is self.model:
                    self.refused[path] = "what it gives is the model's output"
                continue  # of a nested model as a whole: a block of the outer one
            if (shared := self._shared(region)) is not None:
                self.refused[path] = f"{shared!r} is also used elsewhere"
                continue
            operations = {id(each): each for call in region.calls for each in _operations(call.operation)}
            block = Block(
                name="",
                kind="residual" if region.residual else "plain",
                layers=tuple(dict.fromkeys(layers)),
                entry=prefix + _writer(region.entry),
                exit=path,
                shape=tuple(region.entry.shape[1:]),
                macs=sum(self._macs[path] for path in dict.fromkeys(layers)),
                params=_params(operations.values()),
            )
            yield block, region, owner

    def _computes(self, region: Region, prefix: str) -> bool:
        return any(self._macs[path] for call in region.calls for path in self._paths(call.operation, prefix))

    def _paths(self, operation: Any, prefix: str) -> Iterator[str]:
        """Paths of a layer or op, or of those of a nested model."""
        if not is_nested(operation):
            yield self._graph.ids.path(operation)
            return
        for node in nodes(functional_graph(operation)):
            if not isinstance(node.operation, keras.layers.InputLayer):
                yield from self._paths(node.operation, f"{prefix}{operation.name}/")

    def _shared(self, region: Region) -> str | None:
        """A layer with weights that is called inside and outside of the region."""
        counted: dict[int, int] = {}
        for call in region.calls:
            counted[id(call.operation)] = counted.get(id(call.operation), 0) + 1
            for model in (each for each in _operations(call.operation) if is_nested(each)):
                for node in nodes(functional_graph(model)):
                    counted[id(node.operation)] = self._calls[id(node.operation)]
        for call in region.calls:
            for operation in _operations(call.operation):
                if getattr(operation, "weights", None) and counted[id(operation)] < self._calls[id(operation)]:
                    return str(operation.name)
        return None


def removable_blocks(model: Any) -> list[Block]:
    """The residual blocks and layers that a model can do without, in the order of the graph. Read-only.

    Listed are the smallest: a stage is several of them, and of a block within another either may be removed. A block
    computes something; normalisations, activations and dropout behind a layer belong to it. Not listed is what others
    outside read or share weights with, and what gives the model's output.

    Args:
        model: a built Sequential or functional model, with nested models or without.

    Raises:
        ModelError: the model, or one nested in it, is subclassed or not built.

    Example:
        >>> [block.name for block in removable_blocks(model) if block.kind == "residual"]       # doctest: +SKIP
        ['block_2', 'block_4', 'block_5']
    """
    return BlockGraph(model).blocks


def instead_of(places: Sequence[Place]) -> dict[int, Any]:
    """For ids of the blocks' exits their entries."""
    return {id(place.region.exit): place.region.entry for place in places}


def _writer(tensor: Any) -> str:
    """What writes a tensor, numbered if it writes several."""
    operation, node, index = tensor._keras_history
    several = len(operation._inbound_nodes[node].output_tensors) > 1
    return f"{operation.name}:{index}" if several else str(operation.name)


def _models(model: Any, prefix: str, seen: set[int] | None = None) -> Iterator[tuple[str, Any]]:
    """The model and those nested in it, each once, by the prefix of its layers' paths."""
    seen = set() if seen is None else seen
    yield prefix, model
    for node in nodes(functional_graph(model)):
        if is_nested(node.operation) and id(node.operation) not in seen:
            seen.add(id(node.operation))
            yield from _models(node.operation, f"{prefix}{node.operation.name}/", seen)


def _operations(operation: Any) -> Iterator[Any]:
    """A layer or op, and those nested in it."""
    yield operation
    if is_nested(operation):
        for node in nodes(functional_graph(operation)):
            yield from _operations(node.operation)


def _params(operations: Any) -> int:
    weights = {id(weight): weight for each in operations for weight in getattr(each, "weights", ())}
    return sum(math.prod(weight.shape) for weight in weights.values())


def _overlap(one: Region, other: Region) -> str:
    """Whether two regions share calls: `"no"`, `"partly"`, or `"inside"` when one holds the other."""
    first, second = ({id(call) for call in region.calls} for region in (one, other))
    if not first & second:
        return "no"
    return "inside" if first <= second or second <= first else "partly"


def _distinct(regions: Sequence[Region]) -> Iterator[Region]:
    """The regions without plain ones that are pointless beside others.

    A branch between the entry and the sum of a residual block would leave twice the entry. And of plain regions that
    overlap the first is taken: a chain of reshapes has one from each shape to its next occurrence.
    """
    taken: list[Region] = []
    for region in regions:
        if region.residual:
            taken.append(region)
            continue
        branch = any(
            other.residual
            and other.entry is region.entry
            and any({id(region.entry), id(region.exit)} <= {id(t) for t in call.input_tensors} for call in other.calls)
            for other in regions
        )
        if not branch and all(_overlap(region, other) != "partly" for other in taken):
            taken.append(region)
    yield from taken


def _names(blocks: Sequence[Block], every: Sequence[str]) -> list[str]:
    """A name for each block: no two are alike, and equal architectures give equal names.

    What all of a block's layers, and no others, have in front names the largest such block.
    """
    common = [_common(block.layers, every) for block in blocks]
    found = []
    for block, name in zip(blocks, common, strict=True):
        span = f"{block.layers[0]}..{block.layers[-1]}" if len(block.layers) > 1 else block.layers[0]
        found.append(name or span)
    return found


def _common(layers: Sequence[str], every: Sequence[str]) -> str:
    """What the names of all these layers, and of no others, begin with, up to an underscore."""
    first, last = min(layers), max(layers)
    start = first[: next((at for at, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))]
    whole = all(layer[len(start) :][:1] in ("", "_", "/") for layer in layers)
    start = (start if whole else start[: max(start.rfind("_"), start.rfind("/"), 0)]).rstrip("_/")
    if len(layers) < 2 or not start or len(start) < layers[0].rfind("/"):
        return ""
    own = [name for name in every if name == start or name.startswith((f"{start}_", f"{start}/"))]
    return start if set(own) == set(layers) else ""
