"""Stands in for LiteRT's program of this name on the phone in the tests: its flags, its output, real inference."""

import os
import resource
import statistics
import sys
import time

import numpy as np
from ai_edge_litert.interpreter import Interpreter


def memory_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def load(path: str, threads: int):
    """An interpreter with its input filled; how many microseconds it took."""
    begin = time.perf_counter_ns()
    interpreter = Interpreter(path, num_threads=threads)
    interpreter.allocate_tensors()
    taken = (time.perf_counter_ns() - begin) // 1000
    for wanted in interpreter.get_input_details():
        interpreter.set_tensor(wanted["index"], np.zeros(wanted["shape"], wanted["dtype"]))
    return interpreter, taken


def invoke(interpreter) -> int:
    begin = time.perf_counter_ns()
    interpreter.invoke()
    return max(1, (time.perf_counter_ns() - begin) // 1000)


def timed(interpreter, fewest: int, seconds: float) -> list[int]:
    end, times = time.monotonic() + seconds, []
    while len(times) < fewest or time.monotonic() < end:
        times.append(invoke(interpreter))
    return times


def described(times: list[int]) -> str:
    ordered = sorted(times)
    p5, median, p95 = (ordered[len(ordered) * each // 100] for each in (5, 50, 95))
    tail = f" p5={p5} median={median} p95={p95}"
    if ordered[0] == ordered[-1]:
        return f"count={len(times)} curr={times[-1]}{'(all same)' if len(times) > 1 else ''}{tail}"
    spread = f"avg={statistics.fmean(times):g} std={round(statistics.pstdev(times))}"
    start = f"count={len(times)} first={times[0]} curr={times[-1]} min={ordered[0]} max={ordered[-1]}"
    return f"{start} {spread}{tail}"


def main() -> None:
    flags = dict(word[2:].split("=", 1) for word in sys.argv[1:])

    def say(line: str) -> None:
        print(f"INFO: {line}", file=sys.stderr, flush=True)

    say(f"Graph: [{flags['graph']}]")
    before = memory_mb()
    interpreter, init = load(flags["graph"], int(flags["num_threads"]))
    if flags.get("use_gpu") == "true":
        say("Though GPU delegate is explicitly applied, the model graph will not be executed by the delegate.")
    if flags.get("use_xnnpack") == "true":
        say("Explicitly applied XNNPACK delegate, and the model graph will be completely executed by the delegate.")
    say(f"The input model file size (MB): {os.path.getsize(flags['graph']) / 1e6:g}")
    say(f"Initialized session in {init / 1e3:g}ms.")
    loaded = memory_mb()
    warm = timed(interpreter, int(flags["warmup_runs"]), float(flags["warmup_min_secs"]))
    say(f"{described(warm)}\n")
    times = timed(interpreter, int(flags["num_runs"]), float(flags["min_secs"]))
    say(f"{described(times)}\n")
    averages = f"Warmup (avg): {statistics.fmean(warm):g}, Inference (avg): {statistics.fmean(times):g}"
    say(f"Inference timings in us: Init: {init}, First inference: {warm[0]}, {averages}")
    grown = f"init={loaded - before:g} overall={memory_mb() - before:g}"
    say(f"Memory footprint delta from the start of the tool (MB): {grown}")


if __name__ == "__main__":
    main()
