import functools

import keras
import pytest
from architectures import ARCHITECTURES, random_inputs, randomise

from mobileprune.channel_groups import ChannelGraph
from mobileprune.convert import convert
from mobileprune.errors import PlanError
from mobileprune.file_size import KERNEL_BYTES, FileSize
from mobileprune.models import mobilenet_small
from mobileprune.plan import plan_channels
from mobileprune.prune import prune_channels

layers = keras.layers


@functools.cache
def small():
    return randomise(mobilenet_small((32, 32, 3), 10))


def plain():
    """3×3 convolutions and dense layers, a batch norm that folds and one that does not."""
    return keras.Sequential(
        [
            keras.Input((16, 16, 3)),
            layers.Conv2D(64, 3, use_bias=False),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.BatchNormalization(),
            layers.Conv2D(128, 3, strides=2, activation="relu"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(256, activation="relu"),
            layers.Dense(10),
        ]
    )


def sizes(model, recipes):
    """Estimated and real bytes by recipe."""
    made = convert(model, recipes, calibration=random_inputs(model, 8)[0])
    graph = ChannelGraph(model)
    return {
        variant.recipe: (FileSize(graph, variant.recipe).bytes(graph.everything()), len(variant.content))
        for variant in made
    }


@pytest.mark.parametrize("build", [small, plain])
def test_files_of_more_than_100_kb_are_estimated_within_2_percent(build):
    for recipe, (estimated, real) in sizes(randomise(build()), list(KERNEL_BYTES)).items():
        assert real > 100_000
        assert estimated == pytest.approx(real, rel=0.02), recipe


@pytest.mark.parametrize("name", ["residual", "concatenation", "sequential_convnet", "grouped_and_transposed"])
def test_smaller_files_are_estimated_within_10_percent(name):
    model = randomise(ARCHITECTURES[name]())
    for recipe, (estimated, real) in sizes(model, ["float32", "float16", "dynamic_int8", "int8"]).items():
        assert estimated == pytest.approx(real, rel=0.1), recipe


@pytest.mark.parametrize("recipe", ["float32", "int8"])
def test_half_of_the_file_is_half_of_the_real_file(recipe):
    plan = plan_channels(small(), file_bytes=0.5, recipe=recipe)
    smaller = prune_channels(small(), plan)
    images = random_inputs(small(), 8)[0]
    before, after = (len(convert(model, [recipe], calibration=images)[0].content) for model in (small(), smaller))
    assert 0.46 * before < after < 0.51 * before
    # An absolute target, in bytes.
    graph = ChannelGraph(smaller)
    assert FileSize(graph, recipe).bytes(graph.everything()) == pytest.approx(after, rel=0.02)


def test_the_estimate_of_a_plan_is_that_of_the_smaller_model():
    graph = ChannelGraph(small())
    plan = plan_channels(small(), macs=0.5)
    roots = [group.roots[list(entry.remove)] for group, entry in zip(graph.groups, plan.groups, strict=True)]
    alive = graph.without([root for part in roots for root in part])
    smaller = ChannelGraph(prune_channels(small(), plan))
    for recipe in KERNEL_BYTES:
        assert FileSize(graph, recipe).bytes(alive) == FileSize(smaller, recipe).bytes(smaller.everything())


def test_batch_norms_fold_only_into_what_feeds_nothing_else():
    def estimated(activation, twice):
        inputs = keras.Input((8, 8, 3))
        x = layers.Conv2D(64, 1, use_bias=False, activation=activation)(inputs)
        y = layers.BatchNormalization()(x)
        y = layers.Add()([x, y]) if twice else y
        graph = ChannelGraph(keras.Model(inputs, layers.Conv2D(2, 1)(y)))
        return FileSize(graph).bytes(graph.everything())

    folded = estimated(None, twice=False)
    assert estimated("relu", twice=False) == folded + 2 * 64 * 4
    assert estimated(None, twice=True) == folded + 2 * 64 * 4


def test_an_unknown_recipe_lists_the_known_ones():
    with pytest.raises(PlanError, match=r"'int3' is not known. Known: float32, float16, dynamic_int8, int8"):
        FileSize(ChannelGraph(plain()), "int3")
