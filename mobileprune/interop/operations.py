"""Functions called on tensors between layers (`x + 3.0`, `keras.ops.mean`, `tf.nn.relu6`), on both sides."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from mobileprune.errors import InteropError

# Keras 3's operation: TensorFlow's function of the same arguments.
_PLAIN = {
    "Absolute": "math.abs",
    "Add": "math.add",
    "Divide": "math.divide",
    "Exp": "math.exp",
    "Log": "math.log",
    "Maximum": "math.maximum",
    "Minimum": "math.minimum",
    "Multiply": "math.multiply",
    "Negative": "math.negative",
    "Power": "math.pow",
    "Relu": "nn.relu",
    "Relu6": "nn.relu6",
    "Rsqrt": "math.rsqrt",
    "Sigmoid": "math.sigmoid",
    "Silu": "nn.silu",
    "Softplus": "math.softplus",
    "Sqrt": "math.sqrt",
    "Square": "math.square",
    "Subtract": "math.subtract",
    "Tanh": "math.tanh",
    "TrueDivide": "math.truediv",
}
_REDUCTIONS = {"Max": "reduce_max", "Mean": "reduce_mean", "Min": "reduce_min", "Sum": "reduce_sum"}

# TensorFlow's other names for them, as layers of Keras 2 know them.
_ALIASES = {
    **{f"__operators__.{short}": name for short, name in (("add", "math.add"), ("sub", "math.subtract"))},
    "abs": "math.abs",
    "add": "math.add",
    "divide": "math.divide",
    "exp": "math.exp",
    "maximum": "math.maximum",
    "minimum": "math.minimum",
    "multiply": "math.multiply",
    "negative": "math.negative",
    "pow": "math.pow",
    "sigmoid": "math.sigmoid",
    "nn.sigmoid": "math.sigmoid",
    "sqrt": "math.sqrt",
    "square": "math.square",
    "subtract": "math.subtract",
    "tanh": "math.tanh",
    "nn.tanh": "math.tanh",
    "truediv": "math.truediv",
    "nn.swish": "nn.silu",
    "nn.softplus": "math.softplus",
    **{name: f"math.{name}" for name in _REDUCTIONS.values()},
    **{f"compat.v1.{name}": name for name in ("expand_dims", "squeeze", "transpose")},
}
_OPS_NAMES = {"Absolute": "abs", "TrueDivide": "true_divide"}


def for_keras_2(operation: Any) -> Callable[..., Any]:
    """TensorFlow's function for an operation of Keras 3, for the arguments that the operation was called with.

    Raises:
        InteropError: it is not known.
    """
    import tensorflow as tf

    name = type(operation).__name__ if type(operation).__module__.startswith("keras.src.ops") else ""
    if name in _PLAIN:
        plain: Callable[..., Any] = _symbol(tf, _PLAIN[name])
        return plain
    if name in _REDUCTIONS:
        reduce = _symbol(tf, f"math.{_REDUCTIONS[name]}")
        return lambda x: reduce(x, axis=_listed(operation.axis), keepdims=operation.keepdims)
    if name == "GetItem":
        return lambda x, key: x[key]
    if name == "Reshape":
        shape = [-1 if size is None else size for size in operation.newshape]
        return lambda x: tf.reshape(x, shape)
    if name == "Transpose":
        return lambda x: tf.transpose(x, operation.axes)
    if name == "Concatenate":
        return lambda xs: tf.concat(xs, operation.axis)
    if name == "Softmax":
        return lambda x: tf.nn.softmax(x, axis=operation.axis)
    if name == "ExpandDims" and isinstance(operation.axis, int):
        return lambda x: tf.expand_dims(x, operation.axis)
    if name == "Squeeze":
        return lambda x: tf.squeeze(x, _listed(operation.axis))
    if name == "HardSigmoid":
        return lambda x: tf.nn.relu6(x + 3.0) * (1.0 / 6.0)
    if name in ("HardSilu", "HardSwish"):
        return lambda x: x * (tf.nn.relu6(x + 3.0) * (1.0 / 6.0))
    raise InteropError("tf_keras has no such operation")


def known_symbol(symbol: Any) -> bool:
    """Whether a function of TensorFlow, by its name inside a layer of Keras 2, can be called on Keras 3."""
    return isinstance(symbol, str) and (symbol in _ALIASES or symbol in _PLAIN.values() or symbol in _keras_3())


def for_keras_3(symbol: str) -> Callable[..., Any]:
    """The function on Keras 3 for a function of TensorFlow inside a layer of Keras 2, for that function's arguments.

    Raises:
        InteropError: it is not known.
    """
    from keras import ops

    if not known_symbol(symbol):
        raise InteropError(f"Keras 3 knows no function for tf.{symbol}")
    symbol = _ALIASES.get(symbol, symbol)
    if symbol in _keras_3():
        return _keras_3()[symbol]
    operation = next(name for name, each in _PLAIN.items() if each == symbol)
    function = getattr(ops, _OPS_NAMES.get(operation, operation.lower()))

    def call(*arguments: Any, name: str | None = None, **keywords: Any) -> Any:
        return function(*arguments, *keywords.values())

    return call


def _keras_3() -> dict[str, Callable[..., Any]]:
    from keras import ops

    def reduction(function: Any) -> Callable[..., Any]:
        return lambda x, axis=None, keepdims=False, name=None: function(x, axis=axis, keepdims=keepdims)

    def item(x: Any, key: Any) -> Any:
        entries = key if isinstance(key, tuple | list) else (key,)
        return x[tuple(slice(e["start"], e["stop"], e["step"]) if isinstance(e, dict) else e for e in entries)]

    return {
        **{f"math.{short}": reduction(getattr(ops, name.lower())) for name, short in _REDUCTIONS.items()},
        "__operators__.getitem": item,
        "concat": lambda values, axis, name=None: ops.concatenate(values, axis),
        "expand_dims": lambda x, axis, name=None: ops.expand_dims(x, axis),
        "nn.leaky_relu": lambda x, alpha=0.2, name=None: ops.leaky_relu(x, alpha),
        "nn.softmax": lambda x, axis=-1, name=None: ops.softmax(x, axis),
        "reshape": lambda x, shape, name=None: ops.reshape(x, tuple(int(size) for size in np.asarray(shape))),
        "squeeze": lambda x, axis=None, name=None: ops.squeeze(x, axis),
        "transpose": lambda x, perm=None, conjugate=False, name=None: ops.transpose(x, perm),
    }


def _symbol(module: Any, path: str) -> Any:
    return functools.reduce(getattr, path.split("."), module)


def _listed(axis: Any) -> Any:
    return list(axis) if isinstance(axis, tuple) else axis
