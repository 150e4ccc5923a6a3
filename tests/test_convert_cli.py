"""`mobileprune convert`, run as a person would."""

import json
import subprocess
import sys

import pytest
from photo_models import NAMES, photo_net, photos

from mobileprune.metadata import read_metadata
from mobileprune.min_runtime import minimum_runtime
from mobileprune.tflite_graph import read_graph


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("convert")
    photo_net().save(path / "net.keras")
    (path / "labels.txt").write_text("\n".join(NAMES))
    rules = {"default": "int8", "io": "float32", "rules": [{"op": "FULLY_CONNECTED", "precision": "float32"}]}
    (path / "mix.json").write_text(json.dumps(rules))
    return path


def convert(folder, *flags, expected=0):
    command = [sys.executable, "-m", "mobileprune.cli", "convert", folder / "net.keras", *flags]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300)
    assert done.returncode == expected, done.stdout + done.stderr
    return done


def test_files_say_what_they_are_and_passed_on_the_runtimes_asked_for(folder, tmp_path):
    done = convert(
        folder,
        f"--recipes=uint8_io,{folder / 'mix.json'}",
        f"--images={photos()[0][0].parent.parent}",
        f"--labels={folder / 'labels.txt'}",
        "--license=MIT",
        "--runtimes=litert_reference",
        f"--out={tmp_path}",
    )
    assert done.stdout.count("on LiteRT ") == 2
    assert done.stdout.count(", litert_reference\n") == 2
    made = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert sorted(made) == ["net_mix.tflite", "net_uint8_io.tflite"]
    for content in made.values():
        metadata = read_metadata(content)
        assert (metadata.license, metadata.labels) == ("MIT", NAMES)
    assert read_graph(made["net_uint8_io.tflite"]).inputs[0].dtype == "UINT8"
    shown = subprocess.run(
        [sys.executable, "-m", "mobileprune.cli", "inspect", tmp_path / "net_uint8_io.tflite"],
        capture_output=True,
        text=True,
        timeout=120,
    ).stdout
    assert f"Oldest TensorFlow Lite that has all its ops: {minimum_runtime(made['net_uint8_io.tflite'])}" in shown
    assert "license: MIT" in shown


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--recipes=int2",), "There is no recipe 'int2'. Known: float32"),
        (("--runtimes=litert_reference",), "--runtimes verifies on images"),
        (("--runtimes=tflite_1.0", "--images=photos"), "There is no runtime 'tflite_1.0'"),
        (("--recipes=int8",), "needs calibration data"),
    ],
)
def test_bad_input_is_one_line(folder, tmp_path, flags, said):
    done = convert(folder, *flags, f"--out={tmp_path}", expected=2)
    assert done.stderr.startswith("error: ")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
