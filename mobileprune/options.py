"""Flags that the command line and the pipelines share: what the model's input is, which channels go, and how.

Importing this defines no flag and loads neither Keras nor TensorFlow.
"""

from __future__ import annotations  # naming a Keras-side class in a signature must not import TensorFlow

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from absl import flags

import mobileprune as mp
from mobileprune.errors import SettingsError

FLAGS = flags.FLAGS
TARGETS = ("macs", "params", "file_bytes", "ratio", "channels", "latency_ms", "speedup")
# Those that --latency_recipe and --threads belong to.
LATENCY_TARGETS = ("latency_ms", "speedup")
# What --latency_device may be beside a phone's serial.
LATENCY_DEVICES = ("host", "arm64")
# How often and how long the hundreds of tiny files of a table run on a phone; each turn is a process of its own there.
PHONE_ROUNDS, PHONE_SECONDS = 3, 0.6
# What is taken when no target is given.
DEFAULT_MACS = 0.5
# Rankings and fits hold activations of all their images: so many input values at most, 128 images of 224×224×3. With
# 100 images EfficientNet-Lite0 takes 19 s for both on two cores, and the process 2.1 GB.
_MOST_INPUT_VALUES = 128 * 224 * 224 * 3
_LEAST_IMAGES = 16
# These importances look at images, and take too long to be a mere check of the target.
WITH_IMAGES = ("taylor", "hessian", "apoz", "activation_mean", "reconstruction", "obs")


def define_input() -> None:
    """Flags that say what the model's input is."""
    flags.DEFINE_enum(
        "fit", None, ["crop", "stretch"], "How an image of another shape fits. Default: crop; Fashion-MNIST: stretch."
    )
    flags.DEFINE_float("input_mean", None, "Subtracted from 0..255 values. Default: what the model is known to want.")
    flags.DEFINE_float("input_std", None, "Divides them afterwards. Default: the same.", lower_bound=1e-6)


def define_calibration() -> None:
    """The flag that says how many images of the calibration split are used."""
    flags.DEFINE_integer(
        "calibration_images", 256, "At most so many for int8 ranges, rankings and compensation.", lower_bound=2
    )


def define_pruning(importance: str | None = None, compensate: str | None = None) -> None:
    """Flags that say which channels go, and how what they gave is made up for.

    Args:
        importance: the default; what suits the images that there are if None.
        compensate: likewise.
    """
    flags.DEFINE_float("macs", None, "Multiply-accumulates kept: a share, or a number above 1. Default: 0.5.", 0)
    flags.DEFINE_float("params", None, "The same for the parameters. Give one target only.", 0)
    flags.DEFINE_float("file_bytes", None, "The same for the bytes of the file in --file_recipe.", 0)
    flags.DEFINE_string("file_recipe", "float32", "The recipe whose size --file_bytes means.")
    flags.DEFINE_float("ratio", None, "Share of the channels that every group loses alike.", 0, 1)
    flags.DEFINE_list("channels", None, "Channels that layers keep, by wildcard pattern: stem:24,block_*_expand:96.")
    flags.DEFINE_float("latency_ms", None, "Milliseconds that the file may take on --latency_device.", 0)
    flags.DEFINE_float("speedup", None, "How many times faster than the whole model there, above 1.", 1)
    flags.DEFINE_string(
        "latency_device",
        "host",
        "Where: host, arm64 (emulated on other machines), or a phone's serial from adb devices. Its table of "
        "tiny files is measured once and kept.",
    )
    flags.DEFINE_string(
        "benchmark_model", None, "LiteRT's program for that phone: a path, or a URL that ends in #sha256= and its sum."
    )
    flags.DEFINE_string("latency_recipe", "float32", "The recipe that --latency_ms and --speedup mean.")
    flags.DEFINE_string(
        "importance",
        importance,
        "How channels are ranked: l1, l2, lamp, batch_norm_scale, fpgm or random; by images taylor, hessian, apoz, "
        "activation_mean, reconstruction or obs." + ("" if importance else " Default: obs, without images l2."),
    )
    flags.DEFINE_string("normalise", "sum", "How scores become comparable: sum, mean, max, gaussian or none.")
    flags.DEFINE_enum(
        "scope",
        "global",
        ["global", "local", "isomorphic"],
        "Rank all channels together, cut all groups alike, or rank groups of one structure together.",
    )
    flags.DEFINE_integer("round_to", 8, "Channel counts are multiples of this.", lower_bound=1)
    flags.DEFINE_list("min_channels", ["1"], "No group keeps fewer: a number, or by pattern: stem:16,block_*:24.")
    flags.DEFINE_list("max_ratio", ["0.9"], "No group loses a larger share: a number, or by pattern: stem:0.5.")
    flags.DEFINE_list("keep", [], "Wildcard patterns of layers that keep all channels.")
    flags.DEFINE_list("prune_only", [], "Wildcard patterns of the only layers that may lose channels.")
    flags.DEFINE_string(
        "blocks",
        None,
        "Whole blocks and layers that go before channels: how many at most, the share of the MACs that they may have, "
        "or auto. Looks at images. Default: none.",
    )
    flags.DEFINE_enum(
        "compensate",
        compensate,
        ["none", "mean", "least_squares"],
        "How layers make up for the inputs that they lost; mean and least_squares look at images."
        + ("" if compensate else " Default: least_squares, without images none."),
    )


def contract(known: mp.Preprocess) -> mp.Preprocess:
    """What is known of the model's input, with what the flags say instead."""
    own = {"mean": FLAGS.input_mean, "std": FLAGS.input_std}
    return dataclasses.replace(known, **{name: (value,) for name, value in own.items() if value is not None})


def target() -> dict[str, Any]:
    """The one target that was given, as an argument of `mobileprune.plan_channels`.

    Raises:
        SettingsError: several were given, or channels that cannot be read.
    """
    given = [name for name in TARGETS if FLAGS[name].value is not None]
    if len(given) > 1:
        raise SettingsError(f"Give one target: --{given[0]} or --{given[1]}, not both.")
    if not given:
        return {"macs": DEFAULT_MACS}
    if given == ["channels"]:
        return {"channels": _by_pattern("channels", int)}
    return {given[0]: FLAGS[given[0]].value}


def cut_name() -> str:
    """What a model that met the target is called: `c50` for half of the MACs, `params50`, `ratio30`, `channels`,
    `latency150us`, `speedup200`."""
    ((name, wanted),) = target().items()
    if name == "channels":
        return name
    if name in LATENCY_TARGETS:
        return f"latency{1000 * wanted:.0f}us" if name == "latency_ms" else f"{name}{100 * wanted:.0f}"
    number = f"{100 * wanted if wanted <= 1 else wanted:.0f}"
    return f"c{number}" if name == "macs" else f"{name}{number}"


def importance(images: bool = True) -> str:
    """How channels are ranked, given whether there are images to look at."""
    return str(FLAGS.importance or ("obs" if images else "l2"))


def compensation(images: bool = True) -> str:
    """How layers make up for what they lost, given whether there are images to look at."""
    return str(FLAGS.compensate or ("least_squares" if images else "none"))


def pruning_images(images: np.ndarray) -> np.ndarray:
    """The first of `images`: as many as rankings and fits have the memory for."""
    most = max(_LEAST_IMAGES, _MOST_INPUT_VALUES // max(1, images[0].size))
    return images[:most]


def blocks() -> int | float | str | None:
    """How many blocks may go, as an argument of `mobileprune.plan_channels`.

    Raises:
        SettingsError: a value that is no number of blocks.
    """
    given = FLAGS.blocks
    if given in (None, "auto"):
        return None if given is None else str(given)
    try:
        found = int(given) if given.isdecimal() else float(given)
    except ValueError as error:
        raise SettingsError(f"--blocks: {given!r} is none of 3 (blocks), 0.3 (of the MACs) and auto.") from error
    if isinstance(found, float) and not 0 < found < 1:
        raise SettingsError(f"--blocks={given} is no share of the MACs. Give one between 0 and 1, or whole blocks.")
    return found


def latency_device() -> str | mp.AndroidSettings:
    """Where a latency is meant, as an argument of `mobileprune.plan_channels`.

    Raises:
        SettingsError: a phone, and no program that times files on it.
    """
    if FLAGS.latency_device in LATENCY_DEVICES:
        return str(FLAGS.latency_device)
    phone = mp.AndroidSettings(
        serial=FLAGS.latency_device,
        rounds=PHONE_ROUNDS,
        seconds=PHONE_SECONDS,
        benchmark_model=FLAGS.benchmark_model,
    )
    phone.check()
    return phone


def limits() -> dict[str, Any]:
    """What no plan may do, as arguments of `mobileprune.pruning_floor` and `plan_channels`."""
    return {
        "round_to": FLAGS.round_to,
        "min_channels": _number_or_by_pattern("min_channels", int),
        "max_ratio": _number_or_by_pattern("max_ratio", float),
        "keep": FLAGS.keep,
        "prune_only": FLAGS.prune_only,
    }


def plan(model: Any, images: np.ndarray | None = None, seed: int = 0) -> mp.PruningPlan:
    """Which channels go.

    Args:
        model: the model.
        images: what `importance` may look at; see `pruning_images`.
        seed: for what is random.

    Raises:
        SettingsError, PlanError: flags that cannot be meant, or a target that cannot be met.
    """
    if blocks() and images is None:
        raise SettingsError("--blocks looks at images, and there are none.")
    return _plan(model, importance(images is not None), images, seed)


def check(model: Any, images: bool = True) -> None:
    """Refuses flags that cannot be meant and a target that the model cannot meet, before any long work.

    Raises:
        SettingsError, PlanError: the same as `plan`.
    """
    chosen = importance(images)
    _plan(model, "l2" if chosen in WITH_IMAGES else chosen, None, 0)


def prune(model: Any, plan: mp.PruningPlan, images: np.ndarray | None = None) -> Any:
    """The smaller model, with what it lost made up for."""
    return mp.prune_channels(model, plan, compensation(images is not None), images)


def planning(importance: str, images: np.ndarray | None = None, seed: int = 0) -> dict[str, Any]:
    """All that the flags say, as arguments of `mobileprune.plan_channels` and `prune_iteratively`.

    Raises:
        SettingsError: flags that cannot be meant.
    """
    wanted, some = target(), blocks()
    if some and images is None:
        # A mere check: how small the model gets is known only when its blocks have been ranked.
        wanted, some = {"macs": 1.0}, None
    timed = set(wanted) <= set(LATENCY_TARGETS)
    return {
        **wanted,
        **limits(),
        "importance": importance,
        "normalise": FLAGS.normalise,
        "scope": FLAGS.scope,
        "recipe": FLAGS.latency_recipe if timed else FLAGS.file_recipe,
        "device": latency_device() if timed else "host",
        "threads": FLAGS.threads if "threads" in FLAGS else 1,
        "calibration": images,
        "seed": seed,
        "blocks": some,
    }


def _plan(model: Any, importance: str, images: np.ndarray | None, seed: int) -> mp.PruningPlan:
    if blocks() and images is None:
        mp.pruning_floor(model, **limits())
    return mp.plan_channels(model, **planning(importance, images, seed))


def _number_or_by_pattern(flag: str, number: Callable[[str], Any]) -> Any:
    """A flag that is one number, or numbers by pattern."""
    entries: Sequence[str] = FLAGS[flag].value
    if len(entries) == 1 and ":" not in entries[0]:
        return _number(flag, entries[0], number)
    return _by_pattern(flag, number)


def _by_pattern(flag: str, number: Callable[[str], Any]) -> Mapping[str, Any]:
    found = {}
    for entry in FLAGS[flag].value:
        pattern, colon, value = entry.rpartition(":")
        if not colon or not pattern:
            raise SettingsError(f"--{flag}: {entry!r} is no pattern and number. Write for example {_EXAMPLES[flag]}.")
        found[pattern.strip()] = _number(flag, value, number)
    if not found:
        raise SettingsError(f"--{flag} names nothing. Write for example {_EXAMPLES[flag]}.")
    return found


def _number(flag: str, value: str, number: Callable[[str], Any]) -> Any:
    try:
        return number(value)
    except ValueError as error:
        raise SettingsError(f"--{flag}: {value!r} is no number. Write for example {_EXAMPLES[flag]}.") from error


_EXAMPLES = {
    "channels": "--channels=stem:24,block_*_expand:96",
    "min_channels": "--min_channels=16 or --min_channels=stem:16",
    "max_ratio": "--max_ratio=0.5 or --max_ratio=stem:0.5",
}
