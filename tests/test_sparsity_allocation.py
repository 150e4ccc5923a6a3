import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mobileprune.errors import SparsityError
from mobileprune.masks import kept_count, magnitude_mask
from mobileprune.sparsity_allocation import ALLOCATIONS, layer_sparsities

SIZES = st.lists(st.integers(1, 60), min_size=1, max_size=5)
SHAPES = st.lists(st.lists(st.integers(1, 12), min_size=1, max_size=4).map(tuple), min_size=1, max_size=6)


@st.composite
def kernels(draw, elements=None):
    elements = st.floats(0, 4, width=32) if elements is None else elements
    return [draw(arrays(np.float32, size, elements=elements)) for size in draw(SIZES)]


TIED = kernels(st.sampled_from([np.float32(0), np.float32(1), np.float32(2)]))


def masks(weights, shares):
    return [magnitude_mask(values, share) for values, share in zip(weights, shares, strict=True)]


@given(st.one_of(kernels(), TIED), st.floats(0, 1))
def test_global_keeps_exactly_the_asked_number_over_all_layers(weights, sparsity):
    kept = masks(weights, layer_sparsities(weights, [values.shape for values in weights], sparsity, "global"))
    size = sum(values.size for values in weights)
    assert sum(np.count_nonzero(mask) for mask in kept) == kept_count(size, sparsity)


@given(st.one_of(kernels(), TIED), st.floats(0, 1))
def test_global_removes_what_one_mask_over_all_weights_removes(weights, sparsity):
    kept = masks(weights, layer_sparsities(weights, [values.shape for values in weights], sparsity, "global"))
    together = magnitude_mask(np.concatenate(weights), sparsity)
    np.testing.assert_array_equal(np.concatenate(kept), together)


def test_global_by_hand():
    weights = [np.array([1.0, 4.0]), np.array([2.0, 3.0, 5.0, 6.0])]
    assert layer_sparsities(weights, [(2,), (4,)], 0.5, "global") == [0.5, 0.5]
    assert layer_sparsities([weights[0] * 0.1, weights[1]], [(2,), (4,)], 1 / 3, "global") == [1.0, 0.0]


@given(SHAPES, st.floats(0, 1))
def test_erk_meets_the_asked_sum_with_shares_between_0_and_1(shapes, sparsity):
    shares = layer_sparsities([], shapes, sparsity, "erk")
    sizes = np.array([np.prod(shape) for shape in shapes], float)
    assert all(-1e-9 <= share <= 1 for share in shares)
    assert np.dot(shares, sizes) == pytest.approx(sparsity * sizes.sum(), abs=1e-6 * sizes.sum() + 1e-9)


@given(SHAPES, st.floats(0.01, 0.99))
def test_erk_shares_follow_the_sum_of_the_sides_over_their_product(shapes, sparsity):
    density = 1 - np.array(layer_sparsities([], shapes, sparsity, "erk"))
    wish = np.array([sum(shape) / np.prod(shape) for shape in shapes])
    sparse = density < 1 - 1e-9
    factors = (density / wish)[sparse]
    if len(factors):
        assert np.ptp(factors) <= 1e-9 * factors.max()
        # Dense are only those that the same factor would fill.
        assert (wish[~sparse] * factors.max() >= 1 - 1e-6).all()


def test_erk_leaves_small_kernels_dense():
    shares = layer_sparsities([], [(3, 3, 3, 16), (3, 3, 256, 256), (256, 256)], 0.9, "erk")
    assert shares[0] == 0.0
    assert 0 < shares[2] < 0.9 < shares[1]


def test_uniform_is_the_same_everywhere():
    assert layer_sparsities([], [(2,), (3, 3)], 0.3, "uniform") == [0.3, 0.3]


def test_an_unknown_allocation_is_refused():
    with pytest.raises(SparsityError, match=r"no allocation 'even'\. Known: uniform, global, erk"):
        layer_sparsities([], [], 0.5, "even")
    assert ALLOCATIONS == ("uniform", "global", "erk")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(bad):
    with pytest.raises(SparsityError, match="not all finite"):
        layer_sparsities([np.array([1.0, bad], np.float32), np.ones(3, np.float32)], [(2,), (3,)], 0.5, "global")
