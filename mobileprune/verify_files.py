"""Verification from the encoded image on: what a phone will do with a JPEG, against what the training code did."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mobileprune.errors import DatasetError, InterpreterError, SettingsError
from mobileprune.image_folder import EXTENSIONS
from mobileprune.preprocess import load
from mobileprune.preprocess_checks import preprocess_faults
from mobileprune.records import Preprocess, Variant, Verification
from mobileprune.verify import Tolerance, reference_outputs, verify


def verify_files(
    reference: Any,
    variant: Variant,
    paths: Sequence[str | Path],
    contract: Preprocess,
    *,
    preprocess: Callable[[Path], np.ndarray] | None = None,
    labels: np.ndarray | None = None,
    names: Sequence[str] = (),
    threads: int = 2,
    timeout_s: float = 60.0,
    tolerance: Tolerance | None = None,
) -> Verification:
    """Verifies a file on encoded images, which reach it through the preprocessing contract as on the phone.

    Args:
        reference: the Keras model, a callable from images to outputs, or outputs; see `mobileprune.verify.verify`.
        variant: the file and its recipe.
        paths: JPEG, PNG or WebP files, at least 2.
        contract: what the file's metadata and manifest tell the phone to do.
        preprocess: what the *training code* makes of a path, float32 (H, W, C). The reference then sees its images and
            the file those of the contract, so that BGR for RGB, another mean or std and other crops are found; without
            it both see the contract's, and only an integer file's input range speaks about the normalisation.
        labels: integers (N,), the classes of the images.
        names: of the classes, in the order of the outputs.
        threads: for the interpreter.
        timeout_s: for each request to it.
        tolerance: in place of the recipe's own.

    Returns:
        The record. When the file fails and would pass on other numbers (channels reversed, another of the usual
        normalisations), the last failure says which.

    Raises:
        DatasetError: an image that cannot be read, or labels that no output can mean.
        SettingsError: a contract that cannot be carried out.
        InterpreterError, VerificationError: see `mobileprune.verify.verify`.

    Example:
        >>> verify_files(model, variant, sorted(Path("photos").glob("*.jpg")), contract).raise_if_failed()
        ... # doctest: +SKIP
    """
    if len(paths) < 2:
        raise SettingsError(f"{len(paths)} images are too few to compare outputs on; give 2 or more, better 100.")
    images = np.stack([load(path, contract) for path in paths])
    seen, faults = images, []
    if preprocess is not None:
        seen = np.stack([np.asarray(preprocess(Path(path)), np.float32) for path in paths])
        faults = preprocess_faults(seen, images, contract)
    expected = reference_outputs(reference, seen)
    options: dict[str, Any] = {"threads": threads, "timeout_s": timeout_s, "tolerance": tolerance}
    report = verify(expected, variant, images, contract=contract, labels=labels, names=names, **options)
    failures = [*faults, *report.failures]
    if failures and not faults:
        failures += _what_it_takes(expected, variant, images, contract, options)
    return dataclasses.replace(report, failures=tuple(failures))


def find_images(folder: Path, limit: int, names: Sequence[str] = ()) -> tuple[list[Path], np.ndarray | None]:
    """Encoded images in a folder and below it, evenly chosen where there are more than `limit`.

    Args:
        folder: where to look; hidden names are passed over.
        limit: at most so many, at least 2.
        names: of classes. Given, each is the name of a sub-folder, classes take turns, and there are labels.

    Returns:
        The paths, and the labels int64 (N,) or None.

    Raises:
        DatasetError: no folder, fewer than two images, or a class without a sub-folder.
    """
    if not folder.is_dir():
        raise DatasetError(f"{folder} is {'not a folder' if folder.exists() else 'missing'}. Give a folder of images.")
    if not names:
        found = _images_below(folder)
        if len(found) < 2:
            raise DatasetError(f"{folder} has {len(found)} JPEG, PNG or WebP images; at least 2 are needed.")
        return [found[index] for index in np.linspace(0, len(found) - 1, min(limit, len(found))).astype(int)], None
    missing = [name for name in names if not (folder / name).is_dir()]
    if missing:
        raise DatasetError(
            f"{folder} has no sub-folder {missing[0]!r} ({len(missing)} of {len(names)} labels have none). Name the "
            "sub-folders as the labels."
        )
    by_class = [_images_below(folder / name) for name in names]
    turns = [
        (path, label)
        for turn in range(max(map(len, by_class)))
        for label, paths in enumerate(by_class)
        for path in paths[turn : turn + 1]
    ][:limit]
    if len(turns) < 2:
        raise DatasetError(f"{folder} has {len(turns)} JPEG, PNG or WebP images; at least 2 are needed.")
    return [path for path, _ in turns], np.array([label for _, label in turns], np.int64)


def _images_below(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in EXTENSIONS
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


def _what_it_takes(
    expected: np.ndarray, variant: Variant, images: np.ndarray, contract: Preprocess, options: dict[str, Any]
) -> list[str]:
    """Other numbers on which a file that failed agrees with the reference: what it takes in fact."""
    mean, std = np.asarray(contract.mean, np.float32), np.asarray(contract.std, np.float32)
    pixels = images * std + mean
    guesses = {
        "values from 0 to 255": pixels,
        "values from 0 to 1": pixels / 255,
        "values from -1 to 1": pixels / 127.5 - 1,
    }
    if contract.channels == 3:
        guesses["the channels in reverse order (BGR)"] = images[..., ::-1]
    for said, guess in guesses.items():
        if np.allclose(guess, images, atol=1e-3):
            continue  # that is what it was given
        try:
            report = verify(expected, variant, np.ascontiguousarray(guess, np.float32), **options)
        except InterpreterError:
            return []  # it takes nothing, and the report has said so
        if report.passed:
            return [
                f"It agrees with the model ({report.snr_db:.0f} dB) when it is given {said}: that is what it takes."
            ]
    return []
