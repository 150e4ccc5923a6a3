"""The network that the pruning benchmarks cut: small inverted residuals, trained on the whole of Fashion-MNIST.

  python benchmarks/fashion_net.py

Trains it on the 60,000 training images, prints its parameters, its multiply-accumulates and the share of the 10,000
test images that it classifies right, and writes benchmarks/models/fashion_net.keras without the optimizer's state. The
file is committed, so that nobody has to wait for it: 20 minutes on two idle cores.
"""

import argparse
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np

import mobileprune as mp
from mobileprune.datasets.fashion_mnist import read_whole

layers = keras.layers

MODEL_FILE = Path(__file__).resolve().parent / "models" / "fashion_net.keras"

BATCH_SIZE = 128
# Expanded channels, output channels, stride. The input of block 1 has 28×28 pixels, that of block 5 7×7.
BLOCKS = (
    (48, 24, 2),
    (96, 24, 1),
    (96, 24, 1),
    (144, 40, 2),
    (240, 40, 1),
    (240, 40, 1),
    (240, 64, 1),
)
STEM, HEAD = 16, 576


def build() -> Any:
    """The untrained network: 28×28×1 in -1 to 1, 10 logits, stock Keras layers only."""
    inputs = keras.Input((28, 28, 1), name="image")
    x = _conv_norm_relu(inputs, STEM, 3, "stem")
    for number, (expanded, channels, strides) in enumerate(BLOCKS, start=1):
        x = _inverted_residual(x, expanded, channels, strides, f"block_{number}")
    x = _conv_norm_relu(x, HEAD, 1, "head")
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(inputs, layers.Dense(10, name="logits")(x), name="fashion_net")


def _conv_norm_relu(x: Any, filters: int, size: int, name: str) -> Any:
    x = layers.Conv2D(filters, size, padding="same", use_bias=False, name=name)(x)
    return _norm_relu(x, name)


def _norm_relu(x: Any, name: str) -> Any:
    x = layers.BatchNormalization(momentum=0.9, name=f"{name}_norm")(x)
    return layers.ReLU(6.0, name=f"{name}_relu")(x)


def _inverted_residual(x: Any, expanded: int, channels: int, strides: int, name: str) -> Any:
    y = _conv_norm_relu(x, expanded, 1, f"{name}_expand")
    y = layers.DepthwiseConv2D(3, strides=strides, padding="same", use_bias=False, name=f"{name}_depthwise")(y)
    y = _norm_relu(y, f"{name}_depthwise")
    y = layers.Conv2D(channels, 1, use_bias=False, name=f"{name}_project")(y)
    y = layers.BatchNormalization(momentum=0.9, name=f"{name}_project_norm")(y)
    return layers.Add(name=f"{name}_add")([x, y]) if x.shape == y.shape else y


class Data(NamedTuple):
    """Images are float32 of shape (N, 28, 28, 1) from -1 to 1, labels int64 of shape (N,)."""

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


def load_data() -> Data:
    """All 60,000 + 10,000 images of Fashion-MNIST, from Keras's cache, Debian's package or a download."""
    data, _ = read_whole()
    return Data(
        _scaled(data.train_images),
        data.train_labels.astype(np.int64),
        _scaled(data.test_images),
        data.test_labels.astype(np.int64),
    )


def _scaled(pixels: np.ndarray) -> np.ndarray:
    return (pixels[..., np.newaxis].astype(np.float32) - 127.5) / 127.5


def accuracy(model: Any, images: np.ndarray, labels: np.ndarray) -> float:
    """Share of the images that the model classifies right, 0 to 1."""
    right = 0
    for start in range(0, len(images), 500):
        answers = model.predict_on_batch(images[start : start + 500])
        right += int(np.sum(np.argmax(answers, axis=-1) == labels[start : start + 500]))
    return right / len(images)


def fit(
    model: Any,
    data: Data,
    *,
    epochs: int,
    peak: float,
    warm_up: float,
    augment: bool,
    seed: int,
    callbacks: Sequence[Any] = (),
) -> None:
    """Trains `model` in place: Adam, a linear warm-up and a cosine decay to zero, batches of 128.

    Args:
        model: an uncompiled classifier that ends in logits.
        data: where the training images come from.
        epochs: passes over them.
        peak: the largest learning rate.
        warm_up: share of the steps before it.
        augment: random flips, and shifts by up to two pixels.
        seed: order of the images and of the augmentation.
        callbacks: of Keras.
    """
    batches = _Batches(data.train_images, data.train_labels, augment, seed)
    steps = epochs * len(batches)
    rising = int(warm_up * steps)
    rate = keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=peak / 10 if rising else peak,
        decay_steps=steps - rising,
        warmup_target=peak if rising else None,
        warmup_steps=rising,
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(rate), loss, metrics=["accuracy"])
    model.fit(batches, epochs=epochs, callbacks=list(callbacks), shuffle=False, verbose=2)


class _Batches(keras.utils.PyDataset):
    def __init__(self, images: np.ndarray, labels: np.ndarray, augment: bool, seed: int) -> None:
        super().__init__()
        self.images, self.labels, self.augment = images, labels, augment
        self.generator = np.random.default_rng(seed)
        self.order = self.generator.permutation(len(images))

    def __len__(self) -> int:
        return math.ceil(len(self.images) / BATCH_SIZE)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        chosen = self.order[index * BATCH_SIZE : (index + 1) * BATCH_SIZE]
        images = self.images[chosen]
        return (_augmented(images, self.generator) if self.augment else images), self.labels[chosen]

    def on_epoch_end(self) -> None:
        self.order = self.generator.permutation(len(self.images))


def _augmented(images: np.ndarray, generator: np.random.Generator, most: int = 2) -> np.ndarray:
    count, height, width, _ = images.shape
    padded = np.pad(images, ((0, 0), (most, most), (most, most), (0, 0)), constant_values=-1)
    down, right = generator.integers(0, 2 * most + 1, (2, count, 1))
    rows, columns = down + np.arange(height), right + np.arange(width)
    flipped = generator.random(count) < 0.5
    columns[flipped] = columns[flipped, ::-1]
    result: np.ndarray = padded[np.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]]
    return result


def main(arguments: list[str]) -> int:
    """Trains the network and saves it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=10, help="passes over the 60,000 training images")
    parser.add_argument("--seed", type=int, default=0, help="of the weights, the order of the images, the augmentation")
    parser.add_argument("--out", type=Path, default=MODEL_FILE, help="where the trained network goes")
    options = parser.parse_args(arguments)
    mp.set_seed(options.seed)
    data = load_data()
    model = build()
    started = time.monotonic()
    fit(model, data, epochs=options.epochs, peak=4e-3, warm_up=0.1, augment=True, seed=options.seed)
    seconds = time.monotonic() - started
    plain = build()  # the trained one would take its optimizer along
    plain.set_weights(model.get_weights())
    mp.save_checkpoint(plain, options.out)
    facts = mp.model_facts(plain)
    print(f"parameters                {facts.params:,}")
    print(f"multiply-accumulates      {facts.macs:,}")
    print(f"accuracy, 10,000 images   {accuracy(mp.load_model(options.out), data.test_images, data.test_labels):.4f}")
    print(f"seconds of training       {seconds:.0f}")
    print(f"size of {options.out.name:<17} {options.out.stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
