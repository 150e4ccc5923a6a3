import keras
import numpy as np
import pytest
from architectures import ARCHITECTURES, random_inputs, randomise

from mobileprune.errors import PlanError
from mobileprune.gradients import loss_gradients

layers = keras.layers


def linear(classes=3, activation=None):
    model = keras.Sequential([keras.Input((4,)), layers.Dense(classes, activation=activation, name="out")])
    return randomise(model)


def data(count=6, classes=3, seed=0):
    generator = np.random.default_rng(seed)
    return generator.normal(size=(count, 4)).astype("float32"), generator.integers(0, classes, count)


def logistic(model, images, labels):
    """The gradients of softmax regression: Xᵀ(p - y)/N and the mean of p - y."""
    kernel, bias = (np.asarray(weight, np.float64) for weight in model.get_layer("out").weights)
    logits = images @ kernel + bias
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    error = p - np.eye(p.shape[1])[labels]
    return images.T @ error / len(images), error.mean(0)


def check(found, wanted):
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("activation", [None, "softmax"])
def test_softmax_regression_by_hand(activation):
    model = linear(activation=activation)
    images, labels = data()
    check(loss_gradients(model, model.weights, (images, labels)), logistic(model, images, labels))


@pytest.mark.parametrize("activation", [None, "softmax"])
def test_without_labels_the_preferred_class_is_the_label(activation):
    model = linear(activation=activation)
    images, _ = data()
    own = np.asarray(model(images)).argmax(1)
    found = loss_gradients(model, model.weights, images)
    check(found, logistic(model, images, own))
    assert np.abs(found[0]).max() > 0.01


def test_all_batches_count_and_their_sizes_do_not():
    model = linear()
    images, labels = data(70)
    wanted = logistic(model, images, labels)
    batches = [(images[:5], labels[:5]), (images[5:40], labels[5:40]), (images[40:], labels[40:])]
    check(loss_gradients(model, model.weights, (images, labels)), wanted)  # sliced, the last slice is shorter
    check(loss_gradients(model, model.weights, batches), wanted)
    check(loss_gradients(model, model.weights, iter(batches)), wanted)
    last = logistic(model, *batches[-1])
    assert np.abs(last[0] - wanted[0]).max() > 0.01  # the last batch alone would be seen


def test_an_empty_batch_adds_nothing():
    model = linear()
    images, labels = data()
    batches = [(images[:0], labels[:0]), (images, labels)]
    check(loss_gradients(model, model.weights, batches), logistic(model, images, labels))


def test_labels_may_be_probabilities_or_a_plain_list():
    model = linear()
    images, labels = data()
    wanted = logistic(model, images, labels)
    check(loss_gradients(model, model.weights, (images, np.eye(3)[labels])), wanted)
    check(loss_gradients(model, model.weights, (images, labels.tolist())), wanted)


@pytest.mark.parametrize("activation", [None, "sigmoid"])
def test_one_output_is_a_two_class_one(activation):
    model = linear(1, activation)
    images, labels = data(classes=2)
    kernel, bias = (np.asarray(weight, np.float64) for weight in model.get_layer("out").weights)
    p = 1 / (1 + np.exp(-(images @ kernel + bias)))
    for given, target in (((images, labels), labels), (images, (p[:, 0] > 0.5).astype(int))):
        error = p - target[:, None]
        check(loss_gradients(model, model.weights, given), (images.T @ error / len(images), error.mean(0)))


def test_finite_differences_on_a_convnet():
    model = randomise(ARCHITECTURES["squeeze_and_excite"]())
    images, labels = random_inputs(model, 5)[0], np.array([0, 3, 4, 1, 3])
    kernel = next(layer for layer in model.layers if isinstance(layer, layers.Conv2D)).kernel

    def loss():
        logits = np.asarray(model(images, training=False), np.float64)
        return float(np.mean(np.log(np.exp(logits).sum(1)) - logits[np.arange(5), labels]))

    (found,) = loss_gradients(model, [kernel], (images, labels))
    before = np.array(kernel)
    direction = np.random.default_rng(0).normal(size=before.shape)
    kernel.assign(before + 1e-3 * direction)
    above = loss()
    kernel.assign(before - 1e-3 * direction)
    slope = (above - loss()) / 2e-3
    assert slope == pytest.approx(float((found * direction).sum()), rel=0.02)


def test_statistics_and_weights_stay_as_they_are():
    model = randomise(ARCHITECTURES["inverted_residual"]())
    before = model.get_weights()
    loss_gradients(model, model.trainable_weights, random_inputs(model)[0])
    for one, other in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_frozen_layers_have_gradients_too():
    model = linear()
    model.trainable = False
    images, labels = data()
    check(loss_gradients(model, model.weights, (images, labels)), logistic(model, images, labels))


def test_the_losses_of_several_outputs_are_added():
    inputs = keras.Input((4,))
    model = keras.Model(inputs, {name: layers.Dense(3, name=name)(inputs) for name in ("a", "b")})
    randomise(model)
    images, labels = data()
    kernels = [model.get_layer(name).kernel for name in ("a", "b")]
    both = loss_gradients(model, kernels, (images, {"a": labels, "b": labels[::-1]}))
    for name, kernel, own, found in zip("ab", kernels, (labels, labels[::-1]), both, strict=True):
        alone = keras.Model(inputs, model.get_layer(name).output)
        check([found], loss_gradients(alone, [kernel], (images, own)))
    assert np.abs(loss_gradients(model, kernels, images)[1]).max() > 0
    with pytest.raises(PlanError, match="2 outputs; labels were given for 1"):
        loss_gradients(model, kernels, (images, labels))


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (
            np.array([0, 1, 2, 3, 0, 1]),
            r"0 to 3, do not fit an output of shape \(6, 3\). Give class numbers from 0 to 2",
        ),
        (np.array([0, 1, 2, -1, 0, 1]), "-1 to 2"),
        (np.zeros((6, 4)), r"shape \(6, 4\)"),
        (np.zeros(5, int), r"shape \(5,\)"),
        (np.zeros(6), "float64"),
    ],
)
def test_labels_that_cannot_be_meant_are_refused(labels, says):
    model = linear()
    with pytest.raises(PlanError, match=says):
        loss_gradients(model, model.weights, (data()[0], labels))


@pytest.mark.parametrize("nothing", [[], np.zeros((0, 4), "float32"), [np.zeros((0, 4), "float32")]])
def test_no_images_are_refused(nothing):
    model = linear()
    with pytest.raises(PlanError, match="holds no images"):
        loss_gradients(model, model.weights, nothing)


def test_a_tuple_of_three_is_refused():
    model = linear()
    with pytest.raises(PlanError, match="tuple of 3"):
        loss_gradients(model, model.weights, [(data()[0],) * 3])
