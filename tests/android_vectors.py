"""What the demo's Kotlin must compute, computed by mobileprune: `android_demo/src/test/resources/vectors.json`.

`python tests/android_vectors.py` writes the file anew; `test_android_vectors.py` notices when it has become stale.
"""

import base64
import dataclasses
import io
import json
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image
from records_samples import manifest, variant

from mobileprune.benchmark.statistics import percentiles
from mobileprune.golden import grid_means
from mobileprune.preprocess import decode, normalise, to_uint8
from mobileprune.records import Preprocess
from mobileprune.run_records import Port
from mobileprune.tflite_worker import _dequantized, _fed

FILE = Path(__file__).resolve().parents[1] / "android_demo" / "src" / "test" / "resources" / "vectors.json"
# Sizes of pictures and inputs: shrunk, enlarged, one side each, one pixel, left alone.
CONTRACTS = (
    (23, 17, Preprocess(5, 8)),
    (23, 17, Preprocess(5, 8, antialias=False)),
    (23, 17, Preprocess(9, 7, fit="crop")),
    (17, 23, Preprocess(9, 7, fit="crop", color="grayscale")),
    (17, 23, Preprocess(40, 31, color="grayscale")),
    (5, 4, Preprocess(4, 5, exif=False)),
    (8, 6, Preprocess(6, 8)),
    (61, 3, Preprocess(2, 2, fit="crop")),
    (2, 61, Preprocess(3, 4, fit="crop", antialias=False)),
    (1, 1, Preprocess(3, 2)),
)


def vectors() -> dict:
    """Everything, from fixed seeds."""
    return {
        "percentiles": _percentiles(),
        "top_k": _top_k(),
        "softmax": _softmax(),
        "quantize": _quantize(),
        "inputs": _inputs(),
        "pictures": _pictures(),
        "exif": _exif(),
        "manifest": _manifest(),
    }


def _percentiles() -> list:
    generator = np.random.default_rng(0)
    cases = [generator.gamma(2.0, 1e6, size).round() for size in (1, 2, 3, 10, 101)]
    return [
        {
            "millis": (times / 1e6).tolist(),
            **{key: getattr(percentiles(times), f"{key}_ms") for key in ("p50", "p90", "p99")},
        }
        for times in cases
    ]


def _top_k() -> list:
    generator = np.random.default_rng(1)
    scores = [generator.normal(size=20).astype(np.float32), np.float32([1, 3, 3, 2, 3]), np.float32([0, 0])]
    found = []
    for values, count, threshold in zip(scores, (5, 2, 5), (-10.0, 0.0, 0.5), strict=True):
        order = [int(index) for index in np.argsort(-values, kind="stable") if values[index] >= threshold][:count]
        found.append({"scores": values.tolist(), "count": count, "threshold": threshold, "indices": order})
    return found


def _softmax() -> list:
    logits = np.float32([[1.0, 2.0, 3.0, -1.0], [1000.0, 999.0, 0.0, -1000.0]])
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    probabilities = powers / powers.sum(axis=1, keepdims=True)
    return [
        {"logits": logit.tolist(), "probabilities": answer.tolist()}
        for logit, answer in zip(logits, probabilities, strict=True)
    ]


def _detail(port: Port) -> dict:
    """A port as the interpreter describes it."""
    parameters = {"scales": [port.scale], "zero_points": [port.zero_point]}
    return {"name": "port", "dtype": np.dtype(port.dtype), "quantization_parameters": parameters}


def _quantize() -> list:
    # Halves between two steps among them.
    reals = np.float32([-100, -1.25, -0.75, -0.5, -0.25, 0, 0.125, 0.25, 0.3, 0.75, 1.25, 31.5, 100])
    found = []
    for port in (Port("int8", (13,), 0.5, -3), Port("uint8", (13,), 0.25, 128), Port("int8", (13,), 0.0078125, 127)):
        stored = _fed(reals, _detail(port))
        found.append(
            {
                "port": port.to_json(),
                "reals": reals.tolist(),
                "stored": stored.tolist(),
                "back": _dequantized(stored, _detail(port)).tolist(),
            }
        )
    return found


def _inputs() -> list:
    """uint8 pixels as the numbers that enter a model."""
    pixels = np.arange(0, 252, dtype=np.uint8).reshape(7, 12, 3)
    contract = Preprocess(7, 12, mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375))
    found = []
    for port in (Port("float32", (1, 7, 12, 3)), Port("int8", (1, 7, 12, 3), 0.0186, -14)):
        values = normalise(pixels, contract)
        if port.scale is not None:
            values = _fed(values, _detail(port))
        found.append(
            {
                "contract": contract.to_json(),
                "port": port.to_json(),
                "pixels": _text(pixels.tobytes()),
                "expected": _text(values.astype("<f4" if port.scale is None else np.int8).tobytes()),
            }
        )
    return found


def _pictures() -> list:
    """Stored pixels and their orientation, what the contract makes of them, and the means that golden files keep."""
    found = []
    for number, (width, height, contract) in enumerate(CONTRACTS):
        generator = np.random.default_rng([2, number])
        pixels = generator.integers(0, 256, (height, width, 4), np.uint8)
        if number % 2:
            pixels[..., 3] = 255
        orientation = number % 9
        exif = Image.Exif()
        exif[0x0112] = orientation
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, "PNG", exif=exif.tobytes())
        upright = decode(stream.getvalue(), exif=contract.exif)
        answer = to_uint8(upright, contract)
        found.append(
            {
                "width": width,
                "height": height,
                "rgba": _text(pixels.tobytes()),
                "orientation": orientation if contract.exif else 1,
                "contract": contract.to_json(),
                "expected": _text(answer.tobytes()),
                "grid": grid_means(answer).tolist(),
            }
        )
    return found


def _exif() -> list:
    """Files whose orientation Pillow reads as `decode` does."""
    tall = Image.fromarray(np.uint8([[[9, 9, 9]], [[250, 250, 250]]]))
    found = []
    for kind, options in (("JPEG", {}), ("PNG", {}), ("WEBP", {"lossless": True})):
        for orientation in (None, 1, 3, 6, 8, 9):
            exif = Image.Exif()
            if orientation is not None:
                exif[0x010F] = "maker"
                exif[0x0112] = orientation
                options = {**options, "exif": exif.tobytes()}
            stream = io.BytesIO()
            tall.save(stream, kind, **options)
            found.append((f"{kind} {orientation}", stream.getvalue(), orientation if orientation in range(1, 9) else 1))
    little = b"II*\0" + struct.pack("<IHHHIHHI", 8, 1, 0x0112, 3, 1, 6, 0, 0)
    big = b"MM\0*" + struct.pack(">IHHHIHHI", 8, 1, 0x0112, 3, 1, 8, 0, 0)
    long = b"II*\0" + struct.pack("<IHHHIII", 8, 1, 0x0112, 4, 1, 3, 0)
    for name, block in (("little endian", little), ("big endian", big), ("a long", long)):
        exif = Image.Exif()
        exif.load(b"Exif\0\0" + block)
        value = exif.get(0x0112)
        found.append((name, _jpeg_with(block), value if value in range(1, 9) else 1))
    for name, block in (
        ("cut off", little[:20]),
        ("a directory outside", b"II*\0" + struct.pack("<I", 4000)),
        ("no TIFF", b"XX" + little[2:]),
    ):
        found.append((name, _jpeg_with(block), 1))
    chunk = b"eXIf" + little
    png = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", len(little)) + chunk + struct.pack(">I", zlib.crc32(chunk))
    found += [("a PNG chunk", png, 6), ("nothing", b"", 1), ("a text", b"no image at all", 1)]
    return [{"name": name, "file": _text(content), "orientation": expected} for name, content, expected in found]


def _jpeg_with(block: bytes) -> bytes:
    """As much of a JPEG as has its EXIF block."""
    segment = b"Exif\0\0" + block
    return b"\xff\xd8\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + b"\xff\xd9" + bytes(8)


def _manifest() -> dict:
    """A manifest with an integer file and one without labels' accuracy."""
    run = manifest(
        variant("base", "float32"),
        dataclasses.replace(variant("c50", "int8"), accuracy=None, agreement=0.75),
        recommended={"smallest": "net_c50_int8.tflite", "most_accurate": "net_base_float32.tflite"},
    )
    return run.to_json()


def _text(content: bytes) -> str:
    return base64.b64encode(content).decode()


def written() -> str:
    """The content of the file."""
    return json.dumps(vectors(), indent=1) + "\n"


if __name__ == "__main__":
    FILE.parent.mkdir(parents=True, exist_ok=True)
    FILE.write_text(written(), encoding="utf-8")
