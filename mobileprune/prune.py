"""A model and a plan make a smaller model that keeps as much of the accuracy as unlabelled images can save."""

import warnings
from typing import Any

from mobileprune.block_removal import layers_behind
from mobileprune.errors import MobilePruneWarning, PlanError, known_names
from mobileprune.graph import clone, same_layer
from mobileprune.plan import plan_channels
from mobileprune.pruning_plan import PruningPlan
from mobileprune.reconstruct import COMPENSATIONS, reconstruct
from mobileprune.surgery import remove_channels


def prune_channels(model: Any, plan: PruningPlan, compensate: str = "none", calibration: Any = None) -> Any:
    """Removes the blocks and channels that `plan` names and makes up for them in the weights that are left.

    Args:
        model: a built Sequential or functional model of the architecture that the plan was made for; not changed.
        plan: see `plan_channels`.
        compensate: `"none"` leaves the surviving weights as they are. `"mean"` moves what a removed channel gave on
            average into the biases (or batch norms) of the layers that read it. `"least_squares"` fits those layers'
            weights anew, so that they give on `calibration` what they gave before, layer after layer on the already
            smaller network (He et al. 2017, arXiv:1707.06168). Of a model with its blocks: it makes up for these, too.
        calibration: images as the model takes them, shape (images, …), or a list of arrays, one for each input; a few
            hundred, no labels. Only read when `compensate` is not `"none"`.

    Returns:
        A new uncompiled model with the same layer names and fewer channels. Without compensation, when the consumers'
        weights of every removed channel are zero, its outputs equal the old model's.

    Raises:
        PlanError: the plan does not fit the model, would leave a group no channels, or calibration data are missing.

    Example:
        >>> plan = plan_channels(model, macs=0.5, importance="obs", calibration=images)             # doctest: +SKIP
        >>> smaller = prune_channels(model, plan, "least_squares", images)                          # doctest: +SKIP
    """
    if compensate not in COMPENSATIONS:
        raise PlanError(f"Unknown compensate={compensate!r}. Known: {known_names(COMPENSATIONS)}.")
    if compensate != "none" and calibration is None:
        raise PlanError(f"compensate={compensate!r} needs calibration=, some hundred images without labels.")
    cut = remove_channels(model, plan)
    if compensate != "none":
        behind = layers_behind(model, plan.blocks) if plan.blocks else ()
        left = reconstruct(model, cut.smaller, cut.before, cut.after, calibration, compensate, behind)
        if left:
            warnings.warn(
                f"These layers lost channels and cannot be fitted: {known_names(left)}.",
                MobilePruneWarning,
                stacklevel=2,
            )
    return cut.smaller


def narrower(model: Any, macs: int) -> Any:
    """The same architecture, all groups alike narrower, with fresh weights: what a pruned model has to beat.

    Args:
        model: a built Sequential or functional model; not changed.
        macs: multiply-accumulates that the result may have at most.

    Raises:
        PlanError: no width is that cheap.
    """
    plan = plan_channels(model, macs=float(macs), scope="local", importance="random", round_to=1)
    return clone(remove_channels(model, plan).smaller, same_layer)
