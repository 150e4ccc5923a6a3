import zipfile

import keras
import numpy as np
import pytest
from architectures import ARCHITECTURES, randomise
from sparse_models import KERNEL_LAYERS, batches, dense, fit, inputs_for

from mobileprune.errors import SparsityError
from mobileprune.prunable import kernels_of, prunable_weights, register_prunable
from mobileprune.pruning_callbacks import UpdatePruningStep
from mobileprune.pruning_wrapper import PruneLowMagnitude, update_masks, wrapped_layers
from mobileprune.schedules import ConstantSparsity, PolynomialDecay
from mobileprune.sparsify import hold_zeros, prune_low_magnitude, sparsity, strip_pruning

layers = keras.layers
HALF = ConstantSparsity(0.5, begin_step=0, frequency=1)


def train(model, x, steps=1):
    if not model.compiled:
        model.compile(keras.optimizers.SGD(0.01), "mse", run_eagerly=True)
    y = np.zeros((2 * steps, *np.shape(model(x))[1:]), "float32")
    repeated = keras.tree.map_structure(lambda values: np.concatenate([values] * steps), x)
    model.fit(repeated, y, batch_size=2, verbose=0, callbacks=[UpdatePruningStep()])


def masks(model):
    return [np.array(mask) for layer in wrapped_layers(model) for _, _, mask in layer.pruned_weights()]


def zeros_are_the_masks(model):
    """Whether every weight that a mask removes is zero, and not everything is."""
    pairs = [(weights, mask) for layer in wrapped_layers(model) for _, weights, mask in layer.pruned_weights()]
    return all(
        not np.asarray(weights)[np.asarray(mask) == 0].any() and np.asarray(weights).any() for weights, mask in pairs
    )


def test_a_weight_behind_a_mask_is_noticed():
    model = fit(prune_low_magnitude(dense(), HALF), 1, [UpdatePruningStep()])
    assert zeros_are_the_masks(model)
    model.layers[0].layer.kernel.assign_add(np.full((6, 8), 1e-6))
    assert not zeros_are_the_masks(model)


@pytest.mark.parametrize("name", KERNEL_LAYERS)
def test_every_kind_of_layer_from_wrapping_to_stripping(name, tmp_path):
    model = KERNEL_LAYERS[name]()
    x = inputs_for(model)
    sparse = prune_low_magnitude(model, HALF)
    np.testing.assert_array_equal(sparse(x), model(x))
    train(sparse, x)
    assert zeros_are_the_masks(sparse)
    for mask in masks(sparse):
        assert np.count_nonzero(mask) == round(mask.size / 2)
    assert not np.array_equal(sparse(x), model(x))
    sparse.save(tmp_path / "sparse.keras")
    loaded = keras.models.load_model(tmp_path / "sparse.keras")
    stripped = strip_pruning(sparse)
    for other in (loaded, stripped, strip_pruning(loaded)):
        np.testing.assert_array_equal(other(x), sparse(x))
    assert stripped.get_config() == model.get_config()
    for one, other in zip(masks(sparse), masks(loaded), strict=True):
        np.testing.assert_array_equal(one, other)
    train(loaded, x)
    assert zeros_are_the_masks(loaded)
    stripped.save(tmp_path / "stripped.keras")
    with zipfile.ZipFile(tmp_path / "stripped.keras") as archive:
        assert b"mobileprune" not in archive.read("config.json")


@pytest.mark.parametrize("name", ["masked tokens", "Masking"])
def test_masked_places_stay_masked_behind_wrapped_layers(name):
    """Steps without data are passed over, so it does not matter where they are."""
    model = KERNEL_LAYERS[name]()
    sparse = prune_low_magnitude(model, HALF)
    x = inputs_for(model)
    x[:, 3:] = 0
    moved = x[:, [0, 3, 1, 4, 2]]
    for one in (model, sparse):
        np.testing.assert_allclose(one(moved), one(x), rtol=1e-5, atol=1e-6)
        moved_data = x[:, [1, 0, 2, 3, 4]]
        assert not np.allclose(one(moved_data), one(x), rtol=1e-5, atol=1e-6)


def test_attention_alone_learns_its_shapes_from_the_first_call():
    query, value = keras.Input((5, 8)), keras.Input((7, 6))
    attention = prune_low_magnitude(layers.MultiHeadAttention(2, 4), HALF)
    model = keras.Model([query, value], attention(query, value))
    assert attention.layer._value_dense.kernel.shape == (6, 2, 4)
    train(model, inputs_for(model))
    assert zeros_are_the_masks(model)
    assert sparsity(model) == 0.5


def test_models_several_levels_deep():
    inner = keras.Sequential([keras.Input((6,)), layers.Dense(6, name="d"), layers.ReLU()], name="inner")
    image = keras.Input((6,))
    middle = keras.Model(image, inner(layers.Dense(6, name="d")(image)), name="middle")
    outer = keras.Sequential([keras.Input((6,)), middle, layers.Dense(4, name="d")], name="outer")
    sparse = fit(prune_low_magnitude(outer, HALF), 2, [UpdatePruningStep()])
    assert len(wrapped_layers(sparse)) == 3
    assert zeros_are_the_masks(sparse)
    assert sparsity(sparse) == 0.5
    stripped = strip_pruning(sparse)
    assert [layer.name for layer in stripped.layers] == ["middle", "d"]
    assert stripped.layers[0].layers[-1].name == "inner"
    assert not wrapped_layers(stripped)
    np.testing.assert_array_equal(stripped(batches(1)[0]), sparse(batches(1)[0]))


def test_a_nested_model_called_twice_has_one_set_of_masks():
    left, right = keras.Input((6,)), keras.Input((6,))
    tower = dense()
    model = keras.Model([left, right], tower(left) + tower(right))
    sparse = prune_low_magnitude(model, HALF)
    assert len(wrapped_layers(sparse)) == 2
    x = [batches(1, seed=seed)[0] for seed in (0, 1)]
    train(sparse, [values[:2] for values in x], steps=3)
    assert [int(layer.pruning_step) for layer in wrapped_layers(sparse)] == [3, 3]
    assert zeros_are_the_masks(sparse)
    stripped = strip_pruning(sparse)
    assert stripped.count_params() == model.count_params()
    np.testing.assert_array_equal(stripped(x), sparse(x))


@keras.saving.register_keras_serializable("tests")
class Plain(keras.layers.Layer):
    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1], shape[-1]), name="kernel")

    def call(self, x):
        return keras.ops.matmul(x, self.kernel)


@register_prunable("kernel")
@keras.saving.register_keras_serializable("tests")
class Registered(Plain):
    pass


def test_layers_of_the_users_are_wrapped_when_registered(tmp_path):
    image = keras.Input((6,))
    model = keras.Model(image, layers.Dense(4)(Registered(name="known")(Plain(name="plain")(image))))
    sparse = fit(prune_low_magnitude(model, HALF), 1, [UpdatePruningStep()])
    assert [layer.layer.name for layer in wrapped_layers(sparse)][:1] == ["known"]
    assert np.count_nonzero(sparse.get_layer("plain").kernel) == 36
    assert np.count_nonzero(sparse.get_layer("prune_low_magnitude_known").layer.kernel) == 18
    sparse.save(tmp_path / "own.keras")
    x = batches(1)[0]
    np.testing.assert_array_equal(keras.models.load_model(tmp_path / "own.keras")(x), sparse(x))
    assert type(strip_pruning(sparse).get_layer("known")) is Registered


@keras.saving.register_keras_serializable("tests")
class Subclassed(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.first = prune_low_magnitude(layers.Dense(8), HALF)
        self.second = layers.Dense(4)

    def call(self, x):
        return self.second(self.first(x))


def test_a_layer_in_a_subclassed_model(tmp_path):
    model = Subclassed(name="own")
    with pytest.raises(SparsityError, match="has no weights yet: call the model on a batch first"):
        fit(model, 1, [UpdatePruningStep()])
    x = batches(1)[0]
    model(x)
    fit(model, 2, [UpdatePruningStep()])
    assert (sparsity(model), zeros_are_the_masks(model)) == (24 / 80, True)
    model.save(tmp_path / "own.keras")
    loaded = keras.models.load_model(tmp_path / "own.keras")
    np.testing.assert_array_equal(loaded(x), model(x))
    assert np.array_equal(masks(loaded), masks(model))


ARGUMENTS = [
    {"block_size": (2, 4), "block_pooling_type": "MAX", "allocation": "global"},
    {"sparsity_m_by_n": (2, 4), "nested": True},
    {"allocation": "erk", "name": "other", "trainable": False},
]


@pytest.mark.parametrize("settings", ARGUMENTS)
@pytest.mark.parametrize("schedule", [HALF, PolynomialDecay(0.1, 0.7, 3, 9, power=2, frequency=4), None])
def test_all_arguments_are_saved_with_a_model(schedule, settings, tmp_path):
    layer = PruneLowMagnitude(layers.Dense(4, name="d"), schedule, **settings)
    model = keras.Sequential([keras.Input((6,)), layer])
    model.save(tmp_path / "model.keras")
    (loaded,) = keras.models.load_model(tmp_path / "model.keras").layers
    assert (loaded.pattern, loaded.pruning_schedule) == (layer.pattern, schedule)
    assert loaded.layer.get_config() == layer.layer.get_config()
    for name in ("nested", "allocation", "name", "trainable"):
        assert getattr(loaded, name) == getattr(layer, name)
        assert settings.get(name, getattr(loaded, name)) == getattr(loaded, name)


def test_blocks_are_whole_after_training():
    model = keras.Sequential(
        [keras.Input((7, 7, 6)), layers.Conv2D(8, 3), layers.GlobalMaxPooling2D(), layers.Dense(4)]
    )
    sparse = prune_low_magnitude(model, ConstantSparsity(0.5, 0, frequency=1), block_size=(2, 4))
    train(sparse, inputs_for(model), steps=2)
    conv, fully = (np.asarray(layer.layer.kernel) != 0 for layer in wrapped_layers(sparse))
    by_block = conv.reshape(9, 3, 2, 2, 4).transpose(0, 1, 3, 2, 4).reshape(-1, 8).sum(axis=1)
    assert set(by_block) == {0, 8}
    assert np.count_nonzero(by_block) == 27
    assert set(fully.reshape(4, 8).sum(axis=1)) == {0, 8}


@pytest.mark.parametrize("allocation", ["global", "erk"])
def test_layers_share_the_sparsity_of_their_schedule(allocation):
    model = randomise(ARCHITECTURES["residual"]())
    model.layers[-1].kernel.assign(model.layers[-1].kernel * 10)
    sparse = prune_low_magnitude(model, ConstantSparsity(0.75, 0), allocation=allocation)
    update_masks(wrapped_layers(sparse), 1)
    size = sum(np.size(mask) for mask in masks(sparse))
    # Each kernel rounds for itself under "erk".
    spare = 0 if allocation == "global" else len(masks(sparse)) / size
    assert sparsity(sparse) == pytest.approx(0.75, abs=1e-9 + spare + 0.5 / size)
    shares = [np.mean(mask == 0) for mask in masks(sparse)]
    assert np.ptp(shares) > 0.1


def test_only_layers_of_one_schedule_share():
    sparse = prune_low_magnitude(
        dense(), {"first": ConstantSparsity(0.5, 0), "*": ConstantSparsity(0.75, 0)}, allocation="global"
    )
    sparse.layers[0].layer.kernel.assign(np.full((6, 8), 1e-6))
    update_masks(wrapped_layers(sparse), 1)
    assert [np.count_nonzero(mask) for mask in masks(sparse)] == [24, 8]
    sparse = prune_low_magnitude(dense(), ConstantSparsity(0.5, 0), allocation="global")
    sparse.layers[0].layer.kernel.assign(np.full((6, 8), 1e-6))
    update_masks(wrapped_layers(sparse), 1)
    assert [np.count_nonzero(mask) for mask in masks(sparse)] == [8, 32]


def test_what_is_wrapped_is_not_wrapped_again():
    once = PruneLowMagnitude(layers.Dense(3, name="d"), HALF)
    with pytest.raises(SparsityError, match="'prune_low_magnitude_d' is wrapped already"):
        PruneLowMagnitude(once, HALF)
    assert prune_low_magnitude(once, HALF) is once


def test_an_unbuilt_layer_has_no_masks_to_update():
    with pytest.raises(SparsityError, match="Build the layer first"):
        PruneLowMagnitude(layers.Dense(3), HALF).update_masks(1)


def test_weights_that_are_not_finite_are_refused():
    model = prune_low_magnitude(dense(), HALF)
    model.layers[1].layer.kernel.assign(np.full((8, 4), np.nan))
    with pytest.raises(SparsityError, match="not all finite"):
        update_masks(wrapped_layers(model), 1)


def test_names_precision_constraints_and_training_flags_survive():
    image = keras.Input((6, 6, 3), name="image")
    x = layers.Conv2D(4, 3, name="a", dtype="mixed_bfloat16", kernel_constraint=keras.constraints.MaxNorm(2))(image)
    x = layers.BatchNormalization(name="b", trainable=False)(x)
    x = layers.Dense(4, name="c", kernel_regularizer="l2", dtype="float64")(layers.Flatten()(x))
    model = keras.Model(image, x, name="mixed")
    for wrapped in (prune_low_magnitude(model, HALF), hold_zeros(model)):
        assert (wrapped.name, wrapped.inputs[0].name) == ("mixed", "image")
        stripped = strip_pruning(wrapped)
        assert stripped.get_config() == model.get_config()
        assert [variable.trainable for variable in stripped.variables] == [v.trainable for v in model.variables]
        assert len(wrapped.losses) == len(model.losses) == 1
        for layer in stripped.layers:
            for weights in prunable_weights(layer).values():
                assert type(weights.constraint) is type(layer.kernel_constraint)
    assert all(not isinstance(layer, PruneLowMagnitude) for layer in model.layers)
    for layer in model.layers:
        assert all(weights.constraint is layer.kernel_constraint for weights in prunable_weights(layer).values())


def test_a_frozen_layer_is_pruned_where_it_stands():
    model = dense()
    model.layers[0].trainable = False
    before = np.array(model.layers[0].kernel)
    sparse = fit(prune_low_magnitude(model, HALF), 2, [UpdatePruningStep()])
    after = np.asarray(sparse.layers[0].layer.kernel)
    np.testing.assert_array_equal(after[after != 0], before[after != 0])
    assert np.count_nonzero(after) == 24


def test_kernels_of_a_wrapper_are_those_of_its_layer():
    assert [kernel.path for kernel in kernels_of(PruneLowMagnitude(layers.Dense(2)))] == ["layer.kernel"]


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


def test_each_layer_holds_its_own_sparsity_exactly():
    schedule = ConstantSparsity(0.7, 0)
    wrapped = prune_low_magnitude(randomise(ARCHITECTURES["residual"]()), schedule)
    for layer in wrapped.layers:
        if isinstance(layer, PruneLowMagnitude):
            layer.update_masks(0)
            size = layer.layer.kernel.shape.num_elements()
            assert np.count_nonzero(layer.layer.kernel) == round(size * 0.3)


def test_separable_convolutions_lose_pointwise_weights_only():
    model = keras.Sequential([keras.Input((4, 4, 4)), layers.SeparableConv2D(8, 3)])
    wrapped = prune_low_magnitude(randomise(model), HALF)
    wrapped.layers[0].update_masks(0)
    inner = strip_pruning(wrapped).layers[0]
    assert np.count_nonzero(inner.pointwise_kernel) == 16
    assert np.count_nonzero(inner.depthwise_kernel) == 36


def test_a_config_round_trips():
    for schedule in (HALF, PolynomialDecay(0.1, 0.7, 3, 9, power=2, frequency=4), None):
        layer = PruneLowMagnitude(layers.Dense(3, name="d", dtype="mixed_bfloat16"), schedule, nested=True)
        copy = PruneLowMagnitude.from_config(layer.get_config())
        assert (copy.name, copy.pruning_schedule, copy.nested) == ("prune_low_magnitude_d", schedule, True)
        assert (copy.layer.units, copy.layer.name, copy.layer.dtype_policy.name) == (3, "d", "mixed_bfloat16")
