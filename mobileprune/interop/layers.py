"""One layer of Keras 3 as layers of Keras 2, and back: same settings, same name, same outputs.

A setting that the other side does not know may be dropped when it has its default value or cannot change an output.
Everything else is an error that names the layer.
"""

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from mobileprune.errors import InteropError
from mobileprune.interop import activations

# Their state is no array, they run code, or they consist of other objects.
REFUSED = frozenset(
    (
        *("Discretization", "HashedCrossing", "Hashing", "IntegerLookup", "StringLookup", "TextVectorization"),
        *("Lambda", "Layer", "Wrapper", "TFSMLayer", "SpectralNormalization"),
        *("RNN", "StackedRNNCells", "GRUCell", "LSTMCell", "SimpleRNNCell", "AbstractRNNCell", "DenseFeatures"),
    )
)
# Settings that change no output: how it is computed, and what random numbers start from.
_FREE = frozenset(
    (
        *("autocast", "batch_input_shape", "batch_shape", "build_config", "flash_attention", "implementation"),
        *("input_length", "key_shape", "query_shape", "ragged", "seed", "sparse", "unroll", "use_cudnn", "value_shape"),
    )
)
_RENAMED = {"LeakyReLU": {"negative_slope": "alpha", "alpha": "negative_slope"}}
_PRECISION = re.compile(r"(mixed_)?b?float\d+|u?int\d+|bool|string")
_NAMES = {"ThresholdedReLU": "ReLU", "SyncBatchNormalization": "BatchNormalization"}


class Side:
    """One Keras of the two.

    Args:
        keras: the module, keras or tf_keras.
        is_new: whether it is Keras 3.
    """

    def __init__(self, keras: Any, is_new: bool) -> None:
        self.keras, self.is_new = keras, is_new

    @property
    def title(self) -> str:
        return "Keras 3" if self.is_new else "tf_keras"


def converted(layer: Any, source: Side, target: Side) -> list[Any]:
    """The layers of `target` that do what `layer` of `source` does, one after the other; the first has the weights.

    They have no weights yet. The first has the name of `layer`.

    Raises:
        InteropError: there are none.
    """
    name = type(layer).__name__
    if type(layer) is not getattr(source.keras.layers, name, None) or name in REFUSED:
        raise InteropError("no stock layer of both")
    kind = getattr(target.keras.layers, _NAMES.get(name, name), None)
    if kind is None:
        raise InteropError(f"{target.title} has no such layer")
    config = layer.get_config()
    special = _SPECIAL.get(name)
    if special is not None:
        config.update(special(layer, source, target))
    known = set(_settings(kind)) | {"name", "trainable", "dtype"}
    if hasattr(layer, "return_sequences"):
        known.add("zero_output_for_mask")  # both take it among the unnamed settings
    arguments: dict[str, Any] = {}
    after: list[Any] = []
    for key, value in config.items():
        renamed = _RENAMED.get(name, {}).get(key, key)
        if renamed not in known:
            _check_droppable(layer, key, value)
        elif "activation" in key and value is not None:
            arguments[renamed], after = _activation(layer, key, value, source, target)
        elif not (key.endswith("_initializer") and _other(value, target, "initializers") is None):
            arguments[renamed] = _value(key, value, target)
    arguments.update(name=layer.name.replace("/", "_"), dtype=_precision(layer))
    return [kind(**arguments), *after]


def _settings(kind: Any) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(kind.__init__).parameters


def carry_weights(old: Any, new: Any) -> None:
    """Gives a built layer of one side the weights of its twin on the other.

    Raises:
        InteropError: their shapes differ.
    """
    values = [] if type(old).__name__ == "Normalization" else old.get_weights()
    shapes = [tuple(value.shape) for value in values], [tuple(value.shape) for value in new.get_weights()]
    if shapes[0] != shapes[1]:
        raise InteropError(
            f"The weights of {type(old).__name__} {old.name!r} have the shapes {shapes[0]} on one side and {shapes[1]} "
            "on the other. Replace the layer by one that both have."
        )
    new.set_weights(values)


def _value(key: str, value: Any, target: Side) -> Any:
    for ending, module in (("_initializer", "initializers"), ("_regularizer", "regularizers")):
        if key.endswith(ending):
            return _object(key, value, target, module)
    return _object(key, value, target, "constraints") if key.endswith("_constraint") else value


def _object(key: str, value: Any, target: Side, module: str) -> Any:
    if value is None:
        return None
    found = _other(value, target, module)
    if found is None:
        raise InteropError(f"{target.title} has no {key} {value.get('class_name', value)!r}")
    return found


def _other(value: Any, target: Side, module: str) -> Any:
    """The initialiser, regulariser or constraint of `target` that a configuration describes, if it is a stock one."""
    if value is None:
        return None
    name, config = (value, {}) if isinstance(value, str) else (value["class_name"], value["config"])
    kind = getattr(getattr(target.keras, module), name.rsplit(">", 1)[-1], None)
    if not isinstance(kind, type) or (value != name and value.get("registered_name") not in (None, name)):
        return None
    known = _settings(kind)
    return kind(**{key: item for key, item in config.items() if key in known and not isinstance(item, dict)})


def _activation(layer: Any, key: str, value: Any, source: Side, target: Side) -> tuple[Any, list[Any]]:
    """The setting for `key`, and the layers that complete it."""
    name = activations.plain_name(value)
    if source.is_new or name != "hard_sigmoid":
        return (activations.for_keras_2(name) if source.is_new else activations.for_keras_3(name)), []
    # Keras 2: clip(0.2 x + 0.5, 0, 1). Keras 3: clip(x / 6 + 0.5, 0, 1).
    kinds = target.keras.layers
    if key != "activation" or hasattr(layer, "recurrent_activation") or hasattr(layer, "return_sequences"):
        raise InteropError(f"Keras 3 has another hard_sigmoid for {key} than Keras 2")
    rescaled = kinds.Rescaling(1.2, name=f"{layer.name}_hard_sigmoid_slope", dtype=_precision(layer))
    clipped = kinds.Activation("hard_sigmoid", name=f"{layer.name}_hard_sigmoid", dtype=_precision(layer))
    return "linear", [rescaled, clipped]


def _check_droppable(layer: Any, key: str, value: Any) -> None:
    parameter = _settings(type(layer)).get(key)
    default = None if parameter is None or parameter.default is parameter.empty else parameter.default
    unset = value is None or value is False or (key, value) in (("groups", 1), ("data_format", "channels_last"))
    if not (unset or value == default or key in _FREE or key.endswith("_initializer")):
        raise InteropError(f"the other side has no setting {key}={value!r}")


def _precision(layer: Any) -> str:
    policy = getattr(layer, "dtype_policy", None) or layer._dtype_policy  # Keras 3, Keras 2
    name = str(policy.name)
    if not _PRECISION.fullmatch(name):
        raise InteropError(f"its precision {name!r} is known to one side only")
    return name


def _batch_norm(layer: Any, source: Side, target: Side) -> dict[str, Any]:
    axis = layer.axis
    synchronized = getattr(layer, "synchronized", False) or type(layer).__name__ == "SyncBatchNormalization"
    return {"axis": int(axis[0]) if isinstance(axis, list | tuple) else axis, "synchronized": synchronized}


def _normalization(layer: Any, source: Side, target: Side) -> dict[str, Any]:
    """What was measured on data, as settings: as weights the two sides finish it at different moments."""
    if layer.input_mean is not None:
        return {"mean": layer.input_mean, "variance": layer.input_variance}
    if not layer.built:
        raise InteropError("it has not been built")
    return {"mean": np.asarray(layer.adapt_mean), "variance": np.asarray(layer.adapt_variance)}


def _thresholded(layer: Any, source: Side, target: Side) -> dict[str, Any]:
    return {"threshold": float(layer.theta), "theta": None}


def _wrapped(layer: Any, source: Side, target: Side) -> dict[str, Any]:
    def twin(inner: Any, prefix: str = "") -> Any:
        twins = converted(inner, source, target)
        if len(twins) > 1:
            raise InteropError("its inner layer's activation is another function on the other side")
        twins[0]._name = inner.name.removeprefix(prefix)  # the wrapper puts it before the name again
        return twins[0]

    if type(layer).__name__ == "Bidirectional":
        return {
            "layer": twin(layer.forward_layer, "forward_"),
            "backward_layer": twin(layer.backward_layer, "backward_"),
        }
    return {"layer": twin(layer.layer)}


_SPECIAL: dict[str, Callable[[Any, Side, Side], dict[str, Any]]] = {
    "BatchNormalization": _batch_norm,
    "SyncBatchNormalization": _batch_norm,
    "Normalization": _normalization,
    "ThresholdedReLU": _thresholded,
    "TimeDistributed": _wrapped,
    "Bidirectional": _wrapped,
}
