"""Weight sparsity by the TensorFlow Model Optimization toolkit (tfmot) itself, for Keras 3 models.

The model crosses to tf_keras, is wrapped and trained there, and its weights come back. mobileprune's own
`prune_low_magnitude` does the same without leaving Keras 3; this is for comparing with it, and for those who must use
the toolkit.
"""

import fnmatch
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from mobileprune.errors import (
    DatasetError,
    InteropError,
    ModelError,
    OutputError,
    SettingsError,
    SparsityError,
    known_names,
)
from mobileprune.files import read_json, write_json
from mobileprune.graph import clone, leaves, same_layer
from mobileprune.interop import process
from mobileprune.interop.bridge import project, tf_keras_leaves, to_tf_keras, unwrapped
from mobileprune.interop.layers import carry_weights
from mobileprune.interop.schedules import reached_by_tfmot, to_tfmot_schedule
from mobileprune.models import gives_probabilities
from mobileprune.noise import described
from mobileprune.prunable import kernels_of
from mobileprune.train import OnBatch, OnEpoch, TrainSettings, one_cycle

Train = Callable[[Any, list[Any]], object]


def prune_low_magnitude_with_tfmot(
    model: Any,
    pruning_schedule: Any,
    train: Train,
    *,
    block_size: tuple[int, int] = (1, 1),
    block_pooling_type: str = "AVG",
    sparsity_m_by_n: tuple[int, int] | None = None,
) -> Any:
    """Trains a Keras 3 model under tfmot's own `prune_low_magnitude`.

    The layers that are wrapped are those that mobileprune's `prune_low_magnitude` wraps. tfmot counts a step for each
    call of a layer, so the schedule of a shared layer runs as many times as fast as it is called in the graph.

    Args:
        model: a built Sequential or functional Keras 3 model of stock layers; not changed.
        pruning_schedule: one schedule, tfmot's or ours (see `to_tfmot_schedule`), or a mapping from wildcard patterns
            of layer names to schedules (None leaves the layer dense; the first pattern that matches counts; layers that
            none matches stay dense).
        train: called with the wrapped tf_keras model, uncompiled, and the list of callbacks that its `fit` needs.
        block_size: height and width of the blocks of a dense layer's kernel that are zeroed together.
        block_pooling_type: `"AVG"` or `"MAX"`: what stands for a block.
        sparsity_m_by_n: for example (2, 4): 2 zeros in 4 neighbouring weights; tfmot then heeds no schedule and chooses
            once, at step 1.

    Returns:
        A new uncompiled Keras 3 model with the trained weights, without wrappers, with exact zeros.

    Raises:
        InteropError: the model has no equal in tf_keras, or tfmot refuses a layer.
        SparsityError: there is nothing to prune.

    Example:
        >>> def train(twin, callbacks):
        ...     twin.compile("adam", "sparse_categorical_crossentropy")
        ...     twin.fit(x, y, callbacks=callbacks)
        >>> sparse = prune_low_magnitude_with_tfmot(model, schedule, train)         # doctest: +SKIP
    """
    params = {
        "block_size": block_size,
        "block_pooling_type": block_pooling_type,
        "sparsity_m_by_n": sparsity_m_by_n,
    }
    chosen = {(layer.name, type(layer).__name__) for _, layer in leaves(model) if kernels_of(layer)}
    wrapped = _wrap(to_tf_keras(model), chosen, pruning_schedule, params)
    train(wrapped, [process.tfmot().UpdatePruningStep()])
    return _brought_back(wrapped, model)


def train_with_tfmot(
    model: Any,
    dataset: Any,
    settings: TrainSettings,
    pruning_schedule: Any,
    *,
    checkpoint: Path | None = None,
    log_dir: Path | None = None,
    on_batch: OnBatch | None = None,
    on_epoch: OnEpoch | None = None,
    **params: Any,
) -> Any:
    """`prune_low_magnitude`, `train` and `strip_pruning` in one, all done by tfmot on tf_keras.

    Optimizer, learning rate, loss, order of images and augmentation are those of `mobileprune.train`.

    Args:
        model: a Keras 3 classifier; not changed.
        dataset: where the images come from.
        settings: how long and how fast; at least one epoch.
        pruning_schedule: as in `prune_low_magnitude_with_tfmot`.
        checkpoint: a folder. After each epoch everything is kept there, and a call with the same folder goes on after
            the last finished epoch. (What dropout draws then differs from an uninterrupted run.)
        log_dir: a folder for TensorBoard.
        on_batch: told the number of each finished batch, counted over all epochs.
        on_epoch: told each finished epoch (from 1) and its figures.
        **params: `block_size`, `block_pooling_type`, `sparsity_m_by_n`.

    Returns:
        A new uncompiled Keras 3 model with exact zeros.

    Raises:
        SparsityError: with this many steps the schedule does not reach its final sparsity under tfmot, which keeps
            silent about it.
        InteropError: the model has no equal in tf_keras, or tfmot refuses a layer.
        ModelError: the loss became NaN.
        OutputError: the checkpoint cannot be written or read.
        SettingsError: the epochs are a part of a longer cycle.

    Example:
        >>> schedule = mp.PolynomialDecay(0.0, 0.8, begin_step=0, end_step=60, frequency=10)
        >>> sparse = train_with_tfmot(model, data, mp.TrainSettings(epochs=2), schedule)   # doctest: +SKIP
    """
    if settings.start or settings.cycle is not None:
        raise SettingsError("tfmot trains in a cycle of its own. Leave start and cycle of the settings as they are.")
    schedules = list(pruning_schedule.values()) if isinstance(pruning_schedule, Mapping) else [pruning_schedule]
    if params.get("sparsity_m_by_n") is None:
        for schedule in schedules:
            if schedule is not None:
                _check_reached(to_tfmot_schedule(schedule), settings.steps(len(dataset.train)))
    from_logits = not gives_probabilities(model)

    def train(wrapped: Any, callbacks: list[Any]) -> None:
        old = process.tf_keras()
        per_epoch = settings.steps(len(dataset.train)) // max(1, settings.epochs)
        # Of Keras 3's optimizer schedules those have the same settings; so one place decides how long it warms up.
        rate = one_cycle(settings.learning_rate, settings.steps(len(dataset.train))).get_config()
        optimizer = old.optimizers.Adam(old.optimizers.schedules.CosineDecay(**rate))
        wrapped.compile(optimizer, old.losses.SparseCategoricalCrossentropy(from_logits), metrics=["accuracy"])
        optimizer.build(wrapped.trainable_variables)
        keeper = _Keeper(wrapped, checkpoint)
        watch = _watch(old, keeper, on_batch, on_epoch, keeper.done * per_epoch)
        if log_dir is not None:
            callbacks = [*callbacks, old.callbacks.TensorBoard(log_dir)]
        images = dataset.train.batches(
            settings.batch_size, shuffle_seed=settings.seed, augment=settings.augment, epoch=keeper.done
        )
        try:
            wrapped.fit(
                images,
                validation_data=dataset.validation.batches(256),
                initial_epoch=keeper.done,
                epochs=settings.epochs,
                callbacks=[*callbacks, old.callbacks.TerminateOnNaN(), watch],
                verbose=0,
            )
        except tf.errors.OpError as error:
            raise DatasetError(f"Training with tfmot stopped: {described(error)}") from error
        if watch.diverged:
            raise ModelError(f"The loss of {model.name!r} became NaN. Lower its learning rate.")

    return prune_low_magnitude_with_tfmot(model, pruning_schedule, train, **params)


def _check_reached(schedule: Any, steps: int) -> None:
    reached, promised = reached_by_tfmot(schedule, steps)
    if promised - reached > 1e-6:
        raise SparsityError(
            f"tfmot would stop at a sparsity of {reached:.1%} in the place of {promised:.1%}: it acts at begin_step "
            f"plus multiples of frequency only, here begin_step={schedule.begin_step}, end_step={schedule.end_step}, "
            f"frequency={schedule.frequency} in {steps} steps. Choose a smaller frequency, or steps that are multiples."
        )


def _wrap(twin: Any, chosen: set[tuple[str, str]], pruning_schedule: Any, params: dict[str, Any]) -> Any:
    """tfmot's wrapped model, around the layers of `twin` with the chosen names and kinds."""
    old, tfmot = process.tf_keras(), process.tfmot()
    wrapped = []

    def wrap(layer: Any) -> Any:
        if isinstance(layer, old.Model):
            return old.models.clone_model(layer, clone_function=wrap)
        schedule = _schedule_for(layer.name, pruning_schedule)
        if (layer.name, type(layer).__name__) not in chosen or schedule is None:
            return layer
        wrapped.append(layer.name)
        return tfmot.prune_low_magnitude(layer, to_tfmot_schedule(schedule), **params)

    try:
        model = old.models.clone_model(twin, clone_function=wrap)
    except (TypeError, ValueError) as error:
        last = wrapped[-1] if wrapped else twin.name
        raise InteropError(
            f"tfmot refuses to prune {last!r}: {described(error)} Leave it dense: a schedule of None for its name in a "
            "mapping."
        ) from error
    if not wrapped:
        names = known_names(name for name, _ in sorted(chosen)) or "none"
        raise SparsityError(f"No layer of {twin.name!r} has a schedule. Layers with kernels: {names}.")
    return model


def _schedule_for(name: str, schedules: Any) -> Any:
    if not isinstance(schedules, Mapping):
        return schedules
    return next((schedule for pattern, schedule in schedules.items() if fnmatch.fnmatchcase(name, pattern)), None)


def _brought_back(wrapped: Any, model: Any) -> Any:
    """A copy of the Keras 3 model with the weights of its wrapped twin."""
    trained = dict(tf_keras_leaves(wrapped))
    copy = clone(model, same_layer)
    for path, layer in leaves(copy):
        if layer.weights and type(layer).__name__ != "Normalization":
            project(trained[path])
            carry_weights(unwrapped(trained[path]), layer)
    # Normalization is not trained.
    for (_, old), (_, new) in zip(leaves(model), leaves(copy), strict=True):
        if type(old).__name__ == "Normalization":
            new.set_weights(old.get_weights())
    return copy


class _Keeper:
    """Keeps a training's state after each epoch, and finds what an earlier process kept."""

    def __init__(self, model: Any, folder: Path | None) -> None:
        self.folder, self.done = folder, 0
        self.state = tf.train.Checkpoint(model=model, optimizer=model.optimizer)
        if folder is None or not (folder / "epoch.json").exists():
            return
        try:
            self.done = int(read_json(folder / "epoch.json")["epoch"])
            self.state.read(str(folder / f"epoch_{self.done}" / "state")).assert_existing_objects_matched()
        except (KeyError, TypeError, ValueError, AssertionError, tf.errors.OpError) as error:
            raise OutputError(
                f"Cannot go on from {folder}: {described(error)} Delete this folder and run again."
            ) from error

    def keep(self, epoch: int) -> None:
        if self.folder is None:
            return
        try:
            self.state.write(str(self.folder / f"epoch_{epoch}" / "state"))
        except tf.errors.OpError as error:
            raise OutputError(f"Cannot write {self.folder}: {described(error)} Free some space.") from error
        write_json(self.folder / "epoch.json", {"epoch": epoch})  # from here on it counts
        shutil.rmtree(self.folder / f"epoch_{epoch - 1}", ignore_errors=True)


def _watch(old: Any, keeper: _Keeper, on_batch: OnBatch | None, on_epoch: OnEpoch | None, done: int) -> Any:
    """The callback that reports progress and keeps each finished epoch."""

    class Watch(old.callbacks.Callback):
        batches, diverged = done, False

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            self.batches += 1
            loss = (logs or {}).get("loss", 0.0)
            self.diverged = self.diverged or not np.isfinite(loss)
            if on_batch:
                on_batch(self.batches)

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            if self.diverged:
                return
            keeper.keep(epoch + 1)
            if on_epoch:
                on_epoch(epoch + 1, {name: float(value) for name, value in (logs or {}).items()})

    return Watch()
