"""Makes `fashion_mnist.xz` from the original IDX files; the same input and liblzma give the same bytes.

    python -m mobileprune.datasets.make_fashion_mnist [FOLDER_WITH_THE_IDX_FILES [OUTPUT]]

FOLDER is the one of Debian's package `dataset-fashion-mnist` unless given. The file is an xz stream of four arrays in
NumPy's `.npy` format, one after the other: training images and labels, test images and labels. Taken are the first
1,000 training and the first 500 test images of each class, in their original order.
"""

import io
import lzma
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mobileprune.datasets.fashion_mnist import DEBIAN_FOLDER, EMBEDDED, LABELS, FashionMnist, read_idx_folder
from mobileprune.errors import DatasetError
from mobileprune.files import write_bytes

TRAIN_PER_CLASS, TEST_PER_CLASS = 1_000, 500


def subset(folder: Path) -> FashionMnist:
    """The first images of each class, in the order of the original files.

    Raises:
        DatasetError: the files cannot be read or hold too few images of a class.
    """
    whole = read_idx_folder(folder)
    train = _first_of_each_class(whole.train_labels, TRAIN_PER_CLASS)
    test = _first_of_each_class(whole.test_labels, TEST_PER_CLASS)
    return FashionMnist(
        whole.train_images[train], whole.train_labels[train], whole.test_images[test], whole.test_labels[test]
    )


def _first_of_each_class(labels: npt.NDArray[np.uint8], count: int) -> npt.NDArray[np.int64]:
    chosen = [np.flatnonzero(labels == label)[:count] for label in range(len(LABELS))]
    short = [label for label, indices in enumerate(chosen) if len(indices) < count]
    if short:
        raise DatasetError(f"Class {LABELS[short[0]]} has fewer than {count} images. Use the original IDX files.")
    return np.sort(np.concatenate(chosen))


def packed(data: FashionMnist) -> bytes:
    """The bytes of the file."""
    stream = io.BytesIO()
    for array in data:
        np.save(stream, array, allow_pickle=False)
    # Without literal context (lc=0) pixels pack 11% smaller than with the presets, which are made for text.
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lc": 0, "lp": 0, "pb": 0}]
    return lzma.compress(stream.getvalue(), format=lzma.FORMAT_XZ, check=lzma.CHECK_CRC64, filters=filters)


def main(arguments: list[str]) -> None:
    folder = Path(arguments[0]) if arguments else DEBIAN_FOLDER
    output = Path(arguments[1]) if len(arguments) > 1 else Path(__file__).with_name(EMBEDDED)
    content = packed(subset(folder))
    write_bytes(output, content)
    print(f"{output}: {len(content):,} bytes")


if __name__ == "__main__":
    main(sys.argv[1:])
