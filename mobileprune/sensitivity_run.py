"""Runs a network with one part changed at a time, and adds up how its answers differ."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from mobileprune.class_changes import check_labels
from mobileprune.errors import ModelError
from mobileprune.models import gives_probabilities
from mobileprune.partial_runs import Head, PartialRuns, assigned
from mobileprune.sensitivity_changes import Change
from mobileprune.sensitivity_figures import Expected, Sums
from mobileprune.sensitivity_record import PartSensitivity

# Activations of so many bytes are kept in front of a cut; more images than fit are looked at one part after another.
_MOST_BYTES = 2**30

Part = tuple[Change, slice]
"""One change, measured on some of the images: what is done, and kept, as a whole."""


def key_of(part: Part) -> tuple[str, int]:
    """What tells a part from the others: the change's name and the first image."""
    return part[0].name, part[1].start


@dataclasses.dataclass(frozen=True, eq=False)
class Analysis:
    """A network, images, and what is to be changed.

    Attributes:
        model: the network; its weights change while it is run, and are what they were afterwards.
        images: an array for each input.
        labels: integers (images,), or None.
        changes: what is to be changed.
        most_bytes: how much may be kept of the activations in front of a cut.
    """

    model: Any
    images: list[np.ndarray]
    labels: np.ndarray | None
    changes: list[Change]
    most_bytes: int = _MOST_BYTES

    @functools.cached_property
    def _runs(self) -> PartialRuns:
        return PartialRuns(self.model, [owner for change in self.changes for owner in change.owners])

    @functools.cached_property
    def slices(self) -> list[slice]:
        """The images in parts of which the activations fit into memory."""
        count = len(self.images[0])
        at_once = max(1, self.most_bytes // self._runs.kept_bytes(self.images))
        return [slice(at, min(at + at_once, count)) for at in range(0, count, at_once)]

    @functools.cached_property
    def expected(self) -> Expected:
        """What the unchanged network answers.

        Raises:
            ModelError: answers that are NaN or infinite.
            DatasetError: labels that do not fit the answers.
        """
        parts = [self._runs.finish(self._start(images)) for images in self.slices]
        outputs = [np.concatenate(found) for found in zip(*parts, strict=True)]
        for output in outputs:
            if not np.isfinite(output).all():
                raise ModelError(f"{self.model.name!r} answers NaN or infinity for these images: check its inputs.")
        if self.labels is not None:
            check_labels(self.labels, outputs[0])
        return Expected(outputs, self.labels, gives_probabilities(self.model))

    def parts(self) -> list[Part]:
        """All that is to be done."""
        return [(change, images) for images in self.slices for change in self.changes]

    def run(self, parts: Sequence[Part]) -> Iterator[tuple[Part, list[Sums]]]:
        """Measures parts, those in front first; yields each with its sums, one for each amount."""
        for images in self.slices:
            here = [change for change, wanted in parts if wanted == images]
            head = self._start(images)
            expected = self.expected.part(images)
            for change in sorted(here, key=self._cut):
                if change.rebuild is None:
                    self._runs.advance(head, self._cut(change))
                yield (change, images), _each(change, expected, self._answers(change, head, images))

    def figures(self, change: Change, sums: Sequence[Sums]) -> PartSensitivity:
        """The record of one change, from its sums over all images."""
        points = (
            self.expected.point(total, amount, taken)
            for total, amount, taken in zip(sums, change.amounts, change.taken, strict=True)
        )
        return PartSensitivity(change.name, change.size, tuple(points), change.order, change.rebuild is not None)

    def _start(self, images: slice) -> Head:
        return self._runs.start([array[images] for array in self.images])

    def _cut(self, change: Change) -> int:
        """Where its recomputation begins; those that are rebuilt come last."""
        return self._runs.last_cut if change.rebuild else self._runs.cut(*change.owners)

    def _answers(self, change: Change, head: Head, images: slice) -> Callable[[int], list[np.ndarray]]:
        """From an amount's place to the network's answers."""

        def changed(place: int) -> list[np.ndarray]:
            with assigned(change.weights(place)):
                return self._runs.finish(head)

        def rebuilt(place: int) -> list[np.ndarray]:
            runs = PartialRuns(change.rebuild(place) if change.rebuild else self.model, ())
            return runs.finish(runs.start([array[images] for array in self.images]))

        return rebuilt if change.rebuild else changed


def _each(change: Change, expected: Expected, answers: Callable[[int], list[np.ndarray]]) -> list[Sums]:
    """The sums of each amount; amounts that come to the same are run once."""
    known: dict[float, Sums] = {}
    for place, taken in enumerate(change.taken):
        if taken not in known:
            known[taken] = expected.sums(expected.outputs if taken == 0 else answers(place))
    return [known[taken] for taken in change.taken]
