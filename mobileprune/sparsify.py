"""Weight sparsity on Keras 3 models: wrap, train with a callback, strip.

The names and their meaning are those of the TensorFlow Model Optimization toolkit. A wrapped layer projects its kernel
onto its mask in the variable's constraint: there every optimizer step meets it, and masks and weights develop as they
do in that toolkit.
"""

import fnmatch
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras
import numpy as np

from mobileprune.errors import SparsityError, known_names
from mobileprune.graph import clone, inline_nested, same_layer
from mobileprune.masks import magnitude_mask, zero_fraction
from mobileprune.schedules import PolynomialDecay, PruningSchedule, schedule_from_config

layers = keras.layers

# The weights of each layer that masks may zero. Depthwise kernels are few, precious, and slow when sparse.
PRUNABLE: dict[type, tuple[str, ...]] = {
    layers.Conv1D: ("kernel",),
    layers.Conv2D: ("kernel",),
    layers.Conv1DTranspose: ("kernel",),
    layers.Conv2DTranspose: ("kernel",),
    layers.SeparableConv1D: ("pointwise_kernel",),
    layers.SeparableConv2D: ("pointwise_kernel",),
    layers.Dense: ("kernel",),
}

PREFIX = "prune_low_magnitude_"


class _Projection(keras.constraints.Constraint):
    """Zeroes what the mask removes, after any constraint that the layer already had."""

    def __init__(self, mask: Any, inner: Any) -> None:
        self.mask, self.inner = mask, inner

    def __call__(self, weights: Any) -> Any:
        weights = weights if self.inner is None else self.inner(weights)
        return weights * keras.ops.cast(self.mask, weights.dtype)


@keras.saving.register_keras_serializable(package="mobileprune")
class PruneLowMagnitude(keras.layers.Wrapper):
    """A layer whose smallest weights are kept at zero.

    Args:
        layer: a layer with a kernel, see `PRUNABLE`.
        pruning_schedule: when the masks change and how sparse they are; None keeps the masks as they are.
        nested: masks only ever lose weights: a zero never comes back.

    The shapes of inputs and outputs are the layer's own. Use `prune_low_magnitude` to wrap a layer or a model.
    """

    def __init__(
        self, layer: Any, pruning_schedule: PruningSchedule | None = None, nested: bool = False, **kwargs: Any
    ) -> None:
        if type(layer) not in PRUNABLE:
            known = known_names(kind.__name__ for kind in PRUNABLE)
            raise SparsityError(f"{type(layer).__name__} {layer.name!r} has no weights to prune. Known: {known}.")
        kwargs.setdefault("name", PREFIX + layer.name)
        # The layer's own precision, or the wrapper would round the inputs to the default one.
        kwargs.setdefault("dtype", layer.dtype_policy)
        super().__init__(layer, **kwargs)
        self.pruning_schedule, self.nested = pruning_schedule, nested
        self.masks: dict[str, Any] = {}

    def build(self, input_shape: Any = None) -> None:
        super().build(input_shape)
        for attribute in PRUNABLE[type(self.layer)]:
            weights = getattr(self.layer, attribute)
            mask = self.add_weight(
                name=f"{attribute}_mask", shape=weights.shape, initializer="ones", dtype="float32", trainable=False
            )
            self.masks[attribute] = mask
            weights.constraint = _Projection(mask, weights.constraint)
        self.pruning_step = self.add_weight(
            name="pruning_step", shape=(), initializer="zeros", dtype="int32", trainable=False
        )

    def call(self, inputs: Any) -> Any:
        return self.layer(inputs)

    def compute_output_shape(self, input_shape: Any) -> Any:
        return self.layer.compute_output_shape(input_shape)

    def pruned_weights(self) -> list[tuple[Any, Any]]:
        """Every pruned variable with the variable that holds its mask."""
        return [(getattr(self.layer, attribute), mask) for attribute, mask in self.masks.items()]

    def update_masks(self, step: int) -> None:
        """Computes the masks for `step` from the weights as they are, and zeroes what they remove."""
        if self.pruning_schedule is None:
            return
        sparsity = self.pruning_schedule.sparsity(step)
        for weights, mask in self.pruned_weights():
            values = np.asarray(weights)
            chosen = magnitude_mask(values, sparsity)
            if self.nested:
                chosen &= np.asarray(mask) > 0
            mask.assign(chosen.astype("float32"))
            weights.assign(values * chosen)

    def project(self) -> None:
        """Zeroes again what the masks remove, after something other than an optimizer step wrote the weights."""
        for weights, mask in self.pruned_weights():
            weights.assign(np.where(np.asarray(mask) > 0, np.asarray(weights), 0))

    def mask_zeros(self) -> None:
        """Makes the zeros that the weights have now the mask."""
        for weights, mask in self.pruned_weights():
            mask.assign((np.asarray(weights) != 0).astype("float32"))

    def get_config(self) -> dict[str, Any]:
        schedule = None if self.pruning_schedule is None else self.pruning_schedule.get_config()
        return {**super().get_config(), "pruning_schedule": schedule, "nested": self.nested}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> "PruneLowMagnitude":
        config = dict(config)
        layer = keras.saving.deserialize_keras_object(config.pop("layer"), custom_objects=custom_objects)
        schedule = config.pop("pruning_schedule")
        return cls(layer, None if schedule is None else schedule_from_config(schedule), **config)


Schedules = PruningSchedule | Mapping[str, PruningSchedule | None]


def prune_low_magnitude(to_prune: Any, pruning_schedule: Schedules | None = None, *, nested: bool = False) -> Any:
    """Wraps a layer, or every layer with kernels of a model, so that training makes it sparse.

    Args:
        to_prune: an unbuilt layer, or a built Sequential or functional model (left as it is). Models nested in it are
            joined into one graph.
        pruning_schedule: one schedule, or a mapping from wildcard patterns of layer names to schedules (None leaves
            the layer dense; the first pattern that matches counts; layers that none matches stay dense). By default a
            decay from 50% to 80% over 1,000 steps.
        nested: zeros that the model already has stay, and masks only ever lose weights.

    Returns:
        The wrapped layer, or a new uncompiled model. Train it with `UpdatePruningStep` among the callbacks.

    Raises:
        SparsityError: there is nothing to prune.

    Example:
        >>> schedule = PolynomialDecay(0.0, 0.8, begin_step=0, end_step=1000)
        >>> sparse = prune_low_magnitude(keras.layers.Dense(4), schedule)
        >>> sparse.name
        'prune_low_magnitude_dense'
    """
    schedule = PolynomialDecay(0.5, 0.8, begin_step=0, end_step=1000) if pruning_schedule is None else pruning_schedule
    if not isinstance(to_prune, keras.Model):
        return PruneLowMagnitude(to_prune, _schedule_for(to_prune.name, schedule), nested)
    return _wrap(to_prune, lambda name: _schedule_for(name, schedule), nested, skip_none=True)


def hold_zeros(model: Any) -> Any:
    """Wraps a model so that the zeros it has now stay through any later training; `strip_pruning` takes it off.

    Train with `UpdatePruningStep` when the optimizer averages weights (`use_ema`): Keras writes the averages at the
    very end, past the masks.

    Example:
        >>> held = hold_zeros(pruned); held.compile(...); held.fit(...)             # doctest: +SKIP
        >>> pruned = strip_pruning(held)                                            # doctest: +SKIP
    """
    return _wrap(model, lambda name: None, nested=True, skip_none=False)


def strip_pruning(model: Any) -> Any:
    """The plain model inside a wrapped one: same outputs, same layer names as before wrapping, exact zeros.

    Returns:
        A new uncompiled model without any mobileprune layer.
    """

    pairs = []

    def plain(layer: Any) -> Any:
        copy = same_layer(layer.layer if isinstance(layer, PruneLowMagnitude) else layer)
        pairs.append((layer, copy))
        return copy

    stripped = clone(model, plain)
    for old, new in pairs:
        if not isinstance(old, PruneLowMagnitude):
            new.set_weights(old.get_weights())
            continue
        new.set_weights(old.layer.get_weights())
        for attribute, mask in old.masks.items():
            variable = getattr(new, attribute)
            # Not a product: that leaves negative zeros, whose sign bits make files compress worse.
            variable.assign(np.where(np.asarray(mask) > 0, np.asarray(variable), 0))
    return stripped


def prune_now(model: Any) -> Any:
    """Brings a wrapped model to its schedules' final sparsity at once, without training; returns `model`."""
    for layer in model.layers:
        if isinstance(layer, PruneLowMagnitude) and layer.pruning_schedule is not None:
            layer.update_masks(layer.pruning_schedule.last_step)
    return model


def sparsity(model: Any) -> float:
    """Share of exact zeros among all weights that masks may zero (see `PRUNABLE`), wrapped, nested or not."""
    inner = {id(layer): layer for layer in _inner_layers(model)}.values()
    return zero_fraction(
        [np.asarray(getattr(layer, name)) for layer in inner for name in PRUNABLE.get(type(layer), ())]
    )


def _inner_layers(model: Any) -> Iterator[Any]:
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from _inner_layers(layer)
        else:
            yield layer.layer if isinstance(layer, PruneLowMagnitude) else layer


class UpdatePruningStep(keras.callbacks.Callback):
    """Updates the masks of a wrapped model as training goes on; `fit` needs it.

    The masks of step s are computed after s applied batches, so a schedule whose `end_step` is the number of batches
    ends with its final sparsity.

    Raises:
        SparsityError: at the start of training, when the model has no wrapped layer.
    """

    def on_train_begin(self, logs: Any = None) -> None:
        self._wrapped = [layer for layer in self.model.layers if isinstance(layer, PruneLowMagnitude)]
        if not self._wrapped:
            raise SparsityError("The model has no wrapped layer. Wrap it with prune_low_magnitude first.")
        self._last_batch = -1
        for layer in self._wrapped:
            step = int(layer.pruning_step)
            self._update(layer, range(step, step + 1))

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._last_batch = -1

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        # With `steps_per_execution` Keras calls once for several batches, with the index of the last one, which at
        # the end of an epoch may lie beyond the data. Hand-written loops may start again at 0 without a new epoch.
        steps = (self.params or {}).get("steps")
        last = batch if steps is None else min(batch, steps - 1)
        applied = last - self._last_batch if last > self._last_batch else last + 1
        self._last_batch = last
        for layer in self._wrapped:
            step = int(layer.pruning_step)
            layer.pruning_step.assign(step + applied)
            self._update(layer, range(step + 1, step + applied + 1))

    def on_train_end(self, logs: Any = None) -> None:
        # An optimizer that averages weights has just written the averages over the zeros.
        for layer in self._wrapped:
            layer.project()

    def _update(self, layer: PruneLowMagnitude, steps: range) -> None:
        schedule = layer.pruning_schedule
        acting = [] if schedule is None else [step for step in steps if schedule.should_update(step)]
        if acting:
            layer.update_masks(acting[-1])


def _wrap(model: Any, schedule_for: Callable[[str], PruningSchedule | None], nested: bool, skip_none: bool) -> Any:
    model = inline_nested(model)
    if any(isinstance(layer, PruneLowMagnitude) for layer in model.layers):
        raise SparsityError(f"{model.name!r} holds wrapped layers already: strip_pruning it first.")
    pairs = []

    def wrapped(layer: Any) -> Any:
        copy = same_layer(layer)
        schedule = schedule_for(layer.name)
        if type(layer) in PRUNABLE and not (skip_none and schedule is None):
            copy = PruneLowMagnitude(copy, schedule, nested)
        pairs.append((layer, copy))
        return copy

    result = clone(model, wrapped)
    for old, new in pairs:
        if not isinstance(new, PruneLowMagnitude):
            new.set_weights(old.get_weights())
            continue
        new.layer.set_weights(old.get_weights())
        if nested:
            new.mask_zeros()
    if not any(isinstance(layer, PruneLowMagnitude) for layer in result.layers):
        known = known_names(kind.__name__ for kind in PRUNABLE)
        raise SparsityError(f"Nothing to prune in {model.name!r}: no layer of {known} with a schedule.")
    return result


def _schedule_for(name: str, schedules: Schedules) -> PruningSchedule | None:
    if isinstance(schedules, PruningSchedule):
        return schedules
    return next((schedule for pattern, schedule in schedules.items() if fnmatch.fnmatchcase(name, pattern)), None)
