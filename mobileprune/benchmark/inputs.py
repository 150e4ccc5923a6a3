"""What files are timed with where nobody gives images."""

import math
from collections.abc import Sequence

import numpy as np

from mobileprune.errors import InterpreterError
from mobileprune.runner_facts import TensorFacts

# An input of more values is no image, and would be made in this process.
MOST_NOISE = 1 << 26


def noise_for(port: TensorFacts, name: str, seed: int = 0) -> np.ndarray:
    """A batch of one to time a file with: `noise_images`, or where the input takes ids the id 0, which every table has.

    Raises:
        InterpreterError: as `noise_images`.
    """
    noise = noise_images(port.shape, name, seed=seed)
    ids = port.scale is None and np.dtype(port.dtype).kind == "i"
    return np.zeros(noise.shape, port.dtype) if ids else noise


def noise_images(shape: Sequence[int], name: str, count: int = 1, seed: int = 0) -> np.ndarray:
    """Images of noise for an input: what to time a file with. All zeros, or denormals, might take another time.

    Args:
        shape: the input's, the batch first; the file says it, and may say anything.
        name: what errors call the file.
        count: how many images.
        seed: of the noise.

    Returns:
        float32 (count, *shape[1:]).

    Raises:
        InterpreterError: the input has no values, or far more than an image has.
    """
    sizes = tuple(shape[1:])
    if min(sizes, default=1) < 1 or math.prod(sizes) * count > MOST_NOISE:
        raise InterpreterError(
            f"{name} takes input of shape {tuple(shape)}; every size but the batch must be 1 or more, and {count} "
            f"images of at most {MOST_NOISE:,} values in all."
        )
    return np.random.default_rng(seed).normal(size=(count, *sizes)).astype(np.float32)
