import dataclasses
import json

import jsonschema
import pytest
from photo_models import CONTRACT, NAMES, photo_variants
from records_samples import manifest, variant
from smoke_run import ROOT
from test_golden import pictures

from mobileprune.errors import OutputError, SettingsError, VerificationError
from mobileprune.manifest import read_manifest, write_manifest
from mobileprune.records import RuntimeCheck
from mobileprune.run_records import ModelPort, Port
from mobileprune.runtimes import find_interpreter, interpreter_missing
from mobileprune.ship import RUNTIME, check_shipped, ship

TITLE = find_interpreter(RUNTIME).title
SCHEMA = json.loads((ROOT / "mobileprune" / "manifest.schema.json").read_text())
needs_runtime = pytest.mark.skipif(interpreter_missing(RUNTIME) is not None, reason=str(interpreter_missing(RUNTIME)))


def record(made, **changes):
    """What a run would say of a file."""
    ports = {
        "input": Port("float32", (1, CONTRACT.height, CONTRACT.width, 3)),
        "output": Port("float32", (1, len(NAMES))),
    }
    facts = {"bytes": len(made.content), "sha256": made.sha256, "verified_runtimes": ("LiteRT", TITLE), **ports}
    return variant(made.model, made.recipe, **{**facts, **changes})


@pytest.fixture
def run(tmp_path):
    """A run of three files, one of which was not verified on the app's runtime."""
    made = photo_variants()
    reason = RuntimeCheck(TITLE, False, "It answers NaN.")
    records = (
        record(made["float32"]),
        record(made["int8_float_io"]),
        record(made["float16"], verified_runtimes=("LiteRT",), runtimes=(reason,)),
    )
    folder = tmp_path / "my_run"
    folder.mkdir()
    for entry in records:
        (folder / entry.file).write_bytes(made[entry.recipe].content)
    goals = {"smallest": records[1].file, "fastest": records[1].file, "most_accurate": records[0].file}
    facts = manifest(
        *records,
        labels=NAMES,
        preprocess=CONTRACT,
        input=ModelPort((1, *CONTRACT.shape), "float32"),
        output=ModelPort((1, len(NAMES)), "float32", "logits"),
        recommended=goals,
    )
    write_manifest(folder, facts)
    return folder


@needs_runtime
def test_the_recommended_files_are_shipped_with_all_that_the_app_needs(run, tmp_path):
    assets = tmp_path / "assets"
    target = ship(run, assets, pictures(), license_text=b"Free.", provenance="Photographs.", title="Photos")
    shipped = read_manifest(target)
    assert [entry.recipe for entry in shipped.variants] == ["float32", "int8_float_io"]
    for entry in shipped.variants:
        assert entry.file.endswith(f"_{entry.sha256[:8]}.tflite")
        assert (target / entry.file).stat().st_size == entry.bytes
    jsonschema.validate(json.loads((target / "manifest.json").read_text()), SCHEMA)
    assert set(shipped.recommended.values()) == {entry.file for entry in shipped.variants}
    assert (target / "labels.txt").read_text().splitlines() == list(NAMES)
    assert (target / "LICENSE.txt").read_bytes() == b"Free."
    index = json.loads((assets / "index.json").read_text())
    assert index == {
        "schema": 1,
        "runtime": TITLE,
        "runs": [{"folder": "my_run", "title": "Photos", "provenance": "Photographs."}],
    }
    assert check_shipped(assets) == []


@needs_runtime
def test_a_run_that_is_shipped_again_replaces_itself_and_leaves_others_alone(run, tmp_path):
    assets = tmp_path / "assets"
    first = ship(run, assets, pictures())
    ship(run, assets, pictures(), name="other")
    (first / "stale.tflite").write_bytes(b"")
    file = read_manifest(run).variants[0].file
    ship(run, assets, pictures(), files=[file], golden_pictures=2)
    assert sorted(path.name for path in assets.iterdir()) == ["index.json", "my_run", "other"]
    assert len(read_manifest(first).variants) == 1
    assert not (first / "stale.tflite").exists()
    folders = [entry["folder"] for entry in json.loads((assets / "index.json").read_text())["runs"]]
    assert folders == ["my_run", "other"]
    assert check_shipped(assets) == []


@needs_runtime
def test_a_file_that_was_not_verified_on_the_apps_runtime_stays_where_it_is(run, tmp_path):
    with pytest.raises(VerificationError, match=r"net_photo_net_float16.tflite was not verified on .*It answers NaN"):
        ship(run, tmp_path / "assets", pictures(), files=["all"])
    assert not (tmp_path / "assets").exists()


@needs_runtime
def test_a_file_that_is_not_the_verified_one_stays_where_it_is(run, tmp_path):
    path = run / read_manifest(run).variants[0].file
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(VerificationError, match="has the SHA-256"):
        ship(run, tmp_path / "assets", pictures())


@needs_runtime
def test_a_file_of_numbers_that_the_app_cannot_give_is_refused(run, tmp_path):
    facts = read_manifest(run)
    wide = dataclasses.replace(facts.variants[0], input=Port("int16", (1, *CONTRACT.shape), 0.1, 0))
    write_manifest(run, dataclasses.replace(facts, variants=(wide, *facts.variants[1:])))
    with pytest.raises(SettingsError, match="takes or answers int16; the app knows float32, int8, uint8"):
        ship(run, tmp_path / "assets", pictures())


@needs_runtime
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"files": ["other.tflite"]}, "has no file 'other.tflite'; it has net_"),
        ({"files": []}, "No files"),
        ({"golden_pictures": 1}, "golden_pictures is 1"),
        ({"name": ".."}, "'..' is no name for a folder"),
        ({"name": "a/b"}, "'a/b' is no name for a folder"),
    ],
)
def test_what_cannot_be_meant_is_refused(run, tmp_path, options, said):
    with pytest.raises(SettingsError, match=said):
        ship(run, tmp_path / "assets", pictures(), **options)


@needs_runtime
@pytest.mark.parametrize(
    "text", ["[]", '{"schema": 1}', '{"schema": 2, "runs": []}', '{"schema": 1, "runs": [3]}', "{"]
)
def test_an_index_that_is_none_is_not_overwritten(run, tmp_path, text):
    assets = tmp_path / "assets"
    assets.mkdir()
    (assets / "index.json").write_text(text)
    with pytest.raises(OutputError, match=r"index\.json"):
        ship(run, assets, pictures())
    assert (assets / "index.json").read_text() == text


@needs_runtime
def test_the_check_finds_another_file_and_another_answer(run, tmp_path):
    assets = tmp_path / "assets"
    target = ship(run, assets, pictures(), files=[read_manifest(run).variants[0].file])
    (file,) = target.glob("*.tflite")
    sound = file.read_bytes()
    file.write_bytes(photo_variants()["int8_float_io"].content)
    assert any("is not the file that was verified" in fault for fault in check_shipped(assets))
    file.write_bytes(sound)
    golden = json.loads((target / "golden.json").read_text())
    golden["images"][1]["outputs"][file.name][0] += 9.0
    (target / "golden.json").write_text(json.dumps(golden))
    assert [fault for fault in check_shipped(assets) if "off by" in fault] != []
    golden["images"] = golden["images"][:1]
    (target / "golden.json").write_text(json.dumps(golden))
    assert check_shipped(assets) == ["my_run has 1 golden pictures."]
    (target / golden["images"][0]["file"]).unlink()
    with pytest.raises(OutputError, match=r"Cannot read .*golden_0\.jpg"):
        check_shipped(assets)


@needs_runtime
def test_recommendations_of_files_that_stay_behind_go_to_others(run, tmp_path):
    facts = read_manifest(run)
    (float32, *_) = facts.variants
    target = ship(run, tmp_path / "assets", pictures(), files=[float32.file])
    assert set(read_manifest(target).recommended.values()) == {f"net_photo_net_float32_{float32.sha256[:8]}.tflite"}
    assert facts == read_manifest(run)  # the run itself is as it was
