"""Dataset name or folder → four splits with their labels and the preprocessing contract.

Every dataset has `train`, `validation`, `calibration` and `test`. Validation and calibration are cut from what would
otherwise train; the test images are never part of them.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mobileprune.datasets import fashion_mnist
from mobileprune.errors import DatasetError
from mobileprune.image_folder import Folder, FolderPixels, Skipped, scan, scan_unlabelled
from mobileprune.preprocess import Pixels, check_contract, to_uint8
from mobileprune.records import Preprocess
from mobileprune.splits import Dataset, Images, Labels, Split, checked_seed

__all__ = ["Dataset", "Skipped", "Split", "dataset_names", "default_preprocess", "load_dataset"]


# Splits whose resized pixels need more than this are resized batch by batch instead of once.
_MOST_BYTES_AT_ONCE = 256 * 2**20


def dataset_names() -> tuple[str, ...]:
    """The datasets that have a name; a path of a folder is the other way to name one."""
    return ("fashion_mnist", "fashion_mnist_full")


def default_preprocess(name: str, image_size: int | None = None, fit: str | None = None) -> Preprocess:
    """The contract that suits a dataset; reads no data.

    Args:
        name: one of `dataset_names()` or the path of a folder.
        image_size: height and width of the input in pixels; 32 for Fashion-MNIST and 96 for a folder if None.
        fit: `crop` or `stretch`; `stretch` for Fashion-MNIST and `crop` for a folder if None.

    Raises:
        DatasetError: an unknown name.
        SettingsError: a size or fit that cannot be meant.

    Example:
        >>> default_preprocess("fashion_mnist").shape
        (32, 32, 1)
    """
    folder = _folder(name)
    size = (32 if folder is None else 96) if image_size is None else image_size
    return check_contract(
        Preprocess(
            height=size,
            width=size,
            color="grayscale" if folder is None else "RGB",
            fit=fit or ("stretch" if folder is None else "crop"),  # type: ignore[arg-type]  # checked by check_contract
        )
    )


def load_dataset(name: str, preprocess: Preprocess | None = None, *, seed: int = 0, strict: bool = False) -> Dataset:
    """Loads a dataset and cuts it into its four splits.

    Args:
        name: `fashion_mnist` (embedded: 8,500 / 1,000 / 500 / 5,000 images), `fashion_mnist_full` (54,000 / 5,000 /
            1,000 / 10,000; from Keras's cache, Debian's package or a download, in this order), or the path of a
            folder of images with one sub-folder per class. A known name wins over a folder of the same name.
        preprocess: the contract; `default_preprocess(name)` if None.
        seed: decides which Fashion-MNIST images train, validate and calibrate. A folder's split depends on the
            images' contents alone.
        strict: refuse a folder in which an image would be skipped.

    Raises:
        DatasetError: an unknown name, unreadable data, or a folder that cannot be split.
        SettingsError: a contract that cannot be carried out, or a negative seed.

    Example:
        >>> data = load_dataset("fashion_mnist")
        >>> len(data.train), data.labels[9]
        (8500, 'Ankle boot')
    """
    folder = _folder(name)
    checked_seed(seed)
    contract = check_contract(default_preprocess(name) if preprocess is None else preprocess)
    if folder is not None:
        return _from_folder(folder, contract, strict)
    if name == "fashion_mnist":
        source = "The subset of Fashion-MNIST (Zalando SE, MIT licence) that is embedded in mobileprune."
        return _from_fashion_mnist(name, fashion_mnist.read_embedded(), source, contract, seed, (100, 50))
    data, source = fashion_mnist.read_whole()
    return _from_fashion_mnist(name, data, source, contract, seed, (500, 100))


def load_images(folder: str, preprocess: Preprocess, labels: tuple[str, ...], *, strict: bool = False) -> Dataset:
    """Images that nobody labelled, for what needs no labels: calibration, verification and agreement.

    Args:
        folder: the images, in it or in folders below it.
        preprocess: the model's contract.
        labels: what the model's outputs mean, in order.
        strict: refuse a folder in which an image would be skipped.

    Returns:
        A dataset whose train split is empty and whose labels say nothing: every image has label 0.

    Raises:
        DatasetError: see `mobileprune.image_folder.scan_unlabelled`.
    """
    contract = check_contract(preprocess)
    found = scan_unlabelled(Path(folder), strict=strict)
    return _folder_dataset(Path(folder), found, labels, contract, f"of no known class in folder '{Path(folder).name}'")


def folder_batches(folder: str, preprocess: Preprocess, batch_size: int = 32) -> Iterator[Images]:
    """Images of a folder for calibration, batch by batch, read and preprocessed when they are asked for.

    Args:
        folder: the images, in it or in folders below it; half of them, 1,024 at most, as `load_images` cuts them.
        preprocess: the model's contract.
        batch_size: images held at once.

    Raises:
        DatasetError: see `mobileprune.image_folder.scan_unlabelled`.

    Example:
        >>> ranges = calibrate(content, folder_batches("photos", contract))  # doctest: +SKIP
    """
    for images, _ in load_images(folder, preprocess, ()).calibration.numpy_batches(batch_size):
        yield images


def read_labels(path: str, count: int) -> tuple[str, ...]:
    """Class names from a text file with one a line, in the order of a model's outputs.

    Raises:
        DatasetError: it cannot be read, or has not `count` names.
    """
    try:
        names = tuple(line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"The labels in {path} cannot be read: {error}.") from error
    if len(names) != count:
        raise DatasetError(f"{path} names {len(names)} classes; the model has {count} outputs.")
    return names


def _folder(name: str) -> Path | None:
    """The folder that `name` means, or None for a known name."""
    if name in dataset_names():
        return None
    separators = [os.sep] + ([os.altsep] if os.altsep else [])
    if name and (any(separator in name for separator in separators) or Path(name).is_dir()):
        return Path(name)
    raise DatasetError(
        f"Unknown dataset '{name}'. Known: {', '.join(dataset_names())}, or the path of a folder of images with one "
        "sub-folder per class."
    )


def _from_folder(folder: Path, contract: Preprocess, strict: bool) -> Dataset:
    found = scan(folder, strict=strict)
    where = f"in {len(found.labels)} classes from the folder '{folder.resolve().name}'"
    return _folder_dataset(folder, found, found.labels, contract, where)


def _folder_dataset(folder: Path, found: Folder, labels: tuple[str, ...], contract: Preprocess, where: str) -> Dataset:
    splits = {
        name: Split(name, np.array(files.labels, np.int64), contract, FolderPixels(files.paths, contract))
        for name, files in found.splits.items()
    }
    name = folder.resolve().name or "images"
    count = sum(len(split) for split in splits.values())
    source = f"{count} images {where}"
    source += f"; {len(found.skipped)} skipped." if found.skipped else "."
    return Dataset(name, labels, contract, **splits, skipped=found.skipped, source=source, digest=found.digest)


def _from_fashion_mnist(
    name: str,
    data: fashion_mnist.FashionMnist,
    source: str,
    contract: Preprocess,
    seed: int,
    per_class: tuple[int, int],
) -> Dataset:
    """`per_class`: how many images of each class validate and calibrate; the rest of the training images trains."""
    validation, calibration = per_class
    generator = np.random.default_rng(seed)
    cut: dict[str, list[Labels]] = {"validation": [], "calibration": [], "train": []}
    for label in range(len(fashion_mnist.LABELS)):
        indices = generator.permutation(np.flatnonzero(data.train_labels == label))
        if len(indices) <= validation + calibration:
            raise DatasetError(f"Class '{fashion_mnist.LABELS[label]}' has only {len(indices)} training images.")
        cut["validation"].append(indices[:validation])
        cut["calibration"].append(indices[validation : validation + calibration])
        cut["train"].append(indices[validation + calibration :])
    test = [np.flatnonzero(data.test_labels == label) for label in range(len(fashion_mnist.LABELS))]
    splits = {
        split: _array_split(split, data.train_images, data.train_labels, groups, contract)
        for split, groups in cut.items()
    }
    splits["test"] = _array_split("test", data.test_images, data.test_labels, test, contract)
    return Dataset(
        name, fashion_mnist.LABELS, contract, **splits, skipped=(), source=source, digest=f"{name}, seed {seed}"
    )


def _array_split(name: str, images: Pixels, labels: Pixels, groups: list[Labels], contract: Preprocess) -> Split:
    turns = np.concatenate([np.arange(len(group)) for group in groups])
    # A stable sort keeps the classes in order within each turn.
    chosen = np.concatenate(groups)[np.argsort(turns, kind="stable")]
    originals = images[chosen]

    def resized(indices: Labels) -> Pixels:
        result = np.empty((len(indices), *contract.shape), np.uint8)
        for row, index in enumerate(indices):
            result[row] = to_uint8(originals[index], contract)
        return result

    split_labels = labels[chosen].astype(np.int64)
    if len(chosen) * int(np.prod(contract.shape)) > _MOST_BYTES_AT_ONCE:
        return Split(name, split_labels, contract, resized)
    whole = resized(np.arange(len(chosen)))
    return Split(name, split_labels, contract, lambda indices: whole[indices])
