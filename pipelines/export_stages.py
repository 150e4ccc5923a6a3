"""The second half of every pipeline: models → files → figures → manifest and report."""

from __future__ import annotations  # naming a Keras-side class in a signature must not import TensorFlow

import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np
from export_files import Making, make_files, recipes_of

import mobileprune as mp
from mobileprune.benchmark.host import benchmark_host
from mobileprune.data import Dataset, Split
from mobileprune.errors import InterpreterError, VerificationError
from mobileprune.evaluate import evaluate
from mobileprune.files import file_digest, write_bytes
from mobileprune.json_record import Json
from mobileprune.manifest import FILE as MANIFEST_FILE
from mobileprune.manifest import (
    SCHEMA,
    dataset_facts,
    gzip_bytes,
    host,
    own_version,
    read_manifest,
    versions,
    write_manifest,
)
from mobileprune.min_runtime import minimum_runtime
from mobileprune.recommend import recommend
from mobileprune.records import Latency, RuntimeCheck, Variant, Verification
from mobileprune.report.html import FILE as HTML_FILE
from mobileprune.report.html import write_html
from mobileprune.report.markdown import FILE as MARKDOWN_FILE
from mobileprune.report.markdown import write_markdown
from mobileprune.run_records import Manifest, ModelPort, Port, Rejected, VariantRecord
from mobileprune.runtime_checks import verify_runtimes
from mobileprune.tflite_graph import read_graph
from mobileprune.verify import reference_outputs, verify

Key = tuple[str, str]
"""A model's and a recipe's name."""

# How long each stage takes beside a training step, roughly: for the time left.
STEPS = {"convert": 250, "verify": 60, "evaluate": 120, "benchmark": 250, "report": 20}
# Emulated, an image takes seconds.
ARM64_IMAGES = 2


@dataclasses.dataclass(frozen=True)
class ExportSettings:
    """How files are made and measured; the classifier's flags of the same names."""

    name: str
    making: Making
    calibration_images: int
    verify_images: int
    threads: int
    benchmark_rounds: int
    tolerated_drop: float
    command: str
    runtimes: tuple[str, ...] = ()
    labelled: bool = True


def facts_of(model: Any) -> Json:
    """What a stage's record says of the model that it made."""
    layers = [layer.to_json() for layer in mp.record_of_layers(model)]
    return {**dataclasses.asdict(mp.model_facts(model)), "layers": layers}


def export(run: mp.Run, models: Mapping[str, Any], dataset: Dataset, settings: ExportSettings) -> Manifest:
    """Converts, verifies, evaluates and benchmarks every model in every recipe; writes files, manifest and report."""
    making = settings.making
    files = {
        (model, recipe): f"{settings.name}_{model}_{recipe}.tflite"
        for model, keras_model in models.items()
        for recipe in recipes_of(keras_model, making)
    }
    run.depend(
        "convert",
        {
            **making.to_json(),
            "files": sorted(files.values()),
            "images": settings.calibration_images,
            "labels": list(dataset.labels),
        },
    )
    converted = run.facts(
        "convert", lambda task: make_files(task, run, models, dataset, making, settings.calibration_images, files)
    )
    # A recipe of mixed precision has no file where nothing had to be raised.
    files = {key: file for key, file in files.items() if file in converted}
    made = {
        key: run.kept_variant(*key, file, tuple(converted[file]["precisions"]))
        for key, file in files.items()
        if not converted[file]["failed"]
    }
    run.depend("verify", {"verify_images": settings.verify_images, "runtimes": settings.runtimes})
    checks = run.facts("verify", lambda task: _verify(task, models, dataset, settings, made, files))
    passed = {key: variant for key, variant in made.items() if not checks[files[key]]["failed"]}
    scores = run.facts("evaluate", lambda task: _evaluate(task, models, dataset, settings, passed, files))
    run.depend("benchmark", {"threads": settings.threads, "rounds": settings.benchmark_rounds})
    times = run.facts("benchmark", lambda task: _benchmark(task, settings, passed, files))
    figures = {model: mp.model_facts(keras_model) for model, keras_model in models.items()}
    # A file that fails in any stage does not ship; the first failure is the reason.
    stages = (converted, checks, scores, times)
    failed = {file: _failure(stage.get(file, {}) for stage in stages) for file in files.values()}
    shipped = {files[key]: variant for key, variant in passed.items() if not failed[files[key]]}
    variants = tuple(
        _record(file, variant, figures[variant.model], converted[file], checks[file], scores[file], times[file])
        for file, variant in shipped.items()
    )
    rejected = tuple(Rejected(file, reason) for file, reason in failed.items() if reason)
    return _report(run, models["base"], dataset, settings, variants, rejected, shipped)


def _failure(results: Iterable[Json]) -> str:
    return next((result["failed"] for result in results if result.get("failed")), "")


def _verify(task: mp.Task, models: Any, dataset: Dataset, settings: ExportSettings, made: Any, files: Any) -> Json:
    images = dataset.validation.images(settings.verify_images)
    labels = dataset.validation.labels[: len(images)] if settings.labelled else None
    expected = {name: reference_outputs(model, images) for name, model in models.items()}

    def check(key: Key, variant: Variant) -> Json:
        outputs, threads = expected[key[0]], settings.threads
        report = verify(outputs, variant, images, threads=threads, labels=labels, names=dataset.labels)
        others = verify_runtimes(
            outputs, variant, images, settings.runtimes, threads=threads, arm64_images=ARM64_IMAGES
        )
        elsewhere = [f"On {each.runtime}: {each.reason}" for each in others.values() if not each.passed]
        return {
            "failed": " ".join(report.failures or elsewhere),
            "report": report.to_json(),
            "runtimes": [each.to_json() for each in others.values()],
        }

    return _for_each(task, "verify", made, files, check)


def _evaluate(task: mp.Task, models: Any, dataset: Dataset, settings: ExportSettings, passed: Any, files: Any) -> Json:
    splits = {"": dataset.test, "validation_": dataset.validation}
    expected = {} if settings.labelled else {name: _predicted(models["base"], split) for name, split in splits.items()}

    def score(_: Key, variant: Variant) -> Json:
        if settings.labelled:
            return {
                f"{name}accuracy": evaluate(variant, split.numpy_batches(256), settings.threads)
                for name, split in splits.items()
            }
        return {
            f"{name}agreement": evaluate(variant, _relabelled(split, expected[name]), settings.threads)
            for name, split in splits.items()
        }

    return _for_each(task, "evaluate", passed, files, score)


def _for_each(
    task: mp.Task, stage: str, variants: Mapping[Key, Variant], files: Any, work: Callable[[Key, Variant], Json]
) -> Json:
    """What `work` says of each variant, by file name; as many at once as there are cores, each in its own process.

    A file that crashes or hangs its process, or whose model says nothing, has that as its result: `{"failed": why}`.
    """
    found: Json = {}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        jobs = {pool.submit(work, key, variant): key for key, variant in variants.items()}
        for done, job in enumerate(as_completed(jobs), 1):
            try:
                found[files[jobs[job]]] = job.result()
            except (InterpreterError, VerificationError) as error:
                found[files[jobs[job]]] = {"failed": str(error)}
            task.note(" ".join(jobs[job]))
            task.advance(done * STEPS[stage] // len(jobs))
    return found


def _predicted(model: Any, split: Split) -> list[np.ndarray]:
    """The unpruned model's top-1 class for each image, batch by batch."""
    return [
        np.argmax(model.predict_on_batch(images), axis=-1).astype(np.int64) for images, _ in split.numpy_batches(64)
    ]


def _relabelled(split: Split, classes: list[np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for (images, _), top in zip(split.numpy_batches(64), classes, strict=True):
        yield images, top


def _benchmark(task: mp.Task, settings: ExportSettings, passed: Mapping[Any, Variant], files: Any) -> Json:
    task.note("all files in turn")
    variants = list(passed.values())
    baseline = next((at for at, key in enumerate(passed) if key == ("base", "float32")), 0)
    seconds = max(1.0, 0.03 * settings.benchmark_rounds)  # a round of a small model takes 15 ms
    results = benchmark_host(
        variants, baseline, threads=settings.threads, rounds=settings.benchmark_rounds, seconds=seconds
    )
    return {
        files[key]: {"latency": result.to_json()} if isinstance(result, Latency) else {"failed": str(result)}
        for key, result in zip(passed, results, strict=True)
    }


def _record(
    file: str, variant: Variant, figures: Any, made: Json, check: Json, score: Json, times: Json
) -> VariantRecord:
    verified = Verification.from_json(check["report"])
    others = tuple(RuntimeCheck.from_json(each) for each in check["runtimes"])
    graph = read_graph(variant.content)
    return VariantRecord(
        file=file,
        model=variant.model,
        recipe=variant.recipe,
        bytes=len(variant.content),
        gzip_bytes=gzip_bytes(variant.content),
        sha256=variant.sha256,
        macs=figures.macs,
        params=figures.params,
        sparsity=round(graph.zero_fraction(), 6),
        input=_port(graph.inputs[0]),
        output=_port(graph.outputs[0]),
        verified=verified,
        verified_runtimes=(verified.runtime, *(each.runtime for each in others if each.passed)),
        runtimes=others,
        minimum_runtime=minimum_runtime(variant.content),
        float_ops=tuple(made["float_ops"]),
        notes=tuple(made["notes"]),
        latency=(Latency.from_json(times["latency"]),),
        **score,
    )


def _port(tensor: Any) -> Port:
    """A tensor of the graph as the manifest says it; a float one has no scale."""
    if not tensor.scales:
        return Port(tensor.dtype.lower(), tuple(tensor.shape))
    zero_point = int(tensor.zero_points[0]) if tensor.zero_points else 0
    return Port(tensor.dtype.lower(), tuple(tensor.shape), float(tensor.scales[0]), zero_point)


def _report(
    run: mp.Run,
    base: Any,
    dataset: Dataset,
    settings: ExportSettings,
    variants: tuple[VariantRecord, ...],
    rejected: tuple[Rejected, ...],
    shipped: Mapping[str, Variant],
) -> Manifest:
    if not variants:
        raise VerificationError(f"No file passed; the first: {rejected[0].reason}")
    # The report stage is recorded last, so the manifest lists all stages but this one.
    manifest = Manifest(
        schema=SCHEMA,
        mobileprune=own_version(),
        versions=versions(),
        host=host(),
        command=settings.command,
        dataset=dataset_facts(dataset),
        labels=dataset.labels,
        preprocess=dataset.preprocess,
        input=ModelPort((1, *base.input_shape[1:]), "float32"),
        output=ModelPort(
            (1, *base.output_shape[1:]), "float32", "probabilities" if mp.gives_probabilities(base) else "logits"
        ),
        stages=tuple(run.stages),
        variants=variants,
        rejected=rejected,
        recommended=recommend(variants, settings.tolerated_drop),
    )

    def write(task: mp.Task) -> Json:
        _forget(run.out_dir)
        written: list[Path] = []
        try:
            for file, variant in shipped.items():
                written.append(write_bytes(run.out_dir / file, variant.content))
            write_markdown(run.out_dir, manifest)
            write_html(run.out_dir, manifest)
            write_manifest(run.out_dir, manifest)
        except mp.MobilePruneError:
            for path in written:  # files that no manifest describes must not be taken for results
                path.unlink(missing_ok=True)
            raise
        return {}

    run.depend("report", {"tolerated_drop": settings.tolerated_drop})
    intact = all(is_intact(run.out_dir / file, variant) for file, variant in shipped.items())
    if not intact or not all((run.out_dir / file).is_file() for file in (MANIFEST_FILE, HTML_FILE, MARKDOWN_FILE)):
        run.redo("report")
    run.facts("report", write)
    return read_manifest(run.out_dir)


def is_intact(path: Path, variant: Variant) -> bool:
    """Whether a file still holds the variant's bytes."""
    return path.is_file() and file_digest(path) == variant.sha256


def _forget(folder: Path) -> None:
    """Removes what an earlier run wrote here, as far as its manifest lists it."""
    if (folder / MANIFEST_FILE).exists():
        for entry in read_manifest(folder).variants:
            (folder / Path(entry.file).name).unlink(missing_ok=True)
        (folder / MANIFEST_FILE).unlink()
