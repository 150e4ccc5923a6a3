import copy
import json

import pytest
from records_samples import default_run, manifest, variant

from mobileprune.errors import OutputError
from mobileprune.report.plausible import check_plausible
from mobileprune.run_records import Manifest

RUN = json.loads(json.dumps(default_run().to_json()))


def refused(data):
    with pytest.raises(OutputError) as error:
        check_plausible(Manifest.from_json(data), "manifest.json")
    return str(error.value)


def test_what_runs_write_is_plausible():
    check_plausible(default_run(), "manifest.json")
    check_plausible(Manifest.from_json(RUN), "manifest.json")
    check_plausible(manifest(variant("base", "float32", accuracy=None, agreement=0.9, latency=())), "manifest.json")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("variants", 0, "bytes"), 0),
        (("variants", 0, "bytes"), "many"),
        (("variants", 0, "bytes"), True),
        (("variants", 0, "accuracy"), 1.5),
        (("variants", 0, "accuracy"), float("nan")),
        (("variants", 0, "file"), 7),
        (("variants", 0, "file"), None),
        (("variants", 0, "verified_runtimes"), [None]),
        (("variants", 0, "latency", 0, "p50_ms"), -1.0),
        (("variants", 0, "latency", 0, "histogram"), [0.1, 0.0]),
        (("variants", 0, "latency", 0, "init_ms"), float("inf")),
        (("variants", 0, "macs"), 10**400),
        (("variants",), []),
        (("stages", 0, "layers", 0, "params"), "all"),
        (("stages", 0, "curve", 0, "validation_accuracy"), 88.0),
        (("dataset",), {}),
        (("dataset", "images"), {"test": 1}),
        (("dataset", "images", "test"), 0),
        (("dataset", "skipped"), [{"file": 1, "reason": "x"}]),
        (("dataset", "skipped"), "all"),
        (("dataset", "source"), None),
        (("host", "cores"), "two"),
        (("labels",), [1]),
        (("versions",), {"keras": 3}),
        (("preprocess", "color"), "BGR"),
        (("recommended",), {"smallest": None}),
        (("command",), ["rm"]),
        (("command",), "\ud800"),
        (("recommended",), {"smallest": "absent.tflite"}),
        (("variants", 0, "latency", 0, "histogram"), [1.0] * 21),
        (("variants",), RUN["variants"][:1] * 1001),
    ],
    ids=lambda value: ".".join(map(str, value)) if isinstance(value, tuple) else None,
)
def test_a_planted_fault_is_refused_and_placed(path, value):
    damaged = copy.deepcopy(RUN)
    place = damaged
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    said = refused(damaged)
    assert said.startswith("manifest.json is no run's manifest: ")
    assert str(path[-1]) in said or path[-1] in ("dataset", "source")
    assert len(said) < 250


@pytest.mark.parametrize("variants", [[[]], ["abc"], [5], 5, [None]])
def test_records_that_are_none_are_refused(variants):
    with pytest.raises(OutputError):
        check_plausible(Manifest.from_json({**RUN, "variants": variants}), "manifest.json")
