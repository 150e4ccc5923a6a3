"""What masks cost in training time, beside the TensorFlow Model Optimization toolkit (tfmot), in one run.

  python benchmarks/sparsity_step.py [--size=96] [--batch=32] [--steps=100] [--nopeer]

MobileNetV2 (2.2 million weights, random images) trains dense, with masks updated on every step and with masks updated
every 100 steps; a schedule from 0 to 80% all the time. The three take turns of ten steps, so that noise hits all alike.
Printed are mean times of a step and their ratio to the dense step; tfmot does the same on its own Keras in a second
process. About 10 minutes on two idle cores.
"""

import json
import os
import subprocess
import sys
import time
from typing import Any

import numpy as np
from absl import app, flags

SIZE = flags.DEFINE_integer("size", 96, "Height and width of the images.", lower_bound=32)
BATCH = flags.DEFINE_integer("batch", 32, "Images in a step.", lower_bound=2)
STEPS = flags.DEFINE_integer("steps", 100, "Steps of each variant.", lower_bound=20)
PEER = flags.DEFINE_bool("peer", True, "Measure tfmot, too.")
SIDE = flags.DEFINE_enum("side", None, ["mobileprune", "tfmot"], "Measure this one here (what each process does).")

TURN = 10
FREQUENCIES = {"dense": None, "every step": 1, "every 100 steps": 100}
GOALS = {"every step": 1.15, "every 100 steps": 1.03}


def measure(side: str) -> dict[str, float]:
    """Mean seconds of a training step of each variant."""
    if side == "tfmot":
        os.environ["TF_USE_LEGACY_KERAS"] = "1"
        import tensorflow_model_optimization as tfmot
        import tf_keras as keras

        sparsity, schedules = tfmot.sparsity.keras, tfmot.sparsity.keras
    else:
        import keras

        import mobileprune as mp

        sparsity = schedules = mp
    steps = STEPS.value
    models = {}
    for name, frequency in FREQUENCIES.items():
        model = keras.applications.MobileNetV2((SIZE.value, SIZE.value, 3), weights=None, classes=10)
        if frequency is not None:
            schedule = schedules.PolynomialDecay(0.0, 0.8, begin_step=0, end_step=2 * steps, frequency=frequency)
            model = sparsity.prune_low_magnitude(model, pruning_schedule=schedule)
        model.compile(keras.optimizers.Adam(1e-3), "sparse_categorical_crossentropy")
        models[name] = model
    generator = np.random.default_rng(0)
    images = generator.random((TURN * BATCH.value, SIZE.value, SIZE.value, 3), np.float32)
    labels = generator.integers(0, 10, len(images))

    def turn(name: str) -> float:
        callbacks = [] if name == "dense" else [sparsity.UpdatePruningStep()]
        watch = _clock(keras)
        models[name].fit(images, labels, batch_size=BATCH.value, verbose=0, callbacks=[*callbacks, watch])
        return watch.seconds

    for name in models:
        turn(name)  # the step is traced
    seconds = dict.fromkeys(models, 0.0)
    # The first turn of each has made TURN steps: the update of step 100 falls into what is measured.
    for _ in range(steps // TURN):
        for name in models:
            seconds[name] += turn(name)
    return {name: total / steps for name, total in seconds.items()}


def _clock(keras: Any) -> Any:
    class Clock(keras.callbacks.Callback):  # type: ignore[misc]
        """Time from before the first batch to after the last, masks and all, without what `fit` sets up."""

        seconds = 0.0

        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            self.started = time.perf_counter()

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            self.seconds = time.perf_counter() - self.started

    return Clock()


def in_a_process(side: str) -> dict[str, float]:
    """The same in a fresh process: the two Keras must not meet."""
    shared = [f"--{flag.name}={flag.value}" for flag in (SIZE, BATCH, STEPS)]
    done = subprocess.run([sys.executable, __file__, f"--side={side}", *shared], stdout=subprocess.PIPE, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main(argv: list[str]) -> int:
    """Prints the table; exit code 1 when a goal is missed."""
    if SIDE.value:
        print(json.dumps(measure(SIDE.value)))
        return 0
    sides = {side: in_a_process(side) for side in ("mobileprune", "tfmot")[: 1 + PEER.value]}
    print("| | " + " | ".join(f"{side}, seconds a step | ÷ dense" for side in sides) + " |")
    print("|---" * (1 + 2 * len(sides)) + "|")
    for name in FREQUENCIES:
        cells = (f"{found[name]:.3f} | {found[name] / found['dense']:.3f}" for found in sides.values())
        print(f"| {name} | " + " | ".join(cells) + " |")
    ours = sides["mobileprune"]
    missed = [name for name, goal in GOALS.items() if ours[name] / ours["dense"] > goal]
    print("goals: " + ", ".join(f"{name} ≤ {goal}" for name, goal in GOALS.items()) + f"; missed: {missed or 'none'}")
    return 1 if missed else 0


if __name__ == "__main__":
    app.run(lambda argv: sys.exit(main(argv)))
