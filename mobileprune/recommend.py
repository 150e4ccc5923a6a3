"""Which file for which goal, chosen on validation figures; and whether a run meets its limits, measured on test."""

import dataclasses
from collections.abc import Sequence

from mobileprune.run_records import Manifest, VariantRecord

# Sizes and times closer than this are the same; the more accurate file is then the better choice.
_SAME = 0.02


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a file must meet to be shipped; None for no limit.

    Attributes:
        max_drop: percentage points of test accuracy (or agreement) below `base` float32.
        max_bytes: size of the file.
        max_latency_ms: median latency on the host.
    """

    max_drop: float | None = None
    max_bytes: int | None = None
    max_latency_ms: float | None = None

    def any(self) -> bool:
        return any(value is not None for value in dataclasses.astuple(self))


def quality(variant: VariantRecord) -> float:
    """What choices compare, 0 to 1: validation accuracy, or agreement with the unpruned model without labels."""
    labelled = variant.validation_accuracy is not None
    value = variant.validation_accuracy if labelled else variant.validation_agreement
    return 0.0 if value is None else value


def recommend(variants: Sequence[VariantRecord], tolerated_drop: float) -> dict[str, str]:
    """The recommended file for each goal.

    Args:
        variants: the files that passed verification.
        tolerated_drop: percentage points of validation accuracy that the smallest and the fastest file may lose
            against the base float32 file. If none qualifies, all are considered.

    Returns:
        File names by goal: `smallest`, `fastest` (only if latencies were measured) and `most_accurate`.
    """
    if not variants:
        return {}
    baseline = baseline_of(variants)
    good = [entry for entry in variants if quality(entry) >= quality(baseline) - tolerated_drop / 100 - 1e-9]
    good = good or list(variants)
    goals = {
        "smallest": _best(good, [entry.bytes for entry in good]),
        "most_accurate": min(variants, key=lambda entry: (-quality(entry), entry.bytes)),
    }
    timed = [entry for entry in good if entry.latency]
    if timed:
        goals["fastest"] = _best(timed, [entry.latency[0].p50_ms for entry in timed])
    return {goal: entry.file for goal, entry in sorted(goals.items())}


def baseline_of(variants: Sequence[VariantRecord]) -> VariantRecord:
    """The base model's float32 file, else its first file, else the first of all; reports name which it is."""
    base = [entry for entry in variants if entry.model == "base"] or list(variants[:1])
    return next((entry for entry in base if entry.recipe == "float32"), base[0])


def meets(manifest: Manifest, limits: Limits) -> list[str]:
    """The files that meet all limits. Without a base float32 file none meets `max_drop`: nothing tells the drop."""
    base = manifest.variant("base", "float32")

    def good(entry: VariantRecord) -> bool:
        drop = None if base is None else 100 * (measured(base) - measured(entry))
        if limits.max_drop is not None and (drop is None or drop > limits.max_drop + 1e-7):
            return False
        if limits.max_bytes is not None and entry.bytes > limits.max_bytes:
            return False
        return limits.max_latency_ms is None or any(time.p50_ms <= limits.max_latency_ms for time in entry.latency)

    return [entry.file for entry in manifest.variants if good(entry)]


def measured(variant: VariantRecord) -> float:
    """What reports show, 0 to 1: test accuracy, or agreement without labels."""
    value = variant.agreement if variant.accuracy is None else variant.accuracy
    return 0.0 if value is None else value


def _best(entries: Sequence[VariantRecord], costs: Sequence[float]) -> VariantRecord:
    cheapest = min(costs)
    near = [entry for entry, cost in zip(entries, costs, strict=True) if cost <= cheapest * (1 + _SAME)]
    return max(near, key=quality)
