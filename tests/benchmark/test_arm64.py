"""The library's files on ARM64's kernels. Without `make arm64` most of this is skipped, and says so."""

import functools
import json
import os
import subprocess
import sys
import tempfile
import time

import numpy as np
import pytest
from tiny_models import SIZE, images, randomize, variants

from mobileprune.benchmark import arm64, arm64_checks, arm64_setup
from mobileprune.benchmark.arm64 import Arm64Run, arm64_missing, run_on_arm64
from mobileprune.benchmark.arm64_checks import benchmark_arm64, compare_on_arm64, difference, sparse_kernels
from mobileprune.errors import InterpreterError, SettingsError
from mobileprune.records import Latency, Variant

MISSING = arm64_missing()
needs_arm64 = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))


@functools.cache
def sparse_pair(keepdims: bool = False) -> tuple[bytes, bytes]:
    """A network that meets XNNPACK's conditions, 80% zeros in its 1×1 convs: stored dense, and stored sparse.

    With `keepdims` its head is a sparse 1×1 conv behind the pooling, which XNNPACK's sparse path cannot reshape.
    """
    import keras
    from tensorflow.lite.python.convert import mlir_sparsify

    from mobileprune.convert import to_float_flatbuffer

    layers = keras.layers
    inputs = keras.Input((SIZE, SIZE, 3))
    x = layers.Conv2D(8, 3, strides=2, activation="relu")(layers.ZeroPadding2D(1)(inputs))
    x = layers.DepthwiseConv2D(3, padding="same", activation="relu")(x)
    x = layers.Conv2D(16, 1, activation="relu", name="first")(x)
    x = layers.Conv2D(16, 1, activation="relu", name="second")(x)
    x = layers.GlobalAveragePooling2D(keepdims=keepdims)(x)
    x = layers.Flatten()(layers.Conv2D(6, 1, name="head")(x)) if keepdims else layers.Dense(6)(x)
    model = keras.Model(inputs, x)
    randomize(model)
    generator = np.random.default_rng(0)
    for name in ("first", "second", "head")[: 3 if keepdims else 2]:
        kernel = model.get_layer(name).kernel
        places = generator.permutation(int(np.prod(kernel.shape))).reshape(kernel.shape)
        kernel.assign(kernel.numpy() * (places % 5 == 0))
    dense = to_float_flatbuffer(model)
    return dense, bytes(mlir_sparsify(dense))


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """Where temporary files go; empty again at the end."""
    variants()  # the converter leaves files behind
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    yield tmp_path
    assert list(tmp_path.iterdir()) == []


@needs_arm64
def test_a_float_file_answers_what_it_answers_here(temporary):
    found = compare_on_arm64(variants()["float32"].content, images(8))
    assert (found.images, found.agreement, found.max_steps) == (8, 1.0, None)
    assert 0 <= found.max_abs_error < 1e-4


@needs_arm64
@pytest.mark.parametrize("recipe", ["int8", "float16", "dynamic_int8"])
def test_other_recipes_are_within_a_step_or_a_thousandth(recipe):
    found = compare_on_arm64(variants()[recipe].content, images(8))
    assert found.agreement == 1.0
    if recipe == "int8":
        assert found.max_steps <= 1
    else:
        assert found.max_steps is None
        assert found.max_abs_error < 1e-3


@needs_arm64
def test_what_a_run_says(temporary):
    done = run_on_arm64(variants()["int8"].content, images(3), runs=2, threads=2)
    assert [output.shape for output in done.outputs] == [(3, 6)]
    assert done.outputs[0].dtype == np.float32
    assert done.steps[0] > 0
    assert len(done.invoke_s) == len(done.cpu_s) == 3 - 1 + 2
    assert min(done.init_s, done.first_s, *done.invoke_s, *done.cpu_s) > 0
    assert done.memory_bytes > 0
    assert (done.operators, done.accelerator) == ((), None)
    assert done.runtime.startswith("LiteRT 2")
    assert done.emulated == done.device.startswith("emulated ")


@needs_arm64
def test_several_outputs_keep_the_order_that_they_have_here():
    import keras

    from mobileprune.convert import to_float_flatbuffer

    inputs = keras.Input((4, 4, 1))
    content = to_float_flatbuffer(keras.Model(inputs, [keras.layers.Flatten()(inputs), inputs * 2.0]))
    batch = np.arange(48, dtype=np.float32).reshape(3, 4, 4, 1)
    found = compare_on_arm64(content, batch)
    assert (found.agreement, found.max_abs_error) == (1.0, 0.0)


@needs_arm64
def test_a_file_of_an_open_batch_runs():
    from tiny_models import shared_convnet

    from mobileprune.convert import to_float_flatbuffer

    assert compare_on_arm64(to_float_flatbuffer(shared_convnet(), batch=None), images(2)).max_abs_error < 1e-4
    with pytest.raises(InterpreterError, match="batches of 4"):
        run_on_arm64(to_float_flatbuffer(shared_convnet(), batch=4), images(4))


@needs_arm64
def test_the_sparse_path_is_seen_where_it_is_taken_and_only_there():
    dense, sparse = sparse_pair()
    seen, unseen = sparse_kernels(sparse), sparse_kernels(dense)
    assert (seen.taken, seen.sparse, seen.pointwise) == (True, 2, 2)
    assert (unseen.taken, unseen.sparse, unseen.pointwise) == (False, 0, 2)
    assert any("NCHW" in operator.name for operator in seen.operators)
    assert all(operator.delegated for operator in seen.operators + unseen.operators)
    assert compare_on_arm64(sparse, images(4)).max_abs_error < 1e-4


@needs_arm64
def test_a_file_that_runs_here_and_fails_there_is_found_out():
    from mobileprune.tflite_runner import TfliteRunner

    _, sparse = sparse_pair(keepdims=True)
    if arm64_setup.native():
        pytest.skip("this machine's own kernels are those that fail")
    with TfliteRunner(sparse) as runner:
        assert runner.run(images(1)).shape == (1, 6)
    with pytest.raises(InterpreterError, match=r"head\.tflite does not run on ARM64.*failed to reshape"):
        run_on_arm64(sparse, images(1), name="head.tflite")


@needs_arm64
@pytest.mark.parametrize("content", [b"", b"rubbish", b"\x1c\0\0\0TFL3" + bytes(200)])
def test_rubbish_in_place_of_a_file(temporary, content):
    with pytest.raises(InterpreterError, match=r"x\.tflite"):
        run_on_arm64(content, images(1), name="x.tflite")


@needs_arm64
def test_a_damaged_file_is_refused_by_the_runtime_and_ends_nothing_here(temporary):
    """Its graph can be read, but an op takes a kernel of a wrong shape."""
    content = bytearray(variants()["float32"].content)
    shape = np.int32([16, 1, 1, 16]).tobytes()
    assert content.count(shape) == 1
    at = content.find(shape)
    content[at : at + 16] = np.int32([16, 1, 16, 1]).tobytes()
    with pytest.raises(InterpreterError, match=r"bad\.tflite (does not run|crashed) on ARM64"):
        run_on_arm64(bytes(content), images(1), name="bad.tflite")


def test_a_crash_and_a_failure_are_told_apart(tmp_path):
    with pytest.raises(InterpreterError, match=r"^x crashed on ARM64 \(Segmentation fault\)\. It said: oh no$"):
        arm64._start(["sh", "-c", "echo INFO: fine >&2; echo oh no >&2; kill -SEGV $$"], str(tmp_path), 10.0, "x")
    with pytest.raises(InterpreterError, match=r"^x does not run on ARM64\. It said: oh no$"):
        arm64._start(["sh", "-c", "echo oh no >&2; exit 3"], str(tmp_path), 10.0, "x")
    with pytest.raises(InterpreterError, match="no process could be started"):
        arm64._start([str(tmp_path / "missing")], str(tmp_path), 10.0, "x")
    arm64._start(["true"], str(tmp_path), 10.0, "x")


@needs_arm64
def test_a_file_that_takes_too_long_is_stopped(temporary):
    begin = time.monotonic()
    with pytest.raises(InterpreterError, match=r"within 0\.05 s and was stopped"):
        run_on_arm64(variants()["float32"].content, images(1), runs=10**6, timeout_s=0.05)
    assert time.monotonic() - begin < 30


@needs_arm64
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (np.zeros((2, SIZE, SIZE, 3), np.uint8), "uint8, not float32"),
        (np.zeros((0, SIZE, SIZE, 3), np.float32), "takes input of shape"),
        (np.zeros((2, SIZE, SIZE, 1), np.float32), r"takes input of shape \(1, 16, 16, 3\)"),
        (np.full((2, SIZE, SIZE, 3), np.nan, np.float32), "hold NaN"),
    ],
)
def test_wrong_images_are_refused(temporary, wrong, message):
    with pytest.raises(InterpreterError, match=message):
        run_on_arm64(variants()["float32"].content, wrong)


@needs_arm64
def test_arguments_that_cannot_be_meant():
    content = variants()["float32"].content
    for arguments in ({"threads": 0}, {"runs": -1}, {"timeout_s": 0.0}):
        with pytest.raises(SettingsError):
            run_on_arm64(content, images(1), **arguments)
    assert benchmark_arm64([]) == []
    for arguments in ({"baseline": 1}, {"rounds": 1}, {"runs": 0}):
        with pytest.raises(SettingsError):
            benchmark_arm64([variants()["float32"]], **arguments)


@needs_arm64
def test_variants_are_timed_against_each_other_and_a_broken_one_is_a_result():
    dense, sparse = (Variant("net", recipe, content) for recipe, content in zip("ab", sparse_pair(), strict=True))
    first, broken, last = benchmark_arm64([dense, Variant("broken", "int8", b"rubbish"), sparse], rounds=2, runs=1)
    assert isinstance(broken, InterpreterError)
    assert "broken_int8.tflite" in str(broken)
    assert first.ratio == 1.0
    assert 0 < last.ratio_low <= last.ratio <= last.ratio_high
    assert (last.runs, last.accelerator, last.threads) == (2, "XNNPACK", 1)
    assert last.device.startswith("arm64" if arm64_setup.native() else "emulated arm64")
    assert min(last.p50_ms, last.init_ms, last.peak_memory_bytes) > 0
    assert Latency.from_json(last.to_json()) == last


@needs_arm64
def test_the_command_line_says_that_times_are_emulated(tmp_path):
    for name, content in zip(("dense", "sparse"), sparse_pair(), strict=True):
        (tmp_path / f"{name}.tflite").write_bytes(content)
    command = [sys.executable, "-m", "mobileprune.cli", "benchmark", "dense.tflite", "sparse.tflite"]
    done = subprocess.run(
        [*command, "--device=arm64", "--rounds=2"], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "0 of 2" in done.stdout
    assert "2 of 2" in done.stdout
    assert arm64_setup.native() or "Emulated times are no phone's" in done.stdout


def answered(*outputs: np.ndarray, steps: float | None = None) -> Arm64Run:
    """A run that ended with these outputs."""
    return Arm64Run(outputs, (steps,) * len(outputs), 1.0, 1.0, (), (), None, (), "there", "LiteRT", True)


def test_a_difference_is_noticed():
    here = np.float32([[1, 2, 3], [3, 2, 1]])
    same = difference([here], answered(here.copy(), steps=0.5))
    assert (same.agreement, same.max_abs_error, same.max_steps) == (1.0, 0.0, 0.0)
    other = difference([here], answered(np.float32([[1, 2, 3], [2, 4, 1]]), steps=0.5))
    assert (other.agreement, other.max_abs_error, other.max_steps) == (0.5, 2.0, 4.0)
    assert difference([here], answered(np.float32([[1, 2, 3], [3, np.nan, 1]]))).max_abs_error == np.inf
    assert difference([here], answered(np.float32([[1, 2, np.inf], [3, 2, 1]]))).max_abs_error == np.inf
    with pytest.raises(InterpreterError, match="shapes"):
        difference([here], answered(here[:, :2]))


def test_six_turns_are_compared_and_fewer_are_rounds():
    def turns(times):
        return [Arm64Run((), (), 1.0, 1.0, (time,), (time,), 1, (), "there", "LiteRT", True) for time in times]

    one, other = turns([2.0, 2.1, 2.2, 2.3, 2.4, 2.5]), turns([1.0] * 6)
    compared = arm64_checks._latency(one, other, threads=1, seed=0, others=1)
    assert (compared.restarts, compared.confidence) == (6, 1 - 2 / 64)
    assert (compared.ratio_low, compared.ratio_high) == pytest.approx((2.0, 2.5))
    few = arm64_checks._latency(one[:3], other[:3], threads=1, seed=0, others=1)
    assert (few.restarts, few.confidence, few.ratio) == (3, 0.95, 2.1)


def test_an_output_that_differs_is_noticed_beside_one_that_does_not():
    here = np.float32([[1, 2], [3, 4]])
    assert difference([here, here], answered(here, here[:, ::-1])).agreement == 0.0


@pytest.mark.parametrize(
    "facts",
    [
        {},
        [],
        {"outputs": [{"index": 5, "type": 1, "scale": 0, "zero_point": 0, "shape": [1, 2]}]},
        {"outputs": [{"index": 0, "type": 99, "scale": 0, "zero_point": 0, "shape": [1, 2]}]},
        {"outputs": [{"index": 0, "type": 1, "scale": 0, "zero_point": 0, "shape": [1, 3]}]},
    ],
)
def test_an_answer_that_does_not_fit_is_an_error_of_the_file(facts):
    made = arm64_setup.Installation(("runner",), True, "emulated", "LiteRT")
    common = {"invocations": [[1, 1]], "init_us": 1, "heap_bytes": 1}
    whole = {**common, "outputs": [{"index": 0, "type": 1, "scale": 0, "zero_point": 0, "shape": [1, 2]}]}
    assert arm64._read(whole, bytes(8), [0], 1, made, False).outputs[0].shape == (1, 2)
    broken = {**common, **facts} if isinstance(facts, dict) else facts
    with pytest.raises((KeyError, ValueError, TypeError, IndexError)):
        arm64._read(broken, bytes(8), [0], 1, made, False)


def test_what_is_not_set_up_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setenv("MOBILEPRUNE_ARM64", str(tmp_path / "nothing"))
    reason = arm64_missing()
    assert "make arm64" in reason
    with pytest.raises(SettingsError, match="make arm64"):
        run_on_arm64(b"", images(1))
    with pytest.raises(SettingsError, match="make arm64"):
        arm64_checks.benchmark_arm64([Variant("m", "float32", b"")])


def test_missing_packages_are_named(monkeypatch, tmp_path):
    monkeypatch.setenv("MOBILEPRUNE_ARM64", str(tmp_path / "nothing"))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(arm64_setup, "native", lambda: False)
    assert "qemu-user-static" in arm64_missing()
    with pytest.raises(SettingsError, match=r"apt-get install qemu-user-static gcc-aarch64-linux-gnu"):
        arm64_setup.set_up()


def test_an_arm64_machine_needs_a_compiler_and_no_emulator(monkeypatch, tmp_path):
    monkeypatch.setattr(arm64_setup, "native", lambda: True)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("MOBILEPRUNE_ARM64", str(tmp_path))
    made = {"litert": arm64_setup._litert_version(), "source": arm64_setup._source_digest()}
    (tmp_path / "made.json").write_text(json.dumps(made))
    found = arm64_setup.installation()
    assert (found.command, found.emulated) == ((str(tmp_path / "runner"),), False)
    assert not found.device.startswith("emulated")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert arm64_setup.missing_packages() == ["gcc", "libc6-dev"]


def test_other_systems_are_told_that_it_is_linux_only(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert "Linux only; this is darwin" in arm64_missing()
    with pytest.raises(SettingsError, match="Linux only"):
        arm64_setup.set_up()


@needs_arm64
def test_what_was_made_for_another_version_is_not_used(monkeypatch):
    monkeypatch.setattr(arm64_setup, "_litert_version", lambda: "9.9.9")
    assert "Run `make arm64` again" in arm64_missing()


@needs_arm64
def test_a_folder_with_other_things_is_left_alone(monkeypatch, tmp_path):
    (tmp_path / "letter.txt").write_text("dear")
    monkeypatch.setenv("MOBILEPRUNE_ARM64", str(tmp_path))
    with pytest.raises(SettingsError, match="holds other things"):
        arm64_setup.set_up()
    assert os.listdir(tmp_path) == ["letter.txt"]


def test_hashes_come_from_the_lock_file(monkeypatch, tmp_path):
    lock = tmp_path / "requirements.lock"
    lock.write_text(
        "absl-py==1.4.0 \\\n    --hash=sha256:00\nai-edge-litert==2.0.0 \\\n    --hash=sha256:aa \\\n"
        "    --hash=sha256:bb\nattrs==1.0 \\\n    --hash=sha256:cc\n"
    )
    monkeypatch.setattr(arm64_setup, "_litert_version", lambda: "2.0.0")
    assert arm64_setup._hashes(lock) == ("sha256:aa", "sha256:bb")
    monkeypatch.setattr(arm64_setup, "_litert_version", lambda: "2.0.1")
    with pytest.raises(SettingsError, match=r"does not pin ai-edge-litert==2\.0\.1"):
        arm64_setup._hashes(lock)
