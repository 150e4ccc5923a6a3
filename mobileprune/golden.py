"""Pictures with known answers, which an app checks itself against on the phone, from the encoded picture on.

A phone has another decoder and other kernels than the computer that shipped the file, so its answers differ a little.
How much they may is measured: a picture's tolerance for a file is twice what noise of one grey level does to the
file's outputs, and a step of theirs, and a thousandth of their range; a picture is only taken where its first class
survives that.
"""

import contextlib
import dataclasses
import io
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import numpy.typing as npt
from PIL import Image

from mobileprune.errors import DatasetError
from mobileprune.json_record import Record
from mobileprune.preprocess import Pixels, decode, normalise, to_uint8
from mobileprune.records import Preprocess
from mobileprune.tflite_runner import TfliteRunner

# The input is compared in the means of so many parts each way.
GRID = 8
# What two decoders of JPEG may differ by, in grey levels: in the mean of a part, and for a pixel of the input.
_JPEG_MEAN, _NOISE = 3.0, 1
_NOISES = 4
# Kernels of another processor add in another order: a share of the range of the outputs.
_KERNELS = 1e-3


@dataclasses.dataclass(frozen=True)
class GoldenPicture(Record):
    """An encoded picture, and what became of it here.

    Attributes:
        file: its name.
        grid: means of the uint8 input over an 8 × 8 grid, rows of columns of channels.
        grid_tolerance: grey levels that a mean may be off; 0 for formats that can be decoded in one way only.
        outputs: for each variant's file the outputs in real numbers.
        tolerances: for each variant's file how far any of them may be off.
    """

    file: str
    grid: tuple[float, ...]
    grid_tolerance: float
    outputs: dict[str, tuple[float, ...]]
    tolerances: dict[str, float]


def grid_means(pixels: Pixels) -> npt.NDArray[np.float32]:
    """Means of an input (height, width, channels) over an 8 × 8 grid.

    Part k of n samples reaches from `k·n // 8` to `max(that + 1, (k + 1)·n // 8)`.

    Returns:
        float32 (8 · 8 · channels,).

    Example:
        >>> grid_means(np.full((32, 32, 1), 7, np.uint8))[:3].tolist()
        [7.0, 7.0, 7.0]
    """

    def parts(length: int) -> list[slice]:
        starts = [k * length // GRID for k in range(GRID)]
        return [slice(start, max(start + 1, (k + 1) * length // GRID)) for k, start in enumerate(starts)]

    height, width, _ = pixels.shape
    means = [pixels[rows, columns].mean(axis=(0, 1)) for rows in parts(height) for columns in parts(width)]
    return np.concatenate(means).astype(np.float32)


def encode_picture(image: Image.Image, number: int, longest: int = 512) -> tuple[str, bytes]:
    """An upright picture as a file: JPEG, the first stored sideways with EXIF orientation 6; the second PNG.

    Args:
        image: of mode `RGB` or `L`.
        number: which of the golden pictures it is.
        longest: pixels of the longer side at most; a larger one is shrunk.

    Returns:
        Its name and its bytes.
    """
    if max(image.size) > longest:
        image = image.copy()
        image.thumbnail((longest, longest))
    stream = io.BytesIO()
    if number == 1:  # what is decoded in one way only tells decoding from the rest
        image.save(stream, "PNG", optimize=True)
        return f"golden_{number}.png", stream.getvalue()
    if number == 0:
        exif = Image.Exif()
        exif[0x0112] = 6
        image.transpose(Image.Transpose.ROTATE_90).save(stream, "JPEG", quality=90, exif=exif.tobytes())
    else:
        image.save(stream, "JPEG", quality=90)
    return f"golden_{number}.jpg", stream.getvalue()


@contextlib.contextmanager
def open_runners(
    files: Mapping[str, bytes], runtime: str, timeout_s: float = 60.0
) -> Iterator[dict[str, TfliteRunner]]:
    """Processes that run the files, by their names, until the block ends.

    Raises:
        InterpreterError: a file crashed or could not be loaded.
    """
    with contextlib.ExitStack() as stack:
        yield {
            name: stack.enter_context(TfliteRunner(content, 1, timeout_s, name=name, runtime=runtime))
            for name, content in files.items()
        }


def make_golden(
    images: Iterable[Image.Image],
    contract: Preprocess,
    files: Mapping[str, bytes],
    runtime: str,
    count: int,
    *,
    timeout_s: float = 60.0,
) -> list[tuple[GoldenPicture, bytes]]:
    """The first pictures of different classes that are clear to every file.

    Args:
        images: upright, of mode `RGB` or `L`; no more are taken than needed.
        contract: what they go through.
        files: `.tflite` bytes by file name.
        runtime: the runtime that the app carries; see `mobileprune.runtimes`.
        count: how many pictures are wanted at most.
        timeout_s: for each request to an interpreter.

    Returns:
        The pictures, each with its encoded bytes.

    Raises:
        DatasetError: fewer than 2 are clear.
        InterpreterError: a file crashed, hung or could not be loaded.
    """
    found: list[tuple[GoldenPicture, bytes]] = []
    classes: set[int] = set()
    tried = 0
    with open_runners(files, runtime, timeout_s) as runners:
        for image in images:
            tried += 1
            name, content = encode_picture(image, len(found))
            picture = _look(name, content, contract, runners)
            if picture is None:
                continue
            top = int(np.argmax(next(iter(picture.outputs.values()))))
            if top not in classes:
                classes.add(top)
                found.append((picture, content))
            if len(found) == count:
                break
    if len(found) < 2:
        raise DatasetError(
            f"Among {tried} pictures there are {len(found)} of different classes that noise of {_NOISE} grey level "
            "does not change; at least 2 are needed. Give others with --images."
        )
    return found


def _look(name: str, content: bytes, contract: Preprocess, runners: Mapping[str, TfliteRunner]) -> GoldenPicture | None:
    """What the files say of a picture; None where one is not sure of it."""
    pixels = to_uint8(decode(content, exif=contract.exif, where=name), contract)
    generator = np.random.default_rng(0)
    noise = generator.integers(-_NOISE, _NOISE, (_NOISES, *pixels.shape), endpoint=True)
    noisy = np.clip(pixels.astype(np.int64) + noise, 0, 255).astype(np.uint8)
    images = normalise(np.concatenate([pixels[None], noisy]), contract)
    outputs, tolerances = {}, {}
    for file, runner in runners.items():
        answers = runner.run(images).reshape(len(images), -1)
        change = float(np.abs(answers[1:] - answers[0]).max())
        # Integer outputs may round to the neighbouring step.
        step = runner.facts.outputs[0].scale or 0.0
        tolerance = 2 * change + step + _KERNELS * float(np.ptp(answers[0]))
        second, first = np.sort(answers[0])[-2:]
        if first - second <= tolerance:
            return None
        outputs[file] = tuple(_short(value) for value in answers[0])
        tolerances[file] = _short(tolerance)
    return GoldenPicture(
        file=name,
        grid=tuple(_short(mean) for mean in grid_means(pixels)),
        grid_tolerance=0.0 if name.endswith(".png") else _JPEG_MEAN,
        outputs=outputs,
        tolerances=tolerances,
    )


def _short(value: float) -> float:
    """As many digits as float32 has."""
    return float(f"{value:.7g}")


def golden_faults(
    picture: GoldenPicture, content: bytes, contract: Preprocess, runners: Mapping[str, TfliteRunner]
) -> list[str]:
    """What an app would find wrong with a picture, as sentences; the app looks in the same way.

    Args:
        picture: what is expected.
        content: the encoded picture.
        contract: what it goes through.
        runners: of the files; see `open_runners`.

    Raises:
        DatasetError: the picture cannot be decoded.
        InterpreterError: a file crashed.
    """
    pixels = to_uint8(decode(content, exif=contract.exif, where=picture.file), contract)
    off = np.abs(grid_means(pixels) - np.asarray(picture.grid, np.float32)).max()
    # Written so that NaN is a fault, here and below.
    faults = [] if off <= picture.grid_tolerance + 0.01 else [f"{picture.file}: the input is off by {off:.1f} levels."]
    for name, runner in runners.items():
        if name not in picture.outputs or name not in picture.tolerances:
            faults.append(f"{picture.file}: nothing is expected of {name}.")
            continue
        expected = np.asarray(picture.outputs[name], np.float32)
        answer = runner.run(normalise(pixels, contract)[None]).reshape(-1)
        if answer.size != expected.size:
            faults.append(f"{picture.file}: {name} has {answer.size} outputs, {expected.size} are expected.")
        elif not np.abs(answer - expected).max() <= picture.tolerances[name]:
            faults.append(f"{picture.file}: an output of {name} is off by {np.abs(answer - expected).max():.3g}.")
        elif answer.argmax() != expected.argmax():
            faults.append(f"{picture.file}: {name} says class {answer.argmax()}, {expected.argmax()} is expected.")
    return faults
