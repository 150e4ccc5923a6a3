"""What the one-shot benchmarks cut: a network, the images that the cutting sees, and how what is left is judged."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fashion_net
import numpy as np
from absl import flags

import mobileprune as mp
from mobileprune.errors import SettingsError

CALIBRATION = flags.DEFINE_integer("calibration_images", 1024, "How many images, without labels.", lower_bound=2)
LEARNING_RATE = flags.DEFINE_float("learning_rate", 1e-3, "Where the fine-tuning starts.")
MODEL = flags.DEFINE_string("model", str(fashion_net.MODEL_FILE), "The network for Fashion-MNIST.")
CLASSIFIER = flags.DEFINE_string("classifier", None, "Another classifier: a .keras file. Needs --photos.")
PHOTOS = flags.DEFINE_string("photos", None, "A folder of photographs for --classifier.")
MEAN = flags.DEFINE_float("mean", 127.0, "Of the 0 to 255 values, for --classifier.")
STD = flags.DEFINE_float("std", 128.0, "The same.")
CROPS = flags.DEFINE_integer("crops", 8, "Random crops of each photograph.", lower_bound=1)
OUT_DIR = flags.DEFINE_string("out_dir", str(Path(__file__).resolve().parent / "results"), "Where the figures go.")
SEED = flags.DEFINE_integer("seed", 0, "Of the calibration images, the crops and the training.")


@dataclasses.dataclass(frozen=True)
class Subject:
    """A network, the images that the cutting sees, and how a cut one is judged (0 to 1)."""

    name: str
    measure: str
    model: Any
    calibration: np.ndarray
    judge: Callable[[Any], float]
    data: fashion_net.Data | None = None


def chosen() -> Subject:
    """What the flags name.

    Raises:
        MobilePruneError: flags that do not fit together, or a model or images that cannot be read.
    """
    if bool(CLASSIFIER.value) != bool(PHOTOS.value):
        raise SettingsError("--classifier and --photos go together.")
    return _classifier(CLASSIFIER.value, PHOTOS.value) if CLASSIFIER.value else _fashion()


def fine_tune(model: Any, subject: Subject, epochs: int, callbacks: tuple[Any, ...] = ()) -> None:
    """Adam from --learning_rate, cosine decay, the 60,000 images as they are."""
    assert subject.data is not None
    fashion_net.fit(
        model,
        subject.data,
        epochs=epochs,
        peak=LEARNING_RATE.value,
        warm_up=0.0,
        augment=False,
        seed=SEED.value,
        callbacks=callbacks,
    )


def _fashion() -> Subject:
    """The committed network and Fashion-MNIST."""
    data = fashion_net.load_data()
    some = np.random.default_rng(SEED.value).permutation(len(data.train_images))[: CALIBRATION.value]
    return Subject(
        "fashion_net",
        "accuracy on 10,000 test images",
        mp.load_model(MODEL.value),
        data.train_images[some],
        lambda model: fashion_net.accuracy(model, data.test_images, data.test_labels),
        data,
    )


def _classifier(path: str, folder: str) -> Subject:
    """Any classifier, judged by its own answers on crops of photographs."""
    model = mp.load_model(path)
    height, width, _ = model.inputs[0].shape[1:]
    # Larger than the input, for the crops.
    contract = mp.Preprocess(height * 9 // 7, width * 9 // 7, fit="crop", mean=(MEAN.value,), std=(STD.value,))
    photos = mp.load_images(folder, contract, tuple(map(str, range(mp.output_count(model)))))
    generator = np.random.default_rng(SEED.value)
    calibration = _crops(photos.calibration.images(), height, width, generator)[: CALIBRATION.value]
    test = _crops(photos.test.images(), height, width, generator)
    measure = f"top-1 agreement on {len(test)} crops"
    return Subject(model.name, measure, model, calibration, lambda cut: mp.agreement(model, cut, test))


def _crops(images: np.ndarray, height: int, width: int, generator: np.random.Generator) -> np.ndarray:
    """`--crops` windows of each image, at random places, half of them flipped; round after round of all images."""
    crops = []
    for _ in range(CROPS.value):
        for image in images:
            top = generator.integers(image.shape[0] - height + 1)
            left = generator.integers(image.shape[1] - width + 1)
            window = image[top : top + height, left : left + width]
            crops.append(window[:, ::-1] if generator.random() < 0.5 else window)
    return np.stack(crops)
