import numpy as np
import pytest

from mobileprune.class_changes import class_changes, exchanged_classes, falling_classes
from mobileprune.errors import DatasetError

LABELS = np.repeat(np.arange(4), 25)
NAMES = ("ant", "bee", "cat", "dog")


def answers(tops):
    return np.eye(4)[tops]


def test_the_figures():
    before, after = LABELS.copy(), LABELS.copy()
    before[:5] = 1  # five ants are bees for the model; the file mends two of them
    after[:3] = 1
    after[25:35] = 2  # and loses ten bees
    found = class_changes(answers(before), answers(after), LABELS, NAMES)
    assert found.images == 100
    assert found.accuracy_before == pytest.approx(0.95)
    assert found.accuracy == pytest.approx(0.87)
    assert found.churn == pytest.approx(0.12)
    assert found.lost == pytest.approx(0.10)
    assert found.won == pytest.approx(0.02)
    assert (found.worst_class, found.worst_class_drop) == ("bee", pytest.approx(0.4))
    assert class_changes(answers(before), answers(after), LABELS).worst_class == "output 1"


def test_only_a_fall_beyond_limit_and_chance_is_one():
    after = LABELS.copy()
    after[25:36] = 2
    (said,) = falling_classes(answers(LABELS), answers(after), LABELS, 0.3, NAMES)
    assert said == "Class 'bee' falls from 100.0% to 56.0% of its 25 images; at most 30 points may be lost."
    assert falling_classes(answers(LABELS), answers(after), LABELS, 0.5) == []
    after = LABELS.copy()
    after[25:30] = 2  # five may be chance
    assert falling_classes(answers(LABELS), answers(after), LABELS, 0.1) == []
    few = np.arange(0, 100, 3)  # 8 or 9 images of a class prove nothing
    assert falling_classes(answers(LABELS[few]), answers((LABELS[few] + 1) % 4), LABELS[few], 0.1) == []


def test_what_is_won_makes_up_for_what_is_lost():
    before, after = LABELS.copy(), LABELS.copy()
    before[:12], after[12:24] = 1, 1
    assert falling_classes(answers(before), answers(after), LABELS, 0.1) == []


@pytest.mark.parametrize("order", [[1, 0, 2, 3], [1, 2, 3, 0], [3, 2, 1, 0]])
def test_labels_in_another_order_are_noticed(order):
    found = exchanged_classes(answers(np.array(order)[LABELS]), LABELS, NAMES)
    assert found
    assert "'ant' → " in found[0]


def test_a_weak_model_is_no_wrong_order():
    always = np.zeros_like(LABELS)
    assert exchanged_classes(answers(always), LABELS) == []
    assert exchanged_classes(answers(np.where(LABELS == 2, 3, LABELS)), LABELS) == []  # cats are dogs, dogs no cats
    generator = np.random.default_rng(0)
    assert exchanged_classes(generator.normal(size=(100, 4)), LABELS) == []


@pytest.mark.parametrize(
    "labels", [LABELS[:-1], LABELS.astype(np.float32), LABELS + 1, LABELS - 1, LABELS[:, None], LABELS[:0]]
)
def test_labels_that_cannot_be_meant(labels):
    with pytest.raises(DatasetError, match="abels"):
        class_changes(answers(LABELS), answers(LABELS), labels)
