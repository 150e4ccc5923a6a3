"""Accuracy against what a file costs, as a picture: every file, the best ones by name."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mobileprune.recommend import baseline_of, measured
from mobileprune.report.drawing import COLORS, CONTROL, FAINT, INK, MUTED, page_svg, plain_text
from mobileprune.report.labels import Box, place_labels
from mobileprune.report.words import chance, milliseconds, percent, size
from mobileprune.run_records import Manifest, VariantRecord

# Drawn for a phone: at that width a point of the drawing is a pixel of the page. On a desktop two stand side by side.
WIDTH = 5.0
_HEIGHT = 4.6
_MARKERS = {
    "float32": "o",
    "float16": "s",
    "dynamic_int8": "^",
    "int8": "D",
    "float16_sparse": "P",
    "float32_sparse": "X",
    "int8_float_io": "d",
    "uint8_io": "v",
    "int8_mixed": "h",
    "int16x8": "<",
    "weight_only_int8": ">",
    "dynamic_int4": "p",
}
_OTHER = "*"
# How far from its point a name may stand that is not among the important ones, in points of the drawing.
_NEAR = 34.0
# Half of a mark's width, in points of the drawing.
_MARK = 4.5
_NARROWER = "control"


def model_colors(models: Sequence[str]) -> Mapping[str, str]:
    """A colour for each model, in their order; the narrower network trained for comparison has one of its own."""
    pruned = [model for model in dict.fromkeys(models) if model != _NARROWER]
    return {model: COLORS[at % len(COLORS)] for at, model in enumerate(pruned)} | {_NARROWER: CONTROL}


def front(costs: Sequence[float], gains: Sequence[float]) -> list[int]:
    """Which points no other beats in both, from cheap to dear.

    Example:
        >>> front([3, 1, 2], [0.9, 0.8, 0.7])
        [1, 0]
    """
    found: list[int] = []
    for at in sorted(range(len(costs)), key=lambda at: (costs[at], -gains[at])):
        if not found or gains[at] > gains[found[-1]]:
            found.append(at)
    return found


def plot(manifest: Manifest, entries: Sequence[VariantRecord], costs: Sequence[float], cost_name: str) -> str:
    """Accuracy against a cost as an SVG element; one colour a model, one marker a recipe, the Pareto front as a line.

    Args:
        manifest: the run.
        entries: the files to show.
        costs: of each, positive.
        cost_name: with the unit, below the axis.
    """
    gains = [100 * measured(entry) for entry in entries]
    best = front(costs, gains)
    base = baseline_of(manifest.variants)
    wide = chance(manifest, base)
    tips = {f"point-{at}": tip(entry) for at, entry in enumerate(entries)}

    def draw(figure: Any, axes: Any) -> None:
        axes.set_xscale("log")
        limits(axes, costs, [*gains, 100 * measured(base) - wide, 100 * measured(base) + wide])
        if wide:
            low, high = 100 * measured(base) - wide, 100 * measured(base) + wide
            axes.axhspan(low, high, color=FAINT, linewidth=0, zorder=0)
        axes.step(
            [costs[at] for at in best],
            [gains[at] for at in best],
            where="post",
            color=MUTED,
            linewidth=1,
            linestyle=(0, (4, 2)),
            zorder=1,
        )
        colors = model_colors([entry.model for entry in manifest.variants])
        for at, (entry, cost, gain) in enumerate(zip(entries, costs, gains, strict=True)):
            axes.plot(cost, gain, gid=f"point-{at}", **_mark(entry, colors, size=8), zorder=3)
        _legend(figure, entries, colors)
        axes.set_xlabel(plain_text(cost_name))
        axes.set_ylabel("test accuracy, %" if base.accuracy is not None else "top-1 agreement, %")
        axes.grid(axis="both", which="major")
        ticks(axes)
        _names(figure, axes, entries, costs, gains, _important(manifest, entries, best), best)

    name = "pareto-" + "".join(each for each in cost_name.lower() if each.isascii() and each.isalnum())
    words = f"{len(entries)} files: accuracy against {cost_name}."
    return page_svg(name, (WIDTH, _HEIGHT), draw, words, tips)


def tip(entry: VariantRecord) -> str:
    """What a file is, in one line."""
    times = f", {milliseconds(entry.latency[0].p50_ms)}" if entry.latency else ""
    return f"{entry.model} {entry.recipe}: {percent(measured(entry))}, {size(entry.bytes)}{times}"


def _mark(entry: VariantRecord, colors: Mapping[str, str], size: float) -> dict[str, Any]:
    color = colors[entry.model]
    hollow = entry.model == _NARROWER
    return {
        "marker": _MARKERS.get(entry.recipe, _OTHER),
        "color": color,
        "markerfacecolor": "none" if hollow else color,
        "markeredgecolor": color,
        "markeredgewidth": 1.6 if hollow else 0.5,
        "markersize": size - 1 if hollow else size,
        "alpha": 1.0 if hollow else 0.85,
        "linestyle": "",
    }


def limits(axes: Any, costs: Sequence[float], gains: Sequence[float]) -> None:
    """Room around all points; a difference of accuracy that is next to nothing stays so to the eye."""
    margin = 0.12 * max(max(gains) - min(gains), 0.5)
    axes.set_ylim(min(gains) - margin, max(gains) + margin)
    factor = max(1.15, (max(costs) / min(costs)) ** 0.08)
    axes.set_xlim(min(costs) / factor, max(costs) * factor)


def ticks(axes: Any) -> None:
    """Few and round figures along a logarithmic axis of costs."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

    low, high = axes.get_xlim()
    subs = (1, 2, 5) if high / low < 300 else (1,)
    narrow = MaxNLocator(5, steps=[1, 2, 2.5, 5, 10])
    axes.xaxis.set_major_locator(narrow if high / low < 4 else LogLocator(base=10, subs=subs, numticks=12))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))


def _legend(figure: Any, entries: Sequence[VariantRecord], colors: Mapping[str, str]) -> None:
    from matplotlib.lines import Line2D

    models, recipes = [], []
    for model in dict.fromkeys(entry.model for entry in entries):
        face = "none" if model == _NARROWER else colors[model]
        models.append(
            Line2D(
                [],
                [],
                color=colors[model],
                marker="o",
                markerfacecolor=face,
                markeredgewidth=1.6,
                linestyle="",
                label=plain_text(model, 24),
            )
        )
    for recipe in dict.fromkeys(entry.recipe for entry in entries):
        recipes.append(
            Line2D(
                [],
                [],
                color=MUTED,
                marker=_MARKERS.get(recipe, _OTHER),
                linestyle="",
                label=plain_text(recipe, 24),
            )
        )
    # Models to the left and recipes to the right: Matplotlib fills column by column.
    longest = max(len(str(each.get_label())) for each in (*models, *recipes))
    each = 2 if longest <= 16 else 1
    height = max(-(-len(block) // each) for block in (models, recipes))
    blank = [Line2D([], [], linestyle="", label=" ")]
    handles = [line for block in (models, recipes) for line in block + blank * (each * height - len(block))]
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=2 * each,
        labelcolor=INK,
        handletextpad=0.2,
        columnspacing=1.2,
        labelspacing=0.35,
    )


def _important(manifest: Manifest, entries: Sequence[VariantRecord], best: Sequence[int]) -> list[int]:
    """Which files are named first: those to take, what they are compared with, and the front."""
    recommended = set(manifest.recommended.values())
    base = baseline_of(manifest.variants).file
    order: list[Callable[[int], bool]] = [
        lambda at: entries[at].file in recommended,
        lambda at: entries[at].file == base,
        lambda at: at in best,
        lambda at: entries[at].model == _NARROWER and entries[at].recipe in ("float32", "int8"),
    ]
    return list(dict.fromkeys(at for wanted in order for at in range(len(entries)) if wanted(at)))


def _names(
    figure: Any,
    axes: Any,
    entries: Sequence[VariantRecord],
    costs: Sequence[float],
    gains: Sequence[float],
    important: Sequence[int],
    best: Sequence[int],
) -> None:
    """Writes the names where they cover nothing; of the less important ones those that fit beside their points."""
    figure.draw_without_rendering()  # now the layout is final
    figure.set_layout_engine("none")
    points = axes.transData.transform(list(zip(costs, gains, strict=True)))
    scale = figure.dpi / 72
    others = [at for at in range(len(entries)) if at not in important]
    order = [*important, *others]
    texts = [
        axes.text(0, 0, plain_text(f"{entries[at].model} {entries[at].recipe}", 30), fontsize=9, color=INK, zorder=4)
        for at in order
    ]
    renderer = figure.canvas.get_renderer()
    extents = [text.get_window_extent(renderer) for text in texts]
    frame = axes.get_window_extent(renderer)
    centres = [(float(across) / scale, float(up) / scale) for across, up in points]
    pairs = list(itertools.pairwise(best))
    corners = [(centres[right][0], centres[left][1]) for left, right in pairs]
    steps = [
        line
        for at, corner in enumerate(corners)
        for line in ((centres[best[at]], corner), (corner, centres[best[at + 1]]))
    ]
    found = place_labels(
        [centres[at] for at in order],
        [(extent.width / scale + 2, extent.height / scale + 1) for extent in extents],
        Box(frame.x0 / scale + 1, frame.y0 / scale + 1, frame.x1 / scale - 1, frame.y1 / scale - 1),
        [Box(x - _MARK, y - _MARK, x + _MARK, y + _MARK) for x, y in centres],
        [math.inf] * len(important) + [_NEAR] * len(others),
        steps,
    )
    back = axes.transData.inverted()
    for at, text, place in zip(order, texts, found, strict=True):
        if place is None:
            text.remove()
            continue
        corner = ((place.box.left + 1) * scale, (place.box.low + 1) * scale)
        text.set_position(back.transform(corner))
        text.set_verticalalignment("bottom")
        if place.leader is not None:
            end = back.transform((place.leader[0] * scale, place.leader[1] * scale))
            axes.plot([costs[at], end[0]], [gains[at], end[1]], color=MUTED, linewidth=0.6, zorder=2)
