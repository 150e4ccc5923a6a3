import keras
import numpy as np
import pytest
from architectures import ARCHITECTURES, random_inputs, randomise

from mobileprune.errors import ModelError, SparsityError
from mobileprune.prunable import kernels_of
from mobileprune.pruning_callbacks import UpdatePruningStep
from mobileprune.pruning_wrapper import PruneLowMagnitude, wrapped_layers
from mobileprune.schedules import ConstantSparsity, PolynomialDecay
from mobileprune.sparsify import hold_zeros, prune_low_magnitude, sparsity, strip_pruning

layers = keras.layers
HALF = ConstantSparsity(0.5, begin_step=0, frequency=1)


def dense(**settings):
    return keras.Sequential(
        [
            keras.Input((6,), name="image"),
            layers.Dense(8, name="first", **settings),
            layers.Dense(4, name="second", **settings),
        ],
        name="dense",
    )


def batches(count, size=4, seed=0):
    generator = np.random.default_rng(seed)
    return generator.normal(size=(count * size, 6)), generator.normal(size=(count * size, 4))


def fit(model, count, callbacks=(), optimizer=None, **settings):
    model.compile(optimizer or keras.optimizers.Adam(0.05), "mse", **settings)
    model.fit(*batches(count), batch_size=4, shuffle=False, verbose=0, callbacks=list(callbacks))
    return model


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


def test_the_zeros_stay_through_every_step_and_the_rest_moves():
    model = prune_low_magnitude(dense(), ConstantSparsity(0.5, 0, end_step=1))
    fit(model, 1, [UpdatePruningStep()])
    before = [np.array(layer.layer.kernel) for layer in model.layers]
    fit(model, 5)  # without the callback: the optimizer alone holds them
    for old, layer in zip(before, model.layers, strict=True):
        new = np.asarray(layer.layer.kernel)
        np.testing.assert_array_equal(new == 0, old == 0)
        # A unit that nothing reads any more gets no gradient, so not all of them.
        assert np.mean(new[old != 0] != old[old != 0]) > 0.5


def test_masks_follow_the_weights_unless_nested():
    kernel = np.array([[5.0, 4, 3, 2]])
    for nested, kept in ((False, [0, 0, 1, 1]), (True, [0, 0, 0, 0])):
        layer = prune_low_magnitude(layers.Dense(4), HALF, nested=nested)
        layer.build((None, 1))
        layer.layer.kernel.assign(kernel)
        layer.update_masks(0)
        assert np.asarray(layer.masks["kernel"]).tolist() == [[1, 1, 0, 0]]
        layer.layer.kernel.assign([[0.1, 0.2, 3, 2]])  # past the constraint
        layer.update_masks(1)
        assert np.asarray(layer.masks["kernel"]).tolist() == [kept]


def test_nested_keeps_the_zeros_that_the_model_has():
    model = randomise(dense())
    kernel = np.array(model.get_layer("first").kernel)
    kernel[:3] = 0
    model.get_layer("first").kernel.assign(kernel)
    wrapped = prune_low_magnitude(model, PolynomialDecay(0.0, 0.75, 0, 4, frequency=1), nested=True)
    fit(wrapped, 4, [UpdatePruningStep()])
    found = np.asarray(wrapped.layers[0].layer.kernel)
    assert not found[:3].any()
    assert np.count_nonzero(found) == 12


def test_a_constraint_that_the_layer_had_still_holds():
    model = dense(kernel_constraint=keras.constraints.NonNeg())
    wrapped = fit(prune_low_magnitude(model, HALF), 3, [UpdatePruningStep()])
    for layer in wrapped.layers:
        kernel = np.asarray(layer.layer.kernel)
        assert (kernel >= 0).all()
        assert (kernel == 0).sum() >= kernel.size // 2
    stripped = strip_pruning(wrapped)
    assert isinstance(stripped.layers[0].kernel_constraint, keras.constraints.NonNeg)
    assert isinstance(stripped.layers[0].kernel.constraint, keras.constraints.NonNeg)


def test_separable_convolutions_lose_pointwise_weights_only():
    model = keras.Sequential([keras.Input((4, 4, 4)), layers.SeparableConv2D(8, 3)])
    wrapped = prune_low_magnitude(randomise(model), HALF)
    wrapped.layers[0].update_masks(0)
    inner = strip_pruning(wrapped).layers[0]
    assert np.count_nonzero(inner.pointwise_kernel) == 16
    assert np.count_nonzero(inner.depthwise_kernel) == 36


def test_each_layer_holds_its_own_sparsity_exactly():
    schedule = ConstantSparsity(0.7, 0)
    wrapped = prune_low_magnitude(randomise(ARCHITECTURES["residual"]()), schedule)
    for layer in wrapped.layers:
        if isinstance(layer, PruneLowMagnitude):
            layer.update_masks(0)
            size = layer.layer.kernel.shape.num_elements()
            assert np.count_nonzero(layer.layer.kernel) == round(size * 0.3)


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


def test_a_config_round_trips():
    for schedule in (HALF, PolynomialDecay(0.1, 0.7, 3, 9, power=2, frequency=4), None):
        layer = PruneLowMagnitude(layers.Dense(3, name="d", dtype="mixed_bfloat16"), schedule, nested=True)
        copy = PruneLowMagnitude.from_config(layer.get_config())
        assert (copy.name, copy.pruning_schedule, copy.nested) == ("prune_low_magnitude_d", schedule, True)
        assert (copy.layer.units, copy.layer.name, copy.layer.dtype_policy.name) == (3, "d", "mixed_bfloat16")


def test_the_callback_needs_a_wrapped_model():
    with pytest.raises(SparsityError, match="no wrapped layer"):
        fit(dense(), 1, [UpdatePruningStep()])


@pytest.mark.parametrize("settings", [{}, {"steps_per_execution": 4}, {"steps_per_execution": 16}])
def test_steps_count_batches_however_many_keras_runs_at_once(settings):
    model = prune_low_magnitude(dense(), PolynomialDecay(0.0, 0.75, 0, 10, frequency=100))
    fit(model, 10, [UpdatePruningStep()], **settings)
    assert [int(layer.pruning_step) for layer in model.layers] == [10, 10]
    assert sparsity(model) == 0.75
    fit(model, 10, [UpdatePruningStep()], **settings)
    assert int(model.layers[0].pruning_step) == 20


def test_steps_count_over_epochs_and_in_loops_by_hand():
    model = prune_low_magnitude(dense(), HALF)
    model.compile("sgd", "mse")
    x, y = batches(3)
    model.fit(x, y, batch_size=4, epochs=3, verbose=0, callbacks=[UpdatePruningStep()])
    assert int(model.layers[0].pruning_step) == 9
    callback = UpdatePruningStep()
    callback.set_model(model)
    callback.on_train_begin()
    for _ in range(2):
        for batch in range(3):
            callback.on_train_batch_begin(batch)
            model.train_on_batch(x[:4], y[:4])
    for _ in range(2):
        callback.on_train_batch_begin(-1)
    assert int(model.layers[0].pruning_step) == 9 + 6 + 2


def test_a_shared_layer_counts_each_batch_once():
    left, right = keras.Input((6,)), keras.Input((6,))
    shared = layers.Dense(4, name="shared")
    model = prune_low_magnitude(keras.Model([left, right], layers.Add()([shared(left), shared(right)])), HALF)
    model.compile("sgd", "mse")
    x, y = batches(3)
    model.fit([x, x], y, batch_size=4, verbose=0, callbacks=[UpdatePruningStep()])
    (layer,) = [layer for layer in model.layers if isinstance(layer, PruneLowMagnitude)]
    assert int(layer.pruning_step) == 3


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
