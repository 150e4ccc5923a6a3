"""What int8 costs in accuracy, without and with quantization-aware training: the default network on Fashion-MNIST.

  python benchmarks/quantize_aware.py [--seeds=5] [--epochs=1] [--dataset=fashion_mnist_full] [--bases=folder]

The base is trained as `classify_mobile.py` does by default, and from it one network with half of the MACs (`c50`) and
one with 80% zeros (`s80`) are made and fine-tuned. For each seed, which draws the calibration images and the order of
training, each becomes int8 twice: from calibration images alone, and after --epochs of quantization-aware training from
there. Prints, on the test images, the mean loss against the float32 network in points with its 95% interval over the
seeds (Student's t; paired, the same network and images), how far the int8 file and the trained network agree, the share
of zeros before and after, and what a training step costs relative to one without rounding. What is finished, trained
networks included, is kept in --out, so that a run that was killed goes on.
"""

import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags

import mobileprune as mp
from mobileprune.tflite_graph import read_graph
from mobileprune.train import compile_classifier

SEEDS = flags.DEFINE_integer("seeds", 5, "Of calibration and training.", lower_bound=1, upper_bound=10)
NETWORK_SEED = flags.DEFINE_integer("network_seed", 0, "Of the float networks.", lower_bound=0)
EPOCHS = flags.DEFINE_integer("epochs", 1, "Of quantization-aware training.", lower_bound=1)
LEARNING_RATE = flags.DEFINE_float("learning_rate", 1e-4, "Its peak.", lower_bound=0.0)
TRAIN_EPOCHS = flags.DEFINE_integer("train_epochs", 8, "Of the base.", lower_bound=1)
FINETUNE_EPOCHS = flags.DEFINE_integer("finetune_epochs", 4, "Of c50 and s80.", lower_bound=1)
MODELS = flags.DEFINE_list("models", ["base", "c50", "s80"], "Which networks.")
DATASET = flags.DEFINE_string("dataset", "fashion_mnist_full", "As in classify_mobile.py.")
CALIBRATION = flags.DEFINE_integer("calibration_images", 256, "For ranges, zeros and channels.", lower_bound=16)
OUT = flags.DEFINE_string("out", "benchmarks/results/quantize_aware", "A folder for figures and trained networks.")
BASES = flags.DEFINE_string("bases", None, "A folder with base_SEED_EPOCHS_epochs.keras of sparsity_accuracy.py.")

STEPS_TIMED = 20
# Two-sided 95% quantiles of Student's t for 1, 2, … degrees of freedom.
_T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


def kept(name: str, make: Callable[[], Any], folder: Path | None = None) -> Any:
    """The network of that name from an earlier run, or a new one, which is kept."""
    path = Path(OUT.value) / f"{name}.keras"
    for found in (path, folder / path.name if folder else path):
        if found.exists():
            return mp.load_model(str(found))
    model = make()
    mp.save_checkpoint(model, path)
    return model


def network(name: str, dataset: mp.Dataset, contract: mp.Preprocess) -> Any:
    """The trained float network called `name`."""
    seed = NETWORK_SEED.value

    def trained_base() -> Any:
        fresh = mp.build_model("mobilenet_small", contract, len(dataset.labels))
        return mp.train(fresh, dataset, mp.TrainSettings(TRAIN_EPOCHS.value, 64, 3e-3, True, seed))

    folder = Path(BASES.value) if BASES.value else None
    base = kept(f"base_{seed}_{TRAIN_EPOCHS.value}_epochs", trained_base, folder)
    if name == "base":
        return base
    fine = mp.TrainSettings(FINETUNE_EPOCHS.value, 64, 2e-3, True, seed)
    images = dataset.calibration.images(CALIBRATION.value)

    def made() -> Any:
        if name == "s80":
            sparse = mp.hold_zeros(mp.prune_one_shot(base, 0.8, images, allocation="global"))
            return mp.strip_pruning(mp.train(sparse, dataset, fine))
        plan = mp.plan_channels(base, macs=0.5, importance="obs", calibration=images)
        return mp.train(mp.prune_channels(base, plan, compensate="least_squares", calibration=images), dataset, fine)

    return kept(f"{name}_{seed}_{FINETUNE_EPOCHS.value}_epochs", made)


def figures(name: str, seed: int) -> dict[str, float]:
    """Everything that is measured of one network."""
    contract = mp.input_contract("mobilenet_small", mp.default_preprocess(DATASET.value))
    dataset = mp.load_dataset(DATASET.value, contract, seed=NETWORK_SEED.value)
    mp.set_seed(NETWORK_SEED.value)
    model = network(name, dataset, contract)
    mp.set_seed(seed)
    pool = dataset.calibration.images()
    images = pool[np.random.default_rng(seed).permutation(len(pool))[: CALIBRATION.value]]
    floats, measured = mp.convert(model, ["float32", "int8"], calibration=images)
    held = mp.hold_zeros(model) if name == "s80" else model
    aware = mp.quantize_aware(held, calibration=images)
    float_step, step = step_seconds(held, dataset), step_seconds(mp.quantize_aware(held, calibration=images), dataset)
    started = time.monotonic()
    aware = mp.train(aware, dataset, mp.TrainSettings(EPOCHS.value, 64, LEARNING_RATE.value, True, seed))
    seconds = time.monotonic() - started
    (learned,) = mp.convert(aware, ["int8"])
    check = mp.verify(aware, learned, dataset.test.images(min(2000, len(dataset.test))))
    check.raise_if_failed()
    trained = mp.strip_quantization(aware)
    return {
        "float32": mp.evaluate(floats, dataset.test.numpy_batches(256)),
        "calibrated": mp.evaluate(measured, dataset.test.numpy_batches(256)),
        "trained": mp.evaluate(learned, dataset.test.numpy_batches(256)),
        "agreement": check.agreement,
        "snr_db": check.snr_db,
        "zeros": mp.sparsity(model),
        "zeros_after": mp.sparsity(mp.strip_pruning(trained)),
        "file_zeros_calibrated": read_graph(measured.content).zero_fraction(),
        "file_zeros": read_graph(learned.content).zero_fraction(),
        "step": step / float_step,
        "seconds": seconds,
    }


def step_seconds(model: Any, dataset: mp.Dataset) -> float:
    """The median time of a training step on 64 images, on a copy that is thrown away."""
    import keras

    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    compile_classifier(copy, 0.0)
    batch, labels = next(iter(dataset.validation.numpy_batches(64)))
    times = []
    for _ in range(STEPS_TIMED + 2):
        started = time.perf_counter()
        copy.train_on_batch(batch, labels)
        times.append(time.perf_counter() - started)
    return statistics.median(times[2:])


def interval(values: np.ndarray) -> str:
    """The mean with half the width of its 95% interval."""
    if len(values) < 2:
        return f"{values.mean():.2f}"
    return f"{values.mean():.2f} ± {_T95[len(values) - 2] * values.std(ddof=1) / math.sqrt(len(values)):.2f}"


def main(argv: list[str]) -> int:
    """Runs what is missing and prints the table."""
    told = (
        DATASET.value,
        NETWORK_SEED.value,
        TRAIN_EPOCHS.value,
        FINETUNE_EPOCHS.value,
        EPOCHS.value,
        LEARNING_RATE.value,
    )
    path = Path(OUT.value) / f"{'_'.join(map(str, told))}.json"
    done: dict[str, dict[str, float]] = json.loads(path.read_text()) if path.exists() else {}
    for seed in range(SEEDS.value):
        for name in MODELS.value:
            if (key := f"{name} {seed}") not in done:
                done[key] = figures(name, seed)
                print(f"{key}: {done[key]}", flush=True)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(json.dumps(done, indent=1))
    print(
        "| network | float32 | int8, loss in points | after training | agreement | SNR | zeros before | after | step |"
    )
    print("|---" * 9 + "|")
    for name in MODELS.value:
        runs = [done[f"{name} {seed}"] for seed in range(SEEDS.value)]
        column = {key: np.array([run[key] for run in runs]) for key in runs[0]}
        losses = [interval(100 * (column["float32"] - column[key])) for key in ("calibrated", "trained")]
        print(
            f"| {name} | {100 * column['float32'].mean():.2f}% | {losses[0]} | {losses[1]} "
            f"| {column['agreement'].min():.2%} | {column['snr_db'].min():.1f} dB | {column['zeros'].mean():.4f} "
            f"| {column['zeros_after'].mean():.4f} | {column['step'].mean():.2f} |"
        )
    return 0


if __name__ == "__main__":
    app.run(lambda argv: sys.exit(main(argv)))
