"""Comparisons played again from recorded times, through the analysis that live ones go through.

A recording is an .npz: `baseline`, `twin` (the same file) and `slower` (another one), each float32 nanoseconds
(processes, bursts), the medians of bursts, to 11 binary digits; shorter processes end in NaN.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from mobileprune.benchmark.comparison import LEAST_EFFECT, compare
from mobileprune.benchmark.statistics import Ratio, median_ratio

FILES = ("baseline", "twin", "slower")
Recording = dict[str, list[np.ndarray]]


def write_recording(path: Path, times: dict[str, Sequence[np.ndarray]], most_bursts: int = 64) -> None:
    """Keeps the first bursts of each process."""
    padded = {}
    for name, processes in times.items():
        padded[name] = np.full((len(processes), most_bursts), np.nan, np.float32)
        for row, process in zip(padded[name], processes, strict=True):
            bursts = process.ravel()[:most_bursts]
            row[: bursts.size] = bursts
        padded[name].view(np.uint32)[...] &= np.uint32(0xFFFFF000)  # digits that are noise, and do not compress
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **padded)


def read_recording(path: Path) -> Recording:
    """What `write_recording` wrote, process by process."""
    with np.load(path, allow_pickle=False) as arrays:
        return {name: [row[~np.isnan(row)].astype(np.float64) for row in arrays[name]] for name in FILES}


def draws(count: int, processes: int, restarts: int, seed: int = 0) -> Iterator[np.ndarray]:
    """Which recorded processes each replayed comparison is made of.

    Half of them are a stretch as it was recorded, with all that lasts from one process to the next; the other half are
    drawn from everywhere.
    """
    generator = np.random.default_rng(seed)
    for number in range(count):
        if number % 2:
            yield np.sort(generator.choice(processes, restarts, replace=False))
        else:
            yield int(generator.integers(processes - restarts + 1)) + np.arange(restarts)


def replay(
    recording: Recording, file: str, count: int = 200, *, restarts: int = 12, factor: float = 1.0, seed: int = 0
) -> list[Ratio]:
    """`count` comparisons of a recorded file with the baseline, its times multiplied by `factor`."""
    return [
        compare([factor * recording[file][at] for at in drawn], [recording["baseline"][at] for at in drawn])
        for drawn in draws(count, len(recording["baseline"]), restarts, seed)
    ]


def naive(recording: Recording, file: str, count: int = 200, *, restarts: int = 12, seed: int = 0) -> list[Ratio]:
    """The same with a 95% bootstrap interval over all rounds, as if each stood for itself."""
    found = []
    for number, drawn in enumerate(draws(count, len(recording["baseline"]), restarts, seed)):
        times = [np.concatenate([recording[name][at].ravel() for at in drawn]) for name in (file, "baseline")]
        found.append(median_ratio(times[0].tolist(), times[1].tolist(), seed=number, resamples=300))
    return found


def slower(ratio: Ratio) -> bool:
    """Whether it is claimed that the file is slower than the baseline."""
    return ratio.low > 1 + LEAST_EFFECT


def differs(ratio: Ratio) -> bool:
    """Whether any difference is claimed."""
    return slower(ratio) or ratio.high < 1 / (1 + LEAST_EFFECT)
