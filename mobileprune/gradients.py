"""The gradient of a classifier's loss with respect to its weights, over all calibration data."""

from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np

from mobileprune.errors import PlanError
from mobileprune.models import gives_probabilities

_BATCH = 32


def loss_gradients(model: Any, variables: Sequence[Any], calibration: Any) -> list[np.ndarray]:
    """The gradient of the mean loss over all images, whatever batches they come in. Nothing is changed.

    The loss is the cross-entropy, in inference mode. Without labels the class that the model itself prefers takes the
    label's place: against its own *probabilities* the cross-entropy is at its minimum and its gradient zero
    everywhere. The losses of several outputs are added, those of several positions of one output averaged. An output
    of one value is taken for a two-class one.

    Args:
        model: a built classifier on the TensorFlow backend, with logits or probabilities as outputs.
        variables: weights of the model.
        calibration: float32 images (N, …) as the model takes them; or the tuple (images, labels); or an iterable of
            batches of either kind. Labels are class numbers (N,) or probabilities (N, classes), for a model with
            several outputs a list with one entry for each.

    Returns:
        One float64 array for each variable, of its shape.

    Raises:
        PlanError: no images, labels that cannot be meant, or another backend than TensorFlow.

    Example:
        >>> (gradient,) = loss_gradients(model, [model.get_layer("head").kernel], images)   # doctest: +SKIP
    """
    import tensorflow as tf

    if keras.backend.backend() != "tensorflow":
        raise PlanError(f"Keras runs on {keras.backend.backend()!r}; gradients need KERAS_BACKEND=tensorflow.")
    held = [variable.value for variable in variables]
    totals = [np.zeros(tuple(variable.shape)) for variable in variables]
    images = 0
    for inputs, labels in _batches(calibration):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(held)
            outputs = keras.tree.flatten(model(inputs, training=False))
            loss = sum(
                tf.reduce_sum(_losses(output, target, gives_probabilities(model, index)))
                for index, (output, target) in enumerate(zip(outputs, _each(labels, outputs), strict=True))
            )
        for total, gradient in zip(totals, tape.gradient(loss, held, unconnected_gradients="zero"), strict=True):
            total += np.asarray(tf.convert_to_tensor(gradient), np.float64)
        images += int(outputs[0].shape[0])
    if not images:
        raise PlanError("The calibration data holds no images. Give about 100.")
    return [total / images for total in totals]


def _batches(calibration: Any) -> Iterator[tuple[Any, list[np.ndarray] | None]]:
    """Images as the model takes them, and the labels of each output."""
    if isinstance(calibration, tuple) or hasattr(calibration, "shape"):
        images, labels = _pair(calibration)
        arrays = [np.asarray(array) for array in keras.tree.flatten(images)]
        for start in range(0, len(arrays[0]), _BATCH):
            part = slice(start, start + _BATCH)
            inputs = keras.tree.pack_sequence_as(images, [array[part] for array in arrays])
            yield inputs, None if labels is None else [array[part] for array in labels]
        return
    for batch in calibration:
        images, labels = _pair(batch)
        if len(keras.tree.flatten(images)[0]):  # reshapes inside the model do not like an empty last batch
            yield images, labels


def _pair(batch: Any) -> tuple[Any, list[np.ndarray] | None]:
    if not isinstance(batch, tuple):
        return batch, None
    if len(batch) != 2:
        raise PlanError(f"A calibration batch is images or (images, labels). Received a tuple of {len(batch)}.")
    images, labels = batch
    if isinstance(labels, dict):
        return images, [np.asarray(array) for array in keras.tree.flatten(labels)]
    # A list of arrays has one for each output; any other list holds the labels themselves.
    several = isinstance(labels, (list, tuple)) and all(np.ndim(each) and hasattr(each, "shape") for each in labels)
    return images, [np.asarray(array) for array in labels] if several else [np.asarray(labels)]


def _each(labels: list[np.ndarray] | None, outputs: list[Any]) -> Sequence[np.ndarray | None]:
    if labels is None:
        return [None] * len(outputs)
    if len(labels) != len(outputs):
        raise PlanError(f"The model has {len(outputs)} outputs; labels were given for {len(labels)}.")
    return labels


def _losses(output: Any, labels: Any, probabilities: bool) -> Any:
    """The loss of each image, shape (batch,)."""
    classes = int(output.shape[-1])
    if labels is None:
        own = output > (0.5 if probabilities else 0.0) if classes == 1 else keras.ops.argmax(output, -1)
        target = np.asarray(own).astype(np.int64)
    else:
        target = np.asarray(labels)
    arguments = {"y_pred": output, "from_logits": not probabilities}
    if classes == 1 and target.size == int(np.prod(output.shape)):
        losses = keras.losses.binary_crossentropy(target.reshape(output.shape).astype(np.float32), **arguments)
    elif target.shape == output.shape:
        losses = keras.losses.categorical_crossentropy(target.astype(np.float32), **arguments)
    elif target.shape == output.shape[:-1] and target.dtype.kind in "iu" and _inside(target, classes):
        losses = keras.losses.sparse_categorical_crossentropy(target, **arguments)
    else:
        raise PlanError(
            f"Labels of shape {target.shape} and type {target.dtype}, {target.min(initial=0)} to "
            f"{target.max(initial=0)}, do not fit an output of shape {tuple(output.shape)}. Give class numbers from 0 "
            f"to {classes - 1} or probabilities."
        )
    return keras.ops.mean(keras.ops.reshape(losses, (output.shape[0], -1)), -1)


def _inside(labels: np.ndarray, classes: int) -> bool:
    return bool(labels.min(initial=0) >= 0 and labels.max(initial=0) < classes)
