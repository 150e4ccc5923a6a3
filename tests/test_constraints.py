import keras
import numpy as np
import pytest
from architectures import ARCHITECTURES

from mobileprune.channel_groups import ChannelGraph
from mobileprune.constraints import constraints, explicit_counts, unit_costs
from mobileprune.errors import PlanError

layers = keras.layers


def chain():
    return ChannelGraph(
        keras.Sequential(
            [
                keras.Input((8, 8, 3), name="image"),
                layers.Conv2D(32, 3, name="stem"),
                layers.Conv2D(48, 1, name="block_1_expand"),
                layers.Conv2D(20, 1, name="block_1_project"),
                layers.GlobalAveragePooling2D(),
                layers.Dense(5, name="head"),
            ]
        )
    )


def coupled():
    """`left` and `right` share 16 channels, which the two groups of `grouped` (24) join two by two: 8 and 12 units."""
    inputs = keras.Input((8, 8, 3), name="image")
    x = layers.Add()([layers.Conv2D(16, 1, name=name)(inputs) for name in ("left", "right")])
    x = layers.Conv2D(24, 1, groups=2, name="grouped")(x)
    return ChannelGraph(keras.Model(inputs, layers.Dense(5, name="head")(layers.GlobalAveragePooling2D()(x))))


def least(graph, **limits):
    found = constraints(graph, **limits)
    return {group.name: found.least[group.name] for group in found.free}


def test_the_least_is_a_multiple_or_the_whole_group():
    assert least(chain(), round_to=8, max_ratio=0.75) == {"stem": 8, "block_1_expand": 16, "block_1_project": 8}
    assert least(chain(), round_to=1, max_ratio=0.75) == {"stem": 8, "block_1_expand": 12, "block_1_project": 5}
    assert least(chain(), round_to=32) == {"stem": 32, "block_1_expand": 32, "block_1_project": 20}


@pytest.mark.parametrize("share", [0.1, 0.3, 0.6, 0.7, 0.9])
def test_a_ratio_that_is_the_largest_allowed_is_reached(share):
    """1 - 0.7 is a little more than 0.3: it must not cost a unit."""
    for size in (10, 20, 80, 1000):
        graph = ChannelGraph(
            keras.Sequential([keras.Input((4, 4, 3)), layers.Conv2D(size, 1, name="conv"), layers.Conv2D(2, 1)])
        )
        assert least(graph, round_to=1, max_ratio=share)["conv"] == size - round(size * share)


def test_least_channels_are_rounded_up():
    assert least(chain(), min_channels=17) == {"stem": 24, "block_1_expand": 24, "block_1_project": 20}


def test_the_first_pattern_that_matches_counts():
    limits = {"max_ratio": {"stem": 0.25, "block_*": 0.5}, "round_to": 1}
    assert least(chain(), **limits) == {"stem": 24, "block_1_expand": 24, "block_1_project": 10}
    limits = {"max_ratio": {"*_expand": 0.75, "*": 0.5}, "round_to": 1}
    assert least(chain(), **limits) == {"stem": 16, "block_1_expand": 12, "block_1_project": 10}
    # Layers that match no pattern have the default: 0.9, and one channel.
    limits = {"max_ratio": {"stem": 0.25}, "min_channels": {"*_project": 7}, "round_to": 1}
    assert least(chain(), **limits) == {"stem": 24, "block_1_expand": 5, "block_1_project": 7}


def test_coupled_layers_follow_the_strictest_of_their_limits():
    assert least(coupled(), max_ratio={"left": 0.75, "right": 0.5}, round_to=1)["left"] == 4
    assert least(coupled(), min_channels={"left": 3, "right": 6}, round_to=1)["left"] == 6


def test_only_what_all_its_layers_allow_is_pruned():
    found = constraints(chain(), prune_only=["block_*"])
    assert [group.name for group in found.free] == ["block_1_expand", "block_1_project"]
    assert found.frozen["stem"] == "'stem' is not in prune_only"
    assert found.frozen["head"] == "model output 'head'"
    found = constraints(coupled(), prune_only=["right", "grouped"])
    assert [group.name for group in found.free] == ["grouped"]
    assert found.frozen["left"] == "'left' is not in prune_only"


def test_keep_is_stronger_than_prune_only():
    found = constraints(chain(), keep=["*_project"], prune_only=["block_*"])
    assert [group.name for group in found.free] == ["block_1_expand"]
    assert found.frozen["block_1_project"] == "kept by '*_project'"


@pytest.mark.parametrize(
    "limits",
    [
        {"keep": ["blok_1_*"]},
        {"prune_only": ["blok_1_*"]},
        {"max_ratio": {"blok_1_*": 0.5}},
        {"min_channels": {"blok_1_*": 8}},
    ],
)
def test_a_pattern_without_a_match_names_what_is_near(limits):
    (argument,) = limits
    message = rf"{argument}='blok_1_\*' matches no layer. Near it: block_1_\w+, block_1_\w+. Layers: image, stem"
    with pytest.raises(PlanError, match=message):
        constraints(chain(), **limits)


def test_a_string_in_the_place_of_a_list_is_refused():
    with pytest.raises(PlanError, match=r"keep is a list of patterns. Write keep=\['stem'\]"):
        constraints(chain(), keep="stem")


@pytest.mark.parametrize(
    "limits",
    [
        {"round_to": 0},
        {"max_ratio": 0.0},
        {"max_ratio": {"stem": 1.0}},
        {"min_channels": 0},
        {"min_channels": {"stem": 1.5}},
    ],
)
def test_senseless_limits_are_refused(limits):
    with pytest.raises(PlanError, match=next(iter(limits))):
        constraints(chain(), **limits)


def test_rounding_takes_the_nearest_multiple_within_the_limits():
    found = constraints(chain(), round_to=8, max_ratio=0.5)
    stem = next(group for group in found.free if group.name == "stem")
    assert [found.rounded(stem, wanted) for wanted in (40, 31, 27, 17, 3)] == [32, 32, 24, 16, 16]


def test_unit_costs_by_hand():
    graph = chain()
    expand = next(group for group in graph.groups if group.name == "block_1_expand")
    # 36 positions; 32 inputs and a bias make a unit, 20 outputs read it.
    assert unit_costs(graph, expand, "macs").tolist() == [36 * (32 + 20)] * 48
    assert unit_costs(graph, expand, "params").tolist() == [32 + 1 + 20] * 48


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("target", ["macs", "params"])
def test_a_units_cost_is_what_its_removal_saves(name, target):
    graph = ChannelGraph(ARCHITECTURES[name]())
    whole = getattr(graph.cost(graph.everything()), target)
    for group in (group for group in graph.groups if not group.frozen):
        costs = unit_costs(graph, group, target)
        for unit in (0, group.size - 1):
            saved = whole - getattr(graph.cost(graph.without(group.roots[[unit]])), target)
            # A weight whose two axes follow one group counts its corner twice.
            assert saved <= costs[unit] <= saved * 1.1


def test_the_cheapest_choice_keeps_the_least_of_every_group():
    graph = chain()
    found = constraints(graph, round_to=8)
    alive = found.cheapest("macs")
    left = {group.name: int(alive[group.roots].sum()) for group in graph.groups}
    assert left == {"image": 3, "stem": 8, "block_1_expand": 8, "block_1_project": 8, "head": 5}


def test_explicit_counts_are_taken_as_they_are():
    counts = explicit_counts(constraints(chain()), {"stem": 13, "block_*": 3})
    assert counts == {"stem": 13, "block_1_expand": 3, "block_1_project": 3}
    assert explicit_counts(constraints(chain()), {"stem": 13})["block_1_expand"] == 48
    # A wildcard passes over what must stay, and the first pattern counts.
    counts = explicit_counts(constraints(chain()), {"stem": 4, "*": 2})
    assert counts == {"stem": 4, "block_1_expand": 2, "block_1_project": 2}


def test_counts_of_coupled_and_of_grouped_layers():
    limits = constraints(coupled())
    assert explicit_counts(limits, {"right": 6, "grouped": 10}) == {"left": 3, "grouped": 5}
    assert explicit_counts(limits, {"right": 6, "left": 6})["left"] == 3


@pytest.mark.parametrize(
    ("channels", "says"),
    [
        ({"left": 6, "right": 8}, "'left' and 'right' share their channels, but 6 and 8 were asked"),
        ({"left": 16, "right": 8}, "'left' and 'right' share their channels, but 16 and 8 were asked"),
        ({"grouped": 9}, "'grouped' go by 2 at a time; 9 is no multiple of 2"),
        ({"left": 17}, "'left' has 16 channels; 17 cannot be kept"),
        ({"left": 0}, "'left' has 16 channels; 0 cannot be kept"),
        ({"left": 1.5}, "1.5 cannot be kept"),
        ({"head": 3}, "'head' keeps its 5 channels: model output"),
        ({"lefd": 3}, "channels='lefd' matches no layer. Near it: left"),
    ],
)
def test_counts_that_cannot_be_are_refused(channels, says):
    with pytest.raises(PlanError, match=says):
        explicit_counts(constraints(coupled()), channels)


def test_counts_of_kept_layers_are_refused():
    with pytest.raises(PlanError, match="'right' keeps its 16 channels: kept by 'left'"):
        explicit_counts(constraints(coupled(), keep=["left"]), {"right": 8})
    assert np.all(explicit_counts(constraints(coupled(), keep=["left"]), {"right": 16})["grouped"] == 12)


def test_a_layer_of_several_groups_has_no_one_count():
    inputs = keras.Input((8, 8, 3))
    wide = layers.Conv2D(12, 1, name="wide")(inputs)
    joined = layers.Concatenate()([layers.Conv2D(4, 1, name="part")(inputs), layers.Conv2D(8, 1, name="rest")(inputs)])
    x = layers.GlobalAveragePooling2D()(layers.Add()([wide, joined]))
    limits = constraints(ChannelGraph(keras.Model(inputs, layers.Dense(2, name="head")(x))))
    with pytest.raises(PlanError, match="12 channels of 'wide' belong to several groups"):
        explicit_counts(limits, {"wide": 6})
    with pytest.raises(PlanError, match="'part'"):
        explicit_counts(limits, {"part": 7})
    assert sorted(explicit_counts(limits, {"part": 3, "rest": 8}).values()) == [3, 8]
