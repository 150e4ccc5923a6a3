"""What outputs say beside those of the unchanged network, as sums that add up over parts of the images."""

import dataclasses
import math
from typing import Self

import numpy as np

from mobileprune.json_record import Record
from mobileprune.sensitivity_record import SensitivityPoint

HIGHEST_SNR_DB = 200.0


@dataclasses.dataclass(frozen=True)
class Sums(Record):
    """Sums over images; those of other images can be added.

    Attributes:
        images: how many.
        same: images with the same top-1 class as before.
        right: images whose class is their label.
        divergence: sum of the Kullback-Leibler divergences.
        noise: sum of the squared differences of all outputs.
    """

    images: int = 0
    same: int = 0
    right: int = 0
    divergence: float = 0.0
    noise: float = 0.0

    def fits(self, images: int) -> bool:
        """Whether they can be sums over so many images: for what was read from a file."""
        values = dataclasses.astuple(self)
        numbers = all(isinstance(value, int | float) and math.isfinite(value) for value in values)
        return (
            numbers
            and self.images == images
            and 0 <= min(self.same, self.right) <= max(self.same, self.right) <= images
        )

    def __add__(self, other: "Sums") -> "Sums":
        return Sums(
            self.images + other.images,
            self.same + other.same,
            self.right + other.right,
            self.divergence + other.divergence,
            self.noise + other.noise,
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Expected:
    """What the unchanged network answers.

    Attributes:
        outputs: each (images, …).
        labels: one for each image, or None.
        probabilities: whether the first output is probabilities rather than logits.
    """

    outputs: list[np.ndarray]
    labels: np.ndarray | None
    probabilities: bool

    @property
    def classes(self) -> bool:
        """Whether there is one output, a row of classes for each image."""
        return len(self.outputs) == 1 and self.outputs[0].ndim == 2 and self.outputs[0].shape[1] > 1

    @property
    def accuracy(self) -> float | None:
        """Of the unchanged network."""
        return None if self.labels is None else float((self.outputs[0].argmax(axis=1) == self.labels).mean())

    def part(self, images: slice) -> Self:
        """The same for some of the images."""
        labels = None if self.labels is None else self.labels[images]
        return dataclasses.replace(self, outputs=[output[images] for output in self.outputs], labels=labels)

    def sums(self, outputs: list[np.ndarray]) -> Sums:
        """How other outputs for the same images compare."""
        noise = 0.0
        # What is no number counts as 0: it is far enough off.
        outputs = [np.where(np.isfinite(output), output, 0) for output in outputs]
        for before, now in zip(self.outputs, outputs, strict=True):
            difference = now.astype(np.float64) - before
            noise += float(np.square(difference).sum())
        if not self.classes:
            return Sums(len(outputs[0]), noise=noise)
        before, now = self.outputs[0], outputs[0]
        chosen = now.argmax(axis=1)
        return Sums(
            images=len(now),
            same=int((chosen == before.argmax(axis=1)).sum()),
            right=0 if self.labels is None else int((chosen == self.labels).sum()),
            divergence=float(_divergences(self._logs(before), self._logs(now)).sum()),
            noise=noise,
        )

    def point(self, sums: Sums, amount: float, taken: float) -> SensitivityPoint:
        """The figures of one amount, from the sums over all images."""
        signal = sum(float(output.astype(np.float64).var(axis=0).sum()) * len(output) for output in self.outputs)
        if sums.noise == 0:
            snr_db = HIGHEST_SNR_DB
        elif signal == 0 or not math.isfinite(sums.noise):
            snr_db = -HIGHEST_SNR_DB
        else:
            snr_db = float(np.clip(10 * math.log10(signal / sums.noise), -HIGHEST_SNR_DB, HIGHEST_SNR_DB))
        return SensitivityPoint(
            amount=amount,
            taken=taken,
            agreement=sums.same / sums.images if self.classes else None,
            accuracy=None if self.labels is None else sums.right / sums.images,
            divergence=sums.divergence / sums.images if self.classes else None,
            snr_db=snr_db,
        )

    def _logs(self, outputs: np.ndarray) -> np.ndarray:
        """Logarithms of class probabilities."""
        logits = outputs.astype(np.float64)
        if self.probabilities:
            logits = np.log(np.maximum(logits, 1e-12))
        logits = logits - logits.max(axis=1, keepdims=True)
        return np.asarray(logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)))


def _divergences(before: np.ndarray, now: np.ndarray) -> np.ndarray:
    return np.asarray((np.exp(before) * (before - now)).sum(axis=1))
