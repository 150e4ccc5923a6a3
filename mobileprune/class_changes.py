"""What a file changes class by class: which images it loses, which class suffers most, and do the labels fit at all?"""

import math
from collections.abc import Sequence

import numpy as np

from mobileprune.errors import DatasetError
from mobileprune.records import ClassChanges

# Fewer images of a class prove nothing: ten that are all lost have a chance of 0.001 of being one.
IMAGES_OF_A_CLASS = 10
CHANCE = 0.001


def class_changes(
    expected: np.ndarray, actual: np.ndarray, labels: np.ndarray, names: Sequence[str] = ()
) -> ClassChanges:
    """How a file's answers for labelled images differ from the reference's.

    Args:
        expected: the reference's outputs (N, classes).
        actual: the file's, of the same shape.
        labels: integers (N,).
        names: of the classes in the order of the outputs; may be empty.

    Raises:
        DatasetError: labels of another length or type, or that no output can mean.

    Example:
        >>> before, after = np.eye(2)[[0, 1, 1, 1]], np.eye(2)[[0, 1, 1, 0]]
        >>> class_changes(before, after, np.array([0, 1, 1, 1]), ("cat", "dog")).worst_class
        'dog'
    """
    check_labels(labels, expected)
    before, after = expected.argmax(axis=1), actual.argmax(axis=1)
    was_right, is_right = before == labels, after == labels
    classes, counts = np.unique(labels, return_counts=True)
    drops = [
        float((was_right[labels == label].sum() - is_right[labels == label].sum()) / count)
        for label, count in zip(classes, counts, strict=True)
    ]
    worst = int(np.argmax(drops))
    return ClassChanges(
        images=len(labels),
        accuracy_before=float(was_right.mean()),
        accuracy=float(is_right.mean()),
        churn=float((before != after).mean()),
        lost=float((was_right & ~is_right).mean()),
        won=float((~was_right & is_right).mean()),
        worst_class=class_name(int(classes[worst]), names),
        worst_class_drop=drops[worst],
    )


def falling_classes(
    expected: np.ndarray, actual: np.ndarray, labels: np.ndarray, limit: float, names: Sequence[str] = ()
) -> list[str]:
    """A sentence for each class whose recall falls by more than `limit` and by more than chance explains.

    Chance is judged by the sign test on the images that one of the two has right and the other wrong. Classes of fewer
    than `IMAGES_OF_A_CLASS` images are not judged.
    """
    check_labels(labels, expected)
    was_right, is_right = expected.argmax(axis=1) == labels, actual.argmax(axis=1) == labels
    found = []
    for label in np.unique(labels):
        mine = labels == label
        lost, won = int((was_right & ~is_right & mine).sum()), int((~was_right & is_right & mine).sum())
        count = int(mine.sum())
        if count >= IMAGES_OF_A_CLASS and (lost - won) / count > limit and _sign_test(lost, won) <= CHANCE:
            found.append(
                f"Class {class_name(int(label), names)!r} falls from {was_right[mine].mean():.1%} to "
                f"{is_right[mine].mean():.1%} of its {count} images; at most {100 * limit:g} points may be lost."
            )
    return found


def exchanged_classes(outputs: np.ndarray, labels: np.ndarray, names: Sequence[str] = ()) -> list[str]:
    """A sentence for each ring of classes that are answered as one another: the labels come in another order.

    A ring is proof: a weak model may take most cats for dogs, but does not take most dogs for cats, too.

    Args:
        outputs: of the *reference* (N, classes), so that nothing about the file is judged here.
        labels: integers (N,).
        names: as in `class_changes`.
    """
    check_labels(labels, outputs)
    answered = outputs.argmax(axis=1)
    mostly: dict[int, int] = {}
    for label in np.unique(labels):
        answers = np.bincount(answered[labels == label], minlength=outputs.shape[1])
        if answers.sum() >= IMAGES_OF_A_CLASS // 2 and answers.max() > 0.5 * answers.sum():
            mostly[int(label)] = int(answers.argmax())
    found, seen = [], set()
    for start in mostly:
        ring = [start]
        while (following := mostly.get(ring[-1], -1)) not in (-1, *ring):
            ring.append(following)
        if following == start and len(ring) > 1 and start not in seen:
            seen.update(ring)
            shown = " → ".join(repr(class_name(label, names)) for label in [*ring[:6], start])
            found.append(
                f"The labels do not match the outputs: the model itself answers most images of one class as the next "
                f"in {shown}{f' (a ring of {len(ring)})' if len(ring) > 6 else ''}. Give the labels in the order of "
                "the outputs."
            )
    return found


def class_name(label: int, names: Sequence[str]) -> str:
    """What a class is called: by its name, or by its output where it has none."""
    return names[label] if label < len(names) else f"output {label}"


def check_labels(labels: np.ndarray, outputs: np.ndarray) -> None:
    """Refuses labels that are not one integer an image, or that the outputs cannot mean.

    Raises:
        DatasetError: with what they are.
    """
    if outputs.ndim != 2 or labels.shape != (len(outputs),) or labels.dtype.kind not in "iu" or not len(labels):
        raise DatasetError(
            f"The labels are {labels.dtype} of shape {labels.shape}; {len(outputs)} integers are needed, one an image."
        )
    if labels.min() < 0 or labels.max() >= outputs.shape[1]:
        raise DatasetError(
            f"Labels from {labels.min()} to {labels.max()} do not match outputs of {outputs.shape[1]} classes."
        )


def _sign_test(lost: int, won: int) -> float:
    """How likely at least `lost` of `lost + won` changes are losses when both are alike."""
    changes = lost + won
    return float(sum(math.comb(changes, count) for count in range(lost, changes + 1)) / 2**changes)
