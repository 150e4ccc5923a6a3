import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mobileprune.union import Union


def partition(count, pairs):
    """For each member the smallest of its set: sets are merged by brute force."""
    sets = [{member} for member in range(count)]
    for a, b in pairs:
        merged = next(one for one in sets if a in one) | next(one for one in sets if b in one)
        sets = [one for one in sets if not one & merged] + [merged]
    return [min(next(one for one in sets if member in one)) for member in range(count)]


def test_the_partition_by_hand():
    assert partition(5, [(3, 1), (4, 3)]) == [0, 1, 2, 1, 1]
    assert partition(3, [(2, 2)]) == [0, 1, 2]


@st.composite
def unions(draw):
    """A count, and joins of several pairs at once."""
    count = draw(st.integers(1, 24))
    member = st.integers(0, count - 1)
    return count, draw(st.lists(st.lists(st.tuples(member, member), max_size=8), max_size=8))


@given(unions())
def test_roots_are_those_of_the_partition_by_brute_force(made):
    count, joins = made
    union = Union(count)
    pairs = []
    for joined in joins:
        union.join(np.array([a for a, _ in joined], np.int64), np.array([b for _, b in joined], np.int64))
        pairs += joined
        assert union.roots().tolist() == partition(count, pairs)
    assert [union.root(member) for member in range(count)] == partition(count, pairs)


@given(unions(), st.integers(0, 5))
def test_members_that_are_added_stand_alone_until_they_are_joined(made, added):
    count, joins = made
    union = Union(count)
    for joined in joins:
        for a, b in joined:
            union.join(np.array([a]), np.array([b]))
    before = union.roots().tolist()
    assert union.grow(added).tolist() == list(range(count, count + added))
    assert union.roots().tolist() == before + list(range(count, count + added))
    if added:
        union.join(np.array([count]), np.array([0]))
        assert union.root(count) == 0


def test_join_takes_arrays_of_any_shape_and_narrow_integers():
    union = Union(300)
    union.join(np.array([[1, 2], [3, 4]], np.int16), np.array([[250, 251], [252, 253]], np.int16))
    assert union.roots()[[250, 251, 252, 253]].tolist() == [1, 2, 3, 4]


def test_roots_of_nothing():
    union = Union(0)
    union.join(np.zeros(0, np.int64), np.zeros(0, np.int64))
    assert union.roots().shape == (0,)
    assert union.roots().dtype == np.int64


def test_a_long_chain_needs_no_deep_recursion():
    count = 5000
    union = Union(count)
    for member in reversed(range(count - 1)):
        union.join(np.array([member]), np.array([member + 1]))
    assert set(union.roots().tolist()) == {0}


def test_a_member_that_does_not_exist_is_no_member():
    with pytest.raises(IndexError):
        Union(2).root(2)
