"""What happens to the masks while `fit` trains: they are updated, and written to TensorBoard."""

from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from mobileprune.errors import SparsityError
from mobileprune.pruning_wrapper import PruneLowMagnitude, numbers_of, update_masks, wrapped_layers


class UpdatePruningStep(keras.callbacks.Callback):
    """Updates the masks of a wrapped model as training goes on; `fit` needs it.

    A step is one applied batch, the first is step 1. Masks are computed just before a batch is applied, as in the
    TensorFlow Model Optimization toolkit; a schedule whose `end_step` is the number of batches ends with its final
    sparsity. With `steps_per_execution` masks can only change between executions: they are computed for the last update
    that falls into the coming one.

    In a loop of your own call `set_model(model)`, `on_train_begin()`, before each batch `on_train_batch_begin(batch)`
    (any number will do) and at the end `on_train_end()`.

    Raises:
        SparsityError: at the start of training, when the model has no wrapped layer.

    Example:
        >>> sparse.fit(x, y, callbacks=[UpdatePruningStep()])                               # doctest: +SKIP
    """

    def __init__(self) -> None:
        super().__init__()
        self._wrapped: list[PruneLowMagnitude] = []

    def on_train_begin(self, logs: Any = None) -> None:
        self._counted, self._told_ends = 0, False
        self._wrapped = wrapped_layers(self.model)
        if not self._wrapped:
            raise SparsityError("The model has no wrapped layer. Wrap it with prune_low_magnitude first.")
        if unbuilt := [layer.name for layer in self._wrapped if not layer.built]:
            raise SparsityError(f"{unbuilt[0]!r} has no weights yet: call the model on a batch first.")
        optimizer = getattr(self.model, "optimizer", None)
        if optimizer and not all(bool(variable.value.is_initialized()) for variable in optimizer.variables):
            raise SparsityError(
                "An earlier fit without UpdatePruningStep broke off and left the optimizer half made: compile the "
                "model again."
            )
        self._read_steps()
        self._released: list[bool] = [False] * len(self._wrapped)
        for layer in self._wrapped:
            layer.updating = True
            layer.release(False)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        # Another callback may have restored a backup since training began.
        self._read_steps()

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self._counted = self._batches_at_once(batch)
        # What Keras has applied is only asked for where it cannot be foretold.
        self._applied = self._iterations() if self._counted > 1 and self._length() is None else None
        acting: dict[int, list[PruneLowMagnitude]] = {}
        for layer, step in zip(self._wrapped, self._steps, strict=True):
            schedule = layer.pruning_schedule
            coming = range(step + self._counted, step, -1)
            last = None if schedule is None else next(filter(schedule.should_update, coming), None)
            if last is not None:
                acting.setdefault(last, []).append(layer)
        for step, layers in acting.items():
            update_masks(layers, step)
        self._count(self._counted)
        self._release(batch)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if self._applied is not None:
            # Of data of unknown length the last execution may have been shorter, and Keras does not say so.
            self._count(min(0, self._iterations() - self._applied - self._counted))
        self._counted, self._told_ends = 0, True

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if self._told_ends and self._counted:
            # Keras begins one batch too many where it does not know the length.
            self._count(-self._counted)
            self._counted = 0
        self._project()

    def on_test_begin(self, logs: Any = None) -> None:
        self._project()

    def on_train_end(self, logs: Any = None) -> None:
        # An optimizer that averages weights has just written the averages over the zeros.
        self._project()
        for layer in self._wrapped:
            layer.updating = False
            layer.release(False)
            if self.model.jit_compile and not layer.finished:
                # Compiled by XLA the training function cannot complain that nobody updates the masks: trace it anew.
                self.model.train_function = None

    def _batches_at_once(self, batch: int) -> int:
        at_once = int(getattr(self.model, "steps_per_execution", 1) or 1)
        steps = self._length()
        return at_once if steps is None or at_once == 1 else max(1, min(at_once, steps - batch))

    def _length(self) -> int | None:
        return (self.params or {}).get("steps")

    def _optimizer(self) -> Any:
        optimizer = getattr(self.model, "optimizer", None)
        return getattr(optimizer, "inner_optimizer", optimizer)

    def _iterations(self) -> int:
        return int(numbers_of(self._optimizer()._iterations))  # the public number counts accumulated batches as one

    def _project(self) -> None:
        for layer in self._wrapped:
            layer.project()
        optimizer = self._optimizer()
        if getattr(optimizer, "use_ema", False) and optimizer.built:
            # `keras.callbacks.SwapEMAWeights` puts the averages in the place of the weights.
            averages = dict(
                zip(map(id, optimizer._trainable_variables), optimizer._model_variables_moving_average, strict=False)
            )
            for layer in self._wrapped:
                layer.project(averages)

    def _release(self, batch: int) -> None:
        """Lets weights go in the coming step where their masks are chosen anew after it, as the toolkit does."""
        ends = self._length() is not None and batch + 1 == self._length()  # all is projected at the end of an epoch
        for index, (layer, step) in enumerate(zip(self._wrapped, self._steps, strict=True)):
            schedule = layer.pruning_schedule
            wanted = self._counted == 1 and not ends and schedule is not None and schedule.should_update(step + 1)
            if wanted != self._released[index]:
                self._released[index] = wanted
                layer.release(wanted)

    def _read_steps(self) -> None:
        self._steps = [int(numbers_of(layer.pruning_step)) for layer in self._wrapped]

    def _count(self, batches: int) -> None:
        self._steps = [step + batches for step in self._steps]
        for layer in self._wrapped:
            layer.pruning_step.value.assign_add(
                batches, read_value=False
            )  # past Keras, whose own assignment takes twice as long


class PruningSummaries(keras.callbacks.TensorBoard):
    """TensorBoard's callback that also writes the sparsity and the threshold of every mask, once an epoch.

    Args:
        log_dir: the folder for the event files; the masks' own are in `metrics` inside it.
        **kwargs: as in `keras.callbacks.TensorBoard`.

    Example:
        >>> sparse.fit(x, y, callbacks=[UpdatePruningStep(), PruningSummaries("logs")])         # doctest: +SKIP
    """

    def __init__(self, log_dir: str = "logs", **kwargs: Any) -> None:
        super().__init__(log_dir=log_dir, **kwargs)
        self._masks_writer: Any = None

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        super().on_epoch_end(epoch, logs)
        if self._masks_writer is None:
            self._masks_writer = tf.summary.create_file_writer(str(Path(self.log_dir) / "metrics"))
        step = int(numbers_of(self.model.optimizer.iterations))
        with self._masks_writer.as_default():
            for layer in wrapped_layers(self.model):
                for kernel, weights, mask in layer.pruned_weights():
                    kept = np.abs(numbers_of(weights).astype(np.float32))[numbers_of(mask) > 0]
                    name = f"{layer.name}/{kernel.path}"
                    tf.summary.scalar(f"{name}/sparsity", 1 - kept.size / max(1, np.size(mask)), step=step)
                    tf.summary.scalar(f"{name}/threshold", kept.min() if kept.size else 0.0, step=step)
            self._masks_writer.flush()

    def on_train_end(self, logs: Any = None) -> None:
        super().on_train_end(logs)
        if self._masks_writer is not None:
            self._masks_writer.close()
            self._masks_writer = None
