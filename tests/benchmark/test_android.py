"""Comparisons on a phone: the real adb program, a daemon that runs commands for real, and real inference where figures
matter. Where only the way there matters, the program on the phone prints what `benchmark_model` would.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
from benchmark.phone import Phone, adb_server, attached, litert_program, program
from benchmark.printed import PRINTED
from tiny_models import variants

from mobileprune.benchmark import android_comparison, android_runners
from mobileprune.benchmark.android import benchmark_android, measure_android
from mobileprune.benchmark.android_settings import AndroidSettings
from mobileprune.errors import InterpreterError, MobilePruneWarning, SettingsError
from mobileprune.latency_setup import measuring
from mobileprune.records import Latency, Variant
from mobileprune.single_ops import empty_op

pytestmark = pytest.mark.skipif(shutil.which("adb") is None, reason="There is no adb program here (apt: adb).")
ONE, OTHER = Variant("base", "float32", b"one file"), Variant("c50", "float32", b"another file")
SAYS = f"cat <<'END'\n{PRINTED}END\n"
TURN = "--graph="


@pytest.fixture(scope="module", autouse=True)
def _server():
    with adb_server():
        yield


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(android_comparison, "COOL_POLL_S", 0.05)
    monkeypatch.setattr(android_runners, "POLL_S", 0.05)


@pytest.fixture
def phone(tmp_path):
    made = Phone(tmp_path / "phone")
    with attached(made):
        yield made


def settings(tmp_path, script=SAYS, **changes):
    """Of a comparison with a program that does what a shell script says."""
    changes = {"rounds": 1, "seconds": 0.02, "reconnect_s": 20.0, **changes}
    return AndroidSettings(benchmark_model=str(program(tmp_path, script)), **changes)


def turns(phone):
    return [command for command in phone.commands if TURN in command]


def running(phone):
    """What runs on the phone, by its command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found.append(path.read_text(errors="replace"))
    return [line for line in found if f"{phone.root}/data" in line or f"{phone.root}/bin" in line]


def test_what_runs_on_a_phone_is_seen(phone):
    phone.add_program("idle", "sleep 30")
    assert running(phone) == []
    with subprocess.Popen(["adb", "-s", phone.serial, "shell", "-n", "idle"]) as process:
        deadline = time.monotonic() + 20
        while not running(phone):
            assert time.monotonic() < deadline
        process.kill()


def test_real_inference(phone, tmp_path):
    """Nothing is left behind, and the phone is described."""
    files = [variants()["float32"], variants()["int8"]]
    wanted = AndroidSettings(rounds=5, seconds=0.25, threads=2, benchmark_model=str(litert_program(tmp_path)))
    run = measure_android(files, 0, wanted)
    assert run.notes == ()
    for result in run.results:
        assert isinstance(result, Latency)
        assert result.device == "Acme Phone 7 (Acme Chip 7, Android 14)"
        assert result.runtime.startswith("benchmark_model ")
        assert (result.threads, result.accelerator) == (2, "XNNPACK")
        assert 0 < result.p50_ms <= result.p90_ms <= result.p99_ms
        assert result.runs >= 5
        assert result.init_ms > 0
        assert result.peak_memory_bytes > 0
        assert result.ratio_low <= result.ratio <= result.ratio_high
    assert run.results[0].ratio == 1.0
    assert run.rounds == (5, 5)
    assert all(first > 0 for first in run.first_ms)
    assert (run.device.serial, run.device.abi, run.device.sdk) == (phone.serial, "arm64-v8a", "34")
    assert run.before == run.after
    assert (run.before.thermal_status, run.before.battery_c, run.before.battery_percent) == (0, 31.4, 87)
    assert phone.files() == []
    assert all("--num_threads=2" in turn and "--use_xnnpack=true" in turn for turn in turns(phone))


def test_the_verb_measures_on_a_phone(phone, tmp_path):
    command = [sys.executable, "-m", "mobileprune.cli", "benchmark", f"--device={phone.serial}", "--rounds=2"]
    files = [str(variants()[name].save(tmp_path / f"{name}.tflite")) for name in ("float32", "int8")]
    program = f"--benchmark_model={litert_program(tmp_path)}"
    done = subprocess.run([*command, program, "--compare", *files], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "Acme Phone 7 (Acme Chip 7, Android 14), benchmark_model " in done.stdout
    assert done.stdout.strip().splitlines()[-1].startswith("int8 ")
    refused = subprocess.run([*command, *files], capture_output=True, text=True, timeout=300)
    assert refused.returncode == 2
    assert "needs LiteRT's program for the phone" in refused.stderr


def test_a_phone_is_where_a_latency_may_be_meant(phone, tmp_path):
    """Tiny files of a table, timed by the program there."""
    device = AndroidSettings(phone.serial, rounds=1, seconds=0.02, benchmark_model=str(litert_program(tmp_path)))
    measure = measuring(device, threads=2)
    files = [Variant("nothing", "float32", empty_op()), variants()["float32"]]
    small, large = measure(files)
    assert small.device == large.device == "Acme Phone 7 (Acme Chip 7, Android 14)"
    assert (small.threads, large.threads) == (2, 2)
    assert 0 < small.p50_ms < large.p50_ms
    with pytest.raises(SettingsError, match="needs LiteRT's program"):
        measuring(AndroidSettings(phone.serial))


def test_files_take_turns(phone, tmp_path):
    measure_android([ONE, OTHER], 0, settings(tmp_path, rounds=8))
    order = [ONE.sha256 in turn for turn in turns(phone)]
    assert len(order) == 2 + 2 * 8
    rounds = [order[at : at + 2] for at in range(2, len(order), 2)]
    assert all(sorted(each) == [False, True] for each in rounds)
    assert [True, False] in rounds
    assert [False, True] in rounds


def test_what_is_there_is_not_pushed_again(phone, tmp_path):
    pushed = []
    for keep in (True, True, False):
        run = measure_android([ONE, OTHER], 0, settings(tmp_path, keep=keep))
        assert all(isinstance(each, Latency) for each in run.results)
        pushed.append(len(phone.pushed))
        assert len(phone.files()) == (3 if keep else 0)
    assert pushed == [3, 3, 3]
    measure_android([ONE, OTHER], 0, settings(tmp_path, script=SAYS + "\n"))
    assert len(phone.pushed) == 6  # nothing had been left


def test_a_phone_that_is_unplugged_in_mid_run(phone, tmp_path):
    """The missing rounds are taken again, and what ran when the cable was pulled runs no more."""
    script = f'n=$(cat "$PHONE/n" 2>/dev/null); echo "$n." > "$PHONE/n"; if [ "$n" = ... ]; then sleep 60; fi\n{SAYS}'
    phone.unplug_at = (TURN, frozenset({4, 7}))
    run = measure_android([ONE], 0, settings(tmp_path, script, rounds=5))
    assert run.rounds == (5,)
    assert run.notes == ()
    assert isinstance(run.results[0], Latency)
    assert len(turns(phone)) == 1 + 5 + 2
    assert phone.files() == []
    assert running(phone) == []


def test_a_phone_that_does_not_come_back(phone, tmp_path):
    phone.unplug_at, phone.replug_s = (TURN, frozenset({1 + 6})), None
    with pytest.warns(MobilePruneWarning) as said:
        (result,) = benchmark_android(
            [ONE], benchmark_model=program(tmp_path, SAYS), rounds=9, seconds=0.1, reconnect_s=0.3
        )
    assert isinstance(result, Latency)
    assert result.runs == 5 * 50
    first, second = (str(each.message) for each in said)
    assert first.startswith("5 of 9 rounds are complete, and the figures are of these: 127.0.0.1")
    assert "was lost and did not come back within 0.3 s" in first
    assert "/data/local/tmp/mobileprune is left on" in second


def test_too_few_rounds_are_no_result(phone, tmp_path):
    phone.unplug_at, phone.replug_s = (TURN, frozenset({2 + 3})), None
    run = measure_android([ONE, OTHER], 0, settings(tmp_path, rounds=5, reconnect_s=0.3))
    assert run.after is None
    assert sum(run.rounds) == 2
    for result in run.results:
        assert isinstance(result, InterpreterError)
        assert "only 1 of 5 rounds were measured" in str(result)


def test_a_phone_that_is_gone_before_the_first_round(phone, tmp_path):
    phone.unplug_at, phone.replug_s = ("mkdir", frozenset({1})), None
    with pytest.warns(MobilePruneWarning, match="is left on"), pytest.raises(InterpreterError, match="was lost"):
        measure_android([ONE], 0, settings(tmp_path, reconnect_s=0.3))


def test_an_exit_code_that_lies(phone, tmp_path):
    """The stream of every turn breaks off in the middle; adb itself calls that a success."""
    phone.cut = TURN
    (result,) = measure_android([ONE], 0, settings(tmp_path)).results
    assert isinstance(result, InterpreterError)
    assert "no exit code came (3 times in one step)" in str(result)


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo about to crash; kill -SEGV $$", r"was killed by signal 11 \(SIGSEGV\): about to crash"),
        ("kill -9 $$", r"was killed by signal 9 \(SIGKILL\)"),
        ("echo 'ERROR: Failed to load model' >&2; exit 1", "ended with 1: ERROR: Failed to load model"),
        ("echo rubbish; printf '\\033[2J'", "no line of inference timings. Its last words: rubbish"),
        ("true", "no line of inference timings. Its last words: nothing"),
        ("yes rubbish", "said more than 1,048,576 bytes"),
        ("echo begun; sleep 60", "was still busy after 6 s: begun"),
    ],
)
def test_a_runner_that_fails_for_one_file_only(phone, tmp_path, script, said):
    """The other file's part goes on, and nothing stays or runs on."""
    script = f"case $1 in *{OTHER.sha256}*) {script} ;; *) {SAYS} ;; esac".replace("END\n ;;", "END\n;;")
    good, bad = measure_android([ONE, OTHER], 1, settings(tmp_path, script, timeout_s=6.0)).results
    assert isinstance(good, Latency)
    assert good.ratio is None
    assert isinstance(bad, InterpreterError)
    assert str(bad).startswith("c50_float32.tflite: ")
    assert said.replace("\\", "") in str(bad)
    assert str(bad).isprintable()
    assert phone.files() == []
    assert running(phone) == []


def test_nobody_waits_for_rounds_without_files(phone, tmp_path):
    phone.write("heat", "Thermal Status: 0\nThermal Status: 4\n")
    run = measure_android([ONE, OTHER], 0, settings(tmp_path, "exit 1", rounds=50))
    assert all(isinstance(each, InterpreterError) for each in run.results)
    assert len(turns(phone)) == 2
    assert sum("dumpsys" in command for command in phone.commands) == 2


def test_no_space_for_a_file(phone, tmp_path):
    phone.space = 5_000
    large = Variant("base", "float32", bytes(10_000))
    result, fine = measure_android([large, ONE], 0, settings(tmp_path)).results
    assert "base_float32.tflite: file.tflite cannot be brought to" in str(result)
    assert "No space left on device" in str(result)
    assert isinstance(fine, Latency)


@pytest.mark.parametrize(
    ("trouble", "said"),
    [
        ({"space": 100}, "benchmark_model cannot be brought to .*No space left on device"),
        ({"push_failure": "couldn't create file: Permission denied"}, "cannot be brought to .*Permission denied"),
        ({"damage": True}, "benchmark_model arrived damaged"),
    ],
)
def test_no_place_for_the_runner(phone, tmp_path, trouble, said):
    for name, value in trouble.items():
        setattr(phone, name, value)
    with pytest.raises(InterpreterError, match=said):
        measure_android([ONE], 0, settings(tmp_path))
    assert phone.files() == []


def test_no_permission_to_make_a_folder(phone, tmp_path):
    phone.add_program("mkdir", "echo \"mkdir: '$2': Permission denied\" >&2; exit 1")
    with pytest.raises(InterpreterError, match=r"mobileprune cannot be made on .*Permission denied"):
        measure_android([ONE], 0, settings(tmp_path))


def test_no_permission_to_start_the_runner(phone, tmp_path):
    phone.add_program("chmod", "exit 0")  # as where the storage is mounted without the right to start programs
    (result,) = measure_android([ONE], 0, settings(tmp_path)).results
    assert "benchmark_model ended with 126" in str(result)
    assert "ermission denied" in str(result)


def test_a_hot_phone_is_waited_for(phone, tmp_path):
    phone.write("heat", "Thermal Status: 3\nThermal Status: 1\nThermal Status: 0\n")
    run = measure_android([ONE], 0, settings(tmp_path, rounds=3))
    assert run.before.thermal_status == 0
    assert run.notes == ()
    assert sum("dumpsys" in command for command in phone.commands) == 3 + 2 + 1


@pytest.mark.parametrize("hot", ["heat", "battery"])
def test_waiting_for_a_hot_phone_has_an_end(phone, tmp_path, hot):
    if hot == "heat":
        phone.write("heat", "Thermal Status: 2\n")
    else:
        phone.write("battery", "Current Battery Service state:\n  temperature: 455\n")
    run = measure_android([ONE], 0, settings(tmp_path, cool_s=0.3))
    assert isinstance(run.results[0], Latency)
    (note,) = run.notes
    assert note.startswith("The phone was still hot after 0.3 s of waiting: thermal status")


def test_a_phone_that_throttles_says_so(phone, tmp_path):
    phone.write("heat", "Thermal Status: 0\nThermal Status: 3\n")
    run = measure_android([ONE], 0, settings(tmp_path))
    assert run.after.thermal_status == 3
    assert any(
        note.startswith("The phone throttled while it was measured. Before: thermal status none") for note in run.notes
    )


def test_a_phone_that_says_nothing_of_itself(phone, tmp_path):
    phone.add_program("getprop", "head -c 99999 /dev/zero | tr '\\0' x")
    phone.add_program("dumpsys", "yes nonsense")
    run = measure_android([ONE], 0, settings(tmp_path))
    assert run.device.name == f"{phone.serial} (Android)"
    assert (run.before.thermal_status, run.before.battery_c) == (None, None)
    assert isinstance(run.results[0], Latency)


def test_an_old_phone_without_exit_codes(tmp_path):
    phone = Phone(tmp_path / "phone")
    phone.shell_v2 = False
    with attached(phone):
        good, bad = measure_android(
            [ONE, OTHER], 0, settings(tmp_path, f"case $1 in *{OTHER.sha256}*) exit 5; esac\n{SAYS}")
        ).results
    assert isinstance(good, Latency)
    assert "benchmark_model ended with 5" in str(bad)


def test_a_gpu_that_takes_nothing(phone, tmp_path):
    wanted = AndroidSettings(rounds=1, accelerator="gpu", benchmark_model=str(litert_program(tmp_path)))
    (result,) = measure_android([variants()["float32"]], 0, wanted).results
    assert "The GPU took no part of the file" in str(result)
    assert "--use_gpu=true" in turns(phone)[0]


def test_the_app(phone):
    phone.install_app()
    files = [variants()["float32"], variants()["int8"]]
    run = measure_android(files, 0, AndroidSettings(runner="app", rounds=3, seconds=0.1))
    for result in run.results:
        assert isinstance(result, Latency)
        assert result.runtime.startswith("LiteRT ")
        assert result.accelerator == "XNNPACK"
        assert 0 < result.p50_ms <= result.p90_ms <= result.p99_ms
    assert run.rounds == (3, 3)
    assert [path for path in phone.files() if not path.endswith(".part")] == []


def test_no_app(phone):
    with pytest.raises(SettingsError, match=r"com\.mobileprune\.demo is not installed on"):
        measure_android([ONE], 0, AndroidSettings(runner="app"))


def test_an_app_without_the_activity(phone):
    phone.install_app()
    phone.write("no_activity", "")
    (result,) = measure_android([ONE], 0, AndroidSettings(runner="app", rounds=1)).results
    assert "HeadlessActivity did not start: Error type 3" in str(result)


@pytest.mark.parametrize(
    ("conduct", "said"),
    [
        ("crash", "The app ended without a result. Its log: E AndroidRuntime: FATAL EXCEPTION: main"),
        ("rubbish", "The app's result is not JSON"),
    ],
)
def test_an_app_that_fails(phone, conduct, said):
    phone.install_app()
    phone.write("app_conduct", conduct)
    (result,) = measure_android([variants()["float32"]], 0, AndroidSettings(runner="app", rounds=1)).results
    assert said in str(result)
    assert str(result).isprintable()
    assert phone.files() == []


def test_an_app_that_never_answers(phone):
    phone.install_app()
    (phone.root / "app" / "demo_app.py").write_text("import time\ntime.sleep(60)\n")
    wanted = AndroidSettings(runner="app", rounds=1, timeout_s=1.0)
    (result,) = measure_android([ONE], 0, wanted).results
    assert "The app has written no result after 1 s. It logged nothing." in str(result)


def test_nothing_is_left_when_it_is_interrupted(phone, tmp_path):
    def interrupt(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGUSR2, interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            measure_android([ONE], 0, settings(tmp_path, f"kill -USR2 {os.getpid()}; sleep 60"))
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert phone.files() == []
    deadline = time.monotonic() + 5
    while running(phone):
        assert time.monotonic() < deadline, running(phone)


def test_what_is_left_behind_is_said(phone, tmp_path):
    phone.add_program("rm", 'case "$1" in -rf) echo "rm: busy" >&2; exit 1 ;; *) exec /bin/rm "$@" ;; esac')
    run = measure_android([ONE], 0, settings(tmp_path))
    (note,) = run.notes
    assert "/data/local/tmp/mobileprune may be left on" in note
    assert "rm: busy" in note


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"runner": "magic"}, "Unknown runner 'magic'. Known: benchmark_model, app"),
        ({"accelerator": "npu"}, "Unknown accelerator 'npu'. Known: cpu, gpu"),
        ({"threads": 0}, "threads=0 is not positive"),
        ({"rounds": 0}, "rounds=0 is not positive"),
        ({"seconds": float("nan")}, "seconds=nan is not positive"),
        ({"timeout_s": -1.0}, "timeout_s=-1 is not positive"),
        ({"cool_s": -1.0}, "cool_s=-1 is negative"),
        ({"benchmark_model": None}, "needs LiteRT's program for the phone"),
        ({"benchmark_model": "https://example.com/benchmark_model"}, "is not downloaded: only"),
        ({"benchmark_model": "/no/such/program"}, "There is no file /no/such/program"),
        ({"baseline": 1}, "baseline=1 is none of the 1 variants"),
        ({"serial": "other"}, "No Android device with the serial 'other'"),
    ],
)
def test_arguments_that_cannot_be_meant(phone, tmp_path, changes, said):
    wanted = {"benchmark_model": program(tmp_path, SAYS), **changes}
    with pytest.raises(SettingsError) as failure:
        benchmark_android([ONE], **wanted)
    assert said in str(failure.value)
    assert phone.pushed == []


def test_no_variants():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert benchmark_android([]) == []
