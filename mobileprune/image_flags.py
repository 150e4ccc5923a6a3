"""Flags that say where images are and what a model wants them to be, the same for every verb that takes some."""

from typing import Any

from absl import flags

import mobileprune as mp
from mobileprune import options

FLAGS = flags.FLAGS


def define(what_for: str, required: bool = False) -> None:
    """Defines --images and what belongs to it."""
    flags.DEFINE_string("images", None, what_for, required=required)
    flags.DEFINE_integer("image_size", 224, "Height and width, for models that leave them open.", lower_bound=8)
    options.define_input()


def contract(path: str, model: Any) -> mp.Preprocess:
    """What the model wants its images to be."""
    default = mp.Preprocess(FLAGS.image_size, FLAGS.image_size, fit=FLAGS.fit or "crop")
    found: mp.Preprocess = options.contract(mp.input_contract(path, default, model=model))
    return found


def told(found: mp.Preprocess) -> str:
    """The contract for people."""
    return f"Images become {found.shape} {found.color}, (x - {found.mean}) / {found.std}, {found.fit}."


def images(found: mp.Preprocess, labels: tuple[str, ...] = ()) -> mp.Dataset:
    """The images in --images, said what becomes of them."""
    loaded = mp.load_images(FLAGS.images, found, labels)
    print(told(found))
    return loaded
