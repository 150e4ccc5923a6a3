"""Takes a trained Keras classifier to small, verified `.tflite` files with nothing but images: no labels, no training.

  python pipelines/compress_mobile.py --model=my.keras --images=path/to/photos
  python pipelines/compress_mobile.py --model=my.keras --images=path/to/photos --input_mean=127 --input_std=128

Two models come out: `base`, and the same with channels removed until `--macs` of its multiply-accumulates are left and
its batch-norm statistics measured anew where that helps. Each is written in every recipe, verified against its Keras
model and timed on this machine; in the place of accuracy stands how often a file gives the unpruned model's class.

Exit codes: 0 done; 2 bad input, one line says what.
"""

from __future__ import annotations  # naming a Keras-side class in a signature must not import TensorFlow

import dataclasses
import sys
from pathlib import Path
from typing import Any

import export_stages
from absl import app, flags

import mobileprune as mp
from mobileprune.console import parse_flags

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines all flags; called once."""
    flags.DEFINE_string("model", None, "A .keras or .h5 file.", required=True)
    flags.DEFINE_string("images", None, "A folder of images, in it or in folders below it.", required=True)
    flags.DEFINE_string("labels", None, "A text file with one class name a line, in the order of the outputs.")
    flags.DEFINE_string("out_dir", None, "Where the run is written. Default: tflite_models/<images>_<model>.")
    flags.DEFINE_bool("overwrite", False, "Start again where the folder holds another run.")
    flags.DEFINE_bool("strict", False, "Refuse unreadable images instead of skipping them.")
    flags.DEFINE_float("input_mean", None, "Subtracted from 0..255. Default: 0 if the model rescales, else 127.5.")
    flags.DEFINE_float(
        "input_std", None, "Divides them. Default: 1 if the model rescales, else 127.5.", lower_bound=1e-6
    )
    flags.DEFINE_enum("fit", "crop", ["crop", "stretch"], "How an image of another shape fits.")
    flags.DEFINE_float("macs", 0.9, "Share of the multiply-accumulates kept.", 0, 1)
    flags.DEFINE_string("importance", "l2", "How channels are ranked: l1, l2, batch_norm_scale or random.")
    flags.DEFINE_enum("scope", "global", ["global", "local"], "Rank all channels together, or cut all groups alike.")
    flags.DEFINE_integer("round_to", 8, "Channel counts are multiples of this.", lower_bound=1)
    flags.DEFINE_list("keep", [], "Wildcard patterns of layers that keep all channels.")
    flags.DEFINE_list("recipes", ["float32", "float16", "dynamic_int8", "int8"], "How files are quantized.")
    flags.DEFINE_integer("calibration_images", 256, "For int8 ranges and batch-norm statistics.", lower_bound=2)
    flags.DEFINE_integer("verify_images", 64, "Compared with the Keras model, for each file.", lower_bound=2)
    flags.DEFINE_integer("threads", 1, "Of each interpreter.", lower_bound=1)
    flags.DEFINE_integer("benchmark_rounds", 20, "Turns of each file, alternating with the others.", lower_bound=1)
    flags.DEFINE_float("tolerated_drop", 1.0, "Points of agreement that recommended files may lose.")


def compress() -> mp.Manifest:
    """The whole job; every stage is a function of the library, and `run` keeps what is finished."""
    model, dataset = load()
    name = f"c{round(100 * FLAGS.macs)}"
    images = dataset.calibration.images(FLAGS.calibration_images)
    mp.check_recipes(FLAGS.recipes, images)
    plan = mp.plan_channels(
        model,
        macs=FLAGS.macs,
        importance=FLAGS.importance,
        scope=FLAGS.scope,
        round_to=FLAGS.round_to,
        keep=FLAGS.keep,
    )
    run = mp.Run(out_dir(), settings(dataset), {"base": 10, name: 50, **export_stages.STEPS}, FLAGS.overwrite)

    def cut() -> Any:
        seen = dataset.validation.images(FLAGS.calibration_images)
        return mp.recalibrate(mp.prune_channels(model, plan), images, judge=lambda cut: mp.agreement(model, cut, seen))

    def measure(found: Any) -> dict[str, Any]:
        return dataclasses.asdict(mp.model_facts(found))

    with run.progress:
        models = {"base": run.model("base", lambda task: model, measure)}
        models[name] = run.model(name, lambda task: cut(), measure)
        return export_stages.export(run, models, dataset, export_settings())


def load() -> tuple[Any, mp.Dataset]:
    """The model as it is, and images as it wants them."""
    model = mp.load_model(FLAGS.model)
    contract = mp.input_contract(FLAGS.model, mp.Preprocess(224, 224, fit=FLAGS.fit), model=model)
    own = {"mean": FLAGS.input_mean, "std": FLAGS.input_std}
    contract = dataclasses.replace(contract, **{name: (value,) for name, value in own.items() if value is not None})
    model = mp.with_fixed_input(model, contract)
    return model, mp.load_images(FLAGS.images, contract, labels(mp.output_count(model)), strict=FLAGS.strict)


def labels(count: int) -> tuple[str, ...]:
    """The class names from --labels, or numbers."""
    if FLAGS.labels is None:
        return tuple(str(number) for number in range(count))
    return tuple(mp.read_labels(FLAGS.labels, count))


def out_dir() -> Path:
    """The run's folder."""
    images = mp.short_name(Path(FLAGS.images).resolve().name)
    return Path(FLAGS.out_dir) if FLAGS.out_dir else Path("tflite_models") / f"{images}_{mp.short_name(FLAGS.model)}"


def settings(dataset: mp.Dataset) -> dict[str, Any]:
    """All that the models depend on; what only the files depend on, `export` looks after."""
    free = ("out_dir", "overwrite", "recipes", "verify_images", "threads", "benchmark_rounds", "tolerated_drop")
    own = [flag for flag in FLAGS.get_key_flags_for_module(sys.argv[0]) if flag.name not in free]
    return {
        **{flag.name: flag.value for flag in own},
        "data": dataset.digest,
        "model_file": mp.file_digest(FLAGS.model),
    }


def export_settings() -> export_stages.ExportSettings:
    """The flags that the second half reads."""
    given = [flag.serialize() for flag in FLAGS.get_key_flags_for_module(sys.argv[0]) if flag.present]
    return export_stages.ExportSettings(
        name=mp.short_name(FLAGS.model),
        recipes=tuple(FLAGS.recipes),
        calibration_images=FLAGS.calibration_images,
        verify_images=FLAGS.verify_images,
        threads=FLAGS.threads,
        benchmark_rounds=FLAGS.benchmark_rounds,
        tolerated_drop=FLAGS.tolerated_drop,
        command=" ".join(["python pipelines/compress_mobile.py", *sorted(given)]),
        labelled=False,
    )


def main(arguments: list[str]) -> int:
    return export_stages.run_pipeline(arguments, compress, out_dir, mp.Limits())


if __name__ == "__main__":
    define_flags()
    app.run(main, flags_parser=parse_flags)
