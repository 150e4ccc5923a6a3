"""Reads model files of Keras 2, which are hostile until looked at.

Keras 2 runs the code in a Lambda layer of an `.h5` file while it loads it, and calls any function of TensorFlow that a
file names. So the file's description is read first, as data, and only what is on a list is let through.
"""

import contextlib
import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py

from mobileprune.errors import InteropError, ModelError, known_names
from mobileprune.interop import activations, operations, process
from mobileprune.interop.bridge import to_keras_3
from mobileprune.interop.layers import REFUSED
from mobileprune.noise import described

_FUNCTIONS = ("TFOpLambda", "SlicingOpLambda")
_TFMOT = ("PruneLowMagnitude", "ConstantSparsity", "PolynomialDecay")
_PLAIN = ("Functional", "Model", "Sequential", "DTypePolicy", "Policy", "TensorShape", "__tuple__", "__numpy__")
_MODULES = ("keras", "tf_keras", "builtins", "tensorflow_model_optimization")


def from_tf_keras(model: Any) -> Any:
    """A plain Keras 3 model from a tf_keras (Keras 2) one.

    Args:
        model: a tf_keras model of stock layers, or the path of an `.h5` or `.keras` file that Keras 2 saved. Wrappers
            of the TensorFlow Model Optimization toolkit's `prune_low_magnitude` come off, the zeros stay exact.

    Returns:
        A new uncompiled Keras 3 model with equal outputs and weights and the same names of layers. In training it gives
        every layer its own mode: Keras 3 ignores a `training=False` that a layer was called with.

    Raises:
        ModelError: the file is missing, corrupt, of Keras 3, or holds anything but stock layers. No code of it runs.
        InteropError: layers or settings without an equivalent; they are listed.

    Example:
        >>> model = from_tf_keras("pruned_with_tfmot.h5")                           # doctest: +SKIP
        >>> mp.sparsity(model)                                                      # doctest: +SKIP
        0.8
    """
    if isinstance(model, str | Path):
        return to_keras_3(_load(Path(model)))
    if not isinstance(model, process.tf_keras().Model):
        raise InteropError(
            f"from_tf_keras takes a tf_keras model or the path of its file. Received: {type(model).__module__}."
            f"{type(model).__name__}. A Keras 3 model needs no conversion."
        )
    return to_keras_3(model)


def _load(path: Path) -> Any:
    config = _description(path)
    problems = list(dict.fromkeys(_unknown(config)))
    if problems:
        raise ModelError(
            f"{path} is not loaded, it holds what might run code: {known_names(problems, 5)}. Save the model "
            "without it, from stock layers."
        )
    old, objects = process.tf_keras(), activations.custom_objects()
    is_wrapped = '"PruneLowMagnitude"' in json.dumps(config)
    try:
        with process.tfmot().prune_scope() if is_wrapped else contextlib.nullcontext():
            if zipfile.is_zipfile(path):
                return old.models.load_model(path, custom_objects=objects, compile=False, safe_mode=True)
            # From the description that was looked at, and with functions by their names: from `.h5` Keras 2 cannot read
            # the dictionaries that it writes for registered ones.
            model = old.models.model_from_json(json.dumps(_named_functions(config)), custom_objects=objects)
            model.load_weights(path)
            return model
    except Exception as error:  # a damaged file raises whatever the line that met the damage raises
        raise ModelError(f"Cannot load {path}: {type(error).__name__}: {described(error)}") from error


def _description(path: Path) -> Any:
    """The model's configuration, as JSON types."""
    if path.is_dir():
        raise ModelError(f"{path} is a folder. A SavedModel holds code: save the model as .h5 or .keras in its place.")
    if not path.is_file():
        raise ModelError(f"There is no model file {path}.")
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                version = str(json.loads(archive.read("metadata.json"))["keras_version"])
                config = json.loads(archive.read("config.json"))
                with h5py.File(io.BytesIO(archive.read("model.weights.h5"))) as file:
                    _check_contained(file, path)
        else:
            with h5py.File(path) as file:
                _check_contained(file, path)
                version = str(file.attrs.get("keras_version", ""))
                config = json.loads(file.attrs["model_config"])
    except ModelError:
        raise
    except Exception as error:  # zipfile, h5py and json each have errors of their own for damage
        raise ModelError(f"Cannot read {path} as a model of Keras 2: {described(error)}") from error
    if version.startswith("3."):
        raise ModelError(f"Keras {version} saved {path}: load it with load_model, it needs no conversion.")
    return config


def _check_contained(group: Any, path: Path) -> None:
    """Refuses weights that are read from another file than this."""
    for name in group:
        if isinstance(group.get(name, getlink=True), h5py.ExternalLink):
            raise ModelError(f"{path} is not loaded: its entry {name!r} is a link to another file.")
        item = group[name]
        if isinstance(item, h5py.Group):
            _check_contained(item, path)
        elif item.external:
            raise ModelError(f"{path} is not loaded: the data of {name!r} is in another file.")


def _unknown(config: Any) -> Iterator[str]:
    """Everything in a configuration that is not on the lists."""
    if isinstance(config, list):
        for item in config:
            yield from _unknown(item)
    if not isinstance(config, dict):
        return
    name, inner = config.get("class_name"), config.get("config")
    if name in _FUNCTIONS:
        function = inner.get("function") if isinstance(inner, dict) else None
        if not operations.known_symbol(function):
            yield f"the function {function!r}"
    elif name == "function":
        if not isinstance(inner, str) or (inner not in activations.IN_FILES and not _is_ours(inner)):
            yield f"the function {inner!r}"
    elif name is not None and name not in _PLAIN + _TFMOT and not _is_stock(name):
        yield f"{name} {inner.get('name')!r}" if isinstance(inner, dict) and "name" in inner else f"{name!r}"
    module = config.get("module")
    if module is not None and str(module).split(".")[0] not in _MODULES:
        yield f"the module {module!r}"
    for key in activations.KEYS:
        value = config.get(key)
        if isinstance(value, str) and value not in activations.IN_FILES and not _is_ours(value):
            yield f"the activation {value!r}"
    for item in config.values():
        yield from _unknown(item)


def _named_functions(config: Any) -> Any:
    if isinstance(config, list):
        return [_named_functions(item) for item in config]
    if not isinstance(config, dict):
        return config
    if config.get("class_name") == "function":
        return config["config"]
    return {key: _named_functions(item) for key, item in config.items()}


def _is_ours(name: Any) -> bool:
    return isinstance(name, str) and name in activations.custom_objects()


def _is_stock(name: Any) -> bool:
    """Whether a class may be named: Keras 2's layers and what belongs to them."""
    if not isinstance(name, str) or name in REFUSED:
        return False
    old = process.tf_keras()
    homes = (old.layers, old.initializers, old.regularizers, old.constraints)
    return any(isinstance(getattr(home, name, None), type) for home in homes)
