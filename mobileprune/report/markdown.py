"""A run's manifest as `report.md`, and its table for the terminal."""

from pathlib import Path

import jinja2

from mobileprune.files import write_bytes
from mobileprune.recommend import baseline_of, measured
from mobileprune.report import tables
from mobileprune.report.layer_changes import MOST_LAYERS
from mobileprune.report.words import (
    comparison_with_control,
    devices,
    gained,
    goals,
    milliseconds,
    notes,
    percent,
    runtimes,
    size,
    versus,
)
from mobileprune.run_records import Manifest, VariantRecord

FILE = "report.md"


def table_head(manifest: Manifest, loading: bool = False) -> tuple[str, ...]:
    """The columns of the variants' table; `loading` adds what a file takes before its first answer."""
    labelled = any(entry.accuracy is not None for entry in manifest.variants)
    return (
        *("file", "size", "smaller", "gzip", "accuracy" if labelled else "agreement", "change"),
        *("latency", "of base", "MACs", "zeros"),
        *(("load", "memory") if loading else ()),
    )


def table_row(entry: VariantRecord, baseline: VariantRecord, loading: bool = False) -> tuple[str, ...]:
    """One variant's cells, in the order of `table_head`."""
    time = entry.latency[0] if entry.latency else None
    return (
        entry.file,
        size(entry.bytes),
        f"{baseline.bytes / entry.bytes:.1f}×",
        size(entry.gzip_bytes),
        percent(measured(entry)),
        f"{100 * (measured(entry) - measured(baseline)):+.1f}",
        milliseconds(time.p50_ms) if time else "failed",
        versus(time) if time else "",
        f"{entry.macs / 1e6:.3g} M",
        f"{entry.sparsity:.0%}",
        *((milliseconds(time.init_ms), size(time.peak_memory_bytes)) if loading and time else ()),
        *(("", "") if loading and not time else ()),
    )


def write_markdown(folder: Path, manifest: Manifest) -> Path:
    """Writes `report.md` and returns its path."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("mobileprune.report", ""), trim_blocks=True, lstrip_blocks=True
    )
    baseline = baseline_of(manifest.variants)
    text = environment.get_template("report.md.jinja").render(
        manifest=manifest,
        head=table_head(manifest, loading=True),
        baseline=baseline,
        rows=[table_row(entry, baseline, loading=True) for entry in manifest.variants],
        goals=goals(manifest),
        control=comparison_with_control(manifest),
        notes=notes(manifest),
        runtimes=runtimes(manifest),
        percent=percent,
        gained=gained(manifest),
        layers=tables.layers(manifest),
        most_layers=MOST_LAYERS,
        training=tables.training(manifest),
        latencies=[(device, tables.latencies(manifest, device)) for device in devices(manifest)],
        skipped=tables.skipped(manifest)[0],
        more_skipped=tables.skipped(manifest)[1],
        environment=tables.environment(manifest),
    )
    return write_bytes(folder / FILE, text.encode())
