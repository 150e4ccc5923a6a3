import dataclasses

import numpy as np
import pytest
from tiny_models import (
    DENSE_RECIPES,
    convnet,
    images,
    reference,
    rescaled_weights,
    shared_convnet,
    swapped_outputs,
    variants,
)

from mobileprune.errors import InterpreterError, VerificationError
from mobileprune.recipes import RECIPES
from mobileprune.records import Variant
from mobileprune.verify import TOLERANCES, compare, tolerance_of, verify

IMAGES = images(256, seed=7)
DENSE = [recipe.name for recipe in DENSE_RECIPES]


def test_every_recipe_has_a_tolerance():
    assert set(TOLERANCES) == set(RECIPES)


@pytest.mark.parametrize("recipe", DENSE)
def test_every_recipe_passes(recipe):
    report = verify(reference(), variants()[recipe], IMAGES)
    report.raise_if_failed()
    assert report.images == 256
    assert report.agreement > (0.5 if recipe == "dynamic_int4" else 0.9)
    assert report.runtime.startswith("LiteRT")


@pytest.mark.parametrize("recipe", ["float32", "int8"])
def test_probabilities_pass_too(recipe):
    from mobileprune.convert import convert

    model = convnet(seed=4, activation="softmax")
    (variant,) = convert(model, [recipe], calibration=images(100, seed=1))
    verify(model, variant, IMAGES).raise_if_failed()


def test_a_model_a_callable_and_its_outputs_are_the_same_reference():
    model, variant = shared_convnet(), variants()["float32"]
    reports = [
        verify(source, variant, IMAGES[:20])
        for source in (model, lambda batch: model(batch, training=False), reference()[:20])
    ]
    assert all(report.passed and report.agreement == 1 for report in reports)


def changed(recipe: str, content: bytes) -> Variant:
    return dataclasses.replace(variants()[recipe], content=content)


def test_swapped_output_channels_are_caught():
    report = verify(reference(), changed("float32", swapped_outputs(variants()["float32"].content)), IMAGES)
    assert not report.passed
    with pytest.raises(VerificationError, match="with a clear class"):
        report.raise_if_failed()


@pytest.mark.parametrize("factor", [0.5, 1.5, 2.0])
def test_a_wrong_scale_is_caught(factor):
    report = verify(reference(), changed("int8", rescaled_weights(variants()["int8"].content, factor)), IMAGES)
    assert "dB" in " ".join(report.failures)


@pytest.mark.parametrize("recipe", DENSE)
@pytest.mark.parametrize("normalization", [lambda x: x * 127.5 + 127.5, lambda x: x / 2, lambda x: x + 1])
def test_a_wrong_normalization_is_caught(recipe, normalization):
    assert not verify(reference(), variants()[recipe], normalization(IMAGES)).passed


@pytest.mark.parametrize("recipe", DENSE)
def test_another_model_s_file_is_caught(recipe):
    other = np.asarray(convnet(seed=9)(IMAGES, training=False))
    assert not verify(other, variants()[recipe], IMAGES).passed


def test_a_truncated_file_is_caught():
    content = variants()["int8"].content
    with pytest.raises(InterpreterError, match=r"tiny_int8\.tflite"):
        verify(reference(), changed("int8", content[: len(content) // 2]), IMAGES)


def thousand(count: int = 64) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(count, 1000))


def test_two_exchanged_classes_of_a_thousand_are_caught():
    expected = thousand()
    actual = expected + np.random.default_rng(1).normal(0, 0.1, expected.shape)
    assert compare(expected, actual, TOLERANCES["int8"]).passed
    actual[:, [3, 700]] = actual[:, [700, 3]]
    (failure,) = compare(expected, actual, TOLERANCES["int8"]).failures
    assert "output 3 " in failure or "output 700 " in failure


def test_a_flip_on_a_narrow_margin_is_no_fault_and_on_a_wide_one_it_is():
    expected = np.random.default_rng(0).normal(size=(1000, 10))
    narrow = expected.copy()
    narrow[np.arange(1000), narrow.argmax(axis=1)] -= 0.1
    report = compare(expected, narrow, TOLERANCES["int8"])
    assert report.passed
    assert report.agreement < 0.99
    clear = expected + 8 * np.eye(10)[np.arange(1000) % 10]
    flipped = clear.copy()
    flipped[:20] = flipped[:20, ::-1]
    assert "clear class" in " ".join(compare(clear, flipped, TOLERANCES["int8"]).failures)


def test_the_figures():
    expected = np.array([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    actual = expected + np.array([[0.1, 0], [0, 0.1], [0.1, 0], [0, 0.1]])
    report = compare(expected, actual, TOLERANCES["int8"], runtime="here")
    assert report.agreement == 1
    assert report.max_abs_error == pytest.approx(0.1)
    assert report.mean_abs_error == pytest.approx(0.05)
    assert report.snr_db == pytest.approx(10 * np.log10(0.25 / 0.005))
    assert report.runtime == "here"
    assert compare(expected, expected, TOLERANCES["float32"]).snr_db == 200


@pytest.mark.parametrize(
    ("actual", "message"),
    [
        (np.full((64, 1000), np.nan), "NaN or infinity for 64 of 64"),
        (np.tile(thousand()[:1], (64, 1)), "the same for all 64"),
        (thousand()[:, :10], "in shape (64, 10), the model in (64, 1000)"),
    ],
)
def test_outputs_that_say_nothing_are_failures_in_json(actual, message):
    import json

    report = compare(thousand(), actual, TOLERANCES["float32"])
    assert message in report.failures[0]
    json.dumps(report.to_json(), allow_nan=False)


@pytest.mark.parametrize(
    ("expected", "message"),
    [
        (np.ones((64, 10)), "itself answers the same"),
        (np.full((64, 10), np.nan), "itself answers NaN"),
        (np.ones((1, 10)), "2 or more"),
    ],
)
def test_a_reference_that_says_nothing_is_an_error(expected, message):
    with pytest.raises(VerificationError, match=message):
        compare(expected, expected, TOLERANCES["float32"])


def test_a_mixed_recipe_may_do_what_its_loosest_precision_may():
    mixed = dataclasses.replace(variants()["int8"], recipe="mix", precisions=("float16", "int8"))
    assert tolerance_of(mixed) == TOLERANCES["int8"]
    assert tolerance_of(dataclasses.replace(mixed, precisions=("float32", "float16"))) == TOLERANCES["float16"]
    with pytest.raises(VerificationError, match="no tolerance for recipe 'int3'"):
        tolerance_of(dataclasses.replace(mixed, precisions=("float32", "int3")))


def test_references_and_recipes_that_do_not_fit_are_errors():
    with pytest.raises(VerificationError, match="256 images; there are 3"):
        verify(reference(), variants()["float32"], IMAGES[:3])
    with pytest.raises(VerificationError, match="no tolerance for recipe 'odd'"):
        verify(reference(), dataclasses.replace(variants()["float32"], recipe="odd"), IMAGES)
    with pytest.raises(VerificationError, match="int is no reference"):
        verify(3, variants()["float32"], IMAGES)
