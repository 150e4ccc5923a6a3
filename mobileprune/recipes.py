"""Float flatbuffer in, quantized flatbuffers out: each recipe is a rewrite of the file, not another conversion.

litert-quantizer does the rewriting. It is imported inside the functions that use it, because importing it takes most of
a second. Integer arithmetic and ranges follow Jacob et al., "Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference", CVPR 2018; weights of convolutions and dense layers have one scale per channel.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from mobileprune.calibration import REFUSALS, Ranges, calibrate
from mobileprune.errors import ConversionError, known_names
from mobileprune.noise import captured_noise, described
from mobileprune.records import Variant
from mobileprune.sparse_encoding import encode_sparse
from mobileprune.sparse_path import check_arm
from mobileprune.tflite_graph import TfliteGraph, read_graph


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a file is quantized.

    Attributes:
        name: as in file names and the manifest.
        description: for people, one clause.
        needs_calibration: whether ranges of activations must be measured first.
        integer_io: whether the file takes and answers int8 in place of float32.
        sparse: whether zeros are left out of the file; only for models that have many.
    """

    name: str
    description: str
    needs_calibration: bool = False
    integer_io: bool = False
    sparse: bool = False


RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
        recipe.name: recipe
        for recipe in (
            Recipe("float32", "as converted"),
            Recipe("float16", "weights stored in 16 bits, computed in float32"),
            Recipe("dynamic_int8", "int8 weights; activations quantized as they come"),
            Recipe("int8", "int8 weights, activations, input and output", needs_calibration=True, integer_io=True),
            Recipe("int8_float_io", "int8 inside, float32 input and output", needs_calibration=True),
            Recipe("float32_sparse", "as converted, zeros left out of the file", sparse=True),
            Recipe("float16_sparse", "weights stored in 16 bits, zeros left out of the file", sparse=True),
        )
    }
)


def recipe_named(name: str) -> Recipe:
    """The recipe of that name.

    Raises:
        ConversionError: there is none; the known ones are listed.
    """
    if name not in RECIPES:
        raise ConversionError(f"There is no recipe {name!r}. Known: {known_names(RECIPES)}.")
    return RECIPES[name]


def make_variants(
    content: bytes, recipes: Sequence[str], calibration: Any | None = None, name: str = "model"
) -> list[Variant]:
    """Every recipe's variant of one float flatbuffer, in the order of `recipes`. Ranges are measured once for all.

    Args:
        content: a float32 `.tflite` with dense weights.
        recipes: names from `RECIPES`.
        calibration: see `calibrate`; needed if one of the recipes needs it.
        name: what the variants' `model` is.

    Raises:
        ConversionError: an unknown recipe, no calibration data for a recipe that needs some, the quantizer refuses the
            graph, or there are too few zeros for a sparse recipe. Nothing is made before the names and the data have
            been checked.
        VerificationError: a sparse recipe would make a file that breaks on ARM; see `quantize`.
        DatasetError: the calibration data cannot be meant; see `calibrate`.

    Example:
        >>> make_variants(content, ["float32", "dynamic_int8"])  # doctest: +SKIP
        [Variant(model='model', recipe='float32'), Variant(model='model', recipe='dynamic_int8')]
    """
    needing = check_recipes(recipes, calibration)
    ranges = calibrate(content, calibration) if needing else None
    return [Variant(model=name, recipe=recipe, content=quantize(content, recipe, ranges)) for recipe in recipes]


def check_recipes(recipes: Sequence[str], calibration: Any | None) -> list[str]:
    """The recipes among `recipes` that need calibration; refuses unknown names, and such recipes without data."""
    if not recipes:
        raise ConversionError(f"No recipe was named. Known: {known_names(RECIPES)}.")
    needing = [name for name in recipes if recipe_named(name).needs_calibration]
    if needing and calibration is None:
        raise ConversionError(
            f"Recipe {needing[0]!r} needs calibration data to measure the range of every activation. "
            "Give calibration=, about 100 training images preprocessed as for the model."
        )
    return needing


def quantize(content: bytes, recipe: str, ranges: Ranges | None = None) -> bytes:
    """One recipe's version of a float flatbuffer.

    Args:
        content: a float32 `.tflite` with dense weights.
        recipe: a name from `RECIPES`.
        ranges: what `calibrate` measured, for recipes that need it.

    Raises:
        ConversionError: see `make_variants`; also when a recipe with integer input and output leaves one in float, and
            when a sparse recipe finds too few zeros (see `mobileprune.sparse_encoding`).
        VerificationError: stored sparsely, the file would fail or answer wrongly on ARM (see `check_arm`).
    """
    chosen = recipe_named(recipe)
    if chosen.sparse:
        sparse = encode_sparse(quantize(content, recipe.removesuffix("_sparse")))
        check_arm(sparse)
        return sparse
    if chosen.needs_calibration and ranges is None:
        check_recipes([recipe], None)
    graph = read_graph(content)
    if "DENSIFY" in graph.histogram() and recipe != "float32":
        raise ConversionError(
            f"The file stores sparse weights (DENSIFY), which recipe {recipe!r} cannot read. Quantize the dense file."
        )
    if recipe == "float32":
        return content
    from litert_quantizer import quantizer

    instructions = _instructions(recipe)
    with captured_noise() as said:
        try:
            rewriting = quantizer.Quantizer(content, instructions)
            result = rewriting.quantize(
                ranges if chosen.needs_calibration else None, enable_progress_bar=False, enable_progress_report=False
            )
        except REFUSALS as error:
            raise ConversionError(f"Recipe {recipe!r} was refused: {described(error, said())}") from error
    quantized = bytes(result.quantized_model)
    if chosen.integer_io:
        check_integer_io(read_graph(quantized), recipe)
    return quantized


def _instructions(recipe: str) -> Any:
    """The recipe in litert-quantizer's own terms."""
    from litert_quantizer import qtyping, recipe_manager
    from litert_quantizer.algorithm_manager import AlgorithmName
    from litert_quantizer.recipe import dynamic_wi8_afp32, static_wi8_ai8

    everything, operation = ".*", qtyping.TFLOperationName
    if recipe == "dynamic_int8":
        return dynamic_wi8_afp32()
    manager = recipe_manager.RecipeManager()
    if recipe == "float16":
        stored = qtyping.TensorQuantizationConfig(num_bits=16, dtype=qtyping.TensorDataType.FLOAT)
        config = qtyping.OpQuantizationConfig(
            weight_tensor_config=stored, compute_precision=qtyping.ComputePrecision.FLOAT, explicit_dequantize=True
        )
        manager.add_quantization_config(everything, operation.ALL_SUPPORTED, config, AlgorithmName.FLOAT_CASTING)
        return manager.get_quantization_recipe()
    manager.load_quantization_recipe(static_wi8_ai8())
    if not RECIPES[recipe].integer_io:
        for edge in (operation.INPUT, operation.OUTPUT):
            manager.add_quantization_config(everything, edge, None, AlgorithmName.NO_QUANTIZE)
    return manager.get_quantization_recipe()


def check_integer_io(graph: TfliteGraph, recipe: str) -> None:
    """Refuses a file of a recipe with integer input and output that has a float one."""
    for kind, tensors in (("input", graph.inputs), ("output", graph.outputs)):
        for tensor in tensors:
            if tensor.dtype != "INT8":
                ops = known_names(sorted({op.name for op in graph.float_ops()}))
                raise ConversionError(
                    f"Recipe {recipe!r} leaves the {kind} {tensor.name!r} in {tensor.dtype}, because these ops have no "
                    f"int8 kernel: {ops}. Use 'int8_float_io'."
                )
