"""Timing one file."""

import pytest

import mobileprune as mp
from mobileprune.benchmark import devices_named
from mobileprune.errors import InterpreterError, SettingsError


def test_one_file_is_timed(tmp_path):
    model = mp.build_model("mobilenet_small", mp.Preprocess(32, 32, "grayscale"), classes=3)
    (variant,) = mp.convert(model)
    latency = mp.benchmark(variant)
    assert latency.device.startswith("host (")
    assert 0 < latency.p50_ms <= latency.p90_ms <= latency.p99_ms
    assert latency.runs > 0


def test_an_unknown_device_is_refused():
    with pytest.raises(SettingsError, match="Known: host"):
        mp.benchmark(mp.Variant("m", "float32", b""), device="toaster")
    with pytest.raises(SettingsError, match="Known: host, arm64, all"):
        devices_named("toaster")


def test_all_devices_are_those_that_are_set_up():
    assert devices_named("host") == ("host",)
    assert devices_named("arm64") == ("arm64",)
    assert devices_named("all") == (("host",) if mp.arm64_missing() else ("host", "arm64"))


def test_arm64_refuses_what_it_cannot_do():
    for wrong in ({"xnnpack": False}, {"compare": True, "rounds": 5}):
        with pytest.raises(SettingsError):
            mp.benchmark_files([mp.Variant("m", "float32", b"")] * 2, "arm64", **wrong)


def test_a_file_that_is_none_is_an_error():
    with pytest.raises(InterpreterError):
        mp.benchmark(mp.Variant("m", "float32", b"no flatbuffer"))
