"""Schedules of the TensorFlow Model Optimization toolkit (tfmot) to ours and back.

Both count the batches from 1 and act just before a batch is applied. Reading a schedule needs no tfmot.
"""

import dataclasses
from typing import Any

from mobileprune.errors import SparsityError
from mobileprune.interop import process
from mobileprune.schedules import SCHEDULES, PolynomialDecay, PruningSchedule, as_schedule


def schedule_from_tfmot(schedule: Any) -> PruningSchedule:
    """Our schedule with the numbers of one of tfmot's; one of ours comes back as it is.

    Where `prune_low_magnitude` takes a schedule it takes tfmot's, too. A schedule of ours acts at its `end_step`
    whatever `frequency` is; tfmot's stops short of its final sparsity when `end_step - begin_step` is no multiple.

    Raises:
        SparsityError: it is none of tfmot's two classes, or one that could never act.

    Example:
        >>> schedule_from_tfmot(tfmot.sparsity.keras.ConstantSparsity(0.5, 0))     # doctest: +SKIP
        ConstantSparsity(target_sparsity=0.5, begin_step=0, end_step=-1, frequency=100)
    """
    return as_schedule(schedule)


def to_tfmot_schedule(schedule: PruningSchedule) -> Any:
    """tfmot's schedule for one of ours; one of tfmot's comes back as it is.

    tfmot acts only at `begin_step` plus multiples of `frequency`. So that it reaches the final sparsity all the same,
    `frequency` is at most the length of a decay and `end_step` goes back to the last step at which tfmot acts: by less
    than `frequency` steps.

    Raises:
        SparsityError: it is neither `ConstantSparsity` nor `PolynomialDecay`.

    Example:
        >>> ours = PolynomialDecay(0.0, 0.8, begin_step=0, end_step=190, frequency=50)
        >>> to_tfmot_schedule(ours).end_step                                        # doctest: +SKIP
        150
    """
    if type(schedule).__module__.startswith("tensorflow_model_optimization."):
        return schedule
    name = type(schedule).__name__
    if type(schedule) is not SCHEDULES.get(name):
        raise SparsityError(f"tfmot has no schedule like {name}. It has {' and '.join(SCHEDULES)}.")
    values = dataclasses.asdict(schedule)
    if isinstance(schedule, PolynomialDecay):
        length = schedule.end_step - schedule.begin_step
        values["frequency"] = min(schedule.frequency, length)
        values["end_step"] = schedule.end_step - length % values["frequency"]
    return getattr(process.tfmot(), name)(**values)


def reached_by_tfmot(schedule: Any, steps: int) -> tuple[float, float]:
    """What tfmot makes of one of its schedules in a training of `steps` batches.

    Returns:
        The sparsity at its last update of the masks, 0 when it never acts, and the sparsity that the schedule promises
        for its end; shares, 0 to 1.
    """
    end = steps if schedule.end_step == -1 else min(steps, schedule.end_step)
    last = end - (end - schedule.begin_step) % schedule.frequency
    promised = schedule.target_sparsity if hasattr(schedule, "target_sparsity") else schedule.final_sparsity
    if last < max(1, schedule.begin_step):  # its first step is number 1
        return 0.0, promised
    return float(schedule(last)[1]), promised
