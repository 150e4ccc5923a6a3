import keras
import numpy as np
import pytest
from architectures import randomise
from laws.removal import disagreement, run

from mobileprune import one_shot
from mobileprune.errors import DatasetError, ModelError, PlanError, SparsityError
from mobileprune.graph import leaves
from mobileprune.masks import Pattern, kept_count, pruning_mask
from mobileprune.one_shot import prune_one_shot
from mobileprune.prunable import kernels_of, variable_at
from mobileprune.pruning_wrapper import wrapped_layers
from mobileprune.sparsify import hold_zeros, prune_low_magnitude, sparsity, strip_pruning

layers = keras.layers


def images_for(model, count=200):
    """Neighbouring values and channels resemble each other, as in photographs."""
    generator = np.random.default_rng(2)
    found = []
    for tensor in model.inputs:
        values = generator.normal(size=(count, *tensor.shape[1:]))
        for axis in range(1, values.ndim):
            values = (values + np.roll(values, 1, axis) + np.roll(values, 2, axis)) / 1.7
        found.append(values.astype("float32"))
    return found


def ending(inputs, x):
    return keras.Model(inputs, layers.Dense(3, name="head")(layers.Flatten()(layers.Activation("tanh")(x))))


def with_layer(layer, shape):
    inputs = keras.Input(shape)
    return randomise(ending(inputs, layer(layers.Activation("relu")(layers.Dense(shape[-1], name="first")(inputs)))))


def convnet():
    inputs = keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(8, 3, padding="same", use_bias=False, name="stem")(inputs)
    x = layers.ReLU()(layers.BatchNormalization(name="stem_norm")(x))
    y = layers.Conv2D(24, 1, use_bias=False, name="expand")(x)
    y = layers.ReLU()(layers.BatchNormalization()(y))
    y = layers.DepthwiseConv2D(3, padding="same", name="depthwise")(y)
    y = layers.Conv2D(8, 1, use_bias=False, name="project")(layers.ReLU()(y))
    x = layers.Add()([x, layers.BatchNormalization(name="project_norm")(y)])
    model = keras.Model(inputs, layers.Dense(4, name="head")(layers.GlobalAveragePooling2D()(x)), name="convnet")
    return randomise(model)


def kernels(model):
    """Every kernel that may be pruned, as (taps, inputs, outputs), by its path."""
    return {
        (path, kernel.path): kernel.to_taps(np.asarray(variable_at(layer, kernel.path)))
        for path, layer in leaves(model)
        for kernel in kernels_of(layer)
    }


def error(model, other, images):
    return disagreement(run(model, images), run(other, images))


KINDS = {
    "dense": (lambda: layers.Dense(10, name="x"), (9,)),
    "dense of rank 3": (lambda: layers.Dense(10, name="x"), (4, 9)),
    "1x1": (lambda: layers.Conv2D(10, 1, name="x"), (5, 5, 12)),
    "spatial": (lambda: layers.Conv2D(10, 3, use_bias=False, name="x"), (6, 6, 8)),
    "strides": (lambda: layers.Conv2D(10, 3, strides=2, padding="same", name="x"), (6, 6, 8)),
    "grouped": (lambda: layers.Conv2D(12, 3, groups=2, name="x"), (6, 6, 8)),
    "1d": (lambda: layers.Conv1D(10, 3, name="x"), (9, 8)),
    "transposed": (lambda: layers.Conv2DTranspose(6, 3, strides=2, padding="same", name="x"), (4, 4, 12)),
    "separable": (lambda: layers.SeparableConv2D(10, 3, name="x"), (6, 6, 8)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kernel_has_its_zeros_and_outputs_stay_nearer_than_by_magnitude(kind):
    make, shape = KINDS[kind]
    model = with_layer(make(), shape)
    images, before = images_for(model), model.get_weights()
    sparse = prune_one_shot(model, 0.7, images, keep=["head"])
    for (path, _), weights in kernels(sparse).items():
        assert np.count_nonzero(weights) == (weights.size if path == "head" else kept_count(weights.size, 0.7))
    plain = prune_one_shot(model, 0.7, keep=["head"], method="magnitude")
    assert error(model, sparse, images) < 0.8 * error(model, plain, images)
    for one, other in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_attention_is_pruned_in_all_its_kernels():
    inputs = keras.Input((6, 9))
    x = layers.Activation("relu")(layers.Dense(9, name="first")(inputs))
    model = randomise(ending(inputs, layers.MultiHeadAttention(2, 4, name="x")(x, x)))
    images = images_for(model)
    sparse, plain = (prune_one_shot(model, {"x": 0.5}, images, method=how) for how in ("second_order", "magnitude"))
    found = {path: weights for (layer, path), weights in kernels(sparse).items() if layer == "x"}
    assert len(found) == 4
    assert all(np.count_nonzero(weights) == weights.size / 2 for weights in found.values())
    assert error(model, sparse, images) < 0.8 * error(model, plain, images)


@pytest.mark.parametrize(
    "pattern", [Pattern((2, 1)), Pattern((1, 4)), Pattern((3, 2)), Pattern(sparsity_m_by_n=(2, 4))]
)
@pytest.mark.parametrize("kind", ["dense", "spatial", "grouped", "transposed", "separable"])
@pytest.mark.parametrize("method", ["second_order", "magnitude"])
def test_patterns_hold(kind, pattern, method):
    make, shape = KINDS[kind]
    model = with_layer(make(), shape)
    share = None if pattern.sparsity_m_by_n else 0.5
    options = {"block_size": pattern.block_size, "sparsity_m_by_n": pattern.sparsity_m_by_n, "method": method}
    sparse = prune_one_shot(model, share, images_for(model, 50), **options)
    for weights in kernels(sparse).values():
        kept = weights != 0
        np.testing.assert_array_equal(pruning_mask(kept.astype("float32"), 0.5, pattern), kept)


def test_a_mask_that_breaks_a_pattern_is_noticed():
    kept = np.ones((1, 4, 2), bool)
    kept[0, 0, 0] = False
    pattern = Pattern(sparsity_m_by_n=(2, 4))
    assert not np.array_equal(pruning_mask(kept.astype("float32"), 0.5, pattern), kept)


def test_averages_go_into_the_batch_norm_that_follows():
    model = convnet()
    images = images_for(model, 100)  # few enough that all their pixels are measured
    sparse = prune_one_shot(model, {"project": 0.8}, images, refit_dense=False)
    norms = [found.get_layer("project_norm").moving_mean for found in (model, sparse)]
    assert not np.allclose(*norms)
    inside = [keras.Model(found.input, found.get_layer("project_norm").output)(images[0]) for found in (model, sparse)]
    means = [np.asarray(values).mean((0, 1, 2)) for values in inside]
    np.testing.assert_allclose(means[1], means[0], atol=1e-3)
    assert not np.allclose(*inside, atol=1e-2)


def test_dense_layers_are_fitted_to_what_they_read_now_unless_they_shall_not():
    model = convnet()
    images = images_for(model)
    fitted, left = (prune_one_shot(model, {"project": 0.8}, images, refit_dense=refit) for refit in (True, False))
    assert error(model, fitted, images) < error(model, left, images)
    np.testing.assert_array_equal(left.get_layer("head").kernel, model.get_layer("head").kernel)
    assert not np.allclose(fitted.get_layer("head").kernel, model.get_layer("head").kernel)
    for found in (fitted, left):  # nothing before it has changed
        np.testing.assert_array_equal(found.get_layer("expand").kernel, model.get_layer("expand").kernel)


def test_zeros_of_layers_that_stay_dense_stay():
    model = convnet()
    head = model.get_layer("head").kernel
    values = np.array(head)
    values[::2, 1] = 0
    head.assign(values)
    sparse = prune_one_shot(model, {"project": 0.8}, images_for(model))
    found = np.asarray(sparse.get_layer("head").kernel)
    np.testing.assert_array_equal(found == 0, values == 0)
    assert not np.allclose(found, values)


def test_sparsity_by_pattern_and_what_is_kept():
    model = convnet()
    sparse = prune_one_shot(model, {"stem": None, "ex*": 0.75, "*": 0.5}, images_for(model), keep=["head"])
    shares = {path: np.mean(weights == 0) for (path, _), weights in kernels(sparse).items()}
    assert shares == {"stem": 0, "expand": 0.75, "project": 0.5, "head": 0}


@pytest.mark.parametrize("method", ["second_order", "magnitude"])
@pytest.mark.parametrize("allocation", ["global", "erk"])
def test_an_allocation_comes_to_the_sparsity_in_all(method, allocation):
    model = convnet()
    images = images_for(model)
    sparse = prune_one_shot(model, 0.7, images, method=method, allocation=allocation)
    assert sparsity(sparse) == pytest.approx(0.7, abs=0.005)
    assert len({round(np.mean(weights == 0), 2) for weights in kernels(sparse).values()}) > 1


def test_sharing_out_by_loss_spares_what_matters():
    # Nearly all of what the one layer reads are copies of one input: most of its weights can go for nothing.
    inputs = keras.Input((16,))
    easy = layers.Dense(16, name="easy")(layers.Dense(16, name="copies")(inputs))
    model = randomise(ending(inputs, layers.Concatenate()([easy, layers.Dense(16, name="full")(inputs)])))
    copies = np.zeros((16, 16))
    copies[0] = 1
    copies[1, 3] = 1
    model.get_layer("copies").kernel.assign(copies)
    images = images_for(model)
    shared = prune_one_shot(model, {"easy": 0.7, "full": 0.7}, images, allocation="global")
    same = prune_one_shot(model, {"easy": 0.7, "full": 0.7}, images)
    assert np.mean(np.asarray(shared.get_layer("easy").kernel) == 0) > 0.8
    assert error(model, shared, images) < error(model, same, images)


def test_nested_and_shared_models_are_pruned_inside():
    inner = keras.Sequential([keras.Input((6, 6, 8)), layers.Conv2D(8, 3, padding="same", name="conv")], name="inner")
    inputs = keras.Input((6, 6, 8))
    model = randomise(ending(inputs, layers.Add()([inner(inputs), inner(layers.ReLU()(inputs))])))
    images = images_for(model)
    sparse = prune_one_shot(model, {"inner/conv": 0.6}, images)
    found = np.asarray(sparse.get_layer("inner").layers[0].kernel)
    assert np.count_nonzero(found) == kept_count(found.size, 0.6)
    assert [layer.name for layer in sparse.layers] == [layer.name for layer in model.layers]
    plain = prune_one_shot(model, {"conv": 0.6}, method="magnitude")
    assert error(model, sparse, images) < 0.8 * error(model, plain, images)


def test_several_inputs():
    one, other = keras.Input((8,), name="one"), keras.Input((6,), name="other")
    x = layers.Concatenate()([layers.Dense(8, name="a")(one), layers.Dense(8, name="b")(other)])
    model = randomise(ending([one, other], x))
    images = images_for(model)
    assert sparsity(prune_one_shot(model, 0.5, images)) == 0.5
    with pytest.raises(DatasetError, match="2 inputs"):
        prune_one_shot(model, 0.5, images[0])


def test_what_cannot_be_fitted_goes_by_magnitude():
    inputs = keras.Input((8,), dtype="int32")
    x = layers.LSTM(6, name="lstm")(layers.Embedding(12, 4, name="words")(inputs))
    model = randomise(keras.Model(inputs, layers.Dense(3, name="head")(x)))
    tokens = np.random.default_rng(0).integers(0, 12, (64, 8)).astype("int32")
    sparse, plain = prune_one_shot(model, 0.5, tokens), prune_one_shot(model, 0.5, method="magnitude")
    for place, weights in kernels(sparse).items():
        assert np.count_nonzero(weights) == weights.size / 2
        if place[0] == "words":
            np.testing.assert_array_equal(weights, kernels(plain)[place])


def test_dead_inputs_and_few_images_do_no_harm():
    model = convnet()
    norm = model.get_layer("stem_norm")
    norm.beta.assign(np.where(np.arange(8) < 3, -1e3, np.asarray(norm.beta)))  # what follows the ReLU is 0
    images = [images_for(model)[0][:2]]
    sparse = prune_one_shot(model, 0.6, images)
    assert all(np.isfinite(weights).all() for weights in sparse.get_weights())
    assert sparsity(sparse) == pytest.approx(0.6, abs=0.01)


def test_few_images_are_not_learnt_by_heart(monkeypatch):
    inputs = keras.Input((40,))
    x = layers.Dense(120, activation="relu", name="first")(inputs)
    model = randomise(keras.Model(inputs, layers.Dense(6, name="head")(layers.Dense(100, name="wide")(x))))
    images = images_for(model, 1000)[0]
    few, fresh = images[:40], images[40:]
    careful = prune_one_shot(model, {"first": 0.7}, few)
    monkeypatch.setattr(one_shot, "_CAUTION", 0)
    eager = prune_one_shot(model, {"first": 0.7}, few)
    assert error(model, eager, [few]) < error(model, careful, [few])
    assert error(model, careful, [fresh]) < 0.95 * error(model, eager, [fresh])


def test_magnitude_is_what_the_wrapper_does():
    from mobileprune.schedules import ConstantSparsity
    from mobileprune.sparsify import prune_now

    model = convnet()
    wrapped = strip_pruning(prune_now(prune_low_magnitude(model, ConstantSparsity(0.6, 0))))
    plain = prune_one_shot(model, 0.6, method="magnitude")
    for one, other in zip(wrapped.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_result_is_plain_reproducible_and_can_be_held():
    model = convnet()
    images = images_for(model)
    one, other = (prune_one_shot(model, 0.5, images) for _ in range(2))
    for a, b in zip(one.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert not one.compiled
    assert not wrapped_layers(one)
    held = hold_zeros(one)
    held.compile("sgd", "mse")
    held.fit(images[0], np.zeros((200, 4)), verbose=0)
    assert sparsity(strip_pruning(held)) == 0.5


def test_all_and_nothing():
    model = convnet()
    images = images_for(model)
    assert sparsity(prune_one_shot(model, 1.0, images)) == 1.0
    assert error(model, prune_one_shot(model, 0.0, images), images) < 1e-3


@pytest.mark.parametrize(
    ("options", "kind", "said"),
    [
        ({"sparsity": 0.5, "method": "obs"}, SparsityError, "Unknown method 'obs'. Known: second_order, magnitude"),
        ({"sparsity": 0.5, "allocation": "even"}, SparsityError, "no allocation 'even'"),
        ({"sparsity": 1.5}, SparsityError, "0 to 1. Received: 1.5"),
        ({}, SparsityError, "Give a sparsity"),
        ({"sparsity": {"depthwise": 0.5}}, SparsityError, "Nothing to prune in 'convnet'"),
        ({"sparsity": {"proj": 0.5}}, PlanError, "sparsity='proj' matches no layer. Near it: project"),
        ({"sparsity": 0.5, "keep": ["tail"]}, PlanError, "keep='tail' matches no layer"),
        ({"sparsity": 0.5, "block_size": (0, 1)}, SparsityError, "block_size must be"),
        ({"sparsity_m_by_n": (4, 2)}, SparsityError, "0 < m < n"),
        ({"sparsity_m_by_n": (2, 4), "allocation": "global"}, SparsityError, "nothing to share out"),
        ({"sparsity": {"stem": 0.5, "*": 0.7}, "allocation": "global"}, SparsityError, "shares out one sparsity"),
    ],
)
def test_what_cannot_be_meant_is_refused(options, kind, said):
    model = convnet()
    with pytest.raises(kind, match=said.replace("(", r"\(")):
        prune_one_shot(model, calibration=images_for(model, 4), **options)


def test_calibration_is_checked():
    model = convnet()
    with pytest.raises(DatasetError, match="needs calibration images"):
        prune_one_shot(model, 0.5)
    with pytest.raises(DatasetError, match="calibration data are"):
        prune_one_shot(model, 0.5, np.zeros((4, 5, 5, 3), "float32"))
    with pytest.raises(DatasetError, match="NaN"):
        prune_one_shot(model, 0.5, np.full((4, 8, 8, 3), np.nan, "float32"))


def test_models_that_are_wrapped_subclassed_or_broken_are_refused():
    model = convnet()
    with pytest.raises(SparsityError, match="strip_pruning it first"):
        prune_one_shot(hold_zeros(model), 0.5, images_for(model))
    with pytest.raises(ModelError, match="no input shape"):
        prune_one_shot(keras.Sequential([layers.Dense(2)]), 0.5, method="magnitude")
    model.get_layer("head").bias.assign([0, np.nan, 0, 0])
    with pytest.raises(ModelError, match="head/bias"):
        prune_one_shot(model, 0.5, method="magnitude")
