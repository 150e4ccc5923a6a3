"""The flags of sparsity, read in this process: what they come to, and which are refused."""

import keras
import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver
from architectures import ARCHITECTURES, random_inputs, randomise

import mobileprune as mp
from mobileprune import sparsity_options
from mobileprune.errors import MobilePruneError
from mobileprune.sparsity_allocation import ALLOCATIONS

FLAGS = flags.FLAGS


@pytest.fixture(scope="module", autouse=True)
def _defined():
    sparsity_options.define(training=True)
    yield
    for flag in FLAGS.flags_by_module_dict()["mobileprune.sparsity_options"]:
        delattr(FLAGS, flag.name)


@pytest.fixture
def given():
    """Sets flags as a command line does."""
    with flagsaver.flagsaver():

        def parse(*arguments):
            FLAGS(["program", *arguments])

        parse()
        yield parse


@pytest.fixture(scope="module")
def model():
    keras.utils.clear_session()
    return randomise(ARCHITECTURES["inverted_residual"]())


@pytest.mark.parametrize(
    ("arguments", "pattern", "share"),
    [
        ([], {}, 0.8),
        (["--sparsity=0.5"], {}, 0.5),
        (["--sparsity_pattern=4x1"], {"block_size": (4, 1)}, 0.8),
        (["--sparsity_pattern=2:4", "--sparsity=0.9"], {"sparsity_m_by_n": (2, 4)}, 0.5),
        (["--sparsity_pattern=3:4"], {"sparsity_m_by_n": (3, 4)}, 0.75),
    ],
)
def test_patterns_and_the_share_that_they_come_to(given, arguments, pattern, share):
    given(*arguments)
    assert sparsity_options.pattern() == pattern
    assert sparsity_options.share() == share


def test_the_flag_knows_every_allocation(given):
    assert set(FLAGS["sparsity_allocation"].parser.enum_values) == set(ALLOCATIONS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sparsity_pattern=2of4"], "'2of4' is no pattern"),
        (["--sparsity_pattern=4:2"], "0 < m < n"),
        (["--sparsity_pattern=0x4"], "block_size must be"),
        (["--dense=frist"], "frist"),
        (["--sparsity_backend=tfmot", "--sparsity_init=one_shot"], "tfmot starts with all weights"),
        (["--sparsity_backend=tfmot", "--sparsity_allocation=erk"], "uniform only"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_any_work(given, model, arguments, message):
    given(*arguments)
    with pytest.raises(MobilePruneError, match=message):
        sparsity_options.check(model)


def test_the_toolkit_starts_with_all_weights_and_we_with_zeros(given):
    assert sparsity_options.starts_with_zeros()
    given("--sparsity_backend=tfmot")
    assert not sparsity_options.starts_with_zeros()
    given("--sparsity_backend=mobileprune", "--sparsity_init=none")
    assert not sparsity_options.starts_with_zeros()


@pytest.mark.parametrize("steps", [1, 7, 100, 1234, 50_000])
def test_the_schedule_ends_where_the_toolkit_would_act_too(given, model, steps):
    given("--dense=head*")
    schedules = sparsity_options.schedules(model, steps)
    assert schedules["head*"] is None
    decay = schedules["*"]
    assert decay.end_step <= max(1, 0.6 * steps)
    assert decay.end_step % decay.frequency == 0
    acting = sum(decay.should_update(step) for step in range(1, steps + 1))
    assert 1 <= acting <= 80
    assert (decay.initial_sparsity, decay.final_sparsity) == (pytest.approx(mp.sparsity(model)), 0.8)


def test_zeros_without_training_with_and_without_images(given, model):
    given("--sparsity=0.5")
    images = random_inputs(model, 8)[0]
    by_size, by_loss = (sparsity_options.prune_one_shot(model, some) for some in (None, images))
    assert mp.sparsity(by_size) == pytest.approx(0.5, abs=0.01)
    assert mp.sparsity(by_loss) == pytest.approx(0.5, abs=0.01)
    far = [float(np.abs(found(images) - model(images)).mean()) for found in (by_size, by_loss)]
    assert far[1] < far[0]


def test_sparse_ready_leaves_all_but_the_1x1_convolutions_dense(given, model):
    given("--sparse_ready", "--sparsity=0.5", "--dense=none_such")
    dense = sparsity_options.dense_layers(model)
    assert dense[0] == "none_such"
    for layer in model.layers:
        if layer.name in dense:
            assert getattr(layer, "kernel_size", None) != (1, 1)
    assert any(isinstance(model.get_layer(name), keras.layers.Dense) for name in dense[1:])
