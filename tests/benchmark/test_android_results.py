"""What phones say, whole and broken."""

import json

import numpy as np
import pytest
from benchmark.printed import MEMORY, NOTHING, PARTLY, PRINTED, RUNS, TIMINGS, WARM, XNNPACK

from mobileprune.benchmark.android_results import (
    AndroidDevice,
    DeviceState,
    Turn,
    pooled,
    read_app_result,
    read_benchmark_model,
    read_device,
    read_state,
)
from mobileprune.errors import InterpreterError

APP = {
    "schema": 1,
    "model": "ab" * 32,
    "runtime": "LiteRT 1.4.0",
    "threads": 2,
    "accelerator": "XNNPACK",
    "init_ms": 3.5,
    "first_ms": 9,
    "runs_us": [2000, 1000.5, 3000],
    "peak_memory_bytes": 4096,
}


def app_result(**changes):
    text = json.dumps({name: value for name, value in {**APP, **changes}.items() if value is not ...})
    return read_app_result(text, digest="ab" * 32, threads=2, runs=3, accelerator="cpu")


@pytest.mark.parametrize("prefix", ["INFO: ", "", "I tflite  : "])
def test_what_benchmark_model_prints(prefix):
    turn = read_benchmark_model(PRINTED.replace("INFO: ", prefix), "cpu")
    assert (turn.runs, turn.median_us, turn.init_us, turn.first_us) == (50, 52100, 120500, 90100)
    assert (turn.peak_memory_bytes, turn.accelerator) == (64 << 20, "XNNPACK")
    assert turn.times_us.shape == (50,)
    assert turn.times_us.min() >= 49500
    assert turn.times_us.max() <= 690000
    assert np.median(turn.times_us) == pytest.approx(52100, rel=0.01)


def test_percentiles_lie_between_those_that_are_printed():
    summary = pooled([read_benchmark_model(PRINTED, "cpu")] * 2)
    assert summary.runs == 100
    assert summary.p50_ms == pytest.approx(52.1, rel=0.01)
    assert summary.p90_ms == pytest.approx(52.1 + (69.0 - 52.1) * 40 / 45, rel=0.02)
    assert 69.0 < summary.p99_ms < 690.0


def test_one_interrupted_invocation_does_not_make_the_99th_percentile():
    """Of 20,000 invocations of about a millisecond one took a second; the 200th slowest did not."""
    runs = "count=20000 first=1001 curr=1001 min=990 max=1000000 avg=1050 std=900 p5=995 median=1000 p95=1010"
    text = PRINTED.replace(RUNS, runs).replace("Inference (avg): 64000.5", "Inference (avg): 1050")
    assert 1.01 < pooled([read_benchmark_model(text, "cpu")]).p99_ms < 10


def test_each_turn_counts_alike():
    def turn(*times):
        return Turn(np.array(times), float(np.median(times)), len(times), 1, 1, 1, "XNNPACK")

    both = pooled([turn(*[1000.0] * 9_000), turn(3000.0)])
    assert both.runs == 9_001
    assert both.p50_ms == pytest.approx(2.0)
    assert pooled([turn(1000.0, 2000.0, 3000.0)]).p50_ms == pytest.approx(2.0)


def test_large_and_equal_times():
    slow = "count=1 curr=1360000 p5=1360000 median=1360000 p95=1360000"
    text = PRINTED.replace(RUNS, slow).replace("Inference (avg): 64000.5", "Inference (avg): 1.36e+06")
    assert read_benchmark_model(text, "cpu").times_us.tolist() == [1360000]
    same = "count=4 curr=7(all same) p5=7 median=7 p95=7"
    text = PRINTED.replace(RUNS, same).replace("Inference (avg): 64000.5", "Inference (avg): 7")
    assert read_benchmark_model(text, "cpu").times_us.tolist() == [7] * 4


@pytest.mark.parametrize(
    ("line", "accelerator", "found"),
    [
        (XNNPACK, "cpu", "XNNPACK"),
        (PARTLY, "cpu", "XNNPACK"),
        (NOTHING, "cpu", "none"),
        (XNNPACK.replace("XNNPACK", "GPU"), "gpu", "GPU"),
        (PARTLY.replace("XNNPACK", "GPU"), "gpu", "GPU and CPU"),
    ],
)
def test_what_computed(line, accelerator, found):
    assert read_benchmark_model(PRINTED.replace(XNNPACK, line), accelerator).accelerator == found


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (PRINTED, "", "no line of inference timings. Its last words: nothing"),
        (PRINTED, "rubbish\x00\n" * 9, "no line of inference timings"),
        (f"INFO: {TIMINGS}\n", "", "no line of inference timings"),
        (TIMINGS, f"{TIMINGS}\n{TIMINGS}", "2 times a line of inference timings"),
        ("First inference: 90100", "First inference: -5", "no line of inference timings"),
        ("First inference: 90100", "First inference: nan", "no line of inference timings"),
        ("Init: 120500", "Init: 1e999", "a timing that cannot be"),
        ("Inference (avg): 64000.5", "Inference (avg): 5", "figures disagree"),
        (f"INFO: {WARM}\n", "", "1 lines of counts"),
        (RUNS, f"{RUNS}\nINFO: {RUNS}", "3 lines of counts"),
        (RUNS, RUNS.replace(" p5=49900 median=52100 p95=69000", ""), "take a newer benchmark_model"),
        (RUNS, RUNS.replace("median=52100", "median=5"), "contradicts itself"),
        (RUNS, RUNS.replace("max=690000", "max=1"), "contradicts itself"),
        (RUNS, RUNS.replace("count=50", "count=0"), "contradicts itself"),
        (RUNS, RUNS.replace("count=50", f"count={'9' * 5000}"), "contradicts itself"),
        (RUNS, RUNS + " more", "cannot be read"),
        (RUNS, RUNS.replace("min=49500", "min=0x10"), "cannot be read"),
        (f"INFO: {MEMORY}", "", "no line of memory footprints"),
        ("overall=64", "overall=9e99", "a memory footprint that cannot be"),
        (f"INFO: {XNNPACK}", "", "no line of what the XNNPACK delegate took"),
    ],
)
def test_output_that_cannot_be_believed(old, new, said):
    assert old in PRINTED
    with pytest.raises(InterpreterError, match=said) as failure:
        read_benchmark_model(PRINTED.replace(old, new), "cpu")
    assert len(str(failure.value)) < 600


def test_a_gpu_that_took_nothing():
    with pytest.raises(InterpreterError, match="The GPU took no part of the file"):
        read_benchmark_model(PRINTED.replace(XNNPACK, NOTHING.replace("XNNPACK", "GPU")), "gpu")


def test_what_the_app_writes():
    turn = app_result()
    assert turn.times_us.tolist() == [2000, 1000.5, 3000]
    assert (turn.median_us, turn.runs, turn.init_us, turn.first_us) == (2000, 3, 3500, 9000)
    assert (turn.peak_memory_bytes, turn.accelerator, turn.runtime) == (4096, "XNNPACK", "LiteRT 1.4.0")
    on_gpu = {**APP, "accelerator": "GPU", "runtime": "\x1b[31mLiteRT", "further": 1}
    turn = read_app_result(json.dumps(on_gpu), digest="ab" * 32, threads=2, runs=3, accelerator="gpu")
    assert (turn.accelerator, turn.runtime) == ("GPU", "[31mLiteRT")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"schema": 2}, "schema 2, not 1"),
        ({"schema": True}, "schema True, not 1"),
        ({"schema": ...}, "schema None, not 1"),
        ({"model": "cd" * 32}, "model 'cdcd"),
        ({"threads": 4}, "threads 4, not 2"),
        ({"accelerator": "magic"}, "accelerator 'magic'; known: XNNPACK"),
        ({"accelerator": "GPU"}, "was to run the file on the CPU, and says GPU"),
        ({"accelerator": []}, "accelerator"),
        ({"runs_us": [1, 2]}, "2 times in runs_us, not 3"),
        ({"runs_us": "123"}, "no times in runs_us"),
        ({"runs_us": [1, 2, "3"]}, "runs_us '3', no number"),
        ({"runs_us": [1, 2, -3]}, "runs_us -3, no number"),
        ({"runs_us": [1, 2, 0]}, "a time of 0"),
        ({"runs_us": [1, 2, True]}, "runs_us True"),
        ({"runs_us": [1, 2, 10**400]}, "runs_us 1000"),
        ({"init_ms": None}, "init_ms None"),
        ({"first_ms": -1}, "first_ms -1"),
        ({"peak_memory_bytes": 1e99}, "peak_memory_bytes 1e"),
        ({"runtime": 5}, "runtime 5, no name"),
        ({"runtime": ""}, "runtime '', no name"),
        ({"error": "no \x1b[31mmodel"}, "The app says: no"),
    ],
)
def test_results_that_cannot_be_believed(changes, said):
    with pytest.raises(InterpreterError, match=said) as failure:
        app_result(**changes)
    assert len(str(failure.value)) < 400


def test_a_file_that_the_gpu_did_not_take():
    with pytest.raises(InterpreterError, match="was to run the file on the GPU, and says XNNPACK"):
        read_app_result(json.dumps(APP), digest="ab" * 32, threads=2, runs=3, accelerator="gpu")


@pytest.mark.parametrize("text", ["", "}{", "[1]", "[" * 100_000, '{"schema": NaN}', "null", "9" * 5000], ids=range(7))
def test_results_that_are_no_json_object(text):
    with pytest.raises(InterpreterError, match="The app's result is no"):
        read_app_result(text, digest="", threads=1, runs=1, accelerator="cpu")


def test_a_phone_by_its_properties():
    known = {
        "ro.product.manufacturer": "Google",
        "ro.product.model": "Pixel \x1b[31m6",
        "ro.product.cpu.abi": "arm64-v8a",
        "ro.soc.manufacturer": "Google",
        "ro.soc.model": "GS101",
        "ro.board.platform": "gs101",
        "ro.build.version.release": "14",
        "ro.build.version.sdk": "34",
    }
    device = read_device("1A2B", known)
    assert device.name == "Google Pixel [31m6 (Google GS101, Android 14)"
    assert AndroidDevice.from_json(device.to_json()) == device
    older = read_device("1A2B", {"ro.product.model": "X" * 1000, "ro.board.platform": "msm8998"})
    assert older.name == f"{'X' * 80} (msm8998)"
    assert read_device("1A2B", {}).name == "1A2B (Android)"


THERMAL = "IsStatusOverride: false\nThermal Status: 2\nCached temperatures:\n Temperature{mValue=99.0}\n"
BATTERY = """Current Battery Service state:
  AC powered: false
  USB powered: true
  Max charging current: 500000
  status: 2
  level: 44
  scale: 50
  temperature: 314
  technology: Li-ion
[EventLogBuffer]
08-11 18:34:14 temperature: 999, level:72
  temperature: 888
"""


def test_a_phones_state():
    state = read_state(THERMAL + BATTERY)
    assert state == DeviceState(2, 31.4, 88, True)
    assert str(state) == "thermal status moderate, battery 31.4 °C"
    assert DeviceState.from_json(state.to_json()) == state


@pytest.mark.parametrize(
    ("thermal", "battery"),
    [
        ("", ""),
        ("Can't find service: thermalservice\n", "Can't find service: battery\n"),
        ("Thermal Status: 7\n", "  temperature: 314\n"),
        ("Thermal Status: 2 or so\n", "Current Battery Service state:\ntemperature: 314\n"),
        ("xThermal Status: 2\n", f"Current Battery Service state:\n  temperature: {'9' * 5000}\n  level: x\n"),
    ],
)
def test_what_a_phone_does_not_say_is_unknown(thermal, battery):
    state = read_state(thermal + battery)
    assert state == DeviceState(None, None, None, None)
    assert str(state) == "thermal status unknown, battery unknown"
