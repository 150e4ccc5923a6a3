import json
import shutil
import zipfile

import h5py
import keras
import numpy as np
import pytest
from interop.twins import TOLERANCE, largest_difference, randomized, sample

import mobileprune as mp
from mobileprune.interop import process


@pytest.fixture(scope="module")
def old():
    return process.tf_keras()


@pytest.fixture(scope="module")
def twin():
    inputs = keras.Input((8, 8, 3), name="image")
    x = keras.layers.ReLU(6.0)(keras.layers.BatchNormalization()(keras.layers.Conv2D(4, 3, name="conv")(inputs)))
    x = keras.layers.Dense(5, activation="relu6", name="dense")(keras.layers.GlobalAveragePooling2D()(x + 0.5))
    return mp.to_tf_keras(randomized(keras.Model(inputs, x, name="plain")))


@pytest.fixture
def saved(twin, tmp_path):
    twin.save(tmp_path / "model.h5")
    twin.save(tmp_path / "model.keras")
    return tmp_path


def planted(path, layer):
    """A valid file whose description names one more layer; the weights stay as they are."""
    with h5py.File(path, "r+") as file:
        config = json.loads(file.attrs["model_config"])
        config["config"]["layers"].append(layer)
        file.attrs["model_config"] = json.dumps(config)
    return path


def planted_zip(path, change):
    """A `.keras` file with another description."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(parts["config.json"])
    change(config)
    parts["config.json"] = json.dumps(config).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return path


def one_line(caught):
    return "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["h5", "keras"])
def test_a_file_comes_over(saved, twin, kind):
    model = mp.from_tf_keras(saved / f"model.{kind}")
    assert isinstance(model, keras.Model)
    assert largest_difference(twin, model, sample(model)) < TOLERANCE
    assert {"conv", "dense"} <= {layer.name for layer in model.layers}
    model.save(saved / "again.keras")  # an ordinary Keras 3 model
    assert largest_difference(model, mp.load_model(saved / "again.keras"), sample(model)) == 0


def test_a_sequential_file_and_a_compiled_one(old, tmp_path):
    model = old.Sequential([old.layers.Dense(3, input_shape=(4,)), old.layers.BatchNormalization()])
    model.compile("adam", "mse")
    model.fit(np.ones((8, 4)), np.ones((8, 3)), verbose=0)
    model.save(tmp_path / "model.h5")
    assert largest_difference(model, mp.from_tf_keras(str(tmp_path / "model.h5")), sample(model)) < TOLERANCE


@pytest.mark.parametrize("kind", ["h5", "keras"])
def test_wrappers_come_off_with_exact_zeros(old, kind, tmp_path):
    tfmot = process.tfmot()
    plain = old.Sequential([old.Input((8, 8, 3)), old.layers.Conv2D(4, 3), old.layers.Flatten(), old.layers.Dense(5)])
    wrapped = tfmot.prune_low_magnitude(plain, tfmot.ConstantSparsity(0.75, 0, frequency=1))
    wrapped.compile("adam", "mse")
    x = np.random.default_rng(0).normal(size=(16, 8, 8, 3)).astype("float32")
    # Step by step, not by `fit`: so the toolkit leaves the last step's weights unmasked, as a crash in an epoch does.
    update = tfmot.UpdatePruningStep()
    update.set_model(wrapped)
    update.on_train_begin()
    for _ in range(3):
        wrapped.train_on_batch(x, np.ones((16, 5)))
    wrapped.save(tmp_path / f"wrapped.{kind}")
    unmasked = float(np.mean(wrapped.layers[-1].layer.kernel.numpy() == 0))
    assert unmasked < 0.7
    model = mp.from_tf_keras(tmp_path / f"wrapped.{kind}")
    assert mp.sparsity(model) == pytest.approx(0.75, abs=0.01)
    assert [type(layer).__name__ for layer in model.layers] == ["Conv2D", "Flatten", "Dense"]
    assert not any(np.signbit(kernel[kernel == 0]).any() for kernel in (np.asarray(w) for w in model.weights))
    assert largest_difference(wrapped, model, x) < TOLERANCE  # its forward pass masks first
    # The object itself crosses the same way.
    assert largest_difference(mp.from_tf_keras(wrapped), model, x) == 0


def test_no_lambda_runs(old, tmp_path):
    ran = tmp_path / "ran"
    path = str(ran)

    model = old.Sequential([old.Input((4,)), old.layers.Lambda(lambda x: (open(path, "w").close(), x)[1], name="evil")])
    ran.unlink()  # it ran when it was built; from the file it must not
    for kind in ("h5", "keras"):
        model.save(tmp_path / f"evil.{kind}")
        with pytest.raises(mp.errors.ModelError, match="Lambda 'evil'") as caught:
            mp.from_tf_keras(tmp_path / f"evil.{kind}")
        assert one_line(caught)
        assert not ran.exists()
    # Keras 2 by itself does run it: the danger is real.
    old.models.load_model(tmp_path / "evil.h5", compile=False)
    assert ran.exists()


@pytest.mark.parametrize(
    ("layer", "said"),
    [
        (
            {"class_name": "TFOpLambda", "config": {"name": "x", "function": "io.write_file"}},
            "the function 'io.write_file'",
        ),
        ({"class_name": "TFOpLambda", "config": {"name": "x", "function": ["io"]}}, "the function"),
        ({"class_name": "TensorFlowOpLayer", "config": {"name": "x", "node_def": ""}}, "TensorFlowOpLayer 'x'"),
        ({"class_name": "TextVectorization", "config": {"name": "x"}}, "TextVectorization 'x'"),
        ({"class_name": "Evil", "config": {"name": "x"}}, "Evil 'x'"),
        ({"class_name": ["Dense"], "config": {}}, "Dense"),
        ({"class_name": "Dense", "config": {"name": "x", "activation": "deserialize"}}, "the activation 'deserialize'"),
        ({"class_name": "Dense", "module": "os", "config": {"name": "x"}}, "the module 'os'"),
        ({"class_name": "function", "module": "builtins", "config": "exec"}, "the function 'exec'"),
        ({"class_name": "function", "module": "builtins", "config": {"a": 1}}, "the function"),
        ({"class_name": "TimeDistributed", "config": {"layer": {"class_name": "Lambda", "config": {}}}}, "'Lambda'"),
    ],
)
def test_what_is_not_on_the_lists_is_refused(saved, layer, said):
    with pytest.raises(mp.errors.ModelError) as caught:
        mp.from_tf_keras(planted(saved / "model.h5", layer))
    assert said in str(caught.value)
    assert one_line(caught)

    def change(config):
        config["config"]["layers"].append(layer)

    with pytest.raises(mp.errors.ModelError) as caught:
        mp.from_tf_keras(planted_zip(saved / "model.keras", change))
    assert said in str(caught.value)


@pytest.mark.parametrize("kind", ["h5", "keras"])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.99])
def test_a_truncated_file(saved, kind, share):
    path = saved / f"model.{kind}"
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(mp.errors.ModelError, match="model") as caught:
        mp.from_tf_keras(path)
    assert one_line(caught)


def test_weights_that_lie_in_another_file(saved):
    for change, said in (
        (lambda file: file.__setitem__("more", h5py.ExternalLink("/etc/hosts", "/")), "a link to another file"),
        (lambda file: file.create_dataset("raw", (8,), "u1", external=[("/etc/hosts", 0, 8)]), "in another file"),
    ):
        path = saved / "other.h5"
        shutil.copy(saved / "model.h5", path)
        with h5py.File(path, "r+") as file:
            change(file["model_weights"])
        with pytest.raises(mp.errors.ModelError, match=said):
            mp.from_tf_keras(path)


def test_weights_of_other_shapes(saved):
    with h5py.File(saved / "model.h5", "r+") as file:
        names = []
        file["model_weights"].visit(lambda name: names.append(name) if name.endswith("kernel:0") else None)
        del file["model_weights"][names[0]]
        file["model_weights"].create_dataset(names[0], data=np.zeros((2, 2), "float32"))
    with pytest.raises(mp.errors.ModelError, match="Cannot load") as caught:
        mp.from_tf_keras(saved / "model.h5")
    assert one_line(caught)


def test_files_that_are_something_else(saved, old, twin):
    keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]).save(saved / "new.keras")
    with pytest.raises(mp.errors.ModelError, match=r"Keras 3.* load it with load_model"):
        mp.from_tf_keras(saved / "new.keras")
    with pytest.raises(mp.errors.ModelError, match="no model file"):
        mp.from_tf_keras(saved / "none.h5")
    with pytest.raises(mp.errors.ModelError, match="is a folder"):
        mp.from_tf_keras(saved)
    (saved / "text.h5").write_text("no model")
    with pytest.raises(mp.errors.ModelError, match="Cannot read"):
        mp.from_tf_keras(saved / "text.h5")
    twin.save_weights(saved / "weights.h5")
    with pytest.raises(mp.errors.ModelError, match="Cannot read"):
        mp.from_tf_keras(saved / "weights.h5")
