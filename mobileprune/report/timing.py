"""How latencies are spread: a file's single inferences, not its median alone."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from mobileprune.records import Latency
from mobileprune.report.drawing import INK, MUTED, page_svg, plain_text
from mobileprune.report.pareto import WIDTH, model_colors, tip
from mobileprune.report.words import latency_on
from mobileprune.run_records import Manifest, VariantRecord


@dataclasses.dataclass(frozen=True)
class Spread:
    """Single inferences in milliseconds: where the middle 90% and the middle half lie, and the median.

    Attributes:
        low: 5% are faster.
        quarter: 25% are faster.
        middle: half are.
        three_quarters: 75% are.
        high: 95% are.
    """

    low: float
    quarter: float
    middle: float
    three_quarters: float
    high: float


def spread(time: Latency) -> Spread | None:
    """How the inferences of a latency are spread; None where nobody kept it.

    Example:
        >>> spread(latency).middle                                         # doctest: +SKIP
        0.197
    """
    kept = time.histogram
    if len(kept) < 2:
        return None
    # The i-th of n quantiles lies in the middle of its share: at (i + ½) / n.
    return Spread(*(_between(kept, share * len(kept) - 0.5) for share in (0.05, 0.25, 0.5, 0.75, 0.95)))


def spreads(manifest: Manifest, device: str) -> list[tuple[VariantRecord, Spread]]:
    """Every file whose latency on one of `words.devices` is known in detail, the fastest first."""
    timed = [(entry, latency_on(entry, device)) for entry in manifest.variants]
    found = [(entry, spread(time)) for entry, time in timed if time is not None]
    known = [(entry, each) for entry, each in found if each is not None]
    return sorted(known, key=lambda row: row[1].middle)


def distributions(manifest: Manifest, device: str, number: int = 0) -> str:
    """One line a file, the fastest first, as an SVG element; empty where no distribution is known.

    Args:
        manifest: the run.
        device: one of `words.devices`.
        number: of the drawing in its page.
    """
    rows = spreads(manifest, device)
    if not rows:
        return ""
    colors = model_colors([entry.model for entry in manifest.variants])
    tips = {f"row-{at}": tip(entry) for at, (entry, _) in enumerate(rows)}

    def draw(figure: Any, axes: Any) -> None:
        from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

        axes.set_xscale("log")
        for at, (entry, each) in enumerate(rows):
            color = colors[entry.model]
            axes.plot([each.low, each.high], [at, at], color=color, linewidth=1.2, solid_capstyle="butt")
            axes.plot(
                [each.quarter, each.three_quarters],
                [at, at],
                color=color,
                linewidth=6,
                solid_capstyle="butt",
                alpha=0.55,
            )
            axes.plot(each.middle, at, marker="|", markersize=9, markeredgewidth=2, color=color, gid=f"row-{at}")
            axes.annotate(f"{each.middle:.3g}", (each.high, at), (4, 0), textcoords="offset points", **_FIGURE)
        low, high = min(each.low for _, each in rows), max(each.high for _, each in rows)
        axes.set_xlim(low / 1.15, high * (high / low) ** 0.16 * 1.15)
        _rows(axes, [entry for entry, _ in rows])
        axes.xaxis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5), numticks=12))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
        axes.set_xlabel("one inference, ms")
        axes.grid(axis="x")

    words = f"Spread of the latencies of {len(rows)} files."
    return page_svg(f"latencies-{number}", (WIDTH, (60 + 15 * len(rows)) / 72), draw, words, tips)


def loading(manifest: Manifest, device: str, number: int = 0) -> str:
    """How long each file takes to load, in the order of `distributions`, as an SVG element; empty where that is.

    Args:
        manifest: the run.
        device: one of `words.devices`.
        number: of the drawing in its page.
    """
    entries = [entry for entry, _ in spreads(manifest, device)]
    times = [time.init_ms for entry in entries if (time := latency_on(entry, device))]
    if not entries:
        return ""
    colors = model_colors([entry.model for entry in manifest.variants])

    def draw(figure: Any, axes: Any) -> None:
        for at, (entry, value) in enumerate(zip(entries, times, strict=True)):
            axes.barh(at, value, height=0.62, color=colors[entry.model], alpha=0.8)
            axes.annotate(f"{value:.3g}", (value, at), (4, 0), textcoords="offset points", **_FIGURE)
        axes.set_xlim(0, 1.18 * max(times) or 1)
        _rows(axes, entries)
        axes.set_xlabel("creating the interpreter, ms")
        axes.grid(axis="x")

    words = f"How long {len(entries)} files take to load."
    return page_svg(f"loading-{number}", (WIDTH, (60 + 15 * len(entries)) / 72), draw, words)


def _rows(axes: Any, entries: Sequence[VariantRecord]) -> None:
    """A name for each row, the first one at the top."""
    axes.set_ylim(len(entries) - 0.4, -0.6)
    names = [plain_text(f"{entry.model} {entry.recipe}", 26) for entry in entries]
    axes.set_yticks(range(len(entries)), names, fontsize=9, color=INK)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)


# A figure beside its mark.
_FIGURE = {"fontsize": 8.5, "color": MUTED, "va": "center"}


def _between(values: Sequence[float], place: float) -> float:
    """The value at a place between two of them."""
    place = min(max(place, 0.0), len(values) - 1.0)
    left = int(place)
    right = min(left + 1, len(values) - 1)
    return values[left] + (values[right] - values[left]) * (place - left)
