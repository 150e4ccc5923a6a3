"""What batch normalisations as one op save in a training step.

  python benchmarks/fused_norms.py [--rounds=10] [--batch=64]

The default network at 32 pixels and MobileNetV2 at 96, random images, each trained as Keras does and within
`mp.fused_batch_norms`. The two take turns of ten steps, so that noise hits both alike. Printed are medians over the
turns, and the median of their ratios. About three minutes.
"""

import sys
import time
from typing import Any

import keras
import numpy as np
from absl import app, flags

import mobileprune as mp
from mobileprune.models import mobilenet_small

ROUNDS = flags.DEFINE_integer("rounds", 10, "Turns of each.", lower_bound=3)
BATCH = flags.DEFINE_integer("batch", 64, "Images in a step.", lower_bound=2)

TURN = 10
NETWORKS = {
    "mobilenet_small 32": lambda: mobilenet_small((32, 32, 1), 10),
    "MobileNetV2 96": lambda: keras.applications.MobileNetV2(
        (96, 96, 3), weights=None, classes=10, classifier_activation=None
    ),
}


def compiled(name: str) -> Any:
    """A network that is ready to be trained."""
    model = NETWORKS[name]()
    model.compile(keras.optimizers.Adam(1e-3), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def measure(name: str) -> np.ndarray:
    """Seconds of a step of both ways, plain and fused, by turns; shape (rounds, 2)."""
    plain, fused = compiled(name), compiled(name)
    generator = np.random.default_rng(0)
    images = generator.random((BATCH.value, *plain.input_shape[1:]), np.float32)
    labels = generator.integers(0, 10, BATCH.value)

    def turn(model: Any) -> float:
        started = time.perf_counter()
        for _ in range(TURN):
            model.train_on_batch(images, labels)
        return (time.perf_counter() - started) / TURN

    with mp.fused_batch_norms(fused):
        for model in (plain, fused):
            turn(model)  # the step is traced
        return np.array([[turn(plain), turn(fused)] for _ in range(ROUNDS.value)])


def main(_: list[str]) -> int:
    """Prints the table."""
    mp.quiet_tensorflow()
    print("| network | plain, seconds a step | fused | ÷ |\n|---|---|---|---|")
    for name in NETWORKS:
        seconds = measure(name)
        plain, fused = np.median(seconds, axis=0)
        print(f"| {name} | {plain:.3f} | {fused:.3f} | {np.median(seconds[:, 1] / seconds[:, 0]):.2f} |", flush=True)
    return 0


if __name__ == "__main__":
    app.run(lambda argv: sys.exit(main(argv)))
