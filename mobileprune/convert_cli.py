"""`mobileprune convert`: a Keras model in every recipe asked for, each file checked and told what it is."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

import mobileprune as mp
from mobileprune import image_flags, options
from mobileprune.errors import SettingsError, VerificationError, known_names
from mobileprune.histograms import METHODS
from mobileprune.runtime_checks import RUNTIMES

FLAGS = flags.FLAGS
VERIFY_IMAGES = 64


def define() -> None:
    """The verb's flags."""
    flags.DEFINE_list(
        "recipes",
        ["float32", "float16", "dynamic_int8"],
        "How files are made: names, or JSON files of rules; those of integer activations need --images.",
    )
    image_flags.define("A folder of images for calibration and verification.")
    options.define_calibration()
    flags.DEFINE_enum("calibration_method", "minmax", ["minmax", *METHODS], "How int8 ranges follow from activations.")
    flags.DEFINE_bool("strict_int8", False, "Refuse integer files in which an op computes in float.")
    flags.DEFINE_bool("dynamic_batch", False, "Leave the batch open; some runtimes refuse that, others are slower.")
    flags.DEFINE_list("runtimes", [], "Verify on these, too: " + ", ".join(RUNTIMES) + ".")
    flags.DEFINE_string("labels", None, "Class names for the metadata, one a line in the order of the outputs.")
    for name in ("description", "author", "license"):
        flags.DEFINE_string(name, "", f"The {name} in the files' metadata.")
    flags.DEFINE_string("out", ".", "The folder to write to.")


def run(arguments: Sequence[str]) -> None:
    """Writes the files; one that fails verification is an error, and is not written."""
    if len(arguments) != 1:
        raise SettingsError(f"Name a .keras or .h5 file. Received: {' '.join(arguments) or 'nothing'}.")
    path = arguments[0]
    if FLAGS.runtimes and not FLAGS.images:
        raise SettingsError("--runtimes verifies on images. Add --images=FOLDER.")
    for name in FLAGS.runtimes:
        if missing := mp.runtime_missing(name):
            raise SettingsError(missing)
    model = mp.load_model(path)
    contract = image_flags.contract(path, model)
    model = mp.with_fixed_input(model, contract)
    labels = mp.read_labels(FLAGS.labels, mp.output_count(model)) if FLAGS.labels else ()
    images = image_flags.images(contract) if FLAGS.images else None
    variants = mp.convert(
        model,
        FLAGS.recipes,
        images.calibration.images(FLAGS.calibration_images) if images else None,
        mp.short_name(path),
        batch=None if FLAGS.dynamic_batch else 1,
        calibration_method=FLAGS.calibration_method,
        input_range=mp.contract_range(contract),
        strict_int8=FLAGS.strict_int8,
    )
    metadata = mp.Metadata(
        mp.short_name(path),
        contract,
        labels,
        "probabilities" if mp.gives_probabilities(model) else "logits",
        FLAGS.description,
        author=FLAGS.author,
        license=FLAGS.license,
    )
    looked_at = images.validation.images(VERIFY_IMAGES) if images else None
    for variant in variants:
        content = mp.with_minimum_runtime(mp.add_metadata(variant.content, metadata))
        made = dataclasses.replace(variant, content=content)
        checked = "not verified: no --images" if looked_at is None else _verified(model, made, looked_at)
        written = made.save(Path(FLAGS.out) / f"{made.model}_{made.recipe}.tflite")
        print(f"{written}: {len(content):,} bytes, {checked}")
        left = mp.float_layers(content) if "int" in made.recipe else ()
        if left:
            print(f"  in float: {known_names(map(str, left), 6)}")


def _verified(model: Any, variant: mp.Variant, images: Any) -> str:
    """What verification says of a file that passes it."""
    from mobileprune.verify import verify

    report = verify(model, variant, images)
    report.raise_if_failed()
    for check in mp.verify_runtimes(model, variant, images, FLAGS.runtimes).values():
        if not check.passed:
            raise VerificationError(f"On {check.runtime}: {check.reason}")
    return f"verified, {report.snr_db:.0f} dB, on {', '.join([report.runtime, *FLAGS.runtimes])}"
