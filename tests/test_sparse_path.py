import functools
import re

import keras
import pytest
from tiny_models import variants
from xnnpack_models import depthwise, network, pointwise, stem, with_zeros

from mobileprune.convert import to_float_flatbuffer
from mobileprune.errors import ModelError, VerificationError
from mobileprune.recipes import quantize
from mobileprune.sparse_encoding import encode_sparse
from mobileprune.sparse_path import SparsePath, check_arm, sparse_path

layers = keras.layers


@functools.cache
def content(share=0.8):
    return to_float_flatbuffer(with_zeros(network(), share))


def test_a_sparse_file_takes_the_path():
    found = sparse_path(encode_sparse(content()))
    assert (found.convolutions, found.taken, found.reachable) == (2, 2, 2)
    assert found.zeros == pytest.approx(0.8, abs=0.01)
    assert found.stored_sparse
    assert found.obstacles == found.faults == ()
    assert "yes, 2 of 2" in found.sentence()


def test_macs_are_counted():
    found = sparse_path(content())
    sparse = 16 * 16 * 16 * 64 + 8 * 8 * 64 * 128
    assert found.macs_reachable == sparse
    assert found.macs == sparse + 16 * 16 * 16 * 27 + 16 * 16 * 16 * 9 + 8 * 8 * 64 * 9 + 1280
    assert found.macs_taken == 0


def test_float16_files_take_it_too():
    assert sparse_path(encode_sparse(quantize(content(), "float16"))).taken == 2


def test_the_record_survives_json():
    found = sparse_path(to_float_flatbuffer(network(lambda x: pointwise(layers.MaxPooling2D()(x), 8))))
    assert SparsePath.from_json(found.to_json()) == found


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: content(0.8), "missing: a sparse recipe."),
        (lambda: content(0.5), r"more than 67% zeros in their place of 5\d% and a sparse recipe"),
        (lambda: encode_sparse(content(0.5)), r"more than 67% zeros in their place of 5\d%\.$"),
    ],
    ids=["stored densely", "half zeros, stored densely", "half zeros"],
)
def test_each_missing_condition_of_the_file_is_named(make, sentence):
    found = sparse_path(make())
    assert (found.taken, found.reachable) == (0, 2)
    assert re.search(sentence, found.sentence())


@pytest.mark.parametrize("recipe", ["int8", "dynamic_int8"])
def test_integer_files_have_no_path(recipe):
    found = sparse_path(variants()[recipe].content)
    assert (found.taken, found.reachable) == (0, 0)
    assert "only float files have the path" in found.sentence()


def with_stem(**settings):
    return {"first": lambda x: stem(x, **settings)}


def then(layer):
    return {"middle": lambda x: pointwise(layer(x), 64)}


def split(x):
    """Two convolutions on halves of the channels."""
    return layers.Conv2D(128, 1, groups=2)(x)


# What is broken, and what the detector must say of which op.
PLANTED = {
    "padding of the stem": (with_stem(padding=((0, 1), (0, 1))), "CONV_2D", r"'same' at stride 2; it must be 1"),
    "padding of the stem, explicit": (with_stem(padding=((2, 1), (1, 1))), "CONV_2D", r"is \(2, 1, 1, 1\)"),
    "stride of the stem": (with_stem(strides=1), "CONV_2D", "this one has stride 1 and 3 input"),
    "kernel of the stem": (with_stem(padding=2, size=5), "CONV_2D", "its kernel is 5x5"),
    "channels of the image": ({"channels": 1}, "CONV_2D", "stride 2 and 1 input channels"),
    "a strided 1x1": (then(lambda x: layers.Conv2D(64, 1, 2)(x)), "CONV_2D", "must have stride 1"),
    "a full 3x3": (then(lambda x: layers.Conv2D(64, 3, padding="same")(x)), "CONV_2D", "stride 1 and 128 input"),
    "groups": (then(split), "CONV_2D", "in groups"),
    "dilation": (
        then(lambda x: layers.DepthwiseConv2D(3, dilation_rate=2, padding="same")(x)),
        "DEPTHWISE",
        "dilated|padding",
    ),
    "depthwise padding": (
        then(lambda x: layers.DepthwiseConv2D(3)(x)),
        "DEPTHWISE",
        r"is \(0, 0, 0, 0\); it must be 1 each",
    ),
    "depthwise 7x7": (then(lambda x: depthwise(x, size=7)), "DEPTHWISE", "its kernel is 7x7"),
    "depth multiplier": (then(lambda x: depthwise(x, depth_multiplier=2)), "DEPTHWISE", "depth multiplier"),
    "unequal strides": (
        then(lambda x: layers.Conv2D(64, 3, (1, 2), padding="same")(x)),
        *("CONV_2D", "'same' at stride|stride 1"),
    ),
    "unknown op": (then(lambda x: layers.MaxPooling2D()(x)), "MAX_POOL_2D", "no such op"),
    "scalar": (
        {"middle": lambda x: pointwise(layers.Multiply()([layers.Activation("tanh")(x) * 0.3, x]), 8)},
        *("MUL", "rank 0"),
    ),
    "vector after": (
        then(lambda x: layers.Activation("tanh")(x) + keras.ops.reshape(keras.ops.arange(128.0), (1, 1, 1, 128))),
        *("ADD", "more than one number|rank"),
    ),
    "read outside": (
        {"last": lambda x: layers.Concatenate()([layers.GlobalAveragePooling2D()(x), layers.GlobalMaxPooling2D()(x)])},
        *("REDUCE_MAX", "no such op"),
    ),
    "no end": ({"last": lambda x: layers.Dense(10)(layers.Flatten()(x))}, "", "no mean over the image"),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_violation_is_named(name):
    settings, kind, reason = PLANTED[name]
    found = sparse_path(to_float_flatbuffer(network(**settings)))
    assert found.reachable < found.convolutions or found.faults_if_sparse
    assert any(each.kind.startswith(kind) and re.search(reason, each.reason) for each in found.obstacles), found


def test_a_value_that_the_file_answers_must_stay_inside():
    inputs = keras.Input((32, 32, 3))
    x = pointwise(depthwise(stem(inputs)), 64)
    model = keras.Model(inputs, [x, layers.Dense(3)(layers.GlobalAveragePooling2D()(pointwise(x, 32)))])
    found = sparse_path(to_float_flatbuffer(model))
    assert found.reachable == 0
    assert "the file answers what it reads" in found.sentence()


def broken(share):
    model = network(lambda x: pointwise(layers.DepthwiseConv2D(3, 2, padding="same")(x), 64))
    return to_float_flatbuffer(with_zeros(model, share))


def test_what_breaks_on_arm_is_refused_when_it_would_run_sparse_and_only_then():
    with pytest.raises(VerificationError, match=r"fails or answers wrongly.*DEPTHWISE_CONV_2D \d+ \(its padding"):
        check_arm(encode_sparse(broken(0.8)))
    check_arm(encode_sparse(broken(0.5)))
    check_arm(broken(0.8))
    check_arm(encode_sparse(content()))
    assert "With sparse weights it would break" in sparse_path(broken(0.8)).sentence()
    assert "would break this file" in sparse_path(encode_sparse(broken(0.8))).sentence()


@pytest.mark.parametrize("damaged", [b"", b"abc", bytes(1000)])
def test_other_files_are_refused(damaged):
    with pytest.raises(ModelError):
        sparse_path(damaged)


def test_damaged_files_are_refused_or_read():
    whole, messages = encode_sparse(content()), []
    for place in range(100, len(whole), 997):
        wrong = bytearray(whole)
        wrong[place] = 255 - wrong[place]
        try:
            sparse_path(bytes(wrong))
        except ModelError as error:
            messages.append(str(error))
    assert messages
    assert all("damaged" in message for message in messages)
