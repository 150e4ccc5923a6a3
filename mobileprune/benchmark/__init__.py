"""Measuring how long a `.tflite` takes, and what the figures are worth."""

from mobileprune.benchmark.host import benchmark_host
from mobileprune.errors import InterpreterError, SettingsError, known_names
from mobileprune.records import Latency, Variant

DEVICES = ("host", "arm64")


def benchmark(variant: Variant, device: str = "host", threads: int = 1) -> Latency:
    """Times one file. To compare files, `benchmark_host` and `benchmark_arm64` take turns between them.

    Args:
        variant: the file.
        device: `"host"`, this machine's processor, or `"arm64"`, which is emulated where this machine is none: then the
            record's `device` says so, and its times are nobody's latency.
        threads: of the interpreter.

    Raises:
        SettingsError: an unknown device, or one that is not set up.
        InterpreterError: the file crashed, hung or could not be loaded.

    Example:
        >>> benchmark(variant).p50_ms       # doctest: +SKIP
        0.197
    """
    if device == "host":
        result = benchmark_host([variant], threads=threads)[0]
    elif device == "arm64":
        # Not above, where `python -m mobileprune.benchmark.arm64_setup` would find its module loaded already.
        from mobileprune.benchmark.arm64_checks import benchmark_arm64

        result = benchmark_arm64([variant], threads=threads)[0]
    else:
        raise SettingsError(f"Unknown device {device!r}. Known: {known_names(DEVICES)}.")
    if isinstance(result, InterpreterError):
        raise result
    return result
