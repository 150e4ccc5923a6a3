"""Small models with every weight and statistic random, made once a session, and what was converted from them."""

import functools

import numpy as np

from mobileprune.recipes import RECIPES
from mobileprune.records import Variant

# What this convnet can be made into: its weights hold no zeros.
DENSE_RECIPES = [recipe for recipe in RECIPES.values() if not recipe.sparse]
SIZE = 16
CLASSES = 6


def images(count: int, seed: int = 0, size: int = SIZE) -> np.ndarray:
    """Coarse patches with some noise: float32 (count, size, size, 3), more like photographs than white noise is."""
    generator = np.random.default_rng(seed)
    patches = generator.normal(size=(count, 4, 4, 3)).repeat(size // 4, axis=1).repeat(size // 4, axis=2)
    return (patches + generator.normal(0, 0.2, (count, size, size, 3))).astype(np.float32)


def randomize(model, seed: int = 0) -> None:
    """Weights that keep the signal's size, and batch-norm statistics that are all different."""
    generator = np.random.default_rng(seed)
    for variable in model.variables:
        shape, name = tuple(variable.shape), variable.path.rsplit("/", 1)[-1]
        if len(shape) > 1:
            fan_in = np.prod(shape[:2]) if "depthwise" in variable.path else np.prod(shape[:-1])
            variable.assign(generator.normal(0, 1.4 / np.sqrt(fan_in), shape))
        elif "variance" in name or "gamma" in name:
            variable.assign(generator.uniform(0.5, 1.5, shape))
        elif variable.dtype.startswith("float"):
            variable.assign(generator.normal(0, 0.3, shape))


def convnet(seed: int = 0, activation: str | None = None):
    """conv → batch norm → depthwise → batch norm → 1×1 conv → residual add → pooling → dense."""
    import keras

    inputs = keras.Input((SIZE, SIZE, 3), name="image")
    x = keras.layers.Conv2D(16, 3, strides=2, padding="same", use_bias=False, name="stem")(inputs)
    x = stem = keras.layers.ReLU(6.0)(keras.layers.BatchNormalization(name="stem_bn")(x))
    x = keras.layers.DepthwiseConv2D(3, padding="same", use_bias=False, name="depthwise")(x)
    x = keras.layers.ReLU(6.0)(keras.layers.BatchNormalization(name="depthwise_bn")(x))
    x = keras.layers.Conv2D(16, 1, use_bias=False, name="project")(x)
    x = keras.layers.Add()([stem, keras.layers.BatchNormalization(name="project_bn")(x)])
    x = keras.layers.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, keras.layers.Dense(CLASSES, activation=activation, name="head")(x), name="tiny")
    randomize(model, seed)
    # A random head prefers one class: centre and spread its outputs, so that all classes occur.
    head = model.get_layer("head")
    logits = np.asarray(keras.Model(inputs, head.input)(images(256, seed=99), training=False)) @ head.kernel.numpy()
    head.kernel.assign(head.kernel * 2.0 / logits.std(axis=0))
    head.bias.assign(-2.0 * logits.mean(axis=0) / logits.std(axis=0))
    return model


@functools.cache
def shared_convnet():
    """One convnet for all tests that only read it."""
    return convnet()


@functools.cache
def reference() -> np.ndarray:
    """The shared convnet's float32 outputs (256, CLASSES) for `images(256, seed=7)`."""
    return np.asarray(shared_convnet()(images(256, seed=7), training=False))


@functools.cache
def variants() -> dict[str, Variant]:
    """The shared convnet in every dense recipe, by recipe name."""
    from mobileprune.convert import convert

    names = [recipe.name for recipe in DENSE_RECIPES]
    made = convert(shared_convnet(), names, calibration=images(100, seed=1), name="tiny")
    return {variant.recipe: variant for variant in made}


def swapped_outputs(content: bytes) -> bytes:
    """The same float file with two rows of the dense layer's kernel and bias exchanged: two classes change places."""
    from mobileprune.tflite_graph import read_graph

    graph = read_graph(content)
    dense = next(op for op in graph.ops if op.name == "FULLY_CONNECTED")
    for index in dense.inputs[1:]:
        data = graph.tensors[index].data
        rows = np.frombuffer(data, np.float32).reshape(CLASSES, -1)[[1, 0, *range(2, CLASSES)]]
        assert content.count(data) == 1
        content = content.replace(data, rows.tobytes())
    return content


def rescaled_weights(content: bytes, factor: float) -> bytes:
    """The same integer file whose dense layer claims other scales for its kernel and bias.

    (Another scale of the *output* alone is no fault: the runtime computes to whatever scale the file says.)
    """
    from mobileprune.tflite_graph import read_graph

    graph = read_graph(content)
    dense = next(op for op in graph.ops if op.name == "FULLY_CONNECTED")
    for index in dense.inputs[1:]:
        scales = np.float32(graph.tensors[index].scales)
        assert content.count(scales.tobytes()) == 1
        content = content.replace(scales.tobytes(), (scales * np.float32(factor)).tobytes())
    return content
