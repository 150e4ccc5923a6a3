import os
import signal
import subprocess
import sys
import tempfile
import threading
import time

import keras
import numpy as np
import pytest
from tiny_models import CLASSES, SIZE, images, reference, shared_convnet, variants

from mobileprune.calibration import calibrate
from mobileprune.convert import to_float_flatbuffer
from mobileprune.errors import InterpreterError
from mobileprune.recipes import quantize
from mobileprune.tflite_graph import read_graph
from mobileprune.tflite_runner import CHUNK, TfliteRunner


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """Where temporary files go; empty again at the end."""
    variants()  # the converter leaves files behind
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    yield tmp_path
    assert list(tmp_path.iterdir()) == []


def gone(pid: int) -> bool:
    """Neither running nor a zombie."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.mark.parametrize("count", [1, CHUNK, CHUNK + 1])
def test_outputs_are_those_of_the_model(temporary, count):
    with TfliteRunner(variants()["float32"].content) as runner:
        outputs = runner.run(images(256, seed=7)[:count])
        pid = runner.pid
    assert outputs.dtype == np.float32
    assert outputs.shape == (count, CLASSES)
    np.testing.assert_allclose(outputs, reference()[:count], atol=1e-4)
    assert gone(pid)


def test_an_integer_file_is_fed_and_read_in_its_own_scale(tmp_path):
    path = variants()["int8"].save(tmp_path / "a.tflite")
    with TfliteRunner(path, threads=2) as runner:
        outputs = runner.run(images(256, seed=7))
        facts = runner.facts
    assert facts.inputs[0].dtype == facts.outputs[0].dtype == "int8"
    assert facts.inputs[0].shape == (1, SIZE, SIZE, 3)
    steps = outputs / facts.outputs[0].scale
    np.testing.assert_allclose(steps, np.rint(steps), atol=1e-3)
    assert np.std(outputs - reference()) < 0.1 * np.std(reference())


def test_a_fixed_batch_is_filled():

    content = to_float_flatbuffer(shared_convnet(), batch=4)
    with TfliteRunner(content) as runner:
        outputs = runner.run(images(256, seed=7)[:7])
    np.testing.assert_allclose(outputs, reference()[:7], atol=1e-4)


def test_facts_and_times():
    with TfliteRunner(variants()["float32"].content) as runner:
        assert runner.facts.first_ms is None
        times = runner.time(images(1)[0], runs=5)
        facts = runner.facts
    assert times.shape == (5,)
    assert (times > 0).all()
    assert facts.runtime.startswith("LiteRT 2")
    assert facts.accelerator == "XNNPACK"
    assert facts.init_ms > 0
    assert facts.first_ms > 0
    assert 0 < facts.peak_memory_bytes < 200e6


def test_a_child_takes_one_file_after_another():
    with TfliteRunner(variants()["float32"].content, name="a.tflite") as runner:
        pid = runner.pid
        runner.load(variants()["int8"].content, name="b.tflite")
        assert runner.facts.inputs[0].dtype == "int8"
        with pytest.raises(InterpreterError, match=r"^c\.tflite: "):
            runner.load(b"rubbish", name="c.tflite")
        with pytest.raises(InterpreterError, match="no file is loaded"):  # nor is the one before it
            runner.run(images(1))
        runner.load(variants()["float32"].content)
        assert runner.pid == pid
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(InterpreterError, match="SIGKILL"):
            runner.load(variants()["int8"].content)
        runner.load(variants()["int8"].content)  # in another child
        assert runner.pid not in (None, pid)
        assert len(runner.run(images(1))) == 1


def test_what_was_said_of_one_file_is_not_said_of_the_next():
    wrong = np.zeros((1, SIZE, SIZE, 1), np.float32)
    with TfliteRunner(variants()["float32"].content) as runner:
        runner._stderr.write(b"boom\n")  # the child writes to the same file
        runner._stderr.flush()
        with pytest.raises(InterpreterError, match=r"It said: boom$"):
            runner.run(wrong)
        runner.load(variants()["int8"].content)
        with pytest.raises(InterpreterError, match=r"have shape \(1, 16, 16, 1\)$"):
            runner.run(wrong)


def test_a_file_without_outputs_is_told_so():
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(variants()["float32"].content, 0))
    model.subgraphs[0].outputs, model.signatureDefs = [], []
    builder = flatbuffers.Builder()
    builder.Finish(model.Pack(builder), b"TFL3")
    with TfliteRunner(bytes(builder.Output())) as runner, pytest.raises(InterpreterError, match="has no outputs"):
        runner.run(images(1))


def test_several_outputs_need_run_all():
    inputs = keras.Input((4, 4, 1))
    model = keras.Model(inputs, [keras.layers.Flatten()(inputs), inputs * 2.0])
    batch = np.arange(48, dtype=np.float32).reshape(3, 4, 4, 1)
    with TfliteRunner(to_float_flatbuffer(model), name="two.tflite") as runner:
        outputs = {output.shape: output for output in runner.run_all(batch)}
        with pytest.raises(InterpreterError, match=r"two.tflite has 2 outputs"):
            runner.run(batch)
    np.testing.assert_array_equal(outputs[3, 16], batch.reshape(3, 16))
    np.testing.assert_array_equal(outputs[3, 4, 4, 1], batch * 2)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (np.zeros((2, SIZE, SIZE, 3), np.uint8), "uint8, not float32"),
        (np.zeros((0, SIZE, SIZE, 3), np.float32), "no images"),
        (np.zeros((2, SIZE, SIZE, 1), np.float32), r"takes input of shape \(1, 16, 16, 3\)"),
        (np.full((2, SIZE, SIZE, 3), np.nan, np.float32), "image 0 holds NaN"),
        (np.zeros((2, SIZE, SIZE, 3), np.int32), "takes float32 values, and ids .int32. are given"),
    ],
)
def test_wrong_images_are_refused_and_the_worker_goes_on(wrong, message):
    with TfliteRunner(variants()["float32"].content, name="a.tflite") as runner:
        with pytest.raises(InterpreterError, match=f"a.tflite.*{message}"):
            runner.run(wrong)
        assert len(runner.run(images(1))) == 1


def test_ids_go_in_as_they_are():
    words = keras.Input((4,), dtype="int32")
    table = keras.layers.Embedding(7, 3)
    content = to_float_flatbuffer(keras.Model(words, table(words)))
    ids = np.arange(12, dtype=np.int64).reshape(3, 4) % 7
    with TfliteRunner(content, name="ids.tflite") as runner:
        for dtype in (np.int32, np.int64):
            np.testing.assert_array_equal(runner.run_all(ids.astype(dtype))[0], table.embeddings.numpy()[ids])
        assert runner.time(ids[0].astype(np.int32), 3).shape == runner.time(ids[:1], 3).shape == (3,)
        with pytest.raises(InterpreterError, match="does not hold every id"):
            runner.run(ids + 2**31)
        with pytest.raises(InterpreterError, match="one positive scale is needed"):
            runner.run(ids.astype(np.float32))


@pytest.mark.parametrize("content", [b"", b"rubbish", b"\x1c\0\0\0TFL3" + bytes(200)])
def test_rubbish_in_place_of_a_file(temporary, content):
    with pytest.raises(InterpreterError, match=r"x\.tflite"), TfliteRunner(content, name="x.tflite"):
        pass


def test_a_truncated_file_and_a_missing_one(temporary):
    content = variants()["float32"].content
    with pytest.raises(InterpreterError), TfliteRunner(content[: len(content) // 2]):
        pass
    with pytest.raises(InterpreterError, match="is not a file"), TfliteRunner(temporary / "none.tflite"):
        pass


def test_a_file_that_crashes_the_runtime_is_an_error(temporary):
    """Ranges of NaN make a file that XNNPACK does not survive."""
    content = variants()["float32"].content
    ranges = calibrate(content, images(8))
    for name in [name for name in ranges if name.startswith(("stem:", "depthwise:"))]:
        ranges[name] = {"min": np.array([np.nan]), "max": np.array([np.nan])}
    broken = quantize(content, "int8", ranges)
    with pytest.raises(InterpreterError, match=r"nan\.tflite"), TfliteRunner(broken, name="nan.tflite") as runner:
        runner.run(images(1))


def test_a_killed_worker_is_an_error_that_names_the_signal(temporary):
    with TfliteRunner(variants()["float32"].content, name="a.tflite") as runner:
        pid = runner.pid
        killer = threading.Timer(0.3, os.kill, (pid, signal.SIGKILL))
        killer.start()
        with pytest.raises(InterpreterError, match=r"a\.tflite crashed its interpreter with SIGKILL"):
            runner.time(images(1), runs=50_000_000)
        killer.join()
        assert gone(pid)
        with pytest.raises(InterpreterError, match="not loaded"):
            runner.run(images(1))


def test_a_hung_worker_is_stopped(temporary):
    with TfliteRunner(variants()["float32"].content, timeout_s=2, name="a.tflite") as runner:
        pid = runner.pid
        os.kill(pid, signal.SIGSTOP)
        begin = time.monotonic()
        with pytest.raises(InterpreterError, match=r"a\.tflite did not answer 'run' within 2 s"):
            runner.run(images(256))
    assert time.monotonic() - begin < 30
    assert gone(pid)


def test_rubbish_from_the_worker_is_an_error_with_what_it_said(temporary, monkeypatch):
    code = "import sys; sys.stderr.write('INFO: Created TensorFlow Lite XNNPACK delegate\\nboom\\n'); print('hello')"
    popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda _, **options: popen([sys.executable, "-c", code], **options))
    with (
        pytest.raises(InterpreterError, match=r"x\.tflite .*It said: boom$"),
        TfliteRunner(variants()["float32"].content, name="x.tflite"),
    ):
        pass


def test_the_working_directory_cannot_shadow_modules(tmp_path, monkeypatch):
    (tmp_path / "numpy.py").write_text("raise SystemExit(3)")
    monkeypatch.chdir(tmp_path)
    with TfliteRunner(variants()["float32"].content) as runner:
        assert len(runner.run(images(1))) == 1


@pytest.mark.parametrize("recipe", ["float32", "int8"])
def test_inner_tensors_can_be_read(recipe):
    graph, image = read_graph(variants()[recipe].content), images(1, seed=3)
    chosen = [graph.ops[0].outputs[0], graph.outputs[0].index]
    with TfliteRunner(variants()[recipe].content, keep_tensors=True) as runner:
        inner, output = runner.tensors(image, chosen)
        facts = runner.facts
        np.testing.assert_array_equal(runner.run(image), output)
    assert facts.accelerator == "none"
    assert inner.shape == graph.tensors[chosen[0]].shape
    stem = keras.Model(shared_convnet().inputs, shared_convnet().layers[3].output)(image).numpy()
    assert np.std(inner - stem) < 0.02 * np.std(stem)


def test_tensors_that_are_not_kept_or_not_there_are_errors():
    image = images(1)
    with TfliteRunner(variants()["float32"].content) as runner, pytest.raises(InterpreterError, match="if they are"):
        runner.tensors(image, [0])
    keeping = TfliteRunner(variants()["float32"].content, keep_tensors=True)
    with keeping as runner, pytest.raises(InterpreterError, match="tensor 4000 cannot be read"):
        runner.tensors(image, [4000])
