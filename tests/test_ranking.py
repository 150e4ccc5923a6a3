import numpy as np
import pytest

from mobileprune.errors import PlanError
from mobileprune.ranking import NORMALISATIONS, Ranking, ranked


def test_the_lowest_scores_go_first_and_ties_in_their_order():
    assert ranked([3.0, 1.0, 2.0, 1.0]).order.tolist() == [1, 3, 2, 0]


@pytest.mark.parametrize(
    ("normalise", "losses"),
    [
        # Sorted: 1, 3, 4; sum 8, mean 8/3, standard deviation sqrt(14/9).
        ("sum", [1 / 8, 3 / 8 * np.sqrt(3 / 2), 4 / 8 * np.sqrt(3)]),
        ("mean", [3 / 8, 9 / 8, 12 / 8]),
        ("max", [1 / 4, 3 / 4, 1]),
        ("gaussian", [(1 - 8 / 3) / np.sqrt(14 / 9), (3 - 8 / 3) / np.sqrt(14 / 9), (4 - 8 / 3) / np.sqrt(14 / 9)]),
        ("none", [1, 3, 4]),
    ],
)
def test_each_normalisation_by_hand(normalise, losses):
    ranking = ranked([4.0, 1.0, 3.0], normalise)
    assert ranking.order.tolist() == [1, 2, 0]
    assert not ranking.absolute
    np.testing.assert_allclose(ranking.losses, losses)


@pytest.mark.parametrize("normalise", sorted(set(NORMALISATIONS) - {"none"}))
def test_the_unit_of_a_groups_scores_does_not_matter(normalise):
    scores = np.random.default_rng(0).random(9)
    np.testing.assert_allclose(ranked(scores * 1e6, normalise).losses, ranked(scores, normalise).losses, rtol=1e-9)


@pytest.mark.parametrize("normalise", NORMALISATIONS)
def test_scores_that_are_all_alike_or_zero_give_finite_losses(normalise):
    for scores in (np.zeros(4), np.full(4, 2.0)):
        ranking = ranked(scores, normalise)
        assert ranking.order.tolist() == [0, 1, 2, 3]
        assert (np.diff(ranking.losses) >= 0).all()


@pytest.mark.parametrize("normalise", ["sum", "mean", "max"])
def test_negative_scores_have_no_share(normalise):
    with pytest.raises(PlanError, match=rf"scores of 'stem' go down to -1; normalise='{normalise}'.*'gaussian'"):
        ranked([-1.0, 2.0], normalise, "stem")


@pytest.mark.parametrize("normalise", ["gaussian", "none"])
def test_negative_scores_can_be_ranked(normalise):
    assert ranked([2.0, -1.0], normalise).order.tolist() == [1, 0]


def test_an_unknown_normalisation_lists_the_known_ones():
    with pytest.raises(PlanError, match=r"'median'. Known: sum, mean, max, gaussian, none"):
        ranked([1.0], "median")


def test_relative_losses_are_compared_whatever_the_units_cost():
    ranking = Ranking(np.array([1, 0, 2]), np.array([1.0, 2.0, 3.0]))
    np.testing.assert_array_equal(ranking.thresholds(np.array([1.0, 50.0, 7.0])), [1, 2, 3])


def test_absolute_losses_are_compared_for_what_they_buy():
    # Unit 2 goes first and costs 10; unit 0 costs 2, unit 1 costs 4.
    ranking = Ranking(np.array([2, 0, 1]), np.array([10.0, 6.0, 40.0]), absolute=True)
    np.testing.assert_allclose(ranking.thresholds(np.array([2.0, 4.0, 10.0])), [1, 3, 10])


def test_a_cheap_unit_behind_a_dear_one_counts_as_much():
    ranking = Ranking(np.arange(4), np.array([1.0, 5.0, 2.0, 6.0]), absolute=True)
    np.testing.assert_array_equal(ranking.thresholds(np.ones(4)), [1, 5, 5, 6])


@pytest.mark.parametrize(
    ("order", "losses", "says"),
    [
        ([0, 0, 1], [1, 2, 3], "each unit from 0 on once. Received 0, 0, 1"),
        ([1, 2, 3], [1, 2, 3], "each unit from 0 on once"),
        ([0, 1], [1, 2, 3], "2 units needs as many finite losses"),
        ([0, 1], [1, np.nan], "2 units needs as many finite losses"),
    ],
)
def test_what_is_no_ranking_is_refused(order, losses, says):
    with pytest.raises(PlanError, match=says):
        Ranking(np.array(order), np.array(losses, float))
