"""How often does a comparison of 30 seconds claim a difference where there is none, and find one of 5%?

  python benchmarks/comparisons.py [--only=record,replay,live] [--resume] [--comparisons=20] [--minutes=14]

Beside a busy neighbour, a process of this program that computes without end:

- `record`: a file, its twin (the same bytes) and a slower file take turns for `--record_minutes`, through the same
  measurement as `mobileprune benchmark --compare`; their times go to `--recording`;
- `replay`: 200 comparisons of the file with its twin, 200 with the twin's times multiplied by 1.05, and 200 with the
  slower file, each of 12 recorded pairs of processes, through the same analysis;
- `live`: as many comparisons of the file with itself and with the slower file as `--comparisons` says, 30 seconds each.
  What is done is kept; `--resume` goes on where the last call ended, and no comparison begins after `--minutes`.

The slower file is the default network behind two more convolutions that add a little to its input, chosen because they
cost about 5%; what they cost is measured by the recording.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import replays
from absl import app, flags

import mobileprune as mp
from mobileprune.benchmark.comparison import difference_of
from mobileprune.benchmark.host import COMPARISON_S, compare_host, trace_host
from mobileprune.errors import InterpreterError

HERE = Path(__file__).resolve().parent
STEPS = ("record", "replay", "live")
ONLY = flags.DEFINE_list("only", list(STEPS), f"Which steps: {', '.join(STEPS)}.")
RESUME = flags.DEFINE_bool("resume", False, "Keep what live comparisons are done.")
COMPARISONS = flags.DEFINE_integer("comparisons", 20, "Live ones of each kind.", lower_bound=1)
REPLAYS = flags.DEFINE_integer("replays", 200, "Replayed ones of each kind.", lower_bound=1)
MINUTES = flags.DEFINE_float("minutes", 14.0, "No live comparison begins after so long.")
RECORD_MINUTES = flags.DEFINE_float("record_minutes", 10.0, "How long is recorded.")
OUT_DIR = flags.DEFINE_string("out_dir", str(HERE / "results" / "comparisons"), "Where files and results go.")
RECORDING = flags.DEFINE_string("recording", None, "The recording; in --out_dir by default.")

# A neighbour that leaves one of two cores to the rest of the machine.
NEIGHBOUR = "x = 1.0\nwhile True:\n    x = x * 1.0000001 % 3.0\n"
RESTARTS = 12
# Of each live comparison's record.
KEPT = ("ratio", "ratio_low", "ratio_high", "restarts", "rounds", "drift", "outliers")
MOST_FALSE, LEAST_FOUND = 0.05, 0.9


def files(folder: Path) -> tuple[mp.Variant, mp.Variant]:
    """The default network and the slower one, made once."""
    paths = folder / "base.tflite", folder / "slower.tflite"
    if not all(path.exists() for path in paths):
        import keras

        layers = keras.layers
        mp.set_seed(0)
        base = mp.build_model("mobilenet_small", mp.Preprocess(32, 32, "grayscale"), classes=10)
        inputs = keras.Input((32, 32, 1))
        more = layers.Conv2D(2, 3, padding="same", activation="relu")(inputs)
        more = layers.Conv2D(1, 3, padding="same")(more)
        slower = keras.Model(inputs, base(layers.Add()([inputs, more])))
        for model, path in zip((base, slower), paths, strict=True):
            mp.convert(model)[0].save(path)
    base_file, slower_file = (mp.Variant(path.stem, "float32", path.read_bytes()) for path in paths)
    return base_file, slower_file


@contextmanager
def neighbour() -> Iterator[None]:
    """A process that computes without end."""
    process = subprocess.Popen([sys.executable, "-c", NEIGHBOUR])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def record(folder: Path, path: Path) -> None:
    """Measures the file, its twin and the slower one in turn, in as many processes as the time allows."""
    base, slower = files(folder)
    seconds = 60 * RECORD_MINUTES.value
    # Three files at once take longer than two; each pair of processes is to have as much time as in a comparison.
    restarts = round(seconds / (1.4 * COMPARISON_S / RESTARTS))
    with neighbour():
        traces = trace_host([base, base, slower], seconds=seconds / 2, restarts=restarts)
    for trace in traces:
        if trace.error is not None:
            raise trace.error
    replays.write_recording(path, dict(zip(replays.FILES, [trace.times for trace in traces], strict=True)))


def played(path: Path) -> bool:
    """Prints what replayed comparisons claim; whether the goals are met."""
    recording = replays.read_recording(path)
    processes = recording["baseline"]
    print(f"{len(processes)} processes of each file, {np.mean([len(each) for each in processes]):.0f} bursts each.")
    true = replays.replay(recording, "slower", 1, restarts=len(processes))[0]
    print(f"By all of them the slower file takes {true.median:.4f} ({true.low:.4f} to {true.high:.4f}) times as long.")
    kinds = (("same file", "twin", 1.0), ("same file, times × 1.05", "twin", 1.05), ("slower file", "slower", 1.0))
    met = True
    for title, file, factor in kinds:
        ratios = replays.replay(recording, file, REPLAYS.value, restarts=RESTARTS, factor=factor)
        claims = [replays.differs(each) if title == "same file" else replays.slower(each) for each in ratios]
        width = np.median([each.high / each.low - 1 for each in ratios])
        print(f"{title}: {np.mean(claims):.1%} of {len(ratios)} claim a difference; intervals {width:.1%} wide")
        met &= np.mean(claims) <= MOST_FALSE if title == "same file" else np.mean(claims) >= LEAST_FOUND
    rounds = replays.naive(recording, "twin", REPLAYS.value, restarts=RESTARTS)
    wrong = np.mean([each.low > 1 or each.high < 1 for each in rounds])
    print(f"same file, 95% bootstrap of rounds instead: {wrong:.1%} claim a difference")
    return bool(met)


def live(folder: Path) -> bool:
    """Makes comparisons and prints what they claim; whether the goals are met by those that are done."""
    base, slower = files(folder)
    log = folder / "live.jsonl"
    if not RESUME.value:
        log.unlink(missing_ok=True)
    done = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    begin = time.monotonic()
    for number in range(len(done), 2 * COMPARISONS.value):
        if time.monotonic() - begin > 60 * MINUTES.value:
            break
        kind = ("same", "slower")[number % 2]
        started = time.monotonic()
        with neighbour():
            result = compare_host([base, base if kind == "same" else slower], seed=number)[1]
        if isinstance(result, InterpreterError):
            raise result
        entry = {
            "kind": kind,
            "found": difference_of(result),
            "seconds": time.monotonic() - started,
            "load": os.getloadavg()[0],
            **{name: getattr(result, name) for name in KEPT},
        }
        with log.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(entry) + "\n")
        done.append(entry)
        print(
            f"{kind}: {entry['found']} {result.ratio:.4f} ({result.ratio_low:.4f} to {result.ratio_high:.4f}), "
            f"{entry['seconds']:.1f} s, load {entry['load']:.1f}",
            flush=True,
        )
    if not done:
        print("live: no time for a single comparison")
        return False
    same = [entry["found"] != "no difference" for entry in done if entry["kind"] == "same"]
    slow = [entry["found"] == "slower" for entry in done if entry["kind"] == "slower"]
    print(f"live: {sum(same)} of {len(same)} comparisons of a file with itself claim a difference")
    longest = max(entry["seconds"] for entry in done)
    print(f"live: {sum(slow)} of {len(slow)} find the slower file; no comparison took more than {longest:.1f} s")
    if len(done) < 2 * COMPARISONS.value:
        print("Not all are done: call it again with --resume.")
    return bool(np.mean(same) <= MOST_FALSE and np.mean(slow or [0]) >= LEAST_FOUND)


def main(_: list[str]) -> int:
    folder = Path(OUT_DIR.value)
    path = Path(RECORDING.value) if RECORDING.value else folder / "recording.npz"
    met = True
    if "record" in ONLY.value:
        record(folder, path)
    if "replay" in ONLY.value:
        met &= played(path)
    if "live" in ONLY.value:
        met &= live(folder)
    print("All goals are met." if met else "A goal is missed.")
    return 0 if met else 1


if __name__ == "__main__":
    app.run(main)
