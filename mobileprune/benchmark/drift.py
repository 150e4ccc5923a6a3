"""Times of many files that were taken one after another, freed of how fast the machine was at each moment.

A processor that is shared with others, or that heats up, is slower for seconds at a time, all files alike. Files that
are timed several times, in another order each time, tell the two apart: what slows all neighbours in time is the
machine.
"""

import numpy as np

# Measurements that are so far apart, in seconds, tell a third as much of each other's moment.
NEAR_S = 0.3
_ROUNDS = 6
# The weight of neighbours at which half of what they say is believed: alone, a measurement is left as it is.
_DOUBT = 0.1
# The machine counts as quiet when it is as quick as in this share of the moments.
_QUIET = 0.1


def without_drift(files: np.ndarray, times: np.ndarray, moments: np.ndarray) -> np.ndarray:
    """The time of each file on a quiet machine.

    Logarithms of the times are taken for the sum of a level of the file and one of the moment; levels of files are
    medians over their measurements, those of moments weighted medians over the measurements around them but their own
    (the median polish of Tukey 1977, "Exploratory Data Analysis", with a second factor that is smooth in time).

    Args:
        files: the number of the file in each measurement, from 0, shape (measurements,); each number occurs.
        times: what it took, above 0, in any unit, shape (measurements,).
        moments: when, in seconds, shape (measurements,).

    Returns:
        One time for each file, in the same unit, shape (files,).

    Example:
        Two passes; the machine was half as fast in the second.
        >>> files, times = np.array([0, 1, 2, 2, 0, 1]), np.array([10.0, 20.0, 30.0, 60.0, 20.0, 40.0])
        >>> found = without_drift(files, times, np.array([0.0, 0.1, 0.2, 9.0, 9.1, 9.2]))
        >>> (found / found[0]).round(2)
        array([1., 2., 3.])
    """
    logs = np.log(times)
    weights = np.exp(-np.abs(moments[:, None] - moments) / NEAR_S)
    np.fill_diagonal(weights, 0.0)
    believed = weights.sum(axis=1) / (weights.sum(axis=1) + _DOUBT)
    count = int(files.max()) + 1
    drift = np.zeros_like(logs)
    for _ in range(_ROUNDS):
        levels = _medians(files, logs - drift, count)
        drift = believed * _weighted_medians(logs - levels[files], weights)
    return np.asarray(np.exp(_medians(files, logs - drift, count) + np.quantile(drift, _QUIET)))


def _medians(files: np.ndarray, values: np.ndarray, count: int) -> np.ndarray:
    return np.array([np.median(values[files == file]) for file in range(count)])


def _weighted_medians(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """For each row of `weights` the value below which half of the row's weight lies; 0 for a row without weight."""
    order = np.argsort(values)
    summed = np.cumsum(weights[:, order], axis=1)
    half = (summed < summed[:, -1:] / 2).sum(axis=1).clip(max=len(values) - 1)
    return np.where(summed[:, -1] > 0, values[order][half], 0.0)
