"""Which blocks a model misses least: by how little they change what they read, or by what the outputs lose without.

Change is the block influence of ShortGPT (Men et al. 2024, arXiv:2403.03853): one pass for all blocks. Sensitivity
leaves out each block alone and compares the outputs with the whole model's; what stands before it is computed once.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from mobileprune.blocks import Block, BlockGraph, Place, instead_of
from mobileprune.errors import DatasetError, PlanError, known_names
from mobileprune.graph import functional_graph
from mobileprune.models import gives_probabilities
from mobileprune.rerun import Rerun

WAYS = ("change", "sensitivity")
_TINY = 1e-12


@dataclasses.dataclass(frozen=True)
class RankedBlock:
    """A block, and what leaving it out alone costs.

    Attributes:
        block: the block.
        loss: what blocks are ranked by, smaller goes first. By change: 1 less the mean cosine between what the block
            reads and what it gives, 0 to 2. By sensitivity: the mean Kullback-Leibler divergence from the whole model's
            class probabilities, in nats; with labels the cross-entropy gained; of models that are no classifiers
            the squared error of the outputs over their variance.
        change: ‖exit - entry‖ / ‖entry‖ over all images, by change only.
        agreement: share of the images that get the whole model's class, by sensitivity, of classifiers only.
        accuracy: share of the images that get the class of their label; with labels only.
    """

    block: Block
    loss: float
    change: float | None = None
    agreement: float | None = None
    accuracy: float | None = None


def rank_blocks(
    model: Any,
    images: Any,
    by: str = "sensitivity",
    labels: Any = None,
    blocks: Sequence[str | Block] | None = None,
    without: Sequence[str | Block] = (),
) -> list[RankedBlock]:
    """The blocks of a model, first the one that it misses least. The model is not changed.

    Args:
        model: a built Sequential or functional model.
        images: as the model takes them, (images, …), or a list of arrays, one for each input; some hundred.
        by: `"change"` or `"sensitivity"`.
        labels: class numbers of the images, shape (images,): then what counts is the loss against them, and the
            accuracy is told. Without labels the model's own answers are the measure. By sensitivity only.
        blocks: those to rank; all of `removable_blocks(model)` if None.
        without: blocks that are gone already: the others are ranked in what is left. The measure stays the whole model.

    Raises:
        PlanError: an unknown way, block, or labels where they mean nothing.
        DatasetError: the images do not fit the model, or the labels do not fit the images.

    Example:
        >>> rank_blocks(model, images)[0].block.name                    # doctest: +SKIP
        'block_5'
    """
    if by not in WAYS:
        raise PlanError(f"Unknown by={by!r}. Known: {known_names(WAYS)}.")
    if by == "change" and labels is not None:
        raise PlanError("by='change' reads no labels. Use by='sensitivity', or leave labels= out.")
    graph = BlockGraph(model)
    places = list(graph.places.values()) if blocks is None else graph.chosen(blocks)
    gone = graph.chosen(without)
    places = [place for place in places if not any(place.overlaps(other) for other in gone)]
    found = (
        _by_change(model, images, places, gone)
        if by == "change"
        else BlockLosses(model, images, labels).of(places, gone)
    )
    return sorted(found, key=lambda ranked: ranked.loss)


def _by_change(model: Any, images: Any, places: Sequence[Place], gone: Sequence[Place]) -> list[RankedBlock]:
    rerun = Rerun(model)
    # For each block: sums over positions of cosines, positions, squares of the difference, squares of the entry.
    sums = np.zeros((len(places), 4))
    for batch in rerun.batches(images):
        known = rerun.again(rerun.run(batch), instead_of(gone))
        for row, place in enumerate(places):
            ends = (rerun.tensors(known, tensor) for tensor in (place.region.entry, place.region.exit))
            for entry, exit in zip(*ends, strict=True):
                sums[row] += _change(np.asarray(entry, np.float64), np.asarray(exit, np.float64))
    return [
        RankedBlock(place.block, float(1 - cosines / positions), change=float(np.sqrt(moved / max(squares, _TINY))))
        for place, (cosines, positions, moved, squares) in zip(places, sums, strict=True)
    ]


def _change(entry: np.ndarray, exit: np.ndarray) -> tuple[float, float, float, float]:
    """Along the last axis, so that each position counts alike; two zero vectors are alike, one is not like others."""
    lengths = np.linalg.norm(entry, axis=-1) * np.linalg.norm(exit, axis=-1)
    products = (entry * exit).sum(axis=-1)
    cosines = np.where(lengths > _TINY, products / np.maximum(lengths, _TINY), (entry == exit).all(axis=-1))
    return float(cosines.sum()), cosines.size, float(np.square(exit - entry).sum()), float(np.square(entry).sum())


class BlockLosses:
    """What the outputs lose without some blocks, on the same images again and again.

    Args:
        model, images, labels: see `rank_blocks`.

    Raises:
        PlanError, DatasetError: see `rank_blocks`.
    """

    def __init__(self, model: Any, images: Any, labels: Any = None) -> None:
        self._rerun = Rerun(model)
        self._batches = list(self._rerun.batches(images))
        outputs = functional_graph(model).outputs
        self._classes = len(outputs) == 1 and len(outputs[0].shape) == 2 and (outputs[0].shape[1] or 0) > 1
        self._probabilities = self._classes and gives_probabilities(model)
        count = sum(len(batch[0]) for batch in self._batches)
        self._labels = None if labels is None else np.asarray(labels)
        if self._labels is not None:
            classes = outputs[0].shape[-1]
            if not self._classes:
                raise PlanError(f"{model.name!r} is no classifier of one output: labels say nothing of it.")
            if self._labels.shape != (count,) or not np.isin(self._labels, np.arange(classes)).all():
                raise DatasetError(f"labels must be {count} class numbers below {classes}, one for each image.")

    def of(self, places: Sequence[Place], gone: Sequence[Place] = ()) -> list[RankedBlock]:
        """The loss without each of the blocks alone, besides those that are gone."""
        found = self._measured([[place] for place in places], gone)
        return [RankedBlock(place.block, **each) for place, each in zip(places, found, strict=True)]

    def together(self, places: Sequence[Place]) -> dict[str, float]:
        """The loss, and the agreement of a classifier, without all of the blocks."""
        return self._measured([list(places)], ())[0]

    def _measured(self, choices: Sequence[Sequence[Place]], gone: Sequence[Place]) -> list[dict[str, float]]:
        wholes: list[list[np.ndarray]] = []
        cuts: list[list[list[np.ndarray]]] = [[] for _ in choices]
        for batch in self._batches:
            known = self._rerun.run(batch)
            wholes.append(self._rerun.answers(known))
            known = self._rerun.again(known, instead_of(gone))
            for choice, answers in zip(choices, cuts, strict=True):
                answers.append(self._rerun.answers(self._rerun.again(known, instead_of(choice))))
        whole = [np.concatenate(parts) for parts in zip(*wholes, strict=True)]
        return [self._loss(whole, [np.concatenate(parts) for parts in zip(*cut, strict=True)]) for cut in cuts]

    def _loss(self, whole: list[np.ndarray], cut: list[np.ndarray]) -> dict[str, float]:
        if not self._classes:
            pairs = [(a.astype(np.float64), b.astype(np.float64)) for a, b in zip(whole, cut, strict=True)]
            return {"loss": float(np.mean([np.square(b - a).mean() / max(a.var(), _TINY) for a, b in pairs]))}
        before, after = (self._log_probabilities(answers[0]) for answers in (whole, cut))
        found = {"agreement": float(np.mean(before.argmax(-1) == after.argmax(-1)))}
        if self._labels is None:
            return {**found, "loss": float((np.exp(before) * (before - after)).sum(-1).mean())}
        rows = np.arange(len(self._labels))
        gained = before[rows, self._labels] - after[rows, self._labels]
        accuracy = float(np.mean(after.argmax(-1) == self._labels))
        return {**found, "loss": float(gained.mean()), "accuracy": accuracy}

    def _log_probabilities(self, answers: np.ndarray) -> np.ndarray:
        answers = answers.astype(np.float64)
        if self._probabilities:
            shares = np.maximum(answers, _TINY)
            return np.asarray(np.log(shares / shares.sum(-1, keepdims=True)))
        shifted = answers - answers.max(-1, keepdims=True)
        return np.asarray(shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)))
