"""Knowledge distillation: while a network trains, another one that knows more tells it what it sees in the same images.

The teacher answers inside the training step, to the very images (augmented or not) that the student gets, in inference
mode and without gradient. The student stays the model that it was: callbacks, validation and checkpoints know nothing
of a teacher.
"""

import contextlib
import dataclasses
import fnmatch
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf

from mobileprune.errors import ModelError, SettingsError, known_names
from mobileprune.fake_quant import QuantizedActivation, QuantizedKernel
from mobileprune.graph import functional_graph, nodes
from mobileprune.models import gives_probabilities, output_count
from mobileprune.pruning_wrapper import PruneLowMagnitude

# Probabilities below it are as good as none: their logarithms would drown what the others say.
_LEAST_PROBABILITY = 1e-7


@dataclasses.dataclass(frozen=True, eq=False)
class Distillation:
    """What a teacher adds to the loss of a classifier:

    (1 - weight) × cross-entropy(labels) + weight × temperature² × KL(teacher ‖ student) + feature_weight × features

    Both sides of the divergence are softened by the temperature (Hinton et al. 2015, "Distilling the Knowledge in a
    Neural Network", arXiv:1503.02531), whose square keeps its gradients as large as those of the labels. Either end may
    give logits or probabilities. Regularisation losses count in full.

    Args:
        teacher: a built Sequential or functional classifier of the same classes, which reads the same images. It is
            not changed, and saved nowhere.
        temperature: greater than 0; the higher, the more the teacher's small probabilities count.
        weight: of the teacher beside the labels, 0 to 1.
        features: what else of the teacher is followed, at layers of the same name in both networks, or None.
            `"attention"`: where the layer is active, the squares summed over its channels, normalised image by image
            (Zagoruyko & Komodakis 2017, arXiv:1612.03928); layers may have lost channels. `"hint"`: every value (as in
            Romero et al. 2015, "FitNets", arXiv:1412.6550, without a regressor), where the shapes are the same.
        feature_weight: of the mean over these layers; greater than 0. The attention loss of a layer is the squared
            distance of the two unit vectors, 0 to 2, that of a hint the squared error as a share of the teacher's own
            mean square; both averaged over the batch.
        layers: wildcard patterns of the layers that count, where they fit. By default the last one of each spatial
            size.

    Raises:
        SettingsError: a value that cannot be meant.

    Example:
        >>> teaching = Distillation(base, temperature=4.0, weight=0.5)                          # doctest: +SKIP
        >>> tuned = mp.train(pruned, data, mp.TrainSettings(epochs=4), distillation=teaching)   # doctest: +SKIP
    """

    teacher: Any
    temperature: float = 4.0
    weight: float = 0.5
    features: str | None = None
    feature_weight: float = 1.0
    layers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise SettingsError(f"temperature={self.temperature} must be greater than 0; 4 is usual.")
        if not 0 <= self.weight <= 1:
            raise SettingsError(f"weight={self.weight} must be 0 (labels alone) to 1 (the teacher alone).")
        if self.features is not None and self.features not in FEATURES:
            raise SettingsError(f"Unknown features={self.features!r}. Known: {known_names(FEATURES)}.")
        if not self.feature_weight > 0:
            raise SettingsError(f"feature_weight={self.feature_weight} must be greater than 0.")
        if self.layers and self.features is None:
            raise SettingsError(
                f"layers= says where features are followed. Give features= too: {known_names(FEATURES)}."
            )

    @property
    def active(self) -> bool:
        """Whether the teacher says anything at all."""
        return self.weight > 0 or self.features is not None


@contextlib.contextmanager
def taught(model: Any, distillation: Distillation | None) -> Iterator[None]:
    """While it lasts, `fit` trains a compiled classifier with the teacher's loss added.

    Only the training step is another one, as an attribute of this very object, which Keras does not save: the model's
    class, its compiled loss and its evaluation stay what they are. Without a teacher, or with one of no weight, nothing
    is touched.

    Raises:
        ModelError: teacher and student do not fit together.
    """
    if distillation is None or not distillation.active:
        yield
        return
    model.train_step = _step(model, distillation)
    model.train_function = None  # Keras traces the step only where there is none yet
    try:
        yield
    finally:
        del model.train_step
        model.train_function = None


def _step(student: Any, distillation: Distillation) -> Callable[[Any], dict[str, Any]]:
    """The training step of Keras, with the teacher's loss."""
    teacher = distillation.teacher
    _check_ends(teacher, student)
    points = followed_layers(teacher, student, distillation)
    # The same layers and weights, with the followed tensors beside the output.
    asked, learner = (
        keras.Model(graph.inputs, (graph.outputs[0], [tensors[side] for tensors in points.values()]))
        for side, graph in enumerate((functional_graph(teacher), functional_graph(student)))
    )
    axis = _channel_axis(student)
    weight, temperature = distillation.weight, distillation.temperature
    teacher_logits, student_logits = _logits_of(teacher), _logits_of(student)
    feature_loss = FEATURES.get(distillation.features or "")

    def step(data: Any) -> dict[str, Any]:
        images, labels = data
        told, shown = asked(images, training=False)
        with tf.GradientTape() as tape:
            outputs, found = learner(images, training=True)
            loss = student.compute_loss(x=images, y=labels, y_pred=outputs, training=True)
            if weight:
                loss = (1 - weight) * loss + weight * softened_divergence(
                    teacher_logits(told), student_logits(outputs), temperature
                )
                # What the model's own loss holds beside the labels' keeps its full weight.
                loss = loss + weight * tf.add_n([0.0, *(tf.cast(extra, tf.float32) for extra in student.losses)])
            if feature_loss:
                each = [feature_loss(theirs, ours, axis) for theirs, ours in zip(shown, found, strict=True)]
                loss = loss + distillation.feature_weight * tf.add_n(each) / len(each)
            scaled = student.optimizer.scale_loss(loss)
        weights = student.trainable_weights
        student.optimizer.apply_gradients(zip(tape.gradient(scaled, weights), weights, strict=True))
        tracker = next(metric for metric in student.metrics if metric.name == "loss")
        tracker.update_state(loss, sample_weight=tf.shape(images)[0])
        figures: dict[str, Any] = student.compute_metrics(images, labels, outputs)
        return figures

    return step


def softened_divergence(teacher: Any, student: Any, temperature: float) -> Any:
    """Temperature² × the mean Kullback-Leibler divergence of softened classes, from logits (images, classes)."""
    told = tf.nn.softmax(teacher / temperature)
    crossed = tf.nn.softmax_cross_entropy_with_logits(told, student / temperature)
    own = tf.nn.softmax_cross_entropy_with_logits(told, teacher / temperature)
    return temperature**2 * tf.reduce_mean(crossed - tf.stop_gradient(own))


def attention_distance(teacher: Any, student: Any, axis: int) -> Any:
    """The mean squared distance of attention maps; the channels, on `axis`, may differ in number."""

    def attention(tensor: Any) -> Any:
        energy = tf.reduce_sum(tf.square(tf.cast(tensor, tf.float32)), axis)
        return tf.math.l2_normalize(tf.reshape(energy, (tf.shape(energy)[0], -1)), axis=1)

    return tf.reduce_mean(tf.reduce_sum(tf.square(attention(teacher) - attention(student)), axis=1))


def hint_distance(teacher: Any, student: Any, axis: int) -> Any:
    """The squared error of a layer's values as a share of their mean square; both of one shape."""
    told = tf.cast(teacher, tf.float32)
    error = tf.reduce_mean(tf.square(tf.cast(student, tf.float32) - told))
    return error / (tf.reduce_mean(tf.square(told)) + 1e-12)


FEATURES: dict[str, Callable[[Any, Any, int], Any]] = {"attention": attention_distance, "hint": hint_distance}


def followed_layers(teacher: Any, student: Any, distillation: Distillation) -> dict[str, tuple[Any, Any]]:
    """The symbolic tensors (teacher's, student's) that are compared, by the layer's name in the teacher.

    Raises:
        ModelError: no layer fits, or none that a pattern matches.
    """
    if distillation.features is None:
        return {}
    whole = distillation.features == "hint"
    axis = _channel_axis(student)
    theirs, ours = _tensors(teacher), _tensors(student)
    shared = {name: (theirs[name], ours[name]) for name in theirs if name in ours}
    fit = {name: pair for name, pair in shared.items() if _fits(*pair, axis, whole)}
    for pattern in distillation.layers:
        if not fnmatch.filter(fit, pattern):
            unfit = fnmatch.filter(shared, pattern)
            what = f"{unfit[0]!r}: {shared[unfit[0]][0].shape} and {shared[unfit[0]][1].shape}" if unfit else "no layer"
            raise ModelError(
                f"layers={pattern!r} matches {what} in teacher and student; features={distillation.features!r} can "
                f"follow {known_names(fit) or 'none'}."
            )
    if distillation.layers:
        chosen = {name for pattern in distillation.layers for name in fnmatch.filter(fit, pattern)}
        return {name: pair for name, pair in fit.items() if name in chosen}
    if not fit:
        way = " Layers that lost channels can be followed by features='attention'." if whole else ""
        raise ModelError(
            f"No layer of {student.name!r} has the name and spatial size of one of the teacher {teacher.name!r}.{way}"
        )
    last = {_positions(pair[0], axis): name for name, pair in fit.items()}
    return {name: fit[name] for name in last.values()}


def _check_ends(teacher: Any, student: Any) -> None:
    counts = [output_count(each) for each in (teacher, student)]
    if counts[0] != counts[1]:
        raise ModelError(
            f"The teacher {teacher.name!r} knows {counts[0]} classes and the student {student.name!r} {counts[1]}. "
            "Both must be trained on the same data."
        )
    shapes = [[tuple(tensor.shape[1:]) for tensor in functional_graph(each).inputs] for each in (teacher, student)]
    if shapes[0] != shapes[1]:
        raise ModelError(
            f"The teacher {teacher.name!r} reads {shapes[0]} and the student {student.name!r} {shapes[1]}."
        )


def _logits_of(model: Any) -> Callable[[Any], Any]:
    """From a model's outputs to float32 logits; the logarithms of probabilities are as good as any."""
    if gives_probabilities(model):
        return lambda outputs: tf.math.log(tf.maximum(tf.cast(outputs, tf.float32), _LEAST_PROBABILITY))
    return lambda outputs: tf.cast(outputs, tf.float32)


def _tensors(model: Any) -> dict[str, Any]:
    """What each layer of the outermost graph gives, by the layer's name before it was wrapped; of several calls the
    last one."""
    inner = [node for node in nodes(functional_graph(model)) if not isinstance(node.operation, keras.layers.InputLayer)]
    return {_plain_name(node.operation): node.output_tensors[0] for node in inner if len(node.output_tensors) == 1}


def _plain_name(operation: Any) -> str:
    if isinstance(operation, QuantizedKernel):
        if operation.norm is not None:
            return str(operation.norm.name)
        # Where the activation comes later, the tensor is none that the plain layer gives.
        return str(operation.core.name if operation.activated else operation.name)
    if isinstance(operation, PruneLowMagnitude | QuantizedActivation) and operation.layer is not None:
        return str(operation.layer.name)
    return str(operation.name)


def _fits(theirs: Any, ours: Any, axis: int, whole: bool) -> bool:
    """Whether two tensors (images, positions…, channels) can be compared."""
    if whole:
        return bool(tuple(theirs.shape) == tuple(ours.shape) and None not in theirs.shape[1:])
    return len(theirs.shape) > 2 and _positions(theirs, axis) == _positions(ours, axis)


def _positions(tensor: Any, axis: int) -> tuple[int | None, ...]:
    shape = list(tensor.shape[1:])
    shape.pop(axis - 1 if axis > 0 else axis)
    return tuple(shape)


def _channel_axis(model: Any) -> int:
    formats = [getattr(node.operation, "data_format", None) for node in nodes(functional_graph(model))]
    return 1 if "channels_first" in formats else -1
