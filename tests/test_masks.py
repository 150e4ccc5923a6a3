import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from mobileprune.errors import SparsityError
from mobileprune.masks import kept_count, magnitude_mask, zero_fraction

SHAPES = array_shapes(min_dims=1, max_dims=4, max_side=6)
WEIGHTS = arrays(np.float32, SHAPES, elements=st.floats(-4, 4, width=32))
# Few different values, so that most magnitudes are tied.
TIED = arrays(np.float32, SHAPES, elements=st.sampled_from([-2.0, -1.0, 0.0, 1.0, 2.0]))


@given(st.one_of(WEIGHTS, TIED), st.floats(0, 1))
def test_exactly_the_wanted_number_of_weights_stays(weights, sparsity):
    mask = magnitude_mask(weights, sparsity)
    assert mask.shape == weights.shape
    assert mask.dtype == bool
    assert np.count_nonzero(mask) == kept_count(weights.size, sparsity)


@given(st.one_of(WEIGHTS, TIED), st.floats(0, 1))
def test_no_weight_that_goes_is_larger_than_one_that_stays(weights, sparsity):
    mask = magnitude_mask(weights, sparsity)
    sizes = np.abs(weights)
    if mask.any() and not mask.all():
        assert sizes[~mask].max() <= sizes[mask].min()


@given(TIED, st.floats(0, 1))
def test_of_equal_magnitudes_the_first_stay(weights, sparsity):
    order = np.argsort(-np.abs(weights).ravel(), kind="stable")
    expected = np.zeros(weights.size, bool)
    expected[order[: kept_count(weights.size, sparsity)]] = True
    np.testing.assert_array_equal(magnitude_mask(weights, sparsity).ravel(), expected)


@given(WEIGHTS, st.floats(0, 1))
def test_a_mask_of_masked_weights_is_the_same_mask(weights, sparsity):
    weights = weights + np.where(weights >= 0, 1, -1).astype("float32")  # none is zero, so none ties with a hole
    mask = magnitude_mask(weights, sparsity)
    np.testing.assert_array_equal(magnitude_mask(weights * mask, sparsity), mask)


def test_all_weights_equal():
    assert magnitude_mask(np.full(4, -0.5), 0.5).tolist() == [True, True, False, False]
    assert magnitude_mask(np.zeros((2, 2)), 0.25).tolist() == [[True, True], [True, False]]


def test_the_ends_of_the_range():
    weights = np.array([[0.0, -1.0]])
    assert magnitude_mask(weights, 0.0).all()
    assert not magnitude_mask(weights, 1.0).any()
    assert magnitude_mask(np.zeros((0, 3)), 0.5).shape == (0, 3)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("sparsity", [0.0, 0.5])
def test_weights_that_are_not_finite_are_refused(bad, sparsity):
    with pytest.raises(SparsityError, match="not all finite"):
        magnitude_mask(np.array([1.0, bad, 2.0]), sparsity)


def test_the_weights_are_left_alone():
    weights = np.array([3.0, 1.0, 2.0])
    magnitude_mask(weights, 0.67)
    assert weights.tolist() == [3.0, 1.0, 2.0]


def test_zero_fraction_weighs_arrays_by_their_size():
    assert zero_fraction([np.zeros(1), np.ones((1, 3))]) == 0.25
    assert zero_fraction([np.array([-0.0, 1e-30])]) == 0.5
    assert zero_fraction([]) == 0.0
    assert zero_fraction([np.zeros(0)]) == 0.0
