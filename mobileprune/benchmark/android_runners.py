"""What runs files on a phone: LiteRT's `benchmark_model`, a program, or the demo app's headless mode."""

import dataclasses
import re
import time
from pathlib import Path
from typing import Protocol

from mobileprune.benchmark.adb import Adb, quoted
from mobileprune.benchmark.android_results import Turn, read_app_result, read_benchmark_model
from mobileprune.downloads import fetched
from mobileprune.errors import InterpreterError, SettingsError
from mobileprune.files import file_digest

# Programs may be started there, and apps may read what is there.
FOLDER = "/data/local/tmp/mobileprune"
PACKAGE = "com.mobileprune.demo"
ACTIVITY = f"{PACKAGE}/.HeadlessActivity"
RESULTS = f"/sdcard/Android/data/{PACKAGE}/files"
DOWNLOADS = Path.home() / ".cache" / "mobileprune" / "benchmark_model"
MOST_RESULT_BYTES = 1 << 22
# How many invocations of the app tell how many fit into a turn, and the most that are asked for.
LOOK_RUNS, MOST_APP_RUNS = 5, 20_000
POLL_S = 0.5


class Runner(Protocol):
    """Something on a phone that times one file at a time, each time in a new process."""

    def prepare(self) -> None:
        """Brings it to the phone, or looks whether it is there; again after a reconnection."""

    def turn(self, digest: str, seconds: float) -> Turn:
        """Times the file `FOLDER/digest.tflite` for about so many seconds."""

    def stop(self) -> None:
        """Ends what an earlier turn may have left running, and removes what it wrote outside `FOLDER`."""


class BenchmarkModel:
    """LiteRT's command-line program.

    Args:
        adb: the phone.
        program: the program for the phone's ABI: a path, or a URL that ends in `#sha256=…`.
        threads: of the interpreter.
        accelerator: `"cpu"` or `"gpu"`.
        timeout_s: seconds that a turn may take.
    """

    def __init__(self, adb: Adb, program: str, threads: int, accelerator: str, timeout_s: float):
        self._adb, self._threads, self._accelerator, self._timeout_s = adb, threads, accelerator, timeout_s
        self._program = fetched(program, DOWNLOADS)
        digest = file_digest(self._program)
        self._remote = f"{FOLDER}/benchmark_model-{digest}"
        self._runtime = f"benchmark_model {digest[:12]}"

    def prepare(self) -> None:
        self._adb.push(self._program, self._remote, mode="755", timeout_s=self._timeout_s)

    def turn(self, digest: str, seconds: float) -> Turn:
        delegate = "use_gpu" if self._accelerator == "gpu" else "use_xnnpack"
        flags = {
            "graph": f"{FOLDER}/{digest}.tflite",
            "num_threads": self._threads,
            "num_runs": 1,
            "min_secs": f"{seconds:.3f}",
            "max_secs": f"{max(1.0, 4 * seconds):.3f}",
            "warmup_runs": 1,
            "warmup_min_secs": f"{seconds / 4:.3f}",
            delegate: "true",
        }
        words = " ".join(f"--{name}={value}" for name, value in flags.items())
        # It takes the place of the shell whose number is kept, so that it can be ended if the connection breaks.
        command = f"sh -c 'echo $$ > {FOLDER}/pid; exec {self._remote} {words}'"
        answer = self._adb.shell(command, timeout_s=self._timeout_s)
        if answer.code:
            raise InterpreterError(f"benchmark_model {answer.failure}")
        turn = read_benchmark_model(answer.output, self._accelerator)
        return dataclasses.replace(turn, runtime=self._runtime)

    def stop(self) -> None:
        # Another process may have that number by now.
        named = f'p=$(cat {FOLDER}/pid 2>/dev/null) && grep -q {FOLDER}/benchmark_model- "/proc/$p/cmdline" 2>/dev/null'
        self._adb.shell(f'if {named}; then kill -9 "$p"; fi; rm -f {FOLDER}/pid')


class DemoApp:
    """The demo app's headless mode; `docs/android_benchmark.md` says what it is asked and what it answers.

    Args:
        adb: the phone, which has the app.
        threads: of the interpreter.
        accelerator: `"cpu"` or `"gpu"`.
        timeout_s: seconds that a turn may take.
    """

    def __init__(self, adb: Adb, threads: int, accelerator: str, timeout_s: float):
        self._adb, self._threads, self._accelerator, self._timeout_s = adb, threads, accelerator, timeout_s
        self._seconds_a_run: dict[str, float] = {}

    def prepare(self) -> None:
        if not re.search(r"^package:", self._adb.shell(f"pm path {PACKAGE}").output, re.MULTILINE):
            raise SettingsError(
                f"The demo app {PACKAGE} is not installed on {self._adb.serial}. Build it and run `adb install`."
            )

    def turn(self, digest: str, seconds: float) -> Turn:
        known = self._seconds_a_run.get(digest)
        runs = LOOK_RUNS if known is None else max(LOOK_RUNS, min(MOST_APP_RUNS, round(seconds / known)))
        name = f"mobileprune-{digest}.json"
        self.stop()
        self._start(digest, name, runs)
        text = self._result(name)
        turn = read_app_result(text, digest=digest, threads=self._threads, runs=runs, accelerator=self._accelerator)
        self._seconds_a_run[digest] = turn.median_us / 1e6
        return turn

    def stop(self) -> None:
        self._adb.shell(f"am force-stop {PACKAGE}; rm -f {RESULTS}/mobileprune-*")

    def _start(self, digest: str, name: str, runs: int) -> None:
        gpu = self._accelerator == "gpu"
        words = (
            f"--es model {FOLDER}/{digest}.tflite --es out {name} --ei threads {self._threads} --ei rounds {runs} "
            f"--ez xnnpack {str(not gpu).lower()} --ez gpu {str(gpu).lower()}"
        )
        answer = self._adb.shell(f"am start -W -n {ACTIVITY} {words}", timeout_s=self._timeout_s)
        # It answers 0 even when it started nothing.
        if answer.code or not re.search(r"^Status: ok$", answer.output, re.MULTILINE):
            raise InterpreterError(f"{ACTIVITY} did not start: {quoted(answer.output)}")

    def _result(self, name: str) -> str:
        """Waits for the file, which the app puts into place when it is whole."""
        path = f"{RESULTS}/{name}"
        deadline, gone = time.monotonic() + self._timeout_s, 0
        while time.monotonic() < deadline:
            look = f"if [ -f {path} ]; then echo written; elif pidof {PACKAGE} > /dev/null; then echo busy; fi"
            found = self._adb.shell(look).output.strip()
            if found == "written":
                answer = self._adb.shell(f"cat {path}", limit=MOST_RESULT_BYTES)
                if answer.code:
                    raise InterpreterError(f"The app's result cannot be read: cat {answer.failure}")
                return answer.output
            # It may have ended between the two questions.
            gone = 0 if found == "busy" else gone + 1
            if gone > 1:
                raise InterpreterError(f"The app ended without a result. {self._last_words()}")
            time.sleep(POLL_S)
        raise InterpreterError(f"The app has written no result after {self._timeout_s:g} s. {self._last_words()}")

    def _last_words(self) -> str:
        said = quoted(self._adb.shell("logcat -d -t 50 -s mobileprune:V AndroidRuntime:E DEBUG:F").output)
        return f"Its log: {said}" if said else "It logged nothing."
