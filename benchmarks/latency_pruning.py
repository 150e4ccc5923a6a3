"""Is a plan for a latency better than one for MACs that is as fast? Two networks, three budgets, three seeds.

  python benchmarks/latency_pruning.py [--networks=mobilenet_small,mobilenet_v2] [--bases=folder]

`mobilenet_small` is the default network, trained on the whole of Fashion-MNIST as `classify_mobile.py` does by default;
its measure is the share of the 10,000 test images that it has right; each seed is a training of its own. `mobilenet_v2`
is MobileNetV2 of width 0.5 at 96 pixels. Its published weights need a download, so that it is trained once, for
--v2_epochs on --v2_images images of Fashion-MNIST enlarged to 96 pixels; seeds draw other calibration images. Its
measure needs no labels: the share of 2,000 test images to which the cut network gives the class of the whole one.

For each seed and speed-up one network is cut for the latency, and one for MACs: of several MACs targets the one whose
measured latency is nearest to the first's. Both rank channels by the same `obs` scores, and are fitted by least squares
on the same images, without labels and without training. What is timed are files of the very shapes, in turn, on one
thread of this machine; what is finished is kept in --out.
"""

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
from absl import app, flags

import mobileprune as mp
from mobileprune.channel_groups import ChannelGraph
from mobileprune.constraints import constraints
from mobileprune.importance import rankings
from mobileprune.latency_setup import latency_model
from mobileprune.pruning_plan import removed_roots
from mobileprune.scoring import Scoring

NETWORKS = flags.DEFINE_list("networks", ["mobilenet_small", "mobilenet_v2"], "Which.")
SPEEDUPS = flags.DEFINE_list("speedups", ["1.5", "2", "3"], "How many times faster, as predicted.")
SEEDS = flags.DEFINE_integer("seeds", 3, "How many.", lower_bound=1, upper_bound=10)
TRAIN_EPOCHS = flags.DEFINE_integer("train_epochs", 8, "Of mobilenet_small.", lower_bound=1)
V2_EPOCHS = flags.DEFINE_integer("v2_epochs", 2, "Of mobilenet_v2.", lower_bound=1)
V2_IMAGES = flags.DEFINE_integer("v2_images", 2500, "That it is trained on.", lower_bound=64)
CALIBRATION = flags.DEFINE_integer("calibration_images", 512, "For the scores and the fit.", lower_bound=16)
BASES = flags.DEFINE_string("bases", None, "A folder with base_SEED_EPOCHS_epochs.keras of sparsity_accuracy.py.")
OUT = flags.DEFINE_string("out", "benchmarks/results/latency_pruning", "A folder for figures and trained networks.")
TRAIN_ONLY = flags.DEFINE_bool("train_only", False, "Train what is missing and stop.")

# MACs targets that are tried, around the one that is predicted to be as fast.
AROUND = np.linspace(0.9, 1.1, 7)
# Two-sided 95% quantiles of Student's t for 1, 2, … degrees of freedom.
_T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)
_T95 += (2.120, 2.110, 2.101)


def kept(name: str, make: Callable[[], Any], *elsewhere: Path) -> Any:
    """The network of that name from an earlier run, or a new one, which is kept."""
    path = Path(OUT.value) / f"{name}.keras"
    for found in (path, *elsewhere):
        if found.exists():
            return mp.load_model(str(found))
    model = make()
    mp.save_checkpoint(model, path)
    return model


def small(seed: int) -> tuple[Any, mp.Dataset]:
    """The default network and its data."""
    contract = mp.input_contract("mobilenet_small", mp.default_preprocess("fashion_mnist_full"))
    dataset = mp.load_dataset("fashion_mnist_full", contract, seed=seed)

    def make() -> Any:
        fresh = mp.build_model("mobilenet_small", contract, len(dataset.labels))
        return mp.train(fresh, dataset, mp.TrainSettings(TRAIN_EPOCHS.value, 64, 3e-3, True, seed))

    name = f"base_{seed}_{TRAIN_EPOCHS.value}_epochs"
    return kept(name, make, *([Path(BASES.value) / f"{name}.keras"] if BASES.value else [])), dataset


def wide(seed: int) -> tuple[Any, mp.Dataset]:
    """MobileNetV2 of width 0.5 at 96 pixels, and its data."""
    contract = mp.Preprocess(96, 96)
    dataset = mp.load_dataset("fashion_mnist", contract, seed=seed)

    def make() -> Any:
        fresh = keras.applications.MobileNetV2(
            (96, 96, 3), alpha=0.5, weights=None, classes=10, classifier_activation=None
        )
        for layer in fresh.layers:
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.momentum = 0.9  # statistics that follow quickly, for so short a training
        some = dataset.limited(V2_IMAGES.value)
        trained = mp.train(fresh, some, mp.TrainSettings(V2_EPOCHS.value, 32, 2e-3, True, 0))
        return mp.recalibrate(trained, dataset.calibration.images(256))

    return kept(f"v2_{V2_EPOCHS.value}_{V2_IMAGES.value}", make), dataset


def one_seed(name: str, seed: int) -> list[dict[str, float]]:
    """The figures of each speed-up."""
    mp.set_seed(seed)
    model, dataset = (small if name == "mobilenet_small" else wide)(seed)
    if TRAIN_ONLY.value:
        return []
    images = dataset.calibration.images(CALIBRATION.value)
    judge = _accuracy(dataset) if name == "mobilenet_small" else _agreement(model, dataset)
    graph = ChannelGraph(model)
    free = constraints(graph).free
    scores = dict(rankings(Scoring(model, graph, images, seed), free, "obs", "sum"))
    latency = latency_model(model, "host")
    base = judge(model)
    found = []
    for speedup in map(float, SPEEDUPS.value):
        fast = mp.plan_channels(model, speedup=speedup, importance=scores, device=latency)
        target = _as_fast(model, scores, graph, latency, fast)
        plans = [fast]
        for share in AROUND:
            try:
                plans.append(mp.plan_channels(model, macs=share * target, importance=scores))
            except mp.MobilePruneError as error:
                print(f"{name} {seed} {speedup}: {error}", file=sys.stderr)
        files = [
            mp.Variant("cut", "float32", latency.file.resized(alive))
            for alive in (graph.everything(), *(graph.without(removed_roots(graph, plan)) for plan in plans))
        ]
        timed = mp.benchmark_host(files, rounds=20, min_round_ms=8.0)
        ratios = [result.ratio for result in timed if isinstance(result, mp.Latency) and result.ratio]
        nearest = min(range(2, len(ratios)), key=lambda index: abs(ratios[index] / ratios[1] - 1))
        chosen = plans[nearest - 1]
        figures = {
            "speedup": speedup,
            "base": base,
            "measured": 1 / ratios[1],
            "macs_measured": 1 / ratios[nearest],
            "macs_ratio": fast.macs_before / fast.macs,
            "macs_plans_ratio": chosen.macs_before / chosen.macs,
            "predicted": fast.latency.before_ms / fast.latency.ms if fast.latency else math.nan,
            "latency_plan": judge(mp.prune_channels(model, fast, "least_squares", images)),
            "macs_plan": judge(mp.prune_channels(model, chosen, "least_squares", images)),
        }
        print(name, seed, json.dumps({key: round(value, 4) for key, value in figures.items()}), flush=True)
        found.append(figures)
        keras.backend.clear_session()
    return found


def _as_fast(model: Any, scores: Any, graph: ChannelGraph, latency: Any, fast: mp.PruningPlan) -> float:
    """The MACs at which a plan for them is predicted to be as fast."""
    wanted = latency.ns(graph.without(removed_roots(graph, fast)))
    low, high = float(mp.pruning_floor(model).macs), float(fast.macs_before)
    for _ in range(8):
        middle = (low + high) / 2
        plan = mp.plan_channels(model, macs=middle, importance=scores)
        slower = latency.ns(graph.without(removed_roots(graph, plan))) > wanted
        low, high = (low, middle) if slower else (middle, high)
    return (low + high) / 2


def _accuracy(dataset: mp.Dataset) -> Callable[[Any], float]:
    def judge(model: Any) -> float:
        batches = list(dataset.test.numpy_batches(500))
        right = sum(int(np.sum(np.argmax(model.predict_on_batch(x), -1) == labels)) for x, labels in batches)
        return right / sum(len(labels) for _, labels in batches)

    return judge


def _agreement(base: Any, dataset: mp.Dataset) -> Callable[[Any], float]:
    images = dataset.test.images(2000)

    def classes(model: Any) -> np.ndarray:
        parts = [images[start : start + 200] for start in range(0, len(images), 200)]
        return np.concatenate([np.argmax(model.predict_on_batch(part), -1) for part in parts])

    expected = classes(base)
    return lambda model: float(np.mean(classes(model) == expected))


def interval(values: np.ndarray) -> str:
    """The mean with half the width of its 95% interval."""
    if len(values) < 2:
        return f"{values.mean():+.2f}"
    return f"{values.mean():+.2f} ± {_T95[len(values) - 2] * values.std(ddof=1) / math.sqrt(len(values)):.2f}"


def main(argv: list[str]) -> int:
    """Runs what is missing and prints the table."""
    mp.quiet_tensorflow()
    folder = Path(OUT.value)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"figures_{'_'.join(SPEEDUPS.value)}_{CALIBRATION.value}.json"
    done: dict[str, list[dict[str, float]]] = json.loads(path.read_text()) if path.exists() else {}
    for name in NETWORKS.value:
        for seed in range(SEEDS.value):
            if (key := f"{name} {seed}") not in done and (figures := one_seed(name, seed)):
                done[key] = figures
                path.write_text(json.dumps(done, indent=1))
    if TRAIN_ONLY.value:
        return 0
    print("| network | speed-up | measured | MACs ratio | cut for MACs: measured | latency plan | MACs plan | points |")
    print("|---" * 8 + "|")
    for name in NETWORKS.value:
        runs = [done[f"{name} {seed}"] for seed in range(SEEDS.value)]
        for index, _ in enumerate(SPEEDUPS.value):
            column = {key: np.array([run[index][key] for run in runs]) for key in runs[0][index]}
            points = 100 * (column["latency_plan"] - column["macs_plan"])
            print(
                f"| {name} | {column['speedup'][0]:g} | {column['measured'].mean():.2f} | "
                f"{column['macs_ratio'].mean():.2f} | {column['macs_measured'].mean():.2f} | "
                f"{column['latency_plan'].mean():.2%} | {column['macs_plan'].mean():.2%} | "
                f"{interval(points)} ({', '.join(f'{each:+.2f}' for each in points)}) |"
            )
        every = np.array([100 * (each["latency_plan"] - each["macs_plan"]) for run in runs for each in run])
        worth = np.array([each["measured"] / each["macs_ratio"] for run in runs for each in run])
        print(
            f"{name}: latency plans {interval(every)} points better, speed-up / MACs ratio at least {worth.min():.2f}"
        )
    return 0


if __name__ == "__main__":
    app.run(lambda argv: sys.exit(main(argv)))
