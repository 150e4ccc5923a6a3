"""Figures in words, the same in every report."""

import math
import re

from mobileprune.errors import known_names
from mobileprune.recommend import measured
from mobileprune.records import Latency, Manifest, VariantRecord


def size(count: int) -> str:
    """Bytes for people.

    Example:
        >>> size(87_654), size(3_600_000)
        ('87.7 kB', '3.60 MB')
    """
    return f"{count / 1e6:.2f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"


def percent(share: float | None) -> str:
    """A share of 1 in percent with one decimal, a dash for None."""
    return "–" if share is None else f"{100 * share:.1f}%"


def milliseconds(value: float) -> str:
    """Milliseconds with three significant digits."""
    return f"{value:.3g} ms"


def versus(time: Latency) -> str:
    """A latency relative to the baseline's of the same run, with its 95% interval."""
    if time.ratio is None or time.ratio_low is None or time.ratio_high is None:
        return ""
    return f"{time.ratio:.2f} ({time.ratio_low:.2f}–{time.ratio_high:.2f})"


_GOALS = {"smallest": "Smallest", "fastest": "Fastest on this host", "most_accurate": "Most accurate"}


def goals(manifest: Manifest) -> list[tuple[str, VariantRecord]]:
    """Each goal in words with its recommended variant."""
    by_file = {entry.file: entry for entry in manifest.variants}
    return [
        (words, by_file[manifest.recommended[goal]]) for goal, words in _GOALS.items() if goal in manifest.recommended
    ]


def notes(manifest: Manifest) -> list[str]:
    """What is to be said of files beside their figures: each sentence once, with the files that it is about."""
    found: dict[str, list[str]] = {}
    for entry in manifest.variants:
        left = (f"These ops compute in float: {known_names(entry.float_ops, 6)}.",) if entry.float_ops else ()
        failed = (f"{each.runtime} does not run it right: {each.reason}" for each in entry.runtimes if not each.passed)
        for sentence in (*entry.notes, *left, *failed):
            found.setdefault(sentence, []).append(entry.file)
    return [f"{known_names(files, 3)}: {sentence}" for sentence, files in found.items()]


def runtimes(manifest: Manifest) -> str:
    """The runtimes that every file passed on."""
    passed = [entry.verified_runtimes for entry in manifest.variants]
    return ", ".join(name for name in passed[0] if all(name in names for names in passed))


def comparison_with_control(manifest: Manifest) -> str:
    """One sentence on the pruned network and the narrower one trained as long; empty without a control.

    The difference of two accuracies on the same n images is called one only beyond two standard errors.
    """
    # The name follows the target: c50, params40, channels, ….
    others = re.compile(r"base|control|(.*_)?s\d+")
    cut = next((entry.model for entry in manifest.variants if not others.fullmatch(entry.model)), "c50")
    pruned, control = manifest.variant(cut, "float32"), manifest.variant("control", "float32")
    if pruned is None or control is None or pruned.accuracy is None or control.accuracy is None:
        return ""
    images = manifest.dataset["images"]["test"]
    error = math.sqrt(sum(share * (1 - share) / images for share in (pruned.accuracy, control.accuracy)))
    difference = pruned.accuracy - control.accuracy
    figures = f"{cut} {percent(measured(pruned))}, control {percent(measured(control))} on {images} test images"
    if abs(difference) <= 2 * error:
        return f"No clear difference between pruning and a narrower network trained as long: {figures}."
    winner = "Pruning beats" if difference > 0 else "**The narrower network wins:** it beats"
    loser = "a narrower network trained as long" if difference > 0 else "the pruned one"
    return f"{winner} {loser}: {figures}."
