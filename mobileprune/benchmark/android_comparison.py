"""One comparison on one phone, from the first file on it to the last one off it.

A phone is no quiet machine: it heats up, throttles, and comes unplugged. Each turn starts a new process for one file;
the files take turns in an order that is drawn anew each round, the phone is waited for while it is hot, and a turn
that broke off is taken again once the phone is back. Ratios are taken inside rounds, where heat cancels.
"""

import contextlib
import dataclasses
import functools
import re
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from mobileprune.benchmark.adb import Adb, DeviceLost, choose_device
from mobileprune.benchmark.android_results import AndroidDevice, DeviceState, Turn, pooled, read_device, read_state
from mobileprune.benchmark.android_runners import FOLDER, BenchmarkModel, DemoApp, Runner
from mobileprune.benchmark.android_settings import AndroidSettings
from mobileprune.benchmark.statistics import drift, median_ratio
from mobileprune.errors import InterpreterError
from mobileprune.records import Latency, Variant

# With fewer there is no interval to speak of.
FEWEST_ROUNDS = 5
# How often one step is tried on a phone that is lost again and again.
ATTEMPTS = 3
COOL_POLL_S = 2.0
LOOK_S = 0.1
MOST_FACTS_BYTES = 1 << 17
PROPERTIES = (
    *("ro.product.manufacturer", "ro.product.model", "ro.product.cpu.abi", "ro.soc.manufacturer", "ro.soc.model"),
    *("ro.board.platform", "ro.build.version.release", "ro.build.version.sdk"),
)

T = TypeVar("T")


class DeviceGone(InterpreterError):
    """The phone was lost and did not come back in time."""


@dataclasses.dataclass(frozen=True)
class AndroidRun:
    """What a phone measured.

    Attributes:
        results: for each file its latency, or the error that ended its part.
        device: the phone.
        before: its state when the first round began, after any wait.
        after: its state at the end; None when it was gone by then.
        rounds: how many rounds each file has.
        first_ms: the median first invocation of each file's processes, in milliseconds; None without a round.
        notes: what a reader of the figures has to know, as sentences: rounds that are missing, heat, files left behind.
    """

    results: tuple[Latency | InterpreterError, ...]
    device: AndroidDevice
    before: DeviceState
    after: DeviceState | None
    rounds: tuple[int, ...]
    first_ms: tuple[float | None, ...]
    notes: tuple[str, ...]


@dataclasses.dataclass
class _Contestant:
    """One file on its way through the rounds; `error` is set as soon as its part has ended."""

    variant: Variant
    turns: dict[int, Turn] = dataclasses.field(default_factory=dict)
    error: InterpreterError | None = None

    @property
    def name(self) -> str:
        return f"{self.variant.model}_{self.variant.recipe}.tflite"


class Comparison:
    """Files that take turns on a phone.

    Args:
        variants: the files.
        settings: how the phone is used; checked already.

    Raises:
        SettingsError: there is no adb program, no phone, or no runner.
    """

    def __init__(self, variants: Sequence[Variant], settings: AndroidSettings):
        self._settings = settings
        self._contestants = [_Contestant(variant) for variant in variants]
        self._adb = Adb(choose_device(settings.serial).serial)
        shared = (settings.threads, settings.accelerator, settings.timeout_s)
        self._runner: Runner
        if settings.runner == "app":
            self._runner = DemoApp(self._adb, *shared)
        else:
            self._runner = BenchmarkModel(self._adb, str(settings.benchmark_model), *shared)
        self._notes: list[str] = []
        self._cool_left_s = settings.cool_s
        self._gone = self._cleaned = self._hot_noted = False

    def run(self, baseline: int) -> AndroidRun:
        """Plays all rounds and leaves nothing on the phone that was not asked for.

        Raises:
            SettingsError: the runner is not on the phone.
            InterpreterError: the phone takes no files, or was gone before the first round.
        """
        device = self._steadily(self._facts)
        self._steadily(self._prepare)
        for contestant in self._contestants:
            self._guarded(contestant, functools.partial(self._take_turn, contestant, None))
        before = self._steadily(self._cool)
        self._play()
        after = None if self._gone else self._state_at_end(before)
        if left := self.clean():
            self._notes.append(left)
        return AndroidRun(
            results=tuple(self._result(each, self._contestants[baseline], device) for each in self._contestants),
            device=device,
            before=before,
            after=after,
            rounds=tuple(len(each.turns) for each in self._contestants),
            first_ms=tuple(
                float(np.median([turn.first_us for turn in each.turns.values()])) / 1e3 if each.turns else None
                for each in self._contestants
            ),
            notes=tuple(self._notes),
        )

    def clean(self) -> str | None:
        """Ends what runs on the phone and removes all files, unless they are to stay; what is left, in a sentence."""
        if self._cleaned:
            return None
        self._cleaned = True
        serial = self._adb.serial
        try:
            if not self._gone or self._adb.reconnect(0.0):
                self._runner.stop()
                if not self._settings.keep:
                    self._adb.ask(f"rm -rf {FOLDER}", f"{FOLDER} cannot be removed")
                return None
        except InterpreterError as error:
            return f"{FOLDER} may be left on {serial} ({error}); `adb -s {serial} shell rm -rf {FOLDER}` removes it."
        return f"{FOLDER} is left on {serial}, which is gone; `adb -s {serial} shell rm -rf {FOLDER}` removes it."

    def _steadily(self, step: Callable[[], T]) -> T:
        """Takes a step; again when the phone was lost and is back."""
        for _ in range(ATTEMPTS):
            try:
                return step()
            except DeviceLost as error:
                lost = error
            self._recover()
        raise InterpreterError(f"{lost} ({ATTEMPTS} times in one step)")

    def _recover(self) -> None:
        limit_s = self._settings.reconnect_s
        if not self._adb.reconnect(limit_s):
            self._gone = True
            raise DeviceGone(f"{self._adb.serial} was lost and did not come back within {limit_s:g} s.")
        with contextlib.suppress(DeviceLost):  # once more: the step's next attempt will find out
            self._prepare()

    def _guarded(self, contestant: _Contestant, step: Callable[[], None]) -> None:
        """Takes a step for a contestant that is still in; a failure that is its own is its result."""
        if contestant.error is not None:
            return
        try:
            self._steadily(step)
        except DeviceGone:
            raise
        except InterpreterError as error:
            contestant.error = InterpreterError(f"{contestant.name}: {error}")

    def _prepare(self) -> None:
        """Brings everything to the phone that is not there, and ends what an earlier start left."""
        self._adb.ask(f"mkdir -p {FOLDER} && chmod 755 {FOLDER}", f"{FOLDER} cannot be made on {self._adb.serial}")
        self._runner.stop()
        self._runner.prepare()
        for contestant in self._contestants:
            if contestant.error is not None:
                continue
            with tempfile.TemporaryDirectory(prefix="mobileprune-") as folder:
                path = Path(folder) / "file.tflite"
                path.write_bytes(contestant.variant.content)
                try:
                    self._adb.push(path, self._path(contestant), mode="644", timeout_s=self._settings.timeout_s)
                except DeviceLost:
                    raise
                except InterpreterError as error:
                    contestant.error = InterpreterError(f"{contestant.name}: {error}")

    def _path(self, contestant: _Contestant) -> str:
        return f"{FOLDER}/{contestant.variant.sha256}.tflite"

    def _take_turn(self, contestant: _Contestant, number: int | None) -> None:
        """One turn; without a number a short one, to warm up and to see whether the file runs at all."""
        seconds = LOOK_S if number is None else self._settings.seconds / self._settings.rounds
        try:
            turn = self._runner.turn(contestant.variant.sha256, seconds)
        except DeviceLost:
            raise
        except InterpreterError:
            self._runner.stop()  # it may still be at it
            raise
        if number is not None:
            contestant.turns[number] = turn

    def _play(self) -> None:
        generator = np.random.default_rng(self._settings.seed)
        rounds = self._settings.rounds
        for number in range(rounds):
            if all(contestant.error for contestant in self._contestants):
                return
            try:
                if number:
                    self._steadily(self._cool)
                for index in generator.permutation(len(self._contestants)):
                    contestant = self._contestants[int(index)]
                    self._guarded(contestant, functools.partial(self._take_turn, contestant, number))
            except InterpreterError as error:
                self._notes.append(f"{number} of {rounds} rounds are complete, and the figures are of these: {error}")
                return

    def _say(self, command: str) -> str:
        """What a command says that not every phone knows; nothing when it makes no sense."""
        try:
            return self._adb.shell(command, limit=MOST_FACTS_BYTES).output
        except DeviceLost:
            raise
        except InterpreterError:
            return ""

    def _facts(self) -> AndroidDevice:
        said = self._say("; ".join(f'echo "{name}=$(getprop {name})"' for name in PROPERTIES))
        found = {name: re.search(rf"^{re.escape(name)}=(.*)$", said, re.MULTILINE) for name in PROPERTIES}
        return read_device(self._adb.serial, {name: each[1] for name, each in found.items() if each})

    def _state(self) -> DeviceState:
        return read_state(self._say("dumpsys thermalservice; dumpsys battery"))

    def _hot(self, state: DeviceState) -> bool:
        return (state.thermal_status or 0) > 0 or (state.battery_c or 0.0) > self._settings.cool_c

    def _cool(self) -> DeviceState:
        """Waits while the phone is hot and there is time left for it."""
        state = self._state()
        while self._hot(state) and self._cool_left_s > 0:
            begin = time.monotonic()
            time.sleep(min(COOL_POLL_S, self._cool_left_s))
            state = self._state()
            self._cool_left_s -= time.monotonic() - begin
        if self._hot(state) and not self._hot_noted:
            self._hot_noted = True
            self._notes.append(f"The phone was still hot after {self._settings.cool_s:g} s of waiting: {state}.")
        return state

    def _state_at_end(self, before: DeviceState) -> DeviceState | None:
        try:
            after = self._steadily(self._state)
        except InterpreterError:
            return None
        if (after.thermal_status or 0) > (before.thermal_status or 0):
            self._notes.append(f"The phone throttled while it was measured. Before: {before}. After: {after}.")
        return after

    def _result(
        self, contestant: _Contestant, baseline: _Contestant, device: AndroidDevice
    ) -> Latency | InterpreterError:
        if contestant.error is not None:
            return contestant.error
        rounds, fewest = self._settings.rounds, min(FEWEST_ROUNDS, self._settings.rounds)
        if len(contestant.turns) < fewest:
            return InterpreterError(
                f"{contestant.name}: only {len(contestant.turns)} of {rounds} rounds were measured on {device.serial}; "
                f"{fewest} are the fewest that say anything."
            )
        turns = list(contestant.turns.values())
        summary = pooled(turns)
        ratio = None
        common = sorted(contestant.turns.keys() & baseline.turns.keys())
        if baseline.error is None and len(common) >= fewest:
            ratio = median_ratio(
                [contestant.turns[number].median_us for number in common],
                [baseline.turns[number].median_us for number in common],
                seed=self._settings.seed,
            )
        return Latency(
            device=device.name,
            runtime=turns[-1].runtime,
            threads=self._settings.threads,
            accelerator=", ".join(sorted({turn.accelerator for turn in turns})),
            p50_ms=summary.p50_ms,
            p90_ms=summary.p90_ms,
            p99_ms=summary.p99_ms,
            runs=summary.runs,
            init_ms=float(np.median([turn.init_us for turn in turns])) / 1e3,
            peak_memory_bytes=max(turn.peak_memory_bytes for turn in turns),
            ratio=None if ratio is None else ratio.median,
            ratio_low=None if ratio is None else ratio.low,
            ratio_high=None if ratio is None else ratio.high,
            confidence=None if ratio is None else ratio.confidence,
            first_ms=float(np.median([turn.first_us for turn in turns])) / 1e3,
            # Each turn is a process of its own.
            restarts=len(turns),
            rounds=len(turns),
            drift=drift(np.array([turn.median_us for turn in turns])),
        )
