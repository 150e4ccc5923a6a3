import numpy as np
import pytest

from mobileprune.calibration_data import contract_range
from mobileprune.preprocess import normalise
from mobileprune.records import Preprocess


@pytest.mark.parametrize(
    ("mean", "std"),
    [((127.5,), (127.5,)), ((127.0,), (128.0,)), ((123.7, 116.3, 103.5), (58.4, 57.1, 57.4)), ((0,), (-1,))],
)
def test_the_range_of_a_contract_is_what_preprocessing_makes(mean, std):
    contract = Preprocess(4, 4, mean=mean, std=std)
    pixels = np.stack([np.full((4, 4, 3), value, np.uint8) for value in range(256)])
    made = normalise(pixels, contract)
    assert contract_range(contract) == pytest.approx((made.min(), made.max()), rel=1e-6)
