"""The law on the networks of `keras.applications`: the smallest of every family, cut to half of its MACs.

Each then is what every user wants of it: a Keras model that is saved, read back and trained, and a `.tflite` that says
the same.
"""

import inspect

import keras
import numpy as np
import pytest
from architectures import randomise_deep
from laws.removal import check_law, check_training, disagreement, run

import mobileprune as mp

# The smallest member of each module of keras.applications and the smallest input that it takes.
FAMILIES = {
    "convnext": ("ConvNeXtTiny", 32),
    "densenet": ("DenseNet121", 32),
    "efficientnet": ("EfficientNetB0", 32),
    "efficientnet_v2": ("EfficientNetV2B0", 32),
    "inception_resnet_v2": ("InceptionResNetV2", 75),
    "inception_v3": ("InceptionV3", 75),
    "mobilenet": ("MobileNet", 32),
    "mobilenet_v2": ("MobileNetV2", 32),
    "mobilenet_v3": ("MobileNetV3Small", 32),
    "nasnet": ("NASNetMobile", 32),
    "resnet": ("ResNet50", 32),
    "resnet_v2": ("ResNet50V2", 32),
    "vgg16": ("VGG16", 32),
    "xception": ("Xception", 71),
}
# Modules that hold no family of their own.
OTHERS = {"imagenet_utils", "resnet50", "vgg19"}


def build(family):
    """The family's smallest member with fresh weights and ten classes, without a softmax that would blur errors."""
    name, size = FAMILIES[family]
    make = getattr(keras.applications, name)
    return make(weights=None, input_shape=(size, size, 3), classes=10, classifier_activation=None)


def images(model, count=8):
    """Pixels, or values around 0 for networks that do not scale pixels themselves."""
    generator = np.random.default_rng(0)
    shape = (count, *model.input_shape[1:])
    scales = any(isinstance(layer, (keras.layers.Rescaling, keras.layers.Normalization)) for layer in model.layers)
    drawn = generator.uniform(0, 255, shape) if scales else generator.normal(size=shape)
    return drawn.astype("float32")


def test_every_family_that_keras_has_is_here():
    assert {name for name, _ in inspect.getmembers(keras.applications, inspect.ismodule)} == {*FAMILIES, *OTHERS}


@pytest.mark.parametrize("family", FAMILIES)
def test_half_a_network_is_a_whole_one(family, tmp_path):
    model = build(family)
    batch = images(model)

    def randomised(model, seed):
        return randomise_deep(model, batch, seed)

    smaller, plan = check_law(model, inputs=[batch], macs=0.5, round_to=8, randomised=randomised, tolerance=1e-3)
    assert 0.4 * plan.macs_before < plan.macs <= 0.5 * plan.macs_before

    smaller.save(tmp_path / "smaller.keras")
    again = keras.models.load_model(tmp_path / "smaller.keras", safe_mode=True)
    assert disagreement(run(smaller, [batch]), run(again, [batch])) < 1e-6

    (variant,) = mp.convert(smaller, ["float32"])
    mp.verify(smaller, variant, batch).raise_if_failed()

    check_training(again, [batch])
