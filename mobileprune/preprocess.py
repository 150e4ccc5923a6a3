"""The preprocessing contract carried out: encoded image → the numbers that enter the model.

The arithmetic is written down exactly, so that a port to another language gives the same numbers:

1. *Decode* JPEG, PNG or WebP to 8 bits a channel; of 16-bit grey the high byte is kept. Of an animation the first frame
   counts. ICC profiles are not applied.
2. *Orientation* (`exif`): tag 0x0112 of the EXIF block; 2 to 8 flip or turn the pixels, all other values do nothing.
3. *Alpha* is composited over white, `(c·a + 255·(255 - a) + 127) // 255` per channel: the colour that hides under
   transparent pixels is arbitrary, and white is what pictures with cut-out objects are drawn for.
4. *Colour*: grey is copied to three channels; RGB becomes grey by `(19595·R + 38470·G + 7471·B + 32768) >> 16`.
5. *Fit*: `crop` keeps, of a picture w × h for an input W × H, the full height and `(2·h·W + H) // (2·H)` columns from
   column `(w - columns) // 2` when `w·H > h·W`; else the full width and `(2·w·H + W) // (2·W)` rows likewise. At least
   one column or row is kept. `stretch` keeps everything.
6. *Resize*, first along each row and then along each column, every pass rounded to uint8; a pass whose length does not
   change is left out. For output position i of n, from m samples, in double precision: `scale = m / n`,
   `centre = (i + 0.5)·scale`, `support = max(scale, 1)` with antialias and 1 without,
   `first = max(0, trunc(centre - support + 0.5))`, `last = min(m, trunc(centre + support + 0.5))` (exclusive). Sample j
   weighs `max(0, 1 - |j - centre + 0.5| / support)`; the weights are divided by their sum, then become integers
   `trunc(w·2²² + 0.5)`, and the result is `(2²¹ + Σ weight·sample) >> 22`, limited to 0…255. With antialias this is
   what Pillow's `BILINEAR` computes when it is called once for each pass; `resize_bilinear` is the same in NumPy.
7. *Normalise*: `(x - mean) / std`, subtraction and division each in float32.

What is not exact: decoders. Two JPEG decoders (or CMYK conversions) may differ by a few grey levels, because the format
allows it. Everything after step 1 is exact.
"""

import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from mobileprune.errors import DatasetError, SettingsError
from mobileprune.records import Preprocess

Pixels = npt.NDArray[np.uint8]

FORMATS = ("JPEG", "PNG", "WEBP")
MAX_PIXELS = 64_000_000
MAX_FILE_BYTES = 256 * 2**20
_MAX_SIDE = 4096
_BITS = 22
_ORIENTATION_TAG = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# What Pillow's parsers let through when bytes are damaged or forged.
_DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    EOFError,
    OverflowError,
    MemoryError,
    RuntimeError,
    struct.error,
    zlib.error,
)

# Pillow warns from 89 million pixels on; `decode` refuses such images by itself, with a place and a remedy.
warnings.simplefilter("ignore", Image.DecompressionBombWarning)


def check_contract(contract: Preprocess) -> Preprocess:
    """`contract`, if it can be carried out.

    Raises:
        SettingsError: a size, colour, fit, mean or std that means nothing.
    """
    for side, value in (("height", contract.height), ("width", contract.width)):
        if not 1 <= value <= _MAX_SIDE:
            raise SettingsError(f"The input's {side} is {value} pixels; choose 1 to {_MAX_SIDE}.")
    for field, text, known in (
        ("color", contract.color, ("RGB", "grayscale")),
        ("resize", contract.resize, ("bilinear",)),
        ("fit", contract.fit, ("stretch", "crop")),
    ):
        if text not in known:
            raise SettingsError(f"The preprocessing has {field}={text!r}; known: {', '.join(known)}.")
    for field, numbers in (("mean", contract.mean), ("std", contract.std)):
        if len(numbers) not in (1, contract.channels) or not np.isfinite(numbers).all():
            raise SettingsError(
                f"The preprocessing has {field}={numbers!r}; give one finite number or {contract.channels}."
            )
    if 0 in contract.std:
        raise SettingsError(f"The preprocessing divides by std={contract.std!r}; choose numbers other than 0.")
    return contract


def decode(data: bytes, *, exif: bool = True, where: str = "The image") -> Image.Image:
    """Decodes an encoded image completely.

    Args:
        data: the bytes of a JPEG, PNG or WebP file.
        exif: whether to turn the image as its EXIF orientation says.
        where: how an error calls the image; its name, as a rule.

    Returns:
        An upright Pillow image of mode `RGB` or `L`, without alpha.

    Raises:
        DatasetError: not one of the formats, truncated or damaged, or more than `MAX_PIXELS` pixels.

    Example:
        >>> decode(Path("cat.jpg").read_bytes()).mode
        'RGB'
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            # Only the header has been read so far: nothing of the size that it claims is allocated yet.
            if image.width * image.height > MAX_PIXELS:
                raise DatasetError(_too_large(where, f"{image.width} × {image.height}"))
            image.load()
            return _opaque(_upright(image) if exif else image)
    except Image.DecompressionBombError as error:
        raise DatasetError(_too_large(where, "too many")) from error
    except UnidentifiedImageError as error:
        raise DatasetError(f"{where} is not a readable JPEG, PNG or WebP image. Convert it or remove it.") from error
    except _DECODER_ERRORS as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DatasetError(f"{where} is truncated or damaged ({reason}). Replace it or remove it.") from error


def _too_large(where: str, pixels: str) -> str:
    return f"{where} has {pixels} pixels; at most {MAX_PIXELS:,} are decoded. Shrink it or remove it."


def _upright(image: Image.Image) -> Image.Image:
    block = image.info.get("exif")
    if not block:
        return image
    exif = Image.Exif()
    exif.load(block)
    turn = _TURNS.get(exif.get(_ORIENTATION_TAG, 1))
    return image if turn is None else image.transpose(turn)


def _opaque(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        return Image.fromarray(np.clip(np.asarray(image) >> 8, 0, 255).astype(np.uint8))
    if image.mode.upper() in ("RGBA", "LA", "PA") or "transparency" in image.info:
        return Image.fromarray(_over_white(np.asarray(image.convert("RGBA"))))
    if image.mode in ("1", "L"):
        return image.convert("L")
    return image.convert("RGB")


def _over_white(rgba: Pixels) -> Pixels:
    result = np.empty((*rgba.shape[:2], 3), np.uint8)
    # By strips, because the wider integers of a large picture would need gigabytes.
    rows = max(1, 2**20 // rgba.shape[1])
    for start in range(0, len(rgba), rows):
        strip = rgba[start : start + rows].astype(np.uint32)
        color, alpha = strip[..., :3], strip[..., 3:]
        result[start : start + rows] = (color * alpha + 255 * (255 - alpha) + 127) // 255
    return result


def to_uint8(image: Image.Image | Pixels, contract: Preprocess) -> Pixels:
    """Carries out colour, fit and resize.

    Args:
        image: what `decode` returned, or uint8 pixels of shape (h, w), (h, w, 1) or (h, w, 3).
        contract: the contract.

    Returns:
        uint8 pixels of shape `contract.shape`.

    Raises:
        DatasetError: an array of another shape or type.

    Example:
        >>> to_uint8(np.zeros((28, 28), np.uint8), Preprocess(32, 32, color="grayscale")).shape
        (32, 32, 1)
    """
    picture = image if isinstance(image, Image.Image) else _picture(image)
    picture = picture.convert("RGB" if contract.color == "RGB" else "L")
    if contract.fit == "crop":
        picture = _centre_crop(picture, contract.height, contract.width)
    if contract.antialias:
        # One call a pass: given both, Pillow begins with rows or columns, whichever is cheaper in its version.
        rows_done = picture.resize((contract.width, picture.height), Image.Resampling.BILINEAR)
        pixels = np.asarray(rows_done.resize((contract.width, contract.height), Image.Resampling.BILINEAR))
    else:
        pixels = resize_bilinear(np.asarray(picture), contract.height, contract.width, antialias=False)
    return np.ascontiguousarray(pixels.reshape(contract.shape))


def _picture(pixels: Pixels) -> Image.Image:
    plane = pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels
    if plane.dtype != np.uint8 or plane.size == 0 or not (plane.ndim == 2 or (plane.ndim == 3 and plane.shape[2] == 3)):
        raise DatasetError(
            f"An image has the shape {pixels.shape} and type {pixels.dtype}; give uint8 pixels of shape "
            "(height, width) or (height, width, 1 or 3)."
        )
    return Image.fromarray(plane)


def _centre_crop(image: Image.Image, height: int, width: int) -> Image.Image:
    w, h = image.size
    columns, rows = w, h
    if w * height > h * width:
        columns = max(1, (2 * h * width + height) // (2 * height))
    else:
        rows = max(1, (2 * w * height + width) // (2 * width))
    left, top = (w - columns) // 2, (h - rows) // 2
    return image.crop((left, top, left + columns, top + rows))


def resize_bilinear(pixels: Pixels, height: int, width: int, *, antialias: bool) -> Pixels:
    """Step 6 of the contract in NumPy: the reference for ports, and what runs when `antialias` is off.

    Args:
        pixels: uint8 of shape (h, w) or (h, w, channels).
        height: rows of the result.
        width: columns of the result.
        antialias: whether the filter widens when it shrinks.

    Returns:
        uint8 of shape (height, width) or (height, width, channels).
    """
    return _resize_axis(_resize_axis(pixels, width, 1, antialias), height, 0, antialias)


def _resize_axis(pixels: Pixels, size: int, axis: int, antialias: bool) -> Pixels:
    length = pixels.shape[axis]
    if length == size:
        return pixels
    scale = length / size
    support = max(scale, 1.0) if antialias else 1.0
    centres = (np.arange(size) + 0.5) * scale
    first = np.maximum(0, np.trunc(centres - support + 0.5)).astype(np.int64)
    last = np.minimum(length, np.trunc(centres + support + 0.5)).astype(np.int64)
    samples = first[:, None] + np.arange((last - first).max())
    weights = np.maximum(0.0, 1.0 - np.abs((samples - centres[:, None] + 0.5) / support))
    weights = np.where(samples < last[:, None], weights, 0.0)
    fixed = np.trunc(weights / weights.sum(axis=1, keepdims=True) * (1 << _BITS) + 0.5).astype(np.int64)

    lines = np.moveaxis(pixels, axis, 0)
    total = np.full((size, *lines.shape[1:]), 1 << (_BITS - 1), np.int64)
    column = (-1,) + (1,) * (lines.ndim - 1)
    for tap in range(samples.shape[1]):
        total += fixed[:, tap].reshape(column) * lines[np.minimum(samples[:, tap], length - 1)]
    return np.moveaxis(np.clip(total >> _BITS, 0, 255).astype(np.uint8), 0, axis)


def normalise(pixels: Pixels, contract: Preprocess) -> npt.NDArray[np.float32]:
    """`(x - mean) / std` in float32.

    Args:
        pixels: uint8 of shape (..., channels).
        contract: the contract.

    Returns:
        float32 of the same shape.

    Example:
        >>> float(normalise(np.full((1, 1, 1), 255, np.uint8), Preprocess(1, 1, color="grayscale"))[0, 0, 0])
        1.0
    """
    mean, std = np.asarray(contract.mean, np.float32), np.asarray(contract.std, np.float32)
    values: npt.NDArray[np.float32] = (pixels.astype(np.float32) - mean) / std
    return values


def read(path: Path, where: str | None = None) -> bytes:
    """The bytes of an image file.

    Raises:
        DatasetError: it cannot be read, or is larger than `MAX_FILE_BYTES`.
    """
    where = where or str(path)
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise DatasetError(f"{where} has {size:,} bytes; at most {MAX_FILE_BYTES:,} are read. Shrink or remove it.")
        return path.read_bytes()
    except OSError as error:
        raise DatasetError(
            f"{where} cannot be read: {error.strerror or error}. Make it readable or remove it."
        ) from error


def load(source: bytes | str | Path, contract: Preprocess) -> npt.NDArray[np.float32]:
    """The whole contract: what the model sees of an encoded image.

    Args:
        source: the bytes of a JPEG, PNG or WebP file, or its path.
        contract: the contract.

    Returns:
        float32 of shape `contract.shape`.

    Raises:
        DatasetError: the file cannot be read or decoded.
        SettingsError: the contract cannot be carried out.

    Example:
        >>> load("cat.jpg", Preprocess(96, 96, fit="crop")).shape
        (96, 96, 3)
    """
    check_contract(contract)
    name, data = ("The image", source) if isinstance(source, bytes) else (str(source), read(Path(source)))
    return normalise(to_uint8(decode(data, exif=contract.exif, where=name), contract), contract)
