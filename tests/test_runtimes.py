import subprocess
import sys

import numpy as np
import pytest
from tiny_models import images, reference, variants

from mobileprune.errors import InterpreterError, SettingsError
from mobileprune.runtimes import INTERPRETERS, find_interpreter, interpreter_missing
from mobileprune.tflite_runner import TfliteRunner

OLD = "tflite_2.16.1"
MISSING = interpreter_missing(OLD)
needs_old = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))
EVERY = [pytest.param(name, marks=needs_old if name == OLD else ()) for name in INTERPRETERS]


@pytest.mark.parametrize("runtime", EVERY)
@pytest.mark.parametrize("recipe", ["float32", "int8"])
def test_every_runtime_answers_as_the_model_does_and_says_what_it_is(runtime, recipe):
    with TfliteRunner(variants()[recipe].content, runtime=runtime) as runner:
        outputs = runner.run(images(256, seed=7)[:40])
        facts = runner.facts
        assert (runner.time(images(1), 3) > 0).all()
    assert np.std(outputs - reference()[:40]) < (1e-5 if recipe == "float32" else 0.1) * np.std(reference())
    assert facts.runtime == find_interpreter(runtime).title
    assert facts.accelerator == ("none" if runtime == "litert_reference" else "XNNPACK")
    assert facts.peak_memory_bytes > 0


def test_runtimes_have_titles_of_their_own():
    titles = [find_interpreter(name).title for name in INTERPRETERS]
    assert titles[0].startswith("LiteRT 2")
    assert titles[1:] == [f"{titles[0]} without XNNPACK", "TensorFlow Lite 2.16.1"]


def test_an_unknown_runtime_is_refused_with_the_known_ones():
    for use in (find_interpreter, interpreter_missing, lambda name: TfliteRunner(b"", runtime=name)):
        with pytest.raises(
            SettingsError, match=r"no runtime 'tflite_1\.0' .*known: litert, litert_reference, tflite_2"
        ):
            use("tflite_1.0")


def test_a_runtime_that_is_not_set_up_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("MOBILEPRUNE_RUNTIMES", str(tmp_path))
    assert interpreter_missing("litert") is None
    with pytest.raises(SettingsError, match=r"TensorFlow Lite 2\.16\.1 (is not set up|cannot run)"):
        TfliteRunner(variants()["float32"].content, runtime=OLD)


@needs_old
def test_the_old_interpreter_brings_neither_tensorflow_nor_another_numpy_to_this_process():
    code = (
        "import sys, mobileprune.tflite_worker, tflite_runtime.interpreter, numpy;"
        "print(numpy.__version__, [name for name in ('tensorflow', 'keras', 'ai_edge_litert') if name in sys.modules])"
    )
    environment = {"PYTHONPATH": f"{find_interpreter(OLD).path}:{':'.join(filter(None, sys.path))}"}
    said = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, env=environment)
    assert said.stdout.strip() == "1.26.4 []", said.stderr
    assert int(np.__version__.split(".")[0]) >= 2


@needs_old
def test_an_op_of_a_newer_version_is_refused_by_the_old_interpreter_only():
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(variants()["float32"].content, 0))
    dense = next(code for code in model.operatorCodes if code.builtinCode == schema.BuiltinOperator.FULLY_CONNECTED)
    dense.version = 12
    builder = flatbuffers.Builder()
    builder.Finish(model.Pack(builder), b"TFL3")
    newer = bytes(builder.Output())
    with TfliteRunner(newer) as runner:
        assert len(runner.run(images(2))) == 2
    with (
        pytest.raises(InterpreterError, match=r"new\.tflite.*FULLY_CONNECTED"),
        TfliteRunner(newer, name="new.tflite", runtime=OLD),
    ):
        pass
