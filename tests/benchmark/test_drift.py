"""What the machine added is taken off, what files take is kept."""

import numpy as np

from mobileprune.benchmark.drift import without_drift


def session(seed, count=50, passes=5, apart_s=0.1, slowdown=1.0):
    """(files, times, moments, what each file takes): a machine that changes its speed at random every second or so."""
    generator = np.random.default_rng(seed)
    levels = np.exp(generator.normal(size=count))
    files = np.concatenate([generator.permutation(count) for _ in range(passes)])
    moments = np.cumsum(generator.uniform(0.5, 1.5, len(files)) * apart_s)
    changes = np.cumsum(generator.exponential(1.5, 500))
    speeds = np.exp(generator.uniform(0, slowdown, 501))[np.searchsorted(changes, moments)]
    return files, levels[files] * speeds * np.exp(0.02 * generator.normal(size=len(files))), moments, levels


def spread(found, levels):
    """How far the files' times are apart from the true ones, as a standard deviation of logarithms."""
    return float(np.std(np.log(found / levels)))


def test_slow_moments_are_told_from_slow_files():
    found, quietest = [], []
    for seed in range(8):
        files, times, moments, levels = session(seed)
        found.append(spread(without_drift(files, times, moments), levels))
        quietest.append(spread(np.array([times[files == file].min() for file in range(len(levels))]), levels))
    assert max(found) < 0.03
    assert np.mean(quietest) > 3 * np.mean(found)  # what it takes the place of


def test_one_order_for_all_passes_tells_nothing():
    """The same files always meet the same moments: the two cannot be told apart, and nothing is invented."""
    count, passes = 20, 3
    files, moments = np.tile(np.arange(count), passes), np.arange(count * passes) * 0.1
    slow = np.where(np.arange(count) < count // 2, 2.0, 1.0)
    found = without_drift(files, np.tile(slow, passes), moments)
    np.testing.assert_allclose(found / found[-1], slow, rtol=1e-6)


def test_a_quiet_machine_is_left_alone():
    files, times, moments, _ = session(0, slowdown=0.0)
    medians = np.array([np.median(times[files == file]) for file in range(50)])
    np.testing.assert_allclose(without_drift(files, times, moments), medians, rtol=0.06)


def test_measurements_far_apart_stand_alone():
    found = without_drift(np.array([0, 1, 0, 1]), np.array([1.0, 9.0, 3.0, 9.0]), np.arange(4) * 1000.0)
    np.testing.assert_allclose(found, [np.sqrt(3.0), 9.0])  # the middle of the logarithms


def test_a_single_measurement():
    np.testing.assert_allclose(without_drift(np.array([0]), np.array([5.0]), np.array([0.0])), [5.0])
