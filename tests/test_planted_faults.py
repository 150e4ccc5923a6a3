"""Faults that ship every day, each planted on purpose: verification finds it, and nothing where there is none."""

import dataclasses
import re

import numpy as np
import pytest
from photo_models import (
    CONTRACT,
    NAMES,
    RECIPES,
    broken_variant,
    edited,
    expected,
    photo_images,
    photo_net,
    photo_variants,
    photos,
)

from mobileprune.errors import DatasetError, InterpreterError, VerificationError
from mobileprune.preprocess import load
from mobileprune.verify_files import verify_files


def checked(variant, **options):
    paths, _ = photos()
    reference = photo_net() if "preprocess" in options else expected()
    return verify_files(reference, variant, paths, CONTRACT, **options)


def said(report) -> str:
    assert not report.passed
    return " ".join(report.failures)


@pytest.mark.parametrize("recipe", RECIPES)
def test_nothing_is_found_where_nothing_was_planted(recipe):
    paths, labels = photos()
    report = checked(photo_variants()[recipe], labels=labels, names=NAMES, preprocess=lambda path: load(path, CONTRACT))
    report.raise_if_failed()
    assert report.images == report.classes.images == len(paths)
    assert report.classes.accuracy_before > 0.8
    assert abs(report.classes.worst_class_drop) < 0.2


def swapped(kernel):
    """The first two of a kernel's outputs in each other's place."""
    return kernel[[1, 0, *range(2, len(kernel))]]


@pytest.mark.parametrize("recipe", ["float32", "int8"])
def test_two_output_classes_exchanged(recipe):
    labels = photos()[1]
    report = checked(broken_variant(recipe, -1, swapped), labels=labels, names=NAMES)
    assert re.search(r"clear class|correlation", said(report))
    assert report.classes.worst_class in NAMES[:2]
    assert f"Class {report.classes.worst_class!r} falls" in said(report)
    assert report.classes.churn > 0.2


@pytest.mark.parametrize("recipe", ["float32", "int8"])
def test_two_channels_of_an_inner_convolution_exchanged(recipe):
    assert "dB" in said(checked(broken_variant(recipe, 2, swapped)))


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_file_that_takes_bgr(recipe):
    calibration = photo_images()[..., ::-1]
    report = checked(broken_variant(recipe, 0, lambda kernel: kernel[..., ::-1], calibration))
    assert "when it is given the channels in reverse order (BGR)" in said(report)


@pytest.mark.parametrize("recipe", ["float32", "int8_float_io"])
@pytest.mark.parametrize(("factor", "values"), [(1 / 127.5, "0 to 255"), (2.0, "0 to 1")])
def test_a_file_that_takes_values_of_another_range(recipe, factor, values):
    # With the mean left out: only the kernel's scale is wrong, as when 1/std is forgotten.
    calibration = photo_images() / factor
    assert "dB" in said(checked(broken_variant(recipe, 0, lambda kernel: kernel * factor, calibration)))


@pytest.mark.parametrize("recipe", ["float32", "int8"])
@pytest.mark.parametrize(
    ("mean", "std", "shown"),
    [((0.0,), (1.0,), "mean were 0 and std 1 "), ((0.0,), (255.0,), "std 255 "), ((0.0,), (127.5,), "mean were ")],
)
def test_a_contract_with_another_normalisation_than_the_training_code(recipe, mean, std, shown):
    trained = dataclasses.replace(CONTRACT, mean=mean, std=std)
    report = checked(photo_variants()[recipe], preprocess=lambda path: load(path, trained))
    assert "The normalisation is another one" in said(report)
    assert shown in said(report)


@pytest.mark.parametrize("recipe", ["float32", "int8"])
def test_a_contract_with_rgb_where_the_training_code_had_bgr(recipe):
    report = checked(photo_variants()[recipe], preprocess=lambda path: load(path, CONTRACT)[..., ::-1])
    assert "reverse order (BGR for RGB)" in said(report)


def test_a_contract_with_another_crop_than_the_training_code():
    stretched = dataclasses.replace(CONTRACT, fit="stretch")
    report = checked(photo_variants()["float32"], preprocess=lambda path: load(path, stretched))
    assert "Other pixels come out" in said(report)


def test_an_integer_file_that_was_calibrated_on_other_numbers():
    images = photo_images()
    for wrong, words in ((images * 127.5 + 127.5, "times less"), (images / 4, "is cut off")):
        report = checked(broken_variant("int8", 0, lambda kernel: kernel, wrong))
        assert "the input can hold" in said(report)
        assert words in said(report)


@pytest.mark.parametrize(("steps", "share"), [(40, "1[0-9]%"), (-128, "[45][0-9]%"), (90, "3[0-9]%")])
def test_a_wrong_zero_point_of_the_input(steps, share):
    def shift(model):
        graph = model.subgraphs[0]
        points = graph.tensors[graph.inputs[0]].quantization.zeroPoint
        points[0] = np.clip(points[0] + steps, -128, 127)

    assert re.search(f"the input can hold .*: {share} of that is cut off", said(checked(edited(INT8(), shift))))


@pytest.mark.parametrize("factor", [0.25, 4.0])
def test_a_wrong_scale_of_the_input(factor):
    def rescale(model):
        graph = model.subgraphs[0]
        graph.tensors[graph.inputs[0]].quantization.scale[0] *= factor

    assert "the input can hold" in said(checked(edited(INT8(), rescale)))


def test_a_wrong_zero_point_of_the_output():
    def shift(model):
        graph = model.subgraphs[0]
        graph.tensors[graph.outputs[0]].quantization.zeroPoint[0] = 127

    assert "the output can hold" in said(checked(edited(INT8(), shift)))


@pytest.mark.parametrize("value", [-200, 300])
def test_a_zero_point_that_the_type_cannot_hold(value):
    def shift(model):
        graph = model.subgraphs[0]
        graph.tensors[graph.inputs[0]].quantization.zeroPoint[0] = value

    # The runtime may refuse such a file before anybody reads what it says.
    with pytest.raises((InterpreterError, VerificationError), match=rf"zero point {value}, which|_int8\.tflite: "):
        checked(edited(INT8(), shift)).raise_if_failed()


def test_an_input_of_another_type_than_the_recipe_promises():
    variants = photo_variants()
    mixed_up = dataclasses.replace(variants["int8"], content=variants["int8_float_io"].content)
    assert "the input is float32; int8 promises int8" in said(checked(mixed_up))


@pytest.mark.parametrize("recipe", ["float32", "int8"])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file(recipe, share):
    whole = photo_variants()[recipe]
    cut = dataclasses.replace(whole, content=whole.content[: int(share * len(whole.content))])
    with pytest.raises(InterpreterError, match=rf"photo_net_{recipe}\.tflite"):
        checked(cut).raise_if_failed()


def test_labels_in_another_order_than_the_outputs():
    labels = photos()[1]
    turned = (labels + 1) % len(NAMES)
    report = checked(photo_variants()["float32"], labels=turned, names=NAMES)
    assert "do not match the outputs" in said(report)
    pair = np.array([1, 0, 2, 3, 4])[labels]
    assert "'astronaut' → 'cat' → 'astronaut'" in said(checked(photo_variants()["int8"], labels=pair, names=NAMES))


def test_fewer_or_more_labels_than_outputs():
    for names in (NAMES[:-1], (*NAMES, "background")):
        report = checked(photo_variants()["float32"], names=names)
        assert f"has 5 outputs, but {len(names)} labels are named" in said(report)


def test_a_label_that_no_output_can_mean():
    labels = photos()[1] + 1
    with pytest.raises(DatasetError, match="Labels from 1 to 5 do not match outputs of 5 classes"):
        checked(photo_variants()["float32"], labels=labels)


def INT8():
    return photo_variants()["int8"]
