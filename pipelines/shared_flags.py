"""Flags that the pipelines share: which channels go, and how files are made and measured."""

from __future__ import annotations  # naming a Keras-side class in a signature must not import TensorFlow

import dataclasses
import sys
from collections.abc import Iterable
from typing import Any

from absl import flags
from export_stages import ExportSettings

import mobileprune as mp

FLAGS = flags.FLAGS
# These change how files are made and measured, not the models: the stages that read them run anew.
EXPORT = ("recipes", "verify_images", "threads", "benchmark_rounds", "tolerated_drop")


def define_pruning(macs: float) -> None:
    """Flags that `plan` reads; `macs` is the default share."""
    flags.DEFINE_float("macs", macs, "Share of the multiply-accumulates that channel pruning keeps.", 0, 1)
    flags.DEFINE_string("importance", "l2", "How channels are ranked: l1, l2, batch_norm_scale or random.")
    flags.DEFINE_enum("scope", "global", ["global", "local"], "Rank all channels together, or cut all groups alike.")
    flags.DEFINE_integer("round_to", 8, "Channel counts are multiples of this.", lower_bound=1)
    flags.DEFINE_list("keep", [], "Wildcard patterns of layers that keep all channels.")


def define_input() -> None:
    """Flags that say what the model's input is."""
    flags.DEFINE_enum("fit", None, ["crop", "stretch"], "How an image of another shape fits. Default: the data's.")
    flags.DEFINE_float("input_mean", None, "Subtracted from 0..255 values. Default: what the model is known to want.")
    flags.DEFINE_float("input_std", None, "Divides them afterwards. Default: the same.", lower_bound=1e-6)


def define_export() -> None:
    """Flags that `export_settings` reads."""
    flags.DEFINE_list("recipes", ["float32", "float16", "dynamic_int8", "int8"], "How files are quantized.")
    flags.DEFINE_integer("calibration_images", 256, "For int8 ranges and batch-norm statistics.", lower_bound=2)
    flags.DEFINE_integer("verify_images", 256, "Compared with the Keras model, for each file.", lower_bound=2)
    flags.DEFINE_integer("threads", 1, "Of each interpreter.", lower_bound=1)
    flags.DEFINE_integer("benchmark_rounds", 30, "Turns of each file, alternating with the others.", lower_bound=1)
    flags.DEFINE_float("tolerated_drop", 1.0, "Points on validation data that recommended files may lose.")


def plan(model: Any, seed: int = 0) -> mp.PruningPlan:
    """Which channels go."""
    return mp.plan_channels(
        model,
        macs=FLAGS.macs,
        importance=FLAGS.importance,
        scope=FLAGS.scope,
        round_to=FLAGS.round_to,
        keep=FLAGS.keep,
        seed=seed,
    )


def contract(known: mp.Preprocess) -> mp.Preprocess:
    """What is known of the model's input, with what the flags say instead."""
    own = {"mean": FLAGS.input_mean, "std": FLAGS.input_std}
    return dataclasses.replace(known, **{name: (value,) for name, value in own.items() if value is not None})


def export_settings(pipeline: str, labelled: bool = True) -> ExportSettings:
    """The flags that the second half of a pipeline reads."""
    given = [flag.serialize() for flag in _flags() if flag.present]
    return ExportSettings(
        name=mp.short_name(FLAGS.model),
        recipes=tuple(FLAGS.recipes),
        calibration_images=FLAGS.calibration_images,
        verify_images=FLAGS.verify_images,
        threads=FLAGS.threads,
        benchmark_rounds=FLAGS.benchmark_rounds,
        tolerated_drop=FLAGS.tolerated_drop,
        command=" ".join([f"python pipelines/{pipeline}", *sorted(given)]),
        labelled=labelled,
    )


def model_settings(free: Iterable[str]) -> dict[str, Any]:
    """All flags that the models depend on, as JSON types; `free` ones and those of the export are left out."""
    left_out = {*free, *EXPORT}
    values = {flag.name: flag.value for flag in _flags() if flag.name not in left_out}
    return {**values, "model_file": mp.file_digest(FLAGS.model)} if mp.is_model_file(FLAGS.model) else values


def _flags() -> list[flags.Flag]:
    return list(FLAGS.get_key_flags_for_module(sys.argv[0]))
