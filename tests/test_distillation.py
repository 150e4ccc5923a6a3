import json
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf
from killing import KillAt, Killed

from mobileprune.data import load_dataset
from mobileprune.distillation import (
    Distillation,
    attention_distance,
    followed_layers,
    hint_distance,
    softened_divergence,
    taught,
)
from mobileprune.errors import ModelError, SettingsError
from mobileprune.one_shot import prune_one_shot
from mobileprune.plan import plan_channels
from mobileprune.prune import prune_channels
from mobileprune.pruning_callbacks import UpdatePruningStep
from mobileprune.quantize_aware import quantize_aware, strip_quantization
from mobileprune.records import Preprocess
from mobileprune.schedules import PolynomialDecay
from mobileprune.sparsify import hold_zeros, prune_low_magnitude, sparsity, strip_pruning
from mobileprune.train import TrainSettings, compile_classifier, load_checkpoint, set_seed, train, validate

layers = keras.layers
SETTINGS = TrainSettings(epochs=3, batch_size=16, learning_rate=0.01, seed=3)
STEPS = 5  # batches in an epoch


@pytest.fixture(scope="module")
def dataset():
    return load_dataset("fashion_mnist", Preprocess(28, 28, color="grayscale")).limited(80)


def network(activation=None, seed=1, name="tiny", plain=False, classes=10):
    """conv → norm → conv → residual add → pooling → dropout → dense; `plain` trains as it infers."""
    set_seed(seed)
    inputs = keras.Input((28, 28, 1))
    x = layers.Conv2D(8, 3, strides=2, padding="same", name="conv")(inputs)
    if not plain:
        x = layers.BatchNormalization(momentum=0.9, name="norm")(x)
    x = layers.ReLU(name="relu")(x)
    y = layers.Conv2D(16, 3, padding="same", activation="relu", name="wide")(x)
    x = layers.Add(name="add")([x, layers.Conv2D(8, 1, name="project")(y)])
    x = layers.GlobalAveragePooling2D(name="pool")(layers.ReLU(name="last")(x))
    if not plain:
        x = layers.Dropout(0.2, name="dropout")(x)
    return keras.Model(inputs, layers.Dense(classes, activation=activation, name="logits")(x), name=name)


@pytest.fixture(scope="module")
def teacher(dataset):
    return train(network(seed=7, name="teacher"), dataset, TrainSettings(6, 16, 0.02))


def narrow(seed=1):
    """Half of what only `wide` holds is gone: the tensors of all other layers keep their shapes."""
    model = network(seed=seed)
    return prune_channels(model, plan_channels(model, channels={"wide": 8}, round_to=1))


def assert_same(one, other):
    for mine, theirs in zip(one.variables, other.variables, strict=True):
        np.testing.assert_array_equal(np.array(mine), np.array(theirs), err_msg=mine.path)


def softmax(logits):
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    return odds / odds.sum(axis=1, keepdims=True)


# Known answers


def test_the_divergence_is_the_formula_of_the_paper():
    generator = np.random.default_rng(0)
    told, said = generator.normal(0, 3, (2, 5, 4))
    p, q = softmax(told / 3.0), softmax(said / 3.0)
    expected = 9.0 * np.mean(np.sum(p * np.log(p / q), axis=1))
    found = softened_divergence(tf.constant(told), tf.constant(said), 3.0)
    assert float(found) == pytest.approx(expected, rel=1e-9)
    assert float(softened_divergence(tf.constant(told), tf.constant(told), 3.0)) == pytest.approx(0.0, abs=1e-9)


def test_attention_is_the_formula_of_the_paper_whatever_the_number_of_channels():
    generator = np.random.default_rng(0)
    theirs, ours = generator.normal(size=(3, 4, 5, 6)), generator.normal(size=(3, 4, 5, 2))

    def unit(values):
        energy = np.square(values).sum(axis=-1).reshape(3, -1)
        return energy / np.linalg.norm(energy, axis=1, keepdims=True)

    expected = np.mean(np.sum(np.square(unit(theirs) - unit(ours)), axis=1))
    assert float(attention_distance(theirs, ours, -1)) == pytest.approx(expected, rel=1e-5)
    turned = (values.transpose(0, 3, 1, 2) for values in (theirs, ours))
    assert float(attention_distance(*turned, 1)) == pytest.approx(expected, rel=1e-5)
    assert float(attention_distance(theirs, -2.0 * theirs, -1)) == pytest.approx(0.0, abs=1e-6)


def test_a_hint_is_the_error_as_a_share_of_what_was_told():
    told = np.random.default_rng(0).normal(size=(3, 4, 4, 2))
    assert float(hint_distance(told, 1.5 * told, -1)) == pytest.approx(0.25, rel=1e-5)
    assert float(hint_distance(told, np.zeros_like(told), -1)) == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("ends", [(None, None), ("softmax", None), (None, "softmax"), ("softmax", "softmax")])
def test_a_step_reports_the_loss_of_the_documentation(dataset, weight, ends):
    student, other = network(ends[0], plain=True), network(ends[1], seed=5, plain=True)
    images, labels = next(dataset.train.numpy_batches(16))
    told, said = (
        softmax(np.log(values) / 4.0) if end else softmax(values / 4.0)
        for end, values in ((ends[1], other.predict_on_batch(images)), (ends[0], student.predict_on_batch(images)))
    )
    sharp = student.predict_on_batch(images)
    hard = -np.log((sharp if ends[0] else softmax(sharp))[np.arange(16), labels]).mean()
    shown = attention_distance(
        *(keras.Model(m.input, m.get_layer("last").output)(images) for m in (other, student)), -1
    )
    expected = (1 - weight) * hard + weight * 16.0 * np.mean(np.sum(told * np.log(told / said), axis=1))
    expected += 2.0 * float(shown)
    compile_classifier(student)
    how = Distillation(other, weight=weight, features="attention", feature_weight=2.0, layers=("last",))
    with taught(student, how):
        student.fit(images, labels, batch_size=16, verbose=0)
        assert student.history.history["loss"][0] == pytest.approx(expected, rel=1e-4)


def test_regularisers_of_the_student_count_in_full(dataset):
    inputs = keras.Input((28, 28, 1))
    regular = layers.Dense(10, kernel_regularizer=keras.regularizers.L2(0.5), name="logits")
    student = keras.Model(inputs, regular(layers.Flatten()(inputs)))
    images, labels = next(dataset.train.numpy_batches(16))
    other = keras.models.clone_model(student)
    other.set_weights(student.get_weights())
    expected = 0.5 * float(np.square(np.array(regular.kernel)).sum())
    compile_classifier(student)
    with taught(student, Distillation(other, weight=1.0)):
        student.fit(images, labels, batch_size=16, verbose=0)
    assert student.history.history["loss"][0] == pytest.approx(expected, rel=1e-5)


def test_nothing_is_learned_from_a_teacher_that_says_the_same(dataset):
    student, other = network(plain=True), network(plain=True)
    assert_same(student, other)
    images, labels = next(dataset.train.numpy_batches(16))
    before = [np.array(value) for value in student.variables]
    for weight, still in ((1.0, True), (0.9, False)):
        student.compile(keras.optimizers.SGD(1.0), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        with taught(student, Distillation(other, weight=weight)):
            student.fit(images, labels, batch_size=16, verbose=0)
        moved = max(float(np.abs(np.array(v) - old).max()) for v, old in zip(student.variables, before, strict=True))
        assert (moved < 1e-6) is still, moved


def test_without_weight_training_is_what_it_is_without_a_teacher(dataset, teacher):
    plain = train(network(), dataset, SETTINGS)
    assert_same(train(network(), dataset, SETTINGS, distillation=Distillation(teacher, weight=0.0)), plain)
    other = train(network(), dataset, SETTINGS, distillation=Distillation(teacher, weight=0.5))
    assert not np.array_equal(other.get_layer("logits").get_weights()[0], plain.get_layer("logits").get_weights()[0])


# The teacher


def test_the_teacher_sees_the_augmented_images_of_the_student_and_does_not_change(dataset, teacher):
    seen = {"teacher": [], "student": []}

    @keras.saving.register_keras_serializable("tests")
    class Recorder(layers.Layer):
        def __init__(self, who, **kwargs):
            super().__init__(**kwargs)
            self.who = who

        def call(self, inputs):
            def keep(values):
                seen[self.who].append(values)
                return values

            out = tf.numpy_function(keep, [inputs], tf.float32)
            out.set_shape(inputs.shape)
            return tf.stop_gradient(out)

        def compute_output_shape(self, shape):
            return shape

    def recorded(model, who):
        inputs = keras.Input((28, 28, 1))
        return keras.Model(inputs, layers.Dense(10, name="top")(model(Recorder(who, name=f"at_{who}")(inputs))))

    before = [np.array(value) for value in teacher.variables]
    student, other = recorded(network(), "student"), recorded(teacher, "teacher")
    seen["student"].clear(), seen["teacher"].clear()
    train(student, dataset, TrainSettings(1, 16, seed=2), distillation=Distillation(other))
    assert len(seen["teacher"]) == STEPS
    for mine in seen["teacher"]:
        assert any(np.array_equal(mine, theirs) for theirs in seen["student"])
    first = dataset.train.images(80)
    assert not any(np.array_equal(seen["teacher"][0][0], image) for image in first[:1])
    for value, old in zip(teacher.variables, before, strict=True):
        np.testing.assert_array_equal(np.array(value), old)


def test_a_student_comes_near_its_teacher_without_labels(dataset, teacher):
    def distance(model):
        images = dataset.train.images()
        told, said = (each.predict(images, verbose=0) for each in (teacher, model))
        return float(softened_divergence(tf.constant(told), tf.constant(said), 4.0))

    before = distance(narrow())
    settings = TrainSettings(12, 16, 0.02, augment=False)
    after = distance(train(narrow(), dataset, settings, distillation=Distillation(teacher, weight=1.0)))
    assert after < 0.3 * before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"temperature": 0}, "temperature=0 must be greater than 0"),
        ({"weight": 1.5}, r"weight=1.5 must be 0 \(labels alone\) to 1"),
        ({"features": "maps"}, "Unknown features='maps'. Known: attention, hint"),
        ({"feature_weight": 0}, "feature_weight=0 must be greater than 0"),
        ({"layers": ("add",)}, "Give features= too: attention, hint"),
    ],
)
def test_values_that_cannot_be_meant_are_refused(arguments, said):
    with pytest.raises(SettingsError, match=said):
        Distillation(None, **arguments)


def test_a_teacher_of_other_classes_or_images_is_refused(dataset):
    with pytest.raises(ModelError, match="'other' knows 7 classes and the student 'tiny' 10"):
        train(network(), dataset, SETTINGS, distillation=Distillation(network(classes=7, name="other")))
    inputs = keras.Input((32, 32, 1))
    larger = keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling2D()(inputs)), name="larger")
    with pytest.raises(ModelError, match=r"'larger' reads \[\(32, 32, 1\)\]"):
        train(network(), dataset, SETTINGS, distillation=Distillation(larger))


# Features


def test_attention_follows_the_last_layer_of_each_size_and_hints_those_that_kept_their_shape(teacher):
    def followed(model, **how):
        return list(followed_layers(teacher, model, Distillation(teacher, **how)))

    assert followed(narrow()) == []
    assert followed(narrow(), features="attention") == ["last"]
    assert followed(narrow(), features="attention", layers=("wide", "a*")) == ["wide", "add"]
    assert "pool" not in followed(narrow(), features="attention")  # it has no positions
    assert followed(narrow(), features="hint", layers=("add",)) == ["add"]
    assert "last" in followed(narrow(), features="hint")
    with pytest.raises(ModelError, match=r"layers='w\*' matches 'wide': \(None, 14, 14, 16\) and .*can follow conv"):
        followed(narrow(), features="hint", layers=("w*",))
    with pytest.raises(ModelError, match="layers='stem' matches no layer"):
        followed(narrow(), features="attention", layers=("stem",))


def test_networks_without_a_layer_in_common_have_no_features_to_follow(teacher):
    inputs = keras.Input((28, 28, 1))
    stranger = keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling2D()(inputs)), name="stranger")
    with pytest.raises(ModelError, match="No layer of 'stranger' has the name"):
        followed_layers(teacher, stranger, Distillation(teacher, features="attention"))


def test_wrapped_layers_are_known_by_the_names_they_had(teacher):
    model, images = network(), np.random.default_rng(0).normal(size=(16, 28, 28, 1)).astype("float32")
    every = Distillation(teacher, features="attention", layers=("*",))
    plain = set(followed_layers(teacher, model, every))
    assert {"conv", "norm", "relu", "wide", "project", "add", "last"} <= plain
    assert set(followed_layers(teacher, prune_low_magnitude(model), every)) == plain
    aware = set(followed_layers(teacher, quantize_aware(hold_zeros(model), images), every))
    assert {"norm", "relu", "wide", "project", "add", "last"} <= aware


@pytest.mark.parametrize("features", ["attention", "hint"])
def test_features_come_near_the_teachers(dataset, teacher, features):
    measure = {"attention": attention_distance, "hint": hint_distance}[features]

    def distance(model):
        seen = (keras.Model(each.input, each.get_layer("add").output) for each in (teacher, model))
        return float(measure(*(each.predict(dataset.train.images(), verbose=0) for each in seen), -1))

    how = Distillation(teacher, weight=0.0, features=features, feature_weight=10.0, layers=("add",))
    settings = TrainSettings(8, 16, 0.02, augment=False)
    with_features = distance(train(narrow(), dataset, settings, distillation=how))
    assert with_features < 0.6 * distance(train(narrow(), dataset, settings))


# What is trained, kept and measured


def test_validation_measures_the_labels_alone(dataset, teacher):
    figures = []
    model = train(
        network(),
        dataset,
        TrainSettings(2, 16, 0.01),
        distillation=Distillation(teacher, weight=1.0, features="attention", feature_weight=50.0),
        on_epoch=lambda epoch, found: figures.append(found),
    )
    images, labels = dataset.validation.images(), dataset.validation.labels
    expected = -np.log(softmax(model.predict(images, verbose=0))[np.arange(len(labels)), labels]).mean()
    assert figures[-1]["val_loss"] == pytest.approx(expected, rel=1e-4)
    assert figures[-1]["val_accuracy"] == pytest.approx(validate(model, dataset))
    assert 0 <= figures[-1]["accuracy"] <= 1


def test_afterwards_the_model_trains_without_the_teacher(dataset, teacher):
    images, labels = next(dataset.train.numpy_batches(16))
    student = network(plain=True)
    compile_classifier(student, 0.0)
    alone = student.evaluate(images, labels, verbose=0)[0]
    for how, same in ((Distillation(teacher), False), (None, True)):
        with taught(student, how):
            student.fit(images, labels, batch_size=16, verbose=0)
        assert (student.history.history["loss"][0] == pytest.approx(alone, rel=1e-4)) is same
    assert "train_step" not in vars(student)


def test_the_teacher_is_in_no_checkpoint(dataset, teacher, tmp_path):
    plain, taught_folder = tmp_path / "plain", tmp_path / "taught"
    train(network(), dataset, SETTINGS, checkpoint=plain)
    train(network(), dataset, SETTINGS, checkpoint=taught_folder, distillation=Distillation(teacher))
    kept = [folder / "epoch_3.keras" for folder in (plain, taught_folder)]
    configs = [json.loads(zipfile.ZipFile(path).read("config.json")) for path in kept]
    plainly, distilled = ({k: v for k, v in each["compile_config"].items() if k != "optimizer"} for each in configs)
    assert plainly == distilled  # optimizers have numbered names
    assert "teacher" not in json.dumps(configs[1])
    assert abs(kept[0].stat().st_size - kept[1].stat().st_size) < 1000
    assert type(load_checkpoint(kept[1])) is type(network())


def test_a_resumed_training_equals_one_that_was_not_interrupted(dataset, teacher, tmp_path):
    how = Distillation(teacher, features="attention")
    whole = train(narrow(), dataset, SETTINGS, checkpoint=tmp_path / "whole", distillation=how)
    folder = tmp_path / "killed"
    with pytest.raises(Killed):
        train(narrow(), dataset, SETTINGS, checkpoint=folder, callbacks=[KillAt(STEPS + 2)], distillation=how)
    set_seed(99)
    assert_same(train(narrow(), dataset, SETTINGS, checkpoint=folder, distillation=how), whole)


def test_sparse_students_keep_their_masks(dataset, teacher):
    how = Distillation(teacher, features="attention")
    schedule = PolynomialDecay(0.0, 0.75, begin_step=0, end_step=2 * STEPS, frequency=2)
    wrapped = prune_low_magnitude(network(), schedule)
    trained = train(wrapped, dataset, SETTINGS, callbacks=[UpdatePruningStep()], distillation=how)
    assert sparsity(strip_pruning(trained)) == pytest.approx(0.75, abs=0.01)
    zeros = prune_one_shot(network(), 0.5, dataset.calibration.images(32))
    held = strip_pruning(train(hold_zeros(zeros), dataset, SETTINGS, distillation=how))
    assert sparsity(held) == pytest.approx(sparsity(zeros))


def test_students_with_rounding_learn(dataset, teacher):
    aware = quantize_aware(train(network(), dataset, SETTINGS), dataset.calibration.images(32))
    before = [np.array(value) for value in aware.trainable_variables]
    trained = train(aware, dataset, SETTINGS, distillation=Distillation(teacher, weight=1.0, features="attention"))
    assert any(not np.array_equal(np.array(v), old) for v, old in zip(trained.trainable_variables, before, strict=True))
    assert strip_quantization(trained).get_layer("logits")


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_students_in_mixed_precision_learn(dataset, teacher, policy):
    keras.config.set_dtype_policy(policy)
    try:
        student = network()
    finally:
        keras.config.set_dtype_policy("float32")
    losses = []
    train(
        student,
        dataset,
        TrainSettings(6, 16, 0.02, augment=False),
        distillation=Distillation(teacher, features="attention"),
        on_epoch=lambda epoch, found: losses.append(found["loss"]),
    )
    assert losses[-1] < losses[0]


def test_a_sequential_student_learns_from_a_functional_teacher(dataset, teacher):
    student = keras.Sequential([keras.Input((28, 28, 1)), layers.Flatten(), layers.Dense(10, activation="softmax")])
    before = student.get_weights()
    train(student, dataset, TrainSettings(1, 16), distillation=Distillation(teacher, weight=1.0))
    assert not np.array_equal(student.get_weights()[0], before[0])
