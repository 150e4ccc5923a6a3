import shutil
from collections import Counter

import numpy as np
import pytest
from photos import make_photo_folder

from mobileprune.errors import DatasetError
from mobileprune.image_folder import SPLITS, FolderPixels, scan
from mobileprune.preprocess import decode, to_uint8
from mobileprune.records import Preprocess


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return make_photo_folder(tmp_path_factory.mktemp("folder") / "photos", per_class=20, classes=("cat", "coffee"))


@pytest.fixture
def photos(original, tmp_path):
    return shutil.copytree(original, tmp_path / "photos")


def split_of(found):
    return {path.name: split for split, files in found.splits.items() for path in files.paths}


def test_two_hundred_photographs_of_96_pixels_can_be_made(tmp_path):
    found = scan(make_photo_folder(tmp_path / "photos", per_class=40, size=96))
    paths = [path for files in found.splits.values() for path in files.paths]
    assert len(set(paths)) == 200
    assert {path.suffix for path in paths} == {".jpg", ".png", ".JPEG", ".webp"}
    first = next(path for path in paths if path.name == "cat_000.jpg")
    assert min(decode(first.read_bytes()).size) == 96
    assert decode(first.read_bytes()).size == decode(first.read_bytes(), exif=False).size[::-1]


def test_shares_are_exact_in_each_class(original):
    found = scan(original)
    assert found.labels == ("cat", "coffee")
    assert found.skipped == ()
    counts = {split: Counter(files.labels) for split, files in found.splits.items()}
    assert counts == {
        "train": {0: 12, 1: 12},
        "validation": {0: 2, 1: 2},
        "calibration": {0: 2, 1: 2},
        "test": {0: 4, 1: 4},
    }


def test_every_image_is_in_one_split_under_its_own_class(original):
    found = scan(original)
    paths = [path for split in SPLITS for path in found.splits[split].paths]
    assert sorted(paths) == sorted(path for path in original.rglob("*") if path.is_file())
    for files in found.splits.values():
        assert [path.parent.name for path in files.paths] == [found.labels[label] for label in files.labels]


def test_a_prefix_of_a_split_covers_the_classes(original):
    for files in scan(original).splits.values():
        assert set(files.labels[:2]) == {0, 1}


def test_the_split_depends_on_contents_and_not_on_names(photos):
    before = split_of(scan(photos))
    for number, path in enumerate(sorted((photos / "cat").iterdir(), reverse=True)):
        path.rename(path.with_name(f"{number:02d}_{path.name}"))
    after = {
        name.split("_", 1)[1] if name[0].isdigit() else name: split for name, split in split_of(scan(photos)).items()
    }
    assert after == before


def test_duplicates_stay_in_one_split(photos):
    sources = sorted((photos / "cat").iterdir())
    for path in sources:
        shutil.copy(path, path.with_name(f"copy_{path.name}"))
    splits = split_of(scan(photos))
    assert all(splits[path.name] == splits[f"copy_{path.name}"] for path in sources)
    assert set(splits.values()) == set(SPLITS)


def test_one_image_in_two_classes_is_skipped_in_both_and_named(photos):
    shutil.copy(photos / "cat" / "cat_001.png", photos / "coffee" / "mistake.png")
    found = scan(photos)
    assert [item.path for item in found.skipped] == ["cat/cat_001.png", "coffee/mistake.png"]
    assert "is the same image in 'cat' and 'coffee'" in found.skipped[0].reason
    assert not {"cat_001.png", "mistake.png"} & set(split_of(found))
    with pytest.raises(DatasetError, match="the same image in 'cat' and 'coffee'"):
        scan(photos, strict=True)


@pytest.mark.parametrize("name", ["cat_000.jpg", "cat_001.png", "cat_003.webp"])
def test_a_truncated_image_is_skipped_named_and_counted(photos, name):
    path = photos / "cat" / name
    path.write_bytes(path.read_bytes()[:-300])
    found = scan(photos)
    assert [item.path for item in found.skipped] == [f"cat/{name}"]
    assert found.skipped[0].reason.startswith(f"cat/{name} is truncated or damaged")
    assert name not in split_of(found)
    assert len(split_of(found)) == 39


def test_strict_refuses_a_truncated_image(photos):
    path = photos / "coffee" / "coffee_002.JPEG"
    path.write_bytes(path.read_bytes()[:500])
    (photos / "coffee" / "text.png").write_text("no image")
    with pytest.raises(DatasetError, match=r"coffee_002\.JPEG is truncated .*\(2 such images in all\)"):
        scan(photos, strict=True)


def test_a_dangling_link_is_skipped_and_named(photos):
    (photos / "cat" / "gone.jpg").symlink_to(photos / "nowhere.jpg")
    assert [item.path for item in scan(photos).skipped] == ["cat/gone.jpg"]


def test_hidden_and_stray_files_are_ignored(photos, original):
    (photos / "readme.txt").write_text("notes")
    shutil.copy(photos / "cat" / "cat_000.jpg", photos / "stray.jpg")
    (photos / ".cache").mkdir()
    (photos / "cat" / ".hidden.jpg").write_text("x")
    (photos / "cat" / "Thumbs.db").write_text("x")
    (photos / "cat" / "deeper.jpg").mkdir()
    found = scan(photos)
    assert found.labels == ("cat", "coffee")
    assert found.skipped == ()
    assert split_of(found) == split_of(scan(original))


def test_an_empty_folder_is_one_clear_error(tmp_path):
    with pytest.raises(DatasetError, match=r"has no sub-folders\. Give a folder with one sub-folder"):
        scan(tmp_path)


def test_a_missing_folder_and_a_file_are_told_apart(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(DatasetError, match=r"absent is missing\. Give"):
        scan(tmp_path / "absent")
    with pytest.raises(DatasetError, match=r"file is not a folder\. Give"):
        scan(tmp_path / "file")


def test_one_class_is_refused_by_name(photos):
    shutil.rmtree(photos / "coffee")
    with pytest.raises(DatasetError, match="has only one class, 'cat'; at least two are needed"):
        scan(photos)


def test_a_class_that_cannot_fill_the_splits_is_refused(photos):
    for path in sorted((photos / "cat").iterdir())[4:]:
        path.unlink()
    assert Counter(split for name, split in split_of(scan(photos)).items() if name.startswith("cat")) == dict.fromkeys(
        SPLITS, 1
    )
    (photos / "cat" / "cat_000.jpg").write_text("no image")
    with pytest.raises(
        DatasetError, match=r"'cat' in .* has 3 different readable images and 1 skipped \(first: cat/cat_0"
    ):
        scan(photos)


def test_copies_do_not_count_as_different_images(photos):
    for path in sorted((photos / "cat").iterdir())[1:]:
        shutil.copy(photos / "cat" / "cat_000.jpg", path)
    with pytest.raises(DatasetError, match="has 1 different readable images; at least 4"):
        scan(photos)


def test_a_layout_one_level_too_high_is_recognised(photos, tmp_path):
    (tmp_path / "above" / "train").mkdir(parents=True)
    (tmp_path / "above" / "test").mkdir()
    for part in ("train", "test"):
        shutil.copytree(photos / "cat", tmp_path / "above" / part / "cat")
    with pytest.raises(DatasetError, match=r"(test|train) holds folders, not images"):
        scan(tmp_path / "above")


def test_a_class_name_that_would_break_a_label_file_is_refused(photos):
    (photos / "cat").rename(photos / "c\nat")
    with pytest.raises(DatasetError, match=r"'c\\nat'\. Rename it") as caught:
        scan(photos)
    assert "\n" not in str(caught.value)


def test_pixels_pass_through_the_contract_in_the_order_asked_for(original):
    contract = Preprocess(64, 48, fit="crop")
    paths = scan(original).splits["train"].paths
    pixels = FolderPixels(paths, contract)([5, 0])
    assert pixels.shape == (2, 64, 48, 3)
    for row, index in zip(pixels, (5, 0), strict=True):
        np.testing.assert_array_equal(row, to_uint8(decode(paths[index].read_bytes()), contract))


def test_a_file_that_vanished_after_the_scan_is_named(photos):
    paths = scan(photos).splits["test"].paths
    paths[0].unlink()
    with pytest.raises(DatasetError, match=rf"{paths[0].name} cannot be read"):
        FolderPixels(paths, Preprocess(8, 8))([0])
