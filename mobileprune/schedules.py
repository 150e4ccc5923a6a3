"""From training step to sparsity. Step s is the s-th batch: masks are brought up to date just before it is applied."""

import dataclasses
from numbers import Integral, Real
from typing import Any

from mobileprune.errors import SparsityError


@dataclasses.dataclass(frozen=True)
class PruningSchedule:
    """Base of the schedules: how sparse the weights are at each step, and when the masks change."""

    def sparsity(self, step: int) -> float:
        """The share of weights that are zero from the `step`-th batch on, 0 to 1."""
        raise TypeError(f"{type(self).__name__} does not say its sparsity. Use PolynomialDecay or ConstantSparsity.")

    def should_update(self, step: int) -> bool:
        """Whether the masks are computed anew before the `step`-th batch; there is no batch 0."""
        raise TypeError(f"{type(self).__name__} does not say when to act. Use PolynomialDecay or ConstantSparsity.")

    @property
    def last_step(self) -> int:
        """The step from which on the sparsity does not change any more."""
        raise TypeError(f"{type(self).__name__} does not say when it ends. Use PolynomialDecay or ConstantSparsity.")

    def get_config(self) -> dict[str, Any]:
        """The schedule as JSON types; `schedule_from_config` reads it."""
        return {"class_name": type(self).__name__, "config": dataclasses.asdict(self)}


@dataclasses.dataclass(frozen=True)
class ConstantSparsity(PruningSchedule):
    """The same sparsity from `begin_step` on.

    Args:
        target_sparsity: share of zeros, 0 to 1 (exclusive).
        begin_step: the first step at which the masks are computed.
        end_step: the last one; -1 for no end.
        frequency: steps between updates of the masks.

    Raises:
        SparsityError: a value out of range, or a schedule that would never act.
    """

    target_sparsity: float
    begin_step: int
    end_step: int = -1
    frequency: int = 100

    def __post_init__(self) -> None:
        _check_sparsity("target_sparsity", self.target_sparsity)
        _check_steps(self.begin_step, self.end_step, self.frequency)

    @property
    def last_step(self) -> int:
        # The first step at which it acts.
        first = self.begin_step or self.frequency
        return first if self.end_step == -1 else min(first, self.end_step)

    def sparsity(self, step: int) -> float:
        return self.target_sparsity if step >= self.begin_step else 0.0

    def should_update(self, step: int) -> bool:
        return _acts_at(step, self.begin_step, self.end_step, self.frequency)


@dataclasses.dataclass(frozen=True)
class PolynomialDecay(PruningSchedule):
    """Sparsity that rises fast at first and slowly at last (Zhu & Gupta 2017, "To prune, or not to prune",
    arXiv:1710.01878).

    Args:
        initial_sparsity: share of zeros at `begin_step`, 0 to 1 (exclusive).
        final_sparsity: share of zeros from `end_step` on. It is always reached at `end_step`, whatever `frequency` is.
        begin_step: the first step at which the masks are computed.
        end_step: the last one.
        power: the exponent, greater than 0; 1 rises linearly.
        frequency: steps between updates of the masks.

    Raises:
        SparsityError: a value out of range, or a schedule that would never act.

    Example:
        >>> schedule = PolynomialDecay(0.0, 0.8, begin_step=0, end_step=100, frequency=50)
        >>> [round(schedule.sparsity(step), 2) for step in (0, 50, 100, 150)]
        [0.0, 0.7, 0.8, 0.8]
    """

    initial_sparsity: float
    final_sparsity: float
    begin_step: int
    end_step: int
    power: float = 3
    frequency: int = 100

    def __post_init__(self) -> None:
        _check_sparsity("initial_sparsity", self.initial_sparsity)
        _check_sparsity("final_sparsity", self.final_sparsity)
        _check_steps(self.begin_step, self.end_step, self.frequency)
        if not (_is_number(self.power) and self.power > 0):
            raise SparsityError(
                f"power must be greater than 0, or final_sparsity is never reached. Received: {self.power!r}."
            )
        if self.end_step <= self.begin_step:
            raise SparsityError(f"end_step must come after begin_step. Received: {self.begin_step=}, {self.end_step=}.")

    @property
    def last_step(self) -> int:
        return self.end_step

    def sparsity(self, step: int) -> float:
        if step < self.begin_step:
            return 0.0
        done = min(1.0, (step - self.begin_step) / (self.end_step - self.begin_step))
        return self.final_sparsity + (self.initial_sparsity - self.final_sparsity) * float((1 - done) ** self.power)

    def should_update(self, step: int) -> bool:
        return _acts_at(step, self.begin_step, self.end_step, self.frequency)


SCHEDULES = {kind.__name__: kind for kind in (ConstantSparsity, PolynomialDecay)}


def schedule_from_config(config: Any) -> PruningSchedule:
    """The schedule that `get_config` described.

    Raises:
        SparsityError: it is none of the known ones.
    """
    name = config.get("class_name") if isinstance(config, dict) else config
    kind = SCHEDULES.get(name) if isinstance(name, str) else None
    if kind is None:
        raise SparsityError(f"Unknown schedule {name!r}. Known: {', '.join(SCHEDULES)}.")
    try:
        return kind(**config["config"])
    except (KeyError, TypeError) as error:
        raise SparsityError(f"Not a complete {kind.__name__}: {error}.") from error


def as_schedule(given: Any) -> PruningSchedule:
    """A schedule, be it ours or the TensorFlow Model Optimization toolkit's of the same name.

    Raises:
        SparsityError: it is neither.
    """
    if isinstance(given, PruningSchedule):
        return given
    if type(given).__name__ in SCHEDULES and hasattr(given, "get_config"):
        return schedule_from_config(given.get_config())
    raise SparsityError(f"{given!r} is no pruning schedule. Use one of {', '.join(SCHEDULES)}.")


def _is_number(value: Any) -> bool:
    return isinstance(value, Real)


def _is_whole(value: Any) -> bool:
    return isinstance(value, Integral)


def _check_sparsity(name: str, value: float) -> None:
    if not (_is_number(value) and 0 <= value < 1):
        raise SparsityError(f"{name} must be at least 0 and less than 1. Received: {value!r}.")


def _check_steps(begin: int, end: int, frequency: int) -> None:
    if not all(_is_whole(number) for number in (begin, end, frequency)):
        raise SparsityError(f"Steps are whole numbers. Received: begin_step={begin!r}, end_step={end!r}, {frequency=}.")
    if begin < 0 or frequency < 1:
        raise SparsityError(
            f"begin_step must not be negative and frequency at least 1. Received: begin_step={begin}, {frequency=}."
        )
    if end != -1 and end < max(begin, 1):
        raise SparsityError(
            f"The schedule ends before it can act: begin_step={begin}, end_step={end}; the first batch is step 1."
        )


def _acts_at(step: int, begin: int, end: int, frequency: int) -> bool:
    if step < max(begin, 1) or (end != -1 and step > end):
        return False
    return (step - begin) % frequency == 0 or step == end
