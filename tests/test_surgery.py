import dataclasses

import keras
import numpy as np
import pytest
from architectures import ARCHITECTURES, random_inputs, randomise

from mobileprune.errors import ModelError, PlanError
from mobileprune.graph import functional_graph, inline_nested
from mobileprune.inspect import model_facts
from mobileprune.plan import plan_channels
from mobileprune.prune import narrower, prune_channels
from mobileprune.pruning_plan import GroupPlan
from mobileprune.sparsify import sparsity

layers = keras.layers


def run(model, inputs):
    found = model(inputs if len(inputs) > 1 else inputs[0], training=False)
    return [np.asarray(tensor) for tensor in keras.tree.flatten(found)]


def equal(left, right, inputs):
    pairs = zip(run(left, inputs), run(right, inputs), strict=True)
    return all(one.dtype == other.dtype and np.array_equal(one, other) for one, other in pairs)


def test_equal_tells_one_wrong_weight_and_another_dtype():
    model = randomise(chain())
    other = keras.models.clone_model(model)
    other.set_weights(model.get_weights())
    assert equal(model, other, random_inputs(model))
    assert not equal(model, keras.Sequential([model, layers.Rescaling(1.0, dtype="float64")]), random_inputs(model))
    other.get_layer("head").bias.assign(np.array(other.get_layer("head").bias) + np.float32(1e-5))
    assert not equal(model, other, random_inputs(model))


def chain(dtype=None):
    return keras.Sequential(
        [
            keras.Input((6, 6, 3), name="photo"),
            layers.Conv2D(16, 3, name="stem", dtype=dtype, kernel_regularizer=keras.regularizers.L2(0.01)),
            layers.BatchNormalization(name="norm", dtype=dtype, momentum=0.8),
            layers.Conv2D(24, 1, name="body", activation="relu", dtype=dtype),
            layers.Flatten(name="flatten"),
            layers.Dense(5, name="head", dtype=dtype),
        ],
        name="chain",
    )


def removing(model, **removed):
    """A plan that removes the given units of the named groups and nothing else."""
    plan = plan_channels(model, macs=1.0)
    return dataclasses.replace(
        plan,
        groups=tuple(dataclasses.replace(entry, remove=tuple(removed.get(entry.group, ()))) for entry in plan.groups),
    )


def test_the_right_slices_of_every_weight_survive():
    model = randomise(chain())
    smaller = prune_channels(model, removing(model, stem=(0, 5, 15), body=(1,)))
    stem, body = np.delete(np.arange(16), (0, 5, 15)), np.delete(np.arange(24), 1)
    old, new = (
        {variable.path.split("/", 1)[1]: np.asarray(variable) for variable in m.variables if m.name in variable.path}
        for m in (model, smaller)
    )
    expected = {
        "stem/kernel": old["stem/kernel"][..., stem],
        "stem/bias": old["stem/bias"][stem],
        **{f"norm/{name}": old[f"norm/{name}"][stem] for name in ("gamma", "beta", "moving_mean", "moving_variance")},
        "body/kernel": old["body/kernel"][:, :, stem][..., body],
        "body/bias": old["body/bias"][body],
        "head/kernel": old["head/kernel"].reshape(4, 4, 24, 5)[:, :, body].reshape(-1, 5),
        "head/bias": old["head/bias"],
    }
    assert set(new) == set(expected)
    for name, values in expected.items():
        np.testing.assert_array_equal(new[name], values, err_msg=name)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_plan_that_removes_nothing_gives_an_equal_model(name):
    model = randomise(ARCHITECTURES[name]())
    same = prune_channels(model, plan_channels(model, macs=1.0))
    assert same is not model
    assert equal(model, same, random_inputs(model))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_smaller_model_keeps_names_kind_inputs_and_outputs(name):
    model = randomise(ARCHITECTURES[name]())
    smaller = prune_channels(model, plan_channels(model, macs=0.6, round_to=2))
    assert type(smaller) is type(model)
    assert smaller.name == model.name
    assert [layer.name for layer in smaller.layers] == [layer.name for layer in model.layers]
    assert [type(layer) for layer in smaller.layers] == [type(layer) for layer in model.layers]
    assert [tensor.shape for tensor in smaller.inputs] == [tensor.shape for tensor in model.inputs]
    shapes = [
        keras.tree.map_structure(lambda tensor: tensor.shape, functional_graph(m).output) for m in (model, smaller)
    ]
    assert shapes[0] == shapes[1]


def test_named_inputs_and_outputs_keep_their_names():
    model = ARCHITECTURES["shared_and_two_headed"]()
    smaller = prune_channels(model, plan_channels(model, macs=0.6, round_to=2))
    assert [tensor.name for tensor in smaller.inputs] == ["left", "right"]
    assert set(smaller.output) == {"boxes", "scores"}
    sequential = chain()
    assert prune_channels(sequential, plan_channels(sequential, macs=0.6)).inputs[0].name == "photo"


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_original_stays_bit_for_bit(name):
    model = randomise(ARCHITECTURES[name]())
    weights, config, inputs = model.get_weights(), model.get_config(), random_inputs(model)
    before = run(model, inputs)
    prune_channels(model, plan_channels(model, macs=0.6, round_to=2))
    assert model.get_config() == config
    for old, new in zip(weights, model.get_weights(), strict=True):
        assert old.tobytes() == new.tobytes()
    for old, new in zip(before, run(model, inputs), strict=True):
        assert old.tobytes() == new.tobytes()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_smaller_model_saves_and_reloads_with_equal_outputs(name, tmp_path):
    model = randomise(ARCHITECTURES[name]())
    smaller = prune_channels(model, plan_channels(model, macs=0.6, round_to=2))
    smaller.save(tmp_path / "smaller.keras")
    reloaded = keras.models.load_model(tmp_path / "smaller.keras")
    assert reloaded.count_params() == smaller.count_params() < model.count_params()
    assert equal(smaller, reloaded, random_inputs(model))


def own_loss(truth, found):
    return keras.ops.mean(keras.ops.abs(truth - found))


def test_a_compiled_and_trained_model_with_a_loss_of_the_users_is_pruned_to_an_uncompiled_one_that_trains():
    model = chain()
    model.compile(keras.optimizers.Adam(), own_loss, metrics=["mae"])
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(8, 6, 6, 3)), generator.normal(size=(8, 5))
    model.fit(x, y, batch_size=4, verbose=0)
    smaller = prune_channels(model, plan_channels(model, macs=0.5))
    assert not smaller.compiled
    assert model.compiled
    before = smaller.get_weights()
    smaller.compile(keras.optimizers.SGD(0.01), own_loss)
    smaller.fit(x, y, batch_size=4, verbose=0)
    changed = [not np.array_equal(one, other) for one, other in zip(before, smaller.get_weights(), strict=True)]
    assert all(changed)


def test_trainable_flags_and_other_settings_of_layers_stay():
    model = chain()
    model.get_layer("stem").trainable = False
    model.get_layer("norm").trainable = False
    smaller = prune_channels(model, plan_channels(model, macs=0.5))
    assert [layer.trainable for layer in smaller.layers] == [False, False, True, True, True]
    assert [variable.path for variable in smaller.trainable_weights] == [
        variable.path for variable in model.trainable_weights
    ]
    assert smaller.get_layer("norm").momentum == 0.8
    assert smaller.get_layer("stem").kernel_regularizer.l2 == pytest.approx(0.01)


@pytest.mark.parametrize("dtype", ["mixed_float16", "float64", "bfloat16"])
def test_dtype_policies_stay(dtype):
    model = randomise(chain(dtype))
    smaller = prune_channels(model, plan_channels(model, macs=0.5))
    assert smaller.get_layer("stem").filters < 16
    for layer in smaller.layers:
        assert layer.dtype_policy.name == model.get_layer(layer.name).dtype_policy.name
    assert [variable.dtype for variable in smaller.variables] == [variable.dtype for variable in model.variables]
    image = random_inputs(model)[0]
    assert smaller(image).dtype == model(image).dtype


def test_exact_zeros_survive_as_exact_zeros():
    model = randomise(ARCHITECTURES["inverted_residual"]())
    generator = np.random.default_rng(1)
    for layer in model.layers:
        if type(layer) in (layers.Conv2D, layers.Dense):
            kernel = np.array(layer.kernel)
            layer.kernel.assign(np.where(generator.random(kernel.shape) < 0.7, 0, kernel))
    smaller = prune_channels(model, plan_channels(model, macs=0.6, importance="random", round_to=2))
    for old, new in zip(model.weights, smaller.weights, strict=True):
        values = np.asarray(new)
        assert set(values.ravel().tolist()) <= set(np.asarray(old).ravel().tolist())
        assert (np.count_nonzero(values == 0) > 0) == (np.count_nonzero(np.asarray(old) == 0) > 0)
    assert sparsity(smaller) == pytest.approx(0.7, abs=0.05)


def test_a_plan_fits_the_same_architecture_with_other_weights():
    model = randomise(chain(), seed=0)
    other = randomise(keras.models.clone_model(model), seed=1)
    plan = plan_channels(model, macs=0.5)
    one, two = prune_channels(model, plan), prune_channels(other, plan)
    assert one.get_config() == two.get_config()
    survivors = np.delete(np.arange(16), next(entry.remove for entry in plan.groups if entry.group == "stem"))
    np.testing.assert_array_equal(
        two.get_layer("stem").kernel, np.array(other.get_layer("stem").kernel)[..., survivors]
    )


def test_a_plan_fits_the_file_that_was_saved(tmp_path):
    model = randomise(ARCHITECTURES["residual"]())
    plan = plan_channels(model, macs=0.6, round_to=2)
    model.save(tmp_path / "model.keras")
    reloaded = keras.models.load_model(tmp_path / "model.keras")
    assert equal(prune_channels(model, plan), prune_channels(reloaded, plan), random_inputs(model))


def test_a_pruned_model_can_be_pruned_again():
    model = randomise(chain())
    once = prune_channels(model, plan_channels(model, macs=0.6, round_to=2))
    twice = prune_channels(once, plan_channels(once, macs=0.6, round_to=2))
    assert model_facts(twice).macs <= 0.36 * model_facts(model).macs


@pytest.mark.parametrize(
    ("groups", "says"),
    [
        ((GroupPlan("elsewhere", 16, (1,)),), "'elsewhere' of 16 channels; found no such group"),
        ((GroupPlan("stem", 32, (1,)),), "'stem' of 32 channels; found 16 channels"),
        ((GroupPlan("stem", 16, (16,)),), "channel 16 of 'stem', which has 16"),
        ((GroupPlan("stem", 16, (-1,)),), "'stem', which has 16"),
        ((GroupPlan("stem", 16, tuple(range(16))),), "all 16 channels of 'stem'"),
        ((GroupPlan("head", 5, (0,)),), "'head', which must stay: model output"),
        ((GroupPlan("photo", 3, (0,)),), "'photo', which must stay: model input"),
        ((GroupPlan("stem", 16, (0,)), GroupPlan("stem", 16, (1,))), "2 entries for 'stem'"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused(groups, says):
    model = chain()
    plan = dataclasses.replace(plan_channels(model, macs=1.0), groups=groups)
    with pytest.raises(PlanError, match=says):
        prune_channels(model, plan)


def test_a_plan_of_another_architecture_is_refused():
    model, other = chain(), ARCHITECTURES["residual"]()
    with pytest.raises(PlanError, match="The plan is for another model"):
        prune_channels(other, plan_channels(model, macs=0.5))
    wider = keras.Sequential.from_config(model.get_config())
    wider = keras.models.clone_model(
        wider,
        clone_function=lambda layer: type(layer).from_config(
            {**layer.get_config(), **({"filters": 32} if layer.name == "body" else {})}
        ),
    )
    with pytest.raises(PlanError, match="'body' of 24 channels; found 32"):
        prune_channels(wider, plan_channels(model, macs=0.5))


def test_an_inlined_transfer_model_is_pruned_in_its_base():
    base = keras.Sequential([keras.Input((6, 6, 3)), layers.Conv2D(16, 3, name="inner")], name="base")
    model = keras.Sequential(
        [keras.Input((6, 6, 3)), base, layers.GlobalAveragePooling2D(), layers.Dense(5, name="out")]
    )
    flat = inline_nested(randomise(model))
    smaller = prune_channels(flat, plan_channels(flat, ratio=0.5))
    assert smaller.get_layer("inner").filters == 8
    assert smaller.get_layer("out").kernel.shape == (8, 5)
    assert base.get_layer("inner").filters == 16


def test_models_without_a_graph_are_refused():
    plan = plan_channels(chain(), macs=0.5)
    with pytest.raises(ModelError, match="no input shape"):
        prune_channels(keras.Sequential([layers.Dense(2)]), plan)


def test_narrower_has_fresh_weights_and_its_macs():
    model = randomise(chain())
    budget = model_facts(model).macs // 2
    rival = narrower(model, budget)
    assert 0.9 * budget < model_facts(rival).macs <= budget
    assert [layer.name for layer in rival.layers] == [layer.name for layer in model.layers]
    assert not np.isin(np.asarray(rival.get_layer("stem").kernel), np.asarray(model.get_layer("stem").kernel)).any()
    assert not np.asarray(rival.get_layer("stem").bias).any()
    with pytest.raises(PlanError, match="cannot go below"):
        narrower(model, 10)


def test_a_lambda_in_between_is_taken_over_and_freezes_what_it_touches():
    inputs = keras.Input((8,))
    x = layers.Lambda(lambda values: values * 2, output_shape=(6,), name="twice")(layers.Dense(6, name="a")(inputs))
    model = keras.Model(inputs, layers.Dense(2)(layers.Dense(8, name="b")(x)))
    smaller = prune_channels(model, plan_channels(model, ratio=0.5, round_to=1))
    assert (smaller.get_layer("a").units, smaller.get_layer("b").units) == (6, 4)
    assert smaller.get_layer("twice")(np.ones((1, 6))).shape == (1, 6)


class WithoutConfig(keras.layers.Layer):
    """A layer of the users' that forgets its argument."""

    def __init__(self, factor, **kwargs):
        super().__init__(**kwargs)
        self.factor = factor

    def call(self, inputs):
        return inputs * self.factor

    def get_config(self):
        return {"name": self.name}


def test_a_layer_that_cannot_be_made_anew_is_named():
    inputs = keras.Input((8,))
    model = keras.Model(inputs, layers.Dense(2)(layers.Dense(8)(WithoutConfig(3.0, name="mine")(inputs))))
    with pytest.raises(ModelError, match="WithoutConfig 'mine' cannot be made anew from its get_config"):
        prune_channels(model, plan_channels(model, ratio=0.5, round_to=1))
