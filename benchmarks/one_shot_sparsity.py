"""What is left of a network right after most of its weights are zeroed, before any training.

  python benchmarks/one_shot_sparsity.py [--patterns] [--finetune_epochs=4]
  python benchmarks/one_shot_sparsity.py --classifier=classifier.keras --photos=folder --sparsities=0.5,0.8

Zeroes 60, 80 and 90% of the weights of the 1×1 convolutions of benchmarks/models/fashion_net.keras, by magnitude and by
`mp.prune_one_shot`, with and without new batch-norm statistics, and counts how many of the 10,000 test images of
Fashion-MNIST are still classified right. Pruning and recalibration see 1,024 training images without their labels.

`--patterns` adds 2:4 and blocks at one half. `--finetune_epochs` compares two ways to train at one sparsity: the usual
schedule, which raises it while the network trains for so many epochs, and half of these epochs on what one shot left,
its zeros held (both: Adam from 1e-3, cosine decay, the 60,000 images as they are, batches of 128).

`--classifier` and `--photos` take any classifier and photographs that nobody has labelled, as in one_shot.py: the
figure is the share of their crops to which the sparse network gives the same top-1 class as the dense one.

The table is markdown; --out_dir gets it with the same figures as JSON and as a plot.
"""

import dataclasses
import gc
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fashion_net
import keras
import matplotlib
import numpy as np
import subjects
from absl import app, flags
from subjects import Subject

import mobileprune as mp
from mobileprune.errors import MobilePruneError

matplotlib.use("Agg")
from matplotlib import pyplot as plt

HERE = Path(__file__).resolve().parent

WAYS: dict[str, dict[str, Any]] = {
    "magnitude": {"method": "magnitude"},
    "second order (pruned layers only)": {"refit_dense": False},
    "second order": {},
    "second order (global)": {"allocation": "global"},
}
PATTERN_WAYS: dict[str, dict[str, Any]] = {
    "2:4": {"sparsity_m_by_n": (2, 4)},
    "blocks of 1 input × 4 outputs": {"block_size": (1, 4)},
    "blocks of 4 inputs × 1 output": {"block_size": (4, 1)},
}

SPARSITIES = flags.DEFINE_list("sparsities", ["0.6", "0.8", "0.9"], "Shares of zeros.")
CHOSEN = flags.DEFINE_multi_enum("way", list(WAYS), list(WAYS), "How weights are chosen; again for each.")
PATTERNS = flags.DEFINE_bool("patterns", False, "Also 2:4 and blocks, at one half.")
FINETUNE_EPOCHS = flags.DEFINE_integer("finetune_epochs", 0, "Of the usual schedule; an even number.", lower_bound=0)
FINETUNE_SPARSITY = flags.DEFINE_float("finetune_sparsity", 0.8, "Share of zeros while fine-tuning.")


@dataclasses.dataclass
class Row:
    """One sparse network: what is left as pruned and with new batch-norm statistics; seconds are wall time."""

    way: str
    target: float
    zeros: float
    score: float
    recalibrated: float
    seconds: float


def wanted(subject: Subject, sparsity: float) -> dict[str, float]:
    """The 1×1 convolutions, all with one sparsity."""
    pointwise = (layer for layer in subject.model.layers if type(layer) is keras.layers.Conv2D)
    return {layer.name: sparsity for layer in pointwise if layer.kernel_size == (1, 1)}


def zeros(subject: Subject, sparse: Any) -> float:
    """The share of zeros in the weights of the 1×1 convolutions."""
    kernels = [np.asarray(sparse.get_layer(name).kernel) for name in wanted(subject, 0.0)]
    return 1 - sum(map(np.count_nonzero, kernels)) / sum(kernel.size for kernel in kernels)


def prune(subject: Subject) -> Iterator[Row]:
    """Every way at every sparsity, then the patterns."""
    for way in CHOSEN.value:
        for target in map(float, SPARSITIES.value):
            yield _pruned(subject, way, target, WAYS[way])
    if PATTERNS.value:
        for pattern, options in PATTERN_WAYS.items():
            for method in ("magnitude", "second_order"):
                way = f"{method.replace('_', ' ')}, {pattern}"
                yield _pruned(subject, way, 0.5, {**options, "method": method})


def _pruned(subject: Subject, way: str, target: float, options: dict[str, Any]) -> Row:
    started = time.perf_counter()
    sparse = mp.prune_one_shot(subject.model, wanted(subject, target), subject.calibration, **options)
    seconds = time.perf_counter() - started
    score = subject.judge(sparse)
    mp.recalibrate(sparse, subject.calibration)
    row = Row(way, target, zeros(subject, sparse), score, subject.judge(sparse), seconds)
    _say(f"{way} {target:g}: {row.score:.4f}, recalibrated {row.recalibrated:.4f}, {seconds:.1f} s")
    keras.backend.clear_session()
    gc.collect()
    return row


def fine_tune(subject: Subject, data: fashion_net.Data) -> list[dict[str, Any]]:
    """The usual schedule for all epochs, and one shot with half of them."""
    sparsity, epochs = FINETUNE_SPARSITY.value, FINETUNE_EPOCHS.value
    rows = []
    for start, length in (("dense", epochs), ("one shot", epochs // 2)):
        started = time.perf_counter()
        steps = length * -(-len(data.train_images) // fashion_net.BATCH_SIZE)
        if start == "dense":
            # The last quarter is left for what remains to settle.
            schedule = mp.PolynomialDecay(0.0, sparsity, begin_step=0, end_step=steps * 3 // 4, frequency=50)
            chosen = dict.fromkeys(wanted(subject, sparsity), schedule)
            wrapped, before = mp.prune_low_magnitude(subject.model, chosen), None
        else:
            sparse = mp.prune_one_shot(subject.model, wanted(subject, sparsity), subject.calibration)
            wrapped, before = mp.hold_zeros(sparse), subject.judge(sparse)
        subjects.fine_tune(wrapped, subject, length, (mp.UpdatePruningStep(),))
        trained = mp.strip_pruning(wrapped)
        row = {"start": start, "epochs": length, "before": before, "zeros": zeros(subject, trained)}
        rows.append({**row, "score": subject.judge(trained), "seconds": time.perf_counter() - started})
        _say(f"fine-tuned: {rows[-1]}")
    return rows


def table(rows: list[Row], trained: list[dict[str, Any]], base: float, subject: Subject) -> str:
    """The figures as markdown: a line for each way, a column for each sparsity."""
    targets = sorted(map(float, SPARSITIES.value))
    lines = [
        f"{subject.name}: {subject.measure}, {100 * base:.2f}% before; {len(subject.calibration)} calibration images.",
        "",
        "| zeros of the 1×1 convolutions chosen by | batch norms | "
        + " | ".join(f"{100 * target:.0f}%" for target in targets)
        + " | seconds |",
        f"|{'---|' * (3 + len(targets))}",
    ]
    for way in CHOSEN.value:
        own = {row.target: row for row in rows if row.way == way}
        seconds = f"{np.mean([row.seconds for row in own.values()]):.1f}"
        for norms, scores in (
            ("as they were", [own[target].score for target in targets]),
            ("recalibrated", [own[target].recalibrated for target in targets]),
        ):
            lines.append(f"| {' | '.join([way, norms, *(f'{100 * score:.1f}' for score in scores), seconds])} |")
    patterned = [row for row in rows if row.way not in WAYS]
    if patterned:
        lines += ["", "| half of the weights go, by | as pruned | recalibrated |", "|---|---|---|"]
        lines += [f"| {row.way} | {100 * row.score:.1f} | {100 * row.recalibrated:.1f} |" for row in patterned]
    if trained:
        lines += ["", f"| {100 * FINETUNE_SPARSITY.value:.0f}% zeros, start | epochs | before | trained | seconds |"]
        lines.append("|---|---|---|---|---|")
    for row in trained:
        before = "-" if row["before"] is None else f"{100 * row['before']:.1f}"
        cells = [row["start"], str(row["epochs"]), before, f"{100 * row['score']:.2f}", f"{row['seconds']:.0f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def plot(rows: list[Row], base: float, subject: Subject, path: Path) -> None:
    """What is left over the share of zeros, a line for each way."""
    figure, panel = plt.subplots(figsize=(5, 4))
    for number, way in enumerate(CHOSEN.value):
        own = sorted((row for row in rows if row.way == way), key=lambda row: row.zeros)
        shares = [0.0, *(100 * row.zeros for row in own)]
        panel.plot(shares, [base, *(row.score for row in own)], "o-", color=f"C{number}", label=way, markersize=3)
        panel.plot(shares, [base, *(row.recalibrated for row in own)], ":", color=f"C{number}")
    panel.set_xlabel("% zeros in the 1×1 convolutions")
    panel.set_ylabel(subject.measure)
    panel.grid(alpha=0.3)
    panel.legend(fontsize=7, title="dotted: batch norms recalibrated", title_fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main(_: list[str]) -> int:
    """Measures, prints the table and writes it with JSON and a plot."""
    mp.quiet_tensorflow()
    if FINETUNE_EPOCHS.value % 2 or (FINETUNE_EPOCHS.value and subjects.CLASSIFIER.value):
        print("--finetune_epochs is an even number, and for Fashion-MNIST only.", file=sys.stderr)
        return 2
    try:
        subject = subjects.chosen()
    except MobilePruneError as error:
        print(error, file=sys.stderr)
        return 2
    base = subject.judge(subject.model)
    rows = list(prune(subject))
    trained = fine_tune(subject, subject.data) if subject.data is not None and FINETUNE_EPOCHS.value else []
    text = table(rows, trained, base, subject)
    print(text)
    folder = Path(subjects.OUT_DIR.value)
    folder.mkdir(parents=True, exist_ok=True)
    content = {"model": subject.name, "measure": subject.measure, "base": base, "fine_tuned": trained}
    content["rows"] = [dataclasses.asdict(row) for row in rows]
    stem = folder / f"one_shot_sparsity_{subject.name}"
    stem.with_suffix(".json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    stem.with_suffix(".md").write_text(text, encoding="utf-8")
    plot(rows, base, subject, stem.with_suffix(".png"))
    return 0


if __name__ == "__main__":
    sys.exit(app.run(main))
