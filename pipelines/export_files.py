"""The files of every model: converted once, quantized in each recipe, and told what they are."""

from __future__ import annotations  # naming a Keras-side class in a signature must not import TensorFlow

import dataclasses
import warnings
from collections.abc import Mapping
from typing import Any

import mobileprune as mp
from mobileprune.calibration import Ranges, calibrate
from mobileprune.data import Dataset
from mobileprune.errors import ConversionError, InterpreterError, MobilePruneWarning, VerificationError
from mobileprune.json_record import Json, Record
from mobileprune.layer_names import float_layers
from mobileprune.metadata import Metadata, add_metadata
from mobileprune.min_runtime import with_minimum_runtime
from mobileprune.mixed_precision import choose_precision
from mobileprune.mixed_recipe import Recipe
from mobileprune.recipes import LEARNED_RECIPES, quantize
from mobileprune.records import Variant

# Below this share of zeros hardly any weight takes less room when its zeros are left out.
SPARSE_FROM = 0.5
# What is made in mixed precision when a model loses more than it may in eight bits.
MIXED, MIXED_FROM = "int8_mixed", "int8_float_io"
# Validation images that choose what is raised: enough to tell half a point.
MIXED_IMAGES = 2000


@dataclasses.dataclass(frozen=True)
class Making(Record):
    """How files are made; the pipelines' flags of the same names.

    Attributes:
        recipes: what each model is made in.
        calibration_method: how ranges follow from activations.
        equalize: whether weights are balanced across layers before they are rounded.
        correct_biases: whether int8 biases make up for what rounding does to the means.
        strict_int8: whether an op without an integer kernel is an error.
        max_drop: points of validation accuracy beyond which ops are raised to a higher precision; None never raises.
        description: for the files' metadata, as `author` and `license`.
    """

    recipes: tuple[Recipe, ...]
    calibration_method: str = "minmax"
    equalize: bool = False
    correct_biases: bool = False
    strict_int8: bool = False
    max_drop: float | None = None
    description: str = ""
    author: str = ""
    license: str = ""

    def to_json(self) -> Json:
        """All of it in JSON types, so that a run notices when something has changed."""
        return {**super().to_json(), "recipes": [dataclasses.asdict(recipe) for recipe in self.recipes]}


def recipes_of(model: Any, making: Making) -> dict[str, Recipe]:
    """The recipes that a model is made in, by name: sparse ones need zeros, and a quantization-aware model is for
    those that use what it has learned."""
    found = {recipe.name: recipe for recipe in making.recipes}
    if mp.is_quantize_aware(model):
        return {name: recipe for name, recipe in found.items() if name in LEARNED_RECIPES}
    if mp.sparsity(model) < SPARSE_FROM:
        found = {name: recipe for name, recipe in found.items() if not recipe.sparse}
    if making.max_drop is not None and "int8" in {recipe.precision for recipe in found.values()}:
        found[MIXED] = Recipe(MIXED, "int8, but for the ops that lose most", "int8")
    return found


def make_files(
    task: mp.Task,
    run: mp.Run,
    models: Mapping[str, Any],
    dataset: Dataset,
    making: Making,
    calibration_images: int,
    files: Mapping[tuple[str, str], str],
) -> Json:
    """Makes every file and keeps it.

    Returns:
        For each file what went wrong (`failed`, empty if nothing), its `precisions`, the ops left in float
        (`float_ops`) and `notes`.
    """
    calibration = dataset.calibration.images(calibration_images)
    kind: Any = "probabilities" if mp.gives_probabilities(models["base"]) else "logits"
    found: Json = {}
    for done, (name, model) in enumerate(models.items()):
        recipes = {key: each for key, each in recipes_of(model, making).items() if (name, key) in files}
        task.note(f"{name} in {len(recipes)} recipes")
        metadata = Metadata(
            f"{dataset.name} {name}",
            dataset.preprocess,
            dataset.labels,
            kind,
            making.description or f"Classifies images into {len(dataset.labels)} classes.",
            author=making.author,
            license=making.license,
        )
        maker = _Maker(name, model, calibration, dataset, making)
        for key, recipe in recipes.items():
            file = files[name, key]
            try:
                variant, notes = maker.make(recipe)
            except (ConversionError, InterpreterError, VerificationError) as error:  # another recipe may work
                found[file] = {"failed": str(error), "precisions": [], "float_ops": [], "notes": []}
                continue
            if variant is None:
                continue
            content = with_minimum_runtime(add_metadata(variant.content, metadata))
            run.keep_variant(dataclasses.replace(variant, content=content), file)
            float_ops = [str(op) for op in float_layers(content)] if recipe.needs_calibration else []
            found[file] = {
                "failed": "",
                "precisions": list(variant.precisions),
                "float_ops": float_ops,
                "notes": notes,
            }
        task.advance((done + 1) * STEPS // len(models))
    return found


# More images hardly change the means that biases make up for.
BIAS_IMAGES = 32
# How long the stage takes beside a training step, roughly.
STEPS = 250


class _Maker:
    """One model's files, of one conversion and one calibration."""

    def __init__(self, name: str, model: Any, calibration: Any, dataset: Dataset, making: Making) -> None:
        self._name, self._model, self._making, self._dataset = name, model, making, dataset
        self._calibration = calibration
        self._learned = mp.is_quantize_aware(model)
        self._content = b"" if self._learned else mp.to_float_flatbuffer(model)
        self._measured: tuple[bytes, Ranges] | None = None
        self._notes: list[str] = []

    def make(self, recipe: Recipe) -> tuple[Variant | None, list[str]]:
        """The variant, and what is to be said of it; no variant where mixed precision is not needed."""
        strict = self._making.strict_int8
        if self._learned:
            return mp.convert(self._model, [recipe.name], name=self._name, strict_int8=strict)[0], []
        if not recipe.needs_calibration:
            return self._variant(recipe, quantize(self._content, recipe)), []
        content, ranges = self._calibrated()
        notes = list(self._notes)
        if recipe.name == MIXED:
            split = self._dataset.validation
            images = split.images(MIXED_IMAGES)
            validation = images, split.labels[: len(images)]
            allowed = self._making.max_drop or 0.0
            recipe, choice = choose_precision(content, ranges, validation, allowed, MIXED_FROM, name=MIXED)
            if not choice.raised:
                return None, []
            notes.append(choice.sentence())
        quantized = quantize(content, recipe, ranges, strict_int8=strict)
        if self._making.correct_biases:
            quantized = mp.correct_biases(content, quantized, self._calibration[:BIAS_IMAGES])
        return self._variant(recipe, quantized), notes

    def _variant(self, recipe: Recipe, content: bytes) -> Variant:
        return Variant(self._name, recipe.name, content, recipe.precisions if recipe.rules else ())

    def _calibrated(self) -> tuple[bytes, Ranges]:
        """The float file that integer ones are made of, and its ranges."""
        if self._measured is None:
            content = mp.to_float_flatbuffer(mp.equalize(self._model)) if self._making.equalize else self._content
            limits = mp.contract_range(self._dataset.preprocess)
            method = self._making.calibration_method
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always", MobilePruneWarning)
                self._measured = content, calibrate(content, self._calibration, method, input_range=limits)
            for each in said:
                if issubclass(each.category, MobilePruneWarning):
                    self._notes.append(str(each.message))
                else:
                    warnings.warn_explicit(each.message, each.category, each.filename, each.lineno)
        return self._measured
