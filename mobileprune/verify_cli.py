"""`mobileprune verify`: does this file say what that model says, and if not, where does it part from it?"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import flags
from rich.table import Table

import mobileprune as mp
from mobileprune import image_flags
from mobileprune.calibration import calibrate
from mobileprune.console import make_console
from mobileprune.errors import (
    ConversionError,
    InterpreterError,
    ModelError,
    SettingsError,
    VerificationError,
    known_names,
)
from mobileprune.files import write_bytes, write_json
from mobileprune.json_record import Json
from mobileprune.layer_errors import FALL_DB, LayerErrors, layer_errors
from mobileprune.mixed_precision import RANKING_IMAGES, remedies
from mobileprune.mixed_recipe import Recipe
from mobileprune.preprocess import load
from mobileprune.recipes import recipe_named
from mobileprune.records import Verification
from mobileprune.report.layer_plot import layer_plot
from mobileprune.verify import TOLERANCES
from mobileprune.verify_files import find_images, verify_files

FLAGS = flags.FLAGS
# The exit code for a file that was looked at and failed; 2 means that nothing could be looked at.
FAILED = 3
# So many images tell where a file parts from float; each takes a run with every tensor kept.
_LAYER_IMAGES = 16


def define() -> None:
    """The verb's flags."""
    image_flags.define("A folder of JPEG, PNG or WebP images as the model will see.", required=True)
    flags.DEFINE_string("recipe", None, "A name, or a JSON file of rules. Default: what the name ends in.")
    flags.DEFINE_string("labels", None, "Class names, one a line in the order of the outputs; sub-folders have them.")
    flags.DEFINE_integer("verify_images", 128, "At most so many images, classes in turn.", lower_bound=2)
    flags.DEFINE_integer("threads", 2, "Of each interpreter.", lower_bound=1)
    flags.DEFINE_bool("per_layer", False, "Compare op by op: where does the file part from float, and what mends it?")
    flags.DEFINE_string("out", None, "A folder to write verification.json to, and layers.svg with --per_layer.")


def run(arguments: Sequence[str]) -> int:
    """Verifies the file and prints what was found. 0: it passed; 3: it failed."""
    if len(arguments) != 2 or not arguments[1].endswith(".tflite"):
        raise SettingsError(f"Name a .keras or .h5 file and a .tflite. Received: {' '.join(arguments) or 'nothing'}.")
    file = Path(arguments[1])
    recipe = recipe_named(FLAGS.recipe or _recipe_in(file.stem))
    try:
        content = file.read_bytes()
    except OSError as error:
        raise SettingsError(f"Cannot read {file}: {error.strerror or error}.") from error
    model = mp.load_model(arguments[0])
    contract = image_flags.contract(arguments[0], model)
    model = mp.with_fixed_input(model, contract)
    names = mp.read_labels(FLAGS.labels, mp.output_count(model)) if FLAGS.labels else ()
    paths, labels = find_images(Path(FLAGS.images), FLAGS.verify_images, names)
    print(image_flags.told(contract))
    precisions = recipe.precisions if recipe.rules else ()
    variant = mp.Variant(file.stem.removesuffix(f"_{recipe.name}"), recipe.name, content, precisions)
    report, layers, reason = None, None, ""
    try:
        report = verify_files(model, variant, paths, contract, labels=labels, names=names, threads=FLAGS.threads)
    except InterpreterError as error:  # a file that crashes or cannot be loaded has failed
        reason = str(error)
    failures = [reason] if report is None else list(report.failures)
    _show(report, failures)
    found: Json = {"file": file.name, "recipe": recipe.name, "failures": failures}
    found["report"] = None if report is None else report.to_json()
    if FLAGS.per_layer and report is not None:
        images = np.stack([load(path, contract) for path in paths[: max(_LAYER_IMAGES, RANKING_IMAGES)]])
        try:
            layers, sentences = _debug(mp.to_float_flatbuffer(model), content, recipe, images)
        except (ConversionError, InterpreterError, ModelError, VerificationError) as error:  # the verdict stands
            print(f"Not compared op by op: {error}")
        else:
            found |= {"layers": layers.to_json(), "remedies": sentences}
    if FLAGS.out:
        print(f"Wrote {write_json(Path(FLAGS.out) / 'verification.json', found)}.")
        if layers is not None:
            plot = layer_plot(layers, file.name).encode()
            print(f"Wrote {write_bytes(Path(FLAGS.out) / 'layers.svg', plot)}.")
    return FAILED if failures else 0


def _recipe_in(stem: str) -> str:
    fitting = [name for name in TOLERANCES if stem == name or stem.endswith(f"_{name}")]
    if not fitting:
        raise SettingsError(
            f"What recipe is {stem}.tflite? Its name ends in none; give --recipe=, one of {known_names(TOLERANCES)}."
        )
    return max(fitting, key=len)


def _show(report: Verification | None, failures: Sequence[str]) -> None:
    if report is not None:
        print(
            f"{report.images} images on {report.runtime}: top-1 as the model's for {report.agreement:.1%}, largest "
            f"error {report.max_abs_error:.3g}, mean {report.mean_abs_error:.3g}, {report.snr_db:.1f} dB."
        )
        if (classes := report.classes) is not None:
            print(
                f"Accuracy {classes.accuracy_before:.1%} → {classes.accuracy:.1%}; top-1 changed for "
                f"{classes.churn:.1%} ({classes.lost:.1%} lost, {classes.won:.1%} won). Worst class: "
                f"{classes.worst_class}, {100 * classes.worst_class_drop:+.1f} points lost."
            )
    for failure in failures:
        print(f"failed: {failure}")
    print("The file failed." if failures else "The file passed.")


def _debug(float_content: bytes, content: bytes, recipe: Recipe, images: np.ndarray) -> tuple[LayerErrors, list[str]]:
    """Prints where the file parts from float; returns that, and sentences on what would mend it."""
    layers = layer_errors(float_content, content, images[:_LAYER_IMAGES], threads=FLAGS.threads)
    table = Table(box=None, pad_edge=False)
    for number, name in enumerate(
        ("layer", "op", "type", "dB", "median channel", "loss", "mean error", "range", "cut")
    ):
        table.add_column(name, justify="left" if number < 3 else "right", overflow="fold")
    for layer in layers.layers:
        table.add_row(
            *(layer.layer, layer.op, layer.dtype, f"{layer.snr_db:.1f}", f"{layer.channel_snr_db:.1f}"),
            f"{layer.fall_db:.1f}" + (" !" if layer.fall_db >= FALL_DB else ""),
            f"{layer.mean_abs_error:.3g}",
            "" if layer.range_used is None else f"{layer.range_used:.0%}",
            "" if layer.cut is None else f"{layer.cut:.2%}",
        )
    make_console(140).print(table)
    if layers.unpaired:
        print(f"Without a counterpart in the file: {known_names(layers.unpaired, 8)}.")
    print(layers.sentence())
    if not recipe.needs_calibration:
        return layers, []
    found = remedies(float_content, calibrate(float_content, images), images, recipe, threads=FLAGS.threads)
    print(f"Made anew in {recipe.name} with ranges of these images:")
    sentences = [remedy.sentence() for remedy in found]
    for sentence in sentences:
        print(f"  {sentence}")
    return layers, sentences
