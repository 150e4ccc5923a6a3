"""From a model's name or file to a Keras model for the data's classes."""

import dataclasses
import inspect
import json
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import keras
import numpy as np

from mobileprune.errors import ModelError, known_names
from mobileprune.fake_quant import FakeQuantize, QuantizedKernel  # this and below: also registers them, for files
from mobileprune.graph import check_finite, functional_graph, inline_nested, is_nested, leaves
from mobileprune.pruning_wrapper import PruneLowMagnitude
from mobileprune.records import Preprocess

layers = keras.layers

DEFAULT_MODEL = "mobilenet_small"
# What the published weights of each family expect; families that are not named here scale to -1..1.
_SCALING_INSIDE = ("efficientnet", "mobilenet_v3", "convnext")
_CAFFE = ("resnet50", "resnet101", "resnet152", "vgg16", "vgg19")
_TORCH = ("densenet",)
_IMAGENET_MEAN = (123.675, 116.28, 103.53)


def mobilenet_small(shape: tuple[int, int, int], classes: int) -> Any:
    """An inverted-residual network (Sandler et al. 2018, arXiv:1801.04381) for images of 32 pixels and up.

    Args:
        shape: height, width, channels of the input.
        classes: number of logits.

    Returns:
        A functional model; about 9 million MACs and 413 thousand parameters at 32×32×1.
    """
    inputs = keras.Input(shape, name="image")
    x = _conv_norm_relu(inputs, 24, 3, strides=2, name="stem")
    block = 0
    for expansion, channels, repeats, strides in _MOBILENET_SMALL_STAGES:
        for index in range(repeats):
            block += 1
            x = _inverted_residual(x, expansion, channels, strides if index == 0 else 1, f"block_{block}")
    x = _conv_norm_relu(x, 1024, 1, strides=1, name="head")
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    x = layers.Dropout(0.1, name="dropout")(x)
    return keras.Model(inputs, layers.Dense(classes, name="logits")(x), name=DEFAULT_MODEL)


# Expansion, output channels, repeats, stride of the first: most MACs lie at 16×16 and 8×8, most weights at 4×4.
_MOBILENET_SMALL_STAGES = ((3, 24, 1, 1), (4, 40, 2, 2), (4, 80, 2, 2), (4, 112, 2, 1))


def _conv_norm_relu(x: Any, filters: int, size: int, strides: int, name: str) -> Any:
    x = layers.Conv2D(filters, size, strides=strides, padding="same", use_bias=False, name=name)(x)
    # Short fine-tunes need statistics that follow quickly.
    x = layers.BatchNormalization(momentum=0.9, name=f"{name}_norm")(x)
    return layers.ReLU(6.0, name=f"{name}_relu")(x)


def _inverted_residual(x: Any, expansion: int, channels: int, strides: int, name: str) -> Any:
    y = _conv_norm_relu(x, expansion * x.shape[-1], 1, 1, f"{name}_expand")
    y = layers.DepthwiseConv2D(3, strides=strides, padding="same", use_bias=False, name=f"{name}_depthwise")(y)
    y = layers.BatchNormalization(momentum=0.9, name=f"{name}_depthwise_norm")(y)
    y = layers.ReLU(6.0, name=f"{name}_depthwise_relu")(y)
    y = layers.Conv2D(channels, 1, use_bias=False, name=f"{name}_project")(y)
    y = layers.BatchNormalization(momentum=0.9, name=f"{name}_project_norm")(y)
    return layers.Add(name=f"{name}_add")([x, y]) if strides == 1 and x.shape[-1] == channels else y


def model_names() -> tuple[str, ...]:
    """Every name that `build_model` knows beside paths."""
    return (DEFAULT_MODEL, *_applications())


def is_model_file(name: str) -> bool:
    """Whether `--model` names a file rather than an architecture."""
    return Path(name).suffix in {".keras", ".h5"}


def short_name(name: str) -> str:
    """The name that files and folders carry.

    Example:
        >>> short_name("models/My Net.keras")
        'my_net'
    """
    return re.sub(r"[^a-z0-9]+", "_", (Path(name).stem if is_model_file(name) else name).lower()).strip("_")


def load_model(path: str | Path) -> Any:
    """A model from a `.keras` or `.h5` file, uncompiled.

    Loaded with `safe_mode`: no code from the file runs.

    Raises:
        ModelError: the file is missing, corrupt, needs code that mobileprune does not have, or the model or one nested
            in it is subclassed.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelError(f"There is no model file {path}.")
    try:
        model = keras.models.load_model(path, compile=False, safe_mode=True)
    except Exception as error:
        subclassed = _subclassed(path)
        if subclassed:
            raise ModelError(
                f"The model in {path} is of a class of its own, {subclassed}, so its layers' connections cannot be "
                "read. Where that class is defined, save keras.Model(inputs, model.call(inputs)) with "
                "inputs = keras.Input(shape) in its place."
            ) from error
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"Cannot load {path}: {type(error).__name__}: {reason}") from error
    check_readable(model)
    check_finite(model)
    return model


def check_readable(model: Any) -> None:
    """Refuses a model whose graph, or that of a model nested in it, cannot be read.

    Raises:
        ModelError: it is subclassed, or a Sequential model without an input shape.
    """
    functional_graph(model)
    for _, layer in leaves(model):
        if isinstance(layer, keras.Model):
            functional_graph(layer)


def _subclassed(path: Path) -> str | None:
    """The class of the model in a `.keras` file when it is neither functional nor Sequential."""
    try:
        with zipfile.ZipFile(path) as archive:
            config = json.loads(archive.read("config.json"))
        return None if "layers" in config["config"] else str(config["class_name"])
    except (OSError, KeyError, TypeError, ValueError, zipfile.BadZipFile):
        return None


def input_contract(name: str, default: Preprocess, weights: str | None = None, model: Any = None) -> Preprocess:
    """What the model wants its images to be, starting from what is natural for the data.

    Args:
        name: as in `build_model`.
        default: the data's own contract.
        weights: for architectures of keras.applications: `None` (fresh) or `"imagenet"`.
        model: the loaded model, when `name` is a file.

    Raises:
        ModelError: the model's input is not one image of fixed size with 1 or 3 channels.
    """
    if model is not None:
        height, width, channels = _image_shape(model)
        own = dataclasses.replace(
            default, height=height or default.height, width=width or default.width, color=_color(channels)
        )
        first = [type(layer) for _, layer in leaves(model) if not isinstance(layer, layers.InputLayer)][:3]
        inside = layers.Rescaling in first or layers.Normalization in first
        return dataclasses.replace(own, mean=(0.0,), std=(1.0,)) if inside else own
    if name == DEFAULT_MODEL:
        return default
    # Published weights need colour; so do several of the architectures.
    colored = dataclasses.replace(default, color="RGB")
    if name.startswith(_SCALING_INSIDE):
        return dataclasses.replace(colored, mean=(0.0,), std=(1.0,))
    if weights and name.startswith(_TORCH):
        return dataclasses.replace(colored, mean=_IMAGENET_MEAN, std=(58.395, 57.12, 57.375))
    if weights and name in _CAFFE:
        return dataclasses.replace(colored, mean=(123.68, 116.779, 103.939), std=(1.0,))
    return colored


def build_model(name: str, contract: Preprocess, classes: int, weights: str | None = None, model: Any = None) -> Any:
    """A model with one output for each class.

    Args:
        name: `mobilenet_small`, a name of keras.applications in snake case, or the path of a `.keras` or `.h5` file.
        contract: the input's size and colours.
        classes: number of classes of the data.
        weights: `"imagenet"` fetches published weights for a name of keras.applications.
        model: the loaded model, when `name` is a file. Its head is kept when it has `classes` outputs, else replaced
            by a fresh one.

    Raises:
        ModelError: the name is not known, or the model cannot take the data's images.
    """
    if weights and (model is not None or name == DEFAULT_MODEL):
        raise ModelError(f"There are no published weights {weights!r} for {name!r}; only for keras.applications names.")
    if model is not None:
        # Joined into one graph: a head is cut off from it, and sparsity wraps its layers.
        return with_head(with_fixed_input(inline_nested(model), contract), classes)
    if name == DEFAULT_MODEL:
        return mobilenet_small(contract.shape, classes)
    found = _applications().get(name)
    if found is None:
        raise ModelError(
            f"Unknown model {name!r}. Known: {known_names(model_names(), 60)}, or the path of a .keras or .h5 file."
        )
    arguments: dict[str, Any] = {"include_top": False, "weights": weights, "input_shape": contract.shape}
    if "minimalistic" in inspect.signature(found).parameters:
        arguments["include_preprocessing"] = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of input sizes other than the published weights'
            body = found(**arguments)
    except Exception as error:
        raise ModelError(f"Cannot build {name} for {contract.shape} images: {' '.join(str(error).split())}") from error
    if weights and name in _CAFFE:
        _read_rgb(body)
    return _attach_head(body.inputs[0], body.outputs[0], classes, name)


def with_head(model: Any, classes: int) -> Any:
    """`model` itself when it ends in `classes` outputs, else the same body under a fresh pooling and dense head."""
    graph = functional_graph(model)
    if len(graph.outputs) != 1:
        raise ModelError(f"{model.name!r} has {len(graph.outputs)} outputs; a classifier has one.")
    output = graph.outputs[0]
    if len(output.shape) == 2 and output.shape[-1] == classes:
        return model
    if len(output.shape) == 2:
        output = _before_head(graph, output)
    return _attach_head(graph.inputs[0], output, classes, model.name)


def with_fixed_input(model: Any, contract: Preprocess) -> Any:
    """The same model with the contract's height and width where it left them open; it shares all weights.

    Raises:
        ModelError: the model's layers do not take images of that size.
    """
    if None not in _image_shape(model):
        return model
    graph = functional_graph(model)
    inputs = keras.Input(contract.shape, name=graph.inputs[0]._keras_history.operation.name)
    try:
        outputs = graph._run_through_graph(inputs, operation_fn=lambda layer: layer)
        return keras.Model(inputs, outputs, name=model.name)
    except (ValueError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"{model.name!r} does not take {contract.shape} images: {reason}") from error


def gives_probabilities(model: Any, output: int = 0) -> bool:
    """Whether one of the model's outputs is probabilities (it ends in a softmax) rather than logits."""
    layer = output_layer(model, output)
    if isinstance(layer, QuantizedKernel):
        layer = layer.core  # its activation, were it one of these, would be a layer of its own
    if isinstance(layer, PruneLowMagnitude):
        layer = layer.layer
    name = getattr(getattr(layer, "activation", None), "__name__", "")
    return isinstance(layer, layers.Softmax) or name in {"softmax", "sigmoid"}


def output_layer(model: Any, output: int = 0) -> Any:
    """The layer whose output is the model's; inside a nested model when that comes last."""
    operation, _, index = functional_graph(model).outputs[output]._keras_history
    while isinstance(operation, FakeQuantize):
        operation, _, index = operation.input._keras_history
    return output_layer(operation, index) if is_nested(operation) else operation


def output_count(model: Any) -> int:
    """The number of a classifier's outputs.

    Raises:
        ModelError: it has several output tensors, or one that is not a row of classes.
    """
    outputs = functional_graph(model).outputs
    if len(outputs) != 1 or len(outputs[0].shape) != 2:
        raise ModelError(f"{model.name!r} answers {[tuple(each.shape) for each in outputs]}, not one row of classes.")
    return int(outputs[0].shape[-1])


def _before_head(graph: Any, output: Any) -> Any:
    """What the last dense layer reads."""
    operation = output._keras_history.operation
    while not isinstance(operation, layers.Dense):
        sources = operation.input if isinstance(operation.input, list) else [operation.input]
        if len(sources) != 1 or not isinstance(operation, (layers.Activation, layers.Softmax)):
            raise ModelError(f"The model ends in {type(operation).__name__}, not in a dense head that can be replaced.")
        operation = sources[0]._keras_history.operation
    return operation.input


def _attach_head(inputs: Any, features: Any, classes: int, name: str) -> Any:
    taken = {layer.name for layer in keras.Model(inputs, features).layers}

    def free(wanted: str) -> str:
        return next(
            each for each in (wanted, *(f"{wanted}_{n}" for n in range(2, len(taken) + 3))) if each not in taken
        )

    x = layers.GlobalAveragePooling2D(name=free("head_pool"))(features) if len(features.shape) == 4 else features
    x = layers.Dropout(0.1, name=free("head_dropout"))(x)
    return keras.Model(inputs, layers.Dense(classes, name=free("logits"))(x), name=name)


def _image_shape(model: Any) -> tuple[int | None, int | None, int]:
    inputs = functional_graph(model).inputs
    shape = tuple(inputs[0].shape[1:])
    if len(inputs) != 1 or len(shape) != 3 or shape[-1] not in (1, 3):
        raise ModelError(f"{model.name!r} reads {[tuple(t.shape) for t in inputs]}, not one image of 1 or 3 channels.")
    return shape


def _color(channels: int) -> Any:
    return "RGB" if channels == 3 else "grayscale"


def _read_rgb(model: Any) -> None:
    """Weights that were trained on BGR images read RGB once the first kernel's input channels are turned around."""
    first = next(layer for layer in model.layers if isinstance(layer, layers.Conv2D))
    first.kernel.assign(np.asarray(first.kernel)[:, :, ::-1, :])


def _applications() -> dict[str, Any]:
    names = [name for name in dir(keras.applications) if name[0].isupper()]
    return {_snake_case(name): getattr(keras.applications, name) for name in names}


def _snake_case(name: str) -> str:
    """`MobileNetV2` → `mobilenet_v2`, `EfficientNetB0` → `efficientnet_b0`."""
    for word in ("ConvNeXt", "DenseNet", "EfficientNet", "MobileNet", "NASNet", "ResNet", "XLarge"):
        name = name.replace(word, word.capitalize())
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
