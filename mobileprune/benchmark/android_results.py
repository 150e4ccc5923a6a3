"""What phones and their runners say, read strictly: a number that is not where it must be makes a result, not a guess.

Two runners are understood. LiteRT's `benchmark_model` prints counts and percentiles of the invocations that it timed,
and the demo app writes JSON (`docs/android_benchmark.md` has its fields).
"""

import dataclasses
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mobileprune.benchmark.adb import quoted
from mobileprune.benchmark.statistics import Percentiles, percentiles
from mobileprune.errors import InterpreterError
from mobileprune.json_record import Record

MOST_RUNS = 100_000_000  # minutes of a file that takes two microseconds
# A run counts as one turn of an interleaved comparison; percentiles need no more points of it than this.
POINTS_A_TURN = 1_000
MOST_NAME = 80
DAY_US = 86_400e6
APP_SCHEMA = 1
MOST_BRACKETS = 1_000
ACCELERATORS = ("XNNPACK", "GPU", "none")
# The name that benchmark_model gives a delegate.
DELEGATES = {"cpu": "XNNPACK", "gpu": "GPU"}
NUMBER = r"(\d+(?:\.\d+)?(?:e[+-]?\d+)?)"
THERMAL_STATUSES = ("none", "light", "moderate", "severe", "critical", "emergency", "shutdown")


@dataclasses.dataclass(frozen=True)
class AndroidDevice(Record):
    """A phone, as its system properties name it; empty where it does not say.

    Attributes:
        serial: what adb calls it.
        manufacturer: `Google`.
        model: `Pixel 6`.
        abi: of native code, `arm64-v8a`.
        soc: the system on a chip: `Google GS101`; before Android 12 the board's name.
        android: the version, `14`.
        sdk: the API level, `34`.
    """

    serial: str
    manufacturer: str
    model: str
    abi: str
    soc: str
    android: str
    sdk: str

    @property
    def name(self) -> str:
        """As records name it: `Google Pixel 6 (Google GS101, Android 14)`."""
        model = " ".join(part for part in (self.manufacturer, self.model) if part) or self.serial
        known = (self.soc, f"Android {self.android}" if self.android else "")
        return f"{model} ({', '.join(part for part in known if part) or 'Android'})"


@dataclasses.dataclass(frozen=True)
class DeviceState(Record):
    """What decides how fast a phone is just now; None where it does not say.

    Attributes:
        thermal_status: Android's own, from 0 (nothing is throttled) to 6 (it is about to switch off); since Android 10.
        battery_c: the battery's temperature in degrees Celsius.
        battery_percent: its charge.
        powered: whether it is being charged, which warms it.
    """

    thermal_status: int | None
    battery_c: float | None
    battery_percent: int | None
    powered: bool | None

    def __str__(self) -> str:
        heat = "unknown" if self.thermal_status is None else THERMAL_STATUSES[self.thermal_status]
        return f"thermal status {heat}, battery {'unknown' if self.battery_c is None else f'{self.battery_c:.1f} °C'}"


@dataclasses.dataclass(frozen=True)
class Turn:
    """What one start of a runner measured of one file. Times in microseconds.

    Attributes:
        times_us: invocations, or as many points of their distribution; 1-D.
        median_us: the median invocation.
        runs: how many invocations were timed.
        init_us: creating the interpreter and allocating its tensors.
        first_us: the first invocation.
        peak_memory_bytes: how far the process's memory rose.
        accelerator: what computed: `XNNPACK`, `GPU`, `GPU and CPU`, `none`.
        runtime: with its version; empty where the runner does not say.
    """

    times_us: np.ndarray
    median_us: float
    runs: int
    init_us: float
    first_us: float
    peak_memory_bytes: int
    accelerator: str
    runtime: str = ""


def pooled(turns: Sequence[Turn]) -> Percentiles:
    """The percentiles of all turns together, each turn counting alike."""
    points = np.concatenate([_spread(turn.times_us) for turn in turns])
    return dataclasses.replace(percentiles(points * 1e3), runs=sum(turn.runs for turn in turns))


def read_benchmark_model(text: str, accelerator: str) -> Turn:
    """What `benchmark_model` printed.

    It prints no single invocations, but the minimum, the 5th, 50th and 95th percentile and the maximum: `times_us` are
    points on straight lines through these up to the 95th percentile, and of a Pareto distribution's tail from there to
    the maximum, which may be a single invocation far above all others.

    Args:
        text: all that it said, with `--use_xnnpack=true` or `--use_gpu=true`.
        accelerator: `"cpu"` or `"gpu"`: which of these was asked for.

    Raises:
        InterpreterError: anything is missing, there twice, or in disagreement; or the GPU took no part of the file.
    """
    lines = [re.sub(r"^(?:INFO: |I tflite\s*: )", "", line.strip()) for line in text.splitlines()]
    timings = _only(
        lines,
        rf"Inference timings in us: Init: {NUMBER}, First inference: {NUMBER}, Warmup \(avg\): {NUMBER}, "
        rf"Inference \(avg\): {NUMBER}",
        "line of inference timings",
    )
    memory = _only(
        lines,
        rf"Memory footprint delta from the start of the tool \(MB\): init={NUMBER} overall={NUMBER}",
        "line of memory footprints",
    )
    init, first, _, average = (_finite(number, DAY_US, "a timing") for number in timings)
    counts = [line for line in lines if re.match(r"count=\d", line)]
    if len(counts) != 2:
        raise InterpreterError(
            f"The runner printed {len(counts)} lines of counts, not one for warm-up and one for runs."
        )
    runs, minimum, p5, median, p95, maximum = _counted(counts[1])
    # It prints averages with six digits.
    if not minimum * (1 - 1e-5) <= average <= maximum * (1 + 1e-5):
        raise InterpreterError(f"The runner's figures disagree: an average of {average:g} µs in {counts[1]}")
    return Turn(
        times_us=_points(runs, minimum, p5, median, p95, maximum),
        median_us=median,
        runs=runs,
        init_us=init,
        first_us=first,
        peak_memory_bytes=round(_finite(memory[1], 1e6, "a memory footprint") * 2**20),
        accelerator=_delegated(lines, accelerator),
    )


def read_app_result(text: str, *, digest: str, threads: int, runs: int, accelerator: str) -> Turn:
    """What the demo app wrote.

    Args:
        text: the JSON file.
        digest: the SHA-256 of the model that it was to run.
        threads: that it was to use.
        runs: how many invocations it was to time.
        accelerator: `"cpu"` or `"gpu"`: what was asked for.

    Raises:
        InterpreterError: it is no such JSON, or of another run than the one that was asked for.
    """
    try:
        if text.count("[") + text.count("{") > MOST_BRACKETS:  # too deep a nesting exhausts the stack
            raise ValueError("too many brackets")
        result = json.loads(text, parse_constant=_no_constant)
    except ValueError as error:
        raise InterpreterError(f"The app's result is not JSON ({type(error).__name__}): {quoted(text)}") from error
    if not isinstance(result, dict):
        raise InterpreterError(f"The app's result is no JSON object: {quoted(text)}")
    said = result.get("error")
    if said is not None:
        raise InterpreterError(f"The app says: {quoted(str(said))}")
    for name, wanted in (("schema", APP_SCHEMA), ("model", digest), ("threads", threads)):
        if result.get(name) != wanted or isinstance(result.get(name), bool):
            raise InterpreterError(f"The app's result has {name} {_shown(result.get(name))}, not {wanted!r}.")
    found = result.get("accelerator")
    if found not in ACCELERATORS:
        raise InterpreterError(f"The app's result has accelerator {_shown(found)}; known: {', '.join(ACCELERATORS)}.")
    if (accelerator == "gpu") != (found == "GPU"):
        raise InterpreterError(f"The app was to run the file on the {accelerator.upper()}, and says {found}.")
    times = result.get("runs_us")
    if not isinstance(times, list) or len(times) != runs:
        number = len(times) if isinstance(times, list) else "no"
        raise InterpreterError(f"The app's result has {number} times in runs_us, not {runs}.")
    times_us = np.array([_number({"runs_us": time}, "runs_us", DAY_US) for time in times])
    if times_us.min() <= 0:
        raise InterpreterError("The app's result has a time of 0 µs in runs_us.")
    runtime = result.get("runtime")
    if not isinstance(runtime, str) or not runtime:
        raise InterpreterError(f"The app's result has runtime {_shown(runtime)}, no name.")
    return Turn(
        times_us=times_us,
        median_us=float(np.median(times_us)),
        runs=runs,
        init_us=1e3 * _number(result, "init_ms", DAY_US / 1e3),
        first_us=1e3 * _number(result, "first_ms", DAY_US / 1e3),
        peak_memory_bytes=round(_number(result, "peak_memory_bytes", 2**40)),
        accelerator=found,
        runtime=_name(runtime),
    )


def read_device(serial: str, properties: Mapping[str, str]) -> AndroidDevice:
    """A phone's facts from what `getprop` said of each property."""
    known = {name: _name(value) for name, value in properties.items()}
    chip = " ".join(known.get(f"ro.soc.{each}", "") for each in ("manufacturer", "model")).strip()
    return AndroidDevice(
        serial=serial,
        manufacturer=known.get("ro.product.manufacturer", ""),
        model=known.get("ro.product.model", ""),
        abi=known.get("ro.product.cpu.abi", ""),
        soc=chip or known.get("ro.board.platform", ""),
        android=known.get("ro.build.version.release", ""),
        sdk=known.get("ro.build.version.sdk", ""),
    )


def read_state(said: str) -> DeviceState:
    """A phone's state from what `dumpsys thermalservice` and `dumpsys battery` said, either of which may be nothing."""
    heat = re.search(r"^Thermal Status: ([0-6])$", said, re.MULTILINE)
    # Only what stands directly below its heading: logs of earlier values may follow.
    block = re.search(r"^Current Battery Service state:\n((?: +[^\n]*\n?)*)", said, re.MULTILINE)
    facts = dict(re.findall(r"^ +([\w ]+): (\S+)$", block[1], re.MULTILINE)) if block else {}
    sources = [value for name, value in facts.items() if name.endswith(" powered")]
    temperature, level, scale = (_digits(facts.get(name)) for name in ("temperature", "level", "scale"))
    return DeviceState(
        thermal_status=int(heat[1]) if heat else None,
        battery_c=None if temperature is None else temperature / 10,
        battery_percent=None if level is None or not scale else round(100 * level / scale),
        powered="true" in sources if sources else None,
    )


def _points(runs: int, minimum: float, p5: float, median: float, p95: float, maximum: float) -> np.ndarray:
    """Points of a distribution of which these are known; as many as runs, but no more than are needed."""
    points = min(runs, POINTS_A_TURN)
    at = (np.arange(points) + 0.5) / points
    body = np.interp(at, [0.0, 0.05, 0.5, 0.95], [minimum, p5, median, p95])
    # Of up to 10 runs the last is the 95th percentile, too.
    length = math.log(max(0.1 * runs, 1.1))
    share = np.clip(np.log(0.05 / np.minimum(1 - at, 0.05)) / length, 0.0, 1.0)
    return np.where(at > 0.95, p95 * (maximum / p95) ** share, body)


def _spread(times_us: np.ndarray) -> np.ndarray:
    """`POINTS_A_TURN` points of the distribution of some times."""
    return np.asarray(np.quantile(times_us, (np.arange(POINTS_A_TURN) + 0.5) / POINTS_A_TURN))


def _only(lines: Sequence[str], pattern: str, what: str) -> tuple[str, ...]:
    """The groups of the one line that matches."""
    found = [matched.groups() for line in lines if (matched := re.fullmatch(pattern, line))]
    if len(found) != 1:
        said = quoted("\n".join(lines)) or "nothing"
        number = f"{len(found)} times a" if found else "no"
        raise InterpreterError(f"The runner printed {number} {what}. Its last words: {said}")
    return found[0]


def _counted(line: str) -> tuple[int, float, float, float, float, float]:
    """Runs, minimum, 5th, 50th, 95th percentile and maximum of a line of counts."""
    matched = re.fullmatch(
        rf"count=(\d+) (?:first={NUMBER} curr={NUMBER} min={NUMBER} max={NUMBER} avg={NUMBER} std={NUMBER}|"
        rf"curr={NUMBER}(?: ?\(all same\))?) p5={NUMBER} median={NUMBER} p95={NUMBER}",
        line,
    )
    if not matched:
        hint = "" if " median=" in line else " It has no median: take a newer benchmark_model."
        raise InterpreterError(f"The runner's line of counts cannot be read: {quoted(line)}{hint}")
    _, _, _, low, high, _, _, same, p5, median, p95 = matched.groups()
    runs = int(matched[1]) if len(matched[1]) < 10 else MOST_RUNS + 1
    figures = [_finite(number, DAY_US, "a time") for number in (low or same, p5, median, p95, high or same)]
    if not 1 <= runs <= MOST_RUNS or figures != sorted(figures) or figures[2] <= 0:
        raise InterpreterError(f"The runner's line of counts contradicts itself: {quoted(line)}")
    minimum, p5_us, median_us, p95_us, maximum = figures
    return runs, minimum, p5_us, median_us, p95_us, maximum


def _delegated(lines: Sequence[str], accelerator: str) -> str:
    """What `benchmark_model` says of the delegate that was asked for."""
    name = DELEGATES[accelerator]
    applied = (
        rf"(?:Explicitly applied|Though) {name} delegate.*(completely|partially|not be) executed by the delegate.*"
    )
    found = _only(lines, applied, f"line of what the {name} delegate took")[0]
    if accelerator == "cpu":
        return "none" if found == "not be" else name
    if found == "not be":
        raise InterpreterError("The GPU took no part of the file; benchmark_model ran it on the CPU.")
    return name if found == "completely" else f"{name} and CPU"


def _finite(number: str, most: float, what: str) -> float:
    value = float(number)
    if not math.isfinite(value) or value > most:
        raise InterpreterError(f"The runner printed {what} that cannot be: {number[:MOST_NAME]}")
    return value


def _number(result: Mapping[str, Any], name: str, most: float) -> float:
    """A number of the app's result from 0 to `most`."""
    value = result.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= most:
        raise InterpreterError(f"The app's result has {name} {_shown(value)}, no number from 0 to {most:g}.")
    return float(value)


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")


def _digits(text: str | None) -> int | None:
    return int(text) if text and re.fullmatch(r"-?\d{1,6}", text) else None


def _name(text: str) -> str:
    return "".join(each for each in text if each.isprintable()).strip()[:MOST_NAME]


def _shown(value: Any) -> str:
    return _name(repr(value))
