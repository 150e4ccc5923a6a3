"""Flags that the pipelines share beside `mobileprune.options`: how files are made and measured."""

from __future__ import annotations  # naming a Keras-side class in a signature must not import TensorFlow

import shlex
import sys
from collections.abc import Iterable
from typing import Any

from absl import flags
from export_files import Making
from export_stages import ExportSettings

import mobileprune as mp
from mobileprune import options
from mobileprune.errors import SettingsError
from mobileprune.histograms import METHODS
from mobileprune.recipes import recipe_named
from mobileprune.runtime_checks import RUNTIMES, runtime_missing, usable_runtimes

FLAGS = flags.FLAGS
# These change how files are made and measured, not the models: the stages that read them run anew.
EXPORT = (
    *("recipes", "calibration_method", "equalize", "correct_biases", "strict_int8", "runtimes"),
    *("verify_images", "threads", "benchmark_rounds"),
    *("tolerated_drop", "description", "author", "license"),
)
# What every file is verified on in any case.
ALWAYS = "litert"


def define_export() -> None:
    """Flags that `export_settings` reads."""
    flags.DEFINE_list(
        "recipes",
        ["float32", "float16", "float16_sparse", "dynamic_int8", "int8"],
        "How files are quantized: names, or JSON files of rules. Sparse ones are made of sparse models only.",
    )
    options.define_calibration()
    flags.DEFINE_enum("calibration_method", "minmax", ["minmax", *METHODS], "How int8 ranges follow from activations.")
    flags.DEFINE_bool("equalize", False, "Balance weights across layers before int8 rounds them.")
    flags.DEFINE_bool("correct_biases", False, "Let int8 biases make up for what rounding does to the means.")
    flags.DEFINE_bool("strict_int8", False, "Refuse integer files in which an op computes in float.")
    flags.DEFINE_list(
        "runtimes", None, f"Files must pass on each of {', '.join(RUNTIMES)}. Default: all that are set up here."
    )
    for name in ("description", "author", "license"):
        flags.DEFINE_string(name, "", f"The {name} in the files' metadata.")
    flags.DEFINE_integer("verify_images", 256, "Compared with the Keras model, for each file.", lower_bound=2)
    flags.DEFINE_integer("threads", 1, "Of each interpreter.", lower_bound=1)
    flags.DEFINE_integer("benchmark_rounds", 30, "Turns of each file, alternating with the others.", lower_bound=1)
    flags.DEFINE_float("tolerated_drop", 1.0, "Points on validation data that recommended files may lose.")


def making(max_drop: float | None = None) -> Making:
    """The flags that say how files are made; `max_drop` as there."""
    return Making(
        recipes=tuple(recipe_named(name) for name in FLAGS.recipes),
        calibration_method=FLAGS.calibration_method,
        equalize=FLAGS.equalize,
        correct_biases=FLAGS.correct_biases,
        strict_int8=FLAGS.strict_int8,
        max_drop=max_drop,
        description=FLAGS.description,
        author=FLAGS.author,
        license=FLAGS.license,
    )


def runtimes() -> tuple[str, ...]:
    """The runtimes of --runtimes without the one that files are verified on in any case.

    Raises:
        SettingsError: one that is not known or not set up here.
    """
    if FLAGS.runtimes is None:
        return tuple(name for name in usable_runtimes() if name != ALWAYS)
    for name in FLAGS.runtimes:
        if missing := runtime_missing(name):
            raise SettingsError(missing)
    return tuple(name for name in dict.fromkeys(FLAGS.runtimes) if name != ALWAYS)


def export_settings(pipeline: str, labelled: bool = True, max_drop: float | None = None) -> ExportSettings:
    """The flags that the second half of a pipeline reads."""
    given = [flag.serialize() for flag in _flags() if flag.present]
    return ExportSettings(
        name=mp.short_name(FLAGS.model),
        making=making(max_drop),
        runtimes=runtimes(),
        calibration_images=FLAGS.calibration_images,
        verify_images=FLAGS.verify_images,
        threads=FLAGS.threads,
        benchmark_rounds=FLAGS.benchmark_rounds,
        tolerated_drop=FLAGS.tolerated_drop,
        command=shlex.join(["python", f"pipelines/{pipeline}", *sorted(given)]),
        labelled=labelled,
    )


def model_settings(free: Iterable[str]) -> dict[str, Any]:
    """All flags that the models depend on, as JSON types; `free` ones and those of the export are left out."""
    left_out = {*free, *EXPORT}
    if FLAGS.latency_ms or FLAGS.speedup:
        left_out.remove("threads")  # which channels go depends on them
    values = {flag.name: flag.value for flag in _flags() if flag.name not in left_out}
    return {**values, "model_file": mp.file_digest(FLAGS.model)} if mp.is_model_file(FLAGS.model) else values


def _flags() -> list[flags.Flag]:
    return list(FLAGS.get_key_flags_for_module(sys.argv[0]))
