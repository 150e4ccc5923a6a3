import gzip
import shutil
import struct
import subprocess
import sys
from collections import Counter
from importlib import resources

import numpy as np
import pytest
from photos import make_photo_folder
from PIL import Image

from mobileprune.data import dataset_names, default_preprocess, folder_batches, load_dataset, load_images
from mobileprune.datasets.fashion_mnist import (
    DEBIAN_FOLDER,
    EMBEDDED,
    IDX_FILES,
    has_idx_files,
    read_embedded,
    read_idx_folder,
)
from mobileprune.datasets.make_fashion_mnist import subset
from mobileprune.errors import DatasetError, SettingsError
from mobileprune.preprocess import load, normalise, to_uint8
from mobileprune.records import Preprocess

NATIVE = Preprocess(28, 28, color="grayscale")
needs_debian = pytest.mark.skipif(not has_idx_files(DEBIAN_FOLDER), reason="dataset-fashion-mnist is not installed")


@pytest.fixture(scope="module")
def fashion():
    return load_dataset("fashion_mnist")


@pytest.fixture(scope="module")
def native():
    return load_dataset("fashion_mnist", NATIVE)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return make_photo_folder(tmp_path_factory.mktemp("data") / "photos", per_class=12, classes=("cat", "rocket"))


@pytest.fixture(scope="module")
def idx_files(tmp_path_factory):
    """The embedded images in the four original formats, as Keras would have cached them."""
    home = tmp_path_factory.mktemp("keras_home")
    folder = home / "datasets" / "fashion-mnist"
    folder.mkdir(parents=True)
    for name, array in zip(IDX_FILES, read_embedded(), strict=True):
        header = struct.pack(f">{1 + array.ndim}I", 0x803 if array.ndim == 3 else 0x801, *array.shape)
        (folder / name).write_bytes(gzip.compress(header + array.tobytes(), 1))
    return home


def splits(data):
    return (data.train, data.validation, data.calibration, data.test)


def as_numpy(dataset):
    images, labels = zip(*((x.numpy(), y.numpy()) for x, y in dataset), strict=True)
    return np.concatenate(images), np.concatenate(labels)


def test_importing_the_module_does_not_import_tensorflow():
    code = "import sys, mobileprune.data; print(sorted({'tensorflow', 'keras'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_the_embedded_file_is_small_and_has_its_licence():
    folder = resources.files("mobileprune.datasets")
    assert len(folder.joinpath(EMBEDDED).read_bytes()) <= 7_000_000
    licence = folder.joinpath("fashion_mnist.LICENSE").read_text(encoding="utf-8")
    assert "MIT License" in licence
    assert "2017 Zalando SE" in licence


@needs_debian
def test_the_embedded_file_holds_what_its_script_takes_from_the_original():
    for embedded, made in zip(read_embedded(), subset(DEBIAN_FOLDER), strict=True):
        np.testing.assert_array_equal(embedded, made)


def test_the_embedded_splits_are_balanced(fashion):
    assert [len(split) for split in splits(fashion)] == [8500, 1000, 500, 5000]
    for split in splits(fashion):
        assert split.labels.dtype == np.int64
        assert set(Counter(split.labels.tolist()).values()) == {len(split) // 10}
    assert fashion.labels[9] == "Ankle boot"
    assert "embedded" in fashion.source


def test_the_splits_share_no_image_and_lose_none(native):
    def counted(*parts):
        return Counter(image.tobytes() for part in parts for image in part)

    original = read_embedded()
    drawn = [split.pixels(np.arange(len(split)))[..., 0] for split in splits(native)]
    assert counted(*drawn[:3]) == counted(original.train_images)
    assert counted(drawn[3]) == counted(original.test_images)


def test_labels_belong_to_their_images(native):
    original = read_embedded()
    label_of = {
        image.tobytes(): label for image, label in zip(original.train_images, original.train_labels, strict=True)
    }
    for split in splits(native)[:3]:
        images = split.pixels(np.arange(200))
        assert [label_of[image.tobytes()] for image in images] == split.labels[:200].tolist()


def test_the_seed_decides_the_cut(native):
    same, other = load_dataset("fashion_mnist", NATIVE), load_dataset("fashion_mnist", NATIVE, seed=1)
    np.testing.assert_array_equal(same.train.images(50), native.train.images(50))
    assert not np.array_equal(other.train.images(50), native.train.images(50))
    np.testing.assert_array_equal(other.test.images(50), native.test.images(50))


def test_a_small_prefix_covers_the_classes(fashion):
    for split in splits(fashion):
        assert sorted(split.labels[:10]) == list(range(10))


def test_images_are_normalised_and_limited(fashion):
    images = fashion.calibration.images(7)
    assert images.shape == (7, 32, 32, 1)
    assert images.dtype == np.float32
    assert images.min() == -1.0
    assert 0.5 < images.max() <= 1.0
    assert len(fashion.calibration.images(10_000)) == 500
    assert len(fashion.calibration.images()) == 500


def test_large_inputs_are_resized_when_needed_and_alike(native):
    contract = Preprocess(160, 160)
    large = load_dataset("fashion_mnist", contract)
    for split, small in ((large.train, native.train), (large.calibration, native.calibration)):
        expected = [normalise(to_uint8(image, contract), contract) for image in small.pixels(np.arange(3))]
        np.testing.assert_array_equal(split.images(3), np.stack(expected))


def test_grey_images_fill_three_equal_channels(native):
    rgb = load_dataset("fashion_mnist", Preprocess(28, 28))
    np.testing.assert_array_equal(rgb.test.images(20), np.repeat(native.test.images(20), 3, axis=-1))


def test_the_three_ways_to_read_a_split_agree_bit_for_bit(native):
    split = native.validation
    images, labels = as_numpy(split.batches(300))
    np.testing.assert_array_equal(images, split.images())
    np.testing.assert_array_equal(labels, split.labels)
    parts = list(split.numpy_batches(300))
    assert [len(part[0]) for part in parts] == [300, 300, 300, 100]
    np.testing.assert_array_equal(np.concatenate([part[0] for part in parts]), images)
    np.testing.assert_array_equal(np.concatenate([part[1] for part in parts]), labels)


def test_batches_have_a_known_length_and_shape(fashion):
    dataset = fashion.train.batches(64)
    assert len(dataset) == fashion.train.steps(64) == 133
    assert dataset.element_spec[0].shape == (None, 32, 32, 1)


def test_each_pass_has_an_order_of_its_own_that_the_seed_repeats(native):
    dataset, again = (native.validation.batches(64, shuffle_seed=3) for _ in range(2))
    passes = [as_numpy(dataset) for _ in range(3)]
    for images, labels in passes:
        repeated = as_numpy(again)
        np.testing.assert_array_equal(images, repeated[0])
        np.testing.assert_array_equal(labels, repeated[1])
        assert Counter(map(bytes, images)) == Counter(map(bytes, native.validation.images()))
    assert not np.array_equal(passes[0][1], passes[1][1])
    assert not np.array_equal(passes[1][1], passes[2][1])
    assert not np.array_equal(as_numpy(native.validation.batches(64, shuffle_seed=4))[1], passes[0][1])


def test_a_resumed_training_sees_the_orders_that_were_still_to_come(native):
    whole = native.train.batches(512, shuffle_seed=3, augment=True)
    passes = [as_numpy(whole) for _ in range(3)]
    resumed = native.train.batches(512, shuffle_seed=3, augment=True, epoch=1)
    for images, labels in passes[1:]:
        continued = as_numpy(resumed)
        np.testing.assert_array_equal(images, continued[0])
        np.testing.assert_array_equal(labels, continued[1])


@pytest.mark.parametrize("batch_size", [32, 400])
def test_a_look_at_the_first_batch_does_not_count_as_a_pass(native, batch_size):
    expected = as_numpy(native.calibration.batches(batch_size, shuffle_seed=3))
    dataset = native.calibration.batches(batch_size, shuffle_seed=3)
    for _ in range(2):
        next(iter(dataset))
    np.testing.assert_array_equal(as_numpy(dataset)[1], expected[1])


def test_keras_trains_one_pass_an_epoch(native):
    import keras

    seen = []

    class Recorder(keras.layers.Layer):
        def call(self, inputs):
            return inputs

    model = keras.Sequential([Recorder(), keras.layers.Flatten(), keras.layers.Dense(10)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    dataset = native.calibration.batches(50, shuffle_seed=3).map(
        lambda x, y: (x, _noted(seen, y)), num_parallel_calls=1
    )
    model.fit(dataset, epochs=2, shuffle=False, verbose=0)
    orders = native.calibration.batches(50, shuffle_seed=3)
    expected = [as_numpy(orders)[1] for _ in range(2)]
    delivered = np.concatenate(seen)
    # Keras looks at a batch or two before it trains; the two passes are what comes last.
    np.testing.assert_array_equal(delivered[-1000:], np.concatenate(expected))


def _noted(seen, labels):
    import tensorflow as tf

    def note(values):
        seen.append(values)
        return values

    noted = tf.numpy_function(note, [labels], tf.int64)
    noted.set_shape((None,))
    return noted


def test_augmentation_flips_and_shifts_by_at_most_a_sixteenth(native):
    originals = native.train.images(100)
    images = next(iter(native.train.batches(100, augment=True)))[0].numpy()
    kinds = Counter()
    for original, image in zip(originals, images, strict=True):
        padded = np.pad(original, ((2, 2), (2, 2), (0, 0)), mode="edge")
        candidates = {
            (flip, down, right): (piece[:, ::-1] if flip else piece)
            for flip in (False, True)
            for down in range(5)
            for right in range(5)
            for piece in [padded[down : down + 28, right : right + 28]]
        }
        matching = [change for change, candidate in candidates.items() if np.array_equal(candidate, image)]
        assert matching
        kinds[matching[0]] += 1
    assert len(kinds) > 20
    assert 25 < sum(count for (flip, _, _), count in kinds.items() if flip) < 75


def test_each_pass_draws_other_augmentations(native):
    dataset = native.train.batches(8500, augment=True)
    first, second = as_numpy(dataset)[0], as_numpy(dataset)[0]
    assert np.mean([np.array_equal(a, b) for a, b in zip(first, second, strict=True)]) < 0.2


@pytest.mark.parametrize("name", ["validation", "calibration", "test"])
def test_only_train_is_augmented(fashion, name):
    with pytest.raises(SettingsError, match=f"The {name} split must not be augmented"):
        getattr(fashion, name).batches(8, augment=True)


def test_settings_that_mean_nothing_are_refused(fashion):
    with pytest.raises(SettingsError, match="batch size is 0"):
        fashion.train.batches(0)
    with pytest.raises(SettingsError, match="seed is -1"):
        load_dataset("fashion_mnist", seed=-1)
    with pytest.raises(SettingsError, match="asked for -3 images"):
        fashion.train.images(-3)


def test_default_contracts(photos):
    assert default_preprocess("fashion_mnist") == Preprocess(32, 32, color="grayscale", fit="stretch")
    assert default_preprocess(str(photos)) == Preprocess(96, 96, color="RGB", fit="crop")
    assert default_preprocess(str(photos), 128, "stretch") == Preprocess(128, 128, fit="stretch")
    with pytest.raises(SettingsError, match="fit='squeeze'"):
        default_preprocess("fashion_mnist", fit="squeeze")
    with pytest.raises(SettingsError, match="height is 0 pixels"):
        default_preprocess("fashion_mnist", 0)


@pytest.mark.parametrize("function", [default_preprocess, load_dataset])
def test_an_unknown_name_lists_the_known_ones(function):
    with pytest.raises(DatasetError) as caught:
        function("cifar")
    assert str(caught.value) == (
        "Unknown dataset 'cifar'. Known: fashion_mnist, fashion_mnist_full, or the path of a folder of images with one "
        "sub-folder per class."
    )
    assert all(name in str(caught.value) for name in dataset_names())


def test_a_folder_becomes_a_dataset(photos):
    data = load_dataset(str(photos))
    assert data.name == "photos"
    assert data.labels == ("cat", "rocket")
    assert [len(split) for split in splits(data)] == [16, 2, 2, 4]
    assert data.source == "24 images in 2 classes from the folder 'photos'."


def test_a_folder_in_the_current_directory_needs_no_separator(photos, monkeypatch):
    monkeypatch.chdir(photos.parent)
    assert load_dataset("photos").labels == ("cat", "rocket")


def test_a_folders_batches_are_what_load_gives(photos):
    data = load_dataset(str(photos), Preprocess(64, 64, fit="crop"))
    images, labels = as_numpy(data.train.batches(5))
    np.testing.assert_array_equal(images, data.train.images())
    np.testing.assert_array_equal(labels, data.train.labels)
    np.testing.assert_array_equal(images[3], load(data.train.pixels.paths[3], data.preprocess))


def test_skipped_images_are_counted_in_the_source(photos, tmp_path):
    folder = shutil.copytree(photos, tmp_path / "photos")
    (folder / "cat" / "broken.png").write_bytes(b"\x89PNG")
    data = load_dataset(str(folder))
    assert [item.path for item in data.skipped] == ["cat/broken.png"]
    assert data.source.endswith("; 1 skipped.")
    with pytest.raises(DatasetError, match=r"broken\.png"):
        load_dataset(str(folder), strict=True)


def test_the_whole_comes_first_from_keras_cache(idx_files, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(idx_files))
    data = load_dataset("fashion_mnist_full", NATIVE)
    assert "Keras's cache" in data.source
    assert [len(split) for split in splits(data)] == [4000, 5000, 1000, 5000]


@needs_debian
def test_the_whole_comes_next_from_debian(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    data = load_dataset("fashion_mnist_full", NATIVE)
    assert "Debian's package" in data.source
    assert [len(split) for split in splits(data)] == [54_000, 5_000, 1_000, 10_000]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (IDX_FILES[0], b"no gzip", "Not a gzipped file"),
        (IDX_FILES[0], gzip.compress(b"\0\0"), "ends inside its header"),
        (IDX_FILES[0], gzip.compress(struct.pack(">4I", 0x801, 1, 28, 28)), "IDX magic 0x803"),
        (IDX_FILES[0], gzip.compress(struct.pack(">4I", 0x803, 2**31, 28, 28)), "claims the shape"),
        (IDX_FILES[0], gzip.compress(struct.pack(">4I", 0x803, 5, 28, 27)), "claims the shape"),
        (IDX_FILES[2], gzip.compress(struct.pack(">4I", 0x803, 2, 28, 28) + bytes(784)), "holds only 784"),
        (IDX_FILES[1], gzip.compress(struct.pack(">2I", 0x801, 2) + bytes(3)), "holds more"),
        (IDX_FILES[1], gzip.compress(struct.pack(">2I", 0x801, 2) + bytes(2)), r"labels of shape \(2,\)"),
        (IDX_FILES[3], gzip.compress(struct.pack(">2I", 0x801, 5000) + bytes([11] * 5000)), "not the classes 0 to 9"),
        (IDX_FILES[1], gzip.compress(bytes(50_000))[:40], "Cannot read|IDX magic"),
    ],
    # Names of their own: compressed bytes carry the time, and every test process must find the same tests.
    ids=lambda value: value.replace(" ", "-") if isinstance(value, str) else "bytes",
)
def test_damaged_idx_files_are_refused(idx_files, tmp_path, name, content, message):
    folder = shutil.copytree(idx_files / "datasets" / "fashion-mnist", tmp_path / "idx")
    (folder / name).write_bytes(content)
    with pytest.raises(DatasetError, match=message):
        read_idx_folder(folder)


def test_a_folder_gives_batches_for_calibration(tmp_path):
    contract = Preprocess(12, 10, mean=(127.0,), std=(128.0,))
    generator = np.random.default_rng(0)
    for number in range(20):
        Image.fromarray(generator.integers(0, 256, (16, 16, 3), np.uint8)).save(tmp_path / f"{number}.png")
    batches = list(folder_batches(str(tmp_path), contract, batch_size=4))
    assert [batch.shape for batch in batches] == [(4, 12, 10, 3)] * 2 + [(2, 12, 10, 3)]
    expected = load_images(str(tmp_path), contract, ()).calibration.images()
    assert np.array_equal(np.concatenate(batches), expected)
    with pytest.raises(DatasetError, match="is missing"):
        next(folder_batches(str(tmp_path / "nowhere"), contract))
