"""`mobileprune verify`, run as a person would."""

import json
import subprocess
import sys

import pytest
from photo_models import CONTRACT, NAMES, broken_variant, photo_net, photo_variants, photos

from mobileprune.errors import SettingsError
from mobileprune.tflite_graph import read_graph
from mobileprune.verify_cli import _recipe_in


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The model, good and bad files of it, and its labels."""
    path = tmp_path_factory.mktemp("verify")
    photo_net().save(path / "net.keras")
    for recipe in ("float32", "int8"):
        photo_variants()[recipe].save(path / f"net_{recipe}.tflite")
    broken_variant("float32", -1, lambda kernel: kernel[::-1]).save(path / "wrong_float32.tflite")
    (path / "cut_int8.tflite").write_bytes(photo_variants()["int8"].content[:4000])
    (path / "labels.txt").write_text("\n".join(NAMES))
    (path / "four.txt").write_text("\n".join(NAMES[:4]))
    return path


def images():
    return photos()[0][0].parent.parent


def verify(folder, model, file, *flags, expected=0):
    # Without flags of its own the contract is the model's default: crop, mean and std 127.5, as in `CONTRACT`.
    assert (CONTRACT.fit, CONTRACT.mean, CONTRACT.std) == ("crop", (127.5,), (127.5,))
    command = [sys.executable, "-m", "mobileprune.cli", "verify", folder / model, folder / file]
    command += [f"--images={images()}", *flags]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300)
    assert done.returncode == expected, done.stdout + done.stderr
    return done.stderr if expected == 2 else done.stdout


def test_a_good_file_passes_with_all_figures(folder, tmp_path):
    text = verify(
        folder, "net.keras", "net_int8.tflite", f"--labels={folder / 'labels.txt'}", "--per_layer", f"--out={tmp_path}"
    )
    assert "The file passed." in text
    assert "Accuracy " in text
    assert "Worst class: " in text
    assert "The first loss of" in text or "No op loses" in text
    assert "in float32 raises the outputs from" in text
    for line in ("input", "stem", "depthwise", "project", "head"):
        assert line in text
    written = json.loads((tmp_path / "verification.json").read_text())
    assert written["recipe"] == "int8"
    assert written["failures"] == []
    assert written["report"]["classes"]["images"] == 100
    assert len(written["layers"]["layers"]) == 1 + len(read_graph(photo_variants()["int8"].content).ops)
    assert (tmp_path / "layers.svg").read_text().startswith("<svg")


@pytest.mark.parametrize(
    ("file", "reason"),
    [("wrong_float32.tflite", "with a clear class"), ("cut_int8.tflite", "failed: cut_int8.tflite")],
)
def test_a_file_that_fails_is_exit_code_3(folder, file, reason):
    text = verify(folder, "net.keras", file, expected=3)
    assert reason in text
    assert "The file failed." in text


@pytest.mark.parametrize(
    ("model", "file", "flag", "reason"),
    [
        ("net.keras", "missing_int8.tflite", "--threads=1", "Cannot read"),
        ("net.keras", "net.keras", "--threads=1", "Name a .keras or .h5 file and a .tflite"),
        ("net.keras", "net_int8.tflite", "--labels={folder}/four.txt", "names 4 classes; the model has 5 outputs"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(folder, model, file, flag, reason):
    error = verify(folder, model, file, flag.format(folder=folder), expected=2)
    assert reason in error
    assert len(error.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("stem", "recipe"), [("net_base_int8", "int8"), ("net_int8_float_io", "int8_float_io"), ("float16", "float16")]
)
def test_the_recipe_is_in_the_name(stem, recipe):
    assert _recipe_in(stem) == recipe


def test_a_name_without_a_recipe_is_an_error_that_lists_them():
    with pytest.raises(SettingsError, match="ends in none; give --recipe=, one of float32, float16"):
        _recipe_in("model")
