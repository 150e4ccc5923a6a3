"""Flags that the command line and the pipelines share: how many weights become zero, which, and how.

Importing this defines no flag and loads neither Keras nor TensorFlow.
"""

from __future__ import annotations  # naming a Keras-side class in a signature must not import TensorFlow

from typing import Any

import numpy as np
from absl import flags

import mobileprune as mp
from mobileprune.errors import SettingsError

FLAGS = flags.FLAGS


def define(share: float | None = 0.8, training: bool = False) -> None:
    """Flags that say how many weights become zero, and which.

    Args:
        share: the default of `--sparsity`.
        training: whether the model is trained afterwards, which has flags of its own.
    """
    flags.DEFINE_float("sparsity", share, "Share of zeros among the weights.", lower_bound=0.01, upper_bound=0.99)
    flags.DEFINE_string(
        "sparsity_pattern",
        "1x1",
        "Weights that go together: 1x1 each alone, 4x1 blocks of (inputs)x(outputs), 2:4 two of four neighbours.",
    )
    flags.DEFINE_enum(
        "sparsity_allocation",
        None,
        ["uniform", "global", "erk"],
        "The same share in every layer, the least important of all layers, or fewer where a layer is small. Default: "
        "global for one_shot, else uniform.",
    )
    flags.DEFINE_list("dense", [], "Wildcard patterns of layers that keep all weights.")
    flags.DEFINE_bool(
        "sparse_ready",
        False,
        "Rewrite the network so that phones compute sparse float files faster; only 1x1 convolutions become sparse.",
    )
    if training:
        flags.DEFINE_enum(
            "sparsity_init",
            None,
            ["none", "one_shot"],
            "Fine-tuning loses weights step by step, or starts with the zeros of prune_one_shot and holds them. "
            "Default: one_shot, with --sparsity_backend=tfmot none.",
        )
        flags.DEFINE_enum(
            "sparsity_backend",
            "mobileprune",
            ["mobileprune", "tfmot"],
            "Who trains the zeros; tfmot is the TensorFlow Model Optimization toolkit itself.",
        )


def pattern() -> dict[str, tuple[int, int]]:
    """`--sparsity_pattern` as arguments of `prune_low_magnitude` and `prune_one_shot`.

    Raises:
        SettingsError: it is none.
    """
    text = FLAGS.sparsity_pattern
    for sign, name in ((":", "sparsity_m_by_n"), ("x", "block_size")):
        first, found, second = text.partition(sign)
        if found and first.isdecimal() and second.isdecimal():
            return {} if text == "1x1" else {name: (int(first), int(second))}
    raise SettingsError(
        f"--sparsity_pattern: {text!r} is no pattern. Write 1x1, a block as 4x1, or 2:4 for two of four."
    )


def share() -> float:
    """The share of zeros that comes out: an n:m pattern has its own."""
    zeros, size = pattern().get("sparsity_m_by_n", (FLAGS.sparsity, 1))
    return float(zeros / size)


def schedules(model: Any, steps: int) -> dict[str, mp.PolynomialDecay | None]:
    """What `prune_low_magnitude` does to layers, by pattern: a decay over 60% of the training in 40 updates.

    Args:
        model: the model; its zeros are where the decay begins.
        steps: batches of the whole training.
    """
    target, zeros = share(), mp.sparsity(model)
    frequency = max(1, int(0.6 * steps) // 40)
    end = max(1, int(0.6 * steps) // frequency) * frequency  # a multiple, or tfmot would stop short of the target
    decay = mp.PolynomialDecay(min(zeros, target), target, begin_step=0, end_step=end, frequency=frequency)
    return {**dict.fromkeys(dense_layers(model)), "*": decay}


def starts_with_zeros() -> bool:
    """Whether fine-tuning starts with the zeros of `prune_one_shot`."""
    return bool((FLAGS.sparsity_init or ("none" if FLAGS.sparsity_backend == "tfmot" else "one_shot")) == "one_shot")


def allocation(default: str) -> str:
    """How the zeros are shared out among layers."""
    return str(FLAGS.sparsity_allocation or default)


def dense_layers(model: Any) -> list[str]:
    """Names of layers, or patterns of names, that keep all weights."""
    if not FLAGS.sparse_ready:
        return list(FLAGS.dense)
    from mobileprune.prunable import kernels_of  # it loads Keras, for which `--help` should not wait

    policy = mp.PruneForLatencyOnXNNPack()
    stay = (layer.name for layer in model.layers if kernels_of(layer) and not policy.allow_pruning(layer))
    return [*FLAGS.dense, *stay]


def check(model: Any) -> None:
    """Refuses flags that cannot be meant, before any long work.

    Raises:
        SettingsError, SparsityError: what is wrong with them.
    """
    by_tfmot = "sparsity_backend" in FLAGS and FLAGS.sparsity_backend == "tfmot"
    if by_tfmot and (starts_with_zeros() or allocation("uniform") != "uniform"):
        raise SettingsError("tfmot starts with all weights and knows --sparsity_allocation=uniform only.")
    prune_one_shot(model, None)


def prune_one_shot(model: Any, images: np.ndarray | None) -> Any:
    """The model with zeros by second order; by magnitude without images."""
    shared = images is not None and "sparsity_m_by_n" not in pattern()
    return mp.prune_one_shot(
        model,
        {"*": share()},
        images,
        keep=dense_layers(model),
        method="magnitude" if images is None else "second_order",
        allocation=allocation("global" if shared else "uniform"),
        **pattern(),
    )
