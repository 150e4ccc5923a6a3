"""Reads Fashion-MNIST: the embedded subset, and folders that hold the original four IDX files."""

import gzip
import io
import lzma
import os
import struct
import zlib
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from mobileprune.errors import DatasetError

LABELS = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
EMBEDDED = "fashion_mnist.xz"
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
IDX_FILES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)
_IMAGES_MAGIC, _LABELS_MAGIC = 0x803, 0x801
_SIDE = 28
# The largest original file holds 60,000 items; a header that claims far more is damaged or hostile.
_MOST_ITEMS = 100_000


class FashionMnist(NamedTuple):
    """Images are uint8 of shape (N, 28, 28), labels uint8 of shape (N,) with values 0 to 9."""

    train_images: npt.NDArray[np.uint8]
    train_labels: npt.NDArray[np.uint8]
    test_images: npt.NDArray[np.uint8]
    test_labels: npt.NDArray[np.uint8]


def read_embedded() -> FashionMnist:
    """The subset that ships in the package: 10,000 training and 5,000 test images, every class alike.

    Raises:
        DatasetError: the file is missing or damaged.

    Example:
        >>> read_embedded().test_images.shape
        (5000, 28, 28)
    """
    place = resources.files("mobileprune.datasets").joinpath(EMBEDDED)
    try:
        stream = io.BytesIO(lzma.decompress(place.read_bytes()))
        arrays = [np.load(stream, allow_pickle=False) for _ in range(4)]
    except (OSError, ValueError, EOFError, lzma.LZMAError) as error:
        raise DatasetError(f"The embedded {EMBEDDED} is damaged: {error}. Install mobileprune again.") from error
    return checked(FashionMnist(*arrays), where=f"the embedded {EMBEDDED}", remedy="Install mobileprune again.")


def checked(data: FashionMnist, where: str, remedy: str) -> FashionMnist:
    """`data`, after a look at shapes, types and label values.

    Raises:
        DatasetError: something is not as the class describes; the message ends with `remedy`.
    """
    for part, images, labels in (
        ("training", data.train_images, data.train_labels),
        ("test", data.test_images, data.test_labels),
    ):
        if images.dtype != np.uint8 or labels.dtype != np.uint8:
            raise DatasetError(f"The {part} part of {where} has {images.dtype} pixels, not uint8. {remedy}")
        if images.ndim != 3 or images.shape[1:] != (_SIDE, _SIDE) or labels.shape != images.shape[:1]:
            raise DatasetError(
                f"The {part} part of {where} has images of shape {images.shape} and labels of shape {labels.shape}; "
                f"expected (N, {_SIDE}, {_SIDE}) and (N,). {remedy}"
            )
        counts = np.bincount(labels, minlength=len(LABELS))
        if len(counts) != len(LABELS) or counts.min() == 0:
            raise DatasetError(f"The {part} labels of {where} are not the classes 0 to {len(LABELS) - 1}. {remedy}")
    return data


def keras_cache() -> Path:
    """The folder in which Keras keeps the IDX files that it downloaded (it honours `KERAS_HOME`)."""
    home = os.environ.get("KERAS_HOME")
    return (Path(home) if home else Path.home() / ".keras") / "datasets" / "fashion-mnist"


def has_idx_files(folder: Path) -> bool:
    """Whether all four IDX files are there."""
    return all((folder / name).is_file() for name in IDX_FILES)


def read_idx_folder(folder: Path) -> FashionMnist:
    """All 60,000 + 10,000 images from the four `.gz` files in IDX format.

    Raises:
        DatasetError: a file is missing, is not the IDX it should be, or its length contradicts its header.
    """
    remedy = "Delete the file so that it is fetched again, or install the package that provides it again."
    return checked(FashionMnist(*(_read_idx(folder / name) for name in IDX_FILES)), where=str(folder), remedy=remedy)


def read_whole() -> tuple[FashionMnist, str]:
    """All images from Keras's cache, else Debian's package, else a download, and a sentence that says which it was.

    Files that are there but damaged are an error: the next place is not tried silently.

    Raises:
        DatasetError: damaged files, or no place has them and the download fails.
    """
    about = "Fashion-MNIST (Zalando SE, MIT licence)"
    for folder, place in (
        (keras_cache(), "Keras's cache"),
        (DEBIAN_FOLDER, "Debian's package dataset-fashion-mnist"),
    ):
        if has_idx_files(folder):
            return read_idx_folder(folder), f"The whole of {about}, from {place}."
    # TensorFlow comes with Keras and takes seconds to import; only this last resort needs them.
    import keras

    remedy = "Install Debian's package dataset-fashion-mnist, or use --dataset=fashion_mnist, which is embedded."
    try:
        (train, train_labels), (test, test_labels) = keras.datasets.fashion_mnist.load_data()
    except Exception as error:  # Keras raises a bare Exception when a download fails
        raise DatasetError(f"Fashion-MNIST could not be downloaded: {error}. {remedy}") from error
    data = checked(FashionMnist(train, train_labels, test, test_labels), "the download", remedy)
    return data, f"The whole of {about}, downloaded by keras.datasets."


def _read_idx(path: Path) -> npt.NDArray[np.uint8]:
    images = "images" in path.name
    magic, dimensions = (_IMAGES_MAGIC, 3) if images else (_LABELS_MAGIC, 1)
    remedy = "Delete it and fetch it again."
    try:
        with gzip.open(path, "rb") as file:
            header = file.read(4 + 4 * dimensions)
            if len(header) < 4 + 4 * dimensions:
                raise DatasetError(f"{path} ends inside its header. {remedy}")
            found, *shape = struct.unpack(f">{1 + dimensions}I", header)
            if found != magic:
                raise DatasetError(f"{path} starts with {found:#x}, not with the IDX magic {magic:#x}. {remedy}")
            if shape[0] > _MOST_ITEMS or (images and shape[1:] != [_SIDE, _SIDE]):
                raise DatasetError(f"{path} claims the shape {tuple(shape)}. {remedy}")
            size = int(np.prod(shape, dtype=np.int64))
            # One byte more than promised is enough to notice a longer file without unpacking all of it.
            body = file.read(size + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DatasetError(f"Cannot read {path}: {error}. {remedy}") from error
    if len(body) != size:
        more = "more" if len(body) > size else f"only {len(body)}"
        raise DatasetError(f"{path} promises {size} bytes of data and holds {more}. {remedy}")
    return np.frombuffer(body, np.uint8).reshape(shape)
