import contextlib
import itertools
import json
import os
import resource
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
from smoke_run import ROOT

from mobileprune.errors import OutputError
from mobileprune.records import Variant
from mobileprune.run import Run, Task
from mobileprune.run_records import Epoch

SETTINGS = {"model": "tiny", "seed": 0, "epochs": 3}
STEPS = {"base": 10, "s80": 10, "convert": 5}


def network(value):
    """A model that remembers a number."""
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, use_bias=False)])
    model.layers[0].kernel.assign([[value], [0.0]])
    return model


def remembered(model):
    return float(np.array(model.layers[0].kernel)[0, 0])


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


class Killed(Exception):
    """Stands for SIGKILL: nothing of the stage runs after it."""


def killed(task):
    (task.folder / "epoch.json").write_text("3")
    raise Killed


def never(task):
    raise AssertionError("the stage ran")


def facts_of(model):
    return {"accuracy": 0.5, "macs": 2}


@contextlib.contextmanager
def largest_file(size):
    """No file can grow beyond `size` bytes, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_finished_stage_is_kept_and_not_run_again(tmp_path):
    first = Run(tmp_path, SETTINGS, STEPS)
    assert remembered(first.model("base", lambda task: network(3.0), facts_of)) == 3.0
    assert first.facts("convert", lambda task: {"files": [1, 2]}) == {"files": [1, 2]}
    again = Run(tmp_path, SETTINGS, STEPS)
    assert remembered(again.model("base", never, never)) == 3.0
    assert again.facts("convert", never) == {"files": [1, 2]}
    assert again.stages == first.stages
    assert [stage.name for stage in again.stages] == ["base", "convert"]
    assert (again.stages[0].accuracy, again.stages[0].macs) == (0.5, 2)


def test_a_stage_that_was_killed_runs_again_with_what_it_remembered(tmp_path):
    with pytest.raises(Killed):
        Run(tmp_path, SETTINGS, STEPS).model("base", killed, facts_of)

    def resumed(task):
        assert (task.folder / "epoch.json").read_text() == "3"
        return network(4.0)

    run = Run(tmp_path, SETTINGS, STEPS)
    assert remembered(run.model("base", resumed, facts_of)) == 4.0
    # What the stage remembered is of no use any more.
    kept = ["base.done.json", "base.keras", "lock", "settings.json"]
    assert files(tmp_path) == [f"checkpoints/{name}" for name in kept]


def test_a_stage_that_failed_while_it_was_measured_runs_again(tmp_path):
    with pytest.raises(Killed):
        Run(tmp_path, SETTINGS, STEPS).model("base", lambda task: network(1.0), killed_measure)
    run = Run(tmp_path, SETTINGS, STEPS)
    assert remembered(run.model("base", lambda task: network(2.0), facts_of)) == 2.0


def killed_measure(model):
    raise Killed


def test_a_killed_process_leaves_finished_stages_and_no_half_written_file(tmp_path):
    code = f"""
import sys, time
sys.path[:0] = ["tests"]
from pathlib import Path
from test_run import SETTINGS, STEPS, network, facts_of
from mobileprune.run import Run
run = Run(Path({str(tmp_path)!r}), SETTINGS, STEPS)
run.model("base", lambda task: network(7.0), facts_of)
def forever(task):
    print("in s80", flush=True)
    time.sleep(600)
run.model("s80", forever, facts_of)
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        while "in s80" not in (line := process.stdout.readline()):
            assert line, "the process ended early"
        process.send_signal(signal.SIGKILL)
    run = Run(tmp_path, SETTINGS, STEPS)
    assert remembered(run.model("base", never, never)) == 7.0
    assert remembered(run.model("s80", lambda task: network(8.0), facts_of)) == 8.0
    assert [name for name in files(tmp_path) if "/." in name or "partial" in name] == []


def test_what_a_killed_run_was_writing_is_swept_away(tmp_path):
    Run(tmp_path, SETTINGS, STEPS).facts("convert", lambda task: {"a": 1})
    halves = ["checkpoints/.123_base.keras", "checkpoints/.convert.json.ab12_xyz", ".net_base_int8.tflite.abcd1234"]
    for name in (*halves, ".gitignore", "checkpoints/base.keras"):
        (tmp_path / name).write_text("x")
    Run(tmp_path, SETTINGS, STEPS)
    assert not set(halves) & set(files(tmp_path))
    assert {".gitignore", "checkpoints/base.keras", "checkpoints/convert.json"} <= set(files(tmp_path))


def test_the_rest_of_a_finished_stage_is_removed(tmp_path):
    Run(tmp_path, SETTINGS, STEPS).facts("convert", lambda task: {})
    left = tmp_path / "checkpoints" / "convert.partial"
    left.mkdir()
    (left / "seconds.json").write_text("1.0")
    Run(tmp_path, SETTINGS, STEPS).facts("convert", never)
    assert not left.exists()


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({**SETTINGS, "seed": 1}, "holds a run with seed=0, not 1"),
        ({**SETTINGS, "seed": 1, "epochs": 9}, "holds a run with epochs=3, not 9"),
        ({**SETTINGS, "augment": True}, "holds a run with augment=None, not True"),
        ({"model": "tiny", "seed": 0}, "holds a run with epochs=3, not None"),
    ],
)
def test_other_settings_are_refused_and_the_first_difference_named(tmp_path, other, said):
    Run(tmp_path, SETTINGS, STEPS).facts("convert", lambda task: {"a": 1})
    before = {name: (tmp_path / name).read_bytes() for name in files(tmp_path)}
    with pytest.raises(OutputError) as error:
        Run(tmp_path, other, STEPS)
    assert said in str(error.value)
    assert "--out_dir" in str(error.value)
    assert "--overwrite" in str(error.value)
    assert {name: (tmp_path / name).read_bytes() for name in files(tmp_path)} == before


def test_settings_are_compared_as_json_keeps_them(tmp_path):
    settings = {"recipes": ["int8"], "macs": 0.5, "weights": None, "model_file": [1, 2]}
    Run(tmp_path, settings, STEPS)
    Run(tmp_path, json.loads(json.dumps(settings)), STEPS)


def test_overwriting_starts_again(tmp_path):
    Run(tmp_path, SETTINGS, STEPS).model("base", lambda task: network(1.0), facts_of)
    (tmp_path / "notes.txt").write_text("mine")
    run = Run(tmp_path, {**SETTINGS, "seed": 1}, STEPS, overwrite=True)
    assert run.stages == []
    assert remembered(run.model("base", lambda task: network(2.0), facts_of)) == 2.0
    assert (tmp_path / "notes.txt").read_text() == "mine"
    Run(tmp_path / "new", SETTINGS, STEPS, overwrite=True)


def test_a_file_where_checkpoints_belong_is_one_clear_error(tmp_path):
    (tmp_path / "checkpoints").write_text("x")
    for overwrite in (False, True):
        with pytest.raises(OutputError, match=r"Cannot (write|clear) .*Choose another --out_dir\.$"):
            Run(tmp_path, SETTINGS, STEPS, overwrite)
    assert (tmp_path / "checkpoints").read_text() == "x"


def test_a_folder_that_cannot_be_made_is_one_clear_error(tmp_path):
    (tmp_path / "taken").write_text("x")
    with pytest.raises(OutputError, match=r"Cannot write .*taken.*Choose another --out_dir\.$"):
        Run(tmp_path / "taken" / "out", SETTINGS, STEPS)
    assert files(tmp_path) == ["taken"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_one_clear_error(tmp_path):
    tmp_path.chmod(0o555)
    with pytest.raises(OutputError, match="Permission denied"):
        Run(tmp_path / "out", SETTINGS, STEPS)


def test_damaged_records_are_named_with_the_way_out(tmp_path):
    Run(tmp_path, SETTINGS, STEPS).facts("convert", lambda task: {})
    (tmp_path / "checkpoints" / "convert.done.json").write_text("{")
    with pytest.raises(OutputError, match=r"convert\.done\.json.*Delete it"):
        Run(tmp_path, SETTINGS, STEPS).facts("convert", never)


def test_a_damaged_model_is_named_with_the_way_out(tmp_path):
    Run(tmp_path, SETTINGS, STEPS).model("base", lambda task: network(1.0), facts_of)
    (tmp_path / "checkpoints" / "base.keras").write_bytes(b"rubbish")
    with pytest.raises(OutputError, match=r"Cannot read the checkpoint .*base\.keras"):
        Run(tmp_path, SETTINGS, STEPS).model("base", never, never)


@pytest.mark.parametrize("size", [0, 1000])
def test_a_full_disk_is_one_clear_error_and_leaves_no_half_file(tmp_path, size):
    run = Run(tmp_path, SETTINGS, STEPS)
    with largest_file(size), pytest.raises(OutputError, match=r"Cannot write .*Free some space"):
        run.model("base", lambda task: network(1.0), facts_of)
    left = files(tmp_path)
    assert "checkpoints/base.keras" not in left
    assert not [name for name in left if "/." in name or "done" in name]
    # With space again, the same run goes on.
    assert remembered(Run(tmp_path, SETTINGS, STEPS).model("base", lambda task: network(5.0), facts_of)) == 5.0


def test_a_full_disk_while_facts_or_files_are_written_leaves_no_half_file(tmp_path):
    run = Run(tmp_path, SETTINGS, STEPS)
    with largest_file(1000), pytest.raises(OutputError, match=r"Cannot write .*Free some space"):
        run.facts("convert", lambda task: {"long": "x" * 2000})
    with largest_file(1000), pytest.raises(OutputError, match=r"Cannot write .*Free some space"):
        run.keep_variant(Variant("base", "int8", bytes(2000)), "a.tflite")
    assert not [name for name in files(tmp_path) if "convert.json" in name or "tflite" in name or "/." in name]


def test_a_variant_is_kept_beside_the_checkpoints(tmp_path):
    run = Run(tmp_path, SETTINGS, STEPS)
    variant = Variant("c50", "int8", b"bytes")
    run.keep_variant(variant, "net_c50_int8.tflite")
    assert Run(tmp_path, SETTINGS, STEPS).kept_variant("c50", "int8", "net_c50_int8.tflite") == variant
    with pytest.raises(OutputError, match=r"other\.tflite.*--overwrite"):
        run.kept_variant("c50", "int8", "other.tflite")


def test_the_seconds_of_killed_attempts_count(tmp_path):
    folder = tmp_path / "checkpoints" / "base.partial"
    with pytest.raises(Killed):
        Run(tmp_path, SETTINGS, STEPS).model("base", killed, facts_of)
    assert json.loads((folder / "seconds.json").read_text()) == 0.0

    def slow(task):
        time.sleep(2.05)  # seconds are kept every two
        task.advance(1)
        raise Killed

    with pytest.raises(Killed):
        Run(tmp_path, SETTINGS, STEPS).model("base", slow, facts_of)
    kept = json.loads((folder / "seconds.json").read_text())
    assert kept >= 2.05
    (folder / "seconds.json").write_text("1000.0")
    with pytest.raises(Killed):
        Run(tmp_path, SETTINGS, STEPS).model("base", killed, facts_of)
    run = Run(tmp_path, SETTINGS, STEPS)
    run.model("base", lambda task: network(1.0), facts_of)
    assert 1000 <= run.stages[0].seconds < 1600


def test_a_second_process_is_kept_out_while_a_run_works(tmp_path):
    code = (
        "import sys; from pathlib import Path; from mobileprune.run import Run; "
        "run = Run(Path(sys.argv[1]), {}, {}); print('in', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout.readline() == "in\n"
        with pytest.raises(OutputError, match="Another run works in"):
            Run(tmp_path, {}, {}, overwrite=True)
        first.kill()
    Run(tmp_path, {}, {})


def stages_of(folder, log, first=1, second=1):
    """A run of three stages, of which the second and third depend on a setting each."""
    run = Run(folder, {}, {"one": 1, "two": 1, "three": 1})
    run.facts("one", lambda task: log.append("one") or {})
    run.depend("two", {"setting": first})
    run.facts("two", lambda task: log.append("two") or {})
    run.depend("three", {"setting": second})
    run.facts("three", lambda task: log.append("three") or {})


def test_a_stage_and_all_after_it_run_anew_when_what_it_reads_has_changed(tmp_path):
    for settings, expected in (
        ((1, 1), ["one", "two", "three"]),
        ((1, 1), []),
        ((1, 2), ["three"]),
        ((2, 2), ["two", "three"]),
        ((2, 2), []),
    ):
        log = []
        stages_of(tmp_path, log, *settings)
        assert log == expected


FIGURES = {"loss": 1.0, "accuracy": 0.5, "val_loss": 2.0, "val_accuracy": 0.25, "learning_rate": 0.1}


def test_a_stages_record_has_its_epochs_those_before_a_kill_included(tmp_path):
    def killed_after_two(task):
        task.epoch(1, FIGURES)
        task.epoch(2, {**FIGURES, "val_loss": float("nan")})
        raise Killed

    def rest(task):
        task.epoch(2, {**FIGURES, "val_loss": float("inf")})  # done again: the kill came before its checkpoint
        task.epoch(3, {"loss": 0.5})
        return network(1.0)

    with pytest.raises(Killed):
        Run(tmp_path, SETTINGS, STEPS).model("base", killed_after_two, facts_of)
    run = Run(tmp_path, SETTINGS, STEPS)
    run.model("base", rest, facts_of)
    expected = (Epoch(1, 1.0, 0.5, 2.0, 0.25), Epoch(2, 1.0, 0.5, None, 0.25), Epoch(3, 0.5))
    assert run.stages[0].curve == expected
    again = Run(tmp_path, SETTINGS, STEPS)
    again.model("base", never, never)
    assert again.stages == run.stages


def test_very_many_epochs_are_thinned_out_evenly(tmp_path):
    (tmp_path / "curve.json").write_text(json.dumps([Epoch(number).to_json() for number in range(1, 1001)]))
    kept = [epoch["epoch"] for epoch in Task(tmp_path, never, never).curve()]
    assert len(kept) == 200
    assert (kept[0], kept[-1]) == (1, 1000)
    assert {later - earlier for earlier, later in itertools.pairwise(kept)} <= {5, 6}


def test_a_stage_without_training_has_no_epochs(tmp_path):
    run = Run(tmp_path, SETTINGS, STEPS)
    run.model("base", lambda task: network(1.0), facts_of)
    assert run.stages[0].curve == ()
