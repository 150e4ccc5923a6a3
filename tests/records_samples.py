"""Records with plausible figures, for tests of what reads them."""

import dataclasses
import hashlib

from mobileprune.records import (
    Latency,
    Manifest,
    ModelPort,
    Port,
    Preprocess,
    RuntimeCheck,
    Stage,
    VariantRecord,
    Verification,
)

RUNTIME = "LiteRT 2.1.0"
INTEGER = Port("int8", (1, 32, 32, 1), 0.01, -3)


def latency(p50_ms: float, ratio: float | None = 1.0) -> Latency:
    """A latency on this host; its interval is 5% to each side."""
    return Latency(
        device="host (test)",
        runtime=RUNTIME,
        threads=1,
        accelerator="XNNPACK",
        p50_ms=p50_ms,
        p90_ms=1.1 * p50_ms,
        p99_ms=1.2 * p50_ms,
        runs=100,
        init_ms=3.0,
        peak_memory_bytes=4096,
        ratio=ratio,
        ratio_low=None if ratio is None else 0.95 * ratio,
        ratio_high=None if ratio is None else 1.05 * ratio,
    )


def variant(model: str, recipe: str, ms: float | None = 1.0, **changes) -> VariantRecord:
    """A verified variant of 100 kB whose accuracies are 0.9, or as `changes` says."""
    file = f"net_{model}_{recipe}.tflite"
    integer = recipe == "int8"
    facts = {
        "file": file,
        "model": model,
        "recipe": recipe,
        "bytes": 100_000,
        "gzip_bytes": 90_000,
        "sha256": hashlib.sha256(file.encode()).hexdigest(),
        "macs": 6_000_000,
        "params": 200_000,
        "sparsity": 0.0,
        "input": INTEGER if integer else Port("float32", (1, 32, 32, 1)),
        "output": Port("int8", (1, 2), 0.1, 4) if integer else Port("float32", (1, 2)),
        "verified": Verification(64, 0.98, 0.5, 0.01, 31.5, RUNTIME),
        "verified_runtimes": (RUNTIME,),
        "runtimes": (RuntimeCheck(RUNTIME, True, "", 0.98, 0.5), RuntimeCheck("Old Runtime", False, "It crashed.")),
        "accuracy": 0.9,
        "validation_accuracy": 0.9,
        "latency": () if ms is None else (latency(ms, ms),),
    }
    return VariantRecord(**{**facts, **changes})


def manifest(*variants: VariantRecord, **changes) -> Manifest:
    """A run with those variants."""
    facts = {
        "schema": 1,
        "mobileprune": "0.1.0",
        "versions": dict.fromkeys(("tensorflow", "keras", "ai-edge-litert", "litert-quantizer", "numpy"), "1.2.3"),
        "host": {"device": "host (test)", "cores": 2, "system": "Linux x86_64", "python": "3.11.7"},
        "command": "python pipelines/classify_mobile.py --preset=smoke",
        "dataset": {
            "name": "animals",
            "source": "800 images in 2 classes from the folder 'animals'.",
            "images": {"train": 500, "validation": 100, "calibration": 100, "test": 100},
            "skipped": [],
        },
        "labels": ("cat", "dog"),
        "preprocess": Preprocess(32, 32, color="grayscale"),
        "input": ModelPort((1, 32, 32, 1), "float32"),
        "output": ModelPort((1, 2), "float32", "logits"),
        "stages": (
            Stage("base", 61.2, accuracy=0.885, macs=6_000_000, params=200_000, sparsity=0.0),
            Stage("convert", 3.0),
        ),
        "variants": variants,
        "recommended": {"smallest": variants[0].file, "most_accurate": variants[0].file},
    }
    return Manifest(**{**facts, **changes})


def changed(record, **changes):
    """The record with other fields."""
    return dataclasses.replace(record, **changes)
