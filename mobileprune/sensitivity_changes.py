"""What a sensitivity analysis changes, one thing at a time: a channel group, a layer's small weights, its rounding."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from mobileprune.channel_calls import attribute_at
from mobileprune.channel_groups import ChannelGraph, ChannelGroup
from mobileprune.constraints import Constraints, check_patterns, constraints, first_match
from mobileprune.graph import leaves
from mobileprune.importance import Importance, check_importance, rankings
from mobileprune.json_record import Record
from mobileprune.masks import Pattern, pruning_mask
from mobileprune.prunable import Kernel, kernels_of, variable_at
from mobileprune.pruning_plan import GroupPlan, PruningPlan
from mobileprune.scoring import Scoring
from mobileprune.surgery import remove_channels

layers = keras.layers

KINDS = ("channels", "sparsity", "quantization")
RATIOS = (0.1, 0.3, 0.5, 0.7, 0.9)
BITS = (8, 4)
# The axes of depthwise kernels, which masks leave alone and quantizers do not: a scale for each channel.
_DEPTHWISE = (-2, -1)

Weights = list[tuple[Any, np.ndarray]]
"""Variables with other values."""


@dataclasses.dataclass(frozen=True)
class Change:
    """One thing that is changed by several amounts.

    Attributes:
        name: the channel group or the layer.
        size: its channels (units), or its weights.
        amounts: how much of it goes, or to how many bits it is rounded, in the order in which they were asked for.
        taken: for each amount what it really comes to: the share of the units or weights that go; the bits.
        owners: the layers whose weights differ.
        weights: from an amount's place to the variables that change, with their values.
        rebuild: from an amount's place to a model without the channels, where no weights stand for it; else None.
        order: the units in the order in which they go; empty where nothing has one.
    """

    name: str
    size: int
    amounts: tuple[float, ...]
    taken: tuple[float, ...]
    owners: tuple[Any, ...]
    weights: Callable[[int], Weights]
    rebuild: Callable[[int], Any] | None = None
    order: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Asked(Record):
    """What is to be changed, in plain numbers: another process makes the same changes of it.

    Attributes:
        kind: one of `KINDS`.
        amounts: shares that go, or bits.
        only: wildcard patterns of the only layers or groups; all if empty.
        orders: for `"channels"` the units of each group in the order in which they go.
        block_size, block_pooling_type, sparsity_m_by_n: for `"sparsity"`, see `mobileprune.masks.Pattern`.
    """

    kind: str
    amounts: tuple[float, ...]
    only: tuple[str, ...] = ()
    orders: dict[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    block_size: tuple[int, int] = (1, 1)
    block_pooling_type: str = "AVG"
    sparsity_m_by_n: tuple[int, int] | None = None

    @property
    def pattern(self) -> Pattern:
        """Which weights go together."""
        return Pattern(self.block_size, self.block_pooling_type, self.sparsity_m_by_n)


def changes_of(model: Any, asked: Asked) -> list[Change]:
    """The changes, in the order of the model's groups or layers.

    Raises:
        PlanError: a pattern of `only` that matches nothing.
    """
    if asked.kind == "channels":
        return _channel_changes(model, asked.amounts, asked.orders)
    find = kernels_of if asked.kind == "sparsity" else _all_kernels
    return [
        _kernel_change(path, layer, kernels, asked) for path, layer, kernels in _with_kernels(model, find, asked.only)
    ]


def channel_orders(
    model: Any, importance: Importance, *, normalise: str, calibration: Any, only: Sequence[str], seed: int
) -> dict[str, tuple[int, ...]]:
    """The units of each group that may lose some, in the order in which they go.

    Args:
        model: a built model.
        importance, normalise, calibration, seed: see `mobileprune.plan.plan_channels`.
        only: wildcard patterns of the groups' layers.

    Raises:
        PlanError: an importance or a pattern that cannot be meant.
    """
    check_importance(importance, calibration)
    graph = ChannelGraph(model)
    limits = constraints(graph, round_to=1)
    check_patterns("only", only, [name for group in limits.free for name in group.names])
    ranked = limits.spared(rankings(Scoring(model, graph, calibration, seed), limits.free, importance, normalise))
    return {
        group.name: tuple(ranked[group.name].order.tolist())
        for group in limits.free
        if group.size > 1 and any(_meant(name, only) for name in group.names)
    }


def _channel_changes(model: Any, ratios: tuple[float, ...], orders: Mapping[str, Sequence[int]]) -> list[Change]:
    """Removing channels is the same as setting to zero what every layer reads of them, so nothing is rebuilt. Of groups
    that are not exact (a layer normalisation reads all channels at once) the model is rebuilt.
    """
    graph = ChannelGraph(model)
    limits = constraints(graph, round_to=1, max_ratio=max(ratios))
    return [
        _channels(model, limits, group, ratios, np.array(orders[group.name]))
        for group in limits.free
        if group.name in orders
    ]


def _kernel_change(path: str, layer: Any, kernels: Sequence[Kernel], asked: Asked) -> Change:
    variables = [variable_at(layer, kernel.path) for kernel in kernels]

    def weights(place: int) -> Weights:
        amount, found = asked.amounts[place], []
        for variable, kernel in zip(variables, kernels, strict=True):
            values = np.asarray(variable)
            if asked.kind == "sparsity":
                changed = _thinned(values, kernel, amount, asked.pattern)
            else:
                changed = rounded(values, kernel.outputs, _bits(kernel, amount))
            found.append((variable, changed))
        return found

    size = sum(int(np.prod(variable.shape)) for variable in variables)
    taken = tuple(
        asked.pattern.sparsity(amount) if asked.kind == "sparsity" else min(_bits(kernel, amount) for kernel in kernels)
        for amount in asked.amounts
    )
    return Change(path, size, asked.amounts, taken, (layer,), weights)


def rounded(values: np.ndarray, outputs: Sequence[int], bits: int) -> np.ndarray:
    """Weights as a file of so many bits has them: symmetric around zero, without the lowest step.

    Args:
        values: of any shape.
        outputs: the axes along which every entry has a scale of its own.
        bits: 2 to 16.

    Example:
        >>> rounded(np.array([[1.0, 0.3], [-0.2, 3.5]]), [-1], 4).tolist()
        [[1.0, 0.5], [-0.14285714285714285, 3.5]]
    """
    own = [axis % values.ndim for axis in outputs]
    largest = np.abs(values).max(axis=tuple(axis for axis in range(values.ndim) if axis not in own), keepdims=True)
    steps = 2 ** (bits - 1) - 1
    scale = np.where(largest > 0, largest, 1) / steps
    return np.asarray(np.round(values / scale) * scale, values.dtype)


def _channels(
    model: Any, limits: Constraints, group: ChannelGroup, ratios: tuple[float, ...], order: np.ndarray
) -> Change:
    graph = limits.graph
    gone = [group.size - limits.rounded(group, group.size * (1 - ratio)) for ratio in ratios]
    read = [(weight, axis, units) for weight, axis, units in graph.weights_of(group) if _reads(graph, weight, axis)]
    owners = tuple(
        {id(graph.ids.layers[weight.layer]): graph.ids.layers[weight.layer] for weight, _, _ in read}.values()
    )

    def weights(place: int) -> Weights:
        dead = np.zeros(group.size + 1, bool)  # the last for entries of other groups, whose unit is -1
        dead[order[: gone[place]]] = True
        found: dict[int, tuple[Any, np.ndarray]] = {}
        for weight, axis, units in read:
            variable = attribute_at(graph.ids.layers[weight.layer], weight.attribute)
            _, values = found.setdefault(id(variable), (variable, np.array(variable)))
            np.moveaxis(values, axis, 0)[dead[units]] = 0
        return list(found.values())

    def rebuild(place: int) -> Any:
        parts = tuple(
            GroupPlan(each.name, each.size, tuple(np.sort(order[: gone[place]]).tolist()) if each is group else ())
            for each in graph.groups
        )
        plan = PruningPlan(model.name, f"ratio={ratios[place]:g}", "rankings", "local", 0, 0, 0, 0, parts)
        return remove_channels(model, plan).smaller

    return Change(
        name=group.name,
        size=group.size,
        amounts=ratios,
        taken=tuple(count / group.size for count in gone),
        owners=owners,
        weights=weights,
        rebuild=rebuild if group.inexact or not read else None,
        order=tuple(order.tolist()),
    )


def _reads(graph: ChannelGraph, weight: Any, axis: int) -> bool:
    """Whether a weight's axis is where its layer reads channels that end in it.

    Channels that the layer makes, or lets pass as a batch normalisation does, are among its outputs. Those that it
    makes for itself alone, as attention's heads, count as read wherever they occur; and recurrent layers read what they
    made a step before.
    """
    if weight.attribute.rpartition(".")[2] == "recurrent_kernel":
        return bool(axis == len(weight.shape) - 2)
    made = np.unique(np.concatenate([np.unique(array) for array in graph.ids.calls[weight.layer].outputs]))
    return not np.isin(weight.axes[axis], made).any()


def _thinned(values: np.ndarray, kernel: Kernel, share: float, pattern: Pattern) -> np.ndarray:
    kept = kernel.from_taps(pruning_mask(kernel.to_taps(values), share, pattern), values.shape)
    return np.where(kept, values, 0).astype(values.dtype)


def _bits(kernel: Kernel, wanted: float) -> int:
    """What a kernel is rounded to: no runtime has depthwise kernels of fewer than eight bits."""
    return max(int(wanted), 8) if kernel.outputs == _DEPTHWISE else int(wanted)


def _with_kernels(
    model: Any, kernels: Callable[[Any], tuple[Kernel, ...]], only: Sequence[str]
) -> list[tuple[str, Any, tuple[Kernel, ...]]]:
    """The layers that have kernels, each once, by path."""
    once = {id(layer): (path, layer) for path, layer in reversed(list(leaves(model)))}
    found = [(path, layer, kernels(layer)) for path, layer in reversed(once.values()) if kernels(layer)]
    check_patterns("only", only, [name for path, layer, _ in found for name in (path, layer.name)])
    return [entry for entry in found if _meant(entry[0], only) or _meant(entry[1].name, only)]


def _meant(name: str, only: Sequence[str]) -> bool:
    return not only or bool(first_match(name, dict.fromkeys(only, True), False))


def _all_kernels(layer: Any) -> tuple[Kernel, ...]:
    found = kernels_of(layer)
    if isinstance(layer, layers.DepthwiseConv1D | layers.DepthwiseConv2D):
        found = (*found, Kernel("kernel", (), _DEPTHWISE))
    if isinstance(layer, layers.SeparableConv1D | layers.SeparableConv2D):
        found = (*found, Kernel("depthwise_kernel", (), _DEPTHWISE))
    return found
