import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from mobileprune.errors import SparsityError
from mobileprune.masks import (
    Pattern,
    block_magnitudes,
    kept_count,
    kth_largest,
    magnitude_mask,
    pruning_mask,
    zero_fraction,
)

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


TAPS = array_shapes(min_dims=3, max_dims=3, max_side=7)
KERNELS = arrays(np.float32, TAPS, elements=st.floats(-4, 4, width=32))
TIED_KERNELS = arrays(np.float32, TAPS, elements=st.sampled_from([-2.0, -1.0, 0.0, 1.0]))
BLOCKS = st.tuples(st.integers(1, 4), st.integers(1, 4))


def blocks_of(array, size):
    """Every block of (taps, inputs, outputs), those at the edges smaller."""
    rows, columns = size
    for tap in array:
        for row in range(0, tap.shape[0], rows):
            for column in range(0, tap.shape[1], columns):
                yield tap[row : row + rows, column : column + columns]


@given(st.one_of(KERNELS, TIED_KERNELS), BLOCKS, st.sampled_from(["AVG", "MAX"]), st.floats(0, 1))
def test_blocks_stay_or_go_as_a_whole_and_the_largest_stay(weights, size, pooling, sparsity):
    mask = pruning_mask(weights, sparsity, Pattern(size, pooling))
    assert (mask.shape, mask.dtype) == (weights.shape, bool)
    kept = [block.all() for block in blocks_of(mask, size)]
    assert kept == [block.any() for block in blocks_of(mask, size)]
    assert sum(kept) == kept_count(len(kept), sparsity)
    pool = np.max if pooling == "MAX" else np.mean
    sizes = [pool(np.abs(block).astype(float)) for block in blocks_of(weights, size)]
    stay = [one for one, here in zip(sizes, kept, strict=True) if here]
    go = [one for one, here in zip(sizes, kept, strict=True) if not here]
    if stay and go:
        assert max(go) <= min(stay) * (1 + 1e-6) + 1e-12


@given(KERNELS, BLOCKS, st.sampled_from(["AVG", "MAX"]))
def test_block_magnitudes_against_a_loop(weights, size, pooling):
    pool = np.max if pooling == "MAX" else np.mean
    expected = [pool(np.abs(block).astype(float)) for block in blocks_of(weights, size)]
    found = block_magnitudes(weights, Pattern(size, pooling)).ravel()
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-40)


def test_mean_and_maximum_choose_different_blocks():
    weights = np.array([[[9.0, 5.0], [0.0, 5.0]]])
    assert pruning_mask(weights, 0.5, Pattern((2, 1), "MAX"))[0].tolist() == [[True, False], [True, False]]
    assert pruning_mask(weights, 0.5, Pattern((2, 1), "AVG"))[0].tolist() == [[False, True], [False, True]]


def test_a_block_does_not_reach_over_two_taps():
    weights = np.arange(1.0, 9.0).reshape(4, 1, 2)
    assert block_magnitudes(weights, Pattern((4, 2))).ravel().tolist() == [1.5, 3.5, 5.5, 7.5]


@given(
    st.one_of(KERNELS, TIED_KERNELS), st.integers(2, 5).flatmap(lambda n: st.tuples(st.integers(1, n - 1), st.just(n)))
)
def test_of_each_n_inputs_the_m_smallest_go(weights, m_by_n):
    zeros, group = m_by_n
    mask = pruning_mask(weights, 0.123, Pattern(sparsity_m_by_n=m_by_n))
    assert (mask.shape, mask.dtype) == (weights.shape, bool)
    for start in range(0, weights.shape[1], group):
        sizes, kept = (array[:, start : start + group] for array in (np.abs(weights), mask))
        assert (kept.sum(axis=1) == min(kept.shape[1], group - zeros)).all()
        assert (np.where(kept, 0, sizes).max(axis=1) <= np.where(kept, sizes, np.inf).min(axis=1)).all()


@pytest.mark.parametrize(
    "pattern", [Pattern(), Pattern((2, 2)), Pattern((2, 2), "MAX"), Pattern(sparsity_m_by_n=(1, 2))]
)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("sparsity", [0.0, 0.5])
def test_patterns_refuse_weights_that_are_not_finite(pattern, bad, sparsity):
    weights = np.ones((1, 4, 4), np.float32)
    weights[0, 1, 1] = bad
    with pytest.raises(SparsityError, match="not all finite"):
        pruning_mask(weights, sparsity, pattern)


SUBNORMAL = st.sampled_from([0.0, 1e-45, 3e-45, 1e-40, 1.1754944e-38, 1.0, 3.4028235e38])
FLOAT32 = arrays(
    np.float32, st.integers(1, 60), elements=st.one_of(st.floats(0, width=32, allow_infinity=False), SUBNORMAL)
)
FLOAT16 = arrays(np.float16, st.integers(1, 60), elements=st.floats(0, width=16, allow_infinity=False))
FLOAT64 = arrays(np.float64, st.integers(1, 60), elements=st.floats(0, allow_infinity=False))
BFLOAT16 = FLOAT32.map(lambda sizes: np.minimum(sizes, np.float32(3e38)).astype(ml_dtypes.bfloat16))


@given(st.one_of(FLOAT32, FLOAT16, FLOAT64, BFLOAT16), st.data())
def test_the_kth_largest_is_what_sorting_says(sizes, data):
    k = data.draw(st.integers(1, sizes.size))
    exact = sizes.astype(np.float64)
    assert float(kth_largest(sizes, k)) == np.sort(exact)[exact.size - k]
    assert np.count_nonzero(magnitude_mask(sizes, 1 - k / sizes.size)) == kept_count(sizes.size, 1 - k / sizes.size)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_the_kth_largest_refuses_what_cannot_be_ranked(dtype):
    for bad in (np.nan, np.inf):
        with pytest.raises(SparsityError, match="not all finite"):
            kth_largest(np.array([1, bad, 2], dtype), 2)


def test_patterns_that_cannot_be_meant_are_refused():
    for size in (0, (3,), (0, 2), (1.5, 2), "ab", None, (float("inf"), 1), (1, 2, 3)):
        with pytest.raises(SparsityError, match="block_size must be two whole numbers of at least 1"):
            Pattern(size)
    for pooling in ("avg", None, ["AVG"]):
        with pytest.raises(SparsityError, match="must be one of AVG, MAX"):
            Pattern((2, 2), pooling)
    for m_by_n in ((4, 4), (5, 4), (0, 4)):
        with pytest.raises(SparsityError, match="0 < m < n"):
            Pattern(sparsity_m_by_n=m_by_n)
    for m_by_n in (4, (-1, 2), (1.5, 4)):
        with pytest.raises(SparsityError, match="sparsity_m_by_n must be two whole numbers"):
            Pattern(sparsity_m_by_n=m_by_n)
    with pytest.raises(SparsityError, match="do not combine"):
        Pattern((2, 2), sparsity_m_by_n=(2, 4))
    assert Pattern([2.0, np.int64(3)]).block_size == (2, 3)
