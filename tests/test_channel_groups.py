import keras
import numpy as np
import pytest
from architectures import ARCHITECTURES

from mobileprune.channel_groups import ChannelGraph, _unique_name, channel_groups

layers = keras.layers


def names(model):
    return {group.name: (group.layers, group.size, group.frozen) for group in channel_groups(model)}


def test_the_groups_of_a_chain():
    model = keras.Sequential(
        [
            keras.Input((8, 8, 3), name="image"),
            layers.Conv2D(16, 3, name="stem"),
            layers.BatchNormalization(),
            layers.Conv2D(24, 3, name="body"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(5, name="head"),
        ]
    )
    assert names(model) == {
        "image": (("image",), 3, "model input 'image'"),
        "stem": (("stem",), 16, None),
        "body": (("body",), 24, None),
        "head": (("head",), 5, "model output 'head'"),
    }


def test_layers_that_an_addition_joins_are_one_group():
    inputs = keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(16, 1, name="a")(inputs)
    y = layers.Conv2D(16, 1, name="b")(layers.Conv2D(4, 1, name="inner")(x))
    model = keras.Model(inputs, layers.Dense(2, name="head")(layers.Add()([x, y])))
    found = names(model)
    assert found["a"] == (("a", "b"), 16, None)
    assert found["inner"] == (("inner",), 4, None)
    assert "b" not in found


def test_a_concatenation_joins_nothing():
    model = ARCHITECTURES["concatenation"]()
    assert all(len(group.layers) == 1 for group in channel_groups(model))


def test_an_addition_across_a_concatenation_joins_parts():
    inputs = keras.Input((4, 4, 3), name="image")
    a, b, c = (layers.Conv2D(width, 1, name=name)(inputs) for name, width in (("a", 4), ("b", 8), ("c", 12)))
    model = keras.Model(inputs, layers.Conv2D(2, 1)(layers.Add()([layers.Concatenate()([a, b]), c])))
    found = {frozenset(group.layers): group.size for group in channel_groups(model)}
    assert found[frozenset("ac")] == 4
    assert found[frozenset("bc")] == 8


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_groups_have_names_of_their_own_and_units_of_their_own(name):
    groups = channel_groups(ARCHITECTURES[name]())
    assert len({group.name for group in groups}) == len(groups)
    roots = np.concatenate([group.roots for group in groups])
    assert len(set(roots.tolist())) == len(roots)


def test_a_group_whose_layers_all_name_other_groups_is_numbered():
    class Named:
        def __init__(self, name):
            self.name = name

    assert _unique_name(("a", "b"), []) == "a"
    assert _unique_name(("a", "b"), [Named("a")]) == "b"
    assert _unique_name(("a",), [Named("a")]) == "a#2"
    assert _unique_name(("a", "b"), [Named("a"), Named("b"), Named("a#2")]) == "a#3"


def test_the_cost_of_a_choice_by_hand():
    model = keras.Sequential(
        [
            keras.Input((4, 4, 3)),
            layers.Conv2D(6, 3, padding="same", name="a"),
            layers.BatchNormalization(),
            layers.Conv2D(5, 1, use_bias=False, name="b"),
        ]
    )
    graph = ChannelGraph(model)
    whole = graph.cost(graph.everything())
    assert (whole.macs, whole.params) == (16 * (27 * 6 + 6 * 5), 27 * 6 + 6 + 4 * 6 + 6 * 5)
    group = next(group for group in graph.groups if group.name == "a")
    part = graph.cost(graph.without(group.roots[:2]))
    assert (part.macs, part.params) == (16 * (27 * 4 + 4 * 5), 27 * 4 + 4 + 4 * 4 + 4 * 5)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_cost_of_everything_counts_all_parameters(name):
    model = ARCHITECTURES[name]()
    graph = ChannelGraph(model)
    assert graph.cost(graph.everything()).params == model.count_params()


def test_parameters_of_layers_without_a_rule_are_counted_and_stay():
    inputs = keras.Input((6,))
    x = layers.Dense(16, name="a")(layers.LayerNormalization()(layers.Dense(8, name="frozen")(inputs)))
    model = keras.Model(inputs, layers.Dense(3)(x))
    graph = ChannelGraph(model)
    assert graph.cost(graph.everything()).params == model.count_params()
    group = next(group for group in graph.groups if group.name == "a")
    gone = graph.cost(graph.without(group.roots[:1]))
    assert model.count_params() - gone.params == 8 + 1 + 3


def test_weights_of_a_group_name_each_axis_and_unit():
    model = keras.Sequential(
        [keras.Input((2, 2, 3)), layers.Conv2D(2, 1, name="a"), layers.Flatten(), layers.Dense(1, name="b")]
    )
    graph = ChannelGraph(model)
    group = next(group for group in graph.groups if group.name == "a")
    found = {(weight.layer, weight.attribute, axis): units.tolist() for weight, axis, units in graph.weights_of(group)}
    assert found == {("a", "kernel", 3): [0, 1], ("a", "bias", 0): [0, 1], ("b", "kernel", 0): [0, 1] * 4}


def test_units_of_other_groups_are_marked():
    inputs = keras.Input((2, 2, 3))
    both = layers.Concatenate()([layers.Conv2D(2, 1, name="a")(inputs), layers.Conv2D(3, 1, name="b")(inputs)])
    graph = ChannelGraph(keras.Model(inputs, layers.Conv2D(1, 1, name="c")(both)))
    group = next(group for group in graph.groups if group.name == "b")
    found = {(weight.layer, axis): units.tolist() for weight, axis, units in graph.weights_of(group)}
    assert found["c", 2] == [-1, -1, 0, 1, 2]
