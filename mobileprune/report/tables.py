"""A run's facts as tables of words, the same in every report."""

import dataclasses
from collections.abc import Sequence

from mobileprune.report.layer_changes import changes, shown, unpruned
from mobileprune.report.timing import spread
from mobileprune.report.training import best_epoch, trained
from mobileprune.report.words import devices, latency_on, milliseconds, percent, runtimes, versus
from mobileprune.run_records import LayerFacts, Manifest, Stage, VariantRecord

# More lines than that nobody reads in a report; the manifest has them all.
MOST_SKIPPED = 200
# So many epochs of a stage stand in a line.
_MOST_EPOCHS = 20


@dataclasses.dataclass(frozen=True)
class Table:
    """Cells of text: a head, and rows as long as it."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def layers(manifest: Manifest) -> Table:
    """What each model has of each layer: channels, parameters and the share of zeros."""
    base = unpruned(manifest)
    if base is None:
        return Table((), ())
    others = [stage for stage in manifest.stages if stage.layers and stage is not base]
    found = [{change.name: change.after for change in changes(base, stage)} for stage in others]
    rows = [
        (row.name, row.before.kind, _layer(row.before), *(_layer(each[row.name]) for each in found))
        for row in shown(changes(base, base))
    ]
    return Table(("layer", "kind", base.name, *(stage.name for stage in others)), tuple(rows))


def _layer(facts: LayerFacts | None) -> str:
    if facts is None:
        return "–"
    channels = f"{facts.channels:,} ch, " if facts.channels else ""
    zeros = f", {facts.sparsity:.0%} zeros" if facts.sparsity >= 0.005 else ""
    return f"{channels}{facts.params:,} params{zeros}"


def training(manifest: Manifest) -> Table:
    """How each stage's training went, on the validation images."""
    head = ("stage", "epochs", "best", "in epoch", "at the end", "loss at the end", "by epoch, %")
    return Table(head, tuple(_training(stage) for stage in trained(manifest)))


def _training(stage: Stage) -> tuple[str, ...]:
    best, last = best_epoch(stage), stage.curve[-1]
    step = max(1, -(-len(stage.curve) // _MOST_EPOCHS))
    some = [epoch.validation_accuracy for epoch in stage.curve[::step]]
    return (
        stage.name,
        f"{last.epoch}",
        percent(best.validation_accuracy) if best else "–",
        f"{best.epoch}" if best else "–",
        percent(last.validation_accuracy),
        "–" if last.validation_loss is None else f"{last.validation_loss:.3f}",
        " ".join("–" if value is None else f"{100 * value:.1f}" for value in some) + (" …" if step > 1 else ""),
    )


def latencies(manifest: Manifest, device: str) -> Table:
    """Single inferences of each file on one of `words.devices`: where 5%, 25%, … of them lie below."""
    head = ("latency of", "5%", "25%", "median", "75%", "95%", "99%", "runs", "of base")
    rows = [_latency(entry, device) for entry in manifest.variants if latency_on(entry, device)]
    return Table(head, tuple(rows))


def _latency(entry: VariantRecord, device: str) -> tuple[str, ...]:
    time = latency_on(entry, device)
    if time is None:
        return (entry.file, *[""] * 8)
    known = spread(time)
    low, quarter, most, high = (
        (milliseconds(each) for each in (known.low, known.quarter, known.three_quarters, known.high))
        if known
        else ("–", "–", "–", "–")
    )
    middle, last = milliseconds(time.p50_ms), milliseconds(time.p99_ms)
    return (entry.file, low, quarter, middle, most, high, last, f"{time.runs:,}", versus(time))


def environment(manifest: Manifest) -> Table:
    """What the figures depend on beside the code."""
    images, contract, host = manifest.dataset["images"], manifest.preprocess, manifest.host
    made_with = {"mobileprune": manifest.mobileprune, **manifest.versions}
    rows = [
        ("data", f"{manifest.dataset['name']}: {manifest.dataset['source']}"),
        ("images", ", ".join(f"{count:,} {split}" for split, count in images.items())),
        ("classes", f"{len(manifest.labels):,}"),
        (
            "an image becomes",
            f"{contract.height}×{contract.width} {contract.color}, {contract.fit}, {contract.resize}"
            f"{' with antialiasing' if contract.antialias else ''}, (x − {_values(contract.mean)}) ÷ "
            f"{_values(contract.std)}{'' if contract.exif else ', EXIF orientation ignored'}",
        ),
        ("made on", f"{host['device']}, {host['cores']} cores, {host['system']}, Python {host['python']}"),
        ("timed on", "; ".join(devices(manifest)) or "nothing"),
        ("runs right on", runtimes(manifest)),
        ("made with", ", ".join(f"{name} {version}" for name, version in made_with.items())),
    ]
    return Table(("", ""), tuple(rows))


def _values(values: Sequence[float]) -> str:
    return f"{values[0]:g}" if len(values) == 1 else f"({', '.join(f'{value:g}' for value in values)})"


def skipped(manifest: Manifest) -> tuple[list[tuple[str, str]], int]:
    """The skipped images with their reasons, no more than a reader can use, and how many there are beside them."""
    found = [(entry["file"], entry["reason"]) for entry in manifest.dataset["skipped"]]
    return found[:MOST_SKIPPED], max(0, len(found) - MOST_SKIPPED)
