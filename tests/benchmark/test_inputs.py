import numpy as np
import pytest

from mobileprune.benchmark.inputs import noise_images
from mobileprune.errors import InterpreterError


@pytest.mark.parametrize("shape", [(1, 2**31 - 1, 2**31 - 1), (1, -1, 4), (1, 0)])
def test_inputs_that_no_image_has_are_not_made(shape):
    with pytest.raises(InterpreterError, match=r"a\.tflite takes input of shape"):
        noise_images(shape, "a.tflite")


def test_noise_is_of_the_input_s_shape_and_its_seed():
    assert noise_images((1, 4, 4, 3), "a.tflite", count=2).shape == (2, 4, 4, 3)
    one, same, other = (noise_images((1, 8), "a.tflite", seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)
