"""What zeros cost in accuracy: the default network on the whole of Fashion-MNIST, several seeds.

  python benchmarks/sparsity_accuracy.py [--seeds=3] [--sparsities=0.8,0.9] [--init=one_shot]

For each seed the base is trained and, from it, one network for each sparsity, all as `classify_mobile.py` does by
default: 8 epochs; zeros by `prune_one_shot`, or with `--init=none` along the polynomial schedule; 4 epochs of
fine-tuning. Prints, on the 10,000 test images, each network's accuracy and the mean loss in points with its 95%
interval over the seeds (Student's t). What is finished, trained bases included, is kept in --out, so that a run that
was killed goes on. About 20 minutes a seed on two idle cores.
"""

import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags

import mobileprune as mp

SEEDS = flags.DEFINE_integer("seeds", 3, "How many.", lower_bound=2, upper_bound=10)
SPARSITIES = flags.DEFINE_list("sparsities", ["0.8", "0.9"], "Shares of zeros.")
TRAIN_EPOCHS = flags.DEFINE_integer("train_epochs", 8, "Of the base.")
FINETUNE_EPOCHS = flags.DEFINE_integer("finetune_epochs", 4, "Of every sparse network.", lower_bound=1)
DATASET = flags.DEFINE_string("dataset", "fashion_mnist_full", "As in classify_mobile.py.")
INIT = flags.DEFINE_enum("init", "one_shot", ["none", "one_shot"], "As --sparsity_init of classify_mobile.py.")
CALIBRATION = flags.DEFINE_integer("calibration_images", 256, "For one_shot.", lower_bound=16)
OUT = flags.DEFINE_string("out", "benchmarks/results/sparsity_accuracy", "A folder for figures and trained bases.")

# Two-sided 95% quantiles of Student's t for 1, 2, … degrees of freedom.
_T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


def accuracy(model: Any, dataset: mp.Dataset) -> float:
    """Share of the test images that the Keras model classifies right."""
    right = total = 0
    for images, labels in dataset.test.numpy_batches(256):
        right += int(np.sum(np.argmax(model.predict_on_batch(images), axis=-1) == labels))
        total += len(labels)
    return right / total


def one_seed(seed: int, sparsities: list[float]) -> dict[str, float]:
    """Accuracies of the base and of each sparse network, by name."""
    mp.set_seed(seed)
    contract = mp.default_preprocess(DATASET.value, None, None)
    contract = mp.input_contract("mobilenet_small", contract, None, None)
    dataset = mp.load_dataset(DATASET.value, contract, seed=seed)
    path = Path(OUT.value) / f"base_{seed}_{TRAIN_EPOCHS.value}_epochs.keras"
    if path.exists():
        base = mp.load_model(str(path))
    else:
        base = mp.build_model("mobilenet_small", contract, len(dataset.labels), None, None)
        base = mp.train(base, dataset, mp.TrainSettings(TRAIN_EPOCHS.value, 64, 3e-3, True, seed))
        mp.save_checkpoint(base, path)
    found = {"base": accuracy(base, dataset)}
    fine = mp.TrainSettings(FINETUNE_EPOCHS.value, 64, 2e-3, True, seed)
    for share in sparsities:
        trained = mp.train(wrapped(base, dataset, fine, share), dataset, fine, callbacks=[mp.UpdatePruningStep()])
        sparse = mp.strip_pruning(trained)
        found[f"{share:g}"] = accuracy(sparse, dataset)
        found[f"{share:g} zeros"] = mp.sparsity(sparse)
        print(f"seed {seed}, {share:.0%}: {found[f'{share:g}']:.4f} after {found['base']:.4f}", flush=True)
    return found


def wrapped(base: Any, dataset: mp.Dataset, fine: mp.TrainSettings, share: float) -> Any:
    """The base with masks, ready to be fine-tuned."""
    if INIT.value == "one_shot":
        images = dataset.calibration.images(CALIBRATION.value)
        return mp.hold_zeros(mp.prune_one_shot(base, share, images, allocation="global"))
    end = int(0.6 * fine.steps(len(dataset.train)))
    schedule = mp.PolynomialDecay(0.0, share, begin_step=0, end_step=end, frequency=max(1, end // 40))
    return mp.prune_low_magnitude(base, schedule, nested=True)


def interval(losses: np.ndarray) -> float:
    """Half the width of the mean's 95% interval."""
    return float(_T95[len(losses) - 2] * losses.std(ddof=1) / math.sqrt(len(losses)))


def main(argv: list[str]) -> int:
    """Runs what is missing and prints the table; exit code 1 if nothing could be compared."""
    sparsities = [float(value) for value in SPARSITIES.value]
    told = (INIT.value, TRAIN_EPOCHS.value, FINETUNE_EPOCHS.value, *SPARSITIES.value)
    path = Path(OUT.value) / f"{'_'.join(map(str, told))}.json"
    done: dict[str, dict[str, float]] = json.loads(path.read_text()) if path.exists() else {}
    for seed in range(SEEDS.value):
        if str(seed) not in done:
            started = time.monotonic()
            done[str(seed)] = one_seed(seed, sparsities)
            print(f"seed {seed}: {done[str(seed)]} in {time.monotonic() - started:.0f} s", flush=True)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(done, indent=1))
    runs = [done[str(seed)] for seed in range(SEEDS.value)]
    print("| network | zeros | " + " | ".join(f"seed {seed}" for seed in range(SEEDS.value)) + " | loss in points |")
    print("|---" * (SEEDS.value + 3) + "|")
    print("| base | | " + " | ".join(f"{100 * run['base']:.2f}" for run in runs) + " | |")
    for share in (f"{value:g}" for value in sparsities):
        losses = np.array([100 * (run["base"] - run[share]) for run in runs])
        cells = " | ".join(f"{100 * run[share]:.2f}" for run in runs)
        print(
            f"| s{share} | {runs[0][f'{share} zeros']:.3f} | {cells} | {losses.mean():.2f} ± {interval(losses):.2f} |"
        )
    return 0


if __name__ == "__main__":
    app.run(lambda argv: sys.exit(main(argv)))
