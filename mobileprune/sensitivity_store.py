"""What a sensitivity analysis has measured so far, kept on disk part by part, so that a killed one goes on."""

import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from mobileprune.errors import ModelError, OutputError
from mobileprune.files import read_json, write_json
from mobileprune.graph import read_only
from mobileprune.sensitivity_changes import Asked
from mobileprune.sensitivity_figures import Sums
from mobileprune.sensitivity_run import Part

# Goes up when figures come to mean something else: what was kept before is not taken up then.
_VERSION = 1


class Store:
    """One folder for one model, one set of images and one question; a small JSON file for each part.

    Args:
        folder: see `folder_for`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, part: Part, sums: list[Sums]) -> None:
        """Keeps what was measured.

        Raises:
            OutputError: the folder cannot be written.
        """
        write_json(self._path(part), {"part": part[0].name, "sums": [each.to_json() for each in sums]})

    def has(self, part: Part) -> bool:
        """Whether it is kept."""
        return self._path(part).is_file()

    def read(self, part: Part) -> list[Sums]:
        """What was kept.

        Raises:
            OutputError: it is not there, or something else is.
        """
        path, data = self._path(part), read_json(self._path(part))
        kept = data.get("sums") if isinstance(data, dict) else None
        if not isinstance(kept, list) or len(kept) != len(part[0].amounts) or data.get("part") != part[0].name:
            raise OutputError(f"{path} holds no figures of {part[0].name!r}. Delete it and run again.")
        try:
            found = [Sums.from_json(each) for each in kept]
        except OutputError as error:
            raise OutputError(f"{path} holds something else: {error} Delete it and run again.") from error
        images = part[1].stop - part[1].start
        if not all(each.fits(images) for each in found):
            raise OutputError(f"{path} holds impossible figures for {images} images. Delete it and run again.")
        return found

    def _path(self, part: Part) -> Path:
        change, images = part
        # Readable for people, and different for different names.
        name = (
            f"{re.sub('[^a-zA-Z0-9]+', '_', change.name)[:60]}_{hashlib.sha256(change.name.encode()).hexdigest()[:8]}"
        )
        return self.folder / f"{name}_{images.start}_{images.stop}.json"


def folder_for(cache: Path, model: Any, images: Iterable[np.ndarray], labels: Any, asked: Asked) -> Path:
    """The folder of one analysis in a cache: of another model, other images or another question it has another name.

    Raises:
        ModelError: the model has no configuration that could be told apart from others'.
    """
    told = hashlib.sha256(f"{_VERSION} {json.dumps(asked.to_json(), sort_keys=True)}".encode())
    try:
        told.update(model.to_json().encode())
    except (NotImplementedError, TypeError, ValueError) as error:
        raise ModelError(
            f"{model.name!r} has no configuration in JSON, so its figures cannot be kept: {error}. Use cache=None."
        ) from error
    for array in (*(read_only(weight) for weight in model.weights), *images, labels):
        if array is not None:
            told.update(f"{array.dtype} {array.shape}".encode())
            told.update(np.ascontiguousarray(array).tobytes())
    return cache / f"{asked.kind}_{told.hexdigest()[:16]}"
