"""Records with plausible figures, for tests of what reads them."""

import dataclasses
import hashlib

from mobileprune.records import Latency, Preprocess, RuntimeCheck, Verification
from mobileprune.run_records import Epoch, LayerFacts, Manifest, ModelPort, Port, Stage, VariantRecord

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
        "minimum_runtime": "1.14.0",
        "float_ops": ("ELU of 'elu_3'",) if integer else (),
        "notes": (),
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
        "host": {"device": "host (test)", "cores": 2, "simd": ["avx2"], "system": "Linux x86_64", "python": "3.11.7"},
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


def default_run() -> Manifest:
    """A run with everything that a report can show: five models, layers, epochs, spread latencies."""
    recipes = {"float32": (1.0, 1.0), "float16": (0.52, 1.0), "dynamic_int8": (0.30, 1.98), "int8": (0.34, 0.47)}
    models = {"base": (1.0, 1.0, 0.0, 0.0), "s80": (1.0, 1.0, 0.8, 0.2), "c50": (0.29, 0.51, 0.0, -0.05)}
    models |= {"c50_s80": (0.3, 0.5, 0.77, -0.6), "control": (0.51, 0.57, 0.0, 0.03)}
    entries = []
    for number, (model, (bytes_, time, zeros, points)) in enumerate(models.items()):
        for recipe, (smaller, slower) in {**recipes, **({"float16_sparse": (0.2, 1.0)} if zeros else {})}.items():
            ms = 0.216 * time * slower * (1 + 0.003 * number)
            facts = {
                "bytes": int(1_610_000 * bytes_ * smaller),
                "gzip_bytes": int(1_480_000 * bytes_ * smaller * (1 - 0.7 * zeros)),
                "accuracy": 0.887 + points / 100 - 0.0002 * len(recipe) / 10,
                "sparsity": zeros,
                "latency": (spread_latency(ms, time * slower),),
            }
            entries.append(variant(model, recipe, **facts))
    stages = [
        Stage(model, 60.0, epochs=4, accuracy=0.89, layers=layers(share, zeros), curve=curve(4 + 2 * number))
        for number, (model, share, zeros) in enumerate(
            [("base", 1, 0), ("s80", 1, 0.8), ("c50", 0.6, 0), ("c50_s80", 0.6, 0.8), ("control", 0.7, 0)]
        )
    ]
    images = {"train": 8500, "validation": 1500, "calibration": 500, "test": 5000}
    made = manifest(*entries, stages=(*stages, Stage("convert", 3.0)))
    best = {"smallest": "c50_s80_float16_sparse", "fastest": "c50_s80_int8", "most_accurate": "s80_float16"}
    return changed(
        made,
        dataset={**made.dataset, "images": images},
        recommended={goal: f"net_{name}.tflite" for goal, name in best.items()},
    )


def spread_latency(p50_ms: float, ratio: float) -> Latency:
    """A latency whose single inferences are known: a few slow ones above many alike."""
    quantiles = tuple(p50_ms * (0.98 + 0.002 * at + 0.05 * (at > 17)) for at in range(20))
    return changed(latency(p50_ms, ratio), histogram=quantiles)


def layers(share: float = 1.0, zeros: float = 0.0, blocks: int = 7) -> tuple[LayerFacts, ...]:
    """A network of inverted residual blocks with `share` of its channels and so many zeros."""
    found = [LayerFacts("stem", "Conv2D", round(24 * share), 9000, round(216 * share), 0.0)]
    for block in range(blocks):
        wide = round((24 + 8 * block) * 4 * share)
        narrow = round((24 + 8 * block) * share)
        found += [
            LayerFacts(f"block_{block}_expand", "Conv2D", wide, 9000, wide * narrow, zeros),
            LayerFacts(f"block_{block}_depthwise", "DepthwiseConv2D", 0, 900, wide * 9, 0.0),
            LayerFacts(f"block_{block}_project", "Conv2D", narrow, 9000, wide * narrow, zeros * 0.9),
        ]
    return (*found, LayerFacts("logits", "Dense", 10, 10_000, 10_250, zeros))


def curve(epochs: int) -> tuple[Epoch, ...]:
    """A training that gets better by less and less."""
    return tuple(Epoch(at, 1.5 / at, 0.88 - 0.3 / at, 1.3 / at, 0.89 - 0.25 / at) for at in range(1, epochs + 1))


def changed(record, **changes):
    """The record with other fields."""
    return dataclasses.replace(record, **changes)
