"""Batch normalisation in one op while a model is trained: the same numbers in less time.

Keras 3 trains with it in a dozen small ops, each of which reads and writes the whole tensor. TensorFlow has one that
does it all. With it a step of a small convolutional network takes about three quarters of the time on a processor, see
`benchmarks/`.
"""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf

# What TensorFlow's op calculates with at least.
_LEAST_EPSILON = 1.001e-5


@contextlib.contextmanager
def fused_batch_norms(model: Any) -> Iterator[list[Any]]:
    """Within it, batch normalisations of `model` that can be one op are one in training.

    `fit` and `train_on_batch` trace their step anew; a `tf.function` of your own must be made inside.

    Those of four-dimensional float32 tensors, channels last, with scale and offset and not synchronised. Others, masked
    calls and inference stay as they are. Weights, names and what is saved do not change.

    Args:
        model: any built Keras model, nested or not.

    Yields:
        The layers that were changed.

    Example:
        >>> with fused_batch_norms(model) as norms:                         # doctest: +SKIP
        ...     model.fit(images, labels)
        >>> len(norms)                                                      # doctest: +SKIP
        23
    """
    norms = [layer for layer in model._flatten_layers() if _can_be_one(layer)]
    for layer in norms:
        layer.call = functools.partial(_call, layer)  # hides the method of the class
    model.train_function = None  # Keras keeps the step that it traced; this one is another
    try:
        yield norms
    finally:
        model.train_function = None
        for layer in norms:
            del layer.call


def _can_be_one(layer: Any) -> bool:
    return (
        type(layer) is keras.layers.BatchNormalization
        and layer.scale
        and layer.center
        and not layer.synchronized
        and layer.compute_dtype == "float32"
        and layer.epsilon >= _LEAST_EPSILON
        and "call" not in vars(layer)  # it is one already
    )


def _call(layer: Any, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
    axis = len(inputs.shape) - 1
    if not training or not layer.trainable or mask is not None or axis != 3 or layer.axis not in (-1, axis):
        return type(layer).call(layer, inputs, training=training, mask=mask)
    outputs, mean, variance = tf.compat.v1.nn.fused_batch_norm(
        inputs, layer.gamma, layer.beta, epsilon=layer.epsilon, is_training=True
    )
    # The op tells the variance of a sample (of n - 1), Keras remembers that of the batch (of n).
    count = tf.cast(tf.size(inputs) // tf.shape(inputs)[-1], tf.float32)
    for moving, now in ((layer.moving_mean, mean), (layer.moving_variance, variance * (count - 1) / count)):
        moving.assign(moving * layer.momentum + now * (1.0 - layer.momentum))
    return outputs
