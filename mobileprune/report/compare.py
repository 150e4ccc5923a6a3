"""Two runs side by side: what differs between them, and which differences mean something."""

import dataclasses
import math
from pathlib import Path
from typing import Any

from mobileprune.files import write_bytes
from mobileprune.recommend import measured
from mobileprune.records import Latency
from mobileprune.report.drawing import COLORS, INK, MUTED, page_svg, plain_text
from mobileprune.report.html import Plot, page
from mobileprune.report.pareto import WIDTH, limits, ticks
from mobileprune.report.tables import Table
from mobileprune.report.words import device_name, goals, milliseconds, percent, points, size
from mobileprune.run_records import Manifest, VariantRecord

FILES = ("comparison.md", "comparison.html")
# Two runs' latencies were not measured in the same rounds: within this share they are not told apart.
_SAME_TIME = 0.05


@dataclasses.dataclass(frozen=True)
class Pair:
    """The files of one model and recipe in both runs."""

    before: VariantRecord
    after: VariantRecord

    @property
    def name(self) -> str:
        return f"{self.after.model} {self.after.recipe}"


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Run B against run A.

    Attributes:
        names: of the two runs: their folders'.
        runs: their manifests.
        pairs: the files that both have.
        only: what one of them has alone: for A and for B.
        doubts: why some figures cannot be compared, as sentences.
    """

    names: tuple[str, str]
    runs: tuple[Manifest, Manifest]
    pairs: tuple[Pair, ...]
    only: tuple[tuple[str, ...], tuple[str, ...]]
    doubts: tuple[str, ...]

    def verdicts(self) -> list[str]:
        """What became better or worse, as sentences; one says so where nothing did."""
        found = []
        for goal, old, new in self._recommended():
            changed = "the same file" if (old.model, old.recipe) == (new.model, new.recipe) else _name(new)
            how = (_size_change(old, new), self._time_change(old, new), self._accuracy_change(old, new))
            found.append(f"{goal}: {', '.join(each for each in (changed, *how) if each)}.")
        return found or ["The runs recommend nothing for the same goal."]

    def table(self) -> Table:
        """A row for each file that both runs have."""
        head = ("file", "size", "change", "accuracy", "change", "latency", "change")
        return Table(head, tuple(self._row(pair) for pair in self.pairs))

    def settings(self) -> Table:
        """What the runs did not have in common."""
        first, second = (_settings(run) for run in self.runs)
        names = [name for name in first if first[name] != second.get(name)]
        return Table(("", *self.names), tuple((name, first[name], second.get(name, "–")) for name in names))

    def same_images(self) -> bool:
        """Whether accuracies are of the same test images, as far as the manifests tell."""
        one, other = (run.dataset for run in self.runs)
        return (one["name"], one["source"], one["images"]["test"]) == (
            other["name"],
            other["source"],
            other["images"]["test"],
        )

    def _row(self, pair: Pair) -> tuple[str, ...]:
        old, new = pair.before, pair.after
        times = _times(old, new)
        arrow = "{} → {}"
        return (
            pair.name,
            arrow.format(size(old.bytes), size(new.bytes)),
            _size_change(old, new),
            arrow.format(percent(measured(old)), percent(measured(new))),
            self._accuracy_change(old, new),
            arrow.format(milliseconds(times[0].p50_ms), milliseconds(times[1].p50_ms)) if times else "–",
            self._time_change(old, new),
        )

    def _accuracy_change(self, old: VariantRecord, new: VariantRecord) -> str:
        if (old.accuracy is None) != (new.accuracy is None):
            return ""
        difference = 100 * (measured(new) - measured(old))
        if not self.same_images():
            return f"{points(difference)}, on other images"
        if old.accuracy is None or new.accuracy is None:
            return points(difference)
        images = self.runs[0].dataset["images"]["test"]
        error = 200 * math.sqrt(sum(share * (1 - share) / images for share in (old.accuracy, new.accuracy)))
        return f"{points(difference)}, {'a clear difference' if abs(difference) > error else 'no clear difference'}"

    def _time_change(self, old: VariantRecord, new: VariantRecord) -> str:
        times = _times(old, new)
        if times is None:
            return ""
        ratio = times[1].p50_ms / times[0].p50_ms
        if abs(math.log(ratio)) <= math.log(1 + _SAME_TIME):
            return "as fast"
        return f"{max(ratio, 1 / ratio):.2f}× {'faster' if ratio < 1 else 'slower'}"

    def _recommended(self) -> list[tuple[str, VariantRecord, VariantRecord]]:
        before, after = (dict(goals(run)) for run in self.runs)
        return [(words, before[words], after[words]) for words in before if words in after]


def compare_runs(first: Manifest, second: Manifest, names: tuple[str, str] = ("A", "B")) -> Comparison:
    """Compares run B with run A, file by file.

    Args:
        first: run A.
        second: run B.
        names: what to call them.

    Example:
        >>> compare_runs(old, new).verdicts()                                   # doctest: +SKIP
        ['Smallest: the same file, as large, as fast, +0.4 points, no clear difference.']
    """
    before = {(entry.model, entry.recipe): entry for entry in first.variants}
    after = {(entry.model, entry.recipe): entry for entry in second.variants}
    pairs = tuple(Pair(before[key], after[key]) for key in before if key in after)
    only = (
        tuple(_name(entry) for key, entry in before.items() if key not in after),
        tuple(_name(entry) for key, entry in after.items() if key not in before),
    )
    found = Comparison(names, (first, second), pairs, only, ())
    return dataclasses.replace(found, doubts=tuple(_doubts(found)))


def write_comparison(folder: Path, found: Comparison) -> tuple[Path, Path]:
    """Writes `comparison.md` and `comparison.html` and returns their paths."""
    facts = {"found": found, "plots": _plots(found)}
    paths = [write_bytes(folder / file, page(f"{file}.jinja").render(**facts).encode()) for file in FILES]
    return paths[0], paths[1]


def _name(entry: VariantRecord) -> str:
    return f"{entry.model} {entry.recipe}"


def _times(old: VariantRecord, new: VariantRecord) -> tuple[Latency, Latency] | None:
    """Latencies on the same device with the same runtime; None where there are none."""
    for one in old.latency:
        for other in new.latency:
            if (device_name(one), one.runtime) == (device_name(other), other.runtime):
                return one, other
    return None


def _size_change(old: VariantRecord, new: VariantRecord) -> str:
    ratio = new.bytes / old.bytes
    if abs(ratio - 1) < 0.005:
        return "as large"
    return f"{max(ratio, 1 / ratio):.2f}× {'smaller' if ratio < 1 else 'larger'}"


def _doubts(found: Comparison) -> list[str]:
    doubts = []
    if not found.pairs:
        doubts.append("The runs have no model and recipe in common.")
    if not found.same_images():
        doubts.append("The runs were tested on different images: their accuracies cannot be compared.")
    if found.pairs and not any(_times(pair.before, pair.after) for pair in found.pairs):
        doubts.append("No latency was measured on the same device with the same runtime: latencies cannot be compared.")
    elif found.pairs:
        doubts.append(
            "Latencies of different runs were measured at different times: other work on the machine may have slowed "
            f"one, and differences below {_SAME_TIME:.0%} say nothing. `mobileprune benchmark` times files in turn."
        )
    return doubts


def _settings(run: Manifest) -> dict[str, str]:
    """What a run depends on, as words."""
    return {
        "command": run.command,
        "data": f"{run.dataset['name']}: {run.dataset['source']}",
        "test images": f"{run.dataset['images']['test']:,}",
        "machine": f"{run.host['device']}, {run.host['cores']} cores",
        "Python": str(run.host["python"]),
        "mobileprune": run.mobileprune,
        **run.versions,
    }


def _plots(found: Comparison) -> list[Plot]:
    if not found.pairs:
        return []
    sizes = [(pair.before.bytes / 1000, pair.after.bytes / 1000) for pair in found.pairs]
    plots = [Plot("Accuracy and size", _arrows(found, list(found.pairs), sizes, "size, kB"))]
    timed = [(pair, times) for pair in found.pairs if (times := _times(pair.before, pair.after))]
    if timed:
        costs = [(old.p50_ms, new.p50_ms) for _, (old, new) in timed]
        plots.append(Plot("Accuracy and latency", _arrows(found, [pair for pair, _ in timed], costs, "latency, ms")))
    return plots


def _arrows(found: Comparison, pairs: list[Pair], costs: list[tuple[float, float]], cost_name: str) -> str:
    """Where each file was in run A and is in run B, as an SVG element."""
    gains = [(100 * measured(pair.before), 100 * measured(pair.after)) for pair in pairs]
    tips = {
        f"pair-{at}": f"{pair.name}: {percent(measured(pair.before))} → {percent(measured(pair.after))}"
        for at, pair in enumerate(pairs)
    }

    def draw(figure: Any, axes: Any) -> None:
        from matplotlib.lines import Line2D

        axes.set_xscale("log")
        limits(axes, [cost for both in costs for cost in both], [gain for both in gains for gain in both])
        for at, (cost, gain) in enumerate(zip(costs, gains, strict=True)):
            axes.plot(cost, gain, color=MUTED, linewidth=0.8, zorder=1)
            axes.plot(cost[0], gain[0], marker="o", markerfacecolor="none", color=MUTED, markersize=6, zorder=2)
            axes.plot(cost[1], gain[1], marker="o", color=COLORS[0], markersize=6, zorder=3, gid=f"pair-{at}")
        axes.set_xlabel(cost_name)
        axes.set_ylabel("accuracy, %")
        axes.grid(axis="both")
        ticks(axes)
        handles = [
            Line2D([], [], color=color, marker="o", markerfacecolor=face, linestyle="", label=plain_text(name, 24))
            for name, color, face in zip(found.names, (MUTED, COLORS[0]), ("none", COLORS[0]), strict=True)
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=2, labelcolor=INK)

    name = "compare-" + cost_name.split(",")[0]
    return page_svg(name, (WIDTH, 3.8), draw, f"Accuracy against {cost_name} of both runs.", tips)
