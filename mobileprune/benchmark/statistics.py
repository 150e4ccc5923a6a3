"""What repeated timings say, and how far it can be trusted."""

import dataclasses
import time
from collections.abc import Callable, Sequence

import numpy as np

from mobileprune.errors import SettingsError


@dataclasses.dataclass(frozen=True)
class Percentiles:
    """Single invocations in milliseconds: the middle one, and those that 90% and 99% stay below."""

    p50_ms: float
    p90_ms: float
    p99_ms: float
    runs: int


@dataclasses.dataclass(frozen=True)
class Ratio:
    """A median with its 95% bootstrap interval."""

    median: float
    low: float
    high: float


def percentiles(nanoseconds: np.ndarray) -> Percentiles:
    """Summarises the durations of single invocations.

    Example:
        >>> percentiles(np.array([1e6, 2e6, 3e6])).p50_ms
        2.0
    """
    if not nanoseconds.size:
        raise SettingsError("There are no durations to summarise; at least one run is needed.")
    p50, p90, p99 = np.percentile(nanoseconds, [50, 90, 99]) / 1e6
    return Percentiles(float(p50), float(p90), float(p99), int(nanoseconds.size))


def median_ratio(
    times: Sequence[float], baseline: Sequence[float], *, seed: int = 0, resamples: int = 2000, confidence: float = 0.95
) -> Ratio:
    """The median of `times[i] / baseline[i]` with a percentile bootstrap interval (Efron 1979).

    Rounds are paired: what slows a whole round (heat, a neighbour) slows both and cancels in its ratio.

    Args:
        times: one duration a round.
        baseline: the baseline's in the same rounds.
        seed: of the resampling.
        resamples: how often the rounds are drawn anew.
        confidence: what share of the resampled medians lies inside.

    Raises:
        SettingsError: no rounds, another number of them, or durations that are not positive.

    Example:
        >>> median_ratio([2.0, 2.0, 2.0], [1.0, 1.0, 1.0])
        Ratio(median=2.0, low=2.0, high=2.0)
    """
    over, under = np.asarray(times, np.float64), np.asarray(baseline, np.float64)
    if over.shape != under.shape or over.ndim != 1 or not over.size:
        raise SettingsError(f"{over.size} durations cannot be paired with {under.size} of the baseline.")
    if not (over > 0).all() or not (under > 0).all():
        raise SettingsError("Durations must be positive.")
    ratios = over / under
    drawn = np.random.default_rng(seed).integers(0, ratios.size, (resamples, ratios.size))
    medians = np.median(ratios[drawn], axis=1)
    tail = (1 - confidence) / 2
    low, high = np.quantile(medians, [tail, 1 - tail])
    return Ratio(float(np.median(ratios)), float(low), float(high))


def warm_up(
    measure: Callable[[], float],
    *,
    window: int = 3,
    tolerance: float = 0.05,
    limit_s: float = 0.2,
    clock: Callable[[], float] = time.monotonic,
) -> list[float]:
    """Calls `measure` until its results are stable or the time is up.

    Stable is: the medians of the last `window` results and of the `window` before differ by at most `tolerance`.

    Args:
        measure: does some work and returns how long a unit of it took.
        window: how many results are compared with how many.
        tolerance: as a share.
        limit_s: seconds after which no further call is made; at least one always is.
        clock: in seconds; for tests.

    Returns:
        All results, the first one first.
    """
    begin = clock()
    results = [measure()]
    while clock() - begin < limit_s:
        results.append(measure())
        if len(results) >= 2 * window:
            last = float(np.median(results[-window:]))
            before = float(np.median(results[-2 * window : -window]))
            if abs(last - before) <= tolerance * before:
                break
    return results
