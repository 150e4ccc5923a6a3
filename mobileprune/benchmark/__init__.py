"""Measuring how long a `.tflite` takes, and what the figures are worth."""

import dataclasses
from collections.abc import Sequence

from mobileprune.benchmark.adb import android_devices, choose_device
from mobileprune.benchmark.android import benchmark_android
from mobileprune.benchmark.android_settings import AndroidSettings
from mobileprune.benchmark.host import COMPARISON_S, benchmark_host, compare_host
from mobileprune.errors import InterpreterError, SettingsError, known_names
from mobileprune.records import Latency, Variant

DEVICES = ("host", "arm64")
# A comparison stands on several processes of each file; an emulated one takes its time.
_ARM64_ROUNDS, _ARM64_COMPARISON_ROUNDS = 3, 6
_HOST_ROUNDS = 30


def benchmark(
    variant: Variant, device: str = "host", threads: int = 1, *, android: AndroidSettings | None = None
) -> Latency:
    """Times one file. To compare files, use `benchmark_files`, which takes turns between them.

    Args:
        variant: the file.
        device: `"host"`, this machine's processor; `"arm64"`, which is emulated on other machines: then the
            record's `device` says so, and its times are nobody's latency; or the serial of a phone that adb lists.
        threads: of the interpreter.
        android: how a phone is used; it needs a runner.

    Raises:
        SettingsError: an unknown device, or one that is not set up.
        InterpreterError: the file crashed, hung or could not be loaded.

    Example:
        >>> benchmark(variant).p50_ms       # doctest: +SKIP
        0.197
    """
    (result,) = benchmark_files([variant], device, threads=threads, android=android)
    if isinstance(result, InterpreterError):
        raise result
    return result


def devices_named(name: str, *, phones: bool = False) -> tuple[str, ...]:
    """The devices that a name means: itself, or with `"all"` those that are set up.

    Args:
        name: `"host"`, `"arm64"`, `"all"` or the serial of a phone.
        phones: whether `"all"` means the phones that adb lists as ready, too.

    Raises:
        SettingsError: there is no such device.
    """
    if name == "all":
        from mobileprune.benchmark.arm64 import arm64_missing

        attached = [device.serial for device in android_devices() if device.ready] if phones else []
        return (*(("host",) if arm64_missing() else DEVICES), *attached)
    if name not in DEVICES:
        try:
            choose_device(name)
        except SettingsError as error:
            known = f"Known: {known_names((*DEVICES, 'all'))}, and phones by their serials."
            raise SettingsError(f"Unknown device {name!r}. {known} {error}") from error
    return (name,)


def benchmark_files(
    variants: Sequence[Variant],
    device: str = "host",
    baseline: int = 0,
    *,
    threads: int = 1,
    compare: bool = False,
    seconds: float = COMPARISON_S,
    rounds: int | None = None,
    xnnpack: bool = True,
    seed: int = 0,
    android: AndroidSettings | None = None,
) -> list[Latency | InterpreterError]:
    """Times files beside each other on one device.

    Args:
        variants: the files.
        device: see `benchmark`.
        baseline: which file the others are compared with, by index.
        threads: of each interpreter.
        compare: take as long as it needs to say which differences are real; `benchmark.comparison.verdicts` says it.
        seconds: with `compare`, what each comparison may cost on this machine.
        rounds: turns of each file; by default 30 on this machine (a comparison there goes by `seconds`), 3 on arm64
            and 6 to compare, and on a phone as in `android`.
        xnnpack: whether that delegate may take what it can.
        seed: of the inputs, the order and the bootstrap.
        android: how a phone is used: `device`, `threads`, `rounds` and `seed` replace its own.

    Returns:
        For each file its latency, or the error that ended it.

    Raises:
        SettingsError: an unknown device or one that is not set up, or an argument that cannot be meant.
    """
    if device == "host":
        if compare:
            return compare_host(variants, baseline, threads=threads, seconds=seconds, seed=seed, xnnpack=xnnpack)
        return benchmark_host(
            variants, baseline, threads=threads, rounds=rounds or _HOST_ROUNDS, seed=seed, xnnpack=xnnpack
        )
    if device == "arm64":
        # Not above, where `python -m mobileprune.benchmark.arm64_setup` would find its module loaded already.
        from mobileprune.benchmark.arm64_checks import benchmark_arm64

        if not xnnpack:
            raise SettingsError("On arm64 XNNPACK cannot be left out.")
        turns = rounds or (_ARM64_COMPARISON_ROUNDS if compare else _ARM64_ROUNDS)
        if compare and turns < _ARM64_COMPARISON_ROUNDS:
            raise SettingsError(f"rounds={turns}: a comparison needs at least {_ARM64_COMPARISON_ROUNDS}.")
        return benchmark_arm64(variants, baseline, threads=threads, rounds=turns, seed=seed)
    devices_named(device)
    if not xnnpack:
        raise SettingsError("On a phone XNNPACK cannot be left out.")
    settings = android or AndroidSettings()
    told = dataclasses.asdict(settings) | {"serial": device, "threads": threads, "seed": seed}
    return benchmark_android(variants, baseline, **(told | {"rounds": rounds or settings.rounds}))
