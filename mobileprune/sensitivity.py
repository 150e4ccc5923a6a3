"""What each channel group, each layer's sparsity or its rounding costs: one at a time, without labels if need be.

Nothing is rebuilt: a missing channel is one of which every layer reads zeros, and only what lies behind the changed
layer is computed again (see `mobileprune.partial_runs`). Each part's figures are kept as soon as they are known.
"""

import tempfile
from collections.abc import Callable, Sequence
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

import numpy as np

from mobileprune.errors import ModelError, SettingsError, known_names
from mobileprune.graph import check_finite, functional_graph
from mobileprune.importance import Importance, importance_name
from mobileprune.masks import FREE, Pattern
from mobileprune.playback import checked_inputs
from mobileprune.sensitivity_changes import BITS, KINDS, RATIOS, Asked, changes_of, channel_orders
from mobileprune.sensitivity_figures import Sums
from mobileprune.sensitivity_record import Sensitivity
from mobileprune.sensitivity_run import Analysis, key_of
from mobileprune.sensitivity_store import Store, folder_for
from mobileprune.sensitivity_workers import share

Progress = Callable[[int, int, str], None]
"""Told how many parts are done, of how many, and the name of the last one."""


def analyse_sensitivity(
    model: Any,
    images: Any,
    *,
    labels: Any = None,
    kind: str = "channels",
    ratios: Sequence[float] = RATIOS,
    bits: Sequence[int] = BITS,
    importance: Importance = "l2",
    normalise: str = "sum",
    pattern: Pattern = FREE,
    only: Sequence[str] = (),
    seed: int = 0,
    cache: str | Path | None = None,
    workers: int = 1,
    progress: Progress | None = None,
) -> Sensitivity:
    """Measures what becomes of a model's answers when one part of it at a time loses channels, weights or bits.

    The figures are those of networks that were really cut, within rounding (Li et al. 2017, "Pruning Filters for
    Efficient ConvNets", arXiv:1608.08710, section 4, drew them first; for weights Han et al. 2015, arXiv:1506.02626).
    Nothing is fitted or trained afterwards, so they rank parts; they do not tell what is left after a fine-tune.

    Args:
        model: a built functional or Sequential model; the same afterwards. Not to be used meanwhile.
        images: as the model takes them, (images, …), or a list of arrays, one for each input. Some hundred.
        labels: integers (images,) for a classifier; None compares with the unchanged model's own answers.
        kind: `"channels"`: each channel group loses its least important channels. `"sparsity"`: in each layer with
            kernels (see `prunable`) the smallest weights become zero. `"quantization"`: each layer's kernels are
            rounded with a scale for each output channel, as in the recipes `dynamic_int8` and `dynamic_int4` (depthwise
            kernels never to fewer than 8 bits); activations stay as they are. What eight bits do to an op of a *file*,
            activations included, is measured by `mobileprune.sensitivities`.
        ratios: shares of the channels or weights that go, above 0 and below 1.
        bits: of the weights, 2 to 16, for `"quantization"`.
        importance, normalise: how channels are ranked, see `plan_channels`; what looks at images gets these.
        pattern: which weights go together, for `"sparsity"`.
        only: wildcard patterns of the only layers to look at; all by default.
        seed: for `importance="random"`.
        cache: a folder that keeps what was measured, part by part. An analysis that was killed goes on from there, if
            model, images and settings are the same. None keeps nothing.
        workers: processes that share the parts. Each has its share of the cores and its own activations in memory, and
            runs what lies in front of its parts itself; `benchmarks/sensitivity.py --workers=1,2` tells if they pay.
        progress: called after each part.

    Returns:
        A record with the figures of each part at each amount.

    Raises:
        SettingsError: a kind, ratio or number of bits that cannot be meant.
        DatasetError: images or labels that do not fit the model.
        PlanError: an importance or pattern that cannot be meant.
        ModelError: the model is subclassed, not finite, or has no such parts.
        OutputError: the cache cannot be written, or holds something else.
        WorkerError: a worker ended before its work was done.

    Example:
        >>> found = analyse_sensitivity(model, images, kind="channels", cache="sensitivity")    # doctest: +SKIP
        >>> found.parts[0].points[2].agreement                                                 # doctest: +SKIP
        0.83
    """
    amounts = _checked_amounts(kind, ratios, bits)
    if workers < 1:
        raise SettingsError(f"workers={workers}: give 1 or more.")
    functional_graph(model)
    check_finite(model)
    given = checked_inputs(model, images)
    truth = None if labels is None else np.asarray(labels)
    asked = Asked(
        kind, amounts, tuple(only), {}, pattern.block_size, pattern.block_pooling_type, pattern.sparsity_m_by_n
    )
    if kind == "channels":
        calibration = given if len(given) > 1 else given[0]
        orders = channel_orders(
            model,
            importance,
            normalise=normalise,
            calibration=calibration if truth is None or importance == "obs" else (calibration, truth),
            only=only,
            seed=seed,
        )
        asked = Asked(kind, amounts, orders=orders)
    changes = changes_of(model, asked)
    if not changes:
        raise ModelError(f"{model.name!r} has nothing that kind={kind!r} could change.")
    analysis = Analysis(model, given, truth, changes)
    accuracy = analysis.expected.accuracy  # refuses what cannot be compared, before any long work
    with tempfile.TemporaryDirectory(prefix="mobileprune_sensitivity_") as temporary:
        store = None
        if cache is not None:
            store = Store(folder_for(Path(cache), model, given, truth, asked))
        elif workers > 1:
            store = Store(Path(temporary))
        found = _measured(analysis, asked, store, workers, progress or _silent)
    return Sensitivity(
        model=model.name,
        kind=kind,
        images=len(given[0]),
        accuracy=accuracy,
        importance=importance_name(importance) if kind == "channels" else "",
        parts=tuple(
            analysis.figures(change, _added([found[change.name, images.start] for images in analysis.slices]))
            for change in changes
        ),
    )


def _measured(
    analysis: Analysis, asked: Asked, store: Store | None, workers: int, progress: Progress
) -> dict[tuple[str, int], list[Sums]]:
    """The sums of every part, by the change's name and the first image."""
    parts = analysis.parts()
    found = {key_of(part): store.read(part) for part in parts if store and store.has(part)}
    missing = [part for part in parts if key_of(part) not in found]
    if workers > 1 and store and len(missing) > 1:

        def look() -> None:
            progress(sum(store.has(part) for part in parts), len(parts), "")

        share(analysis, missing, asked, store, min(workers, len(missing)), look)
        found |= {key_of(part): store.read(part) for part in missing}
        progress(len(parts), len(parts), "")
        return found
    for part, sums in analysis.run(missing):
        if store:
            store.write(part, sums)
        found[key_of(part)] = sums
        progress(len(found), len(parts), part[0].name)
    return found


def _added(parts: Sequence[list[Sums]]) -> list[Sums]:
    """For each amount the sum over all images."""
    return [reduce(add, each) for each in zip(*parts, strict=True)]


def _silent(done: int, of: int, name: str) -> None:
    """For who wants to hear nothing."""


def _checked_amounts(kind: str, ratios: Sequence[float], bits: Sequence[int]) -> tuple[float, ...]:
    if kind not in KINDS:
        raise SettingsError(f"Unknown kind {kind!r}. Known: {known_names(KINDS)}.")
    if kind == "quantization":
        if not bits or not all(2 <= each <= 16 and each == int(each) for each in bits):
            raise SettingsError(f"bits={list(bits)}: give whole numbers from 2 to 16, as (8, 4).")
        return tuple(map(int, bits))
    if not ratios or not all(0 < ratio < 1 for ratio in ratios):
        raise SettingsError(f"ratios={list(ratios)}: give shares above 0 and below 1, as (0.3, 0.5, 0.7).")
    return tuple(map(float, ratios))
