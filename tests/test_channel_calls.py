import keras
import numpy as np
import pytest

from mobileprune.channel_calls import OP_RULES, RULES, compact, places, register_channels, rule_for_ops
from mobileprune.channel_ids import ChannelIds
from mobileprune.errors import ModelError


def test_compact_cuts_constant_axes_only():
    view = np.broadcast_to(np.array([1, 2, 3]), (4, 5, 3))
    assert compact(view).tolist() == [[[1, 2, 3]]]
    np.testing.assert_array_equal(compact(np.array([[1, 2], [2, 1]])), [[1, 2], [2, 1]])
    assert compact(np.ascontiguousarray(view)).shape == (1, 1, 3)


def test_places_follow_each_id_and_each_of_its_occurrences():
    assert places(np.array([5, 7, 9]), np.array([9, 5])).tolist() == [2, 0]
    assert places(np.array([4, 8, 4, 8]), np.array([8, 4, 8, 4])).tolist() == [1, 0, 3, 2]
    assert places(np.array([4, 8]), np.array([], np.int64)).tolist() == []


@pytest.mark.parametrize("new", [[6], [5, 5], [99]])
def test_an_id_that_was_not_there_is_an_error(new):
    with pytest.raises(ModelError, match="a channel that the larger one lacks"):
        places(np.array([5, 7]), np.array(new))


class Own(keras.layers.Layer):
    """A layer of the users'."""


def test_a_rule_is_registered_for_the_class_itself_and_not_for_its_subclasses():
    class Derived(Own):
        pass

    @register_channels(Own)
    def own(ids, call):
        return call.inputs

    try:
        assert RULES[Own] is own
        assert Derived not in RULES
    finally:
        del RULES[Own]


def test_functions_of_keras_are_known_by_the_names_of_their_classes():
    @rule_for_ops("NoSuchFunction")
    def rule(ids, call):
        return call.inputs

    assert OP_RULES.pop("NoSuchFunction") is rule


def test_a_call_says_how_often_a_weight_is_applied_and_what_it_is_given():
    inputs = keras.Input((4, 6, 3))
    x = keras.layers.Conv2D(5, 1, name="a")(inputs)
    ids = ChannelIds(keras.Model(inputs, keras.ops.multiply(x, np.arange(5.0))))
    call = ids.calls["a"]
    assert call.positions == 24
    assert call.spread(np.arange(5))[0].shape == (1, 4, 6, 5)
    assert not call.has_constants
    assert next(call for path, call in ids.calls.items() if "multiply" in path).has_constants
