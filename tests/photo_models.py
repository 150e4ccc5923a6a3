"""A small classifier of real photographs, its files, and ways of breaking them."""

import dataclasses
import functools
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from photos import PHOTOGRAPHS, make_photo_folder
from tiny_models import SIZE, convnet

from mobileprune.preprocess import load
from mobileprune.records import Preprocess, Variant
from mobileprune.verify_files import find_images

NAMES = tuple(PHOTOGRAPHS)
CONTRACT = Preprocess(SIZE, SIZE, fit="crop")
RECIPES = ("float32", "float16", "dynamic_int8", "int8", "int8_float_io")
_FOLDERS: list[tempfile.TemporaryDirectory] = []


@functools.cache
def photos() -> tuple[list[Path], np.ndarray]:
    """100 JPEG, PNG and WebP files of five classes, and their labels."""
    _FOLDERS.append(tempfile.TemporaryDirectory())
    folder = make_photo_folder(Path(_FOLDERS[0].name), per_class=20, size=32)
    paths, labels = find_images(folder, 1000, NAMES)
    return paths, labels


@functools.cache
def photo_images() -> np.ndarray:
    return np.stack([load(path, CONTRACT) for path in photos()[0]])


@functools.cache
def photo_net():
    """Random features of 16×16 pixels and a head that is fitted to the five classes."""
    import keras

    body = convnet(seed=3)
    features = keras.Model(body.inputs, body.layers[-2].output)
    model = keras.Model(body.inputs, keras.layers.Dense(len(NAMES), name="head")(features.output), name="photo_net")
    seen = np.asarray(features(photo_images(), training=False))
    centred = seen - seen.mean(axis=0)
    wanted = 4.0 * np.eye(len(NAMES))[photos()[1]] - 0.8
    kernel = np.linalg.solve(centred.T @ centred + 0.01 * np.eye(seen.shape[1]), centred.T @ wanted)
    model.get_layer("head").set_weights([kernel, -seen.mean(axis=0) @ kernel])
    return model


@functools.cache
def photo_variants() -> dict[str, Variant]:
    from mobileprune.convert import convert

    return {made.recipe: made for made in convert(photo_net(), RECIPES, photo_images(), "photo_net")}


@functools.cache
def expected() -> np.ndarray:
    """What the classifier answers for `photo_images()`."""
    return np.asarray(photo_net()(photo_images(), training=False))


def edited(variant: Variant, edit: Callable[[schema.ModelT], None]) -> Variant:
    """The same file with other fields, still a valid flatbuffer."""
    import flatbuffers

    model = schema.ModelT.InitFromPackedBuf(variant.content, 0)
    for tensor in model.subgraphs[0].tensors:  # as lists, because what was read cannot be written to
        if tensor.quantization is not None and tensor.quantization.scale is not None:
            tensor.quantization.scale = list(tensor.quantization.scale)
            tensor.quantization.zeroPoint = list(tensor.quantization.zeroPoint)
    edit(model)
    builder = flatbuffers.Builder(len(variant.content))
    builder.Finish(model.Pack(builder), b"TFL3")
    return dataclasses.replace(variant, content=bytes(builder.Output()))


def broken_variant(
    recipe: str, op: int, change: Callable[[np.ndarray], np.ndarray], calibration: np.ndarray | None = None
) -> Variant:
    """A file made from a float file with another kernel in one op.

    Args:
        recipe: how it is quantized afterwards.
        op: 0 is the stem (16, 3, 3, 3), 2 the 1×1 convolution (16, 1, 1, 16), -1 the head (5, 16): outputs come first
            and inputs last.
        change: kernel → kernel.
        calibration: images for integer recipes, `photo_images()` by default.
    """
    from mobileprune.recipes import make_variants

    def exchange(model: schema.ModelT) -> None:
        graph = model.subgraphs[0]
        tensor = graph.tensors[graph.operators[op].inputs[1]]
        buffer = model.buffers[tensor.buffer]
        kernel = np.frombuffer(bytes(buffer.data), np.float32).reshape(tensor.shape)
        buffer.data = np.frombuffer(np.ascontiguousarray(change(kernel), np.float32).tobytes(), np.uint8)

    content = edited(photo_variants()["float32"], exchange).content
    images = photo_images() if calibration is None else np.ascontiguousarray(calibration, np.float32)
    (made,) = make_variants(content, [recipe], images, "photo_net")
    return made
