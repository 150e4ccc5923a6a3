"""MediaPipe, another reader of `.tflite` files, sees in them what is meant. It runs in an environment of its own."""

import base64
import functools
import json
import subprocess

import numpy as np
import pytest
from photos import PHOTOGRAPHS, photograph
from PIL import Image
from smoke_run import ROOT
from tiny_models import CLASSES, SIZE, variants

from mobileprune.calibration import calibrate
from mobileprune.convert import to_float_flatbuffer
from mobileprune.metadata import Metadata, add_metadata
from mobileprune.min_runtime import with_versions
from mobileprune.preprocess import load
from mobileprune.recipes import quantize
from mobileprune.records import Preprocess
from mobileprune.tflite_graph import read_graph
from mobileprune.tflite_runner import TfliteRunner

PYTHON = ROOT / ".mediapipe" / "bin" / "python"
INSTALLED = any((ROOT / ".mediapipe").glob("lib/python3*/site-packages/mediapipe/__init__.py"))
pytestmark = pytest.mark.skipif(
    not INSTALLED, reason="MediaPipe is not set up; run `make mediapipe` (not on Python 3.13)"
)
SIDE = 32
# A pixel p enters these networks as the stored integer p: the input's scale is 1/std, and its zero point the mean.
EXACT = Preprocess(SIDE, SIDE, mean=(128.0,), std=(128.0,))


def ask(*requests):
    done = subprocess.run(
        [PYTHON, ROOT / "tests" / "mediapipe_worker.py"],
        input=json.dumps(requests),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def jpegs(tmp_path_factory):
    """Forty JPEG files of the input's size, crops of five photographs, with their classes."""
    folder = tmp_path_factory.mktemp("jpegs")
    generator = np.random.default_rng(5)
    files = []
    for label, name in enumerate(PHOTOGRAPHS):
        whole = photograph(name)
        for number in range(8):
            side = generator.uniform(0.4, 0.9) * min(whole.size)
            left, top = (generator.uniform(0, edge - side) for edge in whole.size)
            crop = whole.resize((SIDE, SIDE), Image.Resampling.BOX, box=(left, top, left + side, top + side))
            path = folder / f"{name}_{number}.jpg"
            crop.save(path, quality=92)
            files.append((str(path), label))
    return files


@functools.cache
def network(contract, files):
    """Random convolutions and a dense layer fitted to the photographs' classes by least squares: nothing to train."""
    import keras

    keras.utils.set_random_seed(3)
    inputs = x = keras.Input(contract.shape, name="image")
    for channels in (16, 32):
        x = keras.layers.Conv2D(channels, 3, strides=2, padding="same", activation="relu")(x)
    x = keras.layers.Flatten()(keras.layers.AveragePooling2D(2)(x))
    images = np.stack([load(path, contract) for path, _ in files])
    features = np.asarray(keras.Model(inputs, x)(images))
    wanted = np.eye(len(PHOTOGRAPHS))[[label for _, label in files]] * 2
    padded = np.pad(features, ((0, 0), (0, 1)), constant_values=1)
    solution = np.linalg.solve(padded.T @ padded + 1e-2 * np.eye(padded.shape[1]), padded.T @ wanted)
    head = keras.layers.Dense(len(PHOTOGRAPHS), activation="softmax")
    model = keras.Model(inputs, head(x))
    head.set_weights([solution[:-1].astype("float32"), solution[-1].astype("float32")])
    return to_float_flatbuffer(model), images


def made(contract, files, recipe):
    """The network's file in a recipe, with metadata; its images as the runner takes them."""
    content, images = network(contract, tuple(files))
    ranges = calibrate(content, images)
    (image,) = read_graph(content).inputs
    mean, std = contract.mean[0], contract.std[0]
    for end, pixel in (("min", 0), ("max", 255)):
        ranges[image.name][end] = np.full_like(ranges[image.name][end], (pixel - mean) / std)
    metadata = Metadata("photographs", contract, labels=tuple(PHOTOGRAPHS), output="probabilities")
    return add_metadata(with_versions(quantize(content, recipe, ranges)), metadata), images


def compared(tmp_path, files, content, images):
    """MediaPipe's names and scores of the best class, and the runner's."""
    path = tmp_path / "model.tflite"
    path.write_bytes(content)
    (answers,) = ask({"command": "classify", "model": str(path), "images": [name for name, _ in files]})
    with TfliteRunner(content) as runner:
        outputs = runner.run(images)
    names = list(PHOTOGRAPHS)
    ours = [(names[place], outputs[row, place]) for row, place in enumerate(outputs.argmax(axis=1))]
    return [(answer[0][1], answer[0][2]) for answer in answers], ours


@pytest.mark.parametrize("contract", [EXACT, Preprocess(SIDE, SIDE)], ids=["exact", "default"])
def test_uint8_files_are_classified_as_here(tmp_path, jpegs, contract):
    content, images = made(contract, jpegs, "uint8_io")
    theirs, ours = compared(tmp_path, jpegs, content, images)
    assert [name for name, _ in theirs] == [name for name, _ in ours]
    np.testing.assert_allclose([score for _, score in theirs], [score for _, score in ours], atol=0.02)
    assert len({name for name, _ in ours}) == len(PHOTOGRAPHS)
    if contract is EXACT:
        (image,) = read_graph(content).inputs
        assert (image.dtype, image.scales, image.zero_points) == ("UINT8", (1 / 128,), (128,))


def test_float_files_are_classified_as_here(tmp_path, jpegs):
    theirs, ours = compared(tmp_path, jpegs, *made(Preprocess(SIDE, SIDE), jpegs, "float32"))
    assert [name for name, _ in theirs] == [name for name, _ in ours]
    np.testing.assert_allclose([score for _, score in theirs], [score for _, score in ours], atol=0.01)


def test_the_comparison_finds_blue_in_the_place_of_red(tmp_path, jpegs):
    content, images = made(EXACT, jpegs, "uint8_io")
    theirs, ours = compared(tmp_path, jpegs, content, images[..., ::-1].copy())
    assert [name for name, _ in theirs] != [name for name, _ in ours]


def test_int8_input_is_refused(tmp_path, jpegs):
    """Why there is a recipe with uint8 input."""
    path = tmp_path / "model.tflite"
    path.write_bytes(made(EXACT, jpegs, "int8")[0])
    (answer,) = ask({"command": "classify", "model": str(path), "images": [jpegs[0][0]]})
    assert "uint8/float32, got INT8" in answer["error"]


def test_all_files_open_in_the_metadata_reader(tmp_path):
    metadata = Metadata(
        name="tiny",
        preprocess=Preprocess(SIZE, SIZE, fit="crop", mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375)),
        labels=tuple(f"Größe {index}" for index in range(CLASSES)),
        output="logits",
        description="Nothing in particular.",
        version="3",
        author="Nobody",
        license="Apache-2.0",
    )
    requests = []
    for recipe, variant in variants().items():
        path = tmp_path / f"{recipe}.tflite"
        path.write_bytes(add_metadata(with_versions(variant.content), metadata))
        requests.append({"command": "display", "model": str(path)})
    for recipe, shown in zip(variants(), ask(*requests), strict=True):
        found = shown["metadata"]
        for field in ("name", "description", "version", "author", "license"):
            assert found[field] == getattr(metadata, field)
        assert shown["parser"] == found["min_parser_version"] == "1.0.0"
        (subgraph,) = found["subgraph_metadata"]
        (image,), (scores,) = subgraph["input_tensor_metadata"], subgraph["output_tensor_metadata"]
        properties = image["content"]["content_properties"]
        assert properties == {"color_space": "RGB", "default_size": {"width": SIZE, "height": SIZE}}
        (unit,) = image["process_units"]
        assert unit["options_type"] == "NormalizationOptions"
        assert unit["options"]["mean"] == pytest.approx(metadata.preprocess.mean)
        assert unit["options"]["std"] == pytest.approx(metadata.preprocess.std)
        assert (image["stats"] == {"max": [255.0], "min": [0.0]}) == (recipe == "uint8_io")
        (labels,) = scores["associated_files"]
        assert labels["type"] == "TENSOR_AXIS_LABELS"
        assert base64.b64decode(shown["files"][labels["name"]]).decode().splitlines() == list(metadata.labels)
        attached = json.loads(base64.b64decode(shown["files"]["preprocess.json"]))
        assert Preprocess.from_json(attached) == metadata.preprocess
