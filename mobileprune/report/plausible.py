"""Whether a manifest from a file has the types and ranges that reports count on: anybody may have written it."""

import math
import types
import typing
from collections.abc import Iterator
from typing import Any

from mobileprune.errors import OutputError
from mobileprune.json_record import Record
from mobileprune.run_records import Manifest

_POSITIVE = {"bytes", "gzip_bytes", "p50_ms", "p90_ms", "p99_ms", "ratio", "ratio_low", "ratio_high", "histogram"}
_SHARES = {"accuracy", "validation_accuracy", "agreement", "validation_agreement", "sparsity"}
# No run writes more, and a page of more would help nobody.
_MOST = {"variants": 1000, "stages": 1000, "latency": 100, "layers": 300, "curve": 200, "histogram": 20}
_SPLITS = ("train", "validation", "calibration", "test")


def check_plausible(manifest: Manifest, source: str) -> None:
    """Refuses a manifest that no run can have written.

    Args:
        manifest: as read from a file.
        source: the file, for the message.

    Raises:
        OutputError: a value of another type or out of range; the message says where.
    """
    fault = next(_faults(manifest), None)
    if fault:
        raise OutputError(f"{source} is no run's manifest: {fault}. Make the run again.")


def _faults(manifest: Manifest) -> Iterator[str]:
    yield from _record(manifest, "")
    if not manifest.variants:
        yield "it has no variants"
    files = {entry.file for entry in manifest.variants}
    yield from (f"recommended names {file!r:.60}" for file in manifest.recommended.values() if file not in files)
    data, host = manifest.dataset, manifest.host
    images = data.get("images")
    if not isinstance(images, dict) or set(images) != set(_SPLITS):
        yield f"dataset.images does not count {', '.join(_SPLITS)}"
    elif any(type(count) is not int or count < 0 for count in images.values()) or images["test"] < 1:
        yield f"dataset.images is {images}"
    for name in ("name", "source"):
        yield from _value(data.get(name), str, f"dataset.{name}")
    for name in ("device", "system", "python"):
        yield from _value(host.get(name), str, f"host.{name}")
    yield from _value(host.get("cores"), int | None, "host.cores")
    skipped = data.get("skipped")
    if not isinstance(skipped, list):
        yield "dataset.skipped is no list"
        return
    for entry in skipped:
        known = isinstance(entry, dict) and all(isinstance(entry.get(name), str) for name in ("file", "reason"))
        if not known:
            yield f"dataset.skipped has {entry!r:.60}"


def _record(record: Record, place: str) -> Iterator[str]:
    for name, hint in typing.get_type_hints(type(record)).items():
        yield from _value(getattr(record, name), hint, f"{place}{name}")


def _value(value: Any, hint: Any, place: str) -> Iterator[str]:
    """What is wrong with a value, given its type in the record."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any or (value is None and type(None) in arguments):
        return
    if origin in (typing.Union, types.UnionType):
        yield from _value(value, next(kind for kind in arguments if kind is not type(None)), place)
    elif origin is tuple and isinstance(value, tuple):
        if len(value) > _MOST.get(place.rpartition(".")[2], len(value)):
            yield f"{place} has {len(value):,} entries"
        for at, item in enumerate(value):
            yield from _value(item, arguments[0], f"{place}[{at}]")
    elif origin is dict and isinstance(value, dict):
        for key, item in value.items():
            yield from _value(item, arguments[1], f"{place}[{key!r:.40}]")
    elif origin is typing.Literal:
        if value not in arguments:
            yield f"{place} is {value!r:.60}"
    elif isinstance(hint, type) and issubclass(hint, Record) and isinstance(value, hint):
        yield from _record(value, f"{place}.")
    elif (hint is float and type(value) in (int, float)) or (hint is int and type(value) is int):
        yield from _number(value, place)
    elif not (hint in (str, bool) and type(value) is hint):
        yield f"{place} is {value!r:.60}"
    elif hint is str and any("\ud800" <= letter <= "\udfff" for letter in value):
        yield f"{place} is no text"


def _number(value: float, place: str) -> Iterator[str]:
    name = place.rpartition(".")[2].partition("[")[0]
    low = name in _POSITIVE and value <= 0
    if not -1e300 < value < 1e300 or math.isnan(value) or low or (name in _SHARES and not 0 <= value <= 1):
        yield f"{place} is {value!r:.60}"
