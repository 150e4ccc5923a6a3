"""The accuracy of the bytes that ship."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from mobileprune.class_changes import check_labels
from mobileprune.errors import DatasetError, InterpreterError
from mobileprune.records import Variant
from mobileprune.tflite_runner import TfliteRunner


def accuracy(outputs: np.ndarray, labels: np.ndarray) -> float:
    """The share of images whose largest output is their label, 0 to 1.

    Args:
        outputs: (N, classes), logits or probabilities.
        labels: integers (N,).

    Raises:
        DatasetError: no images, other shapes, or labels that the outputs cannot mean.

    Example:
        >>> accuracy(np.array([[0.1, 0.9], [0.8, 0.2]]), np.array([1, 1]))
        0.5
    """
    return _correct(outputs, labels) / len(outputs)


def evaluate(
    variant: Variant, batches: Iterable[tuple[Any, Any]], threads: int = 2, *, timeout_s: float = 60.0
) -> float:
    """The accuracy of a variant's bytes, run in a process of their own, one batch in memory at a time.

    Args:
        variant: the file.
        batches: pairs of float32 images (N, H, W, C) and integer labels (N,): a tf.data.Dataset, or any iterable.
        threads: for the interpreter.
        timeout_s: for each request to it.

    Returns:
        Correct images over all images, 0 to 1.

    Raises:
        DatasetError: no images, or labels that do not fit the outputs.
        InterpreterError: the file crashed, hung, cannot be loaded or answers NaN.

    Example:
        >>> evaluate(variant, test_batches)  # doctest: +SKIP
        0.8712
    """
    name = f"{variant.model}_{variant.recipe}.tflite"
    correct = images = 0
    with TfliteRunner(variant.content, threads, timeout_s, name=name) as runner:
        for batch, labels in batches:
            inputs = np.asarray(batch)
            outputs = runner.run(inputs)
            if not np.isfinite(outputs).all():
                broken = int((~np.isfinite(outputs)).any(axis=1).sum())
                raise InterpreterError(f"{name} answers NaN or infinity for {broken} of {len(outputs)} images.")
            correct += _correct(outputs, np.asarray(labels))
            images += len(outputs)
    if not images:
        raise DatasetError(f"There are no images to evaluate {name} on.")
    return correct / images


def _correct(outputs: np.ndarray, labels: np.ndarray) -> int:
    if not len(outputs):
        raise DatasetError("There are no outputs to compare with labels.")
    if outputs.ndim != 2 or outputs.shape[1] < 2:
        raise DatasetError(f"Outputs of shape {outputs.shape} are not (N, classes) with 2 or more classes.")
    check_labels(labels, outputs)
    return int((outputs.argmax(axis=1) == labels).sum())
