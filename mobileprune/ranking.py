"""From one score for each channel of a group to the order in which they go, and what each costs the model."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from mobileprune.errors import PlanError, known_names

_TINY = np.finfo(np.float64).tiny


@dataclasses.dataclass(frozen=True, eq=False)
class Ranking:
    """The units of one channel group in the order in which they go.

    Attributes:
        order: every unit's index once, the first to go first; shape (units,).
        losses: what removing each costs once those before it are gone, in that order; shape (units,). Comparable
            between the groups of one model.
        absolute: whether `losses` are all in one unit (a squared error, a loss) rather than relative to their group.
            A plan then divides each by what the unit costs in the whole model (MACs for a MACs target, parameters
            otherwise), so that what goes first is what buys most for its damage.

    Raises:
        PlanError: `order` is no permutation, or the losses are not as many or not finite.

    Example:
        >>> Ranking(order=np.array([2, 0, 1]), losses=np.array([0.0, 0.5, 4.0])).order.tolist()
        [2, 0, 1]
    """

    order: np.ndarray
    losses: np.ndarray
    absolute: bool = False

    def __post_init__(self) -> None:
        order, losses = np.asarray(self.order), np.asarray(self.losses, np.float64)
        if order.ndim != 1 or not np.array_equal(np.sort(order), np.arange(len(order))):
            raise PlanError(
                f"A ranking's order must name each unit from 0 on once. Received {known_names(map(str, order.ravel()))}"
            )
        if losses.shape != order.shape or not np.isfinite(losses).all():
            raise PlanError(f"A ranking of {len(order)} units needs as many finite losses. Received {losses}.")
        object.__setattr__(self, "order", order.astype(np.int64))
        object.__setattr__(self, "losses", losses)

    def thresholds(self, costs: np.ndarray) -> np.ndarray:
        """The losses as they are compared between groups: never falling, in the order in which units go.

        Args:
            costs: what each unit costs in the whole model, by index; used where the losses are absolute.

        Units go from the front, so a cheap one behind a dear one cannot go without it: it counts as much (the running
        maximum).
        """
        losses = self.losses
        if self.absolute:
            losses = losses / np.maximum(costs[self.order], 1.0)
        return np.asarray(np.maximum.accumulate(losses))


def _share(scores: np.ndarray) -> np.ndarray:
    """Each unit's share of its group's total, times the square root of how much narrower the group is by then.

    Without that factor the group with the flattest scores is emptied before any other is touched: an inverted-residual
    network of 348 thousand parameters, cut to half of its MACs and fine-tuned for 4 epochs, then had 88.0% of the
    Fashion-MNIST test images right, and 88.5% with the factor itself in the place of its root. The root spends the
    same MACs on fewer parameters.
    """
    size = len(scores)
    shares = scores / max(float(scores.sum()), _TINY)
    return np.asarray(shares * np.sqrt(size / (size - np.arange(size))))


def _gaussian(scores: np.ndarray) -> np.ndarray:
    return np.asarray((scores - scores.mean()) / max(float(scores.std()), _TINY))


# What they do with a group's scores, sorted upwards.
NORMALISATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "sum": _share,
    "mean": lambda scores: scores / max(float(scores.mean()), _TINY),
    "max": lambda scores: scores / max(float(scores.max()), _TINY),
    "gaussian": _gaussian,
    "none": lambda scores: scores,
}
# Dividing by a total means nothing where scores have both signs.
_SIGNED = {"gaussian", "none"}


def check_normalisation(name: str) -> None:
    """Refuses an unknown normalisation and lists the known ones."""
    if name not in NORMALISATIONS:
        raise PlanError(f"Unknown normalise={name!r}. Known: {known_names(NORMALISATIONS)}.")


def ranked(scores: Any, normalise: str = "sum", group: str = "a group") -> Ranking:
    """The ranking that follows from one score a unit: the lowest go first, at a loss that is the normalised score.

    Args:
        scores: one a unit, larger is worth more; shape (units,).
        normalise: how scores become comparable between groups.
            `"sum"`: a unit's share of its group's total, times the root of how much narrower the group has become
            when it goes; wide groups lose more, and none is emptied first for its flat scores.
            `"mean"`, `"max"`: divided by the group's mean (as Torch-Pruning does) or maximum; width does not count.
            `"gaussian"`: less the mean, divided by the standard deviation; every group loses about alike, those with
            a tail of weak channels more.
            `"none"`: as they are, for scores that are in one unit already: `"taylor"`, and batch-norm scales as in
            network slimming.
        group: what errors call it.

    Raises:
        PlanError: an unknown normalisation, or negative scores with one that divides by a total.

    Example:
        >>> ranked([3.0, 1.0, 2.0], "max").losses.round(2).tolist()
        [0.33, 0.67, 1.0]
    """
    check_normalisation(normalise)
    values = np.asarray(scores, np.float64)
    if normalise not in _SIGNED and (values < 0).any():
        raise PlanError(
            f"The scores of {group!r} go down to {values.min():.3g}; normalise={normalise!r} needs them at least 0. "
            "Use normalise='gaussian' or 'none'."
        )
    order = np.argsort(values, kind="stable")
    return Ranking(order, NORMALISATIONS[normalise](values[order]))
