"""Histograms of activations that need no range beforehand, and the ranges that integers should cover.

The extremes of an activation are often single values far from all others, and the steps of an integer that covers them
are wider than those values are worth. The other ranges here clip them.
"""

import math
from collections.abc import Callable

import numpy as np

# Bins on either side of zero. A bin is a sixteenth of a step of 8 bits over the whole range, or finer by up to a half.
HALF = 4096
# How many upper and lower ends `mse_range` tries: shares of the extremes, from a hundredth on.
_CANDIDATES = 100
_LEVELS = 255

Range = tuple[float, float]
"""Smallest and largest value; zero is always between them."""


class Histogram:
    """Counts values in bins of one width, which doubles whenever a value arrives that lies outside.

    Bins begin at multiples of their width, and the width is a power of two, so that two bins make one exactly: the
    counts depend neither on the order of the values nor on how they were cut into calls. Memory is 64 kB whatever is
    counted.

    Attributes:
        counts: how many values other than zero each bin holds, shape (2 · HALF,); bin i begins at (i - HALF) · `width`.
        width: of a bin; 0.0 as long as there was nothing but zeros.
        zeros: how many values were exactly zero, as an integer stores them exactly.
        smallest: of all values; infinity before there were any.
        largest: the same; minus infinity.
    """

    def __init__(self) -> None:
        self.counts = np.zeros(2 * HALF, np.int64)
        self.width = 0.0
        self.zeros = 0
        self.smallest, self.largest = math.inf, -math.inf

    def add(self, values: np.ndarray) -> None:
        """Counts finite float32 values of any shape."""
        if not values.size:
            return
        flat = values.reshape(-1)
        self.smallest, self.largest = min(self.smallest, float(flat.min())), max(self.largest, float(flat.max()))
        size = max(-self.smallest, self.largest)
        if size <= 0:
            self.zeros += flat.size
            return
        _, exponent = math.frexp(size)  # size < 2 ** exponent
        width = math.ldexp(1.0, exponent) / HALF
        if self.width and width > self.width:
            self._widen(round(math.log2(width / self.width)))
        self.width = width
        zeros = flat.size - int(np.count_nonzero(flat))
        places = np.floor(flat * np.float32(1 / width)).astype(np.int32) + HALF
        self.counts += np.bincount(places, minlength=2 * HALF)
        self.counts[HALF] -= zeros
        self.zeros += zeros

    def _widen(self, doublings: int) -> None:
        bins = (np.arange(2 * HALF) - HALF >> min(doublings, 62)) + HALF
        self.counts = np.bincount(bins, self.counts, 2 * HALF).astype(np.int64)

    @property
    def edges(self) -> np.ndarray:
        """Where the bins begin and end, shape (2 · HALF + 1,)."""
        return (np.arange(2 * HALF + 1) - HALF) * self.width


def minmax_range(histogram: Histogram) -> Range:
    """The extremes: nothing is clipped."""
    return min(histogram.smallest, 0.0), max(histogram.largest, 0.0)


def percentile_range(histogram: Histogram, percentile: float) -> Range:
    """Clips the same share of the values at either end.

    Args:
        histogram: at least one value.
        percentile: above 50 and at most 100; 99.99 clips the largest 0.01% of the values and the smallest 0.01%.
    """
    counts = histogram.counts.copy()
    counts[HALF] += histogram.zeros
    until = np.cumsum(counts)
    share = (100 - percentile) / 100
    edges = histogram.edges
    low = float(edges[np.searchsorted(until, share * until[-1], side="right")]) if share else -math.inf
    high = float(edges[np.searchsorted(until, (1 - share) * until[-1], side="left") + 1]) if share else math.inf
    smallest, largest = minmax_range(histogram)
    return min(max(low, smallest), 0.0), max(min(high, largest), 0.0)


def mse_range(histogram: Histogram) -> Range:
    """The range at which 8 bits store the values with the least mean squared error.

    What is clipped errs by its distance from the range, and what is not by a twelfth of a squared step on average;
    zeros are stored exactly. Both ends are tried at every hundredth of the extremes.
    """
    smallest, largest = minmax_range(histogram)
    if smallest == largest:
        return smallest, largest
    shares = np.arange(1, _CANDIDATES + 1) / _CANDIDATES
    highs = largest * shares if largest > 0 else np.zeros(1)
    lows = smallest * shares if smallest < 0 else np.zeros(1)
    centres = histogram.edges[:-1] + histogram.width / 2
    above = _beyond(histogram.counts, centres, highs)
    below = _beyond(histogram.counts[::-1], -centres[::-1], -lows)
    total = float(histogram.counts.sum())
    inside = total - above[0][:, None] - below[0][None, :]
    steps = (highs[:, None] - lows[None, :]) / _LEVELS
    errors = above[1][:, None] + below[1][None, :] + inside * steps**2 / 12
    best_high, best_low = np.unravel_index(np.argmin(errors), errors.shape)
    return float(lows[best_low]), float(highs[best_high])


def _beyond(counts: np.ndarray, centres: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each end how many values lie above it, and the sum of their squared distances from it."""
    # Summed from the top, index i holds what lies in bin i and above.
    sums = [np.append(np.cumsum((counts * centres**power)[::-1])[::-1], 0.0) for power in (0, 1, 2)]
    first = np.searchsorted(centres, ends, side="right")
    number, linear, square = (each[first] for each in sums)
    return number, np.maximum(square - 2 * ends * linear + ends**2 * number, 0.0)


METHODS: dict[str, Callable[[Histogram, float], Range]] = {
    "percentile": percentile_range,
    "mse": lambda histogram, _: mse_range(histogram),
}
