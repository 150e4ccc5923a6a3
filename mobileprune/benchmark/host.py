"""How long files take on this machine's processor. It is not a phone: rankings may differ there.

Each file has a process of its own, all are alive at once and warmed up, and short bursts of invocations alternate in
an order that is drawn anew each round. Heat, frequency changes and neighbours then hit all files alike, and the ratio
to the baseline is taken inside each round, where they cancel.
"""

import contextlib
import dataclasses
import functools
import math
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from mobileprune.benchmark.statistics import median_ratio, percentiles, warm_up
from mobileprune.errors import InterpreterError, SettingsError
from mobileprune.records import Latency, Variant
from mobileprune.tflite_runner import RunnerFacts, TfliteRunner, noise_images

# A slow model gets fewer rounds than asked for, but never fewer than a bootstrap can use.
FEWEST_ROUNDS = 5
MOST_RUNS_A_ROUND = 10_000


@dataclasses.dataclass
class _Contestant:
    """One file on its way through the rounds; `error` is set as soon as its process failed."""

    runner: TfliteRunner
    error: InterpreterError | None = None
    facts: RunnerFacts | None = None
    image: np.ndarray | None = None
    runs: int = 1
    bursts: dict[int, np.ndarray] = dataclasses.field(default_factory=dict)


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
) -> list[Latency | InterpreterError]:
    """Times variants against each other.

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

    Returns:
        For each variant its latency, or the error that ended its process: one crash does not end the comparison.
        `ratio` is this file's time over the baseline's, 1.0 for the baseline itself, None for all if the baseline
        failed. `peak_memory_bytes` is what the file added to its process.

    Raises:
        SettingsError: an argument that cannot be meant.

    Example:
        >>> base, small = benchmark_host([variant, smaller_variant])  # doctest: +SKIP
        >>> small.ratio, small.ratio_low, small.ratio_high  # doctest: +SKIP
        (0.52, 0.515, 0.531)
    """
    if not variants:
        return []
    if not 0 <= baseline < len(variants):
        raise SettingsError(f"baseline={baseline} is none of the {len(variants)} variants, which count from 0.")
    if rounds < 1 or threads < 1 or min_round_ms <= 0 or seconds <= 0:
        raise SettingsError(
            f"rounds={rounds}, threads={threads}, min_round_ms={min_round_ms:g}, seconds={seconds:g}: not positive."
        )
    contestants = [
        _Contestant(TfliteRunner(variant.content, threads, timeout_s, name=f"{variant.model}_{variant.recipe}.tflite"))
        for variant in variants
    ]
    with contextlib.ExitStack() as stack:
        for contestant in contestants:  # all at once: most of a start is Python's own
            stack.callback(contestant.runner.close)
            _guarded(contestant, contestant.runner.start)
        for contestant in contestants:  # one after another: loading is measured
            _guarded(contestant, functools.partial(_prepare, contestant, seed))
        for contestant in contestants:
            _guarded(contestant, functools.partial(_warm, contestant, min_round_ms, 0.1 * seconds))
        _play(contestants, rounds, seconds * len(contestants), seed)
        for contestant in contestants:
            _guarded(contestant, functools.partial(_ask, contestant))
    return [_result(contestant, contestants[baseline], threads, seed) for contestant in contestants]


def host_device() -> str:
    """The device's name in records: `host (AMD EPYC 7B13)`."""
    return f"host ({_processor()})"


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text(errors="replace").splitlines():
            if line.lower().startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine() or "unknown processor"


def _guarded(contestant: _Contestant, step: Callable[[], None]) -> None:
    """Does a step for a contestant that is still in; its failure is its result."""
    if contestant.error is not None:
        return
    try:
        step()
    except InterpreterError as error:
        contestant.error = error
        contestant.runner.close()


def _prepare(contestant: _Contestant, seed: int) -> None:
    contestant.runner.__enter__()
    inputs = contestant.runner.facts.inputs
    if len(inputs) != 1:
        raise InterpreterError(f"{contestant.runner.name} has {len(inputs)} inputs; only files with one can be timed.")
    contestant.image = noise_images(inputs[0].shape, contestant.runner.name, seed=seed)


def _burst(contestant: _Contestant) -> np.ndarray:
    if contestant.image is None:
        raise InterpreterError(f"{contestant.runner.name} was not loaded.")
    return contestant.runner.time(contestant.image, contestant.runs)


def _warm(contestant: _Contestant, min_round_ms: float, limit_s: float) -> None:
    def measure() -> float:
        nanoseconds = max(1.0, float(np.median(_burst(contestant))))
        # Short bursts first, so that a slow model is not run for long before it is known to be slow.
        wanted = math.ceil(min_round_ms * 1e6 / nanoseconds)
        contestant.runs = max(1, min(wanted, 4 * contestant.runs, MOST_RUNS_A_ROUND))
        return nanoseconds

    warm_up(measure, limit_s=limit_s)
    nanoseconds = max(1.0, float(np.median(_burst(contestant))))
    contestant.runs = max(1, min(math.ceil(min_round_ms * 1e6 / nanoseconds), MOST_RUNS_A_ROUND))


def _play(contestants: Sequence[_Contestant], rounds: int, limit_s: float, seed: int) -> None:
    generator = np.random.default_rng(seed)
    begin = time.monotonic()

    def turn(contestant: _Contestant, number: int) -> None:
        contestant.bursts[number] = _burst(contestant)

    for number in range(rounds):
        if number >= FEWEST_ROUNDS and time.monotonic() - begin > limit_s:
            break
        for index in generator.permutation(len(contestants)):
            contestant = contestants[int(index)]
            _guarded(contestant, functools.partial(turn, contestant, number))


def _ask(contestant: _Contestant) -> None:
    contestant.facts = contestant.runner.facts


def _result(contestant: _Contestant, baseline: _Contestant, threads: int, seed: int) -> Latency | InterpreterError:
    if contestant.error is not None:
        return contestant.error
    facts = contestant.facts
    if facts is None:
        return InterpreterError(f"{contestant.runner.name} was not measured.")
    summary = percentiles(np.concatenate(list(contestant.bursts.values())))
    ratio = None
    if baseline.error is None:
        numbers = sorted(contestant.bursts)
        ratio = median_ratio(
            [float(np.median(contestant.bursts[number])) for number in numbers],
            [float(np.median(baseline.bursts[number])) for number in numbers],
            seed=seed,
        )
    return Latency(
        device=host_device(),
        runtime=facts.runtime,
        threads=threads,
        accelerator=facts.accelerator,
        p50_ms=summary.p50_ms,
        p90_ms=summary.p90_ms,
        p99_ms=summary.p99_ms,
        runs=summary.runs,
        init_ms=facts.init_ms,
        peak_memory_bytes=facts.peak_memory_bytes,
        ratio=None if ratio is None else ratio.median,
        ratio_low=None if ratio is None else ratio.low,
        ratio_high=None if ratio is None else ratio.high,
    )
