"""Measuring how long a `.tflite` takes, and what the figures are worth."""

from mobileprune.benchmark.host import benchmark_host
from mobileprune.errors import InterpreterError, SettingsError
from mobileprune.records import Latency, Variant


def benchmark(variant: Variant, device: str = "host", threads: int = 1) -> Latency:
    """Times one file. To compare files, `benchmark_host` takes turns between them.

    Args:
        variant: the file.
        device: `"host"`, this machine's processor.
        threads: of the interpreter.

    Raises:
        SettingsError: an unknown device.
        InterpreterError: the file crashed, hung or could not be loaded.

    Example:
        >>> benchmark(variant).p50_ms       # doctest: +SKIP
        0.197
    """
    if device != "host":
        raise SettingsError(f"Unknown device {device!r}. Known: host.")
    result = benchmark_host([variant], threads=threads)[0]
    if isinstance(result, InterpreterError):
        raise result
    return result
