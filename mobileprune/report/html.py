"""A run's manifest as `report.html`: one file, no network, readable on a phone and in print."""

import dataclasses
from pathlib import Path

import jinja2

from mobileprune.files import write_bytes
from mobileprune.recommend import baseline_of, measured
from mobileprune.report import tables
from mobileprune.report.layer_changes import MOST_LAYERS, bars, pruned, strips, unpruned
from mobileprune.report.markdown import table_head, table_row
from mobileprune.report.pareto import plot
from mobileprune.report.timing import distributions, loading
from mobileprune.report.training import curves
from mobileprune.report.words import (
    Choice,
    accuracy_change,
    chance,
    choices,
    comparison_with_control,
    devices,
    latency_on,
    milliseconds,
    notes,
    percent,
    runtimes,
    size,
    times_faster,
    times_smaller,
)
from mobileprune.run_records import Manifest, VariantRecord

FILE = "report.html"
# Devices and pruned models that get plots of their own; the tables have all.
_MOST_DEVICES = 4
_MOST_MODELS = 4


@dataclasses.dataclass(frozen=True)
class Plot:
    """A drawing with what stands above and below it."""

    title: str
    drawing: str
    caption: str = ""


@dataclasses.dataclass(frozen=True)
class Card:
    """A recommended file: what it is the best at, the figure that says so, and all the others."""

    goals: str
    headline: str
    entry: VariantRecord
    facts: tuple[tuple[str, str, str], ...]


@dataclasses.dataclass(frozen=True)
class Timing:
    """The latencies on one device."""

    device: str
    plots: tuple[Plot, ...]
    table: tables.Table


def write_html(folder: Path, manifest: Manifest) -> Path:
    """Writes `report.html` and returns its path."""
    baseline = baseline_of(manifest.variants)
    base_layers = unpruned(manifest)
    layers = len(base_layers.layers) if base_layers else 0
    skipped, more = tables.skipped(manifest)
    facts = {
        "manifest": manifest,
        "baseline": baseline,
        "baseline_facts": ", ".join(value for _, value, _ in _facts(manifest, baseline, baseline)),
        "choices": [_card(manifest, choice, baseline) for choice in choices(manifest)],
        "chance": f"{chance(manifest, baseline):.1f}" if chance(manifest, baseline) else "",
        "control": comparison_with_control(manifest).replace("**", ""),
        "has_control": any(entry.model == "control" for entry in manifest.variants),
        "runtimes": runtimes(manifest),
        "pareto": pareto_plots(manifest),
        "head": ("model", "recipe", *table_head(manifest, loading=True)[1:]),
        "rows": [(entry, table_row(entry, baseline, loading=True)[1:]) for entry in manifest.variants],
        "recommended": set(manifest.recommended.values()),
        "layer_plots": _layer_plots(manifest),
        "layers": tables.layers(manifest),
        "most_layers": MOST_LAYERS if layers > MOST_LAYERS else 0,
        "all_layers": layers,
        "curves": [Plot(title, drawing) for title, drawing in curves(manifest)],
        "training": tables.training(manifest),
        "timings": [_timing(manifest, device, number) for number, device in enumerate(devices(manifest))],
        "notes": notes(manifest),
        "skipped": skipped,
        "more_skipped": more,
        "environment": tables.environment(manifest),
        "percent": percent,
    }
    sections = [
        ("trade-offs", "Accuracy, size, latency"),
        ("files", "Files"),
        *([("layers", "Layers")] if facts["layer_plots"] else []),
        ("training", "Training"),
        *([("latency", "Latency")] if facts["timings"] else []),
        ("left-out", "Left out"),
        ("environment", "Made by"),
    ]
    text = page("report.html.jinja").render(**facts, sections=sections)
    return write_bytes(folder / FILE, text.encode())


def page(template: str) -> jinja2.Template:
    """A template of the package; in all but Markdown whatever is put in is text, not markup."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("mobileprune.report", ""),
        autoescape=not template.endswith(".md.jinja"),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template)


def pareto_plots(manifest: Manifest) -> list[Plot]:
    """Accuracy against size, and against the latency on each device."""
    variants = manifest.variants
    plots = [
        Plot("Accuracy and size", plot(manifest, variants, [entry.bytes / 1000 for entry in variants], "size, kB"))
    ]
    for device in devices(manifest)[:_MOST_DEVICES]:
        timed = [(entry, time) for entry in variants if (time := latency_on(entry, device))]
        costs = [time.p50_ms for _, time in timed]
        where = "this host" if device == devices(manifest)[0] else device
        drawing = plot(manifest, [entry for entry, _ in timed], costs, f"latency on {where}, ms")
        plots.append(Plot(f"Accuracy and latency on {where}", drawing))
    return plots


def _layer_plots(manifest: Manifest) -> list[Plot]:
    base, overview = unpruned(manifest), strips(manifest)
    if base is None or not overview:
        return []
    legend = "Pale: all is left; blue: all is gone. A dot: the layer creates no channels of its own."
    each = [Plot(f"{base.name} → {stage.name}", bars(base, stage)) for stage in pruned(manifest)[:_MOST_MODELS]]
    return [Plot("What is gone, layer by layer", overview, legend), *each]


def _timing(manifest: Manifest, device: str, number: int) -> Timing:
    plots: tuple[Plot, ...] = ()
    if number < _MOST_DEVICES and (drawing := distributions(manifest, device, number)):
        spread = "The mark is the median, the bar the middle half, the line the middle 90% of single inferences."
        loaded = "What an app waits for once, unpacking sparse weights included."
        first = Plot(f"Inference: {device}", drawing, spread)
        plots = (first, Plot("Loading", loading(manifest, device, number), loaded))
    return Timing(device, plots, tables.latencies(manifest, device))


def _card(manifest: Manifest, choice: Choice, baseline: VariantRecord) -> Card:
    entry = choice.entry
    speed = times_faster(entry.latency[0] if entry.latency else None)
    if entry.file == baseline.file or choice.goals.startswith("Most"):
        headline = f"{percent(measured(entry))} {'right' if entry.accuracy is not None else 'agreement'}"
    elif choice.goals.startswith("Fastest") and speed:
        headline = speed
    else:
        headline = times_smaller(entry, baseline)
    return Card(choice.goals, headline, entry, _facts(manifest, entry, baseline))


def _facts(manifest: Manifest, entry: VariantRecord, baseline: VariantRecord) -> tuple[tuple[str, str, str], ...]:
    """Name, figure and how it compares, of a file's size, latency and accuracy."""
    itself = entry.file == baseline.file
    found = [("size", size(entry.bytes), "" if itself else times_smaller(entry, baseline))]
    if entry.latency:
        time = entry.latency[0]
        found.append(("latency", milliseconds(time.p50_ms), "" if itself else times_faster(time)))
    quality = "accuracy" if entry.accuracy is not None else "agreement"
    change = "" if itself else accuracy_change(manifest, entry, baseline)
    return (*found, (quality, percent(measured(entry)), change))
