"""What is left right after a cut when the group lasso has pressed channels before, at several strengths.

  python benchmarks/lasso_strength.py --train_epochs=3 [--strengths=0,0.005,0.02,0.05] [--lasso_epochs=1]

The default network on the whole of Fashion-MNIST: a base of --train_epochs, then --lasso_epochs with `mp.GroupLasso`
and the base as teacher; for the strength 0 the base itself. Both are cut by L2 to each of --kept of their multiply-
accumulates and get new batch-norm statistics, no training. The accuracies are those of the 10,000 test images. Data,
base and the other settings are those of iterative.py, whose flags this script has, too; about five minutes for a
strength.
"""

import sys
from typing import Any

import iterative
from absl import app, flags

import mobileprune as mp

STRENGTHS = flags.DEFINE_list("strengths", ["0", "0.005", "0.02", "0.05"], "Of the lasso; 0 for none.")
KEPT = flags.DEFINE_list("kept", ["0.75", "0.5"], "Shares of the multiply-accumulates.")


def pressed(base: Any, dataset: mp.Dataset, strength: float) -> Any:
    """The base after the epochs with the lasso."""
    if not strength:
        return base
    epochs, seed = iterative.LASSO_EPOCHS.value, int(iterative.SEEDS.value[0])
    settings = mp.TrainSettings(epochs, 64, 2e-3, True, seed)
    teaching = mp.Distillation(base, iterative.TEMPERATURE.value, iterative.WEIGHT.value)
    model = iterative.copy_of(base)
    return mp.train(model, dataset, settings, callbacks=[mp.GroupLasso(strength)], distillation=teaching)


def main(_: list[str]) -> int:
    """Trains, cuts and prints the table."""
    mp.quiet_tensorflow()
    seed = int(iterative.SEEDS.value[0])
    dataset = iterative.data(seed)
    images = dataset.calibration.images(256)
    print(f"| strength | before the cut | {' | '.join(f'{float(kept):.0%}' for kept in KEPT.value)} |")
    print("|---" * (2 + len(KEPT.value)) + "|")
    for strength in map(float, STRENGTHS.value):
        model = pressed(iterative.base_of(seed, dataset), dataset, strength)
        found = [iterative.accuracy(model, dataset)]
        for kept in map(float, KEPT.value):
            smaller = mp.prune_channels(model, mp.plan_channels(model, macs=kept, importance="l2"))
            found.append(iterative.accuracy(mp.recalibrate(smaller, images), dataset))
        print(f"| {strength:g} | {' | '.join(f'{100 * each:.1f}' for each in found)} |", flush=True)
    return 0


if __name__ == "__main__":
    flags.FLAGS.set_default("lasso_epochs", 1)
    app.run(lambda argv: sys.exit(main(argv)))
