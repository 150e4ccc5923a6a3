import dataclasses
import io
import struct
import zlib

import numpy as np
import pytest
from photos import photograph
from PIL import Image

from mobileprune.errors import DatasetError, SettingsError
from mobileprune.preprocess import check_contract, decode, load, normalise, resize_bilinear, to_uint8
from mobileprune.records import Preprocess


def encoded(image, kind="PNG", **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def exif_block(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()


def png_that_claims(width, height):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


@pytest.fixture(scope="module")
def cat():
    return photograph("cat").resize((150, 100))


def pillows_two_passes(image, height, width):
    """Rows first, then columns, by two calls: with one call Pillow chooses which comes first."""
    rows_done = image.resize((width, image.height), Image.Resampling.BILINEAR)
    return np.asarray(rows_done.resize((width, height), Image.Resampling.BILINEAR))


@pytest.mark.parametrize(
    "size", [(96, 96), (32, 48), (100, 97), (213, 301), (1, 1), (7, 300), (333, 5), (100, 150)], ids=str
)
def test_the_documented_arithmetic_gives_pillows_bytes(cat, size):
    documented = resize_bilinear(np.asarray(cat), *size, antialias=True)
    np.testing.assert_array_equal(documented, pillows_two_passes(cat, *size))
    np.testing.assert_array_equal(documented, to_uint8(cat, Preprocess(*size)))


def test_a_large_photograph_shrinks_by_the_documented_arithmetic():
    photo = photograph("galaxies")
    documented = resize_bilinear(np.asarray(photo), 96, 64, antialias=True)
    np.testing.assert_array_equal(to_uint8(photo, Preprocess(96, 64)), documented)


def test_antialias_makes_no_difference_when_enlarging(cat):
    contract = Preprocess(120, 200)
    plain = dataclasses.replace(contract, antialias=False)
    np.testing.assert_array_equal(to_uint8(cat, contract), to_uint8(cat, plain))


def test_without_antialias_two_neighbours_at_half_pixel_centres_are_mixed(cat):
    contract = Preprocess(33, 47, antialias=False)
    pixels = np.asarray(cat).astype(float)

    def mix(values, size):
        place = np.clip((np.arange(size) + 0.5) * len(values) / size - 0.5, 0, len(values) - 1)
        low = np.floor(place).astype(int)
        share = (place - low).reshape(-1, 1, 1)
        return values[low] * (1 - share) + values[np.minimum(low + 1, len(values) - 1)] * share

    expected = mix(mix(pixels, 33).swapaxes(0, 1), 47).swapaxes(0, 1)
    result = to_uint8(cat, contract)
    # Two passes, each rounded to a whole grey level.
    assert np.abs(result - expected).max() <= 1.0 + 1e-9
    assert np.abs(result.astype(int) - to_uint8(cat, Preprocess(33, 47)).astype(int)).max() > 20


@pytest.mark.parametrize(
    ("orientation", "store"),
    [
        (1, lambda a: a),
        (2, np.fliplr),
        (3, lambda a: np.rot90(a, 2)),
        (4, np.flipud),
        (5, lambda a: a.swapaxes(0, 1)),
        (6, lambda a: np.rot90(a, 1)),
        (7, lambda a: np.rot90(a, 2).swapaxes(0, 1)),
        (8, lambda a: np.rot90(a, -1)),
        (9, lambda a: a),
    ],
)
@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_every_exif_orientation_is_undone_exactly(cat, kind, orientation, store):
    upright = np.asarray(cat)
    stored = Image.fromarray(np.ascontiguousarray(store(upright)))
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(stored, kind, exif=exif_block(orientation), **options)
    np.testing.assert_array_equal(np.asarray(decode(data)), upright)


def test_a_sideways_jpeg_equals_the_upright_one_within_its_loss(cat):
    sideways = cat.transpose(Image.Transpose.ROTATE_90)
    rotated = encoded(sideways, "JPEG", quality=95, subsampling=0, exif=exif_block(6))
    contract = Preprocess(96, 96, fit="crop")
    difference = np.abs(load(rotated, contract) - load(encoded(cat, "JPEG", quality=95, subsampling=0), contract))
    assert difference.mean() * 127.5 < 2
    assert difference.max() * 127.5 < 16
    ignoring = load(rotated, dataclasses.replace(contract, exif=False))
    assert np.abs(ignoring - load(rotated, contract)).mean() * 127.5 > 10


def test_alpha_is_composited_over_white():
    pixels = np.array([[[200, 100, 0, 255], [200, 100, 0, 0], [200, 100, 0, 128]]], np.uint8)
    result = np.asarray(decode(encoded(Image.fromarray(pixels))))
    half = [(c * 128 + 255 * 127 + 127) // 255 for c in (200, 100, 0)]
    np.testing.assert_array_equal(result, [[[200, 100, 0], [255, 255, 255], half]])


def test_alpha_of_a_large_picture_is_composited_everywhere():
    rgba = np.random.default_rng(0).integers(0, 256, (1300, 900, 4), dtype=np.uint8)
    color, alpha = rgba[..., :3].astype(float), rgba[..., 3:] / 255
    expected = color * alpha + 255 * (1 - alpha)
    assert np.abs(np.asarray(decode(encoded(Image.fromarray(rgba), compress_level=0))) - expected).max() <= 0.51


def test_a_palette_colour_that_is_transparent_becomes_white(cat):
    image = cat.quantize(16)
    image.info["transparency"] = 3
    indices, colours = np.asarray(image), np.asarray(image.convert("RGB"))
    result = np.asarray(decode(encoded(image, transparency=3)))
    assert (indices == 3).any()
    np.testing.assert_array_equal(result, np.where((indices == 3)[..., None], 255, colours))


def test_grey_with_sixteen_bits_keeps_the_high_byte():
    values = np.array([[0, 255, 256, 40000, 65535]], np.uint16)
    image = decode(encoded(Image.fromarray(values)))
    np.testing.assert_array_equal(np.asarray(image), values >> 8)


def test_a_cmyk_jpeg_becomes_rgb(cat):
    result = decode(encoded(cat.convert("CMYK"), "JPEG", quality=95))
    assert result.mode == "RGB"
    assert np.abs(np.asarray(result).astype(int) - np.asarray(cat)).mean() < 6


def test_grayscale_is_the_documented_integer_luma(cat):
    red, green, blue = np.moveaxis(np.asarray(cat).astype(np.int64), -1, 0)
    expected = (19595 * red + 38470 * green + 7471 * blue + 32768) >> 16
    result = to_uint8(cat, Preprocess(100, 150, color="grayscale"))
    np.testing.assert_array_equal(result[..., 0], expected)


def test_grey_is_copied_to_three_channels(cat):
    grey = np.asarray(cat.convert("L"))
    result = to_uint8(grey, Preprocess(50, 50))
    np.testing.assert_array_equal(result, np.repeat(to_uint8(grey, Preprocess(50, 50, color="grayscale")), 3, axis=2))


@pytest.mark.parametrize(
    ("height", "width", "rows", "columns"),
    [
        (100, 100, slice(0, 100), slice(25, 125)),
        (50, 150, slice(25, 75), slice(0, 150)),
        (100, 33, slice(0, 100), slice(58, 91)),
        (33, 100, slice(25, 75), slice(0, 150)),
    ],
)
def test_crop_keeps_the_largest_centred_rectangle(cat, height, width, rows, columns):
    result = to_uint8(cat, Preprocess(height, width, fit="crop"))
    piece = Image.fromarray(np.asarray(cat)[rows, columns])
    np.testing.assert_array_equal(result, pillows_two_passes(piece, height, width))


def test_an_extreme_strip_still_leaves_a_pixel_to_crop():
    strip = np.full((1, 5000, 3), 7, np.uint8)
    assert (to_uint8(strip, Preprocess(8, 8, fit="crop")) == 7).all()


def test_each_channel_is_normalised_by_its_own_numbers(cat):
    contract = Preprocess(100, 150, mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375))
    values = normalise(to_uint8(cat, contract), contract)
    expected = (np.asarray(cat, np.float32) - np.float32(contract.mean)) / np.float32(contract.std)
    assert values.dtype == np.float32
    np.testing.assert_array_equal(values, expected)


def test_a_path_and_its_bytes_load_alike(cat, tmp_path):
    path = tmp_path / "cat.jpg"
    path.write_bytes(encoded(cat, "JPEG"))
    contract = Preprocess(40, 30)
    from_path = load(path, contract)
    assert from_path.shape == (40, 30, 3)
    np.testing.assert_array_equal(from_path, load(path.read_bytes(), contract))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.95])
def test_a_truncated_file_is_refused(cat, kind, share):
    data = encoded(cat, kind)
    with pytest.raises(DatasetError, match=r"^cat\.x is (truncated|not a readable).*remove it\.$"):
        decode(data[: int(len(data) * share)], where="cat.x")


@pytest.mark.parametrize("size", [(9000, 9000), (60000, 60000)], ids=str)
def test_a_decompression_bomb_is_refused_before_it_is_decoded(size):
    with pytest.raises(DatasetError, match="at most 64,000,000 are decoded"):
        decode(png_that_claims(*size))


def test_a_webp_with_a_corrupt_body_is_refused(cat):
    data = bytearray(encoded(cat, "WEBP"))
    data[20:60] = bytes(40)
    with pytest.raises(DatasetError, match="remove it"):
        decode(bytes(data))


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF", "PPM"])
def test_other_formats_are_refused(cat, kind):
    with pytest.raises(DatasetError, match="is not a readable JPEG, PNG or WebP image"):
        decode(encoded(cat, kind))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_a_damaged_exif_block_is_an_error_with_a_name(cat):
    block = b"Exif\x00\x00II*\x00\xff\xff\xff\x7f" + bytes(8)
    data = encoded(cat, "JPEG", exif=b"Exif\x00\x00XX*\x00\x08\x00\x00\x00")
    with pytest.raises(DatasetError, match=r"^holiday\.jpg is truncated or damaged"):
        decode(data, where="holiday.jpg")
    assert decode(encoded(cat, "JPEG", exif=block)).size == cat.size


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_damaged_bytes_either_decode_or_raise_a_dataset_error(kind):
    small = photograph("coffee").resize((48, 32))
    data = encoded(small, kind, exif=exif_block(6))
    generator = np.random.default_rng(7)
    refused = 0
    for _ in range(150):
        damaged = bytearray(data)
        # Headers sit at the start; damage them as often as the pixels.
        end = len(data) if generator.random() < 0.5 else 120
        for place in generator.integers(0, end, 4):
            damaged[place] = generator.integers(256)
        try:
            assert decode(bytes(damaged)).mode in ("RGB", "L")
        except DatasetError:
            refused += 1
    assert refused > 10


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DatasetError, match=r"absent\.jpg cannot be read"):
        load(tmp_path / "absent.jpg", Preprocess(8, 8))


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((4, 4, 2), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((4,), np.uint8),
        np.zeros((0, 4), np.uint8),
    ],
    ids=lambda pixels: f"{pixels.shape}-{pixels.dtype}",
)
def test_arrays_that_are_no_images_are_refused(pixels):
    with pytest.raises(DatasetError, match="give uint8 pixels"):
        to_uint8(pixels, Preprocess(8, 8))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"height": 0}, "height is 0 pixels"),
        ({"width": 100_000}, "width is 100000 pixels"),
        ({"fit": "pad"}, "fit='pad'; known: stretch, crop"),
        ({"color": "BGR"}, "color='BGR'"),
        ({"resize": "nearest"}, "resize='nearest'"),
        ({"mean": (1.0, 2.0)}, "one finite number or 3"),
        ({"mean": (float("nan"),)}, "one finite number or 3"),
        ({"std": (1.0, 0.0, 1.0)}, "numbers other than 0"),
    ],
    ids=str,
)
def test_a_contract_that_cannot_be_carried_out_is_refused(change, message):
    with pytest.raises(SettingsError, match=message):
        check_contract(dataclasses.replace(Preprocess(96, 96), **change))
