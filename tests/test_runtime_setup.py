"""Setting up the old interpreter. What is downloaded is tried in tests/test_runtimes.py, where it is there."""

import json
import platform
import re
import subprocess
import sys
import zipfile

import pytest

from mobileprune import runtime_setup
from mobileprune.errors import SettingsError

SUPPORTED = pytest.mark.skipif(runtime_setup.unsupported() is not None, reason=str(runtime_setup.unsupported()))


@pytest.fixture
def target(tmp_path, monkeypatch):
    """An empty place for runtimes, and no network."""
    monkeypatch.setenv("MOBILEPRUNE_RUNTIMES", str(tmp_path / "runtimes"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    return runtime_setup.folder()


def test_the_lock_has_versions_and_hashes_and_names_no_index():
    text = runtime_setup.LOCK.read_text()
    assert re.findall(r"^[a-z-]+==\S+", text, re.MULTILINE) == ["numpy==1.26.4", "tensorflow-cpu==2.16.1"]
    assert len(re.findall(r"--hash=sha256:[0-9a-f]{64}\b", text)) > 10
    assert not re.search(r"://|--(extra-)?index|--find-links", text)


def test_each_python_has_a_folder_of_its_own(target):
    assert target.name == f"tflite_2.16.1-cp{sys.version_info.major}{sys.version_info.minor}"


@SUPPORTED
def test_what_is_missing_is_said_with_the_way_out(target):
    assert re.search(r"not set up in .*make runtimes", runtime_setup.missing())
    target.mkdir(parents=True)
    for rubbish in ("", "[]", "{}", '{"digest": 3}'):
        (target / "made.json").write_text(rubbish)
        assert "make runtimes" in runtime_setup.missing()
    (target / "made.json").write_text(json.dumps({"digest": "of another list"}))
    assert re.search(r"made by another version.*make runtimes", runtime_setup.missing())
    (target / "made.json").write_text(json.dumps({"digest": runtime_setup._digest()}))
    assert runtime_setup.missing() is None


def test_a_python_without_packages_is_named(target, monkeypatch):
    monkeypatch.setattr(runtime_setup, "PYTHONS", ((3, 9), (3, 10)))
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert re.search(rf"packages for Python 3\.9 and 3\.10, and this is {re.escape(version)}", runtime_setup.missing())
    with pytest.raises(SettingsError, match="packages for Python"):
        runtime_setup.set_up()


@SUPPORTED
def test_another_processor_is_named(target, monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    assert "riscv64" in runtime_setup.missing()


@SUPPORTED
def test_what_lies_there_is_not_replaced(target):
    target.mkdir(parents=True)
    (target / "thesis.txt").write_text("all of it")
    with pytest.raises(SettingsError, match="holds other things"):
        runtime_setup.set_up()
    assert (target / "thesis.txt").read_text() == "all of it"


@SUPPORTED
def test_a_failed_download_says_how_and_leaves_nothing(target):
    with pytest.raises(SettingsError, match=r"pip cannot download TensorFlow 2\.16\.1: .*(numpy|tensorflow)"):
        runtime_setup.set_up()
    assert list(target.parent.iterdir()) == []


@SUPPORTED
def test_the_command_fails_on_one_line_or_says_what_can_never_run(target):
    done = subprocess.run([sys.executable, "-m", "mobileprune.runtime_setup"], capture_output=True, text=True)
    assert done.returncode == 2
    assert re.fullmatch(r"error: pip cannot download [^\n]*\n", done.stderr)


def test_where_it_can_never_run_the_command_may_end_well(target, monkeypatch, capsys):
    monkeypatch.setattr(runtime_setup, "PYTHONS", ((3, 9),))
    monkeypatch.setattr(sys, "argv", ["runtime_setup", "--if-supported"])
    runtime_setup.main()
    assert "cannot run here" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["runtime_setup"])
    with pytest.raises(SystemExit):
        runtime_setup.main()
    assert capsys.readouterr().err.startswith("error: TensorFlow Lite 2.16.1 cannot run here")


def wheel(path, members):
    with zipfile.ZipFile(path, "w") as archive:
        for member in members:
            archive.writestr(member, "content")


def test_only_what_is_needed_is_unpacked(tmp_path):
    wheels, made = tmp_path / "wheels", tmp_path / "made"
    wheels.mkdir()
    tensorflow = wheels / "tensorflow_cpu-2.16.1-cp311-none.whl"
    wheel(tensorflow, [*runtime_setup._NEEDED, "tensorflow/libtensorflow_cc.so.2"])
    wheel(wheels / "numpy-1.26.4-cp311-none.whl", ["numpy/a.py", "numpy/tests/b.py", "numpy.libs/c.so", "other/d.py"])
    runtime_setup._unpack(wheels, made)
    found = {str(path.relative_to(made)) for path in made.rglob("*") if path.is_file()}
    assert found == {
        "numpy/a.py",
        "numpy.libs/c.so",
        "tflite_runtime/__init__.py",
        "tflite_runtime/metrics_portable.py",
        "tflite_runtime/interpreter.py",
        "tflite_runtime/_pywrap_tensorflow_interpreter_wrapper.so",
        "tflite_runtime/libtensorflow_framework.so.2",
    }
    wheel(tensorflow, runtime_setup._NEEDED[:1])
    with pytest.raises(SettingsError, match=r"holds no tensorflow/lite/.*\.so"):
        runtime_setup._unpack(wheels, tmp_path / "again")
