import contextlib
import hashlib
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from importlib import resources

import jsonschema
import keras
import numpy as np
import pytest
from photos import make_photo_folder
from PIL import Image
from smoke_run import ROOT, SMOKE, classify, command, finished_smoke_run, smoke_flags

import mobileprune
from mobileprune.manifest import read_manifest
from mobileprune.sparse_path import sparse_path

SCHEMA = json.loads(resources.files(mobileprune).joinpath("manifest.schema.json").read_text(encoding="utf-8"))
MODELS = ("base", "s80", "c50", "c50_s80")
STAGES = (*MODELS, "convert", "verify", "evaluate", "benchmark", "report")
# The smallest run in which every stage still has something to do.
TINY = (
    *("--preset=smoke", "--limit_images=160", "--batch_size=16", "--recipes=float32,int8", "--verify_images=32"),
    *("--train_epochs=5", "--finetune_epochs=2", "--round_to=4"),
)


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    return finished_smoke_run(tmp_path_factory)


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory):
    """A network that trains in milliseconds."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((32, 32, 1), name="image")
    x = keras.layers.Conv2D(16, 3, strides=4, activation="relu", name="first")(inputs)
    x = keras.layers.Conv2D(32, 3, strides=2, activation="relu", name="second")(x)
    x = keras.layers.Dropout(0.1)(keras.layers.GlobalAveragePooling2D()(x))
    model = keras.Model(inputs, keras.layers.Dense(10, name="head")(x), name="tiny")
    path = tmp_path_factory.mktemp("model") / "tiny.keras"
    model.save(path)
    return path


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return make_photo_folder(tmp_path_factory.mktemp("data") / "photos", per_class=40)


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def shipped(folder):
    return sorted(path.name for path in folder.glob("*.tflite"))


def half_written(folder):
    """Everything that bad input must not leave behind."""
    if not folder.exists():
        return []
    return [name for name in files(folder) if re.search(r"(^|/)\.|\.tmp|^[^/]*\.tflite$|manifest|report\.", name)]


def refused(done, folder, *said):
    """One line, exit code 2, no traceback, nothing half-written."""
    assert done.returncode == 2, done.stderr + done.stdout
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    for words in said:
        assert words in done.stderr
    assert half_written(folder) == []


def mtimes(folder):
    return {path.name: path.stat().st_mtime_ns for path in (folder / "checkpoints").glob("*.done.json")}


def checked_manifest(folder):
    """The manifest, after all that must hold in every finished run."""
    data = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator(SCHEMA).validate(data)
    assert shipped(folder) == sorted(entry["file"] for entry in data["variants"])
    for entry in data["variants"]:
        content = (folder / entry["file"]).read_bytes()
        assert entry["bytes"] == len(content)
        assert entry["sha256"] == hashlib.sha256(content).hexdigest()
        assert entry["file"] not in [gone["file"] for gone in data["rejected"]]
    assert set(data["recommended"].values()) <= {entry["file"] for entry in data["variants"]}
    assert (folder / "report.md").stat().st_size > 500
    assert "</html>" in (folder / "report.html").read_text(encoding="utf-8")
    assert not [name for name in files(folder) if ".partial" in name or re.search(r"(^|/)\.", name)]
    return data


def test_a_run_writes_every_file_and_describes_it(smoke):
    folder, printed = smoke
    data = checked_manifest(folder)
    assert shipped(folder) == sorted(
        f"mobilenet_small_{model}_{r}.tflite" for model in MODELS for r in ("float32", "int8")
    )
    assert [stage["name"] for stage in data["stages"]] == list(STAGES[:-1])
    assert data["dataset"]["images"] == {"train": 512, "validation": 512, "calibration": 500, "test": 512}
    for number, stage in enumerate(STAGES, 1):
        assert re.search(rf"^stage {number} of 9 · {stage}: \d+ s", printed, re.MULTILINE)
    for entry in data["variants"]:
        assert entry["file"] in (folder / "report.md").read_text(encoding="utf-8")
    assert str(folder / "report.html") in printed


def test_the_pruned_models_are_what_their_names_say(smoke):
    manifest = read_manifest(smoke[0])
    stages = {stage.name: stage for stage in manifest.stages}
    for model in ("c50", "c50_s80"):  # each planned from its own weights, so not to the same channels
        assert 0.49 <= stages[model].macs / stages["base"].macs <= 0.5
    assert stages["s80"].macs == stages["base"].macs
    for model in ("s80", "c50_s80"):
        assert stages[model].sparsity == pytest.approx(0.8, abs=0.002)
    base, half = manifest.variant("base", "float32"), manifest.variant("c50_s80", "int8")
    assert half.bytes < base.bytes / 6
    assert half.gzip_bytes < manifest.variant("c50", "int8").gzip_bytes


def test_the_same_command_again_trains_nothing(smoke, tmp_path):
    folder, _ = smoke
    copy = shutil.copytree(folder, tmp_path / "smoke")
    before = {name: (copy / name).read_bytes() for name in files(copy)}
    done = classify(*smoke_flags(copy))
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    for number, stage in enumerate(STAGES, 1):
        assert f"stage {number} of 9 · {stage}: finished before" in done.stdout
    assert {name: (copy / name).read_bytes() for name in files(copy)} == before


@pytest.mark.parametrize(
    ("limits", "code"),
    [
        (("--max_bytes=400000", "--max_latency_ms=1000"), 0),
        (("--max_bytes=400000", "--max_latency_ms=0.000001"), 3),
    ],
)
def test_gates_decide_the_exit_code(smoke, tmp_path, limits, code):
    # Limits are not among the settings of a run: the finished one is judged.
    copy = shutil.copytree(smoke[0], tmp_path / "smoke")
    done = classify(*smoke_flags(copy), *limits)
    assert done.returncode == code, done.stderr
    assert ("No file is within all limits." in done.stdout) is (code == 3)
    assert ("Within all limits: " in done.stdout) is (code == 0)


def test_other_settings_are_refused_and_the_run_is_kept(smoke, tmp_path):
    copy = shutil.copytree(smoke[0], tmp_path / "smoke")
    before = files(copy)
    done = classify(*smoke_flags(copy), "--sparsity=0.7")
    assert done.returncode == 2
    assert re.fullmatch(r"error: .* holds a run with sparsity=0\.8, not 0\.7\. .*--overwrite.*\n", done.stderr)
    assert files(copy) == before


def wait_for(condition, process, seconds=200):
    for _ in range(seconds * 200):
        if condition():
            return
        assert process.poll() is None, process.stderr.read().decode()
        time.sleep(0.005)
    raise AssertionError("it did not come to this")


def epoch(folder, stage):
    """How many epochs of a stage are kept; 0 before the first, None after the stage."""
    checkpoints = folder / "checkpoints"
    if (checkpoints / f"{stage}.done.json").exists():
        return None
    try:
        return int(json.loads((checkpoints / f"{stage}.partial" / "epoch.json").read_text())["epoch"])
    except FileNotFoundError:
        return 0


def kill_when(flags, condition):
    """Starts the pipeline and kills it, with SIGKILL, as soon as `condition` holds."""
    with subprocess.Popen(command(*flags), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        try:
            wait_for(condition, process)
        finally:
            process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL


def test_a_run_that_is_killed_three_times_ends_as_if_it_had_not_been(tiny_model, tmp_path):
    folder = tmp_path / "killed"
    flags = (*TINY, f"--model={tiny_model}", f"--out_dir={folder}")
    finished = {}

    def kept():
        """No finished stage was done again."""
        now = mtimes(folder)
        assert {name: now[name] for name in finished} == finished
        finished.update(now)

    # While base trains, with an epoch behind it.
    kill_when(flags, lambda: (epoch(folder, "base") or 0) >= 1)
    reached = epoch(folder, "base")
    assert 1 <= reached < 5
    kept()
    assert finished == {}

    # While s80 is fine-tuned. Meanwhile base's epochs only go up.
    seen = []

    def in_s80():
        seen.append(epoch(folder, "base"))
        return (epoch(folder, "s80") or 0) >= 1

    kill_when(flags, in_s80)
    assert seen[0] == reached
    assert all(number is None or number >= reached for number in seen)
    assert epoch(folder, "s80") == 1
    kept()
    assert set(finished) == {"base.done.json"}

    # While files are converted.
    kill_when(flags, lambda: (folder / "checkpoints" / "convert.partial").exists())
    kept()
    assert set(finished) == {f"{model}.done.json" for model in MODELS}
    assert shipped(folder) == []

    done = classify(*flags)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    kept()
    for model in MODELS:
        assert f"{model}: finished before" in done.stdout
    assert "convert: finished before" not in done.stdout
    resumed = checked_manifest(folder)

    whole = classify(*TINY, f"--model={tiny_model}", f"--out_dir={tmp_path / 'whole'}")
    assert whole.returncode == 0, whole.stderr
    uninterrupted = checked_manifest(tmp_path / "whole")
    same = ("file", "bytes", "sha256", "accuracy", "validation_accuracy", "sparsity", "macs", "params")
    for mine, theirs in zip(resumed["variants"], uninterrupted["variants"], strict=True):
        assert {name: mine[name] for name in same} == {name: theirs[name] for name in same}


def test_photographs_and_a_given_model_go_through_untrained(photos, tmp_path):
    keras.utils.set_random_seed(0)
    model = keras.applications.MobileNet((96, 96, 3), alpha=0.25, weights=None, classes=5)
    data = mobileprune.load_dataset(str(photos), mobileprune.default_preprocess(str(photos)))
    settings = mobileprune.TrainSettings(epochs=1, batch_size=20, learning_rate=2e-3)
    mobileprune.train(model, data, settings)
    # Fresh statistics are far from those of a network that has been used.
    mobileprune.recalibrate(model, data.train.images())
    path = tmp_path / "Photo Net.keras"
    model.save(path)
    broken = shutil.copytree(photos, tmp_path / "photos")
    whole = (broken / "cat" / "cat_004.jpg").read_bytes()
    (broken / "cat" / "cut_off.jpg").write_bytes(whole[: len(whole) // 2])
    folder = tmp_path / "out"
    done = classify(
        *(f"--dataset={broken}", f"--model={path}", f"--out_dir={folder}", "--preset=smoke", "--train_epochs=0"),
        *("--finetune_epochs=1", "--recipes=float32,int8", "--batch_size=20", "--benchmark_rounds=1"),
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    manifest = checked_manifest(folder)
    assert sum(manifest["dataset"]["images"].values()) == 200
    assert [entry["file"] for entry in manifest["dataset"]["skipped"]] == ["cat/cut_off.jpg"]
    assert "cat/cut_off.jpg" in (folder / "report.md").read_text(encoding="utf-8")
    assert "1 image" in done.stdout
    assert manifest["labels"] == sorted(entry.name for entry in broken.iterdir())
    assert manifest["preprocess"]["color"] == "RGB"
    assert manifest["input"]["shape"] == [1, 96, 96, 3]
    assert manifest["output"]["kind"] == "probabilities"
    assert manifest["variants"][0]["file"] == "photo_net_base_float32.tflite"
    base = keras.models.load_model(path)
    kept = keras.models.load_model(folder / "checkpoints" / "base.keras")
    images = data.test.images(4)
    np.testing.assert_allclose(kept(images), base(images), atol=1e-5)
    # Untrained, the first stage's accuracy is that of the file that was given.
    assert manifest["stages"][0]["accuracy"] == pytest.approx(mobileprune.validate(base, data))


def test_cuts_in_steps_with_a_teacher_survive_a_kill_in_the_second_one(tiny_model, tmp_path):
    def flags(folder):
        small = ("--recipes=float32", "--benchmark_rounds=1", "--prune_steps=2", "--distill=0.5")
        return (*TINY, *small, f"--model={tiny_model}", f"--out_dir={folder}")

    second = tmp_path / "killed" / "checkpoints" / "c50.partial" / "steps" / "step_2"
    kill_when(flags(tmp_path / "killed"), lambda: (second / "cut.keras").exists())
    manifests = []
    for folder in (tmp_path / "killed", tmp_path / "whole"):
        done = classify(*flags(folder))
        assert done.returncode == 0, done.stderr
        manifests.append(checked_manifest(folder))
    resumed, whole = ({each["model"]: each["sha256"] for each in manifest["variants"]} for manifest in manifests)
    assert resumed == whole
    (stage,) = (stage for stage in manifests[0]["stages"] if stage["name"] == "c50")
    assert [epoch["epoch"] for epoch in stage["curve"]] == [1, 2]
    base, c50 = (next(s for s in manifests[0]["stages"] if s["name"] == name) for name in ("base", "c50"))
    assert 0.25 * base["macs"] < c50["macs"] <= 0.5 * base["macs"]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--distill=0.5", "--sparsity_backend=tfmot"], ["--distill needs --sparsity_backend=mobileprune"]),
        (["--dataset=cifar"], ["Unknown dataset 'cifar'", "fashion_mnist, fashion_mnist_full"]),
        (["--model=mobilenet_v9"], ["Unknown model 'mobilenet_v9'", "mobilenet_small", "efficientnet_b0"]),
        (["--model=missing.keras"], ["There is no model file missing.keras"]),
        (["--macs=0.000001"], ["macs cannot go below", "Raise the target"]),
        (["--macs=0"], ["leaves no channels"]),
        (["--recipes=float32,int5"], ["There is no recipe 'int5'", "dynamic_int8"]),
        (["--importance=beauty"], ["beauty", "batch_norm_scale"]),
        (["--keep=nothing_*"], ["keep='nothing_*' matches no layer"]),
        (["--regularise=batch_norm", "--train_epochs=0"], ["--regularise=batch_norm acts while", "--train_epochs=1"]),
        (["--prune_steps=3", "--finetune_epochs=2"], ["--prune_steps=3 cuts share --finetune_epochs=2"]),
        (["--dataset=/nowhere/photos"], ["/nowhere/photos"]),
    ],
    ids=lambda value: value[0] if value[0].startswith("--") else "",
)
def test_a_bad_flag_is_refused_before_anything_is_written(tmp_path, flags, said):
    folder = tmp_path / "out"
    refused(classify("--preset=smoke", f"--out_dir={folder}", *flags), folder, *said)
    assert not folder.exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--preset=tiny"], "preset"),
        (["--no_such_flag=1"], "no_such_flag"),
        (["--seed=-1"], "seed"),
        (["--sparsity=much"], "sparsity"),
        (["photos"], "Unexpected argument 'photos'"),
    ],
    ids=lambda value: value[0],
)
def test_a_flag_that_cannot_be_read_is_refused(tmp_path, flags, said):
    folder = tmp_path / "out"
    refused(classify(f"--out_dir={folder}", *flags), folder, said)
    assert not folder.exists()


def folder_of(path, classes):
    generator = np.random.default_rng(0)
    for name, count in classes.items():
        (path / name).mkdir(parents=True)
        for number in range(count):
            pixels = generator.integers(0, 255, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(path / name / f"{number}.png")
    return path


@pytest.mark.parametrize(
    ("classes", "said"), [({}, "class"), ({"only": 8}, "class"), ({"many": 8, "none": 0}, "none")], ids=str
)
def test_a_folder_that_is_no_dataset_is_refused(tmp_path, classes, said):
    (tmp_path / "photos").mkdir()
    data = folder_of(tmp_path / "photos", classes)
    folder = tmp_path / "out"
    refused(classify("--preset=smoke", f"--dataset={data}", f"--out_dir={folder}"), folder, said)
    assert not folder.exists()


def test_a_truncated_image_is_named_and_refused_when_strict(tmp_path):
    data = folder_of(tmp_path / "photos", {"cat": 8, "dog": 8})
    image = data / "dog" / "3.png"
    image.write_bytes(image.read_bytes()[:500])
    folder = tmp_path / "out"
    done = classify("--preset=smoke", f"--dataset={data}", f"--out_dir={folder}", "--strict")
    refused(done, folder, "dog/3.png")
    assert not folder.exists()


@pytest.mark.parametrize("damage", ["cut off", "not a number"])
def test_a_damaged_model_is_refused(tiny_model, tmp_path, damage):
    path = tmp_path / "model.keras"
    if damage == "cut off":
        path.write_bytes(tiny_model.read_bytes()[:5000])
    else:
        model = keras.models.load_model(tiny_model)
        model.get_layer("second").bias.assign(np.full(32, np.nan))
        model.save(path)
    folder = tmp_path / "out"
    said = "Cannot load" if damage == "cut off" else "Weight 'second/bias' holds 32 values"
    refused(classify("--preset=smoke", f"--model={path}", f"--out_dir={folder}"), folder, said)
    assert not folder.exists()


def test_an_output_folder_that_cannot_be_written_is_refused(tiny_model, tmp_path):
    (tmp_path / "taken").write_text("mine")
    folder = tmp_path / "taken" / "out"
    done = classify(*TINY, f"--model={tiny_model}", f"--out_dir={folder}")
    refused(done, tmp_path, "Cannot write", "Choose another --out_dir")
    assert files(tmp_path) == ["taken"]
    assert (tmp_path / "taken").read_text() == "mine"


@contextlib.contextmanager
def small_disk(folder, size):
    """A file system of `size` bytes at `folder` where that may be mounted; yields whether it is."""
    folder.mkdir()
    mounted = sys.platform == "linux" and shutil.which("mount") is not None and os.geteuid() == 0
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    mounted = mounted and subprocess.run(mount, capture_output=True).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("size", [12_288, 65_536])
def test_a_full_disk_is_one_clear_error(tiny_model, tmp_path, size):
    with small_disk(tmp_path / "disk", size) as mounted:
        # Where nothing can be mounted, no file may grow beyond the size: the same error from the system's calls.
        options = {} if mounted else {"preexec_fn": lambda: _limit(size // 8)}
        folder = tmp_path / "disk" / "out"
        flags = (*TINY, f"--model={tiny_model}", f"--out_dir={folder}")
        refused(classify(*flags, **options), folder, "Cannot write", "Free some space")
        assert not [name for name in files(folder) if name.endswith("done.json") and "base" not in name]


def _limit(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def test_help_lists_the_flags():
    done = classify("--help")
    for name in ("--dataset", "--model", "--out_dir", "--macs", "--max_drop", "--[no]control"):
        assert name in done.stdout
    assert "Traceback" not in done.stderr


def test_without_finetuning_the_sparse_models_are_sparse_all_the_same(tmp_path):
    flags = ("--preset=smoke", "--limit_images=64", "--train_epochs=1", "--finetune_epochs=0", "--recipes=float32")
    classify(*flags, "--sparsity=0.7", "--macs=0.6", f"--out_dir={tmp_path}")
    # Such a network's files may not pass verification; the models are what this is about.
    stages = {
        path.stem.split(".")[0]: json.loads(path.read_text()) for path in tmp_path.glob("checkpoints/*.done.json")
    }
    assert stages["s70"]["sparsity"] == pytest.approx(0.7, abs=1e-3)
    assert stages["c60_s70"]["sparsity"] >= 0.7 - 1e-3
    assert stages["c60"]["macs"] <= 0.6 * stages["base"]["macs"]


def test_other_recipes_train_nothing_again(smoke, tmp_path):
    copy = shutil.copytree(smoke[0], tmp_path / "smoke")
    done = classify(*[flag for flag in SMOKE if "recipes" not in flag], "--recipes=float16", f"--out_dir={copy}")
    assert done.returncode == 0, done.stderr
    for stage in ("base", "s80", "c50", "c50_s80"):
        assert f"· {stage}: finished before" in done.stdout
    assert sorted(path.name for path in copy.glob("*.tflite")) == [
        f"mobilenet_small_{model}_float16.tflite" for model in ("base", "c50", "c50_s80", "s80")
    ]


def test_a_file_that_was_deleted_is_written_again(smoke, tmp_path):
    copy = shutil.copytree(smoke[0], tmp_path / "smoke")
    victim = next(copy.glob("*_int8.tflite"))
    content = victim.read_bytes()
    victim.unlink()
    done = classify(*smoke_flags(copy))
    assert done.returncode == 0, done.stderr
    assert victim.read_bytes() == content


def test_training_curves_are_written_when_asked_for(tiny_model, tmp_path):
    flags = ("--preset=smoke", "--limit_images=32", "--recipes=float32", f"--model={tiny_model}", "--tensorboard")
    classify(*flags, f"--out_dir={tmp_path / 'run'}")
    assert list((tmp_path / "run" / "tensorboard" / "base").rglob("events.out.tfevents.*"))


def test_a_fresh_head_must_be_trained(tmp_path):
    inputs = keras.Input((32, 32, 1))
    body = keras.layers.Flatten()(keras.layers.Conv2D(8, 3, strides=4)(inputs))
    keras.Model(inputs, keras.layers.Dense(7)(body)).save(tmp_path / "seven.keras")
    out = tmp_path / "run"
    done = classify("--preset=smoke", f"--model={tmp_path / 'seven.keras'}", "--train_epochs=0", f"--out_dir={out}")
    refused(done, out, "no head for the 10 classes", "--train_epochs=1")


OTHER_ZEROS = ("--preset=smoke", "--limit_images=64", "--train_epochs=1", "--finetune_epochs=1", "--benchmark_rounds=1")


@pytest.mark.parametrize(
    ("flags", "share"),
    [
        (("--sparsity_init=none",), 0.8),
        (("--sparsity_backend=tfmot",), 0.8),
        (("--sparsity_pattern=2:4",), 0.5),
    ],
)
def test_other_ways_to_zeros(tiny_model, tmp_path, flags, share):
    out, name = tmp_path / "out", f"s{100 * share:.0f}"
    done = classify(
        *OTHER_ZEROS, f"--model={tiny_model}", "--recipes=float32,float32_sparse", f"--out_dir={out}", *flags
    )
    assert done.returncode == 0, done.stderr
    manifest = json.loads((out / "manifest.json").read_text())
    zeros = {stage["name"]: stage["sparsity"] for stage in manifest["stages"] if stage.get("sparsity") is not None}
    assert zeros[name] == pytest.approx(share, abs=0.03)
    # Few channels are left, and of a group of two inputs 2:4 takes none.
    assert zeros[f"c50_{name}"] == pytest.approx(share, abs=0.1)
    named = {entry["file"] for entry in (*manifest["variants"], *manifest["rejected"])}
    assert f"tiny_{name}_float32.tflite" in named
    assert "tiny_base_float32_sparse.tflite" not in named  # it has no zeros to leave out


def test_a_network_made_ready_for_sparse_kernels(tmp_path):
    out = tmp_path / "out"
    more = ("--limit_images=512", "--train_epochs=2", "--recipes=float32,float32_sparse", f"--out_dir={out}")
    done = classify(*OTHER_ZEROS, *more, "--sparse_ready")
    assert done.returncode == 0, done.stderr
    assert "stem: " in done.stdout  # what was rewritten
    manifest = json.loads((out / "manifest.json").read_text())
    (file,) = (each for each in manifest["variants"] if (each["model"], each["recipe"]) == ("s80", "float32_sparse"))
    verdict = sparse_path((out / file["file"]).read_bytes())
    assert verdict.taken == verdict.convolutions > 10
