import keras
import numpy as np
import pytest
import tensorflow as tf

from mobileprune.added_bias import AddedBias


@pytest.mark.parametrize(
    ("bias", "output"),
    [
        ((4,), (2, 3, 4)),
        ((4,), (2, 4, 4)),
        ((4, 1), (2, 4, 4, 1)),
        ((4, 1), (2, 3, 4, 1)),
        ((4, 1), (2, 3, 4, 4)),
        ((4, 1), (2, 4, 4, 4)),
        ((4, 1), (2, 5, 4, 3)),
        ((1, 4), (2, 4, 1, 4)),
        ((4, 3), (2, 4, 4, 3)),
        ((1, 1), (2, 1, 1, 1)),
        ((1, 4, 1, 1), (2, 4, 4, 4)),
        ((1, 4, 1, 1), (2, 4, 5, 3)),
        ((1, 4, 1, 1), (2, 4, 4, 3)),
        ((1, 1, 4, 1), (2, 4, 4, 3)),
    ],
)
def test_what_keras_does_is_foreseen(bias, output):
    """When this fails, Keras adds biases in another way: see which of them are right now."""
    values = np.arange(np.prod(bias), dtype="float32").reshape(bias)
    try:
        found = np.asarray(keras.ops.add(np.zeros(output, "float32"), values))
    except (tf.errors.InvalidArgumentError, ValueError):
        wrong = True  # along the last axis of one that is shorter
    else:
        wrong = found.shape != output or not np.array_equal(found, np.broadcast_to(values, output))
    assert AddedBias("layer", bias, output).misplaced() == wrong


def test_what_is_left_counts():
    channels = np.array([1, 2, 5, 7])
    added = AddedBias("layer", (channels, 1), (1, 3, channels, 1))
    assert [array.tolist() for array in added.channels] == [[1, 2, 5, 7]] * 2
    alive = np.ones(9, bool)
    assert not added.misplaced(alive)
    alive[2] = False
    assert added.misplaced(alive)
    alive[3] = False  # no channel of these
    assert added.misplaced(alive)
    alive[1] = False
    assert not added.misplaced(alive)
