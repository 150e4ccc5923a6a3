import os
import signal
import threading
import time

import pytest
from tiny_models import variants

from mobileprune.benchmark import host
from mobileprune.benchmark.host import benchmark_host, host_device
from mobileprune.errors import InterpreterError, SettingsError
from mobileprune.records import Latency, Variant

QUICK = {"rounds": 5, "min_round_ms": 2.0, "seconds": 0.2}


def test_all_variants_are_measured():
    results = benchmark_host(list(variants().values()), **QUICK)
    assert len(results) == len(variants())
    for recipe, latency in zip(variants(), results, strict=True):
        assert latency.device == host_device()
        assert latency.device.startswith("host (")
        assert latency.runtime.startswith("LiteRT ")
        # XNNPACK has no kernel with 16-bit activations.
        assert (latency.threads, latency.accelerator) == (1, "none" if recipe == "int16x8" else "XNNPACK")
        assert 0 < latency.p50_ms <= latency.p90_ms <= latency.p99_ms
        assert latency.runs >= 5
        assert latency.init_ms > 0
        assert latency.peak_memory_bytes > 0
        assert 0 < latency.ratio_low <= latency.ratio <= latency.ratio_high
        assert Latency.from_json(latency.to_json()) == latency
    assert results[0].ratio == results[0].ratio_low == results[0].ratio_high == 1.0


def test_a_larger_model_is_slower():
    """Thirty times the work: a difference that no neighbour hides."""
    import keras

    from mobileprune.convert import convert

    def variant(filters: int) -> Variant:
        inputs = keras.Input((16, 16, 3))
        x = keras.layers.Conv2D(filters, 3, padding="same")(inputs)
        return convert(keras.Model(inputs, keras.layers.Conv2D(filters, 3, padding="same")(x)))[0]

    large, small = benchmark_host([variant(64), variant(4)], baseline=1, **QUICK)
    assert small.ratio == 1.0
    assert large.ratio_low > 2


def test_a_file_that_cannot_be_loaded_is_a_result_of_its_own():
    good = variants()["float32"]
    first, bad, last = benchmark_host([good, Variant("broken", "int8", b"rubbish"), good], **QUICK)
    assert isinstance(bad, InterpreterError)
    assert "broken_int8.tflite" in str(bad)
    assert first.ratio == 1.0
    assert last.ratio is not None


def test_without_a_baseline_there_is_no_ratio():
    bad, good = benchmark_host([Variant("broken", "int8", b"rubbish"), variants()["float32"]], **QUICK)
    assert isinstance(bad, InterpreterError)
    assert good.p50_ms > 0
    assert (good.ratio, good.ratio_low, good.ratio_high) == (None, None, None)


def test_a_crash_in_mid_run_is_a_result_and_leaves_nothing_running(monkeypatch):
    pids = []
    play = host._play

    def kill_one_later(contestants, *arguments):
        pids.extend(contestant.runner.pid for contestant in contestants)
        killer = threading.Timer(0.1, os.kill, (pids[1], signal.SIGKILL))
        killer.start()
        play(contestants, *arguments)
        killer.join()

    monkeypatch.setattr(host, "_play", kill_one_later)
    good = variants()["float32"]
    first, killed, last = benchmark_host([good] * 3, rounds=40, min_round_ms=10.0)
    assert "SIGKILL" in str(killed)
    assert first.ratio == 1.0
    assert last.runs > 0
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_time_is_bounded_by_the_budget():
    begin = time.monotonic()
    (latency,) = benchmark_host([variants()["float32"]], rounds=100_000, min_round_ms=5.0, seconds=0.3)
    assert latency.runs > 0
    assert time.monotonic() - begin < 20


def test_arguments_that_cannot_be_meant():
    assert benchmark_host([]) == []
    for wrong in ({"baseline": 1}, {"rounds": 0}, {"seconds": 0.0}, {"threads": 0}, {"min_round_ms": -1.0}):
        with pytest.raises(SettingsError):
            benchmark_host([variants()["float32"]], **wrong)
