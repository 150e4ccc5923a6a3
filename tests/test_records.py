import dataclasses
import json

import pytest

from mobileprune.errors import OutputError, VerificationError
from mobileprune.records import ClassChanges, Latency, Preprocess, RuntimeCheck, Variant, Verification
from mobileprune.run_records import Epoch, LayerFacts, Port, Stage, VariantRecord

VERIFIED = Verification(
    images=32, agreement=0.97, max_abs_error=0.5, mean_abs_error=0.01, snr_db=31.5, runtime="ai-edge-litert 2.1.0"
)
LATENCY = Latency(
    device="host",
    runtime="ai-edge-litert 2.1.0",
    threads=1,
    accelerator="cpu",
    p50_ms=1.5,
    p90_ms=1.75,
    p99_ms=2.0,
    runs=100,
    init_ms=3.0,
    peak_memory_bytes=4096,
    ratio=0.5,
)
RECORD = VariantRecord(
    file="m_base_int8.tflite",
    model="base",
    recipe="int8",
    bytes=10,
    gzip_bytes=9,
    sha256="ab",
    macs=1000,
    params=100,
    sparsity=0.8,
    input=Port("int8", (1, 32, 32, 1), 0.1, -3),
    output=Port("float32", (1, 10)),
    verified=VERIFIED,
    verified_runtimes=("a", "b"),
    latency=(LATENCY, LATENCY),
    runtimes=(RuntimeCheck("a", True, "", 0.97, 0.5), RuntimeCheck("b", False, "It crashed.")),
)


@pytest.mark.parametrize(
    "record",
    [
        RECORD,
        VERIFIED,
        dataclasses.replace(VERIFIED, classes=ClassChanges(32, 0.9, 0.8, 0.1, 0.1, 0.0, "cat", 0.2)),
        LATENCY,
        Preprocess(224, 192, color="RGB", fit="crop", mean=(1.0, 2.0, 3.0), std=(4.0,), exif=False),
        Stage("train", 1.5, model="base", epochs=3, accuracy=0.5),
        Stage("c50", 1.5, layers=(LayerFacts("a", "Dense", 3, 9, 12, 0.5),), curve=(Epoch(1, 0.7), Epoch(2))),
        dataclasses.replace(LATENCY, histogram=(1.0, 2.0)),
    ],
    ids=lambda record: type(record).__name__,
)
def test_a_record_survives_json(record):
    text = json.dumps(record.to_json())
    assert type(record).from_json(json.loads(text)) == record


def test_nested_records_and_tuples_get_their_types_back():
    record = VariantRecord.from_json(json.loads(json.dumps(RECORD.to_json())))
    assert isinstance(record.verified, Verification)
    assert isinstance(record.latency, tuple)
    assert isinstance(record.latency[1], Latency)
    assert record.verified_runtimes == ("a", "b")
    assert record.accuracy is None


def test_an_unknown_field_is_refused_with_the_known_ones():
    with pytest.raises(OutputError, match="Stage has no field 'colour'; it has accuracy, curve, epochs"):
        Stage.from_json({"name": "train", "seconds": 1.0, "colour": "red"})


def test_an_unknown_field_of_a_nested_record_is_refused():
    data = RECORD.to_json()
    data["verified"]["extra"] = 1
    with pytest.raises(OutputError, match="Verification has no field 'extra'"):
        VariantRecord.from_json(data)


@pytest.mark.parametrize("data", [[], "abc", 5, None])
def test_what_is_no_object_is_no_record(data):
    with pytest.raises(OutputError, match=r"^Not a Stage: "):
        Stage.from_json(data)


def test_a_latency_written_before_it_had_more_fields_is_read():
    new = ("confidence", "first_ms", "restarts", "rounds", "drift", "outliers")
    old = {name: value for name, value in LATENCY.to_json().items() if name not in new}
    assert Latency.from_json(old) == LATENCY


def test_a_missing_field_is_named():
    with pytest.raises(OutputError, match=r"Not a complete Stage: .*'seconds'"):
        Stage.from_json({"name": "train"})


def test_the_shape_of_a_contract_follows_its_colour():
    assert Preprocess(32, 48).shape == (32, 48, 3)
    assert Preprocess(32, 48, color="grayscale").shape == (32, 48, 1)


def test_a_failed_verification_raises_every_failure():
    VERIFIED.raise_if_failed()
    failed = Verification(1, 0.5, 1.0, 1.0, 1.0, "r", failures=("Too far off.", "Too few agree."))
    assert not failed.passed
    with pytest.raises(VerificationError, match=r"Too far off\. Too few agree\."):
        failed.raise_if_failed()


def test_a_variant_saves_exactly_its_bytes(tmp_path):
    variant = Variant("base", "float32", b"abc")
    path = variant.save(tmp_path / "new" / "m.tflite")
    assert path.read_bytes() == b"abc"
    assert variant.sha256 == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
