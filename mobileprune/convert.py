"""Keras model in, `.tflite` variants out: one trace, one conversion, then a rewrite for each recipe.

This is the only module that builds a TFLiteConverter.
"""

import contextlib
import functools
import logging
import math
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras

from mobileprune.errors import ConversionError, ModelError
from mobileprune.fake_quant import FakeQuantize, QuantizedActivation, QuantizedKernel, constants
from mobileprune.graph import check_finite
from mobileprune.layer_names import Call, call_scope, with_layer_names
from mobileprune.mixed_recipe import Recipe
from mobileprune.noise import captured_noise, described
from mobileprune.quantize_aware import check_ranges, is_quantize_aware, strip_quantization
from mobileprune.recipes import LEARNED_RECIPES, RECIPES, check_learned, check_recipes, make_variants
from mobileprune.records import Variant
from mobileprune.uint8_io import with_uint8_io

# Two threads that replace and put back the same methods would leave one's behind.
_TRACING = threading.Lock()


def convert(
    model: Any,
    recipes: Sequence[str | Recipe] = ("float32",),
    calibration: Any | None = None,
    name: str = "model",
    *,
    batch: int | None = 1,
    calibration_method: str = "minmax",
    input_range: tuple[float, float] | None = None,
    strict_int8: bool = False,
) -> list[Variant]:
    """Makes a `.tflite` of a Keras 3 model in every recipe asked for. The model is traced and converted once.

    Args:
        model: a built model; inference mode is what is converted. Of a quantization-aware one, int8, int8_float_io and
            uint8_io get the weights and ranges that it was trained with; the other recipes are made without its
            rounding.
        recipes: names from `mobileprune.recipes.RECIPES`: float32, float16, dynamic_int8, dynamic_int4,
            weight_only_int8, int8, int8_float_io, uint8_io, int16x8, and for models with many zeros float32_sparse and
            float16_sparse; JSON files of mixed recipes (`*.json`, see `read_recipe`); or `Recipe` objects.
        calibration: float32 images (N, H, W, C) as the model takes them, or an iterable of batches of images or of
            (images, labels); needed by recipes with integer activations, unless the model brings ranges of its own.
        name: what the variants' `model` is: `base`, `s80`, ….
        batch: the files' fixed batch; None leaves it open, which some runtimes refuse and others run slower.
        calibration_method: how int8 ranges follow from activations, `minmax`, `percentile` or `mse`; see
            `mobileprune.calibration.calibrate`.
        input_range: smallest and largest value that preprocessing can make, `mp.contract_range(contract)`: the input's
            scale and zero point then follow from it and not from the images.
        strict_int8: refuse what a recipe with integer activations leaves in float, for lack of a kernel.

    Returns:
        One variant a recipe, in the order of `recipes`.

    Raises:
        ModelError: not built, an input of unknown size, or weights that are NaN or infinite.
        ConversionError: an unknown recipe, calibration data missing, or the converter or quantizer refuses the model.
        DatasetError: calibration data that cannot be meant.
        VerificationError: a sparse recipe would make a file that breaks on ARM.

    Example:
        >>> import mobileprune as mp  # doctest: +SKIP
        >>> small, tiny = mp.convert(model, ["float16", "int8"], calibration=images[:100])  # doctest: +SKIP
        >>> tiny.save("model_int8.tflite")  # doctest: +SKIP
    """
    learned: dict[str | Recipe, Variant] = {}
    trained = is_quantize_aware(model)
    measured = [recipe for recipe in recipes if not (trained and recipe in LEARNED_RECIPES)]
    if measured or not recipes:
        check_recipes(measured, calibration)  # before the slow part
    for recipe in recipes:
        if recipe not in measured:
            content = to_learned_flatbuffer(model, str(recipe), batch=batch, strict_int8=strict_int8)
            learned[recipe] = Variant(name, str(recipe), content)
    if not measured:
        return [learned[recipe] for recipe in recipes]
    content = to_float_flatbuffer(strip_quantization(model) if trained else model, batch=batch)
    others = iter(
        make_variants(
            content,
            measured,
            calibration,
            name,
            calibration_method=calibration_method,
            input_range=input_range,
            strict_int8=strict_int8,
        )
    )
    return [learned[recipe] if recipe in learned else next(others) for recipe in recipes]


def to_float_flatbuffer(model: Any, *, batch: int | None = 1) -> bytes:
    """The float32 `.tflite` of a Keras 3 model, traced in inference mode.

    Args:
        model: a built model with inputs of known size.
        batch: the fixed batch; None leaves it open, which some runtimes refuse and others run slower.

    Returns:
        The file's bytes, with a signature `serving_default` whose arguments are called as the model's inputs.

    Raises:
        ModelError, ConversionError: see `convert`.
    """
    return _flatbuffer(model, batch, lambda converter: None)


def to_learned_flatbuffer(
    model: Any, recipe: str = "int8", *, batch: int | None = 1, strict_int8: bool = False
) -> bytes:
    """The int8 `.tflite` of a quantization-aware model: its own weights and ranges, no calibration.

    Args:
        model: what `quantize_aware` made, trained or calibrated.
        recipe: one of `LEARNED_RECIPES`.
        batch: see `to_float_flatbuffer`.
        strict_int8: refuse a file with ops that compute in float.

    Raises:
        ModelError: ranges that are not known yet; also see `convert`.
        ConversionError: see `convert`.
    """
    check_ranges(model)
    chosen = RECIPES[recipe]

    def quantize(converter: Any) -> None:
        import tensorflow as tf

        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if chosen.integer_io:
            converter.inference_input_type = converter.inference_output_type = tf.int8

    with constants(model):
        content = _flatbuffer(model, batch, quantize)
    check_learned(content, chosen, strict_int8)
    return with_uint8_io(content) if chosen.io == "uint8" else content


def _flatbuffer(model: Any, batch: int | None, prepare: Callable[[Any], None]) -> bytes:
    """What the converter makes of a model once `prepare` has set it up."""
    # TensorFlow reads its log level when it is imported; where that is still to come, this keeps it quiet.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    with captured_noise() as said:
        import tensorflow as tf

        if keras.backend.backend() != "tensorflow":
            raise ConversionError(
                f"Keras runs on {keras.backend.backend()!r}; only its TensorFlow backend converts. "
                "Set KERAS_BACKEND=tensorflow."
            )
        specifications = _specifications(model, batch)
        check_finite(model)

        class Holder(tf.Module):
            """Says which variables to freeze: given the Keras 3 model itself, the file comes out without weights."""

            def __init__(self) -> None:
                super().__init__()
                self.held = [variable.value for variable in model.variables]

        calls: list[Call] = []
        outputs: dict[str, int] = {}

        def infer(*inputs: Any) -> Any:
            with _numbered_calls(model, calls) as made:
                given = inputs[0] if len(inputs) == 1 else keras.tree.pack_sequence_as(model.input, list(inputs))
                answer = model(given, training=False)
            outputs.update(_makers(answer, made))
            return answer

        logger = logging.getLogger("tensorflow")
        level = logger.level
        logger.setLevel(logging.ERROR)
        try:
            traced = tf.function(infer, input_signature=specifications, autograph=False).get_concrete_function()
            converter = tf.lite.TFLiteConverter.from_concrete_functions([traced], Holder())
            prepare(converter)
            content = bytes(converter.convert())
        except Exception as error:
            # Whatever a layer's code or the converter raises, it means the same: this model does not convert.
            raise ConversionError(
                f"{model.name!r} does not convert to .tflite: {described(error, said())} Replace the op that it names."
            ) from error
        finally:
            logger.setLevel(level)
    return with_layer_names(content, calls, outputs)


@contextlib.contextmanager
def _numbered_calls(model: Any, calls: list[Call]) -> Iterator[dict[int, tuple[int, Any]]]:
    """While it lasts, this thread traces every call of a layer or op inside `model` under a name scope of its own.

    Keras has no hook around calls, so its two `__call__` methods are replaced, and put back whatever happens.

    Args:
        model: its own call is not counted.
        calls: takes one entry a call, in the order in which they begin.

    Yields:
        By `id` of each tensor that a call answered: the number of the innermost such call, and the tensor, which keeps
        the `id` its own.
    """
    import tensorflow as tf

    thread, path = threading.get_ident(), [model]
    made: dict[int, tuple[int, Any]] = {}

    def numbered(original: Any, kind: Any) -> Any:
        @functools.wraps(original)
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            # A layer's own __call__ calls that of operations, and layers use operations that are not in the graph.
            own = (
                kind is keras.layers.Layer
                if isinstance(self, keras.layers.Layer)
                else isinstance(path[-1], keras.Model)
            )
            if self is model or not own or threading.get_ident() != thread:
                return original(self, *args, **kwargs)
            if isinstance(self, FakeQuantize):  # it rounds what another layer has made
                answer = original(self, *args, **kwargs)
                if id(args[0]) in made:
                    made.setdefault(id(answer), (made[id(args[0])][0], answer))
                return answer
            number = len(calls)
            path.append(self)
            held = _held(self)
            weights = getattr(held, "_trainable_variables", []) + getattr(held, "_non_trainable_variables", [])
            kernels = tuple(math.prod(each.shape) for each in weights if len(each.shape) > 1)
            calls.append(Call("/".join(_held(each).name for each in path[1:]), kernels))
            try:
                with tf.name_scope(call_scope(number)):
                    answer = original(self, *args, **kwargs)
            finally:
                path.pop()
            for tensor in tf.nest.flatten(answer):
                made.setdefault(id(tensor), (number, tensor))
            return answer

        return call

    kinds = (keras.layers.Layer, keras.Operation)
    with _TRACING:
        originals = [kind.__call__ for kind in kinds]
        try:
            for kind, original in zip(kinds, originals, strict=True):
                kind.__call__ = numbered(original, kind)
            yield made
        finally:
            for kind, original in zip(kinds, originals, strict=True):
                kind.__call__ = original


def _held(operation: Any) -> Any:
    """What a call goes by: of what trains with rounding, the layer that it holds."""
    if isinstance(operation, (QuantizedKernel, QuantizedActivation)) and operation.layer is not None:
        return operation.layer
    return operation


def _makers(answer: Any, made: Mapping[int, tuple[int, Any]]) -> dict[str, int]:
    """For each output of a signature the number of the call that made it."""
    import tensorflow as tf

    named = answer.items() if isinstance(answer, Mapping) else enumerate(tf.nest.flatten(answer))
    names = {name if isinstance(name, str) else f"output_{name}": tensor for name, tensor in named}
    return {name: made[id(tensor)][0] for name, tensor in names.items() if id(tensor) in made}


def _specifications(model: Any, batch: int | None) -> list[Any]:
    import tensorflow as tf

    inputs = getattr(model, "inputs", None)
    if not inputs:
        raise ModelError(f"{model.name!r} has no inputs of known shape. Build it or call it on one batch first.")
    for tensor in inputs:
        if None in tensor.shape[1:]:
            raise ModelError(
                f"Input {tensor.name!r} of {model.name!r} has shape {tuple(tensor.shape)}; a .tflite needs fixed "
                "sizes. Build the model with them."
            )
    return [tf.TensorSpec((batch, *tensor.shape[1:]), tensor.dtype, name=tensor.name) for tensor in inputs]
