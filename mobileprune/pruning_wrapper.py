"""The wrapper layer that keeps the smallest weights of another layer at zero.

It projects the kernel onto its mask in the variable's constraint: there every optimizer step meets it, whatever loop,
precision or strategy makes the step, and masks and weights develop as they do in the TensorFlow Model Optimization
toolkit.
"""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from mobileprune.errors import SparsityError
from mobileprune.masks import Pattern, block_magnitudes, pruning_mask
from mobileprune.prunable import Kernel, check_prunable, kernels_of, variable_at
from mobileprune.schedules import PruningSchedule, as_schedule, schedule_from_config
from mobileprune.sparsity_allocation import check_allocation, layer_sparsities

PREFIX = "prune_low_magnitude_"


class _Watch:
    """Who updates the masks: notices when nobody does, and lets weights go just before their masks are chosen anew.

    The toolkit chooses masks from the weights as the optimizer left them, and zeroes afterwards: a zero whose step was
    large enough comes back.
    """

    def __init__(self, name: str, pruning_step: Any, last_step: int) -> None:
        self._message = (
            f"The masks of {name!r} follow a schedule, but nothing updates them. Give mobileprune.UpdatePruningStep() "
            "to fit's callbacks; in a loop of your own call its on_train_begin() and, before each batch, its "
            "on_train_batch_begin()."
        )
        self._pruning_step, self._last_step = pruning_step, last_step
        # No weight of the layer: whether somebody updates the masks is a fact of this process, not of a saved model.
        self.updating, self.released = (
            keras.Variable("zeros", shape=(), dtype="bool", trainable=False, name=name)
            for name in ("updating", "released")
        )

    def check(self) -> None:
        eager = tf.executing_eagerly()
        with tf.init_scope():
            # Where it can be told while the step is traced, it is a plain error.
            if not numbers_of(self.updating) and numbers_of(self._pruning_step) < self._last_step:
                # Variables that the optimizer made for the step broken off never get their values.
                again = "" if eager else " Compile the model again first."
                raise SparsityError(self._message + again)
        if not eager:
            # The traced step may run again, without the callback.
            well = tf.logical_or(self.updating.value, self._pruning_step.value >= self._last_step)
            tf.debugging.Assert(well, [self._message])


class _Projection(keras.constraints.Constraint):
    """Zeroes what the mask removes, after any constraint that the layer already had."""

    def __init__(self, mask: Any, inner: Any, watch: _Watch | None) -> None:
        self.mask, self.inner, self.watch = mask, inner, watch

    def __call__(self, weights: Any) -> Any:
        weights = weights if self.inner is None else self.inner(weights)

        def masked() -> Any:
            return weights * keras.ops.cast(self.mask, weights.dtype)

        if self.watch is None:
            return masked()
        self.watch.check()
        return tf.cond(self.watch.released.value, lambda: keras.ops.convert_to_tensor(weights), masked)


@keras.saving.register_keras_serializable(package="mobileprune")
class PruneLowMagnitude(keras.layers.Wrapper):
    """A layer whose smallest weights are kept at zero.

    Args:
        layer: a layer with a kernel, stock or registered with `register_prunable`.
        pruning_schedule: when the masks change and how sparse they are; None keeps the masks as they are.
        block_size: (inputs, outputs) of the blocks that are kept or removed as a whole.
        block_pooling_type: `"AVG"` or `"MAX"`, what stands for the magnitude of a block.
        sparsity_m_by_n: (m, n): m of each n consecutive inputs are zero; the schedule says only when masks are updated.
        nested: masks only ever lose weights: a zero never comes back.
        allocation: how the sparsity is shared among all layers of one model that have the same schedule, see
            `sparsity_allocation`.

    The shapes of inputs and outputs are the layer's own. Use `prune_low_magnitude` to wrap a layer or a model.

    Raises:
        SparsityError: the layer has no weights to prune, or a value cannot be meant.
    """

    def __init__(
        self,
        layer: Any,
        pruning_schedule: Any = None,
        block_size: tuple[int, int] = (1, 1),
        block_pooling_type: str = "AVG",
        sparsity_m_by_n: tuple[int, int] | None = None,
        nested: bool = False,
        allocation: str = "uniform",
        **kwargs: Any,
    ) -> None:
        if isinstance(layer, PruneLowMagnitude):
            raise SparsityError(f"{layer.name!r} is wrapped already: wrap its layer instead.")
        check_prunable(layer)
        check_allocation(allocation)
        kwargs.setdefault("name", PREFIX + layer.name)
        # The layer's own precision, or the wrapper would round the inputs to the default one.
        kwargs.setdefault("dtype", layer.dtype_policy)
        super().__init__(layer, **kwargs)
        self.pruning_schedule: PruningSchedule | None = (
            None if pruning_schedule is None else as_schedule(pruning_schedule)
        )
        self.pattern = Pattern(block_size, block_pooling_type, sparsity_m_by_n)
        self.nested, self.allocation = nested, allocation
        self.supports_masking = layer.supports_masking
        self.masks: dict[str, Any] = {}
        self._watch: _Watch | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self.layer.built:
            # Keras tells `build` of the first tensor only, but attention is called on several.
            given = inspect.signature(self.layer.call).bind(*args, **kwargs).arguments
            wanted = inspect.signature(self.layer.build).parameters
            shapes = {
                f"{name}_shape": keras.tree.map_structure(lambda tensor: tensor.shape, tensors)
                for name, tensors in given.items()
                if f"{name}_shape" in wanted and tensors is not None
            }
            if len(shapes) > 1:
                self.layer.build(**shapes)
        return super().__call__(*args, **kwargs)

    def build(self, input_shape: Any = None) -> None:
        if not self.layer.built:
            self.layer.build(input_shape)
            self.layer.built = True
        self.pruning_step = self.add_weight(
            name="pruning_step", shape=(), initializer="zeros", dtype="int32", trainable=False
        )
        if self.pruning_schedule is not None:
            self._watch = _Watch(self.layer.name, self.pruning_step, self.pruning_schedule.last_step)
        for kernel in kernels_of(self.layer):
            weights = variable_at(self.layer, kernel.path)
            name = f"{kernel.path.strip('_').replace('.', '_')}_mask"
            mask = self.add_weight(name=name, shape=weights.shape, initializer="ones", dtype="float32", trainable=False)
            self.masks[kernel.path] = mask
            weights.constraint = _Projection(mask, weights.constraint, self._watch)
        self.built = True

    def call(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        return self.layer(inputs, *args, **kwargs)

    def compute_output_shape(self, *args: Any, **kwargs: Any) -> Any:
        return self.layer.compute_output_shape(*args, **kwargs)

    def compute_output_spec(self, *args: Any, **kwargs: Any) -> Any:
        return self.layer.compute_output_spec(*args, **kwargs)

    def compute_mask(self, inputs: Any, previous_mask: Any = None) -> Any:
        return self.layer.compute_mask(inputs, previous_mask)

    @property
    def updating(self) -> bool:
        """Whether somebody, usually `UpdatePruningStep`, has taken on to update the masks."""
        return self._watch is None or bool(numbers_of(self._watch.updating))

    @updating.setter
    def updating(self, value: bool) -> None:
        if self._watch is not None:
            self._watch.updating.assign(value)

    def release(self, value: bool) -> None:
        """Whether the next optimizer step may move zeros: only when their masks are chosen anew right after it."""
        if self._watch is not None and not self.nested:
            self._watch.released.assign(value)

    def pruned_weights(self) -> list[tuple[Kernel, Any, Any]]:
        """Every pruned weight: how its axes are read, its variable, and the variable that holds its mask."""
        return [
            (kernel, variable_at(self.layer, kernel.path), self.masks[kernel.path]) for kernel in kernels_of(self.layer)
        ]

    def update_masks(self, step: int) -> None:
        """Computes the masks for `step` from the weights as they are, and zeroes what they remove.

        This layer is looked at alone; `update_masks` of the module also shares the sparsity out among layers.
        """
        update_masks([self], step)

    def set_masks(self, sparsities: Sequence[float]) -> None:
        """The same with a sparsity for each pruned weight."""
        for (kernel, weights, mask), sparsity in zip(self.pruned_weights(), sparsities, strict=True):
            values, before = _numbers(weights), numbers_of(mask)
            if self.pattern.is_free:
                chosen = pruning_mask(values, sparsity)
            else:
                taps = pruning_mask(kernel.to_taps(values), sparsity, self.pattern)
                chosen = kernel.from_taps(taps, values.shape)
            if self.nested:
                chosen = chosen & (before > 0)
            ones = chosen.astype(np.float32)
            if not np.array_equal(chosen, before):
                write_numbers(mask, ones)
            # A product may leave negative zeros, which `strip_pruning` mends, and takes a tenth of `np.where`.
            write_numbers(weights, values * ones)

    @property
    def finished(self) -> bool:
        """Whether the masks do not change any more."""
        return self.pruning_schedule is None or int(numbers_of(self.pruning_step)) >= self.pruning_schedule.last_step

    def project(self, others: Mapping[int, Any] | None = None) -> None:
        """Zeroes again what the masks remove, after something other than an optimizer step wrote the weights.

        Args:
            others: by the `id` of a weight the variable to treat in its stead, as an optimizer's average of it.
        """
        for _, weights, mask in self.pruned_weights():
            if others is not None:
                weights = others.get(id(weights))
                if weights is None:  # not trained
                    continue
            weights.assign(np.where(numbers_of(mask) > 0, numbers_of(weights), 0))

    def mask_zeros(self) -> None:
        """Makes the zeros that the weights have now the mask."""
        for _, weights, mask in self.pruned_weights():
            mask.assign((numbers_of(weights) != 0).astype("float32"))

    def get_config(self) -> dict[str, Any]:
        schedule = None if self.pruning_schedule is None else self.pruning_schedule.get_config()
        return {
            **super().get_config(),
            "pruning_schedule": schedule,
            "block_size": self.pattern.block_size,
            "block_pooling_type": self.pattern.block_pooling_type,
            "sparsity_m_by_n": self.pattern.sparsity_m_by_n,
            "nested": self.nested,
            "allocation": self.allocation,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> "PruneLowMagnitude":
        config = dict(config)
        layer = keras.saving.deserialize_keras_object(config.pop("layer"), custom_objects=custom_objects)
        schedule = config.pop("pruning_schedule")
        return cls(layer, None if schedule is None else schedule_from_config(schedule), **config)

    def get_build_config(self) -> dict[str, Any]:
        return {"layer": self.layer.get_build_config()}

    def build_from_config(self, config: dict[str, Any]) -> None:
        # The layer's own, because it may be called on several tensors.
        if not self.layer.built and config["layer"]:
            self.layer.build_from_config(config["layer"])
            self.layer.built = True
        if self.layer.built:
            self.build()


def wrapped_layers(model: Any) -> list[PruneLowMagnitude]:
    """Every wrapper in a model, each once, in nested and subclassed models, too."""
    return [layer for layer in model._flatten_layers(include_self=False) if isinstance(layer, PruneLowMagnitude)]


def update_masks(wrapped: Sequence[PruneLowMagnitude], step: int) -> None:
    """Computes the masks of several layers of one model for `step` and zeroes what they remove.

    Layers of one schedule and allocation share the sparsity out among themselves; those without a schedule stay.
    """
    for schedule, allocation, together in _by_schedule(wrapped):
        sparsity = schedule.sparsity(step)
        if allocation == "uniform":
            for layer in together:
                layer.set_masks([sparsity] * len(layer.masks))
            continue
        weights = [(layer.pattern, *pruned) for layer in together for pruned in layer.pruned_weights()]
        shares = layer_sparsities(
            [block_magnitudes(kernel.to_taps(_numbers(values)), pattern) for pattern, kernel, values, _ in weights],
            [tuple(values.shape) for _, _, values, _ in weights],
            sparsity,
            allocation,
        )
        for layer in together:
            layer.set_masks([shares.pop(0) for _ in layer.masks])


def _by_schedule(
    wrapped: Sequence[PruneLowMagnitude],
) -> Iterator[tuple[PruningSchedule, str, list[PruneLowMagnitude]]]:
    found: dict[tuple[PruningSchedule, str], list[PruneLowMagnitude]] = {}
    for layer in wrapped:
        if layer.pruning_schedule is not None:
            found.setdefault((layer.pruning_schedule, layer.allocation), []).append(layer)
    for (schedule, allocation), together in found.items():
        yield schedule, allocation, together


def numbers_of(variable: Any) -> Any:
    """What a variable holds now, for reading only and not to be kept: there is no copy of it.

    A variable that is mirrored over several devices is no array of its own, so numpy cannot read it.
    """
    return np.asarray(tf.convert_to_tensor(variable.value))


def write_numbers(variable: Any, values: Any) -> None:
    """Assigns in half of the time of a Keras variable's own `assign`, which reads the variable again."""
    variable.value.assign(tf.cast(values, variable.dtype), read_value=False)


def _numbers(variable: Any) -> np.ndarray:
    values: np.ndarray = numbers_of(variable)
    # NumPy does not know bfloat16 as a float of its own.
    return values.astype(np.float32) if values.dtype.itemsize < 4 else values
