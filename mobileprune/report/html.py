"""A run's manifest as `report.html`: one file, no network, readable on a phone and in print."""

from pathlib import Path
from typing import Any

import jinja2

from mobileprune.files import write_bytes
from mobileprune.recommend import baseline_of, measured
from mobileprune.records import Manifest, VariantRecord
from mobileprune.report.drawing import svg
from mobileprune.report.markdown import table_head, table_row
from mobileprune.report.words import comparison_with_control, goals, notes, percent, runtimes

FILE = "report.html"
_MARKERS = {"float32": "o", "float16": "s", "dynamic_int8": "^", "int8": "D"}


def write_html(folder: Path, manifest: Manifest) -> Path:
    """Writes `report.html` and returns its path."""
    environment = jinja2.Environment(loader=jinja2.PackageLoader("mobileprune.report", ""), autoescape=True)
    baseline = baseline_of(manifest.variants)
    timed = [entry for entry in manifest.variants if entry.latency]
    plots = [plot(manifest, list(manifest.variants), [entry.bytes / 1000 for entry in manifest.variants], "size, kB")]
    if timed:
        plots.append(plot(manifest, timed, [entry.latency[0].p50_ms for entry in timed], "latency on this host, ms"))
    text = environment.get_template("report.html.jinja").render(
        manifest=manifest,
        baseline=baseline,
        head=("model", "recipe", *table_head(manifest, loading=True)[1:]),
        rows=[(entry, table_row(entry, baseline, loading=True)[1:]) for entry in manifest.variants],
        recommended=set(manifest.recommended.values()),
        goals=goals(manifest),
        control=comparison_with_control(manifest).replace("**", ""),
        notes=notes(manifest),
        runtimes=runtimes(manifest),
        plots=plots,
        percent=percent,
    )
    return write_bytes(folder / FILE, text.encode())


def plot(manifest: Manifest, entries: list[VariantRecord], costs: list[float], cost_name: str) -> str:
    """Accuracy against a cost as an SVG element; one colour a model, one marker a recipe."""
    from matplotlib.lines import Line2D
    from matplotlib.ticker import FuncFormatter

    models = list(dict.fromkeys(entry.model for entry in manifest.variants))

    def draw(figure: Any, axes: Any) -> None:
        for entry, cost in zip(entries, costs, strict=True):
            axes.plot(
                cost,
                100 * measured(entry),
                _MARKERS.get(entry.recipe, "x"),
                color=f"C{models.index(entry.model)}",
                markersize=8,
                alpha=0.8,
            )
        handles = [Line2D([], [], color=f"C{at}", linewidth=4, label=model) for at, model in enumerate(models)]
        handles += [
            Line2D([], [], color="gray", marker=_MARKERS.get(recipe, "x"), linestyle="", label=recipe)
            for recipe in dict.fromkeys(entry.recipe for entry in entries)
        ]
        figure.legend(handles=handles, fontsize="small", loc="outside right upper")
        axes.set_xscale("log")
        for one in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
            one(FuncFormatter(lambda value, _: f"{value:,.6g}"))
        axes.tick_params(axis="x", which="both", labelsize="small", rotation=45)
        axes.set_xlabel(cost_name)
        axes.set_ylabel("test accuracy, %" if entries[0].accuracy is not None else "top-1 agreement, %")
        axes.grid(alpha=0.3, which="both")

    return svg((7, 4), draw)
