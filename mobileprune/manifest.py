"""Putting together and keeping `manifest.json`."""

import gzip
import importlib.metadata
import os
import platform
from collections.abc import Iterable
from pathlib import Path

from mobileprune.data import Dataset
from mobileprune.files import read_json, write_json
from mobileprune.json_record import Json
from mobileprune.run_records import Manifest

SCHEMA = 1
FILE = "manifest.json"
_STANDS_ON = ("tensorflow", "keras", "ai-edge-litert", "litert-quantizer", "numpy")


def write_manifest(folder: Path, manifest: Manifest) -> Path:
    """Writes `manifest.json`, atomically, and returns its path."""
    return write_json(folder / FILE, manifest.to_json())


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a run's folder.

    Raises:
        OutputError: there is none, or it is not a manifest.
    """
    return Manifest.from_json(read_json(folder / FILE))


def versions(names: Iterable[str] = _STANDS_ON) -> dict[str, str]:
    """Installed versions by package name."""
    return {name: importlib.metadata.version(name) for name in names}


def own_version() -> str:
    """The installed version of mobileprune."""
    return importlib.metadata.version("mobileprune")


def host() -> Json:
    """What this machine is: figures in a manifest were measured on it unless they name another device."""
    from mobileprune.benchmark.host_facts import host_device, simd_features

    return {
        "device": host_device(),
        "cores": os.cpu_count(),
        "simd": list(simd_features()),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def dataset_facts(dataset: Dataset) -> Json:
    """Name, source, size of each split, and what was skipped."""
    splits = (dataset.train, dataset.validation, dataset.calibration, dataset.test)
    return {
        "name": dataset.name,
        "source": dataset.source,
        "images": {split.name: len(split) for split in splits},
        "skipped": [{"file": str(entry.path), "reason": entry.reason} for entry in dataset.skipped],
    }


def gzip_bytes(content: bytes) -> int:
    """How large the bytes are as a compressed download."""
    return len(gzip.compress(content, 9, mtime=0))
