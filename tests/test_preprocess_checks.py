import numpy as np
import pytest

from mobileprune.errors import VerificationError
from mobileprune.preprocess_checks import preprocess_faults
from mobileprune.records import Preprocess

CONTRACT = Preprocess(16, 16)
PIXELS = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3)).astype(np.float32)
OURS = (PIXELS - 127.5) / 127.5


def test_the_same_and_what_decoders_differ_by_pass():
    assert preprocess_faults(OURS, OURS, CONTRACT) == []
    noise = np.random.default_rng(1).integers(-2, 3, PIXELS.shape)
    assert preprocess_faults(OURS + noise / 127.5, OURS, CONTRACT) == []


@pytest.mark.parametrize(
    ("theirs", "words"),
    [
        (OURS[..., ::-1], "reverse order (BGR for RGB)"),
        (PIXELS / 255, "mean were 0 and std 255"),
        (PIXELS, "mean were 0 and std 1 in place of 127.5 and 127.5"),
        ((PIXELS - 127) / 128, None),
        ((PIXELS - 120) / 60, "mean were 120 and std 60"),
        (OURS[:, :, ::-1], "mirrored"),
        (np.roll(OURS, 3, axis=1), "Other pixels"),
        (np.zeros_like(OURS), "Other pixels"),
    ],
)
def test_a_difference_is_named(theirs, words):
    found = preprocess_faults(theirs.astype(np.float32), OURS, CONTRACT)
    if words is None:  # half a grey level is none
        assert found == []
    else:
        (sentence,) = found
        assert words in sentence


def test_what_cannot_be_compared_is_an_error():
    with pytest.raises(VerificationError, match=r"gives \(8, 16, 3\) for 4 images"):
        preprocess_faults(OURS[:, :8], OURS, CONTRACT)
    with pytest.raises(VerificationError, match="NaN"):
        preprocess_faults(np.full_like(OURS, np.nan), OURS, CONTRACT)
