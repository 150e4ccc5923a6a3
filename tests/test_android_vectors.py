"""The numbers that the demo's Kotlin tests expect are those that mobileprune computes today."""

import base64
import json

import android_vectors
import numpy as np


def test_the_vectors_that_the_kotlin_tests_read_are_what_python_computes():
    kept = json.loads(android_vectors.FILE.read_text(encoding="utf-8"))
    assert kept == json.loads(android_vectors.written())


def test_the_vectors_would_notice_another_picture_arithmetic(monkeypatch):
    monkeypatch.setattr(android_vectors, "to_uint8", lambda image, contract: np.zeros(contract.shape, np.uint8))
    kept = json.loads(android_vectors.FILE.read_text(encoding="utf-8"))
    assert kept["pictures"] != json.loads(android_vectors.written())["pictures"]


def test_every_orientation_and_both_colours_are_among_the_pictures():
    pictures = json.loads(android_vectors.FILE.read_text(encoding="utf-8"))["pictures"]
    assert {each["orientation"] for each in pictures} >= set(range(9)) - {5}
    assert {each["contract"]["color"] for each in pictures} == {"RGB", "grayscale"}
    assert any(min(base64.b64decode(each["rgba"])[3::4]) < 255 for each in pictures)
