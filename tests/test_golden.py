import dataclasses
import io

import numpy as np
import pytest
from photo_models import CONTRACT, photo_variants, photos
from photos import PHOTOGRAPHS, photograph
from PIL import Image

from mobileprune.errors import DatasetError
from mobileprune.golden import GRID, GoldenPicture, encode_picture, golden_faults, grid_means, make_golden, open_runners
from mobileprune.preprocess import decode

RUNTIME = "litert"


def files():
    return {f"net_{recipe}.tflite": photo_variants()[recipe].content for recipe in ("float32", "int8")}


def pictures():
    # Classes take turns, so that few are looked at.
    return [decode(path.read_bytes()) for path in photos()[0][:20]]


@pytest.fixture(scope="module")
def golden():
    return make_golden(pictures(), CONTRACT, files(), RUNTIME, 4)


def test_golden_pictures_are_of_different_classes_and_one_is_stored_sideways(golden):
    assert [picture.file for picture, _ in golden] == ["golden_0.jpg", "golden_1.png", "golden_2.jpg", "golden_3.jpg"]
    orientations = [Image.open(io.BytesIO(content)).getexif().get(0x0112) for _, content in golden]
    assert orientations == [6, None, None, None]
    for name in files():
        assert len({int(np.argmax(picture.outputs[name])) for picture, _ in golden}) == 4
        for picture, _ in golden:
            second, first = np.sort(picture.outputs[name])[-2:]
            assert first - second > picture.tolerances[name] > 0


def test_what_was_shipped_is_found_again(golden):
    with open_runners(files(), RUNTIME) as runners:
        for picture, content in golden:
            assert golden_faults(picture, content, CONTRACT, runners) == []
            assert GoldenPicture.from_json(picture.to_json()) == picture


def test_each_kind_of_difference_is_found(golden):
    (picture, content), (_, other) = golden[:2]
    (name, file), *_ = files().items()

    def faults(changed=picture, content=content):
        with open_runners({name: file}, RUNTIME) as runners:
            return " ".join(golden_faults(changed, content, CONTRACT, runners))

    outputs = list(picture.outputs[name])
    outputs[0] += 1.01 * picture.tolerances[name]
    assert "an output of net_float32.tflite is off by" in faults(
        dataclasses.replace(picture, outputs={name: tuple(outputs)})
    )
    outputs[0] = float("nan")
    assert "is off by nan" in faults(dataclasses.replace(picture, outputs={name: tuple(outputs)}))
    assert "has 5 outputs, 4 are expected" in faults(dataclasses.replace(picture, outputs={name: tuple(outputs[1:])}))
    assert "nothing is expected of" in faults(dataclasses.replace(picture, tolerances={}))
    assert "the input is off by" in faults(content=other)
    top = list(picture.outputs[name])
    top[int(np.argmin(top))] = max(top) + 1
    wide = dataclasses.replace(picture, outputs={name: tuple(top)}, tolerances={name: 100.0})
    assert "is expected" in faults(wide)


def test_pictures_that_noise_changes_are_refused():
    grey = [Image.new("RGB", (40, 30), (value, value, value)) for value in (90, 100, 110)]
    with pytest.raises(DatasetError, match=r"Among 3 pictures there are [01] of different classes"):
        make_golden(grey, CONTRACT, files(), RUNTIME, 4)


@pytest.mark.parametrize("number", range(3))
def test_large_pictures_shrink_and_come_back_upright(number):
    image = photograph(next(iter(PHOTOGRAPHS)))
    name, content = encode_picture(image, number, longest=200)
    back = decode(content, where=name)
    shrunk = image.copy()
    shrunk.thumbnail((200, 200))
    assert back.size == shrunk.size
    assert np.abs(np.asarray(back, int) - np.asarray(shrunk, int)).mean() < (0.001 if name.endswith("png") else 6)


def test_grid_means_cover_every_pixel_of_inputs_that_eight_does_not_divide():
    pixels = np.arange(19 * 13 * 3, dtype=np.uint32).reshape(19, 13, 3).astype(np.uint8)
    means = grid_means(pixels).reshape(GRID, GRID, 3)
    assert means[0, 0].tolist() == pixels[:2, :1].mean(axis=(0, 1)).tolist()
    assert means[7, 7].tolist() == pytest.approx(pixels[16:, 11:].mean(axis=(0, 1)).tolist())
    assert grid_means(np.full((3, 2, 1), 9, np.uint8)).tolist() == [9.0] * 64
