"""How long files take on an Android phone, through adb."""

import warnings
from collections.abc import Sequence
from pathlib import Path

from mobileprune.benchmark.android_comparison import AndroidRun, Comparison
from mobileprune.benchmark.android_settings import AndroidSettings
from mobileprune.errors import InterpreterError, MobilePruneWarning, SettingsError
from mobileprune.records import Latency, Variant


def benchmark_android(
    variants: Sequence[Variant],
    baseline: int = 0,
    *,
    serial: str | None = None,
    threads: int = 1,
    rounds: int = 20,
    seconds: float = 10.0,
    seed: int = 0,
    timeout_s: float = 120.0,
    runner: str = "benchmark_model",
    benchmark_model: str | Path | None = None,
    accelerator: str = "cpu",
    keep: bool = False,
    cool_s: float = 300.0,
    cool_c: float = 40.0,
    reconnect_s: float = 60.0,
) -> list[Latency | InterpreterError]:
    """Times variants against each other on an Android phone. For the phone's state beside it: `measure_android`.

    Args:
        variants: the files.
        baseline: which of them the others are compared with, by index.
        serial, threads, rounds, seconds, seed, timeout_s, runner, benchmark_model, accelerator, keep, cool_s, cool_c,
            reconnect_s: see `AndroidSettings`.

    Returns:
        For each variant its latency, or the error that ended its part: one crash does not end the comparison. `ratio`
        is the median over rounds of this file's median time over the baseline's. Of `benchmark_model` p90 and p99 are
        interpolated between the percentiles that it prints. Rounds that are missing, and what else the notes of
        `measure_android` say, come as warnings.

    Raises:
        SettingsError: an argument that cannot be meant, no adb program, no phone or several, one that is not ready, or
            no runner for it.
        InterpreterError: the phone was lost before the first round, or takes no files.

    Example:
        >>> base, small = benchmark_android([variant, smaller], benchmark_model="benchmark_model")  # doctest: +SKIP
        >>> small.device, small.ratio  # doctest: +SKIP
        ('Google Pixel 6 (Google GS101, Android 14)', 0.48)
    """
    if not variants:
        return []
    settings = AndroidSettings(
        serial=serial,
        threads=threads,
        rounds=rounds,
        seconds=seconds,
        seed=seed,
        timeout_s=timeout_s,
        runner=runner,
        benchmark_model=None if benchmark_model is None else str(benchmark_model),
        accelerator=accelerator,
        keep=keep,
        cool_s=cool_s,
        cool_c=cool_c,
        reconnect_s=reconnect_s,
    )
    run = measure_android(variants, baseline, settings)
    for note in run.notes:
        warnings.warn(note, MobilePruneWarning, stacklevel=2)
    return list(run.results)


def measure_android(variants: Sequence[Variant], baseline: int, settings: AndroidSettings) -> AndroidRun:
    """What `benchmark_android` does, with the phone's facts and its state before and after.

    Args:
        variants: at least one file.
        baseline: which of them the others are compared with, by index.
        settings: how the phone is used.

    Raises:
        SettingsError, InterpreterError: see `benchmark_android`.

    Example:
        >>> run = measure_android([variant], 0, AndroidSettings(benchmark_model="benchmark_model"))  # doctest: +SKIP
        >>> run.before.thermal_status, run.after.battery_c  # doctest: +SKIP
        (0, 31.5)
    """
    settings.check()
    if not 0 <= baseline < len(variants):
        raise SettingsError(f"baseline={baseline} is none of the {len(variants)} variants, which count from 0.")
    comparison = Comparison(variants, settings)
    try:
        return comparison.run(baseline)
    except BaseException:
        if left := comparison.clean():
            warnings.warn(left, MobilePruneWarning, stacklevel=2)
        raise
