import dataclasses
import json

import numpy as np
import pytest
from tiny_models import CLASSES, SIZE, images, variants

from mobileprune import metadata_schema as layout
from mobileprune.errors import ModelError, SettingsError
from mobileprune.metadata import Metadata, add_metadata, read_metadata
from mobileprune.min_runtime import with_versions
from mobileprune.records import Preprocess
from mobileprune.tflite_extras import attached_files, metadata_entry, with_attached
from mobileprune.tflite_graph import read_graph
from mobileprune.tflite_rewrite import packed, set_metadata, unpacked
from mobileprune.tflite_runner import TfliteRunner
from mobileprune.uint8_io import with_uint8_io

METADATA = Metadata(
    name="tiny",
    preprocess=Preprocess(SIZE, SIZE, fit="crop", exif=False, mean=(123.675, 116.28, 103.53), std=(58.4, 57.1, 57.4)),
    labels=tuple(f"Größe {index}" for index in range(CLASSES)),
    output="logits",
    description="Random.",
    version="3",
    author="Nobody",
    license="Apache-2.0",
)


def content(recipe="int8"):
    return variants()[recipe].content


@pytest.mark.parametrize("recipe", ["float32", "float16", "dynamic_int8", "int8", "int8_float_io", "uint8_io"])
def test_it_comes_back_and_the_network_stays(recipe):
    described = add_metadata(content(recipe), METADATA)
    assert read_metadata(described) == METADATA
    before, after = read_graph(content(recipe)), read_graph(described)
    assert after == before
    assert "serving_default" in after.signatures
    data = images(4)
    with TfliteRunner(described) as new, TfliteRunner(content(recipe)) as old:
        np.testing.assert_array_equal(new.run(data), old.run(data))


def test_records_round_trip():
    assert Metadata.from_json(json.loads(json.dumps(METADATA.to_json()))) == METADATA


def test_a_file_without_metadata_says_nothing():
    assert read_metadata(content()) is None


def test_it_is_deterministic_and_replaces_what_was_there():
    once = add_metadata(content(), METADATA)
    assert add_metadata(content(), METADATA) == once
    other = dataclasses.replace(METADATA, name="other", labels=(), output="probabilities")
    described = add_metadata(once, other)
    assert read_metadata(described) == other
    assert list(attached_files(described)) == ["preprocess.json"]
    assert add_metadata(described, METADATA) == once


@pytest.mark.parametrize("rewrite", [with_versions, with_uint8_io])
def test_other_rewrites_keep_it(rewrite):
    assert read_metadata(rewrite(add_metadata(content(), METADATA))) == METADATA


def test_sparse_encoding_keeps_it():
    import keras
    from xnnpack_models import network, with_zeros

    from mobileprune.convert import to_float_flatbuffer
    from mobileprune.sparse_encoding import encode_sparse

    dense = to_float_flatbuffer(with_zeros(network(), 0.8, (keras.layers.Conv2D,)))
    metadata = Metadata("sparse", Preprocess(*read_graph(dense).inputs[0].shape[1:3]), output="probabilities")
    assert read_metadata(encode_sparse(add_metadata(dense, metadata))) == metadata


def test_statistics_are_those_of_the_input_tensor():
    def stats(recipe, contract):
        described = add_metadata(content(recipe), dataclasses.replace(METADATA, preprocess=contract))
        (graph,) = layout.unpack(metadata_entry(described))["subgraph_metadata"]
        return graph["input_tensor_metadata"][0]["stats"]

    assert stats("float32", Preprocess(SIZE, SIZE)) == {"max": [1.0], "min": [-1.0]}
    assert stats("uint8_io", Preprocess(SIZE, SIZE)) == {"max": [255.0], "min": [0.0]}
    assert stats("float32", Preprocess(SIZE, SIZE, mean=(255.0, 0.0, 0.0), std=(-255.0, 255.0, 1.0))) == {
        "max": [1.0, 1.0, 255.0],
        "min": [0.0, 0.0, 0.0],
    }


def changed(**fields):
    return dataclasses.replace(METADATA, **fields)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (changed(preprocess=None), "no preprocess"),
        (changed(preprocess=Preprocess(SIZE, 17)), r"shape \(16, 17, 3\), but the file takes \(1, 16, 16, 3\)"),
        (changed(preprocess=Preprocess(SIZE, SIZE, color="grayscale")), r"shape \(16, 16, 1\)"),
        (changed(preprocess=Preprocess(SIZE, SIZE, std=(0.0,))), "divides by"),
        (changed(output=None), "output=None; known: probabilities, logits"),
        (changed(labels=("a", "b")), "2 labels for the 6 outputs"),
        (changed(labels=("a",) * 5 + ("b\nc",)), "cannot be a label"),
        (changed(labels=("a",) * 5 + (" ",)), "cannot be a label"),
        (changed(name="a\0b"), "cannot be stored"),
        (changed(author="\ud800"), "cannot be stored"),
        (changed(description="x" * 20_000), "20000 characters"),
    ],
)
def test_what_does_not_match_the_file_is_refused(metadata, message):
    with pytest.raises(SettingsError, match=message):
        add_metadata(content(), metadata)


def test_files_with_several_ends_are_refused():
    model = unpacked(content())
    model.subgraphs[0].outputs = [*model.subgraphs[0].outputs, model.subgraphs[0].inputs[0]]
    with pytest.raises(ModelError, match="1 inputs and 2 outputs"):
        add_metadata(packed(model), METADATA)


def forged(tables=None, files=None):
    """A file whose metadata others wrote."""
    model = unpacked(content())
    described = add_metadata(content(), METADATA)
    set_metadata(model, "TFLITE_METADATA", metadata_entry(described) if tables is None else layout.pack(tables))
    return packed(model, attached_files(described) if files is None else files)


def image(before=0, **fields):
    """Metadata of an image as input number `before`."""
    tensor = {"content": {"content_properties": {"kind": "ImageProperties", "color_space": layout.RGB}}, **fields}
    return {"subgraph_metadata": [{"input_tensor_metadata": [*[{}] * before, tensor]}]}


def test_metadata_of_other_writers_is_read():
    units = [{"options": {"kind": "NormalizationOptions", "mean": [127.5], "std": [127.5]}}]
    assert read_metadata(forged(image(process_units=units), {})) == Metadata("", Preprocess(SIZE, SIZE))
    raw = read_metadata(forged(image(), {}))
    assert (raw.preprocess.mean, raw.preprocess.std) == ((0.0,), (1.0,))
    assert read_metadata(forged({"name": "no image"}, {})) == Metadata("no image", None)


@pytest.mark.parametrize(
    ("tables", "files", "message"),
    [
        (None, {}, "names 'labels.txt' as the labels; no such file is attached"),
        (None, {"labels.txt": b"\xff"}, "'labels.txt', attached to the .tflite, is not UTF-8"),
        (None, {"labels.txt": b"", "preprocess.json": b"[" * 100_000}, "is no contract"),
        (None, {"labels.txt": b"", "preprocess.json": b"[1]"}, "is no contract"),
        (None, {"labels.txt": b"", "preprocess.json": b'{"height": 16, "size": 3}'}, "is no contract"),
        (None, {"labels.txt": b"", "preprocess.json": b'{"height": "16", "width": null}'}, "is no contract"),
        (None, {"labels.txt": b"", "preprocess.json": b'{"height": 16, "width": 16}'}, "contradicts its metadata"),
        (image(before=1), {}, "describes input 1 as an image"),
        (
            image(process_units=[{"options": {"kind": "NormalizationOptions", "std": [0.0], "mean": [0.0]}}]),
            {},
            "cannot be carried out",
        ),
        (image(process_units=[{"options": {"kind": "NormalizationOptions", "std": [1.0] * 2}}]), {}, "std="),
    ],
)
def test_metadata_that_cannot_be_meant_is_refused(tables, files, message):
    with pytest.raises(ModelError, match=message):
        read_metadata(forged(tables, files))


def test_a_buffer_that_holds_something_else_is_refused():
    model = unpacked(content())
    set_metadata(model, "TFLITE_METADATA", b"something else")
    with pytest.raises(ModelError, match="not in TensorFlow Lite's format"):
        read_metadata(packed(model))


def complaint(data):
    try:
        read_metadata(data)
    except ModelError as error:
        return str(error)
    return ""


def test_mutated_files_are_read_or_refused_in_one_line():
    """Bytes of the metadata and of the archive, anywhere in them."""
    whole = add_metadata(content(), METADATA)
    entry = metadata_entry(whole)
    begin, behind = whole.index(entry), len(packed(unpacked(whole)))
    generator = np.random.default_rng(2)
    refused = 0
    for _ in range(400):
        data = bytearray(whole)
        low, high = (begin, begin + len(entry)) if generator.random() < 0.5 else (behind, len(whole))
        for place in generator.integers(low, high, 2):
            data[place] = int(generator.integers(256))
        said = complaint(bytes(data))
        assert "\n" not in said
        refused += bool(said)
    assert refused > 50


def test_an_archive_behind_a_file_that_has_none_is_no_obstacle():
    assert read_metadata(with_attached(content(), {"labels.txt": b"cat"})) is None
