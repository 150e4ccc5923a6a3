"""The flags of `classify_mobile.py`: one for each choice, with defaults that a preset can change."""

from typing import Any

import shared_flags
from absl import flags

from mobileprune import options, sparsity_options

FLAGS = flags.FLAGS
PRESETS: dict[str, dict[str, Any]] = {
    # Under a minute: does everything work? Its figures mean nothing.
    "smoke": {
        "train_epochs": 1,
        "finetune_epochs": 1,
        "limit_images": 320,
        "batch_size": 16,
        "verify_images": 64,
        "calibration_images": 64,
        "benchmark_rounds": 5,
        "recipes": ["float32", "int8"],
    },
    "quick": {"train_epochs": 8, "finetune_epochs": 4},
    "full": {"train_epochs": 40, "finetune_epochs": 20, "benchmark_rounds": 100},
}
# The models do not depend on these, so a killed run may go on with other values.
FREE = ("out_dir", "overwrite", "tensorboard", "max_drop", "max_bytes", "max_latency_ms", "preset", "control")


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
    options.define_input()
    flags.DEFINE_integer("limit_images", None, "Use at most so many images of each split.", lower_bound=16)

    flags.DEFINE_integer("train_epochs", None, "Training of the base; 0 takes it as it is. By preset.", lower_bound=0)
    flags.DEFINE_integer("finetune_epochs", None, "Training after each kind of pruning. By preset.", lower_bound=0)
    flags.DEFINE_integer("batch_size", 64, "Images in a training step.", lower_bound=2)
    flags.DEFINE_float("learning_rate", 3e-3, "Peak while the base model trains.", lower_bound=0)
    flags.DEFINE_float("finetune_learning_rate", 2e-3, "Peak after pruning.", lower_bound=0)
    flags.DEFINE_bool("augment", True, "Flip and shift the training images.")
    flags.DEFINE_bool("fused_norms", False, "Train each batch normalisation as one op: faster without a GPU.")
    flags.DEFINE_integer(
        "quantize_aware_epochs", 0, "Training of each model with the rounding of int8; 0 makes none.", lower_bound=0
    )
    flags.DEFINE_float("quantize_aware_learning_rate", 1e-4, "Peak while it trains with rounding.", lower_bound=0)

    flags.DEFINE_enum(
        "regularise",
        "none",
        ["none", "group_lasso", "batch_norm"],
        "What the base's training presses towards zero, so that a cut costs less: whole channels or batch-norm scales.",
    )
    flags.DEFINE_float(
        "regularise_strength", 0.02, "How hard: a share of an Adam step; less for more epochs.", lower_bound=1e-6
    )

    sparsity_options.define(training=True)
    options.define_pruning(importance="l2", compensate="none")  # the fine-tune heals what is cut
    flags.DEFINE_integer(
        "prune_steps",
        1,
        "Cuts in which c50 loses its channels; --finetune_epochs are shared out among them. (c50_s80 is cut at once.)",
        lower_bound=1,
    )
    flags.DEFINE_float("distill", 0.0, "Weight of the base's answers beside the labels in every fine-tuning.", 0, 1)
    flags.DEFINE_float("temperature", 4.0, "By which --distill softens the answers.", lower_bound=0.1)
    flags.DEFINE_bool("control", False, "Also train a narrower network with the MACs of c50, for as long.")

    shared_flags.define_export()
    flags.DEFINE_float(
        "max_drop",
        None,
        "Gate: points of test accuracy below base float32. Models that lose more to int8 on validation data get a file "
        "in mixed precision, int8_mixed.",
    )
    flags.DEFINE_integer("max_bytes", None, "Gate: size of the file.")
    flags.DEFINE_float("max_latency_ms", None, "Gate: median latency on this machine.")


def _presets_in_words() -> str:
    def words(values: dict[str, Any]) -> str:
        return " ".join(
            f"--{flag}={','.join(value) if isinstance(value, list) else value}" for flag, value in values.items()
        )

    return " ".join(["Defaults for other flags.", *(f"{name}: {words(values)}." for name, values in PRESETS.items())])


def apply_preset() -> None:
    """Gives flags that the command line does not set the preset's values."""
    for name, value in PRESETS[FLAGS.preset].items():
        if not FLAGS[name].present:
            setattr(FLAGS, name, value)
