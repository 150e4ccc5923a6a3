"""A dataset's four parts."""

import numpy as np
import pytest

from mobileprune.data import load_dataset, load_images, read_labels
from mobileprune.errors import DatasetError
from mobileprune.files import file_digest
from mobileprune.image_folder import scan_unlabelled
from mobileprune.records import Preprocess


def test_a_limited_dataset_keeps_the_first_images_and_all_classes():
    whole = load_dataset("fashion_mnist")
    small = whole.limited(20)
    assert [len(split) for split in (small.train, small.validation, small.calibration, small.test)] == [20] * 4
    assert len(whole.train) == 8500
    assert set(small.train.labels) == set(range(10))
    np.testing.assert_array_equal(small.test.images(), whole.test.images(20))


def test_a_limit_above_the_size_changes_nothing():
    whole = load_dataset("fashion_mnist")
    assert len(whole.limited(10**6).test) == len(whole.test)


@pytest.fixture
def pictures(tmp_path):
    from PIL import Image

    generator = np.random.default_rng(0)
    for number in range(12):
        folder = tmp_path / ("deep/er" if number % 2 else ".")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 255, (40, 50, 3), np.uint8)).save(folder / f"{number}.png")
    (tmp_path / "copy.png").write_bytes((tmp_path / "0.png").read_bytes())
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "secret.png").write_bytes(b"not looked at")
    return tmp_path


def test_unlabelled_images_are_found_in_all_folders_and_copies_share_a_split(pictures):
    found = scan_unlabelled(pictures)
    assert sum(len(files.paths) for files in found.splits.values()) == 13
    assert found.splits["train"].paths == ()
    homes = {path.name: name for name, files in found.splits.items() for path in files.paths}
    assert homes["0.png"] == homes["copy.png"]
    assert [skipped.path for skipped in found.skipped] == ["broken.jpg"]
    assert scan_unlabelled(pictures).splits == found.splits


def test_unreadable_images_are_refused_when_strict(pictures):
    with pytest.raises(DatasetError, match=r"broken\.jpg"):
        scan_unlabelled(pictures, strict=True)


def test_too_few_images_are_refused(tmp_path):
    with pytest.raises(DatasetError, match="at least 8"):
        scan_unlabelled(tmp_path)
    with pytest.raises(DatasetError, match="missing"):
        scan_unlabelled(tmp_path / "nowhere")


def test_unlabelled_images_pass_through_the_contract(pictures):
    data = load_images(str(pictures), Preprocess(16, 24), ("a", "b"))
    assert data.calibration.images().shape == (len(data.calibration), 16, 24, 3)
    assert data.labels == ("a", "b")
    assert "no known class" in data.source


def test_labels_are_read_one_a_line_and_must_match_the_outputs(tmp_path):
    path = tmp_path / "labels.txt"
    path.write_text("cat\n\n dog \n")
    assert read_labels(str(path), 2) == ("cat", "dog")
    with pytest.raises(DatasetError, match="names 2 classes; the model has 3 outputs"):
        read_labels(str(path), 3)
    with pytest.raises(DatasetError, match="cannot be read"):
        read_labels(str(tmp_path / "none.txt"), 2)


def test_a_digest_follows_the_content(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    assert file_digest(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    path.write_bytes(b"abd")
    assert not file_digest(path).startswith("ba7816bf")
