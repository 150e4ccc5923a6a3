import os
import subprocess
import sys

import pytest

import mobileprune as mp
from mobileprune.interop import process

START = "import os, subprocess, sys\nimport numpy as np\n"
# What a program of Keras 3 does, after everything of the bridge has been used.
AFTER = """
import tempfile
import keras, tensorflow as tf
import mobileprune as mp
from mobileprune.interop import process
made = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
process.tfmot()
mp.from_tf_keras(mp.to_tf_keras(made))
assert os.environ.get("TF_USE_LEGACY_KERAS") == EXPECTED, os.environ.get("TF_USE_LEGACY_KERAS")
child = [sys.executable, "-c", "import os; print(os.environ.get('TF_USE_LEGACY_KERAS'))"]
assert subprocess.run(child, capture_output=True, text=True).stdout.strip() == str(EXPECTED)
assert tf.keras.Model.__module__.split(".")[0] == PACKAGE, tf.keras.Model.__module__
assert keras.__version__.startswith("3.")
"""
USE = """
model = tf.keras.Sequential([tf.keras.Input((4,)), tf.keras.layers.Dense(3, activation="softmax")])
model.compile("adam", "sparse_categorical_crossentropy")
x = np.random.default_rng(0).normal(size=(8, 4)).astype("float32")
model.fit(x, np.zeros(8), verbose=0)
with tempfile.TemporaryDirectory() as folder:
    model.save(folder + "/model.keras")
    again = keras.models.load_model(folder + "/model.keras")
assert np.allclose(model(x), again(x))
direct = tf.lite.TFLiteConverter.from_keras_model(model).convert()
[variant] = mp.convert(model, ["float32"])
assert len(direct) > 500 and len(variant.content) > 500
"""


def run(code, **environment):
    before = {name: value for name, value in os.environ.items() if name != "TF_USE_LEGACY_KERAS"}
    done = subprocess.run(
        [sys.executable, "-c", START + code], capture_output=True, text=True, timeout=300, env={**before, **environment}
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_keras_3_goes_on_as_if_nothing_had_happened():
    run(AFTER.replace("EXPECTED", "None").replace("PACKAGE", "'keras'") + USE)


def test_a_variable_that_was_set_stays_set():
    run(AFTER.replace("EXPECTED", "'1'").replace("PACKAGE", "'tf_keras'"), TF_USE_LEGACY_KERAS="1")


def test_without_care_the_toolkit_does_change_the_process():
    # The reason for all this; if it fails one day, the care is needless.
    run(
        "import tensorflow as tf, tensorflow_model_optimization as toolkit; toolkit.sparsity.keras\n"
        "assert os.environ['TF_USE_LEGACY_KERAS'] == '1' and tf.keras.Model.__module__.startswith('tf_keras.')"
    )


def test_a_failed_import_names_the_remedy_and_restores_the_variable(monkeypatch):
    monkeypatch.delenv("TF_USE_LEGACY_KERAS", raising=False)
    # What Python puts there for a package that is not installed.
    monkeypatch.setitem(sys.modules, "tensorflow_model_optimization", None)
    with pytest.raises(mp.InteropError, match="pip install tensorflow-model-optimization"):
        process.tfmot()
    assert "TF_USE_LEGACY_KERAS" not in os.environ
