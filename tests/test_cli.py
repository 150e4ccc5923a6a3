"""The console command, run as a person would."""

import json
import re
import subprocess
import sys

import keras
import numpy as np
import pytest
from architectures import ARCHITECTURES, randomise
from photos import make_photo_folder
from xnnpack_models import network, with_zeros

import mobileprune as mp
from mobileprune import models
from mobileprune.cli import VERBS
from mobileprune.importance import IMPORTANCES
from mobileprune.ranking import NORMALISATIONS

layers = keras.layers


def mobileprune(*arguments, expected=0):
    command = [sys.executable, "-m", "mobileprune.cli", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == expected, done.stderr
    return done.stdout if expected == 0 else done.stderr


def refused(*arguments):
    error = mobileprune(*arguments, expected=2)
    assert error.startswith("error: "), error
    assert len(error.strip().splitlines()) == 1, error
    return error


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "net.keras"
    keras.utils.clear_session()  # so that its layers have the same names whatever was built before
    randomise(ARCHITECTURES["inverted_residual"]()).save(path)
    return path


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return make_photo_folder(tmp_path_factory.mktemp("photos"), per_class=4, size=32)


def norm_and_custom():
    """A group that is not exact, and channels that stay for the sake of a function without a rule."""
    inputs = keras.Input((8, 8, 3), name="image")
    x = layers.LayerNormalization(name="mixes")(layers.Conv2D(16, 1, name="first")(inputs))
    x = layers.Conv2D(24, 1, name="second")(x)
    x = keras.ops.cumsum(x, axis=-1)
    return keras.Model(inputs, layers.Dense(4, name="head")(layers.GlobalAveragePooling2D()(x)))


def nested_twins():
    """Two nested parts whose layers have the same names."""

    def part(name):
        return keras.Sequential([keras.Input((8, 8, 16)), layers.Conv2D(16, 1, name="conv"), layers.ReLU()], name=name)

    inputs = keras.Input((8, 8, 3), name="image")
    x = part("right")(part("left")(layers.Conv2D(16, 1, name="stem")(inputs)))
    return keras.Model(inputs, layers.Dense(4, name="head")(layers.GlobalAveragePooling2D()(x)), name="twins")


def test_help_names_every_verb():
    text = mobileprune("--help")
    for verb in VERBS:
        assert f"mobileprune {verb}" in text


def test_help_of_a_verb_lists_its_flags():
    # The console script is another main module than `python -m`.
    script = "import sys; from mobileprune.cli import main; sys.argv[0] = 'mobileprune'; main()"
    for start in (["-m", "mobileprune.cli"], ["-c", script]):
        command = [sys.executable, *start, "prune", "--help"]
        text = subprocess.run(command, capture_output=True, text=True, timeout=60).stdout
        for target in ("macs", "params", "file_bytes", "ratio", "channels"):
            assert f"--{target}:" in text
        assert all(re.search(rf"\b{name}\b", text) for name in (*IMPORTANCES, "obs", *NORMALISATIONS))


def test_inspect_prints_layers_groups_and_reasons(model_file):
    text = mobileprune("inspect", model_file)
    floor = mp.pruning_floor(mp.load_model(model_file))
    assert f"{floor.macs:,} MACs or {floor.params:,} parameters" in text
    assert re.search(r"^group +units +layers", text, re.MULTILINE)
    assert re.search(r"^conv2d +\d+ +conv2d", text, re.MULTILINE)
    assert "not exact" not in text
    assert re.search(r"^  model input '\w+': \w+ \(3\)$", text, re.MULTILINE)


def test_inspect_marks_what_is_not_exact_and_says_why_channels_stay(tmp_path):
    norm_and_custom().save(tmp_path / "net.keras")
    text = mobileprune("inspect", tmp_path / "net.keras")
    assert re.search(
        r"^first +16 +first +not exact: LayerNormalization 'mixes' reads all channels at once", text, re.MULTILINE
    )
    assert "fine-tune or compensate" in text
    assert re.search(r"^  CumSum|^  Cumsum", text, re.MULTILINE)
    assert re.search(r"has no channel rule: .*second \(24\)", text)


def test_inspect_of_a_model_that_keeps_all_channels_says_so(tmp_path):
    keras.Sequential([keras.Input((4,)), layers.Dense(3, name="only")]).save(tmp_path / "net.keras")
    text = mobileprune("inspect", tmp_path / "net.keras")
    assert "No channels can be pruned." in text
    assert "model output 'only': only (3)" in text


def test_nested_models_appear_with_their_paths_and_are_pruned(tmp_path):
    model = randomise(nested_twins())
    model.save(tmp_path / "twins.keras")
    text = mobileprune("inspect", tmp_path / "twins.keras")
    for path in ("left/conv", "right/conv"):
        assert re.search(rf"^{path} +Conv2D +16 ", text, re.MULTILINE)
    mobileprune("prune", tmp_path / "twins.keras", "--macs=0.6", f"--out={tmp_path / 'small.keras'}")
    smaller = keras.models.load_model(tmp_path / "small.keras")
    assert [layer.name for layer in smaller.layers] == [layer.name for layer in model.layers]
    assert mp.model_facts(smaller).macs <= 0.6 * mp.model_facts(model).macs


def test_a_wrapped_model_is_inspected_and_pruned_without_its_wrappers(tmp_path):
    model = ARCHITECTURES["inverted_residual"]()
    mp.prune_low_magnitude(model, mp.ConstantSparsity(0.5, 0)).save(tmp_path / "wrapped.keras")
    assert "no channel rule" not in mobileprune("inspect", tmp_path / "wrapped.keras")
    mobileprune("prune", tmp_path / "wrapped.keras", "--round_to=4", f"--out={tmp_path / 'small.keras'}")
    smaller = keras.models.load_model(tmp_path / "small.keras")
    assert mp.model_facts(smaller).macs <= 0.5 * mp.model_facts(model).macs


def test_a_subclassed_model_is_refused_with_what_to_do(tmp_path):
    @keras.saving.register_keras_serializable("test_cli")
    class Own(keras.Model):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.first, self.head = layers.Dense(8), layers.Dense(2)

        def call(self, inputs):
            return self.head(self.first(inputs))

    model = Own()
    model(np.zeros((1, 4), np.float32))
    model.save(tmp_path / "own.keras")
    for verb in (["inspect"], ["prune", f"--out={tmp_path / 'x.keras'}"]):
        assert "keras.Model(inputs, model.call(inputs))" in refused(verb[0], tmp_path / "own.keras", *verb[1:])
    # What it says works.
    inputs = keras.Input((4,))
    keras.Model(inputs, model.call(inputs)).save(tmp_path / "functional.keras")
    assert "Channels that can be pruned" in mobileprune("inspect", tmp_path / "functional.keras")


def test_prune_writes_a_model_and_a_plan_that_prunes_again(model_file, tmp_path):
    smaller, again = tmp_path / "smaller.keras", tmp_path / "again.keras"
    mobileprune("prune", model_file, "--macs=0.6", "--round_to=4", f"--out={smaller}")
    plan = json.loads((tmp_path / "smaller.plan.json").read_text())
    assert plan["macs"] <= 0.6 * plan["macs_before"]
    assert keras.models.load_model(smaller).count_params() == plan["params"]
    mobileprune("prune", model_file, f"--plan={tmp_path / 'smaller.plan.json'}", f"--out={again}")
    assert keras.models.load_model(again).count_params() == plan["params"]


def test_every_kind_of_flag_reaches_the_plan(model_file, tmp_path):
    flags = ("--params=0.8", "--round_to=1", "--max_ratio=conv2d:0.1", "--prune_only=conv2d*", "--keep=conv2d_1")
    choices = ("--importance=fpgm", "--normalise=max", "--scope=isomorphic")
    text = mobileprune("prune", model_file, *flags, *choices, f"--out={tmp_path / 'small.keras'}")
    assert "ranked by fpgm, compensation: none, no images." in text
    plan = mp.PruningPlan.load(tmp_path / "small.plan.json")
    assert (plan.importance, plan.normalise, plan.scope, plan.target) == ("fpgm", "max", "isomorphic", "params=0.8")
    assert plan.params <= 0.8 * plan.params_before
    for group in plan.groups:
        assert len(group.remove) <= (0.1 if group.group == "conv2d" else 0.9) * group.size
        assert group.group != "conv2d_1" or not group.remove


def test_with_images_channels_are_ranked_by_obs_and_fitted_by_least_squares(model_file, photos, tmp_path):
    out = tmp_path / "small.keras"
    text = mobileprune("prune", model_file, f"--images={photos}", "--round_to=4", f"--out={out}")
    assert "ranked by obs, compensation: least_squares, on 10 images." in text
    plan = mp.PruningPlan.load(tmp_path / "small.plan.json")
    assert plan.importance == "obs"
    as_cut = mp.prune_channels(mp.load_model(model_file), plan)
    fitted = keras.models.load_model(out)
    assert not all(map(np.array_equal, as_cut.get_weights(), fitted.get_weights()))
    # What is said counts, images or not.
    text = mobileprune(
        *("prune", model_file, f"--images={photos}", f"--plan={tmp_path / 'small.plan.json'}", "--compensate=none"),
        f"--out={tmp_path / 'again.keras'}",
    )
    assert "compensation: none, on 10 images." in text
    again = keras.models.load_model(tmp_path / "again.keras")
    assert all(map(np.array_equal, as_cut.get_weights(), again.get_weights()))


def test_sizes_that_a_model_leaves_open_stay_open(photos, tmp_path):
    inputs = keras.Input((None, None, 3))
    x = layers.Conv2D(32, 3, strides=2, name="first")(inputs)
    x = layers.Conv2D(64, 3, name="second")(x)
    keras.Model(inputs, layers.Dense(4)(layers.GlobalAveragePooling2D()(x))).save(tmp_path / "open.keras")
    mobileprune(
        "prune", tmp_path / "open.keras", f"--images={photos}", "--image_size=32", f"--out={tmp_path / 'x.keras'}"
    )
    assert keras.models.load_model(tmp_path / "x.keras").input_shape == (None, None, None, 3)
    plan = mp.PruningPlan.load(tmp_path / "x.plan.json")
    assert plan.macs_before == 15 * 15 * 27 * 32 + 13 * 13 * 9 * 32 * 64 + 64 * 4


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--macs=0.5", "--ratio=0.2"], "Give one target: --macs or --ratio, not both"),
        (["--importance=obs"], "--importance=obs looks at images. Add --images=FOLDER."),
        (["--compensate=least_squares"], "--compensate=least_squares looks at images. Add --images=FOLDER."),
        (["--images=/nowhere"], "/nowhere is missing"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_flags_that_cannot_be_meant_are_refused(model_file, tmp_path, flags, said):
    assert said in refused("prune", model_file, *flags, f"--out={tmp_path / 'x.keras'}")
    assert not list(tmp_path.iterdir())


def test_convert_inspect_and_benchmark_files(model_file, tmp_path):
    mobileprune("convert", model_file, "--recipes=float32,dynamic_int8", f"--out={tmp_path}")
    files = sorted(tmp_path.glob("*.tflite"))
    assert [file.name for file in files] == ["net_dynamic_int8.tflite", "net_float32.tflite"]
    assert "DEPTHWISE_CONV_2D" in mobileprune("inspect", files[1])
    text = mobileprune("benchmark", *files, "--rounds=5")
    assert "net_float32.tflite" in text
    assert "not a phone's" in text


def test_bad_input_is_one_line_and_exit_code_2(tmp_path):
    broken = tmp_path / "broken.tflite"
    broken.write_bytes(b"no flatbuffer")
    empty = tmp_path / "empty.keras"
    empty.write_bytes(b"")
    for arguments in (
        ("frobnicate",),
        ("inspect",),
        ("inspect", tmp_path / "missing.keras"),
        ("inspect", broken),
        ("inspect", empty),
        ("benchmark",),
        ("report", tmp_path),
    ):
        refused(*arguments)


def test_a_target_that_leaves_nothing_says_the_floor(model_file, tmp_path):
    error = mobileprune("prune", model_file, "--macs=0.001", f"--out={tmp_path / 'x.keras'}", expected=2)
    assert "cannot go below" in error
    assert not list(tmp_path.iterdir())


def test_short_names_are_fit_for_files():
    assert models.short_name("some/My Net.keras") == "my_net"


def test_inspect_says_whether_sparse_kernels_run(tmp_path):
    model = with_zeros(network())
    model.save(tmp_path / "m.keras")
    (sparse,) = mp.convert(model, ["float32_sparse"])
    sparse.save(tmp_path / "m.tflite")
    said = mobileprune("inspect", tmp_path / "m.keras").replace("\n", " ")
    assert "Sparse inference on ARM: no. 2 of 2 1x1 convolutions" in said
    said = mobileprune("inspect", tmp_path / "m.tflite").replace("\n", " ")
    assert "Sparse inference on ARM: yes, 2 of 2 1x1 convolutions" in said
    inputs = keras.Input((None, None, 3))
    keras.Model(inputs, layers.Conv2D(4, 1)(inputs)).save(tmp_path / "open.keras")
    said = mobileprune("inspect", tmp_path / "open.keras").replace("\n", " ")
    assert "Sparse inference on ARM: not known. Input" in said
