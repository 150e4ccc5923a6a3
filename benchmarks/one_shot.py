"""What is left of a network right after its channels are cut, before any training.

  python benchmarks/one_shot.py [--fine_tune] [--torch_python=/path/to/python]
  python benchmarks/one_shot.py --classifier=classifier.keras --photos=folder

Cuts benchmarks/models/fashion_net.keras to 70, 50 and 30% of its multiply-accumulates by every importance, compensates
in every way, with and without new batch-norm statistics, and counts how many of the 10,000 test images of Fashion-MNIST
are still classified right. Planning, compensation and recalibration see 1,024 training images without their labels.
What the installed mobileprune does not know is left out, with the reason. About 10 minutes on two cores.

`--fine_tune` also trains some of the networks with half of the multiply-accumulates for one epoch (Adam from 1e-3,
cosine decay, the 60,000 images as they are, batches of 128): about 2 minutes each. `--torch_python`, an interpreter
with torch, torchvision and torch-pruning, adds Torch-Pruning's L2 on the same network with the same weights, cut and
trained in the same way (see torch_pruning_twin.py).

`--classifier` takes any classifier instead, and `--photos` a folder of photographs that nobody has labelled: half of
them calibrate, a quarter (that no other step sees) judges, and the figure is the share of its crops to which the cut
network gives the same top-1 class as the whole one.

The table is markdown; --out_dir gets it with the same figures as JSON and as a plot.
"""

import dataclasses
import functools
import gc
import inspect
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import matplotlib
import numpy as np
import subjects
from absl import app, flags
from subjects import Subject

import mobileprune as mp
from mobileprune.datasets.fashion_mnist import read_whole
from mobileprune.errors import MobilePruneError

matplotlib.use("Agg")
from matplotlib import pyplot as plt

HERE = Path(__file__).resolve().parent
TWIN = HERE / "torch_pruning_twin.py"

MACS = flags.DEFINE_list("macs", ["0.7", "0.5", "0.3"], "Shares of the multiply-accumulates that are kept.")
IMPORTANCE = flags.DEFINE_list(
    "importance",
    [
        *("l2", "lamp", "fpgm", "batch_norm_scale", "taylor", "hessian", "apoz", "activation_mean", "reconstruction"),
        *("random", "obs"),
    ],
    "How channels are chosen.",
)
COMPENSATE = flags.DEFINE_list("compensate", ["none", "mean", "least_squares"], "What is done for the channels lost.")
SCOPES = flags.DEFINE_list("scopes", ["global"], "global, local or both, a row for each.")
KEEP = flags.DEFINE_list("keep", [], "Wildcard patterns of layers whose channels all stay.")
FINE_TUNE = flags.DEFINE_bool("fine_tune", False, "Train l2/none and obs/least_squares at half of the MACs.")
EPOCHS = flags.DEFINE_integer("epochs", 1, "Of fine-tuning.", lower_bound=1)
TORCH_PYTHON = flags.DEFINE_string("torch_python", None, "An interpreter with torch, torchvision and torch-pruning.")

FINE_TUNED = (("l2", "none"), ("obs", "least_squares"))
FINE_TUNED_MACS = 0.5


@dataclasses.dataclass
class Row:
    """One cut network. `scores` has what is left as cut and with new batch-norm statistics; seconds are wall time."""

    importance: str
    scope: str
    compensation: str
    target: float
    macs_kept: float
    params_kept: float
    score: float
    recalibrated: float | None
    plan_s: float
    prune_s: float
    recalibrate_s: float | None = None
    fine_tuned: float | None = None
    fine_tune_s: float | None = None


def cut(subject: Subject) -> Iterator[Row]:
    """Every importance at every target, in every scope, compensated in every way."""
    for importance in IMPORTANCE.value:
        for scope in SCOPES.value:
            for target in map(float, MACS.value):
                try:
                    started = time.perf_counter()
                    plan = _plan(subject, importance, scope, target)
                    seconds = time.perf_counter() - started
                    for compensation in COMPENSATE.value:
                        row = _cut(subject, plan, compensation, target, seconds)
                        if row is not None:
                            yield row
                except MobilePruneError as error:
                    _say(f"{importance}, {scope}, {target:g} left out: {error}")


def _plan(subject: Subject, importance: str, scope: str, target: float) -> Any:
    options: dict[str, Any] = {"importance": importance, "scope": scope, "keep": KEEP.value}
    if _takes(mp.plan_channels, "calibration"):
        options["calibration"] = subject.calibration
    return mp.plan_channels(subject.model, macs=target, **options)


def _cut(subject: Subject, plan: Any, compensation: str, target: float, plan_s: float) -> Row | None:
    options: dict[str, Any] = {}
    if compensation != "none":
        if not _takes(mp.prune_channels, "compensate"):
            _say_once(f"compensation {compensation} left out: the installed mobileprune has none")
            return None
        options = {"compensate": compensation, "calibration": subject.calibration}
    started = time.perf_counter()
    smaller = mp.prune_channels(subject.model, plan, **options)
    prune_s = time.perf_counter() - started
    row = Row(
        plan.importance,
        plan.scope,
        compensation,
        target,
        plan.macs / plan.macs_before,
        plan.params / plan.params_before,
        subject.judge(smaller),
        None,
        plan_s,
        prune_s,
    )
    weights = smaller.get_weights()
    if any(isinstance(layer, keras.layers.BatchNormalization) for layer in smaller.layers):
        started = time.perf_counter()
        mp.recalibrate(smaller, subject.calibration)
        row.recalibrate_s = time.perf_counter() - started
        row.recalibrated = subject.judge(smaller)
    if _is_trained(row) and subject.data is not None:
        smaller.set_weights(weights)
        _fine_tune(smaller, subject, row)
    _say(
        f"{row.importance} {row.scope} {compensation} {target:g}: {row.score:.4f}"
        + (f", recalibrated {row.recalibrated:.4f}" if row.recalibrated is not None else "")
        + (f", fine-tuned {row.fine_tuned:.4f}" if row.fine_tuned is not None else "")
    )
    keras.backend.clear_session()
    gc.collect()
    return row


def _is_trained(row: Row) -> bool:
    return FINE_TUNE.value and row.target == FINE_TUNED_MACS and (row.importance, row.compensation) in FINE_TUNED


def _fine_tune(smaller: Any, subject: Subject, row: Row) -> None:
    started = time.perf_counter()
    subjects.fine_tune(smaller, subject, EPOCHS.value)
    row.fine_tune_s = time.perf_counter() - started
    row.fine_tuned = subject.judge(smaller)


def peer(subject: Subject, base: float, python: str) -> list[Row]:
    """Torch-Pruning's L2 on the same network; of its global and local scope the better one at each target.

    Raises:
        SystemExit: the twin does not classify like the Keras network, so its figures would mean nothing.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _export(subject.model, folder)
        # Threads that spin while they wait stand still beside any other program.
        environment = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ}
        command = [python, str(TWIN), "one_shot", name]
        ran = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, env=environment)
    if ran.returncode:
        sys.exit(f"Torch-Pruning's twin ended with code {ran.returncode}.")
    found = json.loads(ran.stdout.splitlines()[-1])
    facts = mp.model_facts(subject.model)
    if abs(found["base"] - base) > 5e-4 or (found["macs"], found["params"]) != (facts.macs, facts.params):
        sys.exit(f"The twin is another network: {found}, {facts}, accuracy {base}.")
    rows = []
    for target in map(float, MACS.value):
        both = [each for each in found["rows"] if each["target"] == target]
        best = max(both, key=lambda each: (each.get("fine_tuned", 0.0), each["accuracy"]))
        rows.append(
            Row(
                "Torch-Pruning l2",
                best["scope"],
                "none",
                target,
                best["macs_kept"],
                best["params_kept"],
                best["accuracy"],
                best["recalibrated"],
                best["seconds"],
                0.0,
                None,
                best.get("fine_tuned"),
                best.get("fine_tune_seconds"),
            )
        )
        _say(f"Torch-Pruning at {target:g}: {both}")
    return rows


def _export(model: Any, folder: Path) -> None:
    weights: dict[str, Any] = {
        f"{layer.name}/{variable.name}": np.asarray(variable) for layer in model.layers for variable in layer.weights
    }
    weights["adds"] = np.array([layer.name for layer in model.layers if isinstance(layer, keras.layers.Add)])
    np.savez(folder / "weights.npz", **weights)
    np.savez(folder / "data.npz", **read_whole()[0]._asdict())
    request = {
        "macs": [float(target) for target in MACS.value],
        "fine_tune": [FINE_TUNED_MACS] if FINE_TUNE.value else [],
        "epochs": EPOCHS.value,
        "learning_rate": subjects.LEARNING_RATE.value,
        "seed": subjects.SEED.value,
        "calibration_images": subjects.CALIBRATION.value,
        "strides": [layer.strides[0] for layer in model.layers if isinstance(layer, keras.layers.DepthwiseConv2D)],
    }
    (folder / "request.json").write_text(json.dumps(request), encoding="utf-8")


def table(rows: list[Row], base: float, subject: Subject) -> str:
    """The figures as markdown: a line for each way to cut, a column for each target."""
    targets = sorted({row.target for row in rows}, reverse=True)
    lines = [
        f"{subject.name}: {subject.measure}, {100 * base:.2f}% before; {len(subject.calibration)} calibration images.",
        "",
        "| channels chosen by | scope | compensation | batch norms | "
        + " | ".join(f"{100 * (1 - target):.0f}% fewer MACs" for target in targets)
        + " | seconds: plan, prune, recalibrate |",
        f"|{'---|' * (5 + len(targets))}",
    ]
    for way in dict.fromkeys((row.importance, row.compensation) for row in rows):
        own = [row for row in rows if (row.importance, row.compensation) == way]
        for scopes in _by_scope(own):
            for again in (False, True):
                if again and all(row.recalibrated is None for row in scopes):
                    continue
                cells = [_cell(scopes, target, again) for target in targets]
                scope = " / ".join(dict.fromkeys(row.scope for row in scopes))
                norms = "recalibrated" if again else "as they were"
                lines.append(f"| {' | '.join([way[0], scope, way[1], norms, *cells, _seconds(scopes, again)])} |")
    trained = [row for row in rows if row.fine_tuned is not None]
    if trained:
        lines += [
            "",
            "| fine-tuned | scope | compensation | MACs kept | parameters kept | as cut | trained | seconds |",
        ]
        lines.append(f"|{'---|' * 8}")
    for row in trained:
        figures = [f"{100 * value:.1f}" for value in (row.macs_kept, row.params_kept, row.score, row.fine_tuned or 0)]
        seconds = f"{row.fine_tune_s or 0:.0f}"
        lines.append(f"| {' | '.join([row.importance, row.scope, row.compensation, *figures, seconds])} |")
    return "\n".join(lines) + "\n"


def _by_scope(rows: list[Row]) -> list[list[Row]]:
    """Rows that belong on one line: a scope each, but the peer's best scopes together."""
    if len({row.target for row in rows}) == len(rows):
        return [rows]
    return [[row for row in rows if row.scope == scope] for scope in dict.fromkeys(row.scope for row in rows)]


def _cell(rows: list[Row], target: float, again: bool) -> str:
    found = [row.recalibrated if again else row.score for row in rows if row.target == target]
    return f"{100 * found[0]:.1f}" if found and found[0] is not None else "-"


def _seconds(rows: list[Row], again: bool) -> str:
    parts = [np.mean([row.plan_s for row in rows]), np.mean([row.prune_s for row in rows])]
    if again:
        parts.append(np.mean([row.recalibrate_s or 0.0 for row in rows]))
    return " + ".join(f"{part:.1f}" for part in parts)


def plot(rows: list[Row], base: float, subject: Subject, path: Path) -> None:
    """One panel for each compensation: what is left over what is removed, a line for each importance."""
    ways = list(dict.fromkeys(row.compensation for row in rows))
    names = list(dict.fromkeys((row.importance, row.scope if len(SCOPES.value) > 1 else "") for row in rows))
    figure, panels = plt.subplots(1, len(ways), figsize=(4.2 * len(ways), 4), sharey=True, squeeze=False)
    for panel, way in zip(panels[0], ways, strict=True):
        for color, (importance, scope) in enumerate(names):
            own = [
                row
                for row in rows
                if (row.compensation, row.importance) == (way, importance) and scope in ("", row.scope)
            ]
            removed = [0.0, *(100 * (1 - row.macs_kept) for row in own)]
            label = f"{importance} {scope}".strip()
            panel.plot(removed, [base, *(row.score for row in own)], ":", color=f"C{color}")
            again = [row.score if row.recalibrated is None else row.recalibrated for row in own]
            panel.plot(removed, [base, *again], "o-", color=f"C{color}", label=label, markersize=3)
        panel.set_title("no compensation" if way == "none" else way.replace("_", " "))
        panel.set_xlabel("% of the MACs removed")
        panel.grid(alpha=0.3)
    panels[0][0].set_ylabel(subject.measure)
    panels[0][0].legend(fontsize=7, title="dotted: batch norms as they were", title_fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _takes(function: Callable[..., Any], argument: str) -> bool:
    return argument in inspect.signature(function).parameters


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


@functools.cache
def _say_once(line: str) -> None:
    _say(line)


def main(_: list[str]) -> int:
    """Measures, prints the table and writes it with JSON and a plot."""
    mp.quiet_tensorflow()
    try:
        subject = subjects.chosen()
    except MobilePruneError as error:
        print(error, file=sys.stderr)
        return 2
    base = subject.judge(subject.model)
    rows = list(cut(subject))
    if TORCH_PYTHON.value and subject.data is not None:
        rows += peer(subject, base, TORCH_PYTHON.value)
    if not rows:
        print("Nothing was measured.", file=sys.stderr)
        return 1
    text = table(rows, base, subject)
    print(text)
    folder = Path(subjects.OUT_DIR.value)
    folder.mkdir(parents=True, exist_ok=True)
    figures = {"model": subject.name, "measure": subject.measure, "base": base}
    content = {**figures, "rows": [dataclasses.asdict(row) for row in rows]}
    (folder / f"one_shot_{subject.name}.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    (folder / f"one_shot_{subject.name}.md").write_text(text, encoding="utf-8")
    plot(rows, base, subject, folder / f"one_shot_{subject.name}.png")
    return 0


if __name__ == "__main__":
    sys.exit(app.run(main))
