import itertools

import numpy as np
import pytest

from mobileprune.benchmark.statistics import drift, median_ratio, outliers, percentiles, quantiles, warm_up
from mobileprune.errors import SettingsError


def test_percentiles_are_in_milliseconds():
    summary = percentiles(np.arange(1, 102) * 1_000_000)
    assert (summary.p50_ms, summary.p90_ms, summary.p99_ms, summary.runs) == (51, 91, 100, 101)
    with pytest.raises(SettingsError):
        percentiles(np.array([]))


def noisy(scale: float, rounds: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two series that share each round's disturbance and have 2% noise of their own."""
    generator = np.random.default_rng(seed)
    shared = generator.uniform(1, 3, rounds)
    return tuple(factor * shared * generator.normal(1, 0.02, rounds) for factor in (scale, 1.0))


def test_a_disturbance_of_whole_rounds_cancels():
    ratio = median_ratio(*noisy(1.5, 20, seed=0))
    assert ratio.low <= ratio.median <= ratio.high
    assert ratio.median == pytest.approx(1.5, rel=0.03)
    assert ratio.high - ratio.low < 0.1


def test_the_interval_holds_the_truth_as_often_as_it_says_and_finds_a_difference():
    ratios = [median_ratio(*noisy(1.0, 20, seed), resamples=500) for seed in range(200)]
    assert np.mean([ratio.low <= 1 <= ratio.high for ratio in ratios]) >= 0.9
    slower = [median_ratio(*noisy(1.05, 20, seed), resamples=500) for seed in range(200)]
    assert np.mean([ratio.low > 1 for ratio in slower]) >= 0.9


def test_the_same_seed_gives_the_same_interval():
    assert median_ratio(*noisy(1.2, 9, 1), seed=3) == median_ratio(*noisy(1.2, 9, 1), seed=3)


@pytest.mark.parametrize(("times", "baseline"), [([], []), ([1.0], [1.0, 2.0]), ([0.0], [1.0]), ([1.0], [np.nan])])
def test_rounds_that_cannot_be_paired_are_errors(times, baseline):
    with pytest.raises(SettingsError):
        median_ratio(times, baseline)


def ticking(step: float):
    return itertools.count(0.0, step).__next__


def test_warming_up_ends_when_stable():
    results = iter([9.0, 5.0, 3.0, 2.0, 1.0, 1.0, 1.01, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0])
    assert len(warm_up(lambda: next(results), clock=ticking(0.0))) == 9


def test_warming_up_ends_in_time_even_if_never_stable():
    results = itertools.count(1.0, 1.0)
    assert 1 <= len(warm_up(lambda: next(results) ** 2, clock=ticking(0.01), limit_s=0.2)) <= 21
    assert len(warm_up(lambda: 1.0, clock=ticking(1.0), limit_s=0.2)) == 1


def test_quantiles_lie_in_the_middle_of_their_shares():
    assert quantiles(np.arange(1, 101) * 1e6, 4) == pytest.approx((13.375, 38.125, 62.875, 87.625), rel=1e-4)
    found = quantiles(np.random.default_rng(0).gamma(2.0, 1e6, 1000))
    assert len(found) == 20
    assert list(found) == sorted(found)
    assert quantiles(np.array([5e6])) == (5.0,) * 20
    with pytest.raises(SettingsError, match="no durations"):
        quantiles(np.array([]))


def test_a_trend_is_told_from_noise():
    generator = np.random.default_rng(0)
    noise = [generator.normal(1, 0.02, (200, 120)), generator.normal(1, 0.02, (200, 9))]
    for series in noise:
        assert np.mean([drift(each) != 0 for each in series]) <= 0.02
    risen = [drift(each * np.linspace(1.0, 1.2, 120)) for each in noise[0]]
    assert np.median(risen) == pytest.approx(0.2 * 11 / 12 / 1.1, rel=0.05)
    assert min(risen) > 0.1
    assert drift(np.linspace(2.0, 1.0, 50)) == pytest.approx(-11 / 12 / 1.5, rel=0.05)
    assert drift(np.arange(1.0, 8.0)) is None


def test_one_long_interruption_is_no_trend():
    times = np.random.default_rng(0).normal(1, 0.01, 120)
    times[100:] *= 3
    assert drift(times) == 0


def test_interruptions_are_counted():
    generator = np.random.default_rng(0)
    bursts = [generator.normal(1, 0.01, 20) for _ in range(50)]
    assert outliers(bursts) == 0
    for burst in bursts[::2]:
        burst[3] *= 2
    assert outliers(bursts) == pytest.approx(25 / 1000)
    # A slow file's bursts are single inferences; those beside each other are looked at together.
    singles = [np.array([1.0 + 0.5 * (number == 7)]) for number in range(40)]
    assert outliers(singles) == 1 / 40
    assert outliers([]) == 0


def test_times_that_rise_from_burst_to_burst_are_not_interrupted():
    assert outliers([np.full(20, 1.0 + 0.1 * number) for number in range(30)]) == 0
