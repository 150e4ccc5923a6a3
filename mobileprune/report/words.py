"""Figures in words, the same in every report."""

import dataclasses
import math
import re

from mobileprune.errors import known_names
from mobileprune.recommend import baseline_of, measured
from mobileprune.records import Latency
from mobileprune.run_records import Manifest, VariantRecord


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


def chance(manifest: Manifest, one: VariantRecord, other: VariantRecord | None = None) -> float:
    """How many points two measured accuracies may lie apart without a reason: two standard errors of their difference.

    Args:
        manifest: the run, which knows how many images were tested.
        one: a file.
        other: the file that it is compared with; another of about the same accuracy if it is None.

    Returns:
        Percentage points; 0 where agreement with the base is measured, which is no draw of labels.
    """
    shares = [entry.accuracy for entry in (one, other or one)]
    images = manifest.dataset["images"]["test"]
    return 200 * math.sqrt(sum(share * (1 - share) / images for share in shares if share is not None))


def points(value: float) -> str:
    """A difference of two percentages, with its sign.

    Example:
        >>> points(-0.62), points(0.04)
        ('−0.6 points', '±0.0 points')
    """
    sign = "±" if f"{abs(value):.1f}" == "0.0" else "+" if value > 0 else "−"
    return f"{sign}{abs(value):.1f} points"


def times_smaller(entry: VariantRecord, baseline: VariantRecord) -> str:
    """How a file's size compares with another's."""
    ratio = baseline.bytes / entry.bytes
    return f"{ratio:.1f}× smaller" if ratio >= 1 else f"{1 / ratio:.1f}× larger"


def times_faster(time: Latency | None) -> str:
    """How a latency compares with the baseline's of the same run; empty where that is not known.

    "As fast" is said where the 95% interval holds 1.
    """
    if time is None or time.ratio is None or time.ratio_low is None or time.ratio_high is None:
        return ""
    if time.ratio_low <= 1 <= time.ratio_high:
        return "as fast"
    ratio = max(time.ratio, 1 / time.ratio)
    figure = f"{ratio:.2f}" if ratio < 1.95 else f"{ratio:.1f}"
    return f"{figure}× {'faster' if time.ratio < 1 else 'slower'}"


def accuracy_change(manifest: Manifest, entry: VariantRecord, baseline: VariantRecord) -> str:
    """The change of accuracy in points, and whether it can be chance."""
    difference = 100 * (measured(entry) - measured(baseline))
    if entry.file == baseline.file or entry.accuracy is None or baseline.accuracy is None:
        return points(difference)
    clear = abs(difference) > chance(manifest, entry, baseline)
    return f"{points(difference)}, {'a clear difference' if clear else 'no clear difference'}"


@dataclasses.dataclass(frozen=True)
class Choice:
    """A recommended file and what it is the best at.

    Attributes:
        goals: in words; several where one file is the best at several.
        entry: the file.
    """

    goals: str
    entry: VariantRecord


def choices(manifest: Manifest) -> list[Choice]:
    """The recommended files, each once."""
    found: dict[str, list[str]] = {}
    entries = {}
    for words, entry in goals(manifest):
        found.setdefault(entry.file, []).append(words)
        entries[entry.file] = entry
    return [Choice(_joined(words), entries[file]) for file, words in found.items()]


def gained(manifest: Manifest) -> str:
    """What the run came to, in one sentence a recommended file."""
    baseline = baseline_of(manifest.variants)
    sentences = []
    for choice in choices(manifest):
        entry = choice.entry
        if entry.file == baseline.file:
            sentences.append(f"{choice.goals}: {entry.model} {entry.recipe}, as it is.")
            continue
        speed = times_faster(entry.latency[0] if entry.latency else None)
        facts = (times_smaller(entry, baseline), speed, accuracy_change(manifest, entry, baseline))
        known = ", ".join(each for each in facts if each)
        sentences.append(f"{choice.goals}: {entry.model} {entry.recipe}, {known}.")
    return " ".join(sentences)


def _joined(words: list[str]) -> str:
    lower = [words[0], *(each[0].lower() + each[1:] for each in words[1:])]
    return lower[0] if len(lower) == 1 else f"{', '.join(lower[:-1])} and {lower[-1]}"


def devices(manifest: Manifest) -> list[str]:
    """Where latencies were measured, the first device first: phones follow the host."""
    return list(dict.fromkeys(device_name(time) for entry in manifest.variants for time in entry.latency))


def device_name(time: Latency) -> str:
    """Where a latency was measured, in a few words."""
    threads = f"{time.threads} {'thread' if time.threads == 1 else 'threads'}"
    # Kernels of the processor, with or without XNNPACK: one table of latencies may hold both.
    other = "" if time.accelerator in ("XNNPACK", "none", "") else f", {time.accelerator}"
    return f"{time.device}, {threads}{other}"


def latency_on(entry: VariantRecord, device: str) -> Latency | None:
    """A file's latency on one of `devices`; None where it has none."""
    return next((time for time in entry.latency if device_name(time) == device), None)


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
    difference = pruned.accuracy - control.accuracy
    figures = f"{cut} {percent(measured(pruned))}, control {percent(measured(control))} on {images} test images"
    if 100 * abs(difference) <= chance(manifest, pruned, control):
        return f"No clear difference between pruning and a narrower network trained as long: {figures}."
    winner = "Pruning beats" if difference > 0 else "**The narrower network wins:** it beats"
    loser = "a narrower network trained as long" if difference > 0 else "the pruned one"
    return f"{winner} {loser}: {figures}."
