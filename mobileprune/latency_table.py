"""How long single ops take on a device at chosen channel counts: measured once in one batch, kept, interpolated.

The table of NetAdapt (Yang et al. 2018, arXiv:1804.03230) and HALP (Shen et al. 2022, arXiv:2110.10811), for the ops
that a `.tflite` really runs. What is between measured counts is interpolated, linearly in each count.
"""

import dataclasses
import hashlib
import itertools
import json
import math
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mobileprune.errors import InterpreterError, ModelError, OutputError
from mobileprune.files import read_json, write_json
from mobileprune.op_signatures import ResizableFile, Shape, Unit
from mobileprune.records import Latency, Variant
from mobileprune.single_ops import empty_op, single_op

# Times files on one device: for each its latency, or why there is none.
MeasureFiles = Callable[[Sequence[Variant]], list[Latency | InterpreterError]]
# Where a count is measured, as shares of the layer's own; in between it is interpolated.
SHARES = (1.0, 0.625, 0.375, 0.125)
# Measured counts are multiples of this, which kernels are made for; of narrow layers of half of it.
FRIENDLY = 16
_NARROW = 64
SCHEMA = 1
# Files that are measured in one call, so that hundreds of them are never in memory together.
_BATCH_BYTES = 512 << 20


@dataclasses.dataclass(frozen=True)
class Place:
    """Where times were measured; times of another place are not mixed in."""

    device: str
    runtime: str
    threads: int


class LatencyTable:
    """Times of single ops on one device.

    Args:
        measure: times files there; `benchmark_batch` on this machine.
        cache: a folder that keeps what was measured, one file for each device, runtime and number of threads; None
            keeps nothing.

    Raises:
        InterpreterError: the device cannot time files at all.
        OutputError: the cache holds something else.

    Example:
        >>> table = LatencyTable(benchmark_batch, Path("latency"))      # doctest: +SKIP
        >>> table.measure([(file, unit, unit.full)])                    # doctest: +SKIP
        >>> table.ns(file, unit, unit.full)                             # doctest: +SKIP
        9624.0
    """

    def __init__(self, measure: MeasureFiles, cache: str | Path | None = None) -> None:
        self.measure_files = measure
        (found,) = measure([Variant("nothing", "float32", empty_op())])
        if isinstance(found, InterpreterError):
            raise found
        self.place = Place(found.device, found.runtime, found.threads)
        # What a call costs that does nothing.
        self.overhead_ns = found.p50_ms * 1e6
        self._path = None if cache is None else Path(cache) / f"{_slug(self.place)}.json"
        self._times: dict[str, float] = {}
        if self._path is not None and self._path.exists():
            self._times = _read(self._path, self.place)

    def __len__(self) -> int:
        return len(self._times)

    def measure(self, wanted: Iterable[tuple[ResizableFile, Unit, Shape]]) -> int:
        """Times the ops that the table does not hold yet, each signature once, and keeps them.

        Args:
            wanted: units of files, with the channel counts to time them at.

        Returns:
            How many were timed.

        Raises:
            ModelError: an op that cannot be resized, or that the device does not run; it names the layer.
        """
        missing: dict[str, tuple[ResizableFile, Unit, Shape]] = {}
        for file, unit, counts in wanted:
            signature = file.signature(unit, counts)
            if signature not in self._times:
                missing.setdefault(signature, (file, unit, counts))
        batch: list[tuple[str, Unit, int, Variant]] = []
        size = 0
        for signature, (file, unit, counts) in missing.items():
            made = single_op(file, unit, counts)
            batch.append((signature, unit, made.copies, Variant("one op", "float32", made.content)))
            size += len(made.content)
            if size > _BATCH_BYTES:
                self._measure(batch)
                batch, size = [], 0
        self._measure(batch)
        return len(missing)

    def _measure(self, batch: Sequence[tuple[str, Unit, int, Variant]]) -> None:
        if not batch:
            return
        results = self.measure_files([variant for *_, variant in batch])
        if len(results) != len(batch):
            raise InterpreterError(f"{len(batch)} files were to be timed; the device answered for {len(results)}.")
        failed = None
        for (signature, unit, copies, _), result in zip(batch, results, strict=True):
            if isinstance(result, InterpreterError):
                failed = failed or f"{unit.name} cannot be timed on {self.place.device}: {result}"
                continue
            if (result.device, result.runtime, result.threads) != dataclasses.astuple(self.place):
                raise InterpreterError(f"The device changed from {self.place} to {result.device}, {result.runtime}.")
            self._times[signature] = max(0.0, result.p50_ms * 1e6 - self.overhead_ns) / copies
        if self._path is not None:
            if self._path.exists():  # what another process has measured meanwhile
                self._times = {**_read(self._path, self.place), **self._times}
            told = {"schema": SCHEMA, **dataclasses.asdict(self.place), "nanoseconds": self._times}
            write_json(self._path, told)
        if failed:  # the others' times are kept
            raise ModelError(failed)

    def ns(self, file: ResizableFile, unit: Unit, counts: Shape) -> float:
        """The time of an op that was measured, in nanoseconds.

        Raises:
            KeyError: it was not.
        """
        return self._times[file.signature(unit, counts)]


class Curve:
    """A unit's time at any channel counts, from a table's times at some.

    Args:
        file: where the unit is from.
        unit: one of its units.
        movable: for each of its vectors whether channels of it may go.

    Example:
        >>> curve = Curve(file, unit, (True, True))                     # doctest: +SKIP
        >>> table.measure((file, unit, counts) for counts in curve.points)      # doctest: +SKIP
        >>> curve.read(table)                                           # doctest: +SKIP
        >>> curve.ns((24, 96))                                          # doctest: +SKIP
        8800.0
    """

    def __init__(self, file: ResizableFile, unit: Unit, movable: Sequence[bool]) -> None:
        self._file, self._unit = file, unit
        self._axes = [
            grid(full) if moves else np.array([float(full)]) for full, moves in zip(unit.full, movable, strict=True)
        ]
        # A concatenation of many would need a table of many dimensions: its inputs are narrowed alike.
        self._alike = sum(len(axis) > 1 for axis in self._axes) > 2
        self._inputs = _joined(unit) if self._alike else ()
        self._sums = np.zeros(0)
        # Counts are rounded up to these: a kernel that works on 16 channels takes as long for 9 of them.
        self.steps = [1] * len(self._axes)
        self._values = np.zeros(0)

    @property
    def points(self) -> list[Shape]:
        """The counts that must be measured."""
        if self._alike:
            return [self._scaled(share) for share in SHARES]
        inner = [tuple(map(int, point)) for point in itertools.product(*self._axes)]
        return [*inner, *(point for place in range(len(self._axes)) for point in self._probe(place)[:1])]

    def _scaled(self, share: float) -> Shape:
        counts = [int(axis[np.abs(axis - share * axis[-1]).argmin()]) for axis in self._axes]
        if self._inputs:
            counts[self._unit.places[self._unit.makes]] = sum(counts[place] for place in self._inputs)
        return tuple(counts)

    def _sum(self, counts: Shape) -> int:
        return sum(counts[place] for place in self._inputs) if self._inputs else sum(counts)

    def _probe(self, place: int) -> list[Shape]:
        """On one axis, with the others whole: half a friendly count below a measured one, that one, and one below."""
        axis = self._axes[place]
        friendly = [int(count) for count in axis if count % FRIENDLY == 0]
        if len(friendly) < 2:
            return []
        whole = [int(each[-1]) for each in self._axes]
        low, high = friendly[-2:]
        return [(*whole[:place], count, *whole[place + 1 :]) for count in (high - FRIENDLY // 2, high, low)]

    def read(self, table: LatencyTable) -> None:
        """Takes the times of `points` from a table."""

        def time(counts: Shape) -> float:
            return table.ns(self._file, self._unit, counts)

        if self._alike:
            measured = {float(self._sum(counts)): time(counts) for counts in self.points}
            self._sums = np.array(sorted(measured))
            self._values = np.array([measured[count] for count in sorted(measured)])
            return
        grid_times = [time(tuple(map(int, point))) for point in itertools.product(*self._axes)]
        self._values = np.array(grid_times).reshape([len(axis) for axis in self._axes])
        for place in range(len(self._axes)):
            if probe := self._probe(place):
                half, high, low = map(time, probe)
                each = (high - low) / (probe[1][place] - probe[2][place])
                # Nearer to the whole vector's time than to what so many channels fewer would take.
                if each > 0 and half > high - each * FRIENDLY / 4:
                    self.steps[place] = FRIENDLY
        for place, step in enumerate(self.steps):
            # Counts within one step took the same time: one of them stands for it.
            self._axes[place], first = np.unique(np.ceil(self._axes[place] / step) * step, return_index=True)
            self._values = np.take(self._values, first, axis=place)

    def ns(self, counts: Shape) -> float:
        """The time in nanoseconds at these counts; linear between measured ones, and below the least of them."""
        values = self._values
        axes, steps, wanted = (
            ([self._sums], [1], (self._sum(counts),)) if self._alike else (self._axes, self.steps, counts)
        )
        for axis, step, count in zip(axes, steps, wanted, strict=True):
            if len(axis) == 1:
                values = values[0]
                continue
            stepped = -(-count // step) * step
            place = int(np.clip(np.searchsorted(axis, stepped) - 1, 0, len(axis) - 2))
            share = (stepped - axis[place]) / (axis[place + 1] - axis[place])
            values = values[place] * (1 - share) + values[place + 1] * share
        return max(0.0, float(values))


def _joined(unit: Unit) -> tuple[int, ...]:
    """Of a unit whose output has the channels of all that it reads, a concatenation's: the vectors that are read."""
    read = tuple(unit.places.get(activation, -1) for activation in unit.reads)
    made = unit.places.get(unit.makes, -1)
    if made < 0 or min(read, default=-1) < 0 or made in read:
        return ()
    return read if sum(unit.full[place] for place in read) == unit.full[made] else ()


def grid(full: int) -> np.ndarray:
    """The counts at which a layer of `full` channels is measured, upwards: the whole, and multiples of 16 below.

    Of layers of up to 64 multiples of 8: a table that has the whole only would say that nothing is saved there.
    """
    step = FRIENDLY if full > _NARROW else FRIENDLY // 2
    rounded = {max(step, round(full * share / step) * step) for share in SHARES}
    # One that is rounded up to the whole would stand beside it.
    return np.array(sorted({float(full), *(float(count) for count in rounded if count <= full - step)}))


def _slug(place: Place) -> str:
    """A file name that tells the place to people and is different for different ones."""
    told = f"{place.device} {place.runtime} {place.threads}"
    readable = re.sub("[^a-z0-9.]+", "_", told.lower()).strip("_")
    return f"{readable[:80]}_{hashlib.sha256(told.encode()).hexdigest()[:8]}"


def _read(path: Path, place: Place) -> dict[str, float]:
    """The times in a cache file.

    Raises:
        OutputError: it is no such file, or of another place or format.
    """
    data: Any = read_json(path)
    expected = {"schema": SCHEMA, **dataclasses.asdict(place)}
    told = {name: data.get(name) for name in expected} if isinstance(data, dict) else {}
    times = data.get("nanoseconds") if isinstance(data, dict) else None
    if told != expected or not isinstance(times, dict):
        raise OutputError(f"{path} is no latency table of {json.dumps(expected)}. Delete it and run again.")
    for signature, time in times.items():
        if isinstance(time, bool) or not isinstance(time, (int, float)) or not 0 <= time < math.inf:
            raise OutputError(
                f"{path} has the time {str(time)[:40]!r} for {signature[:80]!r}. Delete it and run again."
            )
    return {signature: float(time) for signature, time in times.items()}
