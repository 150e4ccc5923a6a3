import json
import os
import signal
import subprocess
import sys

import keras
import numpy as np
import pytest
from architectures import ARCHITECTURES, randomise
from laws.removal import run

from mobileprune import sensitivity_run
from mobileprune.channel_groups import ChannelGraph
from mobileprune.errors import DatasetError, ModelError, OutputError, PlanError, SettingsError, WorkerError
from mobileprune.graph import leaves
from mobileprune.masks import Pattern, pruning_mask
from mobileprune.plan import plan_channels
from mobileprune.prunable import kernels_of, variable_at
from mobileprune.prune import prune_channels
from mobileprune.pruning_plan import GroupPlan, PruningPlan
from mobileprune.sensitivity import analyse_sensitivity
from mobileprune.sensitivity_record import Sensitivity

layers = keras.layers


def inputs_for(model, count=9):
    return [
        np.random.default_rng(number).normal(size=(count, *tensor.shape[1:])).astype("float32")
        for number, tensor in enumerate(model.inputs)
    ]


def cut(model, group, removed):
    """The model without some units of one group, really rebuilt."""
    parts = tuple(
        GroupPlan(each.name, each.size, tuple(sorted(removed)) if each.name == group else ())
        for each in ChannelGraph(model).groups
    )
    return prune_channels(model, PruningPlan(model.name, "", "", "local", 0, 0, 0, 0, parts))


def noise_share(before, after):
    """Noise over signal of all outputs, computed anew."""
    noise = sum(float(np.square(a.astype(np.float64) - b).sum()) for a, b in zip(before, after, strict=True))
    return noise / sum(float(a.astype(np.float64).var(axis=0).sum()) * len(a) for a in before)


def differs_most(model, found, inputs):
    """By how much noise or agreement differ at most from those of networks that are really cut."""
    before, worst = run(model, inputs), 0.0
    for part in found.parts:
        for point in part.points:
            after = run(cut(model, part.name, part.order[: round(point.taken * part.size)]), inputs)
            told = 0.0 if point.snr_db == 200 else 10 ** (-point.snr_db / 10)
            share = noise_share(before, after)
            worst = max(worst, abs(told - share) / max(share, 1e-3))
            if point.agreement is not None:
                same = (before[0].argmax(axis=1) == after[0].argmax(axis=1)).mean()
                worst = max(worst, abs(point.agreement - same))
    return worst


def normalised():
    """A layer normalisation reads all channels at once: no zeros stand for missing ones."""
    inputs = keras.Input((6, 6, 3))
    x = layers.LayerNormalization()(layers.Conv2D(8, 3, name="stem")(inputs))
    x = layers.Conv2D(6, 1, activation="relu", name="next")(x)
    return keras.Model(inputs, layers.Dense(4)(layers.GlobalAveragePooling2D()(x)), name="normalised")


def nested():
    """A model called twice inside another, and attention with its heads and their width.

    It has other numbers of heads than of positions: Keras adds a bias of heads that are one column wide along positions
    where there are as many of them.
    """
    tower_input = keras.Input((5, 6))
    x = layers.Dense(8, activation="relu", name="widen")(tower_input)
    tower = keras.Model(tower_input, layers.MultiHeadAttention(4, 3, name="attend")(x, x), name="tower")
    inputs = keras.Input((5, 6))
    x = layers.Add()([tower(inputs), tower(layers.Dense(6, name="mix")(inputs))])
    return keras.Model(inputs, layers.Dense(5)(layers.Flatten()(x)), name="nested")


def recurrent():
    """Units that other units read a step later."""
    inputs = keras.Input((5, 4))
    x = layers.Bidirectional(layers.LSTM(8, return_sequences=True, name="first"), name="both")(inputs)
    return keras.Model(inputs, layers.Dense(4)(layers.GRU(8, name="second")(x)), name="recurrent")


def small():
    """Four classes; `wide` is read by nobody but what ignores it nearly: planted insensitive."""
    keras.utils.set_random_seed(3)
    inputs = keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(8, 3, strides=2, use_bias=False, name="stem")(inputs)
    x = layers.ReLU()(layers.BatchNormalization(name="norm")(x))
    y = layers.Conv2D(16, 1, activation="relu", name="wide")(x)
    y = layers.DepthwiseConv2D(3, padding="same", name="depthwise")(y)
    x = layers.Add()([x, layers.Conv2D(8, 1, name="project")(y)])
    x = layers.Conv2D(16, 1, activation="relu", name="last")(x)
    model = keras.Model(inputs, layers.Dense(4, name="head")(layers.GlobalAveragePooling2D()(x)), name="small")
    model.get_layer("project").kernel.assign(model.get_layer("project").kernel * 1e-3)
    return model


@pytest.mark.parametrize("name", [*ARCHITECTURES, "normalised", "nested", "recurrent"])
def test_the_figures_are_those_of_networks_that_are_really_cut(name):
    model = randomise({**ARCHITECTURES, "normalised": normalised, "nested": nested, "recurrent": recurrent}[name]())
    before = [np.array(weight) for weight in model.weights]
    inputs = inputs_for(model)
    found = analyse_sensitivity(model, inputs, ratios=(0.3, 0.7))
    free = {group.name for group in ChannelGraph(model).groups if group.frozen is None and group.size > 1}
    assert {part.name for part in found.parts} == free
    assert differs_most(model, found, inputs) < 1e-3
    assert all(np.array_equal(a, np.array(b)) for a, b in zip(before, model.weights, strict=True))
    assert {part.name for part in found.parts if part.rebuilt} == ({"stem"} if name == "normalised" else set())


def test_a_wrong_figure_would_be_noticed():
    model, inputs = randomise(small()), inputs_for(small())
    found = analyse_sensitivity(model, inputs, ratios=(0.5,))
    data = found.to_json()
    data["parts"][1]["order"] = data["parts"][1]["order"][::-1]
    assert differs_most(model, Sensitivity.from_json(data), inputs) > 1e-2


def test_zeros_and_rounding_are_those_of_the_layer_alone():
    model, inputs = randomise(small()), inputs_for(small())
    before = run(model, inputs)
    pattern = Pattern(block_size=(2, 1))
    found = analyse_sensitivity(model, inputs, kind="sparsity", ratios=(0.5,), pattern=pattern)
    assert [part.name for part in found.parts] == ["stem", "wide", "project", "last", "head"]
    for part in found.parts:
        copy = keras.models.clone_model(model)
        copy.set_weights(model.get_weights())
        layer = dict(leaves(copy))[part.name]
        (kernel,) = kernels_of(layer)
        variable = variable_at(layer, kernel.path)
        values = np.array(variable)
        kept = kernel.from_taps(pruning_mask(kernel.to_taps(values), 0.5, pattern), values.shape)
        variable.assign(values * kept)
        assert 10 ** (-part.points[0].snr_db / 10) == pytest.approx(noise_share(before, run(copy, inputs)), rel=1e-3)
    rounding = analyse_sensitivity(model, inputs, kind="quantization", bits=(8, 4))
    assert [part.name for part in rounding.parts] == ["stem", "wide", "depthwise", "project", "last", "head"]
    for part in rounding.parts:
        eight, four = part.points
        if part.name == "depthwise":  # it has no fewer than 8 bits
            assert (four.taken, four.snr_db) == (8, eight.snr_db)
        else:
            assert (four.taken, eight.snr_db > four.snr_db + 10) == (4, True)


def test_labels_give_accuracies():
    model, inputs = randomise(small()), inputs_for(small(), 40)
    answers = run(model, inputs)[0].argmax(axis=1)
    labels = np.where(np.arange(40) % 4 == 0, (answers + 1) % 4, answers)
    found = analyse_sensitivity(model, inputs[0], labels=labels, ratios=(0.5,))
    assert found.accuracy == 0.75
    assert found.measure == "accuracy"
    part = found.parts[0]
    after = run(cut(model, part.name, part.order[: part.size // 2]), inputs)[0].argmax(axis=1)
    assert part.points[0].accuracy == pytest.approx((after == labels).mean())
    assert analyse_sensitivity(model, inputs, ratios=(0.5,)).measure == "agreement"


def test_parts_of_the_images_add_up(monkeypatch):
    model, inputs = randomise(small()), inputs_for(small(), 10)
    whole = analyse_sensitivity(model, inputs, ratios=(0.3, 0.5))
    monkeypatch.setattr(sensitivity_run.Analysis, "slices", [slice(0, 4), slice(4, 10)])
    parts = analyse_sensitivity(model, inputs, ratios=(0.3, 0.5))
    for left, right in zip(whole.parts, parts.parts, strict=True):
        for one, other in zip(left.points, right.points, strict=True):
            assert one.agreement == other.agreement
            assert one.snr_db == pytest.approx(other.snr_db, abs=0.01)


def test_little_memory_cuts_the_images_into_parts():
    model = small()
    analysis = sensitivity_run.Analysis(model, inputs_for(model, 10), None, [], most_bytes=3 * 8 * 8 * 3 * 4)
    assert [(part.start, part.stop) for part in analysis.slices] == [(0, 3), (3, 6), (6, 9), (9, 10)]


def test_what_was_measured_is_kept_and_taken_up_again(tmp_path, monkeypatch):
    model, inputs = randomise(small()), inputs_for(small())
    told = []

    def stop(done, of, name):
        told.append(name)
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        analyse_sensitivity(model, inputs, ratios=(0.5,), cache=tmp_path, progress=stop)
    kept = sorted(tmp_path.rglob("*.json"))
    assert len(kept) == 2
    again = []
    found = analyse_sensitivity(
        model, inputs, ratios=(0.5,), cache=tmp_path, progress=lambda done, of, name: again.append((done, of, name))
    )
    assert not set(told) & {name for _, _, name in again}
    assert again[0][0] == 3
    assert again[-1][0] == again[-1][1] == len(found.parts)
    assert found == analyse_sensitivity(model, inputs, ratios=(0.5,))
    # What is whole is only read.
    monkeypatch.setattr(sensitivity_run, "_each", None)
    assert analyse_sensitivity(model, inputs, ratios=(0.5,), cache=tmp_path) == found


def test_another_model_other_images_or_another_question_start_anew(tmp_path):
    model, inputs = randomise(small()), inputs_for(small())

    def folders(**settings):
        analyse_sensitivity(model, settings.pop("images", inputs), cache=tmp_path, only=["wide"], **settings)
        return len(list(tmp_path.iterdir()))

    assert folders(ratios=(0.5,)) == 1
    assert folders(ratios=(0.5,)) == 1
    assert folders(ratios=(0.5, 0.7)) == 2
    assert folders(ratios=(0.5,), kind="sparsity") == 3
    assert folders(ratios=(0.5,), labels=np.zeros(9, int)) == 4
    assert folders(ratios=(0.5,), images=inputs_for(model, 8)) == 5
    model.get_layer("head").bias.assign_add([1.0, 0.0, 0.0, 0.0])
    assert folders(ratios=(0.5,)) == 6


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '{"part": "wide", "sums": []}',
        '{"part": "other", "sums": [{"images": 9}]}',
        '{"part": "wide", "sums": [{"images": 8}]}',
        '{"part": "wide", "sums": [{"images": 9, "same": 10}]}',
        '{"part": "wide", "sums": [{"images": 9, "more": 1}]}',
    ],
)
def test_a_damaged_cache_is_one_clear_error(tmp_path, content):
    model, inputs = randomise(small()), inputs_for(small())
    analyse_sensitivity(model, inputs, ratios=(0.5,), cache=tmp_path, only=["wide"])
    (kept,) = tmp_path.rglob("*.json")
    kept.write_text(content)
    with pytest.raises(OutputError, match=r"wide.*Delete it and run again"):
        analyse_sensitivity(model, inputs, ratios=(0.5,), cache=tmp_path, only=["wide"])


def test_workers_find_the_same(tmp_path):
    model, inputs = randomise(small()), inputs_for(small())
    labels = np.arange(9) % 4
    alone = analyse_sensitivity(model, inputs, labels=labels, ratios=(0.3, 0.7))
    told = []
    shared = analyse_sensitivity(
        model, inputs, labels=labels, ratios=(0.3, 0.7), workers=2, progress=lambda done, of, _: told.append((done, of))
    )
    assert [part.order for part in shared.parts] == [part.order for part in alone.parts]
    for left, right in zip(alone.parts, shared.parts, strict=True):
        for one, other in zip(left.points, right.points, strict=True):
            assert one.accuracy == other.accuracy
            assert one.snr_db == pytest.approx(other.snr_db, abs=0.01)
    assert told[-1] == (len(alone.parts), len(alone.parts))


@keras.saving.register_keras_serializable(package="only_here")
class OnlyHere(keras.layers.Layer):
    """Other processes do not know it."""

    def call(self, inputs):
        return inputs


def test_a_worker_that_ends_early_is_an_error_that_says_so():
    inputs = keras.Input((4,))
    x = layers.Dense(8, name="first")(OnlyHere()(inputs))
    model = keras.Model(inputs, layers.Dense(3)(layers.Dense(8, name="second")(x)))
    with pytest.raises(WorkerError, match=r"Worker [12] of 2 ended with code 2: Cannot load .*workers=1"):
        analyse_sensitivity(model, inputs_for(model), kind="sparsity", ratios=(0.5,), workers=2)


def test_a_killed_worker_is_an_error_too(monkeypatch):
    from mobileprune import sensitivity_workers

    started = sensitivity_workers._start

    def start(*arguments):
        process, said = started(*arguments)
        if arguments[2] == 1:
            os.kill(process.pid, signal.SIGKILL)
        return process, said

    monkeypatch.setattr(sensitivity_workers, "_start", start)
    model = randomise(small())
    with pytest.raises(WorkerError, match="Worker 2 of 2 ended with code -9"):
        analyse_sensitivity(model, inputs_for(model), ratios=(0.5,), workers=2)


def test_a_worker_ends_with_its_parent():
    code = (
        "import threading, time; from mobileprune.sensitivity_worker import _end_with_parent;"
        "threading.Thread(target=_end_with_parent, daemon=True).start(); print('working', flush=True); time.sleep(600)"
    )
    worker = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert worker.stdout.readline() == b"working\n"
    assert worker.poll() is None
    worker.stdin.close()
    assert worker.wait(timeout=60) == 1
    worker.stdout.close()


def test_only_some_layers():
    model, inputs = randomise(small()), inputs_for(small())
    found = analyse_sensitivity(model, inputs, ratios=(0.5,), only=["w*", "last"])
    assert [part.name for part in found.parts] == ["wide", "last"]
    found = analyse_sensitivity(model, inputs, kind="quantization", only=["depth*"])
    assert [part.name for part in found.parts] == ["depthwise"]


@pytest.mark.parametrize("importance", ["l1", "fpgm", "taylor", "obs", "random"])
def test_every_importance_gives_the_order_of_a_plan(importance):
    model, inputs = randomise(small()), inputs_for(small(), 32)
    found = analyse_sensitivity(model, inputs[0], ratios=(0.5,), importance=importance, only=["last"])
    plan = plan_channels(model, channels={"last": 8}, importance=importance, calibration=inputs[0])
    removed = next(group.remove for group in plan.groups if group.group == "last")
    assert set(removed) == set(found.parts[0].order[:8])


def test_the_record_survives_json(tmp_path):
    model, inputs = randomise(small()), inputs_for(small())
    found = analyse_sensitivity(model, inputs, ratios=(0.5,), only=["wide"])
    assert Sensitivity.load(found.save(tmp_path / "found.json")) == found
    data = json.loads((tmp_path / "found.json").read_text())
    (tmp_path / "other.json").write_text(json.dumps({**data, "more": 1}))
    with pytest.raises(OutputError, match=r"other\.json is no sensitivity analysis: .*'more'"):
        Sensitivity.load(tmp_path / "other.json")


@pytest.mark.parametrize(
    ("settings", "error", "said"),
    [
        ({"kind": "layers"}, SettingsError, "Unknown kind 'layers'. Known: channels, sparsity, quantization"),
        ({"ratios": (0.5, 1.0)}, SettingsError, "above 0 and below 1"),
        ({"ratios": ()}, SettingsError, "above 0 and below 1"),
        ({"kind": "quantization", "bits": (1,)}, SettingsError, "from 2 to 16"),
        ({"workers": 0}, SettingsError, "workers=0"),
        ({"only": ["wild*"]}, PlanError, "matches no layer"),
        ({"only": "wide"}, PlanError, "is a list of patterns"),
        ({"importance": "l3"}, PlanError, "Unknown importance"),
        ({"labels": [0, 1]}, DatasetError, "9 integers are needed"),
        ({"labels": np.full(9, 4)}, DatasetError, "do not match outputs of 4 classes"),
    ],
)
def test_bad_input_is_one_clear_error(settings, error, said):
    model = small()
    with pytest.raises(error, match=said):
        analyse_sensitivity(model, inputs_for(model), **settings)


def test_bad_images_and_models_are_refused():
    model = small()
    with pytest.raises(DatasetError, match="calibration data are"):
        analyse_sensitivity(model, np.zeros((4, 9, 9, 3), "float32"))
    with pytest.raises(DatasetError, match="NaN"):
        analyse_sensitivity(model, np.full((4, 8, 8, 3), np.nan, "float32"))
    inputs = keras.Input((4,))
    flat = keras.Model(inputs, layers.Dense(3)(inputs), name="flat")
    with pytest.raises(ModelError, match="'flat' has nothing that kind='channels' could change"):
        analyse_sensitivity(flat, np.ones((4, 4), "float32"))
    model.get_layer("head").bias.assign([np.nan] * 4)
    with pytest.raises(ModelError, match="NaN"):
        analyse_sensitivity(model, inputs_for(model))
