import glob

import keras
import numpy as np
import pytest
from killing import KillAt, Killed

from mobileprune.data import load_dataset
from mobileprune.distillation import Distillation
from mobileprune.errors import OutputError, PlanError
from mobileprune.inspect import model_facts
from mobileprune.iterative import prune_iteratively, share_epochs
from mobileprune.plan import plan_channels
from mobileprune.prune import prune_channels
from mobileprune.pruning_plan import PruningPlan
from mobileprune.ranking import Ranking
from mobileprune.records import Preprocess
from mobileprune.schedules import PolynomialDecay
from mobileprune.step_targets import share_left
from mobileprune.train import TrainSettings, set_seed, train

layers = keras.layers
SETTINGS = TrainSettings(epochs=2, batch_size=16, learning_rate=0.01, seed=3)
STEPS = 5  # batches in an epoch


@pytest.fixture(scope="module")
def dataset():
    return load_dataset("fashion_mnist", Preprocess(28, 28, color="grayscale")).limited(80)


def network(width=16):
    set_seed(1)
    inputs = keras.Input((28, 28, 1), name="image")
    x = layers.Conv2D(width, 3, strides=2, padding="same", use_bias=False, name="stem")(inputs)
    x = layers.ReLU(name="relu")(layers.BatchNormalization(momentum=0.9, name="norm")(x))
    y = layers.Conv2D(2 * width, 3, padding="same", activation="relu", name="wide")(x)
    x = layers.Add(name="add")([x, layers.Conv2D(width, 1, name="project")(y)])
    x = layers.Dropout(0.2, name="dropout")(layers.GlobalAveragePooling2D(name="pool")(x))
    return keras.Model(inputs, layers.Dense(10, name="logits")(x), name="tiny")


def untrained(model, step, folder):
    """A fine-tune that changes which channels are small, and nothing else."""
    generator = np.random.default_rng(step)
    for variable in model.trainable_variables:
        variable.assign(generator.normal(size=variable.shape))
    return model


def same(one, other):
    pairs = list(zip(one.get_weights(), other.get_weights(), strict=True))
    return all(np.array_equal(mine, theirs) for mine, theirs in pairs)


# The schedule


@pytest.mark.parametrize("power", [1.0, 2.0, 3.0])
def test_the_schedule_is_that_of_weight_sparsity(power):
    decay = PolynomialDecay(0.0, 0.7, begin_step=0, end_step=5, power=power, frequency=1)
    for step in range(1, 6):
        assert share_left(0.3, step, 5, power) == pytest.approx(1 - decay.sparsity(step))


def test_all_epochs_are_shared_out():
    assert share_epochs(12, 4) == [3, 3, 3, 3]
    assert share_epochs(1, 3) == [0, 0, 1]
    assert share_epochs(5, 1) == [5]


@pytest.mark.parametrize("target", ["macs", "params", "file_bytes"])
def test_every_step_refers_to_the_first_network(target):
    model = network()
    seen = []

    def finetune(present, step, folder):
        assert folder is None
        seen.append((step, model_facts(present).macs, model_facts(present).params))
        return untrained(present, step, folder)

    done = prune_iteratively(model, steps=3, finetune=finetune, power=2.0, round_to=1, **{target: 0.4})
    assert [step for step, _, _ in seen] == [1, 2, 3]
    for step, macs, params in seen if target != "file_bytes" else ():
        whole, left = {
            "macs": (model_facts(model).macs, macs),
            "params": (model_facts(model).params, params),
        }[target]
        wanted = share_left(0.4, step, 3, 2.0)
        assert wanted - 0.05 < left / whole <= wanted
    assert done.plan.target.startswith(f"{target}=0.4")
    assert done.plan.target.endswith("in 3 steps")
    assert done.steps[1].target.endswith("step 2 of 3")
    absolute = {"macs": done.plan.macs_before, "params": done.plan.params_before}.get(target)
    if absolute:
        again = prune_iteratively(model, steps=3, finetune=untrained, power=2.0, round_to=1, **{target: 0.4 * absolute})
        assert again.plan.groups == done.plan.groups


def test_a_ratio_and_channels_end_where_one_cut_ends():
    for arguments in ({"ratio": 0.5}, {"ratio": 0.4, "keep": ["stem"]}, {"channels": {"wide": 10, "stem": 7}}):
        model = network()
        at_once = plan_channels(model, round_to=4, **arguments)
        done = prune_iteratively(model, steps=3, finetune=untrained, round_to=4, **arguments)
        assert [len(entry.remove) for entry in done.plan.groups] == [len(entry.remove) for entry in at_once.groups]
        sizes = [{entry.group: entry.size for entry in plan.groups}["wide"] for plan in done.steps]
        assert sizes[0] == 32
        assert sizes[0] > sizes[1] >= sizes[2]


def test_limits_count_the_channels_of_the_first_network():
    limits = {"max_ratio": {"wide": 0.25, "*": 0.5}, "min_channels": {"stem": 10}, "round_to": 2}
    floor = plan_channels(network(), ratio=0.5, **limits)
    done = prune_iteratively(network(), steps=4, finetune=untrained, macs=float(floor.macs), power=1.0, **limits)
    kept = {entry.group: entry.size - len(entry.remove) for entry in done.plan.groups}
    assert (kept["wide"], kept["stem"]) == (24, 10)


def test_one_step_is_the_cut_that_it_was():
    model = network()
    done = prune_iteratively(model, steps=1, finetune=lambda present, step, folder: present, macs=0.5, round_to=2)
    assert same(done.model, prune_channels(model, plan_channels(model, macs=0.5, round_to=2)))


def test_later_steps_rank_what_training_made_of_the_network():
    model = network()
    done = prune_iteratively(model, steps=3, finetune=untrained, macs=0.4, round_to=1)
    at_once = plan_channels(model, macs=0.4, round_to=1)
    assert [entry.remove for entry in done.plan.groups] != [entry.remove for entry in at_once.groups]
    cut = prune_channels(model, done.plan)
    assert [weight.shape for weight in cut.get_weights()] == [weight.shape for weight in done.model.get_weights()]


def test_each_cut_can_make_up_for_what_it_takes():
    images = np.random.default_rng(0).normal(size=(32, 28, 28, 1)).astype("float32")
    model = network()

    def error(compensate):
        done = prune_iteratively(
            model,
            steps=2,
            finetune=lambda present, step, folder: present,
            macs=0.5,
            round_to=2,
            compensate=compensate,
            calibration=images,
        )
        return float(np.square(np.array(done.model(images)) - np.array(model(images))).mean())

    assert error("least_squares") < 0.5 * error("none")


# Killed and resumed


def test_a_killed_job_goes_on_in_the_step_that_it_was_in(dataset, tmp_path):
    teacher = network()
    trained = []

    def attempt(folder, kill=None):
        def finetune(present, step, own):
            trained.append(step)
            callbacks = [KillAt(kill[1])] if kill and kill[0] == step else []
            teaching = Distillation(teacher, features="attention")
            return train(present, dataset, SETTINGS, checkpoint=own, callbacks=callbacks, distillation=teaching)

        return prune_iteratively(network(), steps=2, finetune=finetune, macs=0.4, round_to=2, checkpoint=folder)

    whole = attempt(tmp_path / "whole")
    trained.clear()
    folder = tmp_path / "killed"
    with pytest.raises(Killed):
        attempt(folder, kill=(2, STEPS + 2))  # in the second epoch of the second step
    assert (folder / "step_2" / "training" / "epoch_1.keras").exists()
    set_seed(99)
    resumed = attempt(folder)
    assert trained == [1, 2, 2]
    assert same(resumed.model, whole.model)
    assert (resumed.plan, resumed.steps) == (whole.plan, whole.steps)
    assert same(attempt(folder).model, whole.model)  # everything is done
    assert trained == [1, 2, 2]
    kept = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    each = ("cut.keras", "plan.json", "tuned.keras")
    assert kept == ["settings.json", *(f"step_{step}/{name}" for step in (1, 2) for name in each)]
    assert PruningPlan.load(folder / "step_2" / "plan.json") == whole.steps[1]


def test_a_checkpoint_changes_nothing(tmp_path):
    arguments = {"steps": 2, "finetune": untrained, "macs": 0.4, "round_to": 2}
    kept = prune_iteratively(network(), checkpoint=tmp_path, **arguments)
    assert same(kept.model, prune_iteratively(network(), **arguments).model)


def test_the_folder_of_another_job_is_refused(tmp_path):
    prune_iteratively(network(), steps=1, finetune=untrained, macs=0.5, checkpoint=tmp_path)
    with pytest.raises(OutputError, match=r"holds the steps of macs=0\.5, not 0\.6\. Choose another checkpoint folder"):
        prune_iteratively(network(), steps=1, finetune=untrained, macs=0.6, checkpoint=tmp_path)
    other = network()
    other.get_layer("logits").bias.assign(np.ones(10))
    with pytest.raises(OutputError, match="holds the steps of model="):
        prune_iteratively(other, steps=1, finetune=untrained, macs=0.5, checkpoint=tmp_path)


# What cannot be meant


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"steps": 0, "macs": 0.5}, "steps must be at least 1"),
        ({"steps": 2, "macs": 0.5, "power": 0}, "power greater than 0"),
        ({"steps": 2}, "Give exactly one target"),
        ({"steps": 2, "macs": 0.5, "ratio": 0.5}, "Give exactly one target"),
        ({"steps": 2, "macs": 0.001}, "macs cannot go below"),
        ({"steps": 2, "macs": 0.5, "importance": "taylor"}, "calibration"),
        ({"steps": 2, "macs": 0.5, "importance": {"wide": Ranking(np.arange(3), np.ones(3))}}, "fit the first network"),
        ({"steps": 2, "macs": 0.5, "keep": ["nothing*"]}, "matches no layer"),
        ({"steps": 2, "macs": 0.5, "compensate": "mean"}, "needs calibration"),
        ({"steps": 2, "macs": 0.5, "blocks": 1}, "calibration"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_trained(arguments, said):
    def never(present, step, folder):
        raise AssertionError("trained")

    with pytest.raises(PlanError, match=said):
        prune_iteratively(network(), finetune=never, **arguments)


def test_layer_names_with_wildcards_in_them_are_taken_literally():
    inputs = keras.Input((8, 8, 1))
    x = inputs
    for name in ("a[1]", "a1", "a*"):
        x = layers.Conv2D(8, 1, name=name)(x)
    model = keras.Model(inputs, layers.Dense(2, name="logits")(layers.GlobalAveragePooling2D()(x)))
    wanted = {glob.escape("a[1]"): 4, "a1": 6, glob.escape("a*"): 2}
    done = prune_iteratively(model, steps=2, finetune=untrained, channels=wanted)
    kept = {entry.group: entry.size - len(entry.remove) for entry in done.plan.groups}
    assert [kept[name] for name in ("a[1]", "a1", "a*")] == [4, 6, 2]
