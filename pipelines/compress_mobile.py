"""Takes a trained Keras classifier to small, verified `.tflite` files with nothing but images: no labels, no training.

  python pipelines/compress_mobile.py --model=my.keras --images=path/to/photos
  python pipelines/compress_mobile.py --model=my.keras --images=path/to/photos --input_mean=127 --input_std=128

Two models come out: `base`, and `c50`, the same with half of its multiply-accumulates (`--macs`; `--params`, `--ratio`
and others name other targets). Channels go by what the images say the others can stand in for (`--importance=obs`), the
layers that read them are fitted anew (`--compensate=least_squares`), and batch-norm statistics are measured anew where
that helps. With `--sparsity=0.8` there is a third, `s80`, with so many zeros among its weights. Each model is
written in every recipe, verified against its Keras model and timed on this machine; in the place of accuracy stands how
often a file gives the unpruned model's class.

Exit codes: 0 done; 2 bad input, one line says what.
"""

from __future__ import annotations  # naming a Keras-side class in a signature must not import TensorFlow

from pathlib import Path
from typing import Any

import export_show
import export_stages
import shared_flags
from absl import app, flags

import mobileprune as mp
from mobileprune import options, sparsity_options
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
    options.define_input()
    options.define_pruning()
    sparsity_options.define(share=None)
    shared_flags.define_export()


def compress() -> mp.Manifest:
    """The whole job; every stage is a function of the library, and `run` keeps what is finished."""
    model, dataset = load()
    exporting = shared_flags.export_settings("compress_mobile.py", labelled=False)
    name = options.cut_name()
    images = dataset.calibration.images(FLAGS.calibration_images)
    mp.check_recipes(FLAGS.recipes, images)
    options.check(model)
    steps = {"base": 10, name: 250}
    zeros = None
    if FLAGS.sparsity:
        sparsity_options.check(model)
        zeros = f"s{100 * sparsity_options.share():.0f}"
        steps[zeros] = 250
    run = mp.Run(out_dir(), settings(dataset), {**steps, **export_stages.STEPS}, FLAGS.overwrite)

    def cut(task: mp.Task) -> Any:
        some = options.pruning_images(images)
        task.note(f"ranked by {options.importance()} on {len(some)} images")
        plan = options.plan(model, some)
        task.note(f"compensation: {options.compensation()}")
        smaller = options.prune(model, plan, some)
        task.note("batch-norm statistics")
        seen = dataset.validation.images(FLAGS.calibration_images)
        return mp.recalibrate(smaller, images, judge=lambda found: mp.agreement(model, found, seen))

    def sparsify(task: mp.Task) -> Any:
        ready = mp.sparse_ready(model).model if FLAGS.sparse_ready else model
        task.note(f"{sparsity_options.share():.0%} zeros by second order")
        return sparsity_options.prune_one_shot(ready, options.pruning_images(images))

    with run.progress:
        models = {"base": run.model("base", lambda task: model, export_stages.facts_of)}
        models[name] = run.model(name, cut, export_stages.facts_of)
        if zeros:
            models[zeros] = run.model(zeros, sparsify, export_stages.facts_of)
        return export_stages.export(run, models, dataset, exporting)


def load() -> tuple[Any, mp.Dataset]:
    """The model as it is, and images as it wants them."""
    model = mp.load_model(FLAGS.model)
    natural = mp.Preprocess(224, 224, fit=FLAGS.fit or "crop")
    contract = options.contract(mp.input_contract(FLAGS.model, natural, model=model))
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
    return {**shared_flags.model_settings(("out_dir", "overwrite")), "data": dataset.digest}


def main(arguments: list[str]) -> int:
    return export_show.run_pipeline(arguments, compress, out_dir, mp.Limits())


if __name__ == "__main__":
    define_flags()
    for module in (shared_flags, options, sparsity_options):
        flags.adopt_module_key_flags(module)  # so that --help lists them
    app.run(main, flags_parser=parse_flags)
