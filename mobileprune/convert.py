"""Keras model in, `.tflite` variants out: one trace, one conversion, then a rewrite for each recipe.

This is the only module that builds a TFLiteConverter.
"""

import logging
import os
from collections.abc import Sequence
from typing import Any

import keras

from mobileprune.errors import ConversionError, ModelError
from mobileprune.graph import check_finite
from mobileprune.mixed_recipe import Recipe
from mobileprune.noise import captured_noise, described
from mobileprune.recipes import check_recipes, make_variants
from mobileprune.records import Variant


def convert(
    model: Any,
    recipes: Sequence[str | Recipe] = ("float32",),
    calibration: Any | None = None,
    name: str = "model",
    *,
    batch: int | None = 1,
    strict_int8: bool = False,
) -> list[Variant]:
    """Makes a `.tflite` of a Keras 3 model in every recipe asked for. The model is traced and converted once.

    Args:
        model: a built model; inference mode is what is converted.
        recipes: names from `mobileprune.recipes.RECIPES`: float32, float16, dynamic_int8, dynamic_int4,
            weight_only_int8, int8, int8_float_io, int16x8, and for models with many zeros float32_sparse and
            float16_sparse; JSON files of mixed recipes (`*.json`, see `read_recipe`); or `Recipe` objects.
        calibration: float32 images (N, H, W, C) as the model takes them, or an iterable of batches of images or of
            (images, labels); needed by recipes with integer activations.
        name: what the variants' `model` is: `base`, `s80`, ….
        batch: the files' fixed batch; None leaves it open, which some runtimes refuse and others run slower.
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
    check_recipes(recipes, calibration)  # before the slow part
    return make_variants(to_float_flatbuffer(model, batch=batch), recipes, calibration, name, strict_int8=strict_int8)


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
            return bytes(tf.lite.TFLiteConverter.from_concrete_functions([traced], Holder()).convert())
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
