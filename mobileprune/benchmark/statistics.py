"""What repeated timings say, and how far it can be trusted."""

import dataclasses
import math
import time
from collections.abc import Callable, Sequence

import numpy as np

from mobileprune.errors import SettingsError

# Fewer medians in a row are too easily all in order by chance.
FEWEST_FOR_DRIFT = 8
# Two-sided 1% of a normal distribution.
KENDALL_Z = 2.576
# So many invocations say what is normal among them.
FEWEST_BESIDE = 15


@dataclasses.dataclass(frozen=True)
class Percentiles:
    """Single invocations in milliseconds: the middle one, and those that 90% and 99% stay below."""

    p50_ms: float
    p90_ms: float
    p99_ms: float
    runs: int


@dataclasses.dataclass(frozen=True)
class Ratio:
    """A median with its interval, and how often such intervals hold the truth."""

    median: float
    low: float
    high: float
    confidence: float = 0.95


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


def quantiles(nanoseconds: np.ndarray, count: int = 20) -> tuple[float, ...]:
    """The durations of single invocations as `count` quantiles in milliseconds, each in the middle of its share.

    Example:
        >>> quantiles(np.array([1e6, 2e6, 3e6]), 2)
        (1.5, 2.5)
    """
    if not nanoseconds.size:
        raise SettingsError("There are no durations to summarise; at least one run is needed.")
    middles = (np.arange(count) + 0.5) / count
    return tuple(float(f"{value:.5g}") for value in np.quantile(nanoseconds, middles) / 1e6)


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
        Ratio(median=2.0, low=2.0, high=2.0, confidence=0.95)
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
    return Ratio(float(np.median(ratios)), float(low), float(high), confidence)


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


def drift(times: np.ndarray, parts: int = 12) -> float | None:
    """By what share durations rose from the first to the last; heat and other work on the machine make them rise.

    The rounds are cut into `parts` stretches and their medians taken, so that one interruption is no trend and noise
    that lasts for a few rounds counts once. The slope is that of Theil (1950) and Sen (1968).

    Args:
        times: positive durations in the order in which they were measured.
        parts: how many stretches, at most.

    Returns:
        0.1 where they rose by 10%, less than 0 where they fell; 0 where the test of Mann (1945) and Kendall tells no
        trend from noise at the 1% level; None for fewer than 8 durations.

    Example:
        >>> round(drift(np.linspace(1.0, 1.2, 100)), 2)
        0.17
    """
    if len(times) < FEWEST_FOR_DRIFT:
        return None
    medians = np.array([np.median(part) for part in np.array_split(times, min(parts, len(times)))])
    count = len(medians)
    first, second = np.triu_indices(count, 1)
    rises = medians[second] - medians[first]
    spread = math.sqrt(count * (count - 1) * (2 * count + 5) / 18)
    if abs(np.sign(rises).sum()) - 1 < KENDALL_Z * spread:
        return 0.0
    # From the middle of the first stretch to that of the last one.
    return float(np.median(rises / (second - first)) * (count - 1) / np.median(medians))


def outliers(bursts: Sequence[np.ndarray]) -> float:
    """The share of invocations that something interrupted: far above the median of those beside them.

    Far is more than a tenth of the median, and a modified z-score above 3.5 (Iglewicz and Hoaglin 1993). They stay in
    the percentiles, since whoever waits feels them, and medians do not heed them.

    Args:
        bursts: durations of single invocations, in the order in which they were measured.

    Returns:
        0 to 1.

    Example:
        >>> outliers([np.array([1.0] * 19 + [5.0])])
        0.05
    """
    found = counted = 0
    beside: list[np.ndarray] = []
    for number, burst in enumerate(bursts, 1):
        beside.append(burst)
        if sum(map(len, beside)) < FEWEST_BESIDE and number < len(bursts):
            continue
        durations = np.concatenate(beside)
        beside = []
        median = np.median(durations)
        limit = max(0.1 * median, 3.5 / 0.6745 * np.median(np.abs(durations - median)))
        found += int((durations > median + limit).sum())
        counted += durations.size
    return found / max(1, counted)
