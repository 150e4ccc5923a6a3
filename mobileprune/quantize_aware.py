"""Quantization-aware training of Keras 3 models: rounding put in, and taken out.

A model made quantization-aware computes in float what its int8 file will compute, so that training answers to the
rounding; ranges of activations are learned on the way. The conversion writes exactly those ranges and weights.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import keras
import numpy as np

from mobileprune.errors import DatasetError, ModelError, known_names
from mobileprune.fake_quant import (
    PREFIX,
    FakeQuantize,
    QuantizedActivation,
    QuantizedKernel,
    measured_ranges,
    quantizers,
)
from mobileprune.graph import functional_graph, inline_nested, nodes, rebuild, same_layer
from mobileprune.quantize_patterns import Kind, Patterns, Treatment


def quantize_aware(model: Any, calibration: Any | None = None, *, momentum: float = 0.99) -> Any:
    """A model that is trained with the rounding of its int8 file.

    Convolutions (also depthwise, separable, grouped), dense layers, the batch normalisation and the activation after
    them, residual additions, concatenation, pooling, squeeze-and-excite, and what moves data are quantized; everything
    else stays in float, see `unquantized_layers`. Moving statistics of folded batch normalisations stay as they are.

    Args:
        model: a built functional or Sequential model (left as it is). Give `hold_zeros(model)`, or one wrapped by
            `prune_low_magnitude`, to keep zeros: they are zeros of the int8 file, too.
        calibration: float32 images (N, H, W, C) as the model takes them, a list of arrays for several inputs, or an
            iterable of batches of images or of (images, labels). The ranges then start from the extremes on them, and
            training starts near the accuracy of the int8 file without any. About 100 images of all classes are usual.
        momentum: of the moving averages that ranges of activations are while training.

    Returns:
        A new uncompiled functional model with nested models inlined. It trains, saves and loads as any other;
        `convert` makes its int8 files, and `strip_quantization` takes the rounding off.

    Raises:
        ModelError: a subclassed model, no layer that could be quantized, or a model that is quantization-aware already.
        DatasetError: calibration data that cannot be meant.

    Example:
        >>> aware = quantize_aware(model, calibration=images)                           # doctest: +SKIP
        >>> aware = mp.train(aware, data, mp.TrainSettings(epochs=1, learning_rate=1e-4))   # doctest: +SKIP
        >>> (file,) = mp.convert(aware, ["int8"])                                       # doctest: +SKIP
    """
    if is_quantize_aware(model):
        raise ModelError(f"{model.name!r} is quantization-aware already: strip_quantization it first.")
    plain = _inlined(model)
    building = _Rounding(functional_graph(plain), momentum)
    if not building.kernels:
        raise ModelError(f"Nothing to quantize in {model.name!r}: no convolution or dense layer that int8 knows.")
    aware = building.model(model.name)
    if calibration is not None:
        calibrate_ranges(aware, calibration)
    return aware


def strip_quantization(model: Any) -> Any:
    """The plain model inside a quantization-aware one, with the weights as trained and no rounding.

    Layers have the names and configurations that they had before; nested models stay inlined, and sparsity wrappers
    stay on (`strip_pruning` takes them off).

    Returns:
        A new uncompiled model.

    Raises:
        ModelError: the model is not quantization-aware.
    """
    if not is_quantize_aware(model):
        raise ModelError(f"{model.name!r} is not quantization-aware: there is nothing to take off.")
    copies = _Copies()

    def call(node: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        operation = node.operation
        if isinstance(operation, QuantizedKernel):
            outputs = copies.of(operation.layer)(*args)
            return outputs if operation.norm is None else copies.of(operation.norm)(outputs)
        if isinstance(operation, FakeQuantize):
            return args[0]
        if isinstance(operation, QuantizedActivation):
            return args[0] if operation.layer is None else copies.of(operation.layer)(args[0])
        return copies.of(operation)(*args, **kwargs)

    stripped = rebuild(model, copies.of, call, lambda tensor: tensor.shape)
    copies.fill()
    return stripped


def is_quantize_aware(model: Any) -> bool:
    """Whether a model came from `quantize_aware`."""
    return isinstance(model, keras.Model) and bool(quantizers(model))


def unquantized_layers(model: Any) -> Mapping[str, str]:
    """The layers that stay in float, with the reason, by name: of a model before or after `quantize_aware`.

    Example:
        >>> inputs = keras.Input((8, 8, 3))
        >>> outputs = keras.layers.LayerNormalization(name="norm")(keras.layers.Conv2D(4, 3)(inputs))
        >>> unquantized_layers(keras.Model(inputs, outputs))
        {'norm': 'LayerNormalization has no quantization-aware form here'}
    """
    plain = strip_quantization(model) if is_quantize_aware(model) else _inlined(model)
    patterns = Patterns(functional_graph(plain))
    found = {}
    for node in nodes(functional_graph(plain)):
        treated = patterns.treatment(node)
        if treated.kind is Kind.FLOAT and not isinstance(node.operation, keras.layers.InputLayer):
            found[node.operation.name] = treated.reason
    return found


def calibrate_ranges(model: Any, calibration: Any) -> None:
    """Sets the ranges of a quantization-aware model to the extremes of its activations on images.

    Raises:
        DatasetError: no images, or NaN or infinity in them or in what the model makes of them.
    """
    images = 0
    with measured_ranges(model):
        for batch in _batches(calibration, len(functional_graph(model).inputs)):
            for part in batch:
                if not np.isfinite(part).all():
                    raise DatasetError(f"Calibration images from number {images} on hold NaN or infinity. Remove them.")
            images += len(batch[0])
            model(batch[0] if len(batch) == 1 else list(batch), training=False)
    if not images:
        raise DatasetError("The calibration data holds no images. Give about 100.")
    for layer in quantizers(model):
        if not np.isfinite(layer.bounds).all():
            raise DatasetError(
                f"On the calibration images the model computes NaN or infinity before {layer.name!r}. Check its "
                "weights and the scale of its input."
            )


def check_ranges(model: Any) -> None:
    """Refuses a quantization-aware model that has not seen any image.

    Raises:
        ModelError: it names ranges that are not known.
    """
    if unknown := [layer.name for layer in quantizers(model) if layer.bounds == (0.0, 0.0)]:
        if len(unknown) == sum(layer.fixed is None for layer in quantizers(model)):
            raise ModelError(
                f"The ranges of {model.name!r} are not known: train it, or give calibration= to quantize_aware."
            )
        raise ModelError(
            f"Nothing but zeros ever came through {known_names(unknown, 3)} of {model.name!r}: these tensors have no "
            "range. Calibrate with other images, or remove the dead layers before them."
        )


class _Copies:
    """A fresh layer for each old one, which gets its weights once the model around it stands."""

    def __init__(self) -> None:
        self._made: dict[int, tuple[Any, Any]] = {}

    def of(self, layer: Any) -> Any:
        """The layer in the place of `layer`; functions of keras.ops and Lambda layers are used again."""
        if not isinstance(layer, keras.Layer) or isinstance(layer, keras.layers.Lambda):
            return layer
        if id(layer) not in self._made:
            try:
                self._made[id(layer)] = (layer, same_layer(layer))
            except (TypeError, ValueError) as error:
                raise ModelError(
                    f"{type(layer).__name__} {layer.name!r} cannot be made anew from its get_config(): {error}"
                ) from error
        return self._made[id(layer)][1]

    def fill(self) -> None:
        """Copies the weights."""
        for old, new in self._made.values():
            new.set_weights(old.get_weights())


class _Rounding:
    """The calls of a graph made anew, with rounding where the int8 file rounds."""

    def __init__(self, graph: Any, momentum: float) -> None:
        self._graph, self._momentum = graph, momentum
        self._patterns = Patterns(graph)
        self._copies = _Copies()
        # By the old layer.
        self._wrapped: dict[int, QuantizedKernel] = {}
        self._activations: dict[int, QuantizedActivation] = {}
        # By the number of a range: what rounds to it, and for how many tensors it did so far.
        self._quantizers: dict[int, FakeQuantize] = {}
        self._used: Counter[int] = Counter()
        # By the tensor of the new graph: the old one, the rounded one, the range that the runtime prescribes.
        self._old: dict[int, Any] = {}
        self._rounded: dict[int, Any] = {}
        self._fixed: dict[int, tuple[float, float]] = {}
        self._floats: set[int] = set()
        self._keep: list[Any] = []
        self._inputs = {tensor._keras_history.operation.name: tensor for tensor in graph.inputs}
        self._names = {node.operation.name for node in nodes(graph)}
        self.kernels = sum(self._patterns.treatment(node).kind is Kind.KERNEL for node in nodes(graph))

    def model(self, name: str) -> Any:
        """The new model, with the weights of the old one."""
        made = rebuild(self._graph, self._copies.of, self._call, lambda tensor: tensor.shape)
        outputs = keras.tree.map_structure(self._result, made.output)
        self._copies.fill()
        return keras.Model(made.input, outputs, name=name)

    def _call(self, node: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        treated = self._patterns.treatment(node)
        outputs = self._made_anew(node, treated, args, kwargs)
        for old, new in zip(node.output_tensors, keras.tree.flatten(outputs), strict=True):
            self._keep.append(new)  # its id must not be given to another one
            self._old[id(new)] = old
            if treated.kind is Kind.FLOAT:
                self._floats.add(id(new))
            elif treated.kind in (Kind.SAME, Kind.AVERAGE):
                self._rounded[id(new)] = new
            elif treated.fixed is not None:
                self._fixed[id(new)] = treated.fixed
        return outputs

    def _made_anew(self, node: Any, treated: Treatment, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        operation = node.operation
        if treated.kind is Kind.NORM:
            return args[0]
        if treated.kind is Kind.FUSED:
            return self._copies.of(operation)(*args, **kwargs)
        if treated.kind is Kind.FLOAT:
            args, kwargs = keras.tree.map_structure(self._result, (args, kwargs))
            return self._copies.of(operation)(*args, **kwargs)
        args, kwargs = keras.tree.map_structure(self._round, (args, kwargs))
        if treated.kind is Kind.KERNEL:
            return self._with_weights(operation, treated, args[0])
        if treated.steps is not None:
            return self._in_steps(operation, treated.steps, self._copies.of(operation))(*args)
        outputs = self._copies.of(operation)(*args, **kwargs)
        if treated.kind is Kind.AVERAGE:
            return self._quantizer(node.output_tensors[0], operation.name)(outputs, member=None)
        return outputs

    def _with_weights(self, layer: Any, treated: Treatment, inputs: Any) -> Any:
        if id(layer) not in self._wrapped:
            norm = self._patterns.norm_of(layer)
            copies = self._copies.of(layer), norm and self._copies.of(norm)
            name = self._free(PREFIX + layer.name)
            self._wrapped[id(layer)] = QuantizedKernel(*copies, activated=treated.steps is None, name=name)
        outputs = self._wrapped[id(layer)](inputs)
        if treated.steps is None:
            return outputs
        between = FakeQuantize(None, self._momentum, name=self._free(f"{layer.name}_range"))
        return self._in_steps(layer, treated.steps, None)(between(outputs))

    def _in_steps(self, layer: Any, activation: str, copy: Any | None) -> QuantizedActivation:
        if id(layer) not in self._activations:
            name = self._free(f"{layer.name}_{activation}" if copy is None else PREFIX + layer.name)
            self._activations[id(layer)] = QuantizedActivation(activation, copy, name=name)
        return self._activations[id(layer)]

    def _round(self, tensor: Any) -> Any:
        """A tensor rounded to its range; other arguments as they are."""
        if not isinstance(tensor, keras.KerasTensor):
            return tensor
        if id(tensor) not in self._rounded:
            operation = tensor._keras_history.operation
            old = self._old[id(tensor)] if id(tensor) in self._old else self._inputs[operation.name]
            root, members = self._patterns.range_of(old)
            fixed = self._fixed.get(id(tensor)) if members == 1 else None
            quantizer = self._quantizer(old, operation.name, fixed)
            # Keras records the argument in the graph: only where it is not the default.
            which = {"member": self._used[root]} if self._used[root] else {}
            self._rounded[id(tensor)] = rounded = quantizer(tensor, **which)
            self._used[root] += 1
            self._keep.append(rounded)
            self._rounded[id(rounded)] = rounded
        return self._rounded[id(tensor)]

    def _quantizer(self, old: Any, name: str, fixed: tuple[float, float] | None = None) -> FakeQuantize:
        root, members = self._patterns.range_of(old)
        if root not in self._quantizers:
            free = self._free(f"{name.removeprefix(PREFIX)}_range")
            self._quantizers[root] = FakeQuantize(fixed, self._momentum, members, name=free)
        return self._quantizers[root]

    def _result(self, tensor: Any) -> Any:
        """A tensor as float layers and users of the model get it: rounded where int8 arithmetic made it."""
        if id(tensor) in self._floats or not isinstance(tensor, keras.KerasTensor):
            return tensor
        from_user = isinstance(tensor._keras_history.operation, keras.layers.InputLayer)
        return tensor if from_user else self._round(tensor)

    def _free(self, wanted: str) -> str:
        name = next(each for each in (wanted, *(f"{wanted}_{n}" for n in range(1, 10_000))) if each not in self._names)
        self._names.add(name)
        return name


def _inlined(model: Any) -> Any:
    """The model as one functional graph."""
    if not isinstance(model, keras.Model):
        raise ModelError(f"{model!r} is no Keras model.")
    functional_graph(model)
    return inline_nested(model)


def _batches(calibration: Any, inputs: int) -> Iterator[tuple[np.ndarray, ...]]:
    """Batches with an array for each input."""
    if hasattr(calibration, "ndim"):
        calibration = [calibration] if inputs == 1 else calibration
    several = isinstance(calibration, list | tuple) and len(calibration) == inputs
    if several and all(hasattr(part, "ndim") for part in calibration):
        arrays = [np.asarray(part) for part in calibration]
        for start in range(0, len(arrays[0]), 64):
            yield tuple(part[start : start + 64] for part in arrays)
        return
    if inputs != 1 or not isinstance(calibration, Iterable):
        raise DatasetError(f"Give calibration data as {inputs} arrays, one for each input of the model.")
    for batch in calibration:
        yield (np.asarray(batch[0] if isinstance(batch, tuple) else batch),)
