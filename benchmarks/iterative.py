"""Is cutting in steps, with a regulariser and a teacher, better than one cut? Equal epochs, paired over seeds.

  python benchmarks/iterative.py [--macs=0.5,0.3] [--seeds=0,1,2] [--bases=folder] [--ways=full --ways=one_shot]

The default network on the whole of Fashion-MNIST; accuracy on the 10,000 test images. Every way gets the same base of
--train_epochs and, after it, --finetune_epochs in all:

  full          --lasso_epochs in which `mp.GroupLasso` presses whole channels of the base towards zero; --steps cuts,
                each ranked anew, with --between_epochs after all but the last, in which channels are pressed, too; the
                rest after the last cut. In all of them the base teaches (`mp.Distillation`), and they are one cycle of
                the learning rate.
  one_shot      one cut, and all epochs after it, as `classify_mobile.py` does by default.
  control       a narrower network with fresh weights and no more MACs, trained for the base's epochs and these.
  iterative     the steps alone, without regulariser and teacher.
  distillation  one_shot with the teacher.
  lasso         one_shot after --lasso_epochs with the regulariser.

Printed: the accuracies, and the differences of the same seeds in points with their 95% intervals (Student's t). --out
gets the table, a plot, and everything that is finished: the same command goes on where it was killed, in the middle of
a training, too. Processes with other --seeds, --macs or --ways may share it; a last one of all prints the table.
"""

import dataclasses
import hashlib
import json
import math
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import matplotlib
import numpy as np
from absl import app, flags

import mobileprune as mp

matplotlib.use("Agg")
from matplotlib import pyplot as plt

MACS = flags.DEFINE_list("macs", ["0.5", "0.3"], "Shares of the multiply-accumulates that are kept.")
SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "Which; at most ten.")
flags.register_validator(
    "seeds", lambda seeds: 0 < len(seeds) <= 10 and all(map(str.isdecimal, seeds)), "whole numbers"
)
DATASET = flags.DEFINE_string("dataset", "fashion_mnist_full", "As in classify_mobile.py.")
LIMIT = flags.DEFINE_integer("limit_images", None, "Use at most so many images of each split: does it work?")
TRAIN_EPOCHS = flags.DEFINE_integer("train_epochs", 6, "Of the base.", lower_bound=1)
FINETUNE_EPOCHS = flags.DEFINE_integer("finetune_epochs", 6, "After the base, in all.", lower_bound=1)
STEPS = flags.DEFINE_integer("steps", 2, "Cuts.", lower_bound=1)
POWER = flags.DEFINE_float("power", 2.0, "Of the schedule of the cuts.")
BETWEEN = flags.DEFINE_integer("between_epochs", 1, "After each cut but the last.", lower_bound=0)
LASSO_EPOCHS = flags.DEFINE_integer("lasso_epochs", 1, "Before the first cut.", lower_bound=0)
LASSO = flags.DEFINE_float("group_lasso", 0.05, "Strength of the regulariser; 0 for none.", lower_bound=0)
WEIGHT = flags.DEFINE_float("weight", 0.7, "Of the teacher.", 0, 1)
TEMPERATURE = flags.DEFINE_float("temperature", 4.0, "Of the teacher.")
FEATURES = flags.DEFINE_enum("features", None, ["attention", "hint"], "What else of the teacher is followed.")
IMPORTANCE = flags.DEFINE_string("importance", "l2", "How all ways rank channels.")
BASES = flags.DEFINE_string("bases", None, "A folder with base_SEED_EPOCHS_epochs.keras of sparsity_accuracy.py.")
OUT = flags.DEFINE_string("out", "benchmarks/results/iterative", "A folder for figures, bases, table and plot.")

# Two-sided 95% quantiles of Student's t for 1, 2, … degrees of freedom.
_T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


@dataclasses.dataclass
class Job:
    """One network to come: everything that a way needs."""

    base: Any
    dataset: mp.Dataset
    images: np.ndarray
    macs: float
    seed: int
    folder: Path
    tuning: mp.TrainSettings

    def train(
        self,
        model: Any,
        epochs: int,
        folder: Path | None,
        pressed: bool = False,
        taught: bool = False,
        start: int = 0,
    ) -> Any:
        """Some of the epochs after the base, with the learning rates that these have in one cycle over all of them."""
        teaching = mp.Distillation(self.base, TEMPERATURE.value, WEIGHT.value, FEATURES.value) if taught else None
        settings = dataclasses.replace(self.tuning, epochs=epochs, start=start, cycle=FINETUNE_EPOCHS.value)
        callbacks = [regulariser()] if pressed and LASSO.value else []
        return mp.train(model, self.dataset, settings, checkpoint=folder, callbacks=callbacks, distillation=teaching)

    def pressed(self, taught: bool) -> Any:
        """The base after the epochs with the regulariser, which are the same for every share of MACs."""
        folder = self.folder.parent / f"pressed_{self.seed}{'_taught' if taught else ''}"
        # A copy: the base itself is the teacher.
        return self.train(copy_of(self.base), LASSO_EPOCHS.value, folder, pressed=True, taught=taught)

    def cut_at_once(self, model: Any) -> Any:
        """The one cut."""
        plan = mp.plan_channels(
            model, macs=self.macs, importance=IMPORTANCE.value, calibration=self.images, seed=self.seed
        )
        return mp.recalibrate(mp.prune_channels(model, plan), self.images)

    def in_steps(self, model: Any, epochs: int, pressed: bool, taught: bool) -> Any:
        """All the cuts with the training between them."""
        last = epochs - BETWEEN.value * (STEPS.value - 1)

        def finetune(present: Any, step: int, folder: Path | None) -> Any:
            ends = step == STEPS.value
            own = last if ends else BETWEEN.value
            start = FINETUNE_EPOCHS.value - epochs + BETWEEN.value * (step - 1)
            again = mp.recalibrate(present, self.images)
            return self.train(again, own, folder, pressed=pressed and not ends, taught=taught, start=start)

        return mp.prune_iteratively(
            model,
            steps=STEPS.value,
            power=POWER.value,
            finetune=finetune,
            # Shares of the base as it is everywhere else.
            macs=self.macs,
            importance=IMPORTANCE.value,
            calibration=self.images,
            seed=self.seed,
            checkpoint=self.folder / "steps",
        ).model


def full(job: Job) -> Any:
    """In steps, pressed, taught."""
    left = FINETUNE_EPOCHS.value - LASSO_EPOCHS.value
    return job.in_steps(job.pressed(taught=True), left, pressed=True, taught=True)


def one_shot(job: Job) -> Any:
    """One cut and all epochs."""
    return job.train(job.cut_at_once(job.base), FINETUNE_EPOCHS.value, job.folder / "tuned")


def control(job: Job) -> Any:
    """A narrower network, trained for as long as base and cut network together."""
    plan = mp.plan_channels(job.base, macs=job.macs, importance="l2")
    mp.set_seed(job.seed)
    epochs = TRAIN_EPOCHS.value + FINETUNE_EPOCHS.value
    settings = dataclasses.replace(job.tuning, epochs=epochs, learning_rate=3e-3)
    return mp.train(mp.narrower(job.base, plan.macs), job.dataset, settings, checkpoint=job.folder / "tuned")


def iterative(job: Job) -> Any:
    """In steps alone."""
    return job.in_steps(job.base, FINETUNE_EPOCHS.value, pressed=False, taught=False)


def distillation(job: Job) -> Any:
    """One cut, taught."""
    return job.train(job.cut_at_once(job.base), FINETUNE_EPOCHS.value, job.folder / "tuned", taught=True)


def lasso(job: Job) -> Any:
    """Pressed, then one cut."""
    left = FINETUNE_EPOCHS.value - LASSO_EPOCHS.value
    cut = job.cut_at_once(job.pressed(taught=False))
    return job.train(cut, left, job.folder / "tuned", start=LASSO_EPOCHS.value)


ALL: dict[str, Callable[[Job], Any]] = {
    each.__name__: each for each in (full, one_shot, control, iterative, distillation, lasso)
}
WAYS = flags.DEFINE_multi_enum("ways", ["full", "one_shot", "control"], list(ALL), "Which; again for each.")


def regulariser() -> Any:
    """The callback that presses whole channels towards zero."""
    return mp.GroupLasso(LASSO.value)


def copy_of(model: Any) -> Any:
    """The same network once more."""
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    return copy


def base_of(seed: int, dataset: mp.Dataset) -> Any:
    """The trained base of a seed, from an earlier run where there is one."""
    name = f"base_{seed}_{TRAIN_EPOCHS.value}_epochs.keras"
    path = Path(OUT.value) / (name if LIMIT.value is None else f"{LIMIT.value}_images_{name}")
    found = [path, *([Path(BASES.value) / name] if BASES.value and LIMIT.value is None else [])]
    for each in found:
        if each.exists():
            return mp.load_model(each)
    mp.set_seed(seed)
    fresh = mp.build_model("mobilenet_small", dataset.preprocess, len(dataset.labels))
    settings = mp.TrainSettings(TRAIN_EPOCHS.value, 64, 3e-3, True, seed, fused_norms=True)
    folder = path.with_suffix(".partial")
    trained = mp.train(fresh, dataset, settings, checkpoint=folder)
    mp.save_checkpoint(trained, path)
    shutil.rmtree(folder)
    return mp.load_model(path)


def accuracy(model: Any, dataset: mp.Dataset) -> float:
    """Share of the test images that the network classifies right."""
    right = total = 0
    for images, labels in dataset.test.numpy_batches(500):
        right += int(np.sum(np.argmax(model.predict_on_batch(images), axis=-1) == labels))
        total += len(labels)
    return right / total


def data(seed: int) -> mp.Dataset:
    """The images, split by a seed."""
    contract = mp.input_contract("mobilenet_small", mp.default_preprocess(DATASET.value, None, None), None, None)
    dataset = mp.load_dataset(DATASET.value, contract, seed=seed)
    return dataset.limited(LIMIT.value) if LIMIT.value else dataset


def settings() -> dict[str, Any]:
    """All that a figure depends on."""
    chosen = (DATASET, LIMIT, TRAIN_EPOCHS, FINETUNE_EPOCHS, STEPS, POWER, BETWEEN, LASSO_EPOCHS, LASSO, WEIGHT)
    return {flag.name: flag.value for flag in (*chosen, TEMPERATURE, FEATURES, IMPORTANCE)}


def figures(folder: Path) -> dict[str, Any]:
    """What is finished: the name of each file, and what it says."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("*.json")}


def keep(folder: Path, name: str, told: dict[str, Any]) -> None:
    """Adds a network to what is finished. A file for each: processes side by side do not lose each other's."""
    unfinished = folder / f"{name}.new"
    unfinished.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    unfinished.replace(folder / f"{name}.json")


def run(folder: Path) -> None:
    """Trains what is missing."""
    done = figures(folder)
    for seed in map(int, SEEDS.value):
        wanted = [(share, way) for share in MACS.value for way in WAYS.value if f"{way} {share} {seed}" not in done]
        if not wanted and f"base {seed}" in done:
            continue
        dataset = data(seed)
        images = dataset.calibration.images(256)
        if f"base {seed}" not in done:
            base = base_of(seed, dataset)
            keep(folder, f"base {seed}", {"accuracy": accuracy(base, dataset), "macs": mp.model_facts(base).macs})
        for share, way in wanted:
            name, started = f"{way} {share} {seed}", time.monotonic()
            own = folder / name.replace(" ", "_")
            tuning = mp.TrainSettings(1, 64, 2e-3, True, seed, fused_norms=True)
            mp.set_seed(seed)
            job = Job(base_of(seed, dataset), dataset, images, float(share), seed, own, tuning)
            model = ALL[way](job)
            told = {
                "accuracy": accuracy(model, dataset),
                "macs": mp.model_facts(model).macs,
                "seconds": round(time.monotonic() - started),
            }
            keep(folder, name, told)
            if own.exists():
                shutil.rmtree(own)
            print(f"{name}: {json.dumps(told)}", file=sys.stderr, flush=True)
            keras.backend.clear_session()


def interval(points: np.ndarray) -> str:
    """The mean of paired differences with half the width of its 95% interval."""
    if len(points) < 2:
        return f"{points.mean():+.2f}"
    return f"{points.mean():+.2f} ± {_T95[len(points) - 2] * points.std(ddof=1) / math.sqrt(len(points)):.2f}"


def table(done: dict[str, Any]) -> str:
    """The figures as markdown."""
    seeds = list(map(int, SEEDS.value))

    def column(way: str, share: str) -> np.ndarray:
        return np.array([100 * done[f"{way} {share} {seed}"]["accuracy"] for seed in seeds])

    base = np.array([100 * done[f"base {seed}"]["accuracy"] for seed in seeds])
    against = [way for way in ("one_shot", "control") if way in WAYS.value]
    heads = ["way", "MACs kept", *(f"seed {seed}" for seed in seeds), "mean", *(f"against {way}" for way in against)]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    cells = ["base", "1.00", *(f"{each:.2f}" for each in base), f"{base.mean():.2f}", *("" for _ in against)]
    lines.append(f"| {' | '.join(cells)} |")
    for share in MACS.value:
        for way in WAYS.value:
            kept = np.mean([done[f"{way} {share} {s}"]["macs"] / done[f"base {s}"]["macs"] for s in seeds])
            own = column(way, share)
            differences = ["" if other == way else interval(own - column(other, share)) for other in against]
            cells = [way, f"{kept:.2f}", *(f"{each:.2f}" for each in own), f"{own.mean():.2f}", *differences]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def plot(done: dict[str, Any], path: Path) -> None:
    """Accuracy over the MACs that are left, a line for each way and a dot for each seed."""
    figure, panel = plt.subplots(figsize=(5, 4))
    base = np.mean([done[f"base {seed}"]["accuracy"] for seed in map(int, SEEDS.value)])
    panel.axhline(100 * base, color="0.6", linestyle=":", label="base")
    for number, way in enumerate(WAYS.value):
        runs = [[done[f"{way} {share} {seed}"] for seed in map(int, SEEDS.value)] for share in MACS.value]
        places = [np.mean([run["macs"] for run in group]) / 1e6 for group in runs]
        panel.plot(
            places,
            [100 * np.mean([run["accuracy"] for run in group]) for group in runs],
            "-",
            color=f"C{number}",
            label=way.replace("_", " "),
        )
        for place, group in zip(places, runs, strict=True):
            panel.plot([place] * len(group), [100 * run["accuracy"] for run in group], "o", color=f"C{number}", ms=3)
    panel.set_xlabel("million multiply-accumulates")
    panel.set_ylabel("% of test images classified right")
    panel.grid(alpha=0.3)
    panel.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main(_: list[str]) -> int:
    """Trains what is missing, prints the table and draws the plot."""
    mp.quiet_tensorflow()
    if LASSO_EPOCHS.value + BETWEEN.value * (STEPS.value - 1) >= FINETUNE_EPOCHS.value:
        print("Nothing of --finetune_epochs is left for the last cut.", file=sys.stderr)
        return 2
    told = json.dumps(settings(), indent=1) + "\n"
    stem = Path(OUT.value) / f"iterative_{hashlib.sha256(told.encode()).hexdigest()[:8]}"
    stem.mkdir(parents=True, exist_ok=True)
    stem.with_suffix(".settings.json").write_text(told, encoding="utf-8")
    run(stem)
    done = figures(stem)
    text = table(done)
    print(text)
    stem.with_suffix(".md").write_text(text, encoding="utf-8")
    plot(done, stem.with_suffix(".png"))
    return 0


if __name__ == "__main__":
    app.run(lambda argv: sys.exit(main(argv)))
