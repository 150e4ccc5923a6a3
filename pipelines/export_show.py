"""What a pipeline says at its end, and its exit code."""

from __future__ import annotations  # naming a Keras-side class in a signature must not import TensorFlow

from collections.abc import Callable
from pathlib import Path

import rich.box
from rich.table import Table

import mobileprune as mp
from mobileprune.console import exit_code, make_console
from mobileprune.errors import SettingsError
from mobileprune.recommend import Limits, baseline_of, meets
from mobileprune.report.markdown import table_head, table_row
from mobileprune.report.words import comparison_with_control, goals, notes
from mobileprune.run_records import Manifest


def show(manifest: Manifest, folder: Path) -> None:
    """Prints the table and the recommended files."""
    console = make_console(132)
    table = Table(box=rich.box.SIMPLE_HEAD, pad_edge=False)
    for number, name in enumerate(("model", "recipe", *table_head(manifest)[1:])):
        table.add_column(name, justify="left" if number < 2 else "right", no_wrap=True)
    baseline = baseline_of(manifest.variants)
    for entry in manifest.variants:
        style = "bold" if entry.file in manifest.recommended.values() else ""
        table.add_row(entry.model, entry.recipe, *table_row(entry, baseline)[1:], style=style)
    console.print(table)
    for words, entry in goals(manifest):
        console.print(f"{words}: {folder / entry.file}")
    if sentence := comparison_with_control(manifest).replace("**", ""):
        console.print(sentence)
    for note in notes(manifest):
        console.print(note)
    for rejected in manifest.rejected:
        console.print(f"Not shipped: {rejected.file}: {rejected.reason}")
    if manifest.dataset["skipped"]:
        console.print(f"Skipped {len(manifest.dataset['skipped'])} images; report.md names them.")
    console.print(f"Report: {folder / 'report.html'}")


def gate(manifest: Manifest, limits: Limits) -> int:
    """The exit code: 3 when limits were given and no file meets them all."""
    if not limits.any():
        return 0
    good = meets(manifest, limits)
    print(f"Within all limits: {', '.join(good)}" if good else "No file is within all limits.")
    return 0 if good else 3


def run_pipeline(arguments: list[str], job: Callable[[], Manifest], folder: Callable[[], Path], limits: Limits) -> int:
    """Runs a pipeline for the command line and returns its exit code: bad input is one line on stderr and a 2."""

    def work() -> int:
        if len(arguments) > 1:
            raise SettingsError(f"Unexpected argument {arguments[1]!r}; see --help.")
        mp.quiet_tensorflow()
        manifest = job()
        show(manifest, folder())
        return gate(manifest, limits)

    return exit_code(work)
