"""Operators' times, as the runtime tells them."""

import json
import subprocess
import sys

import pytest
from tiny_models import variants

from mobileprune.benchmark import profiles
from mobileprune.benchmark.profiles import profile_host
from mobileprune.errors import InterpreterError, SettingsError


def test_operators_are_those_that_run_and_the_largest_takes_the_time():
    import keras

    from mobileprune.convert import to_float_flatbuffer

    inputs = keras.Input((64, 64, 3))
    x = keras.layers.DepthwiseConv2D(3)(keras.layers.Conv2D(64, 3)(inputs))
    x = keras.layers.Conv2D(128, 3)(x)  # nearly all of the work
    content = to_float_flatbuffer(keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(x)))
    found = profile_host(content, runs=8)
    assert [each.name.split(" (")[0] for each in found[:3]] == ["Convolution"] * 3
    assert "DWConv" in found[1].name
    assert all(each.delegated and each.ms >= 0 for each in found)
    assert sum(each.share for each in found) == pytest.approx(1)
    assert max(found, key=lambda each: each.ms) == found[2]
    assert found[2].share > 0.5


def test_what_no_delegate_takes_is_said():
    # XNNPACK has no kernel with 16-bit activations.
    found = profile_host(variants()["int16x8"].content, runs=4)
    assert {each.delegated for each in found} == {False}
    assert "CONV_2D" in {each.name for each in found}


@pytest.mark.parametrize("content", [b"", b"no flatbuffer", b"\x1c\0\0\0TFL3" + b"\0" * 200])
def test_a_file_that_is_none_is_one_clear_error(content):
    with pytest.raises(InterpreterError, match=r"^x\.tflite cannot be profiled") as caught:
        profile_host(content, name="x.tflite")
    assert "\n" not in str(caught.value)


def test_a_worker_that_hangs_is_stopped():
    with pytest.raises(InterpreterError, match=r"within 0\.01 s"):
        profile_host(variants()["float32"].content, timeout_s=0.01)


def test_arguments_that_cannot_be_meant():
    for wrong in ({"threads": 0}, {"runs": 0}, {"timeout_s": 0.0}):
        with pytest.raises(SettingsError):
            profile_host(b"", **wrong)


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "[]",
        "{}",
        '{"operators": []}',
        '{"operators": [[]]}',
        '{"operators": [[["a", true, "b"]]]}',
        '{"operators": [[["a", true, 1]], [["b", true, 1]]]}',
        '{"operators": [[["a", true]]]}',
        '{"operators": 7}',
        '{"operators": [[["a", true, NaN]]]}',
        '{"operators": [[["a", true, -5]]]}',
    ],
)
def test_rubbish_is_an_error(monkeypatch, answer):
    monkeypatch.setattr(profiles, "_answer", lambda *_: answer.encode())
    with pytest.raises(InterpreterError, match="answered rubbish"):
        profile_host(b"")


def test_names_are_printable_and_the_middle_half_is_averaged(monkeypatch):
    runs = [[["a\x1b[31m" + "x" * 500, 1, time], ["b", 0, 1000]] for time in (1000, 1000, 3000, 90_000)]
    monkeypatch.setattr(profiles, "_answer", lambda *_: json.dumps({"operators": runs}).encode())
    first, second = profile_host(b"")
    assert (first.ms, second.ms, first.share) == (2.0, 1.0, pytest.approx(2 / 3))
    assert first.name.startswith("a?[31mx")
    assert len(first.name) == 128


def test_the_worker_answers_nothing_else_on_stdout(tmp_path):
    path = variants()["float32"].save(tmp_path / "a.tflite")
    command = [sys.executable, "-P", "-m", "mobileprune.benchmark.profile_worker", str(path), "2", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, list(json.loads(done.stdout))) == (0, ["operators"])
