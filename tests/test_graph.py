import keras
import numpy as np
import pytest
from architectures import ARCHITECTURES, random_inputs, randomise

from mobileprune.errors import ModelError
from mobileprune.graph import check_finite, clone, functional_graph, inline_nested, read_only, same_layer

layers = keras.layers


class Own(keras.Model):
    def __init__(self, name="own"):
        super().__init__(name=name)
        self.dense = layers.Dense(4)

    def call(self, inputs):
        return self.dense(inputs)


def run(model, inputs, training=False):
    found = model(inputs if len(inputs) > 1 else inputs[0], training=training)
    return [np.asarray(tensor) for tensor in keras.tree.flatten(found)]


def equal(left, right, inputs, training=False):
    pairs = zip(run(left, inputs, training), run(right, inputs, training), strict=True)
    return all(np.array_equal(one, other) for one, other in pairs)


def test_equal_tells_one_wrong_weight():
    model = randomise(ARCHITECTURES["residual"]())
    other = keras.models.clone_model(model)
    other.set_weights(model.get_weights())
    inputs = random_inputs(model)
    assert equal(model, other, inputs)
    bias = np.array(other.layers[-1].bias)
    bias[0] += 1e-5
    other.layers[-1].bias.assign(bias)
    assert not equal(model, other, inputs)


def base(size=8):
    """A functional feature extractor of two inner levels: functional in Sequential in functional."""
    inputs = keras.Input((size, size, 8), name="deep_in")
    deep = keras.Model(inputs, layers.Add(name="deep_add")([inputs, layers.Conv2D(8, 1, name="deep_conv")(inputs)]))
    middle = keras.Sequential([keras.Input((size, size, 3)), layers.Conv2D(8, 1, name="middle_conv"), deep], name="mid")
    image = keras.Input((size, size, 3), name="base_image")
    return keras.Model(image, layers.BatchNormalization(name="base_norm")(middle(image)), name="base")


def transfer():
    return randomise(
        keras.Sequential(
            [
                keras.Input((8, 8, 3), name="photo"),
                base(),
                layers.GlobalAveragePooling2D(),
                layers.Dense(5, name="head"),
            ],
            name="transfer",
        )
    )


def test_a_transfer_model_two_levels_deep_is_inlined_with_equal_outputs():
    model = transfer()
    flat = inline_nested(model)
    assert not any(isinstance(layer, keras.Model) for layer in flat.layers)
    assert {"deep_conv", "deep_add", "middle_conv", "base_norm", "head"} <= {layer.name for layer in flat.layers}
    assert (flat.name, flat.inputs[0].name) == ("transfer", "photo")
    for training in (False, True):
        before = model.get_weights()
        expected = run(model, random_inputs(model), training)
        model.set_weights(before)
        np.testing.assert_array_equal(run(flat, random_inputs(model), training)[0], expected[0])


def test_a_sequential_model_without_an_input_layer_of_its_own_is_inlined():
    model = keras.Sequential([base(), layers.GlobalAveragePooling2D(), layers.Dense(5)])
    model.build((None, 8, 8, 3))
    randomise(model)
    flat = inline_nested(model)
    assert "deep_conv" in {layer.name for layer in flat.layers}
    assert equal(model, flat, random_inputs(model))


def test_a_nested_model_in_a_functional_one_called_twice_shares_its_weights():
    left, right = keras.Input((8, 8, 3), name="left"), keras.Input((8, 8, 3), name="right")
    tower = base()
    model = keras.Model([left, right], layers.Dense(2)(layers.Subtract()([tower(left), tower(right)])))
    randomise(model)
    flat = inline_nested(model)
    assert flat.count_params() == model.count_params()
    assert equal(model, flat, random_inputs(model))


def test_a_nested_model_of_two_inputs_and_two_outputs_is_inlined():
    a, b = keras.Input((4,), name="a"), keras.Input((6,), name="b")
    inner = keras.Model([a, b], {"one": layers.Dense(3)(b), "two": layers.Dense(2)(a)}, name="inner")
    x, y = keras.Input((4,), name="x"), keras.Input((6,), name="y")
    found = inner([x, y])
    model = randomise(keras.Model([x, y], [found["two"], found["one"]]))
    assert equal(model, inline_nested(model), random_inputs(model))


def test_the_flat_model_shares_the_weights_and_saves_alone(tmp_path):
    model = transfer()
    flat = inline_nested(model)
    flat.get_layer("head").bias.assign(np.arange(5.0))
    np.testing.assert_array_equal(model.get_layer("head").bias, np.arange(5.0))
    inputs = random_inputs(model)
    for number, saved in enumerate((flat, model)):
        path = tmp_path / f"{number}.keras"
        saved.save(path)
        assert equal(keras.models.load_model(path), model, inputs)


def test_frozen_layers_of_a_nested_model_stay_frozen():
    model = transfer()
    model.layers[0].trainable = False
    assert [variable.path for variable in inline_nested(model).trainable_weights] == [
        "transfer/head/kernel",
        "transfer/head/bias",
    ]


def test_a_model_without_nesting_is_returned_as_it_is():
    model = ARCHITECTURES["residual"]()
    assert inline_nested(model) is model


def test_layers_of_one_name_in_two_nested_models_are_refused():
    def part(index):
        return keras.Sequential([keras.Input((4,)), layers.Dense(4, name="dense")], name=f"part{index}")

    model = keras.Sequential([keras.Input((4,)), part(0), part(1)], name="twice")
    with pytest.raises(ModelError, match=r"nested in 'twice' cannot be joined.*dense"):
        inline_nested(model)


def test_a_nested_subclassed_model_is_refused():
    model = keras.Sequential([keras.Input((4,)), Own("mine"), layers.Dense(2)])
    with pytest.raises(ModelError, match=r"'mine' \(Own\) is subclassed"):
        inline_nested(model)


@pytest.mark.parametrize("read", [functional_graph, lambda model: clone(model, same_layer)])
def test_models_without_a_graph_are_refused(read):
    own = Own()
    own(np.zeros((1, 3)))
    with pytest.raises(ModelError, match=r"'own' \(Own\) is subclassed.*keras\.Model\(inputs, outputs\)"):
        read(own)
    with pytest.raises(ModelError, match=r"'bare' has no input shape\. Start it with keras\.Input"):
        read(keras.Sequential([layers.Dense(2)], name="bare"))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_clone_has_the_structure_and_its_own_weights(name):
    model = randomise(ARCHITECTURES[name]())
    copy = clone(model, same_layer)
    assert type(copy) is type(model)
    assert copy.name == model.name
    graphs = functional_graph(copy), functional_graph(model)  # with the input layers, which Sequential hides
    assert [layer.name for layer in graphs[0].layers] == [layer.name for layer in graphs[1].layers]
    shapes = [keras.tree.map_structure(lambda tensor: tensor.shape, graph.output) for graph in graphs]
    assert shapes[0] == shapes[1]
    assert not {id(variable) for variable in copy.variables} & {id(variable) for variable in model.variables}
    copy.set_weights(model.get_weights())
    assert equal(model, copy, random_inputs(model))


def test_a_clone_keeps_named_dictionary_inputs_and_their_dtypes():
    inputs = {
        "image": keras.Input((4,), name="image"),
        "mask": keras.Input((4,), name="mask", dtype="int32", batch_size=2),
    }
    x = layers.Add()([inputs["image"], layers.Rescaling(1.0)(inputs["mask"])])
    copy = clone(keras.Model(inputs, {"out": layers.Dense(2)(x)}), same_layer)
    assert set(copy.input) == {"image", "mask"}
    assert copy.input["mask"].dtype == "int32"
    assert copy.input["mask"].shape == (2, 4)
    assert set(copy.output) == {"out"}


def own_loss(truth, found):
    return keras.ops.mean(keras.ops.abs(truth - found))


def test_a_compiled_model_with_a_loss_of_the_users_is_cloned_uncompiled():
    model = ARCHITECTURES["residual"]()
    model.compile("adam", own_loss)
    assert not clone(model, same_layer).compiled
    assert model.loss is own_loss


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_named_and_counted(bad):
    model = ARCHITECTURES["sequential_convnet"]()
    check_finite(model)
    stem = model.get_layer("stem")
    stem.bias.assign([bad, *([0.0] * 14), bad])
    with pytest.raises(ModelError, match=r"stem/bias' holds 2 values that are NaN or infinite, of 16"):
        check_finite(model)


def test_statistics_that_are_not_finite_are_found_too():
    model = ARCHITECTURES["shared_and_two_headed"]()
    norm = model.get_layer("tower_norm")
    norm.moving_variance.assign(np.full(16, np.inf))
    with pytest.raises(ModelError, match="tower_norm/moving_variance"):
        check_finite(model)


def test_a_weight_is_read_as_it_is_and_cannot_be_written_to():
    variable = keras.Variable(np.arange(6.0).reshape(2, 3))
    values = read_only(variable)
    np.testing.assert_array_equal(values, variable)
    np.testing.assert_array_equal(read_only(keras.ops.square(variable)), np.square(variable))
    with pytest.raises(ValueError, match="read-only"):
        values[0, 0] = 7
    assert float(variable[0, 0]) == 0
