"""The flags of `classify_mobile.py`: one for each choice, with defaults that a preset can change."""

from pathlib import Path
from typing import Any

from absl import flags

import mobileprune as mp

FLAGS = flags.FLAGS
PRESETS: dict[str, dict[str, Any]] = {
    # Under a minute: does everything work? Its figures mean nothing.
    "smoke": {
        "train_epochs": 1,
        "finetune_epochs": 1,
        "limit_images": 512,
        "batch_size": 16,
        "verify_images": 64,
        "calibration_images": 64,
        "benchmark_rounds": 5,
    },
    "quick": {"train_epochs": 8, "finetune_epochs": 4},
    "full": {"train_epochs": 40, "finetune_epochs": 20, "benchmark_rounds": 100},
}
# These change no result, so a killed run may go on with another value.
_FREE = ("out_dir", "overwrite", "tensorboard", "max_drop", "max_bytes", "max_latency_ms", "preset")
# These change how files are made and measured, not the models: the stages that read them run anew.
_EXPORT = ("control", "recipes", "verify_images", "threads", "benchmark_rounds", "tolerated_drop")


def define() -> None:
    """Defines all flags; called once, by the pipeline."""
    flags.DEFINE_string("dataset", "fashion_mnist", "fashion_mnist, fashion_mnist_full, or a folder of class folders.")
    flags.DEFINE_string("model", "mobilenet_small", "mobilenet_small, a keras.applications name, a .keras or .h5 file.")
    flags.DEFINE_string("weights", None, "Published weights for a keras.applications name: imagenet.")
    flags.DEFINE_string("out_dir", None, "Where the run is written. Default: tflite_models/<dataset>_<model>.")
    flags.DEFINE_enum("preset", "quick", sorted(PRESETS), _presets_in_words())
    flags.DEFINE_integer("seed", 0, "Of everything random.", lower_bound=0)
    flags.DEFINE_bool("overwrite", False, "Start again where the folder holds another run.")
    flags.DEFINE_bool("strict", False, "Refuse a dataset with unreadable images instead of skipping them.")
    flags.DEFINE_bool("tensorboard", False, "Write training curves to <out_dir>/tensorboard.")

    flags.DEFINE_integer(
        "image_size", None, "Height and width in pixels. Default: the model's or data's.", lower_bound=8
    )
    flags.DEFINE_enum("fit", None, ["crop", "stretch"], "How an image of another shape fits. Default: the data's.")
    flags.DEFINE_float("input_mean", None, "Subtracted from 0..255 values. Default: what the model is known to want.")
    flags.DEFINE_float("input_std", None, "Divides them afterwards. Default: the same.", lower_bound=1e-6)
    flags.DEFINE_integer("limit_images", None, "Use at most so many images of each split.", lower_bound=16)

    flags.DEFINE_integer("train_epochs", None, "Training of the base; 0 takes it as it is. By preset.", lower_bound=0)
    flags.DEFINE_integer("finetune_epochs", None, "Training after each kind of pruning. By preset.", lower_bound=0)
    flags.DEFINE_integer("batch_size", 64, "Images in a training step.", lower_bound=2)
    flags.DEFINE_float("learning_rate", 3e-3, "Peak while the base model trains.", lower_bound=0)
    flags.DEFINE_float("finetune_learning_rate", 2e-3, "Peak after pruning.", lower_bound=0)
    flags.DEFINE_bool("augment", True, "Flip and shift the training images.")

    flags.DEFINE_float(
        "sparsity", 0.8, "Share of zeros in s80 and c50_s80; names follow.", lower_bound=0.01, upper_bound=0.99
    )
    flags.DEFINE_float("macs", 0.5, "Share of the multiply-accumulates kept in c50 and c50_s80.", 0, 1)
    flags.DEFINE_string("importance", "l2", "How channels are ranked: l1, l2, batch_norm_scale or random.")
    flags.DEFINE_enum("scope", "global", ["global", "local"], "Rank all channels together, or cut all groups alike.")
    flags.DEFINE_integer("round_to", 8, "Channel counts are multiples of this.", lower_bound=1)
    flags.DEFINE_list("keep", [], "Wildcard patterns of layers that keep all channels.")
    flags.DEFINE_bool("control", False, "Also train a narrower network with the MACs of c50, for as long.")

    flags.DEFINE_list("recipes", ["float32", "float16", "dynamic_int8", "int8"], "How files are quantized.")
    flags.DEFINE_integer("calibration_images", 256, "For int8 ranges and batch-norm statistics.", lower_bound=2)
    flags.DEFINE_integer("verify_images", 256, "Compared with the Keras model, for each file.", lower_bound=2)
    flags.DEFINE_integer("threads", 1, "Of each interpreter.", lower_bound=1)
    flags.DEFINE_integer("benchmark_rounds", 30, "Turns of each file, alternating with the others.", lower_bound=1)
    flags.DEFINE_float("tolerated_drop", 1.0, "Points of validation accuracy that recommended files may lose.")
    flags.DEFINE_float("max_drop", None, "Gate: points of test accuracy below base float32.")
    flags.DEFINE_integer("max_bytes", None, "Gate: size of the file.")
    flags.DEFINE_float("max_latency_ms", None, "Gate: median latency on this machine.")


def _presets_in_words() -> str:
    words = [f"{name}: {' '.join(f'--{flag}={value}' for flag, value in PRESETS[name].items())}." for name in PRESETS]
    return " ".join(["Defaults for other flags.", *words])


def apply_preset() -> None:
    """Gives flags that the command line does not set the preset's values."""
    for name, value in PRESETS[FLAGS.preset].items():
        if not FLAGS[name].present:
            setattr(FLAGS, name, value)


def result_settings() -> dict[str, Any]:
    """Every flag that the trained models depend on, as JSON types; a model file counts by its content."""
    values = {
        flag.name: flag.value
        for flags_of_module in (FLAGS.flags_by_module_dict().get(define.__module__, []),)
        for flag in flags_of_module
        if flag.name not in (*_FREE, *_EXPORT)
    }
    if Path(FLAGS.model).is_file():
        values["model_file"] = mp.file_digest(FLAGS.model)
    return values


def command() -> str:
    """The command that makes this run again."""
    given = [flag.serialize() for flag in FLAGS.flags_by_module_dict().get(define.__module__, []) if flag.present]
    return " ".join(["python pipelines/classify_mobile.py", *sorted(given)])
