"""Activation functions by name, on both sides.

Keras 2 lacks some of Keras 3's, and its `hard_sigmoid` is another function (clip(0.2 x + 0.5, 0, 1) in the place of
clip(x / 6 + 0.5, 0, 1)). What it lacks is registered with it as `mobileprune>NAME`, so that its layers can be cloned,
saved and loaded wherever this module has been asked for it.
"""

import functools
from collections.abc import Callable
from typing import Any

from mobileprune.errors import InteropError
from mobileprune.interop import process

_PACKAGE = "mobileprune"
# Keras 3's name: Keras 2's, for functions that both have.
_SAME = {
    **{name: name for name in ("elu", "exponential", "gelu", "linear", "mish", "relu", "selu", "sigmoid", "softmax")},
    **{name: name for name in ("softplus", "softsign", "tanh")},
    "silu": "swish",
    "swish": "swish",
}
_ALIASES = {"hard_swish": "hard_silu", "swish": "silu"}
_TWINS = ("celu", "hard_sigmoid", "hard_silu", "leaky_relu", "log_sigmoid", "log_softmax", "relu6")

KEYS = ("activation", "recurrent_activation")
# All that may stand in a file of Keras 2: its own, and functions of TensorFlow that people pass in their place.
IN_FILES = frozenset((*_SAME.values(), "hard_sigmoid", "relu6", "silu", "leaky_relu", "log_softmax"))


def plain_name(value: Any) -> str:
    """The function's name from a layer's configuration: `"relu"`, `"mobileprune>relu6"`, or a dictionary of Keras 2.

    Raises:
        InteropError: it is no function's name.
    """
    if isinstance(value, dict):
        value = value.get("config")
    if not isinstance(value, str):
        raise InteropError("its activation is no stock function")
    name = value.removeprefix(f"{_PACKAGE}>")
    # Keras 2's own function of that name is another one.
    return "twin_hard_sigmoid" if name == "hard_sigmoid" and name != value else name


def for_keras_3(name: str) -> str:
    """Keras 3's name for a function of Keras 2, `hard_sigmoid` excepted.

    Raises:
        InteropError: it has none.
    """
    name = _ALIASES.get(name, name).removeprefix("twin_")
    if name in _SAME or name in _TWINS:
        return name
    raise InteropError(f"Keras 3 has no activation {name!r}")


def for_keras_2(name: str) -> Any:
    """Keras 2's name for an activation of Keras 3, or a function registered with Keras 2.

    Raises:
        InteropError: it has neither.
    """
    name = _ALIASES.get(name, name)
    if name in _SAME:
        return _SAME[name]
    if name in _TWINS:
        return registered()[name]
    raise InteropError(f"tf_keras has no activation {name!r}")


def custom_objects() -> dict[str, Callable[[Any], Any]]:
    """What files of Keras 2 may name although Keras 2 does not know it by that name."""
    import tensorflow as tf

    functions = {f"{_PACKAGE}>{name}": function for name, function in registered().items()}
    plain = {"relu6": tf.nn.relu6, "silu": tf.nn.silu, "leaky_relu": tf.nn.leaky_relu, "log_softmax": tf.nn.log_softmax}
    return {**functions, **plain}


@functools.cache
def registered() -> dict[str, Callable[[Any], Any]]:
    """Keras 3's functions that Keras 2 lacks, registered with it."""
    import tensorflow as tf

    def celu(x: Any) -> Any:
        return tf.maximum(x, 0.0) + tf.math.expm1(tf.minimum(x, 0.0))

    def hard_sigmoid(x: Any) -> Any:
        return tf.nn.relu6(x + 3.0) * (1.0 / 6.0)

    def hard_silu(x: Any) -> Any:
        return x * hard_sigmoid(x)

    def leaky_relu(x: Any) -> Any:
        return tf.nn.leaky_relu(x, alpha=0.2)

    def log_sigmoid(x: Any) -> Any:
        return tf.math.log_sigmoid(x)

    def log_softmax(x: Any) -> Any:
        return tf.nn.log_softmax(x)

    def relu6(x: Any) -> Any:
        return tf.nn.relu6(x)

    register = process.tf_keras().utils.register_keras_serializable
    functions = (celu, hard_sigmoid, hard_silu, leaky_relu, log_sigmoid, log_softmax, relu6)
    return {function.__name__: register(_PACKAGE)(function) for function in functions}
