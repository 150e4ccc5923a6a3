import keras
import pytest

from mobileprune.graph import nodes
from mobileprune.quantize_patterns import Kind, Patterns

layers = keras.layers


def treatments(model):
    """What becomes of each layer, by its name."""
    patterns = Patterns(model)
    return {node.operation.name: patterns.treatment(node) for node in nodes(model)}


def kinds(model):
    return {name: treated.kind for name, treated in treatments(model).items() if name != "image"}


def image():
    return keras.Input((8, 8, 3), name="image")


def test_a_convolution_its_norm_and_its_relu_are_one():
    inputs = image()
    x = layers.Conv2D(4, 3, name="conv")(inputs)
    x = layers.ReLU(6.0, name="relu")(layers.BatchNormalization(name="norm")(x))
    assert kinds(keras.Model(inputs, x)) == {"conv": Kind.KERNEL, "norm": Kind.NORM, "relu": Kind.FUSED}


@pytest.mark.parametrize("reader", ["output", "layer"])
def test_what_others_read_is_rounded_before_the_relu(reader):
    inputs = image()
    x = layers.Conv2D(4, 3, name="conv")(inputs)
    y = layers.ReLU(name="relu")(x)
    model = keras.Model(inputs, [x, y] if reader == "output" else layers.Add(name="add")([x, y]))
    assert kinds(model)["relu"] is Kind.OWN


def test_a_relu_after_an_addition_is_fused_and_after_pooling_is_not():
    inputs = image()
    x = layers.ReLU(name="first")(layers.Add(name="add")([inputs, inputs]))
    x = layers.ReLU(name="second")(layers.MaxPooling2D(name="pool")(x))
    assert kinds(keras.Model(inputs, x)) == {
        "add": Kind.OWN,
        "first": Kind.FUSED,
        "pool": Kind.SAME,
        "second": Kind.OWN,
    }


def test_a_norm_is_folded_once_for_all_calls_of_a_shared_layer():
    left, right = keras.Input((8, 8, 3)), keras.Input((8, 8, 3))
    conv, norm = layers.Conv2D(4, 3, name="conv"), layers.BatchNormalization(name="norm")
    both = keras.Model([left, right], layers.Add()([norm(conv(left)), norm(conv(right))]))
    assert kinds(both)["norm"] is Kind.NORM
    one = keras.Model([left, right], layers.Add()([norm(conv(left)), conv(right)]))
    assert kinds(one)["norm"] is Kind.FLOAT


def test_activations_say_their_range_and_their_steps():
    inputs = image()
    found = {}
    for name in ("silu", "sigmoid", "hard_sigmoid", "hard_silu", "tanh", "softmax", "gelu"):
        model = keras.Model(inputs, layers.Activation(name, name="activation")(inputs))
        treated = treatments(model)["activation"]
        found[name] = (treated.kind, treated.fixed, treated.steps)
    assert found == {
        "silu": (Kind.OWN, None, "silu"),
        "sigmoid": (Kind.OWN, (0.0, 255 / 256), None),
        "hard_sigmoid": (Kind.OWN, (0.0, 1.0), "hard_sigmoid"),
        "hard_silu": (Kind.OWN, None, None),
        "tanh": (Kind.OWN, (-1.0, 127 / 128), None),
        "softmax": (Kind.OWN, (0.0, 255 / 256), None),
        "gelu": (Kind.FLOAT, None, None),
    }


def test_a_layer_of_the_users_own_stays_in_float_whatever_it_is_called():
    class Add(layers.Layer):
        def call(self, inputs):
            return inputs + 1.0

    class Conv2D(layers.Conv2D):
        pass

    inputs = image()
    model = keras.Model(inputs, Conv2D(4, 3, name="conv")(Add(name="add")(inputs)))
    assert kinds(model) == {"add": Kind.FLOAT, "conv": Kind.FLOAT}


def test_concatenated_and_moved_tensors_have_one_range():
    inputs = image()
    left, right = layers.Conv2D(4, 1)(inputs), layers.Conv2D(4, 1)(inputs)
    pooled = layers.MaxPooling2D(2)(left)
    joined = layers.Concatenate()([pooled, layers.AveragePooling2D(2)(right)])
    x = layers.Conv2D(4, 1)(joined)
    patterns = Patterns(keras.Model(inputs, x))
    ranges = {patterns.range_of(tensor) for tensor in (left, right, pooled, joined)}
    assert {members for _, members in ranges} == {2}
    assert len(ranges) == 1
    others = [patterns.range_of(tensor) for tensor in (inputs, x)]
    assert [members for _, members in others] == [1, 1]
    assert len({*ranges, *others}) == 3
