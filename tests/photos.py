"""Folders of real photographs for tests, made from the ones that ship inside scikit-image."""

from pathlib import Path

import numpy as np
import skimage.data
from PIL import Image, ImageEnhance

PHOTOGRAPHS = {
    "astronaut": skimage.data.astronaut,
    "cat": skimage.data.chelsea,
    "coffee": skimage.data.coffee,
    "galaxies": skimage.data.hubble_deep_field,
    "rocket": skimage.data.rocket,
}
ENCODINGS = (
    (".jpg", {"format": "JPEG", "quality": 92}),
    (".png", {"format": "PNG", "compress_level": 1}),
    (".JPEG", {"format": "JPEG", "quality": 80}),
    (".webp", {"format": "WEBP", "quality": 90, "method": 0}),
)


def photograph(name: str) -> Image.Image:
    """One whole photograph, RGB."""
    return Image.fromarray(PHOTOGRAPHS[name]()[..., :3])


def make_photo_folder(
    path: Path, *, per_class: int = 40, size: int = 96, classes: tuple[str, ...] = tuple(PHOTOGRAPHS)
) -> Path:
    """Writes `per_class` different colour photographs of each class, the same ones each time.

    They are crops of one photograph a class, turned, flipped and with other brightness; the shorter side has `size`
    pixels. JPEG, PNG and WebP take turns; the first of each class is stored sideways, with EXIF orientation 6.
    """
    for index, name in enumerate(classes):
        folder = path / name
        folder.mkdir(parents=True)
        whole = photograph(name)
        generator = np.random.default_rng([size, index])
        for number in range(per_class):
            image = _variation(whole, size, generator)
            extension, options = ENCODINGS[number % len(ENCODINGS)]
            if number == 0:
                image = image.transpose(Image.Transpose.ROTATE_90)
                exif = Image.Exif()
                exif[0x0112] = 6
                options = {**options, "exif": exif.tobytes()}
            image.save(folder / f"{name}_{number:03d}{extension}", **options)
    return path


def _variation(whole: Image.Image, size: int, generator: np.random.Generator) -> Image.Image:
    width, height = (size, size * 5 // 4) if generator.random() < 0.5 else (size * 5 // 4, size)
    # At most 0.6 of the photograph, so that turning it brings no corner from outside.
    factor = generator.uniform(0.4, 0.6) * min(whole.width / width, whole.height / height)
    box_width, box_height = width * factor, height * factor
    left = generator.uniform(0.15, 0.85) * (whole.width - box_width)
    top = generator.uniform(0.15, 0.85) * (whole.height - box_height)
    centre = (left + box_width / 2, top + box_height / 2)
    turned = whole.rotate(generator.uniform(-8, 8), Image.Resampling.BILINEAR, center=centre)
    box = (left, top, left + box_width, top + box_height)
    image = turned.resize((width, height), Image.Resampling.BILINEAR, box=box)
    if generator.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return ImageEnhance.Brightness(image).enhance(generator.uniform(0.7, 1.3))
