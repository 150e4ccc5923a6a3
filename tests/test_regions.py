import keras
import pytest

from mobileprune.graph import functional_graph
from mobileprune.regions import Regions

layers, ops = keras.layers, keras.ops


def regions(outputs, inputs):
    return Regions(functional_graph(keras.Model(inputs, outputs)))


def told(found):
    return [
        (region.residual, region.entry._keras_history.operation.name, [call.operation.name for call in region.calls])
        for region in found
    ]


@pytest.fixture
def image():
    return keras.Input((6, 6, 4), name="image")


def test_a_chain_has_one_region_for_each_layer_that_keeps_the_shape(image):
    x = layers.Conv2D(4, 1, name="b")(layers.ReLU(name="a")(image))
    assert told(regions(x, image).found) == [(False, "image", ["a"]), (False, "a", ["b"])]


def test_shapes_in_between_may_differ(image):
    x = layers.Conv2D(4, 1, name="narrow")(layers.Conv2D(9, 1, name="wide")(image))
    assert told(regions(x, image).found) == [(False, "image", ["wide", "narrow"])]
    assert told(regions(layers.Conv2D(5, 1)(x), image).found) == [(False, "image", ["wide", "narrow"])]


def test_another_type_cannot_stand_in(image):
    assert regions(ops.cast(layers.Conv2D(4, 1)(image), "float16"), image).found[-1].exit.dtype == "float32"


def test_two_branches_are_one_region(image):
    parts = [layers.Conv2D(2, 1, name="left")(image), layers.Conv2D(2, 3, padding="same", name="right")(image)]
    (region,) = regions(layers.Concatenate(name="join")(parts), image).found
    assert {call.operation.name for call in region.calls} == {"left", "right", "join"}


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("add", [lambda terms: layers.Add(name="sum")(terms), lambda terms: ops.add(*terms)])
def test_a_sum_stands_on_the_term_that_the_others_are_made_of(image, first, add):
    y = layers.Conv2D(4, 1, name="branch")(image)
    found = regions(add([image, y] if first else [y, image]), image).found
    assert (found[-1].residual, found[-1].entry) == (True, image)
    assert len(found[-1].calls) == 2


def test_a_sum_of_strangers_is_no_residual_block(image):
    """What both come from has another shape: neither term is made of the other."""
    both = [layers.Conv2D(8, 1, name=name)(image) for name in ("one", "other")]
    assert regions(layers.Add(name="sum")(both), image).found == []


def test_two_outputs_of_one_op_are_entries_and_no_exits(image):
    left, right = ops.split(image, 2, axis=-1)
    x = layers.Conv2D(2, 1, name="conv")(left)
    (inner, whole) = regions(layers.Concatenate(name="join")([x, right]), image).found
    assert (inner.entry, inner.exit) == (left, x)
    assert [call.operation.name for call in whole.calls][1:] == ["conv", "join"]


def test_what_an_output_reads_inside_ends_the_search(image):
    inside = layers.Conv2D(9, 1, name="wide")(image)
    x = layers.Conv2D(4, 1, name="narrow")(inside)
    assert told(regions([x, inside], image).found) == []
