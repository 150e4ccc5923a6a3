import keras
import numpy as np
import pytest
import tensorflow as tf

from mobileprune.fused_norms import fused_batch_norms

layers = keras.layers
SHAPE = (6, 5, 4, 3)


def network(**settings):
    inputs = keras.Input(SHAPE[1:])
    x = layers.Conv2D(8, 3, padding="same", use_bias=False, name="conv")(inputs)
    x = layers.ReLU()(layers.BatchNormalization(name="norm", **{"momentum": 0.8, **settings})(x))
    model = keras.Model(inputs, layers.Dense(4, name="head")(layers.GlobalAveragePooling2D()(x)))
    generator = np.random.default_rng(1)
    model.set_weights([generator.uniform(0.1, 1, each.shape) for each in model.get_weights()])
    return model


def trained(model, steps=4):
    generator = np.random.default_rng(0)
    model.compile(keras.optimizers.SGD(0.05), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    for _ in range(steps):
        model.train_on_batch(generator.normal(2, 3, SHAPE), generator.integers(0, 4, SHAPE[0]))
    return model


def same(model, other):
    return all(
        np.allclose(mine, theirs, rtol=1e-4, atol=1e-5)
        for mine, theirs in zip(model.get_weights(), other.get_weights(), strict=True)
    )


@pytest.mark.parametrize("settings", [{}, {"epsilon": 0.1}, {"axis": 3}, {"momentum": 0.5}], ids=str)
def test_training_is_what_it_was(settings):
    plain, fused = trained(network(**settings)), network(**settings)
    with fused_batch_norms(fused) as norms:
        assert norms == [fused.get_layer("norm")]
        trained(fused)
    assert same(plain, fused)
    assert not same(plain, trained(network(**settings), 3))  # else the comparison says nothing
    images = np.random.default_rng(2).normal(size=SHAPE)
    np.testing.assert_allclose(plain.predict(images, verbose=0), fused.predict(images, verbose=0), rtol=1e-3)


def test_it_is_one_op():
    model = network()

    def ops():
        step = tf.function(lambda x: model(x, training=True))
        return {op.type for op in step.get_concrete_function(np.zeros(SHAPE, "float32")).graph.get_operations()}

    assert "FusedBatchNormV3" not in ops()
    with fused_batch_norms(model):
        assert "FusedBatchNormV3" in ops()
    assert "FusedBatchNormV3" not in ops()


def test_the_layer_is_as_before_afterwards(tmp_path):
    model = network()

    def fail():
        with fused_batch_norms(model):
            model.save(tmp_path / "inside.keras")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert "call" not in vars(model.get_layer("norm"))
    again = keras.models.load_model(tmp_path / "inside.keras")
    assert same(model, again)
    assert type(again.get_layer("norm")) is layers.BatchNormalization


@pytest.mark.parametrize(
    "settings", [{"scale": False}, {"center": False}, {"epsilon": 1e-6}, {"dtype": "mixed_float16"}], ids=str
)
def test_what_the_op_cannot_do_stays_as_it_is(settings):
    model = network(**settings)
    with fused_batch_norms(model) as norms:
        assert norms == []


def test_frozen_layers_other_axes_and_ranks_and_masks_stay_as_they_are():
    def built():
        inputs = keras.Input((6, 8))
        x = layers.BatchNormalization(name="sequence")(layers.Masking()(inputs))
        x = layers.Reshape((6, 8, 1))(x)
        x = layers.BatchNormalization(axis=1, name="first")(x)
        x = layers.BatchNormalization(name="frozen", trainable=False)(x)
        return keras.Model(inputs, layers.Dense(4)(layers.Flatten()(x)))

    def step(model):
        generator = np.random.default_rng(0)
        images = generator.normal(2, 3, (5, 6, 8))
        images[:, 4:] = 0
        model.compile(keras.optimizers.SGD(0.05), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        model.train_on_batch(images, generator.integers(0, 4, 5))
        return model.get_weights()

    plain, fused = built(), built()
    fused.set_weights(plain.get_weights())
    with fused_batch_norms(fused) as norms:
        assert len(norms) == 3
        after = step(fused)
    for mine, theirs in zip(after, step(plain), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_a_model_that_was_fitted_before_is_traced_anew():
    model, plain = trained(network()), trained(network())
    with fused_batch_norms(model):
        assert model.train_function is None
        trained(model)
        inside = model.train_function
    assert model.train_function is None
    assert inside is not None
    assert same(model, trained(plain))


def test_one_within_another_changes_nothing_twice():
    model = network()
    with fused_batch_norms(model) as outer:
        with fused_batch_norms(model) as inner:
            assert inner == []
        assert "call" in vars(outer[0])
    assert "call" not in vars(outer[0])


def test_nested_and_shared_layers_are_changed_once():
    inputs = keras.Input((5, 4, 3))
    block = keras.Sequential([keras.Input((5, 4, 3)), layers.BatchNormalization(name="inner")], name="block")
    model = keras.Model(inputs, layers.Add()([block(inputs), block(block(inputs))]))
    with fused_batch_norms(model) as norms:
        assert [layer.name for layer in norms] == ["inner"]
        model(np.ones(SHAPE), training=True)
    assert "call" not in vars(norms[0])
