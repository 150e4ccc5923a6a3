"""Timing hundreds of tiny files: one process for all, several passes, no warm-up beyond what each file needs."""

import contextlib
import time
from collections.abc import Sequence

import numpy as np

from mobileprune.benchmark.drift import without_drift
from mobileprune.benchmark.host_facts import host_device
from mobileprune.benchmark.inputs import noise_for
from mobileprune.errors import InterpreterError
from mobileprune.records import Latency, Variant
from mobileprune.runner_facts import RunnerFacts
from mobileprune.tflite_runner import TfliteRunner

PASSES = 3
FEWEST_RUNS, MOST_RUNS = 4, 200


def benchmark_batch(
    variants: Sequence[Variant],
    *,
    threads: int = 1,
    passes: int = PASSES,
    budget_ms: float = 8.0,
    seed: int = 0,
    timeout_s: float = 60.0,
) -> list[Latency | InterpreterError]:
    """Times many small files after each other, again and again.

    `benchmark_host` gives each file a process, for comparisons that end in a ratio. Here one process loads file after
    file; each pass takes all of them in another order, so that slow moments of the machine are told from slow
    files, and taken off: see `mobileprune.benchmark.drift`.

    Args:
        variants: the files.
        threads: of the interpreter.
        passes: how often each file is loaded and timed.
        budget_ms: about how long a file is run in a pass, in milliseconds; never fewer than 4 times.
        seed: of the order and the input.
        timeout_s: for each request to the interpreter.

    Returns:
        For each file its latency, as on the machine in its quiet moments, or the error that it ended with.

    Example:
        >>> small, large = benchmark_batch([one, other])        # doctest: +SKIP
    """
    generator = np.random.default_rng(seed)
    times: list[list[np.ndarray]] = [[] for _ in variants]
    moments: list[list[float]] = [[] for _ in variants]
    errors: dict[int, InterpreterError] = {}
    facts: dict[int, RunnerFacts] = {}
    with contextlib.ExitStack() as stack:
        runner = None
        for _ in range(passes):
            for index in generator.permutation(len(variants)).tolist():
                if index in errors:
                    continue
                variant = variants[index]
                name = f"{variant.model}.tflite"
                try:
                    if runner is None:
                        runner = stack.enter_context(TfliteRunner(variant.content, threads, timeout_s, name=name))
                    else:
                        runner.load(variant.content, name=name)
                    if index not in facts:
                        facts[index] = runner.facts
                        if len(facts[index].inputs) != 1:
                            raise InterpreterError(f"{name} has {len(facts[index].inputs)} inputs, not one.")
                    image = noise_for(facts[index].inputs[0], name, seed)
                    first = float(np.median(runner.time(image, 2)))
                    runs = min(MOST_RUNS, max(FEWEST_RUNS, int(budget_ms * 1e6 / max(1.0, first))))
                    begin = time.monotonic()
                    times[index].append(runner.time(image, runs))
                    moments[index].append((begin + time.monotonic()) / 2)
                except InterpreterError as error:
                    errors[index] = error
    steady = _steady([[] if index in errors else own for index, own in enumerate(times)], moments)
    return [
        errors[index] if index in errors else _latency(times[index], steady[index], facts[index], threads)
        for index in range(len(variants))
    ]


def _steady(times: Sequence[Sequence[np.ndarray]], moments: Sequence[Sequence[float]]) -> dict[int, float]:
    """Each file's time in nanoseconds without what neighbours and heat added."""
    timed = [index for index, own in enumerate(times) if own]
    if not timed:
        return {}
    files = np.repeat(np.arange(len(timed)), [len(times[index]) for index in timed])
    medians = np.array([max(1.0, float(np.median(each))) for index in timed for each in times[index]])
    found = without_drift(files, medians, np.concatenate([moments[index] for index in timed]))
    return dict(zip(timed, found.tolist(), strict=True))


def _latency(passes: Sequence[np.ndarray], steady_ns: float, facts: RunnerFacts, threads: int) -> Latency:
    quietest = min(passes, key=lambda times: float(np.median(times)))
    # The spread is that of the quietest pass.
    p50, p90, p99 = np.percentile(quietest, [50, 90, 99]) * (steady_ns / max(1.0, float(np.median(quietest)))) / 1e6
    return Latency(
        device=host_device(),
        runtime=facts.runtime,
        threads=threads,
        accelerator=facts.accelerator,
        p50_ms=float(p50),
        p90_ms=float(p90),
        p99_ms=float(p99),
        runs=sum(len(times) for times in passes),
        init_ms=facts.init_ms,
        peak_memory_bytes=facts.peak_memory_bytes,
    )
