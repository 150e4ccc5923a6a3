"""A model and a list of blocks make a new model in which each block is its own input."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from mobileprune.blocks import Block, BlockGraph, instead_of
from mobileprune.errors import ModelError
from mobileprune.graph import is_nested, leaves, rebuild, same_layer
from mobileprune.rerun import Rerun


def remove_blocks(model: Any, blocks: Sequence[str | Block]) -> Any:
    """A new model without these blocks: whoever read a block's exit reads its entry.

    Weights and names are what they were; names of the model's inputs and outputs, too. Calls that nobody reads any more
    go as well. A block inside a nested model goes from all calls of it; a block within another that goes, goes with it.

    Args:
        model: a built Sequential or functional model; not changed.
        blocks: some of `removable_blocks(model)`, or their names.

    Returns:
        A new uncompiled model. Its outputs equal those of `model` when each block there is replaced by the identity.

    Raises:
        PlanError: no such block, one that cannot be removed, or two that overlap.
        ModelError: a layer cannot be made anew from its configuration.

    Example:
        >>> smaller = remove_blocks(model, ["block_5"])             # doctest: +SKIP
    """
    return BlockRemoval(BlockGraph(model), blocks).model


def layers_behind(model: Any, blocks: Sequence[str | Block]) -> list[str]:
    """Paths of the layers and ops that read something else once these blocks are gone, in the order of the graph.

    Raises:
        PlanError: see `remove_blocks`.
    """
    graph = BlockGraph(model)
    return [graph.path(each) for each in Rerun(model).behind(instead_of(graph.chosen(blocks)))]


class BlockRemoval:
    """The removal of some blocks.

    Args:
        graph: the model's blocks.
        blocks: see `remove_blocks`.

    Attributes:
        model: the new model.
    """

    def __init__(self, graph: BlockGraph, blocks: Sequence[str | Block]) -> None:
        self._instead = instead_of(graph.chosen(blocks))
        self._made: dict[int, Any] = {}
        self.model = self._remade(graph.model)
        old = dict(leaves(graph.model))
        for path, layer in leaves(self.model):
            if path in old:
                _copy_weights(old[path], layer)

    def _remade(self, old: Any) -> Any:
        new = rebuild(old, self._layer, self._call, lambda tensor: tensor.shape, self._instead)
        if not old.trainable:
            new.trainable = False
        return new

    def _layer(self, old: Any) -> Any:
        """The new layer in the place of an old one; the same whenever a shared layer is met again."""
        if id(old) not in self._made:
            self._made[id(old)] = self._remade(old) if is_nested(old) else _fresh(old)
        return self._made[id(old)]

    def _call(self, node: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        is_layer = isinstance(node.operation, keras.Layer)
        return (self._layer(node.operation) if is_layer else node.operation)(*args, **kwargs)


def _fresh(old: Any) -> Any:
    if isinstance(old, keras.layers.Lambda):
        return old  # without weights, and its function cannot be made anew from a configuration safely
    try:
        return same_layer(old)
    except (TypeError, ValueError) as error:
        raise ModelError(f"{type(old).__name__} {old.name!r} cannot be made anew from its get_config(): {error}") from (
            error
        )


def _copy_weights(old: Any, new: Any) -> None:
    for source, destination in zip(old.weights, new.weights, strict=True):
        destination.assign(np.asarray(source))
    if isinstance(new, keras.layers.Normalization):
        new.finalize_state()  # it computes with copies of its statistics
