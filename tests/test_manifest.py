import copy
import gzip
import json
import re
from importlib import resources

import jsonschema
import pytest
from records_samples import manifest, variant
from smoke_run import finished_smoke_run

import mobileprune
from mobileprune.data import load_dataset
from mobileprune.errors import OutputError
from mobileprune.manifest import dataset_facts, gzip_bytes, host, own_version, read_manifest, versions, write_manifest
from mobileprune.recipes import RECIPES
from mobileprune.records import ClassChanges, Verification
from mobileprune.run_records import Manifest

SCHEMA = json.loads(resources.files(mobileprune).joinpath("manifest.schema.json").read_text(encoding="utf-8"))
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    folder, _ = finished_smoke_run(tmp_path_factory)
    return json.loads((folder / "manifest.json").read_text(encoding="utf-8"))


def plain(record):
    return json.loads(json.dumps(record.to_json()))


def test_the_schema_is_one():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


def test_a_real_manifest_follows_the_schema(real):
    VALIDATOR.validate(real)


def test_a_manifest_without_labels_follows_the_schema():
    unlabelled = variant("base", "float32", accuracy=None, validation_accuracy=None, agreement=0.9)
    VALIDATOR.validate(plain(manifest(unlabelled)))


def test_what_became_of_labelled_images_follows_the_schema():
    changes = ClassChanges(100, 0.9, 0.89, 0.03, 0.02, 0.01, "cat", 0.1)
    verified = Verification(100, 0.97, 0.5, 0.01, 31.5, "LiteRT 2.1.0", classes=changes)
    made = plain(manifest(variant("base", "float32", verified=verified)))
    VALIDATOR.validate(made)
    made["variants"][0]["verified"]["classes"]["churn"] = 1.5
    assert not VALIDATOR.is_valid(made)


def test_every_field_is_described(real):
    def fields(schema):
        for name, field in schema.get("properties", {}).items():
            if isinstance(field, dict):
                yield name, field
                yield from fields(field)
        if "items" in schema:
            yield from fields(schema["items"])

    tops = [SCHEMA, *SCHEMA["$defs"].values()]
    found = [pair for top in tops for pair in fields(top)]
    targets = {f"#/$defs/{name}": target for name, target in SCHEMA["$defs"].items()}
    silent = [
        name
        for name, field in found
        if "description" not in field and "description" not in targets.get(field.get("$ref"), {})
    ]
    # A split's name says all, and a shape's use is told where it is used.
    assert set(silent) <= {"train", "validation", "calibration", "test", "shape", "kind"}


def test_the_schema_knows_every_recipe():
    described = SCHEMA["$defs"]["variant"]["properties"]["recipe"]["description"]
    assert set(RECIPES) <= set(re.findall(r"\w+", described))
    for name in (*RECIPES, "mine"):
        VALIDATOR.validate(plain(manifest(variant("base", name))))


def test_every_field_of_a_manifest_is_required_by_the_schema(real):
    def paths(value, path=()):
        if isinstance(value, dict):
            for key, inner in value.items():
                yield (*path, key)
                yield from paths(inner, (*path, key))
        elif isinstance(value, list) and value:
            yield from paths(value[0], (*path, 0))

    optional = {("recommended", "fastest")}
    for path in set(paths(real)) - optional:
        damaged = copy.deepcopy(real)
        place = damaged
        for key in path[:-1]:
            place = place[key]
        del place[path[-1]]
        assert not VALIDATOR.is_valid(damaged), path


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("schema",), 2),
        (("surprise",), 1),
        (("variants", 0, "surprise"), 1),
        (("host", "surprise"), 1),
        (("versions", "keras"), ""),
        (("dataset", "images", "test"), 0),
        (("dataset", "skipped"), [{"file": "a.jpg"}]),
        (("labels",), ["only"]),
        (("preprocess", "color"), "BGR"),
        (("preprocess", "std"), [0]),
        (("preprocess", "mean"), []),
        (("preprocess", "height"), 0),
        (("input", "shape"), [1, 32, 32]),
        (("input", "kind"), "logits"),
        (("output", "kind"), "odds"),
        (("output", "kind"), None),
        (("stages",), []),
        (("stages", 0, "seconds"), -1),
        (("stages", 0, "accuracy"), 88.5),
        (("variants",), []),
        (("variants", 0, "file"), "../elsewhere.tflite"),
        (("variants", 0, "file"), "model.bin"),
        (("variants", 0, "recipe"), "Int 4"),
        (("variants", 0, "model"), "Base Model"),
        (("variants", 0, "bytes"), 0),
        (("variants", 0, "bytes"), 1000.5),
        (("variants", 0, "gzip_bytes"), 0),
        (("variants", 0, "sha256"), "ab" * 31),
        (("variants", 0, "sha256"), "AB" * 32),
        (("variants", 0, "macs"), 0),
        (("variants", 0, "sparsity"), 1.01),
        (("variants", 0, "accuracy"), 1.01),
        (("variants", 0, "accuracy"), -0.1),
        (("variants", 0, "accuracy"), "0.9"),
        (("variants", 0, "accuracy"), None),
        (("variants", 0, "validation_accuracy"), None),
        (("variants", 0, "input", "dtype"), "float64"),
        (("variants", 0, "input", "scale"), 0.5),
        (("variants", 0, "input", "shape"), [1, -1]),
        (("variants", 1, "input", "scale"), None),
        (("variants", 1, "output", "zero_point"), None),
        (("variants", 0, "verified", "agreement"), 1.5),
        (("variants", 0, "verified", "snr_db"), 300),
        (("variants", 0, "verified", "failures"), ["it differs"]),
        (("variants", 0, "verified", "classes"), {"images": 10}),
        (("variants", 0, "verified_runtimes"), []),
        (("variants", 0, "latency", 0, "p50_ms"), 0),
        (("variants", 0, "latency", 0, "threads"), 0),
        (("variants", 0, "latency", 0, "ratio"), 0),
        (("rejected",), [{"file": "a.tflite"}]),
        (("recommended",), {}),
        (("stages", 0, "layers", 0, "macs"), 0),
        (("stages", 0, "layers", 0, "surprise"), 1),
        (("stages", 0, "curve", 0, "epoch"), 0),
        (("stages", 0, "curve", 0, "accuracy"), 1.5),
        (("variants", 0, "latency", 0, "histogram"), [1.0] * 21),
        (("variants", 0, "latency", 0, "histogram"), [0.0]),
        (("recommended", "prettiest"), "a.tflite"),
    ],
    ids=lambda value: ".".join(map(str, value)) if isinstance(value, tuple) else None,
)
def test_the_schema_refuses_a_planted_fault(real, path, value):
    assert [entry["recipe"] for entry in real["variants"][:2]] == ["float32", "int8"]
    damaged = copy.deepcopy(real)
    place = damaged
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    assert not VALIDATOR.is_valid(damaged)


def test_a_manifest_survives_json(real, tmp_path):
    for original in (Manifest.from_json(real), manifest(variant("base", "float32"), variant("c50", "int8"))):
        path = write_manifest(tmp_path, original)
        assert path == tmp_path / "manifest.json"
        assert read_manifest(tmp_path) == original
    assert plain(Manifest.from_json(real)) == real


def test_manifests_from_before_layers_epochs_and_quantiles_still_load(real):
    assert real["stages"][0]["layers"]
    assert [epoch["epoch"] for epoch in real["stages"][0]["curve"]] == [1, 2]
    assert len(real["variants"][0]["latency"][0]["histogram"]) == 20
    old = copy.deepcopy(real)
    for stage in old["stages"]:
        del stage["layers"], stage["curve"]
    for entry in old["variants"]:
        for time in entry["latency"]:
            del time["histogram"]
    manifest = Manifest.from_json(old)
    assert {(stage.layers, stage.curve) for stage in manifest.stages} == {((), ())}
    assert {time.histogram for entry in manifest.variants for time in entry.latency} == {()}


def test_a_variant_is_found_by_model_and_recipe():
    made = manifest(variant("base", "float32"), variant("c50", "int8"))
    assert made.variant("c50", "int8") == made.variants[1]
    assert made.variant("c50", "float32") is None


def test_a_missing_or_foreign_manifest_is_one_clear_error(tmp_path):
    with pytest.raises(OutputError, match=r"manifest\.json"):
        read_manifest(tmp_path)
    (tmp_path / "manifest.json").write_text('{"name": "an app"}')
    with pytest.raises(OutputError, match="Manifest has no field 'name'"):
        read_manifest(tmp_path)
    (tmp_path / "manifest.json").write_text('{"schema": 1}')
    with pytest.raises(OutputError, match="Not a complete Manifest"):
        read_manifest(tmp_path)


def test_the_versions_are_those_installed():
    import numpy

    assert versions()["numpy"] == numpy.__version__
    assert set(versions()) == set(SCHEMA["properties"]["versions"]["required"])
    assert own_version().count(".") == 2


def test_the_host_has_a_name_and_cores():
    facts = host()
    assert facts["device"].startswith("host (")
    assert facts["cores"] >= 1
    assert isinstance(facts["simd"], list)


def test_the_datasets_facts_count_each_split():
    facts = dataset_facts(load_dataset("fashion_mnist").limited(600))
    assert facts["images"] == {"train": 600, "validation": 600, "calibration": 500, "test": 600}
    assert facts["name"] == "fashion_mnist"
    assert facts["skipped"] == []


def test_the_compressed_size_is_that_of_the_smallest_gzip():
    content = b"weights " * 1000
    assert gzip_bytes(content) == min(len(gzip.compress(content, level, mtime=0)) for level in range(1, 10))
