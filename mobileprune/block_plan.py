"""The blocks of a pruning plan: how many may go, which are missed least for what they save, what limits then mean."""

import fnmatch
import heapq
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from mobileprune.block_ranking import BlockLosses
from mobileprune.block_removal import remove_blocks
from mobileprune.blocks import Block, BlockGraph, Place
from mobileprune.errors import PlanError

# "auto" goes on as long as so many calibration images get the whole model's class with nothing else done; of models
# that are no classifiers, as long as the outputs' squared error is at most the rest of it, of their variance.
AUTO_AGREEMENT = 0.95

# How many blocks may go at most, which share of the multiply-accumulates they may have, "auto", or their names.
BlockLimit = int | float | str | Sequence[str | Block] | None


class BlockChoice:
    """The blocks that a plan removes, before any channel.

    Args:
        model: a built Sequential or functional model; not changed.
        blocks: see `mobileprune.plan.plan_channels`.
        calibration: images, a list with one array for each input, or (images, labels).
        counts: `"macs"` or `"params"`: what a block's loss is weighed against.
        enough: whether a model is small enough already. No block goes that makes it so: channels are finer.
        layers: names of the layers that create channels.
        keep: patterns of layers whose blocks stay.
        prune_only: patterns of the only layers that may go; a block goes if all its layers with channels match.

    Attributes:
        names: the blocks, in the order in which they were chosen.
        model: the model without them; the very model when there are none.

    Raises:
        PlanError: a limit that makes no sense, calibration data missing, or blocks that cannot be removed.
    """

    def __init__(
        self,
        model: Any,
        blocks: BlockLimit,
        calibration: Any,
        *,
        counts: str = "macs",
        enough: Callable[[Any], bool] | None = None,
        layers: Iterable[str] = (),
        keep: Sequence[str] = (),
        prune_only: Sequence[str] = (),
    ) -> None:
        self.names: tuple[str, ...] = ()
        self.model = model
        if _none(blocks):
            return
        graph = BlockGraph(model)
        if isinstance(blocks, int | float | str):
            if calibration is None:
                raise PlanError(f"blocks={blocks!r} needs calibration=, some hundred images as the model takes them.")
            stay = graph.protected(keep)
            for name, place in graph.places.items():
                own = set(place.block.layers) & {layer.partition(":")[0] for layer in layers}
                if prune_only and any(not _matches(layer, prune_only) for layer in own):
                    stay.add(name)
            free = [place for name, place in graph.places.items() if name not in stay]
            self.names = self._least_missed(graph, free, blocks, calibration, counts, enough)
        elif blocks is not None:
            chosen = [place.block.name for place in graph.chosen(blocks)]
            if held := sorted(set(chosen) & graph.protected(keep)):
                raise PlanError(f"Block {held[0]!r} holds layers of keep={list(keep)}. Leave it out, or free them.")
            self.names = tuple(chosen)
        if self.names:
            self.model = remove_blocks(model, self.names)

    def _least_missed(
        self,
        graph: BlockGraph,
        free: Sequence[Place],
        blocks: int | float | str,
        calibration: Any,
        counts: str,
        enough: Callable[[Any], bool] | None,
    ) -> tuple[str, ...]:
        """One block after another, each time the one with the least loss for each MAC (or parameter) saved.

        What a block costs once others are gone is measured again for the first in line only: it hardly gets less.
        """
        images, labels = calibration if isinstance(calibration, tuple) else (calibration, None)
        losses = BlockLosses(graph.model, images, labels)
        most = blocks if isinstance(blocks, int) else math.inf
        allowed = blocks * graph.macs if isinstance(blocks, float) else math.inf
        chosen: list[Place] = []
        base = 0.0
        names = {place.block.name: place for place in free if getattr(place.block, counts)}
        first = losses.of(list(names.values()))
        waiting = [(_rate(each.loss, names[each.block.name], [], counts), each.block.name) for each in first]
        heapq.heapify(waiting)
        while waiting and len(chosen) < most:
            _, name = heapq.heappop(waiting)
            place = names[name]
            within = [other for other in chosen if place.holds(other)]
            if any(other.holds(place) for other in chosen):
                continue
            (ranked,) = losses.of([place], chosen)
            rate = _rate(ranked.loss - base, place, within, counts)
            if waiting and rate > waiting[0][0]:
                heapq.heappush(waiting, (rate, name))
                continue
            cut = [*(other for other in chosen if other not in within), place]
            if sum(each.block.macs for each in cut) > allowed:
                continue
            if blocks == "auto" and not _still_right(ranked.agreement, ranked.loss):
                continue
            if enough is not None and enough(remove_blocks(graph.model, [each.block.name for each in cut])):
                continue
            chosen, base = cut, ranked.loss
        return tuple(place.block.name for place in chosen)


def check_blocks(blocks: BlockLimit) -> None:
    """Refuses a limit that makes no sense.

    Raises:
        PlanError: with what may be given.
    """
    if isinstance(blocks, bool) or (isinstance(blocks, str) and blocks != "auto"):
        fits = False
    elif isinstance(blocks, int | np.integer):
        fits = blocks >= 0
    elif isinstance(blocks, float):
        fits = 0 < blocks < 1
    else:
        fits = blocks is None or isinstance(blocks, Sequence)
    if not fits:
        raise PlanError(
            f"blocks={blocks!r} is none of these: how many may go at most, the share of the MACs that they may have "
            "(between 0 and 1), 'auto', or a list of names."
        )


def surviving_patterns(given: Mapping[str, Any], before: Iterable[str], after: Iterable[str]) -> dict[str, Any]:
    """Limits of `mobileprune.constraints` without the patterns whose layers have all gone with the blocks.

    Args:
        given: the limits: numbers, lists of patterns, or values by pattern.
        before, after: names of the layers that create channels.
    """
    after, gone = list(after), set(before) - set(after)

    def stays(pattern: str) -> bool:
        return not any(fnmatch.fnmatchcase(name, pattern) for name in gone) or any(
            fnmatch.fnmatchcase(name, pattern) for name in after
        )

    found: dict[str, Any] = {}
    for argument, value in given.items():
        if isinstance(value, Mapping):
            found[argument] = {pattern: each for pattern, each in value.items() if stays(pattern)}
        elif isinstance(value, Sequence) and not isinstance(value, str):
            found[argument] = [pattern for pattern in value if stays(pattern)]
        else:
            found[argument] = value
    if given.get("prune_only") and not found["prune_only"]:
        found["keep"] = ["*"]  # an empty list would free every layer
    return found


def _rate(loss: float, place: Place, within: Sequence[Place], counts: str) -> float:
    """The loss for each MAC or parameter that goes with the block and is not gone yet."""
    saved = getattr(place.block, counts) - sum(getattr(other.block, counts) for other in within)
    return max(loss, 0.0) / saved if saved > 0 else math.inf


def _still_right(agreement: float | None, loss: float) -> bool:
    return agreement >= AUTO_AGREEMENT if agreement is not None else loss <= 1 - AUTO_AGREEMENT


def _matches(layer: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(layer, pattern) for pattern in patterns)


def _none(blocks: BlockLimit) -> bool:
    check_blocks(blocks)
    return blocks is None or (isinstance(blocks, int | np.integer) and blocks == 0) or blocks in ((), [])
