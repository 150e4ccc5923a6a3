"""One channel that eight bits cannot hold beside the others: it is found, and nothing else is touched."""

import functools

import numpy as np
import pytest
from tiny_models import convnet, images

from mobileprune.calibration import calibrate
from mobileprune.convert import to_float_flatbuffer
from mobileprune.errors import SettingsError
from mobileprune.layer_errors import layer_errors
from mobileprune.layer_names import layer_of
from mobileprune.mixed_precision import _fewest, choose_precision, remedies, sensitivities
from mobileprune.recipes import quantize

IMAGES = images(256, seed=7)
OUTLIER = 400.0


@functools.cache
def planted():
    """The 1×1 convolution computes one channel that is hundreds of times larger than the others, and of which the head
    makes nothing. It reaches the head through an addition and pooling."""
    model = convnet(seed=0)
    norm = model.get_layer("project_bn")
    norm.gamma.assign(norm.gamma * np.where(np.arange(16) == 3, OUTLIER, 1))
    head = model.get_layer("head")
    head.kernel.assign(head.kernel * np.where(np.arange(16) == 3, 0, 1)[:, None])
    content = to_float_flatbuffer(model)
    return content, calibrate(content, images(100, seed=1))


@functools.cache
def chosen():
    content, ranges = planted()
    return choose_precision(content, ranges, (IMAGES, None), max_drop=2.0)


def touched(tensors):
    return {layer_of(tensor) for tensor in tensors} & {"stem", "depthwise", "project"}


def test_the_planted_layer_is_where_the_file_parts_from_float():
    content, ranges = planted()
    errors = layer_errors(content, quantize(content, "int8", ranges), IMAGES[:16])
    first = errors.first_fall()
    assert first.layer == "project"
    assert first.fall_db > 25
    assert first.snr_db > 25  # the large channel hides it: only channel by channel it can be seen
    assert errors.worst(1) == (first,)


def test_the_planted_layer_and_its_readers_are_the_most_sensitive():
    content, ranges = planted()
    ranking = sensitivities(content, ranges, IMAGES)
    assert [each.snr_db for each in ranking] == sorted(each.snr_db for each in ranking)
    assert {each.layer for each in ranking[-2:]} == {"stem", "depthwise"}
    assert ranking[-2].snr_db > ranking[-3].snr_db + 20


def test_only_what_needs_it_is_raised():
    content, ranges = planted()
    recipe, choice = chosen()
    assert 100 * (choice.accuracy_float - choice.accuracy_before) > 10
    assert choice.met
    assert choice.drop <= 2.0
    assert touched(choice.raised) <= {"project"}
    assert 1 <= len(choice.raised) <= 4
    assert set(choice.raised.values()) <= {"int16x8", "float32"}
    assert recipe.name == "mixed"
    assert len(recipe.rules) == len(choice.raised)
    assert len(quantize(content, recipe, ranges)) < len(content)
    assert choice.sentence().startswith(f"Raised {len(choice.raised)} ops")


def test_remedies_are_measured():
    content, ranges = planted()
    one, four = remedies(content, ranges, IMAGES, ranking=chosen()[1].sensitivities, counts=(1, 4, 100))
    assert len(one.layers) == 1
    assert four.before_db == one.before_db < 0
    assert four.after_db > 20
    assert "head" in four.layers
    assert f"to {four.after_db:.1f} dB." in four.sentence()


def test_nothing_is_raised_where_nothing_is_lost():
    content = to_float_flatbuffer(convnet(seed=0))
    ranges = calibrate(content, images(100, seed=1))
    recipe, choice = choose_precision(content, ranges, (IMAGES, None), max_drop=10)
    assert (choice.raised, choice.sensitivities, choice.trials) == ({}, (), 1)
    assert recipe.rules == ()
    assert "Nothing was raised" in choice.sentence()


def test_labels_decide_where_they_are_given():
    content, ranges = planted()
    wrong = np.zeros(len(IMAGES), np.int64)
    _, choice = choose_precision(content, ranges, (IMAGES, wrong), max_drop=100)
    assert choice.accuracy_float < 0.5
    assert choice.raised == {}


@pytest.mark.parametrize("needed", [{"a"}, {"c"}, {"a", "c"}, {"e"}, set("abcde")])
def test_the_fewest_ops_that_are_enough(needed):
    found = _fewest("abcde", lambda raised: needed <= set(raised))
    assert found == dict.fromkeys(sorted(needed), "int16x8")


def test_float_stays_where_int16_is_not_enough():
    found = _fewest("abcd", lambda raised: raised.get("b") == "float32" and "c" in raised)
    assert found == {"b": "float32", "c": "int16x8"}


def test_all_ops_are_raised_where_nothing_is_enough():
    assert _fewest("abc", lambda raised: False) == dict.fromkeys("abc", "float32")


def test_a_drop_that_cannot_be_meant():
    content, ranges = planted()
    for wrong in (-1.0, float("nan")):
        with pytest.raises(SettingsError, match="max_drop is"):
            choose_precision(content, ranges, (IMAGES, None), max_drop=wrong)
