"""What the pipelines share."""

import sys
from pathlib import Path

import numpy as np

from mobileprune.evaluate import evaluate
from mobileprune.records import Variant

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "pipelines"))

import export_stages


class Task:
    """Takes what a stage says of its progress."""

    def __init__(self):
        self.steps, self.notes = [], []

    def advance(self, step):
        self.steps.append(step)

    def note(self, words):
        self.notes.append(words)


def test_a_file_that_cannot_be_run_is_a_result_and_not_the_end():
    batches = [(np.zeros((2, 4, 4, 1), np.float32), np.zeros(2, np.int64))]
    files = {("base", "float32"): "base.tflite", ("c50", "float32"): "c50.tflite"}
    made = {key: Variant(*key, b"no flatbuffer") for key in files}
    task = Task()

    def score(key, variant):
        return {"accuracy": 1.0} if key[0] == "base" else {"accuracy": evaluate(variant, batches)}

    found = export_stages._for_each(task, "evaluate", made, files, score)
    assert found["base.tflite"] == {"accuracy": 1.0}
    assert found["c50.tflite"]["failed"]
    assert task.steps[-1] == export_stages.STEPS["evaluate"]
    assert len(task.notes) == 2


def test_the_first_failure_is_the_reason():
    assert export_stages._failure([{"failed": ""}, {}, {"failed": "it crashed"}, {"failed": "later"}]) == "it crashed"
    assert export_stages._failure([{"failed": ""}, {"accuracy": 1.0}]) == ""


def test_a_new_run_forgets_the_files_of_the_old_manifest_only(tmp_path):
    from records_samples import manifest, variant

    from mobileprune.manifest import write_manifest

    old = manifest(variant("base", "float32"))
    write_manifest(tmp_path, old)
    listed = tmp_path / old.variants[0].file
    own = tmp_path / "mine.tflite"
    for path in (listed, own):
        path.write_bytes(b"x")
    export_stages._forget(tmp_path)
    assert not listed.exists()
    assert own.exists()
    assert not (tmp_path / "manifest.json").exists()
