"""Compiles and fits a classifier so that a killed run goes on where it was."""

import contextlib
import dataclasses
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from mobileprune.data import Dataset
from mobileprune.distillation import Distillation, taught
from mobileprune.errors import DatasetError, ModelError, OutputError, SettingsError
from mobileprune.files import read_json, write_json
from mobileprune.fused_norms import fused_batch_norms
from mobileprune.models import gives_probabilities

# Keras keeps the outputs of all layers until a call ends: images of so many values at once, 13 of 224×224×3.
_VALUES_AT_ONCE = 2**21
_LEAST_BATCH = 8

OnEpoch = Callable[[int, dict[str, float]], None]
OnBatch = Callable[[int], None]


@dataclasses.dataclass(frozen=True)
class TrainSettings:
    """How a model is trained.

    Attributes:
        epochs: passes over the training split; 0 trains nothing.
        batch_size: images in a step.
        learning_rate: peak of a one-cycle schedule: linear warm-up over the first tenth, cosine decay to zero.
        augment: random flips and shifts of the training images.
        seed: order of the images and of the augmentation.
        start: epochs of the same cycle that other trainings had before. Images come in the order of the later epochs.
        cycle: epochs of the whole cycle that these are a part of; these and those before by default. A network that is
            cut in steps can learn in a single cycle over all of them (Hubens et al. 2021, arXiv:2107.02086).
        fused_norms: batch normalisations as one op where that can be, see `mobileprune.fused_batch_norms`: faster on
            processors, and the same up to rounding.

    Example:
        >>> first = TrainSettings(epochs=2, cycle=6)
        >>> last = TrainSettings(epochs=4, start=2)
    """

    epochs: int
    batch_size: int = 64
    learning_rate: float = 2e-3
    augment: bool = True
    seed: int = 0
    start: int = 0
    cycle: int | None = None
    fused_norms: bool = False

    def __post_init__(self) -> None:
        if self.cycle is not None and self.cycle < self.start + self.epochs:
            raise SettingsError(
                f"{self.epochs} epochs after {self.start} others are no part of a cycle of {self.cycle}. Raise cycle."
            )

    def steps(self, images: int) -> int:
        """Number of batches that `epochs` epochs of `images` images apply."""
        return self.epochs * -(-images // self.batch_size)

    def rates(self, images: int) -> Any:
        """The learning rate of each of these batches, as a Keras schedule."""
        epoch = -(-images // self.batch_size)
        whole = self.start + self.epochs if self.cycle is None else self.cycle
        return one_cycle(self.learning_rate, whole * epoch, self.start * epoch)


def train(
    model: Any,
    dataset: Dataset,
    settings: TrainSettings,
    *,
    checkpoint: Path | None = None,
    callbacks: Sequence[Any] = (),
    distillation: Distillation | None = None,
    on_batch: OnBatch | None = None,
    on_epoch: OnEpoch | None = None,
) -> Any:
    """Trains `model` on the training split, watching the validation split.

    Args:
        model: an uncompiled classifier, wrapped for sparsity or not. It is trained in place.
        dataset: where the images come from.
        settings: how long and how fast.
        checkpoint: a folder. After each epoch the model, its optimizer and masks are kept there, and a call with
            the same folder goes on after the last finished epoch.
        callbacks: further Keras callbacks (`UpdatePruningStep`, TensorBoard).
        distillation: a teacher that adds to the loss; validation and checkpoints stay as they are without.
        on_batch: told the number of each finished batch, counted over all epochs.
        on_epoch: told each finished epoch (from 1) and its figures.

    Returns:
        The trained model: `model` itself, or the one read from the checkpoint.

    Raises:
        ModelError: the loss became NaN, or the teacher does not fit the model.
        OutputError: the checkpoint cannot be written or read.
    """
    if settings.epochs == 0:
        return model
    done = 0
    if checkpoint is not None and (checkpoint / "epoch.json").exists():
        done, random = _finished(checkpoint / "epoch.json")
        model = load_checkpoint(checkpoint / f"epoch_{done}.keras")
    else:
        compile_classifier(model, settings.rates(len(dataset.train)))
        random = [[settings.seed + number, 0] for number in range(len(_random_states(model)))]
    # What dropout draws must not depend on what this process did before; Keras does not save it.
    for state, value in zip(_random_states(model), random, strict=True):
        state.assign(np.asarray(value))
    if done >= settings.epochs:
        return model
    images = dataset.train.batches(
        settings.batch_size, shuffle_seed=settings.seed, augment=settings.augment, epoch=settings.start + done
    )
    norms = fused_batch_norms if settings.fused_norms else contextlib.nullcontext
    watch = _Watch(checkpoint, on_batch, on_epoch, done * -(-len(dataset.train) // settings.batch_size))
    try:
        with taught(model, distillation), norms(model):
            model.fit(
                images,
                validation_data=dataset.validation.batches(256),
                initial_epoch=done,
                epochs=settings.epochs,
                callbacks=[*callbacks, keras.callbacks.TerminateOnNaN(), watch],
                shuffle=False,  # the batches come shuffled
                verbose=0,
            )
    except tf.errors.OpError as error:
        # What Python code inside the input pipeline raises arrives as TensorFlow's error, with the text inside.
        found = re.search(r"DatasetError: ([^\n]*)", str(error))
        if found is None:
            raise
        raise DatasetError(found[1]) from error
    if watch.diverged:
        raise ModelError(f"The loss of {model.name!r} became NaN. Lower its learning rate.")
    return model


def set_seed(seed: int) -> None:
    """Seeds everything that draws: fresh weights, dropout, NumPy and Python."""
    keras.utils.set_random_seed(seed)


def compile_classifier(model: Any, learning_rate: Any = 1e-3) -> None:
    """Gives a classifier Adam and cross-entropy on logits or probabilities, whichever it ends in."""
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=not gives_probabilities(model))
    model.compile(keras.optimizers.Adam(learning_rate), loss, metrics=["accuracy"])
    # Otherwise its variables appear while the step is traced, and TensorFlow traces the step a second time.
    model.optimizer.build(model.trainable_variables)


def validate(model: Any, dataset: Dataset) -> float:
    """Share of the validation split that the Keras model classifies right, 0 to 1."""
    right = total = 0
    for images, labels in dataset.validation.numpy_batches(256):
        right += int(np.sum(np.argmax(model.predict_on_batch(images), axis=-1) == labels))
        total += len(labels)
    return right / total


def recalibrate(
    model: Any, images: np.ndarray, batch_size: int = 64, judge: Callable[[Any], float] | None = None
) -> Any:
    """Re-estimates the statistics of every batch normalisation on images; no labels, no gradient.

    Each batch's mean and variance count alike (the moving average with momentum (n-1)/n is the plain mean), so the
    result does not remember the statistics from before. That is a gain after pruning, and a loss when the images are
    few or all alike: `judge` decides which it is.

    Args:
        model: any Keras model; its moving means and variances are replaced.
        images: float32, N×H×W×C, already normalised as the model wants them.
        batch_size: images in one estimate; of large images fewer, for the memory's sake.
        judge: how good a model is, larger is better; the old statistics come back unless the new ones score higher.

    Returns:
        `model`.
    """
    norms = [layer for layer in model._flatten_layers() if isinstance(layer, keras.layers.BatchNormalization)]
    kept = [(layer.momentum, layer.trainable) for layer in norms]
    before = [layer.get_weights() for layer in norms]
    score = judge(model) if judge else None
    batch_size = min(batch_size, max(_LEAST_BATCH, _VALUES_AT_ONCE // max(1, images[0].size)))
    batches = _chunks(images, batch_size)
    if len(batches) > 1 and len(batches[-1]) < batch_size // 2:
        batches.pop()  # a small last batch would count as much as a full one
    for layer in norms:
        layer.trainable = True
    for number, batch in enumerate(batches):
        for layer in norms:
            layer.momentum = number / (number + 1)
        model(batch, training=True)
    for layer, (momentum, trainable) in zip(norms, kept, strict=True):
        layer.momentum, layer.trainable = momentum, trainable
    if judge and score is not None and judge(model) <= score:
        for layer, values in zip(norms, before, strict=True):
            layer.set_weights(values)
    return model


def agreement(model: Any, other: Any, images: np.ndarray) -> float:
    """Share of images to which two Keras models give the same top-1 class, 0 to 1."""
    answers = [np.concatenate([each.predict_on_batch(batch) for batch in _chunks(images)]) for each in (model, other)]
    return float(np.mean(answers[0].argmax(axis=-1) == answers[1].argmax(axis=-1)))


def _chunks(images: np.ndarray, size: int = 64) -> list[np.ndarray]:
    return [images[start : start + size] for start in range(0, len(images), size)]


def save_checkpoint(model: Any, path: Path) -> None:
    """Saves a model with its optimizer so that a reader never meets half of it."""
    temporary = path.with_name(f".{os.getpid()}_{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        model.save(temporary)
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise OutputError(f"Cannot write {path}: {error.strerror or error}. Free some space.") from error


def load_checkpoint(path: Path) -> Any:
    """Reads what `save_checkpoint` wrote.

    Raises:
        OutputError: it is missing or damaged.
    """
    try:
        return keras.models.load_model(path, safe_mode=True)
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise OutputError(f"Cannot read the checkpoint {path}: {reason}. Delete its folder and run again.") from error


class _Watch(keras.callbacks.Callback):
    """Reports progress, and keeps each finished epoch before anything else can go wrong."""

    def __init__(self, checkpoint: Path | None, on_batch: OnBatch | None, on_epoch: OnEpoch | None, done: int) -> None:
        super().__init__()
        self.checkpoint, self.on_batch, self.on_epoch, self.batches = checkpoint, on_batch, on_epoch, done
        self.diverged = False

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.batches += 1
        self.diverged = self.diverged or not np.isfinite((logs or {}).get("loss", 0.0))
        if self.on_batch:
            self.on_batch(self.batches)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if self.diverged:
            return
        if self.checkpoint is not None:
            save_checkpoint(self.model, self.checkpoint / f"epoch_{epoch + 1}.keras")
            random = [np.asarray(state).tolist() for state in _random_states(self.model)]
            write_json(self.checkpoint / "epoch.json", {"epoch": epoch + 1, "random": random})
            (self.checkpoint / f"epoch_{epoch}.keras").unlink(missing_ok=True)
        if self.on_epoch:
            self.on_epoch(epoch + 1, {name: float(value) for name, value in (logs or {}).items()})


def _finished(path: Path) -> tuple[int, list[list[int]]]:
    """The number of finished epochs and the random generators' states after them."""
    kept = read_json(path)
    try:
        return int(kept["epoch"]), [[int(number) for number in state] for state in kept["random"]]
    except (KeyError, TypeError, ValueError) as error:
        raise OutputError(f"{path} does not say which epoch is finished. Delete its folder and run again.") from error


def _random_states(model: Any) -> list[Any]:
    return [variable for variable in model.variables if variable.path.endswith("seed_generator_state")]


def one_cycle(peak: float, steps: int, start: int = 0) -> Any:
    """A learning rate that rises to `peak` over the first tenth of the steps and falls along a cosine to 0.

    Args:
        peak: the largest.
        steps: of the whole cycle.
        start: the step of it at which a training begins.
    """
    warm_up = max(1, steps // 10)
    whole = keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=peak / 10,
        decay_steps=max(1, steps - warm_up),
        warmup_target=peak,
        warmup_steps=warm_up,
    )
    return _From(whole, start) if start else whole


@keras.saving.register_keras_serializable(package="mobileprune")
class _From(keras.optimizers.schedules.LearningRateSchedule):
    """Another schedule from one of its steps on."""

    def __init__(self, schedule: Any, start: int) -> None:
        super().__init__()
        self.schedule, self.start = schedule, start

    def __call__(self, step: Any) -> Any:
        return self.schedule(step + self.start)

    def get_config(self) -> dict[str, Any]:
        return {"schedule": keras.saving.serialize_keras_object(self.schedule), "start": self.start}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "_From":
        return cls(keras.saving.deserialize_keras_object(config["schedule"]), config["start"])
