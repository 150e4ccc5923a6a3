import itertools

import numpy as np
import pytest

from mobileprune.errors import SparsityError
from mobileprune.masks import Pattern, magnitude_mask, pruning_mask
from mobileprune.second_order import Quadratic, damped, shares_of_least_loss


def problem(columns=24, outputs=10, groups=1, seed=0, rows=400, own=0.2):
    """Weights, and inputs of which each resembles others but for its `own` part, as activations do."""
    generator = np.random.default_rng(seed)
    mix = generator.normal(size=(groups, columns, columns)) * (generator.random((groups, 1, columns)) + 0.05)
    x = generator.normal(size=(groups, rows, columns // 2)) @ mix[:, : columns // 2]
    x += own * generator.normal(size=x.shape)
    weights = generator.normal(size=(groups, columns, outputs))
    return Quadratic(weights, damped(x.transpose(0, 2, 1) @ x / rows, 1e-2)), x


def largest(sparsity):
    return lambda scores: magnitude_mask(scores, sparsity)


def by_magnitude(quadratic, sparsity):
    return magnitude_mask(quadratic.weights, sparsity)


def least_squares(quadratic, kept):
    """The best weights on a support, from the square root of the Hessian and a solver for each output."""
    root = np.linalg.cholesky(quadratic.hessian).transpose(0, 2, 1)
    found = np.zeros(quadratic.weights.shape)
    for group, output in np.ndindex(found.shape[0], found.shape[2]):
        here = kept[group, :, output]
        target = root[group] @ quadratic.weights[group, :, output]
        found[group, here, output] = np.linalg.lstsq(root[group][:, here], target, rcond=None)[0]
    return found


def test_the_loss_is_what_the_outputs_change_by():
    quadratic, x = problem(seed=3)
    plain = Quadratic(quadratic.weights, x.transpose(0, 2, 1) @ x)
    sparse = np.where(by_magnitude(plain, 0.5), plain.weights, 0)
    assert plain.loss(sparse) == pytest.approx(np.sum((x @ sparse - x @ plain.weights) ** 2))
    assert plain.loss(plain.weights) == 0


@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.9])
def test_refitting_is_least_squares_on_what_stays(sparsity):
    # Below and above one half the two ways of solving are taken.
    quadratic, _ = problem(groups=2)
    kept = by_magnitude(quadratic, sparsity)
    fitted = quadratic.refit(kept)
    np.testing.assert_allclose(fitted, least_squares(quadratic, kept), atol=1e-7)
    assert not fitted[~kept].any()
    assert quadratic.loss(fitted) < 0.9 * quadratic.loss(np.where(kept, quadratic.weights, 0))
    generator = np.random.default_rng(0)
    for _ in range(20):
        other = fitted + np.where(kept, generator.normal(0, 1e-2, kept.shape), 0)
        assert quadratic.loss(other) > quadratic.loss(fitted)


def test_refitting_nothing_and_everything():
    quadratic, _ = problem()
    np.testing.assert_array_equal(quadratic.refit(np.ones(quadratic.weights.shape, bool)), quadratic.weights)
    assert not quadratic.refit(np.zeros(quadratic.weights.shape, bool)).any()


def test_the_choice_is_near_the_best_of_all_choices():
    ours, typical = [], []
    for seed in range(8):
        quadratic, _ = problem(4, 3, seed=seed, own=0.7)
        kept = quadratic.choose(largest(0.5))
        assert np.count_nonzero(kept) == 6
        losses = []
        for places in itertools.combinations(range(12), 6):
            mask = np.zeros(12, bool)
            mask[list(places)] = True
            losses.append(quadratic.loss(quadratic.refit(mask.reshape(1, 4, 3))))
        found = quadratic.loss(quadratic.refit(kept))
        assert found > min(losses) * (1 - 1e-6)
        ours.append(found / min(losses))
        typical.append(np.median(losses) / min(losses))
    # By logarithms: a problem of large weights counts no more than others.
    assert np.exp(np.mean(np.log(ours))) < 1.3
    assert np.exp(np.mean(np.log(typical))) > 3


@pytest.mark.parametrize("sparsity", [0.3, 0.6, 0.8, 0.95])
@pytest.mark.parametrize("groups", [1, 3])
def test_the_choice_beats_magnitude_and_chance(sparsity, groups):
    quadratic, _ = problem(32, 12, groups, seed=1)
    generator = np.random.default_rng(0)
    chance = magnitude_mask(generator.random(quadratic.weights.shape), sparsity)
    masks = quadratic.choose(largest(sparsity)), by_magnitude(quadratic, sparsity), chance
    counts = {np.count_nonzero(mask) for mask in masks}
    assert len(counts) == 1
    ours, by_size, random = (quadratic.loss(quadratic.refit(mask)) for mask in masks)
    assert ours < 0.95 * min(by_size, random)


def test_more_rounds_do_not_choose_worse():
    quadratic, _ = problem(48, 20, seed=2)
    losses = [quadratic.loss(quadratic.refit(quadratic.choose(largest(0.8), rounds))) for rounds in (0, 9, 300)]
    assert losses[2] < losses[1] * 1.01 < losses[0]


@pytest.mark.parametrize("pattern", [Pattern((4, 1)), Pattern((1, 4)), Pattern(sparsity_m_by_n=(2, 4))])
def test_patterns_hold_and_beat_magnitude(pattern):
    quadratic, _ = problem(24, 12, seed=4)

    def select(scores):
        return pruning_mask(scores, 0.5, pattern)

    kept = quadratic.choose(select)
    # A choice that a pattern allows is the one that the pattern makes of it.
    np.testing.assert_array_equal(select(kept.astype(float)), kept)
    ours, plain = (quadratic.loss(quadratic.refit(mask)) for mask in (kept, select(np.abs(quadratic.weights))))
    assert ours < 0.95 * plain


def test_inputs_that_are_never_read_do_no_harm():
    quadratic, x = problem(seed=5)
    x[:, :, [2, 7]] = 0
    dead = Quadratic(quadratic.weights, damped(x.transpose(0, 2, 1) @ x / 400, 1e-2))
    kept = dead.choose(largest(0.5))
    fitted = dead.refit(kept)
    assert np.isfinite(fitted).all()
    # They cost nearly nothing: nearly all of them go.
    assert kept[:, [2, 7]].mean() < 0.2 < kept.mean()


def test_nothing_that_was_ever_read_does_no_harm():
    silent = Quadratic(np.ones((1, 4, 2)), damped(np.zeros((1, 4, 4)), 1e-2))
    kept = silent.choose(largest(0.5))
    assert np.count_nonzero(kept) == 4
    np.testing.assert_allclose(silent.refit(kept), kept)


def test_fewer_rows_than_columns_are_enough_to_fit():
    quadratic, _ = problem(columns=40, rows=10)
    kept = quadratic.choose(largest(0.5))
    assert quadratic.loss(quadratic.refit(kept)) < 0.7 * quadratic.loss(quadratic.refit(by_magnitude(quadratic, 0.5)))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_refused(value):
    weights, hessian = np.ones((1, 3, 2)), np.eye(3)[None]
    with pytest.raises(SparsityError, match="not all finite"):
        Quadratic(weights * value, hessian)
    with pytest.raises(SparsityError, match="not all finite"):
        Quadratic(weights, np.where(hessian > 0, value, 0))


def test_damping_is_a_share_of_the_mean_of_each_groups_diagonal():
    found = damped(np.stack([np.diag([1.0, 3.0]), np.zeros((2, 2))]), 0.1)
    np.testing.assert_allclose(found, [np.diag([1.2, 3.2]), np.zeros((2, 2))], atol=1e-11)


def total(sizes, shares):
    return np.dot(sizes, shares) / np.sum(sizes)


LEVELS = (0.5, 0.8, 0.9, 0.98)


def test_layers_that_lose_alike_get_alike():
    found = shares_of_least_loss([100, 300], LEVELS, [[0.1, 0.2, 0.4, 0.9], [0.3, 0.6, 1.2, 2.7]], 0.8)
    assert found == pytest.approx([0.8, 0.8], abs=0.01)


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.8, 0.9, 0.98])
def test_shares_come_to_the_sparsity_in_all(sparsity):
    generator = np.random.default_rng(0)
    sizes = generator.integers(10, 1000, 7)
    losses = np.cumsum(generator.random((7, 4)) * 10 ** generator.normal(0, 2, (7, 1)), axis=1)
    found = shares_of_least_loss(sizes, LEVELS, losses, sparsity)
    assert total(sizes, found) == pytest.approx(sparsity, abs=1e-6)
    assert min(found) >= 0
    assert max(found) <= 0.98


def test_shares_lose_less_than_the_same_everywhere_and_nearly_as_little_as_any():
    sizes, levels = [100, 200, 50], (0.2, 0.4, 0.6, 0.8)
    losses = np.array([[0.1, 0.3, 0.8, 3.0], [0.01, 0.05, 0.1, 0.4], [1.0, 2.0, 4.0, 9.0]])

    def lost(shares):
        return sum(np.interp(share, (0, *levels), (0, *known)) for share, known in zip(shares, losses, strict=True))

    found = lost(shares_of_least_loss(sizes, levels, losses, 0.5))
    grid = np.linspace(0, 0.8, 33)
    tried = [shares for shares in itertools.product(grid, repeat=3) if abs(total(sizes, shares) - 0.5) < 1e-9]
    best = min(map(lost, tried))
    assert found < 0.8 * lost([0.5, 0.5, 0.5])
    assert found < 1.1 * best


def test_a_layer_whose_loss_was_found_to_fall_is_taken_for_flat():
    found = shares_of_least_loss([10, 10], (0.5, 0.9), [[0.4, 0.3], [0.4, 0.8]], 0.7)
    assert found[0] == pytest.approx(0.9)
    assert total([10, 10], found) == pytest.approx(0.7)
