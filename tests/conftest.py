"""Quiet, small and repeatable: the same for every test."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import pytest


@pytest.fixture(autouse=True)
def _as_if_it_were_the_first():
    """Names of layers are counted from the start, and numbers are drawn from one seed, whatever ran before."""
    import keras

    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(0)
