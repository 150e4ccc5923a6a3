import keras
import numpy as np
import pytest
from architectures import ARCHITECTURES, random_inputs, randomise
from sparse_models import batches, dense, fit

from mobileprune.errors import ModelError, SparsityError
from mobileprune.prunable import kernels_of
from mobileprune.pruning_callbacks import UpdatePruningStep
from mobileprune.pruning_wrapper import PruneLowMagnitude, wrapped_layers
from mobileprune.schedules import ConstantSparsity, PolynomialDecay
from mobileprune.sparsify import hold_zeros, prune_low_magnitude, prune_now, sparsity, strip_pruning

layers = keras.layers
HALF = ConstantSparsity(0.5, begin_step=0, frequency=1)


def zeros(layer):
    return np.count_nonzero(np.asarray(layer.kernel) == 0)


def test_every_layer_with_a_kernel_is_wrapped_and_no_other():
    model = ARCHITECTURES["inverted_residual"]()
    wrapped = prune_low_magnitude(model, HALF)
    for old, new in zip(model.layers, wrapped.layers, strict=True):
        if kernels_of(old):
            assert isinstance(new, PruneLowMagnitude)
            assert (new.name, new.layer.name) == (f"prune_low_magnitude_{old.name}", old.name)
        else:
            assert type(new) is type(old)
            assert new.name == old.name
    kinds = {type(layer.layer) for layer in wrapped.layers if isinstance(layer, PruneLowMagnitude)}
    assert kinds == {layers.Conv2D, layers.Dense}


def test_a_single_layer_is_wrapped_and_trains_inside_a_model_of_the_users():
    model = keras.Sequential([keras.Input((6,)), prune_low_magnitude(layers.Dense(8), HALF), layers.Dense(4)])
    fit(model, 3, [UpdatePruningStep()])
    assert zeros(model.layers[0].layer) == 24
    assert zeros(model.layers[1]) == 0


def test_the_default_schedule_is_that_of_the_toolkit():
    assert prune_low_magnitude(layers.Dense(2)).pruning_schedule == ConstantSparsity(0.5, 0)


@pytest.mark.parametrize(
    "layer", [layers.DepthwiseConv2D(3, name="x"), layers.ReLU(name="x"), layers.LayerNormalization(name="x")]
)
def test_a_layer_without_weights_to_prune_is_refused(layer):
    with pytest.raises(SparsityError, match=r"'x' has no weights to prune\. Known: Conv1D, Conv2D"):
        prune_low_magnitude(layer, HALF)


def test_schedules_by_pattern_and_the_first_that_matches_counts():
    quarter = ConstantSparsity(0.25, 0)
    wrapped = prune_low_magnitude(dense(), {"first": quarter, "*": HALF})
    assert [layer.pruning_schedule for layer in wrapped.layers] == [quarter, HALF]
    wrapped = prune_low_magnitude(dense(), {"sec*": None, "*": HALF})
    assert [type(layer) for layer in wrapped.layers] == [PruneLowMagnitude, layers.Dense]
    wrapped = prune_low_magnitude(dense(), {"second": HALF})
    assert [type(layer) for layer in wrapped.layers] == [layers.Dense, PruneLowMagnitude]


def test_a_model_with_nothing_to_prune_is_refused():
    with pytest.raises(SparsityError, match="Nothing to prune in 'dense'"):
        prune_low_magnitude(dense(), {"third": HALF})
    plain = keras.Sequential([keras.Input((4, 4, 3)), layers.DepthwiseConv2D(3)], name="plain")
    for wrap in (prune_low_magnitude, hold_zeros):
        with pytest.raises(SparsityError, match="Nothing to prune in 'plain'"):
            wrap(plain)


def test_wrapped_models_are_refused():
    wrapped = prune_low_magnitude(dense(), HALF)
    for wrap in (prune_low_magnitude, hold_zeros):
        with pytest.raises(SparsityError, match="strip_pruning it first"):
            wrap(wrapped)


def test_nested_models_are_wrapped_inside_and_stay_nested():
    nested = keras.Sequential([keras.Input((6,)), dense()], name="outer")
    inputs = np.random.default_rng(0).normal(size=(4, 6)).astype("float32")
    for wrapped in (prune_low_magnitude(nested, HALF), hold_zeros(nested)):
        assert len(wrapped_layers(wrapped)) == 2
        assert [layer.name for layer in wrapped.layers] == ["dense"]
        assert [layer.name for layer in strip_pruning(wrapped).layers[0].layers] == ["first", "second"]
        np.testing.assert_array_equal(wrapped(inputs), nested(inputs))


def test_models_without_a_graph_are_refused():
    with pytest.raises(ModelError, match="no input shape"):
        prune_low_magnitude(keras.Sequential([layers.Dense(2)]), HALF)

    class Own(keras.Model):
        def __init__(self):
            super().__init__(name="own")
            self.dense = layers.Dense(2)

        def call(self, inputs):
            return self.dense(inputs)

    own = Own()
    own(np.zeros((1, 3)))
    with pytest.raises(ModelError, match="subclassed"):
        prune_low_magnitude(own, HALF)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_wrapping_changes_no_output_and_not_the_model(name):
    model = randomise(ARCHITECTURES[name]())
    weights, config, inputs = model.get_weights(), model.get_config(), random_inputs(model)
    wrapped = prune_low_magnitude(model, HALF)
    inputs = inputs if len(inputs) > 1 else inputs[0]
    pairs = zip(keras.tree.flatten(model(inputs)), keras.tree.flatten(wrapped(inputs)), strict=True)
    for one, other in pairs:
        np.testing.assert_array_equal(one, other)
    for layer in wrapped.layers:
        if isinstance(layer, PruneLowMagnitude):
            layer.update_masks(0)
    assert sparsity(wrapped) == pytest.approx(0.5, abs=0.01)
    assert model.get_config() == config
    for before, after in zip(weights, model.get_weights(), strict=True):
        assert before.tobytes() == after.tobytes()


def own_loss(truth, found):
    return keras.ops.mean(keras.ops.abs(truth - found))


def test_a_compiled_model_with_a_loss_of_the_users_is_wrapped_uncompiled():
    model = dense()
    model.compile("sgd", own_loss)
    wrapped = prune_low_magnitude(model, HALF)
    assert not wrapped.compiled
    wrapped.compile("sgd", own_loss)
    wrapped.fit(*batches(1), verbose=0, callbacks=[UpdatePruningStep()])
    assert sparsity(wrapped) == 0.5
    assert not strip_pruning(wrapped).compiled


@pytest.mark.parametrize("policy", ["float64", "mixed_float16", "mixed_bfloat16"])
def test_a_wrapped_layer_computes_in_its_own_precision(policy):
    model = randomise(dense(dtype=policy))
    wrapped = prune_low_magnitude(model, HALF)
    image = np.random.default_rng(0).normal(size=(5, 6))
    assert wrapped(image).dtype == model(image).dtype
    np.testing.assert_array_equal(wrapped(image), model(image))
    assert [layer.layer.dtype_policy.name for layer in wrapped.layers] == [policy] * 2
    fit(wrapped, 2, [UpdatePruningStep()])
    stripped = strip_pruning(wrapped)
    assert [layer.dtype_policy.name for layer in stripped.layers] == [policy] * 2
    assert sparsity(stripped) == 0.5


def test_frozen_layers_stay_frozen_wrapped_and_stripped():
    model = dense()
    model.get_layer("first").trainable = False
    wrapped = prune_low_magnitude(model, HALF)
    assert len(wrapped.trainable_weights) == 2
    stripped = strip_pruning(wrapped)
    assert [layer.trainable for layer in stripped.layers] == [False, True]


def test_sparsity_by_hand_plain_wrapped_and_nested():
    model = randomise(dense())
    kernel = np.array(model.get_layer("first").kernel)
    kernel[:2] = 0
    model.get_layer("first").kernel.assign(kernel)
    model.get_layer("first").bias.assign(np.zeros(8))
    expected = 16 / (48 + 32)
    outer = keras.Sequential([keras.Input((6,)), model, layers.ReLU()])
    for found in (model, hold_zeros(model), outer, keras.Sequential([keras.Input((6,)), outer])):
        assert sparsity(found) == expected
    assert sparsity(keras.Sequential([keras.Input((6,)), layers.ReLU()])) == 0.0


def test_strip_takes_the_zeros_from_the_mask_when_something_wrote_past_it():
    wrapped = fit(prune_low_magnitude(dense(), HALF), 1, [UpdatePruningStep()])
    for layer in wrapped.layers:
        layer.layer.kernel.assign(np.array(layer.layer.kernel) + 1)
    stripped = strip_pruning(wrapped)
    assert sparsity(wrapped) == 0.0
    assert sparsity(stripped) == 0.5


def test_strip_of_a_plain_model_is_a_copy():
    model = randomise(dense())
    copy = strip_pruning(model)
    assert copy is not model
    for one, other in zip(model.get_weights(), copy.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_pattern_that_no_layer_matches_is_refused():
    with pytest.raises(
        SparsityError, match=r"No layer with kernels in 'dense' is called 'frist'\. Known: first, second"
    ):
        prune_low_magnitude(dense(), {"frist": None, "*": HALF})
    # One that an earlier pattern leaves nothing is none of these.
    assert len(wrapped_layers(prune_low_magnitude(dense(), {"*": HALF, "first": None}))) == 2


def test_a_mapping_that_does_not_name_a_layer_leaves_it_dense():
    first, second = layers.Dense(2, name="first"), layers.Dense(2, name="second")
    wrapped = prune_low_magnitude([first, second], {"first": HALF})
    assert isinstance(wrapped[0], PruneLowMagnitude)
    assert wrapped[1] is second
    assert prune_low_magnitude(second, {"first": HALF}) is second


def test_a_list_of_layers_is_wrapped_one_by_one():
    stack = [layers.Dense(8, name="a"), prune_low_magnitude(layers.Dense(4), HALF), layers.InputLayer((6,))]
    wrapped = prune_low_magnitude(stack, HALF, block_size=(2, 2), nested=True, allocation="erk", trainable=False)
    assert wrapped[1:] == stack[1:]
    first = wrapped[0]
    assert (first.layer, first.pattern.block_size, first.nested) == (stack[0], (2, 2), True)
    assert (first.allocation, first.trainable) == ("erk", False)


class NotTheLast:
    """A policy as the toolkit has them."""

    def __init__(self):
        self.asked = []

    def allow_pruning(self, layer):
        return layer.name != "second"

    def ensure_model_supports_pruning(self, model):
        self.asked.append(model.name)
        if model.name == "refused":
            raise ValueError("not this one")


def test_a_policy_says_which_layers_and_may_refuse_the_model():
    policy = NotTheLast()
    wrapped = prune_low_magnitude(dense(), HALF, pruning_policy=policy)
    assert [type(layer) for layer in wrapped.layers] == [PruneLowMagnitude, layers.Dense]
    assert policy.asked == ["dense"]
    second = layers.Dense(2, name="second")
    assert prune_low_magnitude(second, HALF, pruning_policy=policy) is second
    with pytest.raises(ValueError, match="not this one"):
        prune_low_magnitude(keras.Sequential([dense()], name="refused"), HALF, pruning_policy=policy)


def toolkit_schedule(name, config):
    """An object that is told apart from the TensorFlow Model Optimization toolkit's only by its module."""
    return type(name, (), {"get_config": lambda self: {"class_name": name, "config": config}})()


def test_schedules_of_the_toolkit_are_taken():
    decay = {"initial_sparsity": 0.1, "final_sparsity": 0.7, "power": 3, "begin_step": 2, "end_step": 9, "frequency": 4}
    found = prune_low_magnitude(layers.Dense(2), toolkit_schedule("PolynomialDecay", decay)).pruning_schedule
    assert found == PolynomialDecay(0.1, 0.7, 2, 9, 3, 4)
    constant = {"target_sparsity": 0.7, "begin_step": 2, "end_step": -1, "frequency": 4}
    found = prune_low_magnitude(dense(), {"first": toolkit_schedule("ConstantSparsity", constant)})
    assert wrapped_layers(found)[0].pruning_schedule == ConstantSparsity(0.7, 2, -1, 4)
    with pytest.raises(SparsityError, match="is no pruning schedule"):
        prune_low_magnitude(layers.Dense(2), toolkit_schedule("Cubic", {}))


def functional(*stack, shape=(6,), name="m"):
    image = x = keras.Input(shape)
    for layer in stack:
        x = layer(x)
    return keras.Model(image, x, name=name)


class NoConfig(keras.layers.Layer):
    def __init__(self, function):
        super().__init__(name="no_config")
        self.function = function

    def call(self, x):
        return self.function(x)


@pytest.mark.parametrize(
    ("call", "kind", "says"),
    [
        (lambda: prune_low_magnitude("model", HALF), SparsityError, "'model' is neither a Keras layer nor a model"),
        (lambda: prune_low_magnitude(None, HALF), SparsityError, "None is neither"),
        (lambda: prune_low_magnitude(layers.Dense, HALF), SparsityError, "is neither"),
        (lambda: prune_low_magnitude(dense(), 0.5), SparsityError, "0.5 is no pruning schedule"),
        (lambda: prune_low_magnitude(dense(), {"*": 0.5}), SparsityError, "0.5 is no pruning schedule"),
        (lambda: prune_low_magnitude(dense(), HALF, block_size=0), SparsityError, "Received: 0"),
        (lambda: prune_low_magnitude(dense(), HALF, block_size=(3,)), SparsityError, r"Received: \(3,\)"),
        (lambda: prune_low_magnitude(dense(), HALF, sparsity_m_by_n=(4, 4)), SparsityError, "0 < m < n"),
        (lambda: prune_low_magnitude(dense(), HALF, allocation="even"), SparsityError, "no allocation 'even'"),
        (lambda: prune_low_magnitude(dense(), HALF, begin_step=3), SparsityError, "no argument 'begin_step'"),
        (lambda: prune_low_magnitude([layers.Dense(2), layers.ReLU(name="r")], HALF), SparsityError, "'r' has no"),
        (lambda: prune_low_magnitude(functional(layers.Dense(2), NoConfig(abs)), HALF), ModelError, "'no_config'"),
        (lambda: strip_pruning(None), ModelError, "None is no Keras model"),
        (lambda: strip_pruning(prune_low_magnitude(layers.Dense(2), HALF)), ModelError, "is no Keras model"),
        (lambda: hold_zeros(layers.Dense(2)), ModelError, "is no Keras model"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_one_line(call, kind, says):
    with pytest.raises(kind, match=says) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_names_that_begin_like_those_of_wrappers():
    both = functional(layers.Dense(3, name="x"), layers.Dense(3, name="prune_low_magnitude_x"))
    wrapped = prune_low_magnitude(both, HALF)
    assert [layer.name for layer in strip_pruning(wrapped).layers] == [layer.name for layer in both.layers]
    with pytest.raises(ModelError, match='"prune_low_magnitude_x" is used 2 times'):
        prune_low_magnitude(functional(layers.Dense(3, name="x"), layers.ReLU(name="prune_low_magnitude_x")), HALF)


def test_a_function_of_the_users_is_kept_as_it_is():
    offset = np.float32(3)
    model = functional(layers.Dense(2), layers.Lambda(lambda x: x + offset))
    wrapped = prune_low_magnitude(model, HALF)
    x = batches(1)[0]
    np.testing.assert_array_equal(wrapped(x), model(x))
    np.testing.assert_array_equal(strip_pruning(wrapped)(x), model(x))


def test_calls_of_ops_between_the_layers_are_kept():
    image = keras.Input((6,))
    x = keras.ops.relu(layers.Dense(5)(image)) * 2 + 1
    model = keras.Model(image, layers.Dense(2)(x))
    wrapped = prune_low_magnitude(model, HALF)
    values = batches(1)[0]
    np.testing.assert_array_equal(wrapped(values), model(values))
    np.testing.assert_array_equal(strip_pruning(hold_zeros(model))(values), model(values))


def test_a_wrapped_layer_inside_another_layer_cannot_be_stripped_unseen():
    inside = layers.TimeDistributed(prune_low_magnitude(layers.Dense(3, name="inner"), HALF))
    model = functional(inside, shape=(5, 4))
    assert model.output.shape == (None, 5, 3)
    with pytest.raises(SparsityError, match=r"'prune_low_magnitude_inner' is inside another layer.*Wrap the outer"):
        strip_pruning(model)


def test_prune_now_brings_every_layer_to_its_own_end():
    schedules = {"first": PolynomialDecay(0.0, 0.75, 5, 1000), "second": ConstantSparsity(0.5, 7)}
    wrapped = prune_low_magnitude(dense(), schedules)
    assert prune_now(wrapped) is wrapped
    assert [zeros(layer.layer) for layer in wrapped.layers] == [36, 16]
    wrapped = prune_now(prune_low_magnitude(dense(), PolynomialDecay(0.0, 0.75, 5, 1000), allocation="global"))
    assert sparsity(wrapped) == 0.75
    assert sparsity(prune_now(hold_zeros(dense()))) == 0.0
