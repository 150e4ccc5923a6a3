"""The label-free pipeline on a real folder of photographs."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import keras
import pytest
from photos import make_photo_folder

from mobileprune import models
from mobileprune.metadata import read_metadata
from mobileprune.records import Preprocess
from mobileprune.train import recalibrate

PIPELINE = Path(__file__).resolve().parents[2] / "pipelines" / "compress_mobile.py"


def compress(*arguments):
    command = [sys.executable, PIPELINE, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compress")
    photos = make_photo_folder(folder / "photos", per_class=8, size=96)
    (photos / "broken.jpg").write_bytes(b"\xff\xd8\xff not a photograph")
    contract = Preprocess(32, 32)
    model = models.build_model("mobilenet_small", contract, classes=4)
    from mobileprune.data import load_images

    images = load_images(str(photos), contract, ("a", "b", "c", "d")).calibration.images()
    path = folder / "net.keras"
    recalibrate(model, images).save(path)
    out = folder / "out"
    (folder / "labels.txt").write_text("cat\ndog\nbird\nfish\n")
    arguments = (
        f"--model={path}",
        f"--images={photos}",
        f"--out_dir={out}",
        f"--labels={folder / 'labels.txt'}",
        "--recipes=float32,int8,float32_sparse",
        "--sparsity=0.7",
    )
    return arguments, out, compress(*arguments, "--benchmark_rounds=5")


def test_an_unlabelled_run_ships_verified_files_with_their_agreement(job):
    _, out, done = job
    assert done.returncode == 0, done.stderr
    manifest = json.loads((out / "manifest.json").read_text())
    by_name = {(entry["model"], entry["recipe"]): entry for entry in manifest["variants"]}
    assert by_name["base", "float32"]["agreement"] == 1.0
    assert ("c50", "float32") in by_name
    assert by_name["c50", "float32"]["macs"] <= 0.5 * by_name["base", "float32"]["macs"]
    assert by_name["c50", "float32"]["agreement"] > 0.5
    assert by_name["s70", "float32_sparse"]["agreement"] > 0.5
    assert by_name["s70", "float32_sparse"]["bytes"] < 0.7 * by_name["s70", "float32"]["bytes"]
    for entry in manifest["variants"]:
        content = (out / entry["file"]).read_bytes()
        assert hashlib.sha256(content).hexdigest() == entry["sha256"]
        assert entry["accuracy"] is None
        assert entry["latency"]


def test_unreadable_images_are_named(job):
    _, out, done = job
    assert "Skipped 1 images" in done.stdout
    assert "broken.jpg" in (out / "report.md").read_text()


def test_a_second_run_does_nothing_again(job):
    arguments, _, _ = job
    done = compress(*arguments, "--benchmark_rounds=5")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("finished before") == 8


def test_what_was_lost_of_the_report_is_made_again(job):
    arguments, out, _ = job
    lost = [out / name for name in ("manifest.json", "report.md")]
    for path in lost:
        path.unlink()
    done = compress(*arguments, "--benchmark_rounds=5")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("finished before") == 7
    assert all(path.exists() for path in lost)


def test_other_labels_are_other_files(job):
    arguments, out, _ = job
    (out.parent / "labels.txt").write_text("apple\npear\nplum\nfig\n")
    done = compress(*arguments, "--benchmark_rounds=1")
    assert done.returncode == 0, done.stderr
    labels = ["apple", "pear", "plum", "fig"]
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["labels"] == labels
    assert read_metadata((out / manifest["variants"][0]["file"]).read_bytes()).labels == tuple(labels)


def test_a_model_of_several_inputs_is_refused_in_one_line(job, tmp_path):
    left, right = keras.Input((8, 8, 3)), keras.Input((8, 8, 3))
    model = keras.Model([left, right], keras.layers.Flatten()(keras.layers.Add()([left, right])))
    model.save(tmp_path / "two.keras")
    arguments, _, _ = job
    done = compress(f"--model={tmp_path / 'two.keras'}", arguments[1], f"--out_dir={tmp_path / 'out'}")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()
