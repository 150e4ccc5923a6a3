import os
import signal
import threading
import time

import numpy as np
import pytest
from tiny_models import variants

from mobileprune.benchmark import turns
from mobileprune.benchmark.comparison import CONFIDENCE, difference_of
from mobileprune.benchmark.host import benchmark_host, compare_host, trace_host
from mobileprune.benchmark.host_facts import host_device
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
        assert latency.first_ms > 0
        assert (latency.restarts, latency.rounds, latency.confidence) == (1, 5, 0.95)
        assert latency.drift is None  # five rounds are too few to say
        assert 0 <= latency.outliers < 1
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
    play = turns.play

    def kill_one_later(contestants, *arguments):
        pids.extend(contestant.runner.pid for contestant in contestants)
        killer = threading.Timer(0.1, os.kill, (pids[1], signal.SIGKILL))
        killer.start()
        play(contestants, *arguments)
        killer.join()

    monkeypatch.setattr(turns, "play", kill_one_later)
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


def test_the_runtimes_own_kernels_can_be_timed():
    (latency,) = benchmark_host([variants()["float32"]], xnnpack=False, **QUICK)
    assert (latency.accelerator, latency.p50_ms > 0) == ("none", True)
    assert latency.runtime.endswith("without XNNPACK")


def large_and_small() -> list[Variant]:
    import keras

    from mobileprune.convert import convert

    inputs = keras.Input((16, 16, 3))
    large = keras.Model(inputs, keras.layers.Conv2D(256, 3)(inputs))
    return [convert(large)[0], variants()["float32"]]


def test_a_comparison_starts_processes_anew_and_finds_what_is_there():
    large, small = large_and_small()
    results = compare_host([large, small, Variant("broken", "int8", b"rubbish"), large], seconds=1.5, restarts=6)
    assert isinstance(results[2], InterpreterError)
    assert [difference_of(results[at]) for at in (0, 1)] == ["no difference", "faster"]
    assert results[0].ratio == results[0].ratio_low == results[0].ratio_high == 1.0
    for at in (0, 1, 3):
        assert results[at].restarts == 6
        assert results[at].rounds >= 6
        assert results[at].ratio_low <= results[at].ratio <= results[at].ratio_high
        # Six pairs are not enough for what was wanted of three comparisons.
        assert results[at].confidence == 1 - 2 / 64 < CONFIDENCE
        assert Latency.from_json(results[at].to_json()) == results[at]


def test_a_trace_holds_every_process_and_round():
    (trace,) = trace_host([variants()["float32"]], seconds=1.0, restarts=6)
    assert len(trace.times) == len(trace.facts) == 6
    assert all(times.ndim == 2 and times.shape[1] == 4 and (times > 0).all() for times in trace.times)
    assert len(trace.bursts) == sum(times.size for times in trace.times)


def test_a_comparisons_time_is_bounded():
    begin = time.monotonic()
    compare_host([variants()["float32"]] * 2, seconds=2.0, restarts=60)
    assert time.monotonic() - begin < 30  # sixty starts would take longer
    with pytest.raises(SettingsError, match="at least 6"):
        compare_host([variants()["float32"]], restarts=5)


def test_whose_turn_it_is():
    orders = [list(turns.order(3, 4, np.random.default_rng(seed))) for seed in range(20)]
    for order in orders:
        there, back = order[:3], order[:3][::-1]
        assert order == [*there, *back, *back, *there]
        assert sorted(there) == [0, 1, 2]
    assert len({tuple(order) for order in orders}) > 3
