import dataclasses

import numpy as np
import pytest
from tiny_models import CLASSES, images, reference, swapped_outputs, variants

from mobileprune.errors import DatasetError, InterpreterError
from mobileprune.evaluate import accuracy, evaluate

IMAGES, LABELS = images(256, seed=7), reference().argmax(axis=1)


def batches(size: int = 50):
    return ((IMAGES[start : start + size], LABELS[start : start + size]) for start in range(0, 256, size))


def test_accuracy():
    outputs = np.array([[3.0, 1, 2], [0, 1, 2], [0, 5, 2], [1, 0, 0]])
    assert accuracy(outputs, np.array([0, 1, 1, 0])) == 0.75


def test_the_file_is_as_accurate_as_its_model():
    assert evaluate(variants()["float32"], batches()) == 1.0
    assert 0.9 < evaluate(variants()["int8"], batches()) <= 1.0


def test_a_batch_counts_by_its_images():
    wrong = (LABELS + 1) % CLASSES
    assert evaluate(variants()["float32"], [(IMAGES[:255], LABELS[:255]), (IMAGES[255:], wrong[255:])]) == 255 / 256


def test_tf_data_is_taken():
    import tensorflow as tf

    assert evaluate(variants()["float32"], tf.data.Dataset.from_tensor_slices((IMAGES, LABELS)).batch(100)) == 1.0


def test_swapped_classes_are_seen():
    variant = dataclasses.replace(variants()["float32"], content=swapped_outputs(variants()["float32"].content))
    assert evaluate(variant, batches()) == pytest.approx(1 - np.isin(LABELS, [0, 1]).mean(), abs=0.2)
    assert evaluate(variant, batches()) < 0.9


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (LABELS + 1, "do not match outputs of 6 classes"),
        (LABELS - 1, "Labels from -1"),
        (np.eye(CLASSES, dtype=int)[LABELS], r"shape \(256, 6\)"),
        (LABELS.astype(float), "are float64"),
        (LABELS[:5], r"shape \(5,\)"),
    ],
)
def test_labels_that_do_not_fit_are_errors(labels, message):
    with pytest.raises(DatasetError, match=message):
        evaluate(variants()["float32"], [(IMAGES, labels)])


def test_nothing_to_evaluate_is_an_error():
    with pytest.raises(DatasetError, match="no images"):
        evaluate(variants()["float32"], [])
    with pytest.raises(DatasetError, match="no outputs"):
        accuracy(np.zeros((0, 3)), np.zeros(0, int))
    with pytest.raises(DatasetError, match="2 or more classes"):
        accuracy(np.zeros((4, 1)), np.zeros(4, int))


def test_a_file_that_answers_nan_is_an_error():
    import keras

    from mobileprune.convert import to_float_flatbuffer

    inputs = keras.Input((16, 16, 3))
    logits = keras.layers.Flatten()(keras.ops.log(inputs))[:, :2]
    variant = dataclasses.replace(variants()["float32"], content=to_float_flatbuffer(keras.Model(inputs, logits)))
    with pytest.raises(InterpreterError, match="answers NaN"):
        evaluate(variant, [(-np.ones((2, 16, 16, 3), np.float32), np.zeros(2, int))])
