"""A folder with one sub-folder of photos per class: scanned, checked and split; pixels are read when needed."""

import hashlib
import itertools
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mobileprune.errors import DatasetError
from mobileprune.json_record import Record
from mobileprune.preprocess import Pixels, decode, read, to_uint8
from mobileprune.records import Preprocess

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp")
SPLITS = ("train", "validation", "calibration", "test")
# Shares of each class's different images; what is left trains.
_TEST_SHARE, _VALIDATION_SHARE, _CALIBRATION_SHARE = 0.2, 0.1, 0.1
_MOST_CALIBRATION = 1024
_LAYOUT = "Give a folder with one sub-folder of JPEG, PNG or WebP images per class."


@dataclass(frozen=True)
class Skipped(Record):
    """An image that is left out. `path` is relative to the folder; `reason` is a sentence that names it."""

    path: str
    reason: str


@dataclass(frozen=True)
class SplitFiles:
    """The files of one split, classes taking turns, and the index of each file's class."""

    paths: tuple[Path, ...]
    labels: tuple[int, ...]


@dataclass(frozen=True)
class Folder:
    """What `scan` found: class names in order, the four splits by name, the images left out, and a digest of it all."""

    labels: tuple[str, ...]
    splits: dict[str, SplitFiles]
    skipped: tuple[Skipped, ...]
    digest: str


@dataclass(frozen=True)
class _Image:
    path: Path
    label: int
    digest: str


def scan(folder: Path, *, strict: bool = False) -> Folder:
    """Finds and decodes every image once, and deals them out to the four splits.

    Classes are the sub-folders in the order of their names. Images are the files in them that end in `EXTENSIONS`, in
    any case; hidden names, other files and deeper folders are ignored. Within each class, the different contents are
    ranked by SHA-256: the first 20% test, the next 10% validate, the next 10% calibrate (at most 1,024 images over all
    classes, but one of each class), the rest trains, and no split of a class is empty. Copies of one file therefore
    always share a split, and the split depends on nothing but contents. Images that cannot be decoded are skipped; so
    are all copies of an image that appears in two classes, because its label is contradictory.

    Args:
        folder: the folder of the classes.
        strict: raise instead of skipping.

    Returns:
        The classes, files and skipped images.

    Raises:
        DatasetError: no folder, fewer than two classes, a class with fewer than four different readable images, or,
            with `strict`, anything that would be skipped.

    Example:
        >>> len(scan(Path("photos")).splits["test"].paths)
        40
    """
    classes = _classes(folder)
    files = [(path, label) for label, name in enumerate(classes) for path in _images(folder / name)]
    # Decoding and hashing release the interpreter's lock, so threads do use all cores.
    with ThreadPoolExecutor(max_workers=_threads()) as pool:
        checked = list(pool.map(lambda item: _check(folder, *item), files))
    good = [item for item in checked if isinstance(item, _Image)]
    skipped = [item for item in checked if isinstance(item, Skipped)]
    good, contradictory = _without_contradictions(folder, classes, good)
    skipped = sorted(skipped + contradictory, key=lambda item: item.path)
    if strict and skipped:
        more = f" ({len(skipped)} such images in all)" if len(skipped) > 1 else ""
        raise DatasetError(f"In {folder}: {skipped[0].reason}{more}")
    return Folder(tuple(classes), _split(folder, classes, good, skipped), tuple(skipped), _digest(good, classes))


def scan_unlabelled(folder: Path, *, strict: bool = False) -> Folder:
    """Finds and decodes every image in a folder and all folders below it; nobody says what the images show.

    Half of the different contents, in the order of their SHA-256, calibrate (at most 1,024), a quarter validates, a
    quarter tests; nothing trains, and every label is 0. Copies of one file share a split.

    Args:
        folder: where the images are.
        strict: raise instead of skipping unreadable images.

    Raises:
        DatasetError: fewer than eight different readable images, or, with `strict`, one that would be skipped.
    """
    if not folder.is_dir():
        raise DatasetError(f"{folder} is {'not a folder' if folder.exists() else 'missing'}. Give a folder of images.")
    folders = [folder, *sorted(path for path in folder.rglob("*") if path.is_dir() and not _hidden(folder, path))]
    paths = [path for one in folders for path in _images(one)]
    with ThreadPoolExecutor(max_workers=_threads()) as pool:
        checked = list(pool.map(lambda path: _check(folder, path, 0), paths))
    skipped = tuple(item for item in checked if isinstance(item, Skipped))
    if strict and skipped:
        raise DatasetError(f"In {folder}: {skipped[0].reason}")
    copies: dict[str, list[Path]] = defaultdict(list)
    for item in checked:
        if isinstance(item, _Image):
            copies[item.digest].append(item.path)
    if len(copies) < 8:
        raise DatasetError(f"{folder} has {len(copies)} different readable images; at least 8 are needed. Add some.")
    digests = sorted(copies)
    half, quarter = len(digests) // 2, len(digests) // 4
    parts = {
        "train": digests[:0],
        "calibration": digests[: min(half, _MOST_CALIBRATION)],
        "validation": digests[half : half + quarter],
        "test": digests[half + quarter :],
    }
    files = {name: tuple(path for digest in part for path in copies[digest]) for name, part in parts.items()}
    splits = {name: SplitFiles(paths, (0,) * len(paths)) for name, paths in files.items()}
    return Folder((), splits, skipped, _digest([item for item in checked if isinstance(item, _Image)], []))


def _digest(images: list[_Image], classes: Sequence[str]) -> str:
    """Contents, labels and class names decide the splits, so they stand for the whole."""
    known = sorted(f"{image.digest} {image.label}" for image in images)
    return hashlib.sha256("\n".join([*classes, *known]).encode()).hexdigest()


def _hidden(folder: Path, path: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


@dataclass(frozen=True)
class FolderPixels:
    """Reads images of one split by index; the pixels pass through the contract."""

    paths: tuple[Path, ...]
    contract: Preprocess

    def __call__(self, indices: Iterable[int] | npt.NDArray[np.int64]) -> Pixels:
        """uint8 pixels of shape (len(indices), height, width, channels).

        Raises:
            DatasetError: a file vanished or was damaged after the scan.
        """
        paths = [self.paths[int(index)] for index in indices]
        result = np.empty((len(paths), *self.contract.shape), np.uint8)
        with ThreadPoolExecutor(max_workers=_threads()) as pool:
            for row, pixels in enumerate(pool.map(self._one, paths)):
                result[row] = pixels
        return result

    def _one(self, path: Path) -> Pixels:
        return to_uint8(decode(read(path), exif=self.contract.exif, where=str(path)), self.contract)


def _threads() -> int:
    return min(8, os.cpu_count() or 1)


def _classes(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise DatasetError(f"{folder} is {'not a folder' if folder.exists() else 'missing'}. {_LAYOUT}")
    names = [path.name for path in _entries(folder) if path.is_dir()]
    odd = [name for name in names if not name.isprintable()]
    if odd:
        # Class names end up in JSON and in label files with one name a line.
        raise DatasetError(f"{folder} has a class folder named {odd[0]!a}. Rename it to printable characters.")
    if not names:
        raise DatasetError(f"{folder} has no sub-folders. {_LAYOUT}")
    if len(names) == 1:
        raise DatasetError(f"{folder} has only one class, '{names[0]}'; at least two are needed. {_LAYOUT}")
    return names


def _images(folder: Path) -> list[Path]:
    return [path for path in _entries(folder) if path.suffix.lower() in EXTENSIONS and not path.is_dir()]


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted((path for path in folder.iterdir() if not path.name.startswith(".")), key=lambda path: path.name)
    except OSError as error:
        raise DatasetError(f"{folder} cannot be read: {error.strerror or error}. Make it readable.") from error


def _check(folder: Path, path: Path, label: int) -> _Image | Skipped:
    where = _shown(folder, path)
    try:
        data = read(path, where)
        decode(data, where=where)
    except DatasetError as error:
        return Skipped(where, str(error))
    return _Image(path, label, hashlib.sha256(data).hexdigest())


def _shown(folder: Path, path: Path) -> str:
    name = path.relative_to(folder).as_posix()
    return name if name.isprintable() else ascii(name)


def _without_contradictions(
    folder: Path, classes: Sequence[str], images: list[_Image]
) -> tuple[list[_Image], list[Skipped]]:
    labels = defaultdict(set)
    for image in images:
        labels[image.digest].add(image.label)
    skipped = []
    for image in images:
        if len(labels[image.digest]) > 1:
            where = _shown(folder, image.path)
            names = " and ".join(f"'{classes[label]}'" for label in sorted(labels[image.digest]))
            skipped.append(Skipped(where, f"{where} is the same image in {names}. Keep it in one class only."))
    return [image for image in images if len(labels[image.digest]) == 1], skipped


def _split(folder: Path, classes: Sequence[str], images: list[_Image], skipped: list[Skipped]) -> dict[str, SplitFiles]:
    dealt: dict[str, list[tuple[int, int, Path]]] = {split: [] for split in SPLITS}
    for label, name in enumerate(classes):
        copies = defaultdict(list)
        for image in images:
            if image.label == label:
                copies[image.digest].append(image.path)
        if len(copies) < len(SPLITS):
            raise DatasetError(_too_few(folder, name, len(copies), skipped))
        digests = sorted(copies)
        for split, some in zip(
            ("test", "validation", "calibration", "train"), _cut(digests, len(classes)), strict=True
        ):
            paths = [path for digest in some for path in copies[digest]]
            dealt[split].extend((turn, label, path) for turn, path in enumerate(paths))
    # Classes take turns, so that any first part of a split covers as many classes as it can.
    for entries in dealt.values():
        entries.sort(key=lambda entry: entry[:2])
    return {
        split: SplitFiles(tuple(path for _, _, path in entries), tuple(label for _, label, _ in entries))
        for split, entries in dealt.items()
    }


def _cut(digests: list[str], classes: int) -> list[list[str]]:
    count = len(digests)
    test = max(1, round(count * _TEST_SHARE))
    validation = max(1, round(count * _VALIDATION_SHARE))
    calibration = max(1, min(round(count * _CALIBRATION_SHARE), _MOST_CALIBRATION // classes))
    edges = [0, test, test + validation, test + validation + calibration, count]
    return [digests[start:end] for start, end in itertools.pairwise(edges)]


def _too_few(folder: Path, name: str, count: int, skipped: list[Skipped]) -> str:
    mine = [item for item in skipped if item.path.startswith(f"{name}/")]
    left_out = f" and {len(mine)} skipped (first: {mine[0].reason})" if mine else ""
    nested = any(path.is_dir() for path in _entries(folder / name))
    if count == 0 and not mine and nested:
        return f"{folder / name} holds folders, not images. {_LAYOUT}"
    return (
        f"Class '{name}' in {folder} has {count} different readable images{left_out}; at least {len(SPLITS)} are "
        "needed, one for each split. Add images or remove the class's folder."
    )
