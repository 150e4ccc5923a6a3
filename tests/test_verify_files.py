import dataclasses

import numpy as np
import pytest
from photo_models import CONTRACT, NAMES, expected, photo_images, photo_net, photo_variants, photos

from mobileprune.errors import DatasetError, SettingsError, VerificationError
from mobileprune.verify import verify
from mobileprune.verify_files import find_images, verify_files


def test_encoded_images_give_what_arrays_give():
    paths, labels = photos()
    variant = photo_variants()["int8"]
    from_files = verify_files(photo_net(), variant, paths, CONTRACT, labels=labels)
    assert from_files.classes is not None
    plain = verify(expected(), variant, photo_images())
    assert from_files.snr_db == pytest.approx(plain.snr_db, abs=0.01)
    assert plain.classes is None


def test_a_reference_with_its_own_preprocessing_sees_its_own_images():
    seen = []

    def reference(images):
        seen.append(images)
        return np.asarray(photo_net()(images, training=False))

    paths = photos()[0][:4]
    doubled = {path: 2 * image for path, image in zip(paths, photo_images(), strict=False)}
    report = verify_files(reference, photo_variants()["float32"], paths, CONTRACT, preprocess=doubled.__getitem__)
    assert not report.passed
    np.testing.assert_array_equal(seen[0], 2 * photo_images()[:4])


def test_too_few_images_and_unreadable_ones(tmp_path):
    variant = photo_variants()["float32"]
    with pytest.raises(SettingsError, match="1 images are too few"):
        verify_files(expected(), variant, photos()[0][:1], CONTRACT)
    (tmp_path / "no.jpg").write_bytes(b"no image")
    with pytest.raises(DatasetError, match=r"no\.jpg"):
        verify_files(expected(), variant, [*photos()[0][:2], tmp_path / "no.jpg"], CONTRACT)


def test_a_missing_figure_is_no_pass():
    report = verify(expected(), photo_variants()["float32"], photo_images())
    report.raise_if_failed()
    for name, value in (("snr_db", None), ("agreement", float("nan")), ("images", 0)):
        lacking = dataclasses.replace(report, **{name: value})
        assert not lacking.passed
        with pytest.raises(VerificationError, match=f"has no {name}"):
            lacking.raise_if_failed()
    labelled = verify(expected(), photo_variants()["float32"], photo_images(), labels=photos()[1])
    lacking = dataclasses.replace(labelled, classes=dataclasses.replace(labelled.classes, churn=None))
    assert lacking.missing() == ("classes.churn",)
    assert type(labelled).from_json(labelled.to_json()) == labelled


def test_images_are_found_in_turns_of_classes():
    folder = photos()[0][0].parent.parent
    paths, labels = find_images(folder, 12, NAMES)
    assert labels.tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1]
    assert [NAMES[label] for label in labels] == [path.parent.name for path in paths]
    paths, labels = find_images(folder, 7)
    assert labels is None
    assert len(set(paths)) == 7
    assert {path.parent.name for path in paths} == set(NAMES)


def test_folders_that_do_not_do(tmp_path):
    with pytest.raises(DatasetError, match="is missing"):
        find_images(tmp_path / "none", 4)
    with pytest.raises(DatasetError, match="has 0 JPEG"):
        find_images(tmp_path, 4)
    (tmp_path / "cat").mkdir()
    with pytest.raises(DatasetError, match=r"no sub-folder 'dog' \(1 of 2"):
        find_images(tmp_path, 4, ("cat", "dog"))
    with pytest.raises(DatasetError, match="has 0 JPEG"):
        find_images(tmp_path, 4, ("cat",))
