"""The gradient of a classifier's loss with respect to its weights over all calibration data, and its mean square."""

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

    _check_backend()
    held = [variable.value for variable in variables]
    totals = [np.zeros(tuple(variable.shape)) for variable in variables]
    images = 0
    for inputs, labels in _batches(calibration):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(held)
            outputs = keras.tree.flatten(model(inputs, training=False))
            loss = _summed(model, outputs, _targets(model, outputs, labels))
        for total, gradient in zip(totals, tape.gradient(loss, held, unconnected_gradients="zero"), strict=True):
            total += np.asarray(tf.convert_to_tensor(gradient), np.float64)
        images += int(outputs[0].shape[0])
    return [total / _some(images) for total in totals]


def squared_gradients(model: Any, variables: Sequence[Any], calibration: Any) -> list[np.ndarray]:
    """The mean over images of the squared gradient of one image's loss: the diagonal of the empirical Fisher matrix.

    With the cross-entropy it stands for the diagonal of the Hessian near a minimum (Martens 2020, "New Insights and
    Perspectives on the Natural Gradient Method", arXiv:1412.1193). Each image is looked at alone, because the square of
    a batch's mean gradient would be smaller, the more so the larger the batch. Losses and labels are those of
    `loss_gradients`; so is what is returned and raised.

    Args:
        model, variables, calibration: see `loss_gradients`.

    Example:
        >>> (fisher,) = squared_gradients(model, [model.get_layer("head").kernel], images)      # doctest: +SKIP
    """
    import tensorflow as tf

    _check_backend()
    held = [variable.value for variable in variables]

    # Traced once: image by image Python would take most of the time.
    @tf.function(reduce_retracing=True)
    def squares(inputs: Any, targets: list[Any]) -> list[Any]:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(held)
            loss = _summed(model, keras.tree.flatten(model(inputs, training=False)), targets)
        found = tape.gradient(loss, held, unconnected_gradients="zero")
        return [tf.square(tf.cast(tf.convert_to_tensor(gradient), tf.float32)) for gradient in found]

    totals = [np.zeros(tuple(variable.shape)) for variable in variables]
    images = 0
    for inputs, labels in _batches(calibration):
        inputs = keras.tree.map_structure(keras.ops.convert_to_tensor, inputs)
        outputs = keras.tree.flatten(model(inputs, training=False))
        targets = [keras.ops.convert_to_tensor(target) for target in _targets(model, outputs, labels)]
        for index in range(int(outputs[0].shape[0])):
            one = slice(index, index + 1)
            alone = keras.tree.map_structure(lambda tensor, one=one: tensor[one], inputs)
            for total, square in zip(totals, squares(alone, [target[one] for target in targets]), strict=True):
                total += np.asarray(square)
            images += 1
    return [total / _some(images) for total in totals]


def _check_backend() -> None:
    if keras.backend.backend() != "tensorflow":
        raise PlanError(f"Keras runs on {keras.backend.backend()!r}; gradients need KERAS_BACKEND=tensorflow.")


def _some(images: int) -> int:
    if not images:
        raise PlanError("The calibration data holds no images. Give about 100.")
    return images


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


def _targets(model: Any, outputs: list[Any], labels: list[np.ndarray] | None) -> list[np.ndarray]:
    """What each output should have been, checked: class numbers, or probabilities of the output's shape."""
    return [
        _target(output, given, gives_probabilities(model, index))
        for index, (output, given) in enumerate(zip(outputs, _each(labels, outputs), strict=True))
    ]


def _target(output: Any, labels: Any, probabilities: bool) -> np.ndarray:
    classes = int(output.shape[-1])
    if labels is None:
        own = output > (0.5 if probabilities else 0.0) if classes == 1 else keras.ops.argmax(output, -1)
        labels = np.asarray(own).astype(np.int64)
    target = np.asarray(labels)
    if classes == 1 and target.size == int(np.prod(output.shape)):
        return target.reshape(output.shape).astype(np.float32)
    if target.shape == output.shape:
        return target.astype(np.float32)
    if target.shape == output.shape[:-1] and target.dtype.kind in "iu" and _inside(target, classes):
        return target
    raise PlanError(
        f"Labels of shape {target.shape} and type {target.dtype}, {target.min(initial=0)} to "
        f"{target.max(initial=0)}, do not fit an output of shape {tuple(output.shape)}. Give class numbers from 0 "
        f"to {classes - 1} or probabilities."
    )


def _summed(model: Any, outputs: list[Any], targets: Sequence[Any]) -> Any:
    """The sum of all images' losses, a scalar."""
    losses = [
        _losses(output, target, gives_probabilities(model, index))
        for index, (output, target) in enumerate(zip(outputs, targets, strict=True))
    ]
    return sum(keras.ops.sum(each) for each in losses)


def _losses(output: Any, target: Any, probabilities: bool) -> Any:
    """The loss of each image, shape (batch,)."""
    arguments = {"y_pred": output, "from_logits": not probabilities}
    if len(target.shape) < len(output.shape):
        losses = keras.losses.sparse_categorical_crossentropy(target, **arguments)
    elif output.shape[-1] == 1:
        losses = keras.losses.binary_crossentropy(target, **arguments)
    else:
        losses = keras.losses.categorical_crossentropy(target, **arguments)
    return keras.ops.mean(keras.ops.reshape(losses, (output.shape[0], -1)), -1)


def _inside(labels: np.ndarray, classes: int) -> bool:
    return bool(labels.min(initial=0) >= 0 and labels.max(initial=0) < classes)
