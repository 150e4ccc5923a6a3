"""How long files take on this machine's processor. It is not a phone: rankings may differ there.

Each file has a process of its own, all are alive at once and warmed up, and short bursts of invocations alternate in
an order that is drawn anew each round. Heat, frequency changes and neighbours then hit all files alike, and the ratio
to the baseline is taken inside each round, where they cancel.

What lasts for many rounds does not cancel: where the memory of a process lies, which core it was given, what a
neighbour does to the one more than to the other. `compare_host` therefore starts the processes anew many times and
judges by how much the ratio differs between one start and the next (Kalibera and Jones, "Rigorous Benchmarking in
Reasonable Time", 2013).
"""

from collections.abc import Sequence

import numpy as np

from mobileprune.benchmark.comparison import FEWEST_PAIRS, compare
from mobileprune.benchmark.host_facts import host_device
from mobileprune.benchmark.statistics import Ratio, drift, median_ratio, outliers, percentiles, quantiles
from mobileprune.benchmark.turns import Schedule, Trace, take_turns
from mobileprune.errors import InterpreterError, SettingsError
from mobileprune.records import Latency, Variant

# A slow model gets fewer rounds than asked for, but never fewer than a bootstrap can use.
FEWEST_ROUNDS = 5
# A comparison goes by its time; this many rounds nobody reaches in it.
MOST_ROUNDS = 10_000
# What one comparison may cost, in seconds, everything included.
COMPARISON_S = 30.0
# Bursts of a comparison: so short that a neighbour comes and goes between rounds and not inside them.
COMPARISON_BURST_MS = 3.0


def benchmark_host(
    variants: Sequence[Variant],
    baseline: int = 0,
    *,
    threads: int = 1,
    rounds: int = 20,
    min_round_ms: float = 15.0,
    seconds: float = 1.0,
    seed: int = 0,
    timeout_s: float = 60.0,
    xnnpack: bool = True,
) -> list[Latency | InterpreterError]:
    """Times variants beside each other, quickly: one process for each, so differences of a few percent mean nothing.

    Args:
        variants: the files.
        baseline: which of them the others are compared with, by index.
        threads: for each interpreter.
        rounds: how often every file gets its turn.
        min_round_ms: how long a turn lasts at least, in milliseconds.
        seconds: about what one variant may cost. No round begins once all together have used it up, except for the
            first 5 rounds; a model that takes longer than a fifth of it takes longer in all.
        seed: of the order and the bootstrap.
        timeout_s: for each request to an interpreter.
        xnnpack: whether that delegate may take what it can; without it the runtime's own kernels run.

    Returns:
        For each variant its latency, or the error that ended its process: one crash does not end the comparison.
        `ratio` is this file's time over the baseline's, 1.0 for the baseline itself, None for all if the baseline
        failed. Its interval is that of the rounds, and knows nothing of how much another process would differ.
        `peak_memory_bytes` is what the file added to its process.

    Raises:
        SettingsError: an argument that cannot be meant.

    Example:
        >>> base, small = benchmark_host([variant, smaller_variant])  # doctest: +SKIP
        >>> small.ratio, small.ratio_low, small.ratio_high  # doctest: +SKIP
        (0.52, 0.515, 0.531)
    """
    if rounds < 1 or threads < 1 or min_round_ms <= 0 or seconds <= 0:
        raise SettingsError(
            f"rounds={rounds}, threads={threads}, min_round_ms={min_round_ms:g}, seconds={seconds:g}: not positive."
        )
    schedule = Schedule(
        restarts=1,
        rounds=rounds,
        fewest_rounds=FEWEST_ROUNDS,
        visits=1,
        burst_ms=min_round_ms,
        warm_s=0.1 * seconds,
        seconds=seconds * len(variants),
    )
    traces = take_turns(variants, baseline, schedule, threads, seed, timeout_s, xnnpack)
    return [_latency(trace, traces[baseline], threads, seed) for trace in traces]


def compare_host(
    variants: Sequence[Variant],
    baseline: int = 0,
    *,
    threads: int = 1,
    seconds: float = COMPARISON_S,
    restarts: int = 12,
    seed: int = 0,
    timeout_s: float = 60.0,
    xnnpack: bool = True,
) -> list[Latency | InterpreterError]:
    """Says which variants are faster than the baseline, and which are not: `comparison.verdicts` puts it in words.

    Args:
        variants: the files.
        baseline: which of them the others are compared with, by index.
        threads: for each interpreter.
        seconds: what one comparison may cost, everything included; n files are n - 1 comparisons. Files that take more
            than a quarter of a second an inference need longer.
        restarts: how often all processes are started anew, at least 6. That many pairs of processes are compared.
        seed: of the order and the bootstrap.
        timeout_s: for each request to an interpreter.
        xnnpack: whether that delegate may take what it can; without it the runtime's own kernels run.

    Returns:
        As `benchmark_host`; but the interval of `ratio` covers what another start of the same files would give, at
        `confidence`, which several comparisons share.

    Raises:
        SettingsError: an argument that cannot be meant.
    """
    traces = trace_host(
        variants,
        baseline,
        threads=threads,
        seconds=seconds,
        restarts=restarts,
        seed=seed,
        timeout_s=timeout_s,
        xnnpack=xnnpack,
    )
    return [_latency(trace, traces[baseline], threads, seed, len(traces) - 1) for trace in traces]


def trace_host(
    variants: Sequence[Variant],
    baseline: int = 0,
    *,
    threads: int = 1,
    seconds: float = COMPARISON_S,
    restarts: int = 12,
    seed: int = 0,
    timeout_s: float = 60.0,
    xnnpack: bool = True,
) -> list[Trace]:
    """The raw times that `compare_host` judges; same arguments."""
    if threads < 1 or seconds <= 0 or restarts < FEWEST_PAIRS:
        raise SettingsError(
            f"threads={threads}, seconds={seconds:g}, restarts={restarts}: at least 1, more than 0, and at least "
            f"{FEWEST_PAIRS} are needed."
        )
    schedule = Schedule(
        restarts=restarts,
        rounds=MOST_ROUNDS,
        fewest_rounds=1,
        visits=4,
        burst_ms=COMPARISON_BURST_MS,
        warm_s=0.05 * seconds / restarts,
        seconds=seconds * max(1, len(variants) - 1),
    )
    return take_turns(variants, baseline, schedule, threads, seed, timeout_s, xnnpack)


def _latency(
    trace: Trace, baseline: Trace, threads: int, seed: int, comparisons: int | None = None
) -> Latency | InterpreterError:
    """The record of a file; `comparisons` is how many there are where processes were started anew for them."""
    if trace.error is not None:
        return trace.error
    ratio: Ratio | None = None
    if baseline.error is None:
        if comparisons is None:
            ratio = median_ratio(trace.times[0][:, 0].tolist(), baseline.times[0][:, 0].tolist(), seed=seed)
        else:
            ratio = compare(trace.times, baseline.times, comparisons=max(1, comparisons))
    facts = trace.facts
    durations = np.concatenate(trace.bursts)
    summary = percentiles(durations)
    firsts = [each.first_ms for each in facts if each.first_ms is not None]
    return Latency(
        device=host_device(),
        runtime=facts[0].runtime,
        threads=threads,
        accelerator=facts[0].accelerator,
        p50_ms=summary.p50_ms,
        p90_ms=summary.p90_ms,
        p99_ms=summary.p99_ms,
        runs=summary.runs,
        init_ms=float(np.median([each.init_ms for each in facts])),
        peak_memory_bytes=max(each.peak_memory_bytes for each in facts),
        ratio=None if ratio is None else ratio.median,
        ratio_low=None if ratio is None else ratio.low,
        ratio_high=None if ratio is None else ratio.high,
        confidence=None if ratio is None else ratio.confidence,
        first_ms=float(np.median(firsts)) if firsts else None,
        restarts=len(trace.times),
        rounds=sum(len(times) for times in trace.times),
        drift=drift(np.concatenate(trace.times).mean(axis=1)),
        outliers=outliers(trace.bursts),
        histogram=quantiles(durations),
    )
