import numpy as np
import pytest

from mobileprune.histograms import HALF, Histogram, minmax_range, mse_range, percentile_range


def histogram(*parts):
    counted = Histogram()
    for part in parts:
        counted.add(np.asarray(part, np.float32))
    return counted


def error(values, low, high):
    """The mean squared error of 8 bits between two values, by quantizing."""
    step = (high - low) / 255
    zero = np.rint(-low / step)
    stored = np.clip(np.rint(values / step) + zero, 0, 255)
    return float(np.mean(((stored - zero) * step - values) ** 2))


def test_counts_are_those_of_numpy_and_do_not_depend_on_the_order():
    generator = np.random.default_rng(0)
    values = (generator.normal(size=20_000) * 10.0 ** generator.uniform(-3, 3, 20_000)).astype(np.float32)
    values[::7] = 0
    counted = histogram(values)
    expected, _ = np.histogram(values[values != 0].astype(np.float64), counted.edges)
    assert np.array_equal(counted.counts, expected)
    assert counted.zeros == np.sum(values == 0)
    for parts in (
        [values[:5], values[5:]],
        np.array_split(np.sort(values), 9),
        np.array_split(np.sort(values)[::-1], 4),
    ):
        other = histogram(*parts)
        assert np.array_equal(other.counts, counted.counts)
        assert (other.width, other.zeros) == (counted.width, counted.zeros)


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1.0, 2.0, 4096.0, 1e30])
def test_no_value_falls_out(scale):
    values = np.linspace(-scale, scale, 999).astype(np.float32)
    counted = histogram(values)
    assert counted.counts.sum() + counted.zeros == 999
    assert counted.width * HALF > scale >= counted.width * HALF / 2
    assert minmax_range(counted) == (values.min(), values.max())


def test_zeros_and_nothing():
    assert histogram(np.zeros(5)).zeros == 5
    for each in (percentile_range(histogram(np.zeros(5)), 99.0), mse_range(histogram(np.zeros(5)))):
        assert each == (0, 0)
    assert histogram([], [1.0]).counts.sum() == 1


@pytest.mark.parametrize("percentile", [90.0, 99.0, 99.9, 100.0])
def test_percentiles_are_those_of_numpy(percentile):
    values = np.random.default_rng(0).normal(size=50_000).astype(np.float32)
    for sample in (values, np.maximum(values, 0), -np.maximum(values, 0)):
        low, high = percentile_range(histogram(sample), percentile)
        expected = np.percentile(sample, [100 - percentile, percentile])
        assert (low, high) == pytest.approx((min(expected[0], 0), max(expected[1], 0)), abs=0.03)


@pytest.mark.parametrize("kind", ["normal", "relu", "heavy", "negative"])
def test_least_error_is_about_the_least_that_any_range_has(kind):
    generator = np.random.default_rng(0)
    values = {
        "normal": generator.normal(size=30_000),
        "relu": np.maximum(generator.normal(size=30_000), 0),
        "heavy": generator.standard_t(2.5, size=30_000),
        "negative": -np.abs(generator.normal(size=30_000)),
    }[kind].astype(np.float32)
    counted = histogram(values)
    smallest, largest = minmax_range(counted)
    low, high = mse_range(counted)
    assert smallest <= low <= 0 <= high <= largest
    least = min(
        error(values, smallest * a, largest * b)
        for a in np.linspace(0.1, 1, 15)
        for b in np.linspace(0.1, 1, 15)
        if smallest * a < largest * b
    )
    assert error(values, low, high) < 1.1 * least
    if kind == "heavy":
        assert error(values, low, high) < 0.95 * error(values, smallest, largest)
