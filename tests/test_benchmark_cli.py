"""`mobileprune benchmark`, run as a person would, on files that need not be mobileprune's own."""

import subprocess
import sys

import pytest
from tiny_models import variants


def benchmark(*arguments, expected=0):
    command = [sys.executable, "-m", "mobileprune.cli", "benchmark", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == expected, done.stderr
    return done.stdout if expected != 2 else done.stderr


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A small file, the same with two of its classes exchanged, and one of integers; none has a manifest."""
    folder = tmp_path_factory.mktemp("files")
    return {name: variants()[name].save(folder / f"{name}.tflite") for name in ("float32", "float16", "int16x8")}


def test_verdicts_are_the_last_lines(files):
    text = benchmark(files["float32"], files["int16x8"], files["float32"], "--compare", "--seconds=4")
    *_, slow, same = text.strip().splitlines()
    # The runtime's own kernels take many times as long as XNNPACK's.
    assert " times slower than " in slow
    assert "int16x8.tflite #2 is " in slow
    assert "float32.tflite #3 against " in same


def test_threads_and_kernels_are_measured_one_after_another(files):
    text = benchmark(files["float32"], files["float16"], "--rounds=5", "--threads=1,2", "--noxnnpack")
    assert "1 thread, accelerator: none" in text
    assert "2 threads, accelerator: none" in text
    assert text.count("float16.tflite ") >= 2
    assert "--compare says which differences are real" in text
    assert "Vector instructions: " in text
    assert "not a phone's" in text


def test_the_operators_that_take_the_time_are_listed(files):
    text = benchmark(files["float32"], "--rounds=5", "--profile")
    assert "float32.tflite: " in text
    assert "DWConv" in text
    assert "XNNPACK" in text


def test_a_file_that_fails_is_named_and_the_others_are_measured(files, tmp_path):
    broken = tmp_path / "broken.tflite"
    broken.write_bytes(b"rubbish")
    text = benchmark(files["float32"], broken, "--rounds=5", expected=3)
    assert "failed: broken.tflite: " in text
    assert text.count(" ms") >= 4


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--threads=0"], "--threads=0: numbers from 1 to 64"),
        (["--threads=1,many"], "--threads=1,many"),
        (["--device=toaster"], "Unknown device 'toaster'. Known: host, arm64, all, and phones by their serials."),
        (["--compare"], "--compare needs two or more files"),
        (["--device=arm64", "--noxnnpack"], "On arm64 XNNPACK cannot be left out"),
        (["--profile", "--noxnnpack"], "--profile is for --device=host with XNNPACK"),
        (["missing.tflite"], "Cannot read missing.tflite"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_cannot_be_meant_is_refused(files, flags, said):
    error = benchmark(files["float32"], *flags, expected=2)
    assert error.startswith("error: ")
    assert said in error
    assert len(error.strip().splitlines()) == 1
