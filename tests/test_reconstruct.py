import dataclasses

import keras
import numpy as np
import pytest
from architectures import randomise
from laws.removal import disagreement, run

from mobileprune.errors import DatasetError
from mobileprune.graph import leaves
from mobileprune.plan import plan_channels
from mobileprune.reconstruct import reconstruct
from mobileprune.surgery import remove_channels

layers, ops = keras.layers, keras.ops
GONE = (1, 4, 5)


def removing(model, units=GONE, group="a"):
    """A plan that removes these units of one group and nothing else."""
    plan = plan_channels(model, macs=1.0)
    (size,) = (entry.size for entry in plan.groups if entry.group == group)
    assert size > max(units)
    groups = (dataclasses.replace(e, remove=tuple(units) if e.group == group else ()) for e in plan.groups)
    return dataclasses.replace(plan, groups=tuple(groups))


def dependent(layer, units=GONE, groups=1):
    """Makes the units of a layer linear combinations of its others, at the same places in each of the groups."""
    kernel = np.array(layer.kernel)
    bias = None if layer.bias is None else np.array(layer.bias)
    width = kernel.shape[-1] // groups
    kept = np.setdiff1d(np.arange(width), units)
    mix = np.random.default_rng(5).normal(0, 0.7, (len(kept), len(units)))
    for start in range(0, groups * width, width):
        gone = start + np.array(units)
        kernel[..., gone] = kernel[..., start + kept] @ mix
        if bias is not None:
            bias[gone] = bias[start + kept] @ mix
    layer.kernel.assign(kernel)
    if bias is not None:
        layer.bias.assign(bias)


def images_for(model, count=300):
    generator = np.random.default_rng(2)
    return [generator.normal(size=(count, *tensor.shape[1:])).astype("float32") for tensor in model.inputs]


def outcome(model, plan, how="least_squares", images=None):
    """The smaller model as it is cut, the one that is fitted, and the errors of both."""
    images = images or images_for(model)
    plain, cut = remove_channels(model, plan).smaller, remove_channels(model, plan)
    assert reconstruct(model, cut.smaller, cut.before, cut.after, images, how) == []
    wanted = run(model, images)
    return plain, cut.smaller, *(disagreement(wanted, run(found, images)) for found in (plain, cut.smaller))


def changed(plain, fitted):
    """Paths of the layers whose weights differ between two models of one architecture."""
    pairs = zip(leaves(plain), leaves(fitted), strict=True)
    return {
        path
        for (path, one), (_, other) in pairs
        if any(not np.array_equal(a, b) for a, b in zip(one.weights, other.weights, strict=True))
    }


def test_changed_notices_one_value():
    plain = keras.Sequential([keras.Input((3,)), layers.Dense(2, name="x"), layers.Dense(2, name="y")])
    fitted = keras.models.clone_model(plain)
    fitted.set_weights(plain.get_weights())
    assert changed(plain, fitted) == set()
    fitted.get_layer("y").bias.assign([0, 1e-7])
    assert changed(plain, fitted) == {"y"}


def ending(inputs, x):
    """Something that is not linear behind the layers under test."""
    return keras.Model(inputs, layers.Dense(3, name="head")(layers.Flatten()(layers.Activation("tanh")(x))))


def behind(reader, shape, groups=1, width=8):
    inputs = keras.Input(shape)
    a = layers.Dense(width * groups, name="a")
    model = randomise(ending(inputs, reader(a(inputs))))
    dependent(a, groups=groups)
    return model


def reader(kind, *args, **options):
    return lambda x: kind(*args, name="reader", **options)(x)


READERS = {
    "dense": (reader(layers.Dense, 6), (9,)),
    "dense of rank 3": (reader(layers.Dense, 6), (5, 9)),
    "dense behind a flatten": (lambda x: layers.Dense(6, name="reader")(layers.Flatten()(x)), (2, 2, 9)),
    "1x1": (reader(layers.Conv2D, 6, 1), (4, 4, 9)),
    "3x3": (reader(layers.Conv2D, 6, 3), (5, 5, 9)),
    "3x3 strides": (reader(layers.Conv2D, 6, 3, strides=2), (6, 6, 9)),
    "1d": (reader(layers.Conv1D, 6, 3, dilation_rate=2), (9, 9)),
    "no bias": (reader(layers.Conv2D, 6, 3, use_bias=False), (5, 5, 9)),
    "transposed": (reader(layers.Conv2DTranspose, 6, 3, strides=2, padding="same"), (4, 4, 9)),
    "behind a pooling": (lambda x: layers.Dense(6, name="reader")(layers.GlobalAveragePooling2D()(x)), (2, 2, 9)),
}


@pytest.mark.parametrize("name", READERS)
def test_what_survivors_can_say_is_restored(name):
    model = behind(*READERS[name])
    plain, fitted, before, after = outcome(model, removing(model))
    assert before > 0.05
    assert after < 0.01
    assert changed(plain, fitted) == {"reader"}


def test_what_survivors_cannot_say_is_not_restored_but_better():
    model = randomise(behind(*READERS["3x3"]))
    _, _, before, after = outcome(model, removing(model))
    assert 0.05 < after < before


def test_convolutions_with_padding_are_restored_where_padding_is_a_combination_too():
    model = behind(reader(layers.Conv2D, 6, 3, padding="same"), (5, 5, 9))
    _, _, before, after = outcome(model, removing(model))
    assert after < 0.01 < 0.05 < before


def test_a_grouped_convolution_is_restored_group_by_group():
    model = behind(reader(layers.Conv2D, 6, 3, groups=2), (5, 5, 20), groups=2)
    plain, fitted, before, after = outcome(model, removing(model))
    assert fitted.get_layer("reader").kernel.shape == (3, 3, 5, 6)
    assert after < 0.01 < 0.05 < before
    assert changed(plain, fitted) == {"reader"}


def test_a_separable_convolution_is_restored_where_its_filters_are_alike():
    model = behind(reader(layers.SeparableConv2D, 6, 3), (5, 5, 9))
    depthwise = model.get_layer("reader").depthwise_kernel
    depthwise.assign(np.repeat(np.array(depthwise)[:, :, :1], 8, axis=2))
    kept = np.delete(np.array(depthwise), GONE, 2)
    _, fitted, before, after = outcome(model, removing(model))
    assert after < 0.01 < 0.05 < before
    np.testing.assert_array_equal(fitted.get_layer("reader").depthwise_kernel, kept)


def test_a_reader_that_also_loses_outputs_is_fitted_to_those_that_are_left():
    model = behind(reader(layers.Conv2D, 8, 3), (5, 5, 9))
    dependent(model.get_layer("reader"), (0, 7))
    plan, second = removing(model), removing(model, (0, 7), "reader")
    groups = [one if one.remove else two for one, two in zip(plan.groups, second.groups, strict=True)]
    # Behind the tanh the head's inputs are no combinations of one another: only what it reads is compared.
    _, fitted, _, _ = outcome(model, dataclasses.replace(plan, groups=tuple(groups)))
    images = images_for(model)[0]
    inside = [keras.Model(m.inputs[0], m.get_layer("reader").output)(images) for m in (model, fitted)]
    assert disagreement([np.delete(np.asarray(inside[0]), (0, 7), -1)], [np.asarray(inside[1])]) < 0.01


def test_heads_that_are_others_over_again_are_restored():
    inputs = keras.Input((6, 9))
    attention = layers.MultiHeadAttention(4, 3, value_dim=5, name="reader")
    model = randomise(ending(inputs, attention(inputs, inputs)))
    for weight in attention.weights:
        if "output" not in weight.path:
            values = np.array(weight)
            axis = 1 if values.ndim == 3 else 0
            copy = np.moveaxis(values, axis, 0)
            copy[[1, 3]] = copy[[2, 0]]
            weight.assign(values)
    plain, fitted, before, after = outcome(model, removing(model, (1, 3), "reader:heads"))
    assert fitted.get_layer("reader").num_heads == 2
    assert after < 0.01 < 0.05 < before
    assert changed(plain, fitted) == {"reader"}


@pytest.mark.parametrize("use_bias", [True, False])
def test_what_queries_keys_and_values_read_is_restored(use_bias):
    model = behind(lambda x: layers.MultiHeadAttention(2, 4, use_bias=use_bias, name="reader")(x, x), (6, 9))
    plain, fitted, before, after = outcome(model, removing(model))
    assert after < 0.01 < 0.05 < before
    assert changed(plain, fitted) == {"reader"}


def test_a_residual_stream_is_restored_for_all_that_read_it():
    inputs = keras.Input((4, 4, 9))
    a, b = layers.Conv2D(8, 1, name="a"), layers.Conv2D(8, 1, name="b")
    x = a(inputs)
    x = layers.Add()([x, b(layers.ReLU()(layers.Conv2D(7, 1, name="inner")(x)))])
    model = randomise(ending(inputs, layers.Conv2D(6, 3, name="reader")(x)))
    dependent(a)
    dependent(b)
    plain, fitted, before, after = outcome(model, removing(model))
    assert after < 0.01 < 0.05 < before
    assert changed(plain, fitted) == {"inner", "reader"}


def test_a_concatenation_is_restored_and_may_use_the_other_branch():
    inputs = keras.Input((4, 4, 9))
    a, other = layers.Conv2D(8, 1, name="a"), layers.Conv2D(5, 1, name="other")
    x = layers.Concatenate()([other(inputs), a(inputs)])
    model = randomise(ending(inputs, layers.Conv2D(6, 3, name="reader")(x)))
    mix = np.random.default_rng(1).normal(size=(5, 3)).astype("float32")
    for mine, theirs in zip((a.kernel, a.bias), (other.kernel, other.bias), strict=True):
        values = np.array(mine)
        values[..., list(GONE)] = np.asarray(theirs) @ mix
        mine.assign(values)
    plain, fitted, before, after = outcome(model, removing(model))
    assert after < 0.01 < 0.05 < before
    assert changed(plain, fitted) == {"reader"}


def test_layers_of_nested_models_are_restored():
    inside = keras.Input((4, 4, 9))
    a = layers.Conv2D(8, 1, name="a")
    body = keras.Model(inside, layers.Conv2D(6, 3, name="reader")(a(inside)), name="body")
    outer = keras.Input((4, 4, 9))
    model = randomise(ending(outer, body(layers.ReLU()(outer))))
    dependent(a)
    plain, fitted, before, after = outcome(model, removing(model, group="body/a"))
    assert after < 0.01 < 0.05 < before
    assert changed(plain, fitted) == {"body/reader"}


def test_a_nested_model_in_whose_input_channels_are_missing_is_restored():
    inside = keras.Input((4, 4, 8))
    body = keras.Sequential([inside, layers.Conv2D(6, 3, name="reader")], name="body")
    model = behind(body, (4, 4, 9))
    plain, fitted, before, after = outcome(model, removing(model))
    assert after < 0.01 < 0.05 < before
    assert changed(plain, fitted) == {"body/reader"}


def test_a_shared_layer_is_fitted_once_and_right_in_all_its_calls():
    left, right = keras.Input((5, 9)), keras.Input((5, 9))
    a, shared = layers.Dense(8, name="a"), layers.Conv1D(6, 3, name="shared")
    x = layers.Concatenate()([shared(a(left)), layers.Activation("tanh")(shared(a(right)))])
    model = randomise(ending([left, right], x))
    dependent(a)
    plain, fitted, before, after = outcome(model, removing(model))
    assert after < 0.01 < 0.05 < before
    assert changed(plain, fitted) == {"shared"}


def test_layers_are_fitted_on_what_those_before_them_have_become():
    """The second reader makes up for what the first could not say: fitted on the original's inputs it could not."""
    inputs = keras.Input((9,))
    x = layers.Dense(8, name="a")(inputs)
    x = layers.Dense(8, activation="relu", name="b")(x)
    model = randomise(ending(inputs, layers.Dense(6, name="reader")(x)))
    plan, second = removing(model, (0, 1, 2, 3, 4, 6)), removing(model, (5,), "b")
    groups = [one if one.remove else two for one, two in zip(plan.groups, second.groups, strict=True)]
    plan = dataclasses.replace(plan, groups=tuple(groups))
    images = images_for(model)
    _, fitted, _, _ = outcome(model, plan, images=images)
    before, read = (np.asarray(keras.Model(m.inputs[0], m.get_layer("b").output)(images[0])) for m in (model, fitted))
    wanted, found = (
        np.asarray(keras.Model(m.inputs[0], m.get_layer("reader").output)(images[0])) for m in (model, fitted)
    )
    kept = np.c_[np.delete(before, 5, 1), np.ones(len(before))]
    now = np.c_[read, np.ones(len(read))]
    errors = [((now @ np.linalg.lstsq(rows, wanted, rcond=None)[0] - wanted) ** 2).mean() for rows in (now, kept)]
    assert 1e-3 < errors[0] < 0.9 * errors[1]
    assert ((found - wanted) ** 2).mean() < 1.05 * errors[0]


def test_without_a_bias_the_fit_is_the_best_that_needs_none():
    """Centred moments would forget the means, which only the survivors' weights can carry here."""
    model = randomise(behind(*READERS["dense"]))
    inputs = model.inputs[0]
    reader = layers.Dense(6, use_bias=False, name="reader")
    model = randomise(ending(inputs, reader(model.get_layer("a").output)), seed=3)
    model.get_layer("a").bias.assign(np.linspace(2, 4, 8))
    images = images_for(model)
    _, fitted, _, _ = outcome(model, removing(model), images=images)
    read = np.asarray(keras.Model(fitted.inputs[0], fitted.get_layer("a").output)(images[0]))
    wanted, found = (
        np.asarray(keras.Model(m.inputs[0], m.get_layer("reader").output)(images[0])) for m in (model, fitted)
    )
    least = ((read @ np.linalg.lstsq(read, wanted, rcond=None)[0] - wanted) ** 2).mean()
    assert ((found - wanted) ** 2).mean() < 1.05 * least


def test_the_original_stays_bit_for_bit():
    model = behind(*READERS["3x3"])
    before, images = model.get_weights(), images_for(model)
    told = run(model, images)
    outcome(model, removing(model), images=images)
    for old, new in zip([*before, *told], [*model.get_weights(), *run(model, images)], strict=True):
        assert old.tobytes() == new.tobytes()


def test_images_that_do_not_fit_are_refused():
    model = behind(*READERS["dense"])
    cut = remove_channels(model, removing(model))
    with pytest.raises(DatasetError, match=r"calibration data are \(4, 7\)"):
        reconstruct(model, cut.smaller, cut.before, cut.after, np.ones((4, 7)), "mean")
