"""The flags that programs share, read in this process: what they come to, and which are refused."""

import keras
import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver
from architectures import ARCHITECTURES, random_inputs, randomise

import mobileprune as mp
from mobileprune import options
from mobileprune.errors import MobilePruneError
from mobileprune.file_size import KERNEL_BYTES
from mobileprune.importance import IMPORTANCES, WITH_CALIBRATION
from mobileprune.latency_setup import DEVICES
from mobileprune.ranking import NORMALISATIONS
from mobileprune.reconstruct import COMPENSATIONS

FLAGS = flags.FLAGS
INPUT = mp.Preprocess(32, 32)


@pytest.fixture(scope="module", autouse=True)
def _defined():
    options.define_input()
    options.define_calibration()
    options.define_pruning()
    yield
    for name in options_flags():
        delattr(FLAGS, name)


def options_flags():
    return [flag.name for flag in FLAGS.flags_by_module_dict()["mobileprune.options"]]


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
    ("arguments", "target", "name"),
    [
        ([], {"macs": 0.5}, "c50"),
        (["--macs=0.25"], {"macs": 0.25}, "c25"),
        (["--macs=4000000"], {"macs": 4_000_000}, "c4000000"),
        (["--params=0.4"], {"params": 0.4}, "params40"),
        (["--file_bytes=200000"], {"file_bytes": 200_000}, "file_bytes200000"),
        (["--ratio=0.3"], {"ratio": 0.3}, "ratio30"),
        (["--speedup=1.5"], {"speedup": 1.5}, "speedup150"),
        (["--latency_ms=0.15"], {"latency_ms": 0.15}, "latency150us"),
        (["--channels=stem:24, block_*:96,a/b:8"], {"channels": {"stem": 24, "block_*": 96, "a/b": 8}}, "channels"),
    ],
)
def test_the_target_and_the_name_that_follows_it(given, arguments, target, name):
    given(*arguments)
    assert options.target() == target
    assert options.cut_name() == name


def test_limits_are_numbers_or_go_by_pattern(given):
    assert options.limits() == {"round_to": 8, "min_channels": 1, "max_ratio": 0.9, "keep": [], "prune_only": []}
    given("--min_channels=stem:16,*:4", "--max_ratio=head:0.5", "--keep=a,b", "--prune_only=c*", "--round_to=2")
    assert options.limits() == {
        "round_to": 2,
        "min_channels": {"stem": 16, "*": 4},
        "max_ratio": {"head": 0.5},
        "keep": ["a", "b"],
        "prune_only": ["c*"],
    }


def test_images_decide_what_is_not_said(given):
    assert (options.importance(), options.compensation()) == ("obs", "least_squares")
    assert (options.importance(images=False), options.compensation(images=False)) == ("l2", "none")
    given("--importance=fpgm", "--compensate=mean")
    assert (options.importance(), options.compensation()) == ("fpgm", "mean")
    assert (options.importance(images=False), options.compensation(images=False)) == ("fpgm", "mean")


def test_help_names_all_there_is():
    words = {name: FLAGS[name].help for name in options_flags()}
    assert all(name in words["importance"] for name in (*IMPORTANCES, "obs"))
    assert options.WITH_IMAGES == WITH_CALIBRATION
    assert all(name in words["normalise"] for name in NORMALISATIONS)
    assert tuple(FLAGS["compensate"].parser.enum_values) == COMPENSATIONS
    assert FLAGS["file_recipe"].value in KERNEL_BYTES


def test_the_plan_and_the_smaller_model_are_those_of_the_library(given, model):
    given("--macs=0.6", "--round_to=4")
    images = random_inputs(model)[0]
    plan = options.plan(model, images)
    assert plan == mp.plan_channels(model, macs=0.6, round_to=4, importance="obs", calibration=images)
    found = options.prune(model, plan, images)
    expected = mp.prune_channels(model, plan, "least_squares", images)
    assert all(map(np.array_equal, found.get_weights(), expected.get_weights()))
    assert options.plan(model) == mp.plan_channels(model, macs=0.6, round_to=4, importance="l2")
    expected = mp.prune_channels(model, plan)
    assert all(map(np.array_equal, options.prune(model, plan).get_weights(), expected.get_weights()))


@pytest.mark.parametrize("device", options.LATENCY_DEVICES)
def test_a_latency_is_meant_where_it_is_said(given, device):
    assert {*options.LATENCY_DEVICES} == {*DEVICES}
    given("--latency_ms=1", f"--latency_device={device}")
    assert options.planning("l2")["device"] == device


def test_a_latency_may_be_that_of_a_phone(given):
    given("--macs=0.5", "--latency_device=R58M")
    assert options.planning("l2")["device"] == "host", "no latency is asked for"
    FLAGS.macs = None
    given("--latency_ms=8")
    with pytest.raises(MobilePruneError, match="needs LiteRT's program for the phone"):
        options.planning("l2")
    given("--benchmark_model=program")
    phone = options.planning("l2")["device"]
    assert (phone.serial, phone.benchmark_model) == ("R58M", "program")
    assert phone.seconds < 5, "hundreds of files take so long each"


@pytest.mark.parametrize(("flag", "limit"), [("1", 1), ("0.5", 0.5), ("auto", "auto")])
def test_blocks_go_before_channels(given, model, flag, limit):
    given("--macs=0.6", "--round_to=4", f"--blocks={flag}", "--importance=l2")
    images = random_inputs(model)[0]
    assert options.blocks() == limit
    expected = mp.plan_channels(model, macs=0.6, round_to=4, importance="l2", calibration=images, blocks=limit)
    assert options.plan(model, images) == expected
    options.check(model)
    with pytest.raises(MobilePruneError, match="--blocks looks at images"):
        options.plan(model)


def test_small_images_are_all_used_and_of_large_ones_128():
    assert len(options.pruning_images(np.zeros((1000, 32, 32, 3), np.uint8))) == 1000
    assert len(options.pruning_images(np.zeros((200, 224, 224, 3), np.uint8))) == 128
    assert len(options.pruning_images(np.zeros((20, 1024, 1024, 3), np.uint8))) == 16


def test_the_contract_follows_the_flags(given):
    assert options.contract(INPUT) == INPUT
    given("--input_mean=127", "--input_std=128")
    assert (options.contract(INPUT).mean, options.contract(INPUT).std) == ((127.0,), (128.0,))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--macs=0.5", "--params=0.5"], "Give one target: --macs or --params, not both"),
        (["--channels=stem"], "--channels: 'stem' is no pattern and number. Write for example --channels=stem:24"),
        (["--channels=:24"], "':24' is no pattern and number"),
        (["--channels=stem:many"], "'many' is no number"),
        (["--channels="], "--channels names nothing"),
        (["--channels=nothing:4"], "channels='nothing' matches no layer"),
        (["--max_ratio=half"], "--max_ratio: 'half' is no number"),
        (["--max_ratio=1.5"], "max_ratio between 0 and 1"),
        (["--min_channels=2.5"], "--min_channels: '2.5' is no number"),
        (["--min_channels="], "--min_channels names nothing"),
        (["--importance=beauty"], "Unknown importance 'beauty'"),
        (["--normalise=rank"], "Unknown normalise='rank'"),
        (["--file_bytes=0.5", "--file_recipe=int5"], "recipe='int5' is not known"),
        (["--prune_only=nothing_*"], "matches no layer"),
        (["--macs=0.001"], "macs cannot go below"),
        (["--blocks=many"], "--blocks: 'many' is none of 3 (blocks), 0.3 (of the MACs) and auto"),
        (["--blocks=1.5"], "--blocks=1.5 is no share of the MACs"),
        (["--blocks=2", "--prune_only=nothing_*"], "matches no layer"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_any_work(given, model, arguments, said):
    given(*arguments)
    with pytest.raises(MobilePruneError) as error:
        options.check(model)
    assert said in str(error.value)
    assert "\n" not in str(error.value)
