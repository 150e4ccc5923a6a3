"""From a Keras model and a device's name to the latency of any choice of its channels."""

import dataclasses
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mobileprune.benchmark.android_settings import AndroidSettings
from mobileprune.benchmark.batch import PASSES, benchmark_batch
from mobileprune.benchmark.inputs import noise_images
from mobileprune.channel_groups import ChannelGraph
from mobileprune.convert import convert
from mobileprune.errors import InterpreterError, MobilePruneWarning, SettingsError, known_names
from mobileprune.latency_table import LatencyTable, MeasureFiles
from mobileprune.network_latency import LatencyModel
from mobileprune.records import Latency

# Where a latency is meant: a name, a phone, what times files there, or what has been measured already.
Device = str | AndroidSettings | MeasureFiles | LatencyModel

# Measurements in one batch from which slow moments of this machine can be told, however few files there are.
_FEWEST_MEASUREMENTS = 36


def _host(threads: int) -> MeasureFiles:
    return lambda variants: benchmark_batch(
        variants, threads=threads, passes=max(PASSES, -(-_FEWEST_MEASUREMENTS // max(1, len(variants))))
    )


def _arm64(threads: int) -> MeasureFiles:
    # It loads what emulation needs only when it is asked for.
    from mobileprune.benchmark.arm64_checks import benchmark_arm64

    def measure(variants: Any) -> list[Latency | InterpreterError]:
        return [benchmark_arm64([variant], threads=threads)[0] for variant in variants]

    return measure


def _phone(settings: AndroidSettings) -> MeasureFiles:
    from mobileprune.benchmark.android import measure_android

    def measure(variants: Any) -> list[Latency | InterpreterError]:
        run = measure_android(list(variants), 0, settings)
        for note in run.notes:
            warnings.warn(note, MobilePruneWarning, stacklevel=2)
        return list(run.results)

    return measure


DEVICES: dict[str, Callable[[int], MeasureFiles]] = {"host": _host, "arm64": _arm64}


def cache_folder() -> Path:
    """Where tables are kept: `$MOBILEPRUNE_CACHE`, else `~/.cache/mobileprune`, in a folder `latency`."""
    given = os.environ.get("MOBILEPRUNE_CACHE")
    return (Path(given) if given else Path.home() / ".cache" / "mobileprune") / "latency"


def measuring(device: str | AndroidSettings | MeasureFiles, threads: int = 1) -> MeasureFiles:
    """What times files on a device: `"host"`, `"arm64"` (emulated on other machines), a phone, or a function.

    Raises:
        SettingsError: an unknown name, or settings of a phone that cannot be meant.
    """
    if isinstance(device, AndroidSettings):
        device.check()
        return _phone(dataclasses.replace(device, threads=threads))
    if callable(device):
        return device
    if device not in DEVICES:
        raise SettingsError(f"Unknown device {device!r}. Known: {known_names(DEVICES)}.")
    return DEVICES[device](threads)


def latency_model(
    model: Any,
    device: str | AndroidSettings | MeasureFiles = "host",
    *,
    recipe: str = "float32",
    threads: int = 1,
    cache: str | Path | None = None,
) -> LatencyModel:
    """Converts a model and measures what its latency with any choice of channels follows from.

    What the table of the device holds already is not measured again, except for the whole network.

    Args:
        model: a built Sequential or functional model.
        device: `"host"`, `"arm64"`, a phone as `AndroidSettings` (with few `rounds` and `seconds`: there are hundreds
            of tiny files), or a function that times files: for each variant its `Latency`, or the `InterpreterError`
            that it ended with.
        recipe: of the files that will ship. Integer ones are calibrated on noise: ranges take no time.
        threads: of the interpreter.
        cache: the folder of the table; by default `cache_folder()`.

    Raises:
        ModelError: an op that cannot be timed or narrowed; it names the layer.
        SettingsError: an unknown device, or a phone that is not ready.
        InterpreterError: the device cannot run the network.

    Example:
        >>> latency = latency_model(model)                              # doctest: +SKIP
        >>> plan = plan_channels(model, latency_ms=0.15, device=latency)        # doctest: +SKIP
    """
    graph = ChannelGraph(model)
    (variant,) = convert(model, [recipe], calibration=noise_images(model.inputs[0].shape, model.name, count=2))
    table = LatencyTable(measuring(device, threads), cache_folder() if cache is None else cache)
    found = LatencyModel(graph, variant.content, table)
    found.calibrate()
    return found
