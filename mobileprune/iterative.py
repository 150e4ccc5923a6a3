"""Several small cuts with training between them, in the place of a large one: it can be killed, and goes on."""

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mobileprune.benchmark.android_settings import AndroidSettings
from mobileprune.compose import compose_plans
from mobileprune.errors import OutputError, PlanError
from mobileprune.files import read_json, write_json
from mobileprune.importance import Importance, check_importance, importance_name
from mobileprune.network_latency import LatencyModel
from mobileprune.plan import plan_channels
from mobileprune.prune import prune_channels
from mobileprune.pruning_plan import PruningPlan
from mobileprune.step_targets import StepTargets, without_chosen_blocks
from mobileprune.train import load_checkpoint, save_checkpoint

# Receives the network that was just cut, the number of the step (from 1) and a folder of the step's own for its
# checkpoints (None without `checkpoint`); returns the trained network.
FineTune = Callable[[Any, int, Path | None], Any]


@dataclasses.dataclass(frozen=True, eq=False)
class IterativePruning:
    """What `prune_iteratively` comes to.

    Attributes:
        model: the last network, as the last fine-tune returned it.
        plan: all cuts as one plan against the first network.
        steps: the plan of each cut, against the network that the step before left.
    """

    model: Any
    plan: PruningPlan
    steps: tuple[PruningPlan, ...]


def prune_iteratively(
    model: Any,
    *,
    steps: int,
    finetune: FineTune,
    power: float = 3.0,
    importance: Importance = "l2",
    compensate: str = "none",
    calibration: Any = None,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    **planning: Any,
) -> IterativePruning:
    """Cuts a network in several steps, and has it trained after each.

    Each step ranks the channels of the network that the one before trained. All targets and limits refer to the first
    network: after step k of n, 1 - (1 - final) × (1 - (1 - k/n)^power) of it is left, fast at first and slowly at last
    as `PolynomialDecay` goes (Zhu & Gupta 2017, arXiv:1710.01878). Channels pruned and trained in turns: Molchanov et
    al. 2017, arXiv:1611.06440.

    Args:
        model: a built Sequential or functional model; not changed.
        steps: how many cuts, 1 or more.
        finetune: trains what a cut left: receives the model (uncompiled), the step from 1 on and a folder, and returns
            the trained model without wrappers. Any training loop will do; one that keeps its own checkpoints in the
            folder, as `train` does, goes on in the middle of a step.
        power: of the schedule, greater than 0; 1 makes cuts of equal size.
        importance: as of `plan_channels`, but no finished rankings.
        compensate: as of `prune_channels`.
        calibration: what `importance` and `compensate` look at.
        seed: for `importance="random"`.
        checkpoint: a folder. Each step's plan and cut and trained networks are kept there, and a call with the same
            arguments goes on where the last one was killed, to the same end.
        **planning: exactly one target of `plan_channels` (`macs=0.5`), and its other arguments. `device` is anything
            but a `LatencyModel`. `blocks` all go in the first step.

    Raises:
        PlanError: an argument makes no sense, or the target cannot be met: before anything is trained.
        OutputError: the folder holds another job, or cannot be read or written.

    Example:
        >>> def finetune(model, step, folder):
        ...     return mp.train(model, data, mp.TrainSettings(epochs=2), checkpoint=folder)
        >>> done = prune_iteratively(model, steps=4, finetune=finetune, macs=0.3)               # doctest: +SKIP
        >>> done.plan.save("plan.json")                                                         # doctest: +SKIP
    """
    if steps < 1 or not power > 0:
        raise PlanError(f"steps must be at least 1 and power greater than 0. Received: {steps=}, {power=}.")
    if isinstance(importance, Mapping):
        raise PlanError("Finished rankings fit the first network alone. Give the name of an importance, or a function.")
    if isinstance(planning.get("device"), LatencyModel):
        raise PlanError("A LatencyModel fits the first network alone. Give device= a name, or a function that times.")
    check_importance(importance, calibration)
    folder = None if checkpoint is None else Path(checkpoint)
    if folder is not None:
        _claim(folder, model, {**planning, **_named(steps, power, importance, compensate, seed)})
    blocks = planning.pop("blocks", None)
    first = without_chosen_blocks(model, blocks, calibration, planning, folder)
    targets = StepTargets(first, folder)
    plans: list[PruningPlan] = []
    present = model
    for step in range(1, steps + 1):
        own = None if folder is None else folder / f"step_{step}"
        if own is not None and (own / "tuned.keras").exists():
            plans.append(PruningPlan.load(own / "plan.json"))
            if step == steps or not (own.with_name(f"step_{step + 1}") / "cut.keras").exists():
                present = load_checkpoint(own / "tuned.keras")
            shutil.rmtree(own / "training", ignore_errors=True)
            continue
        if own is not None and (own / "cut.keras").exists():
            plans.append(PruningPlan.load(own / "plan.json"))
            present = load_checkpoint(own / "cut.keras")
        else:
            arguments = targets.at(step, steps, power)
            cut = first.model if step == 1 else present
            plan = plan_channels(cut, importance=importance, calibration=calibration, seed=seed, **arguments)
            plan = dataclasses.replace(plan, target=f"{targets.told}, step {step} of {steps}")
            plans.append(first.with_blocks(model, plan) if step == 1 else plan)
            present = prune_channels(present, plans[-1], compensate, calibration)
            if own is not None:
                plans[-1].save(own / "plan.json")
                present = _kept(present, own / "cut.keras")
        present = finetune(present, step, own and own / "training")
        if own is not None:
            present = _kept(present, own / "tuned.keras")
            shutil.rmtree(own / "training", ignore_errors=True)
    composed = dataclasses.replace(compose_plans(model, plans), target=f"{targets.told}, in {steps} steps")
    return IterativePruning(present, composed, tuple(plans))


def share_epochs(epochs: int, steps: int) -> list[int]:
    """Epochs for each of several steps: as many for each as there are, and what is over for the last.

    Example:
        >>> share_epochs(8, 3)
        [2, 2, 4]
    """
    return [epochs // steps] * (steps - 1) + [epochs - epochs // steps * (steps - 1)]


def _kept(model: Any, path: Path) -> Any:
    """The model as a killed run would find it: what comes after must not depend on whether there was a kill."""
    save_checkpoint(model, path)
    return load_checkpoint(path)


def _named(steps: int, power: float, importance: Importance, compensate: str, seed: int) -> dict[str, Any]:
    named = importance_name(importance)
    return {"steps": steps, "power": power, "importance": named, "compensate": compensate, "seed": seed}


def _claim(folder: Path, model: Any, settings: Mapping[str, Any]) -> None:
    """Refuses a folder in which another job was begun.

    Raises:
        OutputError: it names what is different.
    """
    digest = hashlib.sha256(" ".join(layer.name for layer in model.layers).encode())
    for weight in model.weights:
        digest.update(str(tuple(weight.shape)).encode())
        digest.update(np.asarray(weight).tobytes())
    wanted = json.loads(json.dumps({**settings, "model": digest.hexdigest()}, default=_in_json))
    path = folder / "settings.json"
    if not path.exists():
        write_json(path, wanted)
        return
    before = read_json(path)
    changed = sorted(name for name in {*wanted, *before} if wanted.get(name) != before.get(name))
    if changed:
        name = changed[0]
        raise OutputError(
            f"{folder} holds the steps of {name}={before.get(name)!r}, not {wanted.get(name)!r}. Choose another "
            "checkpoint folder, or delete it."
        )


def _in_json(value: Any) -> Any:
    if isinstance(value, AndroidSettings):
        return dataclasses.asdict(value)
    return value.item() if isinstance(value, np.generic) else getattr(value, "__qualname__", type(value).__name__)
