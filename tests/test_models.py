import dataclasses
import zipfile

import keras
import numpy as np
import pytest

from mobileprune.errors import ModelError
from mobileprune.inspect import model_facts
from mobileprune.models import (
    build_model,
    gives_probabilities,
    input_contract,
    is_model_file,
    load_model,
    mobilenet_small,
    model_names,
    output_layer,
    short_name,
    with_head,
)
from mobileprune.records import Preprocess
from mobileprune.schedules import PolynomialDecay
from mobileprune.sparsify import prune_low_magnitude

layers = keras.layers
GREY = Preprocess(32, 32, color="grayscale")
PHOTO = Preprocess(96, 96, fit="crop")


def small(classes=5, activation=None, channels=3, name="image"):
    """conv → batch norm → pooling → dense."""
    inputs = keras.Input((16, 16, channels), name=name)
    x = layers.BatchNormalization(name="norm")(layers.Conv2D(8, 3, name="conv")(inputs))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(classes, activation=activation, name="head")(x), name="small")


def images(model, count=4):
    return np.random.default_rng(0).normal(size=(count, *model.input_shape[1:])).astype(np.float32)


def saved(model, tmp_path, name="model.keras"):
    path = tmp_path / name
    model.save(path)
    return path


def one_line(error):
    return "\n" not in str(error.value)


def test_the_default_network_has_its_size():
    model = mobilenet_small((32, 32, 1), 10)
    assert model.input_shape == (None, 32, 32, 1)
    assert model.output_shape == (None, 10)
    assert not gives_probabilities(model)
    assert 5e6 <= model_facts(model).macs <= 10e6
    assert model_facts(model).params == model.count_params()


def test_the_default_network_says_its_size_as_it_is():
    facts = model_facts(mobilenet_small((32, 32, 1), 10))
    assert f"about {facts.macs / 1e6:.0f} million MACs" in mobilenet_small.__doc__
    assert f"{facts.params / 1e3:.0f} thousand parameters" in mobilenet_small.__doc__


@pytest.mark.parametrize("shape", [(32, 32, 1), (96, 64, 3)])
def test_the_default_network_takes_other_shapes(shape):
    model = build_model("mobilenet_small", Preprocess(shape[0], shape[1], "RGB" if shape[2] == 3 else "grayscale"), 3)
    assert model(images(model)).shape == (4, 3)


def test_every_class_of_keras_applications_has_a_name():
    classes = [name for name in dir(keras.applications) if name[0].isupper()]
    names = model_names()
    assert len(names) == len(set(names)) == len(classes) + 1
    spelled = {name.replace("_", "") for name in names[1:]}
    assert spelled == {name.lower() for name in classes}
    assert {"mobilenet", "mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0", "efficientnet_v2_b0"} <= set(names)
    assert {"resnet50_v2", "densenet121", "vgg16", "nasnet_mobile", "convnext_tiny", "inception_v3"} <= set(names)


@pytest.mark.parametrize("name", model_names()[1:])
def test_every_listed_name_finds_its_architecture(name):
    # An impossible size is refused by the architecture itself; a name that is not known would be reported as such.
    with pytest.raises(ModelError) as error:
        build_model(name, Preprocess(0, -7), 3)
    assert str(error.value).startswith(f"Cannot build {name} for ")
    assert one_line(error)


@pytest.mark.parametrize("name", ["mobilenet_v2", "efficientnet_b0"])
def test_an_application_is_built_for_photographs(name):
    model = build_model(name, input_contract(name, PHOTO), 7)
    assert model.input_shape == (None, 96, 96, 3)
    assert model.output_shape == (None, 7)
    assert not gives_probabilities(model)
    assert np.isfinite(model(images(model, 1))).all()


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ModelError) as error:
        build_model("mobilenet_v9", PHOTO, 3)
    assert "Unknown model 'mobilenet_v9'" in str(error.value)
    assert all(name in str(error.value) for name in model_names())
    assert one_line(error)


@pytest.mark.parametrize(
    ("name", "is_file", "short"),
    [
        ("mobilenet_v2", False, "mobilenet_v2"),
        ("models/My Net-2.keras", True, "my_net_2"),
        ("old.h5", True, "old"),
        ("photos/", False, "photos"),
        ("/data/My Photos", False, "my_photos"),
    ],
)
def test_short_names_suit_files(name, is_file, short):
    assert is_model_file(name) is is_file
    assert short_name(name).endswith(short)
    assert "/" not in short_name(name)


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
@pytest.mark.parametrize("file", ["model.keras", "model.h5"])
def test_a_saved_model_is_loaded_with_its_weights(tmp_path, file):
    model = small()
    loaded = load_model(saved(model, tmp_path, file))
    np.testing.assert_array_equal(loaded(images(model)), model(images(model)))
    assert not loaded.compiled


def test_a_compiled_model_is_loaded_uncompiled(tmp_path):
    model = small()
    model.compile("adam", "mse")
    assert not load_model(saved(model, tmp_path)).compiled


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ModelError, match=r"There is no model file .*missing\.keras\.$"):
        load_model(tmp_path / "missing.keras")


@pytest.mark.parametrize("file", ["model.keras", "model.h5"])
@pytest.mark.parametrize("damage", ["rubbish", "empty", "truncated"])
@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
def test_a_damaged_file_is_one_clear_line(tmp_path, file, damage):
    path = saved(small(), tmp_path, file)
    content = path.read_bytes()
    path.write_bytes({"rubbish": b"not a model" * 99, "empty": b"", "truncated": content[: len(content) // 2]}[damage])
    with pytest.raises(ModelError) as error:
        load_model(path)
    assert str(path) in str(error.value)
    assert one_line(error)
    assert len(str(error.value)) < 600


def test_a_file_whose_weights_are_cut_off_is_refused(tmp_path):
    path = saved(small(), tmp_path)
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content[: len(content) // 2] if name.endswith(".h5") else content)
    with pytest.raises(ModelError, match="Cannot load"):
        load_model(path)


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
@pytest.mark.parametrize("file", ["model.keras", "model.h5"])
def test_code_inside_a_file_is_not_run(tmp_path, file):
    marker = tmp_path / "ran"
    code = eval(f"lambda x: (open({str(marker)!r}, 'w'), x)[1]")  # noqa: S307  (the danger is the point)
    inputs = keras.Input((4,))
    model = keras.Model(inputs, layers.Dense(2)(layers.Lambda(code, output_shape=(4,))(inputs)))
    path = saved(model, tmp_path, file)
    marker.unlink(missing_ok=True)
    with pytest.raises(ModelError, match="Cannot load") as error:
        load_model(path)
    assert one_line(error)
    assert not marker.exists()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_no_numbers_are_refused_by_name(tmp_path, value):
    model = small()
    kernel = np.array(model.get_layer("conv").kernel)
    kernel[0, 0, 0, :3] = value
    model.get_layer("conv").kernel.assign(kernel)
    with pytest.raises(ModelError, match=r"Weight 'conv/kernel' holds 3 values that are NaN or infinite, of 216"):
        load_model(saved(model, tmp_path))


def test_statistics_that_are_no_numbers_are_refused_by_name(tmp_path):
    model = small()
    model.get_layer("norm").moving_variance.assign(np.full(8, np.nan))
    with pytest.raises(ModelError, match="Weight 'norm/moving_variance' holds 8 values"):
        load_model(saved(model, tmp_path))


def test_a_subclassed_model_is_refused(tmp_path):
    @keras.saving.register_keras_serializable("test_models")
    class Own(keras.Model):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.dense = layers.Dense(2)

        def call(self, inputs):
            return self.dense(inputs)

    model = Own()
    model(np.zeros((1, 4), np.float32))
    with pytest.raises(ModelError, match="is subclassed"):
        load_model(saved(model, tmp_path))


def nested(head=None):
    """A backbone inside a model; `head` is a layer or a model."""
    inputs = keras.Input((16, 16, 3), name="outer_image")
    first = small()
    base = keras.Model(first.input, first.get_layer("head").input, name="base")
    return keras.Model(inputs, (head or layers.Dense(3, name="new_head"))(base(inputs)), name="outer")


def test_a_nested_base_stays_nested_and_joins_the_graph_when_built(tmp_path):
    model = nested()
    loaded = load_model(saved(model, tmp_path))
    assert [layer.name for layer in loaded.layers] == [layer.name for layer in model.layers]
    built = build_model("outer.keras", Preprocess(16, 16), 3, model=loaded)
    assert not [layer for layer in built.layers if isinstance(layer, keras.Model)]
    assert {"conv", "norm", "new_head"} <= {layer.name for layer in built.layers}
    for other in (loaded, built):
        np.testing.assert_allclose(other(images(model)), model(images(model)), rtol=1e-6, atol=1e-7)


def test_nested_models_whose_layers_share_names_are_loaded(tmp_path):
    def part(name):
        return keras.Sequential([keras.Input((4,)), layers.Dense(4, name="dense")], name=name)

    model = keras.Sequential([keras.Input((4,)), part("left"), part("right")])
    loaded = load_model(saved(model, tmp_path))
    given = np.ones((2, 4), np.float32)
    np.testing.assert_array_equal(loaded(given), model(given))
    with pytest.raises(ModelError, match="cannot be joined"):
        build_model("twins.keras", Preprocess(2, 2), 4, model=two_images(loaded))


def two_images(model):
    inputs = keras.Input((2, 2, 1))
    return keras.Model(inputs, model(layers.Flatten()(inputs)))


@pytest.mark.parametrize("activation", [None, "softmax"])
def test_a_nested_head_is_looked_into(activation):
    dense = layers.Dense(3, activation=activation, name="new_head")
    model = nested(keras.Sequential([layers.Dropout(0.1), dense], name="head_model"))
    assert output_layer(model) is dense
    assert gives_probabilities(model) is (activation == "softmax")
    outer = keras.Sequential([keras.Input((16, 16, 3)), model])
    assert output_layer(outer) is dense


def test_a_nested_backbone_that_rescales_gets_pixels():
    inputs = keras.Input((16, 16, 3))
    x = layers.GlobalAveragePooling2D()(layers.Rescaling(1 / 255)(inputs))
    base = keras.Sequential([keras.Input((16, 16, 3)), keras.Model(inputs, x, name="inner"), layers.Dense(2)])
    contract = input_contract("x.keras", Preprocess(16, 16), model=base)
    assert (contract.mean, contract.std) == ((0.0,), (1.0,))


def test_a_model_with_a_subclassed_one_inside_is_refused(tmp_path):
    @keras.saving.register_keras_serializable("test_models")
    class Inner(keras.Model):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.dense = layers.Dense(2)

        def call(self, inputs):
            return self.dense(inputs)

    model = keras.Sequential([keras.Input((4,)), Inner(name="mine")])
    with pytest.raises(ModelError, match=r"'mine' \(Inner\) is subclassed"):
        load_model(saved(model, tmp_path))


def test_a_fitting_head_is_kept():
    model = small(5)
    assert with_head(model, 5) is model
    assert build_model("some.keras", PHOTO, 5, model=model) is model


@pytest.mark.parametrize("activation", [None, "softmax"])
def test_a_head_for_other_classes_is_replaced(activation):
    model = small(5, activation)
    other = with_head(model, 9)
    assert other.output_shape == (None, 9)
    assert not gives_probabilities(other)
    assert "head" not in {layer.name for layer in other.layers}
    assert other.get_layer("conv") is model.get_layer("conv")


def test_a_head_behind_a_softmax_layer_is_replaced():
    model = small(5)
    model = keras.Model(model.input, layers.Softmax()(model.output))
    assert with_head(model, 9).output_shape == (None, 9)


def test_a_missing_head_is_attached():
    model = small()
    body = keras.Model(model.input, model.get_layer("norm").output, name="body")
    whole = with_head(body, 4)
    assert whole.output_shape == (None, 4)
    assert whole.get_layer("norm") is model.get_layer("norm")


def test_a_head_that_cannot_be_replaced_is_named():
    model = small()
    scaled = keras.Model(model.input, layers.Rescaling(2.0)(model.output))
    with pytest.raises(ModelError, match="ends in Rescaling, not in a dense head"):
        with_head(scaled, 9)


def test_two_outputs_are_refused():
    model = small()
    twice = keras.Model(model.input, [model.output, layers.Dense(2)(model.output)])
    with pytest.raises(ModelError, match="has 2 outputs; a classifier has one"):
        with_head(twice, 5)


@pytest.mark.parametrize(("activation", "probabilities"), [(None, False), ("softmax", True), ("sigmoid", True)])
def test_the_last_activation_says_what_outputs_mean(activation, probabilities):
    assert gives_probabilities(small(5, activation)) is probabilities


@pytest.mark.parametrize("activation", [None, "softmax"])
def test_wrapping_for_sparsity_does_not_change_what_outputs_mean(activation):
    wrapped = prune_low_magnitude(small(5, activation), PolynomialDecay(0.0, 0.5, begin_step=0, end_step=4))
    assert gives_probabilities(wrapped) is (activation == "softmax")


def test_a_softmax_layer_gives_probabilities():
    model = small()
    assert gives_probabilities(keras.Model(model.input, layers.Softmax()(model.output)))


@pytest.mark.parametrize(
    ("name", "weights", "color", "mean", "std"),
    [
        ("mobilenet_small", None, "grayscale", (127.5,), (127.5,)),
        ("mobilenet_v2", None, "RGB", (127.5,), (127.5,)),
        ("efficientnet_b0", None, "RGB", (0.0,), (1.0,)),
        ("mobilenet_v3_small", None, "RGB", (0.0,), (1.0,)),
        ("convnext_tiny", "imagenet", "RGB", (0.0,), (1.0,)),
        ("densenet121", "imagenet", "RGB", (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
        ("densenet121", None, "RGB", (127.5,), (127.5,)),
        ("resnet50", "imagenet", "RGB", (123.68, 116.779, 103.939), (1.0,)),
        ("resnet50_v2", "imagenet", "RGB", (127.5,), (127.5,)),
        ("vgg16", "imagenet", "RGB", (123.68, 116.779, 103.939), (1.0,)),
    ],
)
def test_each_family_gets_the_input_that_it_wants(name, weights, color, mean, std):
    contract = input_contract(name, GREY, weights)
    assert contract == dataclasses.replace(GREY, color=color, mean=mean, std=std)


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "efficientnet_b0", "efficientnet_v2_b0", "convnext_tiny"])
def test_families_that_scale_inside_do(name):
    made = build_model(name, input_contract(name, Preprocess(64, 64)), 2)
    kinds = {type(layer) for layer in made.layers[:4]}
    assert kinds & {layers.Rescaling, layers.Normalization}


def test_a_files_own_input_decides():
    assert input_contract("a.keras", PHOTO, model=small()) == dataclasses.replace(PHOTO, height=16, width=16)
    grey = input_contract("a.keras", PHOTO, model=small(channels=1))
    assert grey.color == "grayscale"
    assert grey.shape == (16, 16, 1)


def test_a_file_that_scales_inside_gets_plain_pixels():
    inputs = keras.Input((16, 16, 3))
    x = layers.GlobalAveragePooling2D()(layers.Rescaling(1 / 255)(inputs))
    contract = input_contract("a.keras", PHOTO, model=keras.Model(inputs, layers.Dense(2)(x)))
    assert (contract.mean, contract.std) == ((0.0,), (1.0,))


def test_an_input_of_open_size_takes_the_datas_size():
    inputs = keras.Input((None, None, 3))
    model = keras.Model(inputs, layers.Dense(2)(layers.GlobalAveragePooling2D()(inputs)))
    assert input_contract("a.keras", PHOTO, model=model).shape == (96, 96, 3)


@pytest.mark.parametrize("shape", [(16, 16, 4), (10,), (8, 16, 16, 3)])
def test_an_input_that_is_no_image_is_refused(shape):
    inputs = keras.Input(shape)
    model = keras.Model(inputs, layers.Dense(2)(layers.Flatten()(inputs)))
    with pytest.raises(ModelError, match="not one image of 1 or 3 channels"):
        input_contract("a.keras", PHOTO, model=model)


def test_published_weights_that_read_bgr_read_rgb_afterwards():
    from mobileprune.models import _read_rgb

    model = small()
    before = np.array(model(images(model)[..., ::-1]))
    _read_rgb(model)
    np.testing.assert_allclose(model(images(model)), before, rtol=1e-5, atol=1e-6)
