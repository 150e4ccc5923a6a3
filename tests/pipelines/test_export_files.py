"""Which files a model gets, and what is made of it."""

import dataclasses
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

import mobileprune as mp
from mobileprune.mixed_recipe import Recipe, Rule
from mobileprune.quantize_aware import quantize_aware
from mobileprune.recipes import RECIPES

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "pipelines"))

from export_files import MIXED, Making, _Maker, recipes_of

ALL = Making(tuple(RECIPES.values()))


@pytest.fixture(scope="module")
def dataset():
    return mp.load_dataset("fashion_mnist").limited(200)


@pytest.fixture(scope="module")
def model(dataset):
    keras.utils.set_random_seed(0)
    inputs = keras.Input(dataset.preprocess.shape)
    x = keras.layers.Conv2D(8, 3, strides=4, activation="relu", name="first")(inputs)
    x = keras.layers.Conv2D(8, 1, activation="elu", name="second")(x)
    return keras.Model(inputs, keras.layers.Dense(10, name="head")(keras.layers.GlobalAveragePooling2D()(x)))


def maker(model, dataset, making):
    return _Maker("base", model, dataset.calibration.images(48), dataset, making)


def test_sparse_recipes_are_for_models_with_zeros(model):
    dense = {name for name, recipe in RECIPES.items() if not recipe.sparse}
    assert set(recipes_of(model, ALL)) == dense
    sparse = mp.prune_now(mp.prune_low_magnitude(model, mp.ConstantSparsity(0.8, begin_step=1, frequency=1)))
    assert set(recipes_of(mp.strip_pruning(sparse), ALL)) == set(RECIPES)


def test_a_quantization_aware_model_is_made_in_what_it_has_learned(model, dataset):
    aware = quantize_aware(model, dataset.calibration.images(48))
    assert set(recipes_of(aware, ALL)) == {"int8", "int8_float_io", "uint8_io"}
    variant, notes = maker(aware, dataset, ALL).make(RECIPES["int8_float_io"])
    assert (variant.recipe, notes) == ("int8_float_io", [])


def test_mixed_precision_is_made_where_a_loss_has_a_limit(model, dataset):
    assert MIXED not in recipes_of(model, ALL)
    limited = dataclasses.replace(ALL, max_drop=100.0)
    assert MIXED in recipes_of(model, limited)
    assert MIXED not in recipes_of(model, Making((RECIPES["float16"],), max_drop=0.0))
    # Nothing can lose a hundred points, so nothing is raised, and there is no file.
    assert maker(model, dataset, limited).make(recipes_of(model, limited)[MIXED]) == (None, [])


def test_rules_reach_the_file_and_its_tolerance(model, dataset):
    recipe = Recipe("mix", "head in float", "int8", rules=(Rule("float32", layer="head"),))
    variant, _ = maker(model, dataset, ALL).make(recipe)
    assert variant.precisions == ("int8", "float32")


def test_too_few_calibration_images_are_noted_and_not_warned_of(model, dataset, recwarn):
    made = _Maker("base", model, dataset.calibration.images(20), dataset, ALL)
    _, notes = made.make(RECIPES["int8"])
    assert notes == made.make(RECIPES["uint8_io"])[1]
    assert "Only 20 calibration images" in notes[0]
    assert not [each for each in recwarn if issubclass(each.category, UserWarning)]


@pytest.mark.parametrize("change", ["equalize", "correct_biases"])
def test_what_is_asked_for_changes_the_integer_files_only(model, dataset, change):
    plain, changed = (maker(model, dataset, dataclasses.replace(ALL, **{change: value})) for value in (False, True))
    assert plain.make(RECIPES["float32"])[0].content == changed.make(RECIPES["float32"])[0].content
    before, after = (each.make(RECIPES["int8_float_io"])[0].content for each in (plain, changed))
    assert before != after
    images = dataset.validation.images(32)
    report = mp.verify(model, mp.Variant("base", "int8_float_io", after), images)
    assert report.passed, report.failures
    assert np.isfinite(report.max_abs_error)


def test_settings_that_change_a_file_are_settings_of_the_run():
    import json

    texts = {json.dumps(each.to_json(), sort_keys=True) for each in (ALL, dataclasses.replace(ALL, equalize=True))}
    mixes = [
        Making((Recipe("mix", "", "int8", rules=(Rule(precision, layer="head"),)),))
        for precision in ("float32", "int16x8")
    ]
    assert len(texts | {json.dumps(each.to_json(), sort_keys=True) for each in mixes}) == 4
