"""The second half of every pipeline: models → files → figures → manifest and report."""

from __future__ import annotations  # naming a Keras-side class in a signature must not import TensorFlow

import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np
import rich.box
from rich.table import Table

import mobileprune as mp
from mobileprune.benchmark.arm64 import arm64_missing
from mobileprune.benchmark.arm64_checks import compare_on_arm64
from mobileprune.benchmark.host import benchmark_host
from mobileprune.console import exit_code, make_console
from mobileprune.data import Dataset, Split
from mobileprune.errors import ConversionError, InterpreterError, SettingsError, VerificationError
from mobileprune.evaluate import evaluate
from mobileprune.files import file_digest, write_bytes
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
from mobileprune.recipes import make_variants, recipe_named
from mobileprune.recommend import Limits, baseline_of, meets, recommend
from mobileprune.records import Json, Latency, Manifest, ModelPort, Port, Rejected, Variant, VariantRecord, Verification
from mobileprune.report.html import write_html
from mobileprune.report.markdown import table_head, table_row, write_markdown
from mobileprune.report.words import comparison_with_control, goals
from mobileprune.tflite_graph import read_graph
from mobileprune.verify import reference_outputs, verify

Key = tuple[str, str]
"""A model's and a recipe's name."""

# How long each stage takes beside a training step, roughly: for the time left.
STEPS = {"convert": 250, "verify": 60, "evaluate": 120, "benchmark": 250, "report": 20}
# Below this share of zeros hardly any weight takes less room when its zeros are left out.
SPARSE_FROM = 0.5
# Emulated, an image takes seconds.
ARM64_IMAGES = 2
# As a share of the largest output; rounding makes 1e-6.
ARM64_TOLERANCE = 1e-3


@dataclasses.dataclass(frozen=True)
class ExportSettings:
    """How files are made and measured; the classifier's flags of the same names."""

    name: str
    recipes: tuple[str, ...]
    calibration_images: int
    verify_images: int
    threads: int
    benchmark_rounds: int
    tolerated_drop: float
    command: str
    labelled: bool = True


def export(run: mp.Run, models: Mapping[str, Any], dataset: Dataset, settings: ExportSettings) -> Manifest:
    """Converts, verifies, evaluates and benchmarks every model in every recipe; writes files, manifest and report."""
    zeros = {name: mp.sparsity(model) for name, model in models.items()}
    files = {
        (model, recipe): f"{settings.name}_{model}_{recipe}.tflite"
        for model in models
        for recipe in settings.recipes
        if zeros[model] >= SPARSE_FROM or not recipe_named(recipe).sparse
    }
    run.depend("convert", {"files": sorted(files.values()), "calibration_images": settings.calibration_images})
    converted = run.facts("convert", lambda task: _convert(task, run, models, dataset, settings, files))
    made = {key: run.kept_variant(*key, file) for key, file in files.items() if not converted[file]["failed"]}
    run.depend("verify", {"verify_images": settings.verify_images})
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
        _record(file, variant, figures[variant.model], checks[file], scores[file], times[file]["latency"])
        for file, variant in shipped.items()
    )
    rejected = tuple(Rejected(file, reason) for file, reason in failed.items() if reason)
    return _report(run, models["base"], dataset, settings, variants, rejected, shipped)


def _failure(results: Iterable[Json]) -> str:
    return next((result["failed"] for result in results if result.get("failed")), "")


def _convert(
    task: mp.Task, run: mp.Run, models: Any, dataset: Dataset, settings: ExportSettings, files: Mapping[Key, str]
) -> Json:
    calibration = dataset.calibration.images(settings.calibration_images)
    found: Json = {}
    for done, (name, model) in enumerate(models.items()):
        mine = {recipe: file for (owner, recipe), file in files.items() if owner == name}
        task.note(f"{name} in {len(mine)} recipes")
        content = mp.to_float_flatbuffer(model)
        for recipe, file in mine.items():
            try:
                (variant,) = make_variants(content, [recipe], calibration, name)
            except (ConversionError, VerificationError) as error:  # what one recipe cannot do, another can
                found[file] = {"failed": str(error)}
                continue
            run.keep_variant(variant, file)
            found[file] = {"failed": ""}
        task.advance((done + 1) * STEPS["convert"] // len(models))
    return found


def _verify(task: mp.Task, models: Any, dataset: Dataset, settings: ExportSettings, made: Any, files: Any) -> Json:
    images = dataset.validation.images(settings.verify_images)
    expected = {name: reference_outputs(model, images) for name, model in models.items()}
    on_arm64 = arm64_missing() is None  # sparse files run on kernels that this machine may not have

    def check(key: Key, variant: Variant) -> Json:
        report = verify(expected[key[0]], variant, images, threads=settings.threads)
        runtimes, failures = [report.runtime], list(report.failures)
        if on_arm64 and recipe_named(variant.recipe).sparse:
            found = compare_on_arm64(variant.content, images[:ARM64_IMAGES], name=files[key])
            largest = float(np.abs(expected[key[0]][:ARM64_IMAGES]).max())
            runtimes.append(found.device)
            if found.agreement < 1 or found.max_abs_error > ARM64_TOLERANCE * largest:
                failures.append(f"On {found.device} it answers otherwise: off by {found.max_abs_error:.2g}.")
        return {"failed": " ".join(failures), "report": report.to_json(), "runtimes": runtimes}

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


def _record(file: str, variant: Variant, figures: Any, check: Json, score: Json, latency: Json) -> VariantRecord:
    verified = Verification.from_json(check["report"])
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
        verified_runtimes=tuple(check["runtimes"]),
        latency=(Latency.from_json(latency),),
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
    if any(not is_intact(run.out_dir / file, variant) for file, variant in shipped.items()):
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


def show(manifest: Manifest, folder: Path) -> None:
    """Prints the table and the recommended files."""
    console = make_console(132)
    table = Table(box=rich.box.SIMPLE_HEAD, pad_edge=False)
    for number, name in enumerate(("model", "recipe", *table_head(manifest)[1:])):
        table.add_column(name, justify="left" if number < 2 else "right", no_wrap=True)
    baseline = baseline_of(manifest.variants)
    for entry in manifest.variants:
        style = "bold" if entry.file in manifest.recommended.values() else ""
        table.add_row(entry.model, entry.recipe, *table_row(entry, baseline)[1:], style=style)
    console.print(table)
    for words, entry in goals(manifest):
        console.print(f"{words}: {folder / entry.file}")
    if sentence := comparison_with_control(manifest).replace("**", ""):
        console.print(sentence)
    for rejected in manifest.rejected:
        console.print(f"Not shipped: {rejected.file}: {rejected.reason}")
    if manifest.dataset["skipped"]:
        console.print(f"Skipped {len(manifest.dataset['skipped'])} images; report.md names them.")
    console.print(f"Report: {folder / 'report.html'}")


def gate(manifest: Manifest, limits: Limits) -> int:
    """The exit code: 3 when limits were given and no file meets them all."""
    if not limits.any():
        return 0
    good = meets(manifest, limits)
    print(f"Within all limits: {', '.join(good)}" if good else "No file is within all limits.")
    return 0 if good else 3


def run_pipeline(arguments: list[str], job: Callable[[], Manifest], folder: Callable[[], Path], limits: Limits) -> int:
    """Runs a pipeline for the command line and returns its exit code: bad input is one line on stderr and a 2."""

    def work() -> int:
        if len(arguments) > 1:
            raise SettingsError(f"Unexpected argument {arguments[1]!r}; see --help.")
        mp.quiet_tensorflow()
        manifest = job()
        show(manifest, folder())
        return gate(manifest, limits)

    return exit_code(work)
