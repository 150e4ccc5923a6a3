"""Files taking turns: a process for each, alive and warmed up at once, with short bursts of inferences that alternate.

The order is drawn anew in each round, so that heat, frequency changes and neighbours hit all files alike.
"""

import contextlib
import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from mobileprune.benchmark.comparison import FEWEST_PAIRS
from mobileprune.benchmark.inputs import noise_for
from mobileprune.benchmark.statistics import warm_up
from mobileprune.errors import InterpreterError, SettingsError
from mobileprune.records import Variant
from mobileprune.runner_facts import RunnerFacts
from mobileprune.tflite_runner import TfliteRunner

MOST_RUNS_A_BURST = 10_000


@dataclasses.dataclass(frozen=True)
class Schedule:
    """How the time is spent: `restarts` times new processes, each with up to `rounds` rounds of `visits` bursts a file.

    A round's bursts come in an order and its reverse (ABBA, or ABBABAAB for four visits), so that what rises or falls
    evenly inside it cancels, and so does what the file before leaves in the caches.

    Attributes:
        restarts: how often all processes are started anew.
        rounds: in each process, at most.
        fewest_rounds: in each process, however long they take.
        visits: bursts of a file in a round.
        burst_ms: how long a burst lasts at least, in milliseconds.
        warm_s: after how many seconds a process is warm enough, stable or not.
        seconds: for everything; with one start, for the rounds alone.
    """

    restarts: int
    rounds: int
    fewest_rounds: int
    visits: int
    burst_ms: float
    warm_s: float
    seconds: float


@dataclasses.dataclass
class Contestant:
    """One file in one process on its way through the rounds; `error` is set as soon as its process failed."""

    runner: TfliteRunner
    error: InterpreterError | None = None
    facts: RunnerFacts | None = None
    image: np.ndarray | None = None
    runs: int = 1
    bursts: dict[int, list[np.ndarray]] = dataclasses.field(default_factory=dict)

    def times(self) -> np.ndarray:
        """Nanoseconds of an invocation, the median of each burst: (rounds, visits)."""
        return np.array([[float(np.median(burst)) for burst in bursts] for bursts in self.bursts.values()])


@dataclasses.dataclass
class Trace:
    """What was measured of one file.

    Attributes:
        times: for each process nanoseconds of an invocation, float64 (rounds, visits): medians of bursts.
        bursts: nanoseconds of single invocations, burst by burst.
        facts: what the runtime said in each process.
        error: why there is no more of it; the rest is then of no use.
    """

    times: list[np.ndarray] = dataclasses.field(default_factory=list)
    bursts: list[np.ndarray] = dataclasses.field(default_factory=list)
    facts: list[RunnerFacts] = dataclasses.field(default_factory=list)
    error: InterpreterError | None = None


def take_turns(
    variants: Sequence[Variant],
    baseline: int,
    schedule: Schedule,
    threads: int,
    seed: int,
    timeout_s: float,
    xnnpack: bool,
) -> list[Trace]:
    """Runs files beside each other as the schedule says.

    Args:
        variants: the files.
        baseline: which of them the others are to be compared with, by index.
        schedule: how the time is spent. However little it is, every file runs in 6 processes, or as many as asked for.
        threads: of each interpreter.
        seed: of the input and the order.
        timeout_s: for each request to an interpreter.
        xnnpack: whether that delegate may take what it can.

    Returns:
        What was measured of each; a crash ends the file that it belongs to, and nothing else.

    Raises:
        SettingsError: there is no such baseline.
    """
    if not variants:
        return []
    if not 0 <= baseline < len(variants):
        raise SettingsError(f"baseline={baseline} is none of the {len(variants)} variants, which count from 0.")
    generator = np.random.default_rng(seed)
    traces = [Trace() for _ in variants]
    begin = time.monotonic()
    least: list[float] = []  # seconds of each session: the start, and one round
    for number in range(schedule.restarts):
        started = time.monotonic()
        if number >= FEWEST_PAIRS and started - begin + float(np.median(least)) > schedule.seconds:
            break
        left = [trace for trace in traces if trace.error is None]
        contestants = [
            Contestant(
                TfliteRunner(
                    variant.content,
                    threads,
                    timeout_s,
                    name=variant.file_name,
                    runtime="litert" if xnnpack else "litert_reference",
                )
            )
            for variant, trace in zip(variants, traces, strict=True)
            if trace.error is None
        ]
        # A little before the time is up, since processes have to end, too.
        until = begin + 0.98 * schedule.seconds * (number + 1) / schedule.restarts
        ready = _session(contestants, schedule, until, seed, generator)
        rounds = [burst for contestant in contestants for burst in contestant.bursts.get(0, ())]
        least.append(ready - started + sum(float(burst.sum()) for burst in rounds) / 1e9)
        for trace, contestant in zip(left, contestants, strict=True):
            _keep(trace, contestant)
    return traces


def _session(
    contestants: Sequence[Contestant],
    schedule: Schedule,
    until: float,
    seed: int,
    generator: np.random.Generator,
) -> float:
    """One process for each file, from its start to its end; returns when all were ready."""
    with contextlib.ExitStack() as stack:
        # In an order drawn anew, so that equal files have equal chances in everything.
        drawn = [contestants[int(index)] for index in generator.permutation(len(contestants))]
        for contestant in drawn:  # all at once: most of a start is Python's own
            stack.callback(contestant.runner.close)
            _guarded(contestant, contestant.runner.start)
        for contestant in drawn:  # one after another: loading is measured
            _guarded(contestant, functools.partial(_prepare, contestant, seed))
        for contestant in drawn:
            _guarded(contestant, functools.partial(_warm, contestant, schedule.burst_ms, schedule.warm_s))
        if schedule.restarts == 1:
            until = time.monotonic() + schedule.seconds
        ready = time.monotonic()
        play(contestants, schedule, until, generator)
        for contestant in contestants:
            _guarded(contestant, functools.partial(_ask, contestant))
    return ready


def _guarded(contestant: Contestant, step: Callable[[], None]) -> None:
    """Does a step for a contestant that is still in; its failure is its result."""
    if contestant.error is not None:
        return
    try:
        step()
    except InterpreterError as error:
        contestant.error = error
        contestant.runner.close()


def _prepare(contestant: Contestant, seed: int) -> None:
    contestant.runner.__enter__()
    inputs = contestant.runner.facts.inputs
    if len(inputs) != 1:
        raise InterpreterError(f"{contestant.runner.name} has {len(inputs)} inputs; only files with one can be timed.")
    contestant.image = noise_for(inputs[0], contestant.runner.name, seed)


def _burst(contestant: Contestant) -> np.ndarray:
    if contestant.image is None:
        raise InterpreterError(f"{contestant.runner.name} was not loaded.")
    return contestant.runner.time(contestant.image, contestant.runs)


def _warm(contestant: Contestant, burst_ms: float, limit_s: float) -> None:
    def measure() -> float:
        nanoseconds = max(1.0, float(np.median(_burst(contestant))))
        # Short bursts first, so that a slow model is not run for long before it is known to be slow.
        wanted = math.ceil(burst_ms * 1e6 / nanoseconds)
        contestant.runs = max(1, min(wanted, 4 * contestant.runs, MOST_RUNS_A_BURST))
        return nanoseconds

    warm_up(measure, limit_s=limit_s)
    nanoseconds = max(1.0, float(np.median(_burst(contestant))))
    contestant.runs = max(1, min(math.ceil(burst_ms * 1e6 / nanoseconds), MOST_RUNS_A_BURST))


def play(contestants: Sequence[Contestant], schedule: Schedule, until: float, generator: np.random.Generator) -> None:
    """Plays rounds until there are enough of them or the time is up."""

    def visit(contestant: Contestant, number: int) -> None:
        contestant.bursts.setdefault(number, []).append(_burst(contestant))

    for number in range(schedule.rounds):
        if number >= schedule.fewest_rounds and time.monotonic() > until:
            break
        for index in order(len(contestants), schedule.visits, generator):
            _guarded(contestants[index], functools.partial(visit, contestants[index], number))


def order(count: int, visits: int, generator: np.random.Generator) -> Iterator[int]:
    """Whose turn it is in a round: there and back, back and there, and so on."""
    there = [int(index) for index in generator.permutation(count)]
    for number in range(visits):
        yield from (there if number % 4 in (0, 3) else there[::-1])


def _ask(contestant: Contestant) -> None:
    contestant.facts = contestant.runner.facts


def _keep(trace: Trace, contestant: Contestant) -> None:
    """What the process of one session adds to what is known of a file."""
    trace.error = contestant.error
    if contestant.error is None and contestant.facts is not None:
        trace.facts.append(contestant.facts)
        trace.times.append(contestant.times())
        trace.bursts.extend(burst for bursts in contestant.bursts.values() for burst in bursts)
