import warnings

import keras
import numpy as np
import pytest
from architectures import ARCHITECTURES, random_inputs, randomise
from laws.removal import disagreement, run
from op_architectures import OPS
from test_reconstruct import GONE, changed, dependent, ending, images_for, removing
from zoo_architectures import ZOO

from mobileprune.errors import DatasetError, PlanError
from mobileprune.inspect import model_facts
from mobileprune.plan import plan_channels
from mobileprune.prune import narrower, prune_channels
from mobileprune.surgery import remove_channels

layers, ops = keras.layers, keras.ops


def pruned(model, plan, how, images):
    return prune_channels(model, plan, how, images if len(images) > 1 else images[0])


def errors(model, plan, how):
    """The largest errors of the outputs without compensation and with it."""
    images = images_for(model)
    wanted = run(model, images)
    return [disagreement(wanted, run(pruned(model, plan, one, images), images)) for one in ("none", how)]


def before_a_norm(reader, norm, shape=(4, 4, 9)):
    inputs = keras.Input(shape)
    return randomise(ending(inputs, norm(reader(layers.Dense(8, name="a")(inputs)))))


def constant(model):
    """Makes the channels of `a` that go constants."""
    a = model.get_layer("a")
    kernel = np.array(a.kernel)
    kernel[..., list(GONE)] = 0
    a.kernel.assign(kernel)
    return model


def norm(**options):
    return layers.BatchNormalization(name="norm", **options)


READERS = {
    "dense": lambda: layers.Dense(6, name="reader"),
    "conv": lambda: layers.Conv2D(6, 3, name="reader"),
    "conv without bias": lambda: layers.Conv2D(6, 3, use_bias=False, name="reader"),
    "separable": lambda: layers.SeparableConv2D(6, 2, name="reader"),
    "separable without bias": lambda: layers.SeparableConv2D(6, 2, use_bias=False, name="reader"),
}


@pytest.mark.parametrize("how", ["mean", "least_squares"])
@pytest.mark.parametrize("name", READERS)
def test_constants_move_into_the_bias_or_into_the_batch_norm_behind(name, how):
    model = constant(before_a_norm(READERS[name](), norm()))
    plan = removing(model)
    before, after = errors(model, plan, how)
    assert after < 2e-4 < 0.02 < before
    if how == "mean":
        found = changed(remove_channels(model, plan).smaller, pruned(model, plan, how, images_for(model)))
        assert found == {"norm" if "without" in name else "reader"}


def test_the_mean_is_right_where_removed_channels_are_not_constant():
    model = before_a_norm(READERS["conv"](), norm())
    images = images_for(model)
    smaller = pruned(model, removing(model), "mean", images)
    wanted, found = (
        np.asarray(keras.Model(m.inputs[0], m.get_layer("reader").output)(images[0])) for m in (model, smaller)
    )
    np.testing.assert_allclose(found.mean((0, 1, 2)), wanted.mean((0, 1, 2)), atol=1e-4)
    assert np.abs(found - wanted).mean() > 0.05
    plain = remove_channels(model, removing(model)).smaller
    np.testing.assert_array_equal(smaller.get_layer("reader").kernel, plain.get_layer("reader").kernel)


def test_without_a_bias_or_a_batch_norm_the_mean_has_nowhere_to_go():
    model = before_a_norm(READERS["conv without bias"](), layers.ReLU())
    plan, images = removing(model), images_for(model)
    assert changed(remove_channels(model, plan).smaller, pruned(model, plan, "mean", images)) == set()
    dependent(model.get_layer("a"))
    before, after = errors(model, plan, "least_squares")
    assert after < 0.01 < 0.05 < before


def test_what_survivors_can_say_is_restored_through_a_batch_norm():
    model = before_a_norm(READERS["conv without bias"](), norm())
    dependent(model.get_layer("a"))
    bias = model.get_layer("a").bias
    bias.assign(np.array(bias) + np.isin(np.arange(8), GONE))
    before, after = errors(model, removing(model), "least_squares")
    assert after < 0.01 < 0.05 < before


def reads_twice(x):
    conv, shared = layers.Conv2D(6, 1, use_bias=False, name="reader"), norm()
    return layers.Concatenate()([shared(conv(x)), shared(layers.Conv2D(6, 1, use_bias=False, name="other")(x))])


def is_read_twice(x):
    made = layers.Conv2D(6, 1, use_bias=False, name="reader")(x)
    return layers.Concatenate()([norm()(made), made])


def is_called_twice(x):
    conv = layers.Conv2D(6, 1, use_bias=False, name="reader")
    return layers.Concatenate()([norm()(conv(x)), conv(layers.Rescaling(0.5)(x))])


NO_SINKS = {
    "an activation between": lambda x: norm()(layers.Conv2D(6, 1, use_bias=False, activation="relu", name="r")(x)),
    "a norm over rows": lambda x: norm(axis=1)(layers.Conv2D(6, 1, use_bias=False, name="r")(x)),
    "a norm over six rows": lambda x: norm(axis=1)(layers.Conv2D(4, 1, use_bias=False, name="r")(x)),
    "a norm that reads two": reads_twice,
    "two that read it": is_read_twice,
    "two calls": is_called_twice,
    "transposed": lambda x: norm()(layers.Conv2DTranspose(6, 2, strides=2, name="r")(x)),
    "transposed without bias": lambda x: norm()(layers.Conv2DTranspose(6, 2, use_bias=False, name="r")(x)),
    "overlaps": lambda x: norm()(layers.Conv2DTranspose(6, 3, use_bias=False, padding="same", name="r")(x)),
}


@pytest.mark.parametrize("name", NO_SINKS)
def test_a_batch_norm_that_cannot_take_the_bias_stays_as_it_is(name):
    inputs = keras.Input((4, 4, 9))
    model = randomise(ending(inputs, NO_SINKS[name](layers.Conv2D(8, 1, name="a")(inputs))))
    plan, images = removing(model), images_for(model)
    plain = remove_channels(model, plan).smaller.get_layer("norm")
    for how in ("mean", "least_squares"):
        fitted = pruned(model, plan, how, images).get_layer("norm")
        np.testing.assert_array_equal(fitted.moving_mean, plain.moving_mean)
    dependent(model.get_layer("a"))
    before, after = errors(model, plan, "least_squares")
    assert after < 0.01 < 0.03 < before


@pytest.mark.parametrize("width", [4, 5])
def test_only_what_attention_gives_moves_into_a_batch_norm_behind_it(width):
    inputs = keras.Input((6, 9))
    x = layers.Dense(8, name="a")(inputs)
    x = layers.MultiHeadAttention(2, width, use_bias=False, name="reader")(x, x)
    model = randomise(ending(inputs, norm()(x)))
    dependent(model.get_layer("a"))
    before, after = errors(model, removing(model), "least_squares")
    assert after < 0.01 < 0.03 < before


def test_a_batch_norm_that_always_follows_the_same_shared_layer_takes_its_bias():
    left, right = keras.Input((4, 4, 9)), keras.Input((4, 4, 9))
    a, conv, shared = layers.Conv2D(8, 1, name="a"), READERS["conv without bias"](), norm()
    x = layers.Concatenate()([shared(conv(a(left))), shared(conv(a(right)))])
    model = constant(randomise(ending([left, right], x)))
    before, after = errors(model, removing(model), "mean")
    assert after < 2e-4 < 0.02 < before


UNFITTED = {
    "causal": lambda x, mask: layers.Conv1D(8, 2, padding="causal", name="odd")(x),
    "masked": lambda x, mask: layers.MultiHeadAttention(2, 4, name="odd")(x, x, attention_mask=mask),
}


@pytest.mark.parametrize("name", UNFITTED)
def test_layers_that_cannot_be_fitted_are_named_in_a_warning_and_stay(name):
    inputs, mask = keras.Input((6, 9)), keras.Input((6, 6))
    x = UNFITTED[name](layers.Dense(8, name="a")(inputs), mask > -1)
    model = keras.Model([inputs, mask], layers.Dense(3, name="last")(x))
    model = randomise(model if name == "masked" else keras.Model(inputs, model.get_layer("last").output))
    plan, images = removing(model), images_for(model, 9)
    with pytest.warns(UserWarning, match=r"These layers lost channels and cannot be fitted: odd\."):
        smaller = pruned(model, plan, "least_squares", images)
    assert changed(remove_channels(model, plan).smaller, smaller) == set()


@pytest.mark.parametrize("kind", ["rank", "scores"])
def test_attention_in_unusual_use_is_left_or_fitted(kind):
    inputs = keras.Input((6, 9) if kind == "scores" else (2, 3, 9))
    x, odd = layers.Dense(8, name="a")(inputs), layers.MultiHeadAttention(2, 4, name="odd")
    found = odd(x, x, return_attention_scores=True)[0] if kind == "scores" else odd(x, x)
    free = layers.Dense(5, name="reader")(layers.Dense(8, name="free")(found))
    model = randomise(ending(inputs, free))
    dependent(model.get_layer("a"))
    dependent(model.get_layer("free"))
    for group in ("a", "free") if kind == "scores" else ("free",):
        before, after = errors(model, removing(model, group=group), "least_squares")
        assert after < 0.01 < 0.03 < before


@pytest.mark.parametrize("how", ["mean", "least_squares"])
@pytest.mark.parametrize(
    "name",
    [
        *("inverted_residual", "grouped_and_transposed", "channel_shuffle", "shared_and_two_headed", "siamese"),
        *("cross_attention", "vit_learned_positions", "resnext", "nested_deeply", "nested_outputs", "mlp_mixer"),
        *("unet", "slices", "padded_channels", "reshapes"),
    ],
)
def test_compensation_runs_on_all_kinds_of_networks_without_warnings(name, how):
    model = randomise({**ARCHITECTURES, **ZOO, **OPS}[name]())
    plan = plan_channels(model, ratio=0.5, round_to=2, importance="random")
    images = random_inputs(model, batch=24)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        smaller = pruned(model, plan, how, images)
    assert smaller.count_params() == plan.params
    assert all(np.isfinite(output).all() for output in run(smaller, images))
    assert changed(remove_channels(model, plan).smaller, smaller)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float64"])
def test_other_precisions_are_compensated(policy):
    inputs = keras.Input((4, 4, 9))
    x = layers.Conv2D(8, 1, name="a", dtype=policy)(inputs)
    x = layers.Conv2D(6, 3, name="reader", dtype=policy)(x)
    model = randomise(ending(inputs, layers.Activation("linear", dtype="float32")(x)))
    dependent(model.get_layer("a"))
    before, after = errors(model, removing(model), "least_squares")
    assert after < 0.03 < 0.05 < before


def chain():
    model = keras.Sequential([keras.Input((5,)), layers.Dense(8, name="a"), layers.Dense(2, name="b")], name="chain")
    return randomise(model)


def test_no_compensation_is_what_surgery_gives():
    model = chain()
    plan = removing(model)
    plain = remove_channels(model, plan).smaller
    for smaller in (prune_channels(model, plan), prune_channels(model, plan, "none", "not looked at")):
        assert changed(plain, smaller) == set()
        assert not smaller.compiled


@pytest.mark.parametrize(
    ("how", "calibration", "error", "says"),
    [
        ("median", np.ones((4, 5)), PlanError, "Unknown compensate='median'. Known: none, mean, least_squares"),
        ("mean", None, PlanError, "compensate='mean' needs calibration="),
        ("least_squares", None, PlanError, "compensate='least_squares' needs calibration="),
        ("mean", np.ones((4, 6)), DatasetError, r"calibration data are \(4, 6\)"),
        ("least_squares", [np.ones((4, 5))] * 2, DatasetError, "has 1 inputs; calibration data for 2 were given"),
    ],
)
def test_what_makes_no_sense_is_refused(how, calibration, error, says):
    model = chain()
    with pytest.raises(error, match=says):
        prune_channels(model, removing(model), how, calibration)


def test_a_plan_that_removes_nothing_leaves_nothing_to_compensate():
    model = chain()
    same = prune_channels(model, plan_channels(model, macs=1.0), "least_squares", np.ones((4, 5)))
    assert changed(model, same) == set()


def test_narrower_is_the_same_architecture_with_fresh_weights():
    model = randomise(ARCHITECTURES["residual"]())
    budget = model_facts(model).macs // 2
    rival = narrower(model, budget)
    assert 0.8 * budget < model_facts(rival).macs <= budget
    assert [layer.name for layer in rival.layers] == [layer.name for layer in model.layers]
    for layer, old in zip(rival.layers, model.layers, strict=True):
        if layer.weights:
            assert not np.isin(np.asarray(layer.weights[0]), np.asarray(old.weights[0])).all()
    with pytest.raises(PlanError, match="cannot go below"):
        narrower(model, 10)
