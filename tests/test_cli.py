"""The console command, run as a person would."""

import json
import subprocess
import sys

import keras
import pytest
from architectures import ARCHITECTURES, randomise

from mobileprune import models
from mobileprune.cli import VERBS


def mobileprune(*arguments, expected=0):
    command = [sys.executable, "-m", "mobileprune.cli", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == expected, done.stderr
    return done.stdout if expected == 0 else done.stderr


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "net.keras"
    randomise(ARCHITECTURES["inverted_residual"]()).save(path)
    return path


def test_help_names_every_verb():
    text = mobileprune("--help")
    for verb in VERBS:
        assert f"mobileprune {verb}" in text


def test_help_of_a_verb_lists_its_flags():
    done = subprocess.run(
        [sys.executable, "-m", "mobileprune.cli", "prune", "--help"], capture_output=True, text=True, timeout=60
    )
    assert "--macs" in done.stdout


def test_inspect_prints_layers_groups_and_reasons(model_file):
    text = mobileprune("inspect", model_file)
    assert "MACs" in text
    assert "group conv2d" in text
    assert "stays whole, model input" in text


def test_prune_writes_a_model_and_a_plan_that_prunes_again(model_file, tmp_path):
    smaller, again = tmp_path / "smaller.keras", tmp_path / "again.keras"
    mobileprune("prune", model_file, "--macs=0.6", "--round_to=4", f"--out={smaller}")
    plan = json.loads((tmp_path / "smaller.plan.json").read_text())
    assert plan["macs"] <= 0.6 * plan["macs_before"]
    assert keras.models.load_model(smaller).count_params() == plan["params"]
    mobileprune("prune", model_file, f"--plan={tmp_path / 'smaller.plan.json'}", f"--out={again}")
    assert keras.models.load_model(again).count_params() == plan["params"]


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
        error = mobileprune(*arguments, expected=2)
        assert error.startswith("error: "), error
        assert len(error.strip().splitlines()) == 1, error


def test_a_target_that_leaves_nothing_says_the_floor(model_file, tmp_path):
    error = mobileprune("prune", model_file, "--macs=0.001", f"--out={tmp_path / 'x.keras'}", expected=2)
    assert "cannot go below" in error
    assert not list(tmp_path.iterdir())


def test_short_names_are_fit_for_files():
    assert models.short_name("some/My Net.keras") == "my_net"
