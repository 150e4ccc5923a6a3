"""The law of recipes on small networks of three families; `benchmarks/recipes_zoo.py` has all of keras.applications.

Every file answers what its network answers, on the runtime with XNNPACK and without, or is refused for a true reason.
"""

import dataclasses
import functools

import keras
import numpy as np
import pytest
from architectures import concatenation, randomise_deep
from laws.recipe_outcomes import (
    float_kinds,
    measured_ranges,
    outcome,
    untrue_failure,
    untrue_kinds,
    untrue_refusal,
)
from tiny_models import DENSE_RECIPES
from zoo_architectures import vit_learned_positions

from mobileprune.convert import to_float_flatbuffer
from mobileprune.errors import ConversionError
from mobileprune.recipes import RECIPES, quantize
from mobileprune.records import Variant


def mobilenet_v3():
    """The first blocks of MobileNetV3Small: pixels rescaled inside, hard-swish, squeeze-and-excite.

    The whole network with weights by chance has 4 dB in int8: half a decibel is lost in each of 100 ops.
    """
    whole = keras.applications.MobileNetV3Small((64, 64, 3), weights=None, include_top=False)
    x = keras.layers.GlobalAveragePooling2D()(whole.get_layer("expanded_conv_3_project").output)
    return keras.Model(whole.inputs, keras.layers.Dense(10)(x))


FAMILIES = {build.__name__: build for build in (mobilenet_v3, concatenation, vit_learned_positions)}
# What the quantizer makes no integer ops of, by precision; nothing else may stay in float.
FLOAT = {
    ("mobilenet_v3", "int16x8"): {"HARD_SWISH"},
    ("concatenation", "int8"): {"ELU"},
    ("concatenation", "int16x8"): {"ELU"},
    ("vit_learned_positions", "int8"): {"NEG", "SQUARE"},
    ("vit_learned_positions", "int16x8"): {"NEG", "SQUARE", "SQUARED_DIFFERENCE"},
}


@dataclasses.dataclass(frozen=True)
class Made:
    """A network's file, and what is needed to make and to judge others."""

    content: bytes
    ranges: dict
    images: np.ndarray
    expected: np.ndarray

    def outcome(self, recipe, **options):
        return outcome(self.content, recipe, self.ranges, self.expected, self.images, **options)


@functools.cache
def made(family):
    model = FAMILIES[family]()
    generator = np.random.default_rng(0)
    shape = model.input_shape[1:]
    images = generator.normal(size=(64, *shape)).cumsum(axis=1).cumsum(axis=2)
    images /= np.abs(images).max(axis=(1, 2, 3), keepdims=True)
    if family == "mobilenet_v3":
        images = 127.5 * images + 127.5
    images = images.astype(np.float32)
    randomise_deep(model, images)
    content = to_float_flatbuffer(model)
    seen, others = images[:40], images[40:]
    return Made(content, measured_ranges(content, seen), others, np.asarray(model(others, training=False)))


@pytest.mark.parametrize("recipe", [recipe.name for recipe in DENSE_RECIPES])
@pytest.mark.parametrize("family", FAMILIES)
def test_each_file_is_verified_or_refused_for_a_true_reason(family, recipe):
    found = made(family).outcome(recipe, runtimes=("litert_reference",))
    assert not found.untrue, found
    if recipe != "dynamic_int4":  # which keeps a network's answers or does not
        assert not found.reason, found
        assert found.runtimes == {"litert_reference": ""}
    assert set(found.float_ops) == FLOAT.get((family, RECIPES[recipe].precision), set())


@pytest.mark.parametrize("recipe", ["float32_sparse", "float16_sparse"])
def test_dense_networks_are_refused_for_a_true_reason(recipe):
    found = made("concatenation").outcome(recipe)
    assert "of the weights are zero" in found.reason
    assert not found.untrue


def test_a_file_of_another_network_is_refused_for_a_true_reason():
    other = made("concatenation")
    found = dataclasses.replace(other, expected=other.expected[::-1]).outcome("int8")
    assert "dB are needed" in found.reason
    assert not found.untrue


def test_a_false_reason_is_noticed():
    network = made("concatenation")
    content, ranges = network.content, network.ranges
    int8 = quantize(content, "int8_float_io", ranges)
    assert float_kinds(int8) == {"ELU": 1}
    assert untrue_kinds(["ELU"], int8) == ""
    assert untrue_kinds(["ELU", "RESHAPE"], int8) == "no RESHAPE computes in float"
    assert untrue_kinds(["CONV_2D"], quantize(content, "dynamic_int8")) == "no CONV_2D computes in float"

    def judged(error):
        return untrue_refusal(error, content, "int8", ranges)

    assert judged(ConversionError("… because the quantizer makes no integer ops of these: ELU. Use …")) == ""
    assert judged(ConversionError("… because the quantizer makes no integer ops of these: SOFTMAX. Use …"))
    assert judged(ConversionError("90% of the weights are zero, and …")) == "0% of the weights are zero"
    assert judged(KeyError("x")) == "KeyError is no MobilePruneError"
    assert judged(ConversionError("")) == "nothing was said"

    def ratio(said):
        return untrue_failure(said, Variant("zoo", "int8", int8), network.expected, network.images)

    assert ratio("the outputs have 3.0 dB; 10 dB are needed").endswith(" dB")


def test_a_crash_without_an_error_of_ours_is_noticed():
    assert made("concatenation").outcome("no such recipe").untrue == ""
    assert made("concatenation").outcome("int8", runtimes=None).untrue == "TypeError is no MobilePruneError"
