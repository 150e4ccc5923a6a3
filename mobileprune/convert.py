"""Keras model in, `.tflite` variants out: one trace, one conversion, then a rewrite for each recipe.

This is the only module that builds a TFLiteConverter.
"""

import logging
import os
from collections.abc import Callable, Sequence
from typing import Any

import keras

from mobileprune.errors import ConversionError, ModelError
from mobileprune.fake_quant import constants
from mobileprune.graph import check_finite
from mobileprune.noise import captured_noise, described
from mobileprune.quantize_aware import check_ranges, is_quantize_aware, strip_quantization
from mobileprune.recipes import RECIPES, check_integer_io, check_recipes, make_variants
from mobileprune.records import Variant
from mobileprune.tflite_graph import read_graph

# Recipes that a quantization-aware model brings weights and ranges for.
LEARNED_RECIPES = ("int8", "int8_float_io")


def convert(
    model: Any,
    recipes: Sequence[str] = ("float32",),
    calibration: Any | None = None,
    name: str = "model",
) -> list[Variant]:
    """Makes a `.tflite` of a Keras 3 model in every recipe asked for. The model is traced and converted once.

    Args:
        model: a built model; inference mode is what is converted, and the input's batch becomes 1. Of one that is
            quantization-aware, int8 and int8_float_io get the weights and ranges that it was trained with, and the
            other recipes are made of it without its rounding.
        recipes: names from `mobileprune.recipes.RECIPES`: float32, float16, dynamic_int8, int8, int8_float_io,
            and for models with many zeros float32_sparse and float16_sparse.
        calibration: float32 images (N, H, W, C) as the model takes them, or an iterable of batches of images or of
            (images, labels); needed by int8 and int8_float_io, unless the model is quantization-aware.
        name: what the variants' `model` is: `base`, `s80`, ….

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
    learned = [recipe for recipe in recipes if recipe in LEARNED_RECIPES] if is_quantize_aware(model) else []
    measured = [recipe for recipe in recipes if recipe not in learned]
    if measured or not learned:
        check_recipes(measured, calibration)  # before the slow part
    made = {
        recipe: Variant(model=name, recipe=recipe, content=to_learned_flatbuffer(model, recipe)) for recipe in learned
    }
    if measured:
        plain = strip_quantization(model) if is_quantize_aware(model) else model
        variants = make_variants(to_float_flatbuffer(plain), measured, calibration, name)
        made |= {variant.recipe: variant for variant in variants}
    return [made[recipe] for recipe in recipes]


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


def to_learned_flatbuffer(model: Any, recipe: str = "int8", *, batch: int | None = 1) -> bytes:
    """The int8 `.tflite` of a quantization-aware model: its own weights and ranges, no calibration.

    Args:
        model: what `quantize_aware` made, trained or calibrated.
        recipe: one of `LEARNED_RECIPES`.
        batch: see `to_float_flatbuffer`.

    Raises:
        ModelError: ranges that are not known yet; also see `convert`.
        ConversionError: see `convert`.
    """
    check_ranges(model)
    integer_io = RECIPES[recipe].integer_io

    def quantize(converter: Any) -> None:
        import tensorflow as tf

        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if integer_io:
            converter.inference_input_type = converter.inference_output_type = tf.int8

    with constants(model):
        content = _flatbuffer(model, batch, quantize)
    if integer_io:
        check_integer_io(read_graph(content), recipe)
    return content


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

        def infer(*inputs: Any) -> Any:
            return model(inputs[0] if len(inputs) == 1 else list(inputs), training=False)

        logger = logging.getLogger("tensorflow")
        level = logger.level
        logger.setLevel(logging.ERROR)
        try:
            traced = tf.function(infer, input_signature=specifications, autograph=False).get_concrete_function()
            converter = tf.lite.TFLiteConverter.from_concrete_functions([traced], Holder())
            prepare(converter)
            return bytes(converter.convert())
        except Exception as error:
            # Whatever a layer's code or the converter raises, it means the same: this model does not convert.
            raise ConversionError(
                f"{model.name!r} does not convert to .tflite: {described(error, said())} Replace the op that it names."
            ) from error
        finally:
            logger.setLevel(level)


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
