"""What integers cost in accuracy: a network for Fashion-MNIST, dense and channel-pruned, several sets of images.

  python benchmarks/int8_accuracy.py [--base=network.keras,…] [--seeds=5] [--methods=minmax,percentile,mse]

Each network is converted as it is and with half of its MACs (`obs`, `least_squares`, no training). For each seed other
images calibrate; then every way of quantizing answers the 10,000 test images of the whole of Fashion-MNIST:

- `int8` with each range method, without and with `correct_biases` (on 32 of the images);
- with the first of them also after `equalize`, and after `equalize(replace_relu6=True)`;
- once, `dynamic_int8`, `dynamic_int4` and `int16x8`.

Prints the mean loss against the network's own float32 file in points, with its 95% interval over the seeds (Student's
t), and how often the top-1 class is that of the float32 file. What is finished is kept in --out, so that a run that was
killed goes on.
"""

import json
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags

import mobileprune as mp
from mobileprune.calibration import calibrate
from mobileprune.recipes import quantize
from mobileprune.tflite_runner import TfliteRunner

HERE = Path(__file__).resolve().parent
BASE = flags.DEFINE_list("base", [str(HERE / "models" / "fashion_net.keras")], "Trained networks.")
SEEDS = flags.DEFINE_integer("seeds", 5, "How many sets of calibration images.", lower_bound=2, upper_bound=10)
IMAGES = flags.DEFINE_integer("calibration_images", 100, "In each set.", lower_bound=8, upper_bound=1000)
METHODS = flags.DEFINE_list("methods", ["minmax", "percentile", "mse"], "Of `calibrate`.")
MACS = flags.DEFINE_float("macs", 0.5, "Share of the MACs that the pruned network keeps.")
OUT = flags.DEFINE_string("out", str(HERE / "results" / "int8_accuracy"), "A folder for figures and pruned networks.")

# Two-sided 95% quantiles of Student's t for 1, 2, … degrees of freedom.
_T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
# Two need no images, and the third runs on the runtime's reference kernels, a hundred times slower than int8.
_ONCE = ("dynamic_int8", "dynamic_int4", "int16x8")

Figures = dict[str, dict[str, float]]
"""Way of quantizing → accuracy and agreement, both 0 to 1."""


def dataset_for(model: Any) -> mp.Dataset:
    """The whole of Fashion-MNIST in the model's size, from -1 to 1."""
    height, width, _ = model.inputs[0].shape[1:]
    return mp.load_dataset("fashion_mnist_full", mp.Preprocess(height, width, color="grayscale"))


def networks(path: Path) -> Iterator[tuple[str, Any]]:
    """A trained network, then the pruned one, which is made once."""
    base = mp.load_model(path)
    yield path.stem, base
    kept = Path(OUT.value) / f"{path.stem}_c{100 * MACS.value:.0f}.keras"
    if not kept.exists():
        images = dataset_for(base).calibration.images()
        plan = mp.plan_channels(base, macs=MACS.value, importance="obs", calibration=images)
        kept.parent.mkdir(parents=True, exist_ok=True)
        pruned = mp.prune_channels(base, plan, compensate="least_squares", calibration=images)
        mp.save_checkpoint(pruned, kept)
    yield kept.stem, mp.load_model(kept)


class Judge:
    """Runs files on the test images and compares them with the float32 one."""

    def __init__(self, content: bytes, dataset: mp.Dataset) -> None:
        batches = list(dataset.test.numpy_batches(1000))
        self._images = [images for images, _ in batches]
        self._labels = np.concatenate([labels for _, labels in batches])
        self._expected = self._answers(content)
        self.accuracy = float(np.mean(self._expected == self._labels))

    def _answers(self, content: bytes) -> np.ndarray:
        with TfliteRunner(content, threads=1) as runner:
            return np.concatenate([runner.run(images).argmax(axis=1) for images in self._images])

    def __call__(self, content: bytes) -> dict[str, float]:
        found = self._answers(content)
        right, same = np.mean(found == self._labels), np.mean(found == self._expected)
        return {"accuracy": float(right), "agreement": float(same)}


def one_seed(contents: dict[str, bytes], judge: Judge, images: np.ndarray) -> Figures:
    """Every way of quantizing on one set of images."""
    found: Figures = {}
    for how, content in contents.items():
        for method in METHODS.value[:1] if how else METHODS.value:
            ranges = calibrate(content, images, method)
            quantized = quantize(content, "int8", ranges)
            name = f"int8, {method}{how}"
            found[name] = judge(quantized)
            found[f"{name}, biases"] = judge(mp.correct_biases(content, quantized, images[:32]))
    return found


def measure(name: str, model: Any) -> dict[str, Any]:
    """All figures of one network: what is missing is measured, and kept."""
    path = Path(OUT.value) / f"{name}_{IMAGES.value}_{'_'.join(METHODS.value)}.json"
    done: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    missing = [seed for seed in range(SEEDS.value) if str(seed) not in done]
    if not missing:
        return done
    dataset = dataset_for(model)
    contents = {
        "": mp.to_float_flatbuffer(model),
        ", equalized": mp.to_float_flatbuffer(mp.equalize(model)),
        ", equalized without ReLU6": mp.to_float_flatbuffer(mp.equalize(model, replace_relu6=True)),
    }
    judge = Judge(contents[""], dataset)
    pool = dataset.calibration.images()
    if "float32" not in done:
        done["float32"] = judge.accuracy
        ranges = calibrate(contents[""], pool[: IMAGES.value])
        done["once"] = {recipe: judge(quantize(contents[""], recipe, ranges)) for recipe in _ONCE}
    for seed in missing:
        started = time.monotonic()
        chosen = np.random.default_rng(seed).permutation(len(pool))[: IMAGES.value]
        done[str(seed)] = one_seed(contents, judge, pool[chosen])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(done, indent=1), encoding="utf-8")
        print(f"{name}, seed {seed}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    return done


def interval(values: np.ndarray) -> float:
    """Half the width of the mean's 95% interval."""
    return float(_T95[len(values) - 2] * values.std(ddof=1) / math.sqrt(len(values)))


def table(name: str, done: dict[str, Any]) -> str:
    """The figures of one network as markdown."""
    lines = [
        f"{name}: {100 * done['float32']:.2f}% right in float32; {SEEDS.value} sets of {IMAGES.value} images.",
        "",
        "| file | accuracy | loss in points | same class as float32 |",
        "|---|---|---|---|",
    ]
    runs = [done[str(seed)] for seed in range(SEEDS.value)]
    for way in runs[0]:
        accuracies = 100 * np.array([run[way]["accuracy"] for run in runs])
        same = 100 * np.array([run[way]["agreement"] for run in runs])
        losses = 100 * done["float32"] - accuracies
        cells = f"{accuracies.mean():.2f} | {losses.mean():.2f} ± {interval(losses):.2f}"
        lines.append(f"| {way} | {cells} | {same.mean():.2f} ± {interval(same):.2f} |")
    for way, figures in done["once"].items():
        accuracy, same_class = 100 * figures["accuracy"], 100 * figures["agreement"]
        lines.append(f"| {way} | {accuracy:.2f} | {100 * done['float32'] - accuracy:.2f} | {same_class:.2f} |")
    return "\n".join(lines) + "\n"


def main(_: list[str]) -> int:
    """Measures what is missing and prints a table for each network."""
    mp.quiet_tensorflow()
    for path in map(Path, BASE.value):
        for name, model in networks(path):
            print(table(name, measure(name, model)), flush=True)
    return 0


if __name__ == "__main__":
    app.run(lambda argv: sys.exit(main(argv)))
