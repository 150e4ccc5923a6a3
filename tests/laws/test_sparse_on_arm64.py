"""The law: what `sparse_path` says of a file without running it is what ARM64's kernels do with it.

Every small network of the two modules' tests, and MobileNets made sparse-ready, run on (emulated) ARM64: as many 1x1
convolutions on XNNPACK's sparse kernels as were foreseen, and answers wrong, or none, exactly where that was foreseen.
"""

import keras
import numpy as np
import pytest
from architectures import randomise
from test_sparse_path import PLANTED
from test_xnnpack_layout import SEEN
from xnnpack_models import network, with_zeros

import mobileprune as mp
from mobileprune.errors import InterpreterError
from mobileprune.recipes import quantize
from mobileprune.tflite_graph import read_graph

REASON = mp.arm64_missing()
pytestmark = pytest.mark.skipif(REASON is not None, reason=str(REASON))

SHARE = 0.85
# Of the largest answer: rounding makes 1e-6, a result read in the wrong order 1e-2 and more.
TOLERANCE = 1e-4
SETTINGS = {**{name: settings for name, (settings, _, _) in SEEN.items()}, **{n: PLANTED[n][0] for n in PLANTED}}


def sparse_file(model, recipe="float32"):
    content = mp.to_float_flatbuffer(with_zeros(model, SHARE))
    return mp.encode_sparse(quantize(content, recipe))


def fails_on_arm64(content):
    """Whether the file does not run there, or answers something else than here."""
    try:
        found = mp.compare_on_arm64(content)
    except InterpreterError:
        return True
    return bool(found.max_abs_error > TOLERANCE * largest_answer(content))


def largest_answer(content):
    run = mp.run_on_arm64(content, np.random.default_rng(0).random((1, *shape_of(content)[1:]), np.float32))
    return max(1e-3, *(float(np.abs(output).max()) for output in run.outputs))


def shape_of(content):
    return read_graph(content).inputs[0].shape


def taken_on_arm64(content):
    try:
        return mp.sparse_kernels(content).sparse
    except InterpreterError:
        return None  # it does not run there


@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_what_is_foreseen_is_what_happens(name):
    content = sparse_file(network(**SETTINGS[name]))
    foreseen = mp.sparse_path(content)
    assert fails_on_arm64(content) == bool(foreseen.faults)
    assert taken_on_arm64(content) in (foreseen.taken, None if foreseen.faults else foreseen.taken)


@pytest.mark.parametrize("recipe", ["float32", "float16"])
@pytest.mark.parametrize(
    ("build", "settings"),
    [
        (keras.applications.MobileNet, {"alpha": 0.25}),
        (keras.applications.MobileNetV2, {"alpha": 0.35}),
        (keras.applications.MobileNetV3Small, {"alpha": 0.75, "include_preprocessing": False}),
    ],
    ids=["MobileNet", "MobileNetV2", "MobileNetV3Small"],
)
def test_stock_networks_made_ready_run_on_sparse_kernels(build, settings, recipe):
    model = build((64, 64, 3), weights=None, classes=10, classifier_activation=None, **settings)
    content = sparse_file(mp.sparse_ready(randomise(model)).model, recipe)
    foreseen, seen = mp.sparse_path(content), mp.sparse_kernels(content)
    assert seen.sparse == foreseen.taken == foreseen.reachable > 10
    assert not fails_on_arm64(content)
    assert len(content) < 0.7 * len(quantize(mp.to_float_flatbuffer(model), recipe))
