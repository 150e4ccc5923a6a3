"""Whether one file is faster than another, where "no difference" is an answer: the statistics, and the words for them.

Rounds are no independent samples. A neighbour that comes or goes, a frequency that changes, a core, and where the
memory of a process happens to lie last for many rounds, so that an interval drawn from rounds is too narrow: it says
too often that a file differs from itself (`benchmarks/comparisons.py` counts how often). Processes are therefore
started anew many times, and a pair of processes, one of each file, alive at the same time, is the one sample that
counts (Kalibera and Jones, "Rigorous Benchmarking in Reasonable Time", 2013).
"""

from collections.abc import Sequence

import numpy as np

from mobileprune.benchmark.statistics import Ratio
from mobileprune.errors import InterpreterError, SettingsError
from mobileprune.records import Latency

# How sure all comparisons of one call together are.
CONFIDENCE = 0.99
# A claim is about at least this much; smaller differences vanish with the next compiler, kernel or neighbour.
LEAST_EFFECT = 0.01
# An interval wider than this cannot say that there is none.
WIDE = 0.05
# An interval cannot stand on less.
FEWEST_PAIRS = 6
# What is worth a warning.
_DRIFT, _OUTLIERS = 0.05, 0.05


def verdicts(names: Sequence[str], results: Sequence[Latency | InterpreterError], baseline: int = 0) -> list[str]:
    """A sentence for each file but the baseline: faster, slower, or no difference.

    Args:
        names: what the files are called.
        results: of `compare_host`, or of anything else that bounds the ratio of times.
        baseline: with which the others were compared, by index.

    Example:
        >>> verdicts(["a", "b"], compare_host([a, b]))  # doctest: +SKIP
        ['b is 1.42 to 1.47 times faster than a']
    """
    against = names[baseline]
    return [
        _verdict(name, against, result)
        for index, (name, result) in enumerate(zip(names, results, strict=True))
        if index != baseline
    ]


def difference_of(result: Latency) -> str:
    """`"faster"`, `"slower"` or `"no difference"`, by the record of a file that was compared.

    Raises:
        SettingsError: it was not.
    """
    if result.ratio_low is None or result.ratio_high is None:
        raise SettingsError("This latency has no ratio to another file's. Compare it with one.")
    if result.ratio_low > 1 + LEAST_EFFECT:
        return "slower"
    return "faster" if result.ratio_high < 1 / (1 + LEAST_EFFECT) else "no difference"


def warnings_of(result: Latency) -> list[str]:
    """What disturbed a measurement, as sentences; empty where nothing did."""
    found = []
    if result.drift is not None and abs(result.drift) >= _DRIFT:
        how = "rose" if result.drift > 0 else "fell"
        found.append(
            f"its times {how} by {abs(result.drift):.0%} from the first round to the last. Ratios hold, since files "
            "take turns; milliseconds do not."
        )
    if result.outliers is not None and result.outliers >= _OUTLIERS:
        found.append(f"{result.outliers:.0%} of its inferences were interrupted: something else is at work.")
    return found


def compare(times: Sequence[np.ndarray], baseline: Sequence[np.ndarray], *, comparisons: int = 1) -> Ratio:
    """The ratio of two files' times, with an interval that covers what other processes would give.

    Each pair of processes says one ratio, that of their fastest bursts: whatever disturbs a burst makes it longer (Chen
    and Revels, "Robust benchmarking in noisy environments", 2016), and on a busy machine most are disturbed. The pairs'
    logarithms are put together by the estimator of Hodges and Lehmann (1963), and bounded by the exact signed-rank test
    of Wilcoxon (1945). Where both files are the same, the sign of each logarithm is a coin's, since all orders are
    drawn; the share of false claims then follows from nothing else.

    Args:
        times: for each process of the file its durations, of any shape: medians of short bursts.
        baseline: the baseline's, process by process alive at the same time.
        comparisons: how many are made in all; their intervals together hold with CONFIDENCE.

    Returns:
        The ratio; `confidence` is that of this one interval, which few pairs may keep below what was wanted.

    Raises:
        SettingsError: fewer than 6 pairs, or durations that are not positive.

    Example:
        >>> compare([np.array([2.0])] * 6, [np.array([1.0])] * 6).median
        2.0
    """
    if len(times) != len(baseline) or len(times) < FEWEST_PAIRS:
        raise SettingsError(f"{len(times)} and {len(baseline)} processes are no {FEWEST_PAIRS} pairs to compare.")
    if not all(each.size and (each > 0).all() for each in (*times, *baseline)):
        raise SettingsError("Durations must be positive.")
    logs = np.log([each.min() for each in times]) - np.log([each.min() for each in baseline])
    first, second = np.triu_indices(len(logs))
    averages = np.sort((logs[first] + logs[second]) / 2)
    cut, confidence = _signed_rank_cut(len(logs), (1 - CONFIDENCE) / comparisons)
    median, low, high = np.exp([np.median(averages), averages[cut], averages[-1 - cut]])
    return Ratio(float(median), float(low), float(high), confidence)


def _signed_rank_cut(count: int, risk: float) -> tuple[int, float]:
    """How many of the sorted averages of pairs lie outside of each end of the interval, and how sure it then is."""
    ways = np.zeros(count * (count + 1) // 2 + 1)
    ways[0] = 1
    for rank in range(1, count + 1):
        ways[rank:] += ways[: len(ways) - rank].copy()
    below = 2 * np.cumsum(ways) / 2.0**count  # of both tails
    cut = max(0, int(np.searchsorted(below, risk, side="right")) - 1)
    return cut, float(1 - below[cut])


def _verdict(name: str, against: str, result: Latency | InterpreterError) -> str:
    if isinstance(result, InterpreterError):
        return f"{name} against {against}: not compared, it failed"
    if result.ratio_low is None or result.ratio_high is None:
        return f"{name} against {against}: not compared, {against} failed"
    low, high = result.ratio_low, result.ratio_high
    found = difference_of(result)
    if found == "faster":
        low, high = 1 / high, 1 / low
    if found != "no difference":
        return f"{name} is {_times(low, high)} times {found} than {against}"
    bounds = f"{low:.3f} to {high:.3f} of its time"
    if high / low - 1 <= WIDE:
        return f"{name} against {against}: no difference ({bounds})"
    return f"{name} against {against}: no difference found, but too uneven to tell small ones ({bounds})"


def _times(low: float, high: float) -> str:
    digits = 2 if low >= 1.1 else 3
    return f"{low:.{digits}f} to {high:.{digits}f}"
