import keras
import numpy as np
import pytest
from architectures import ARCHITECTURES, random_inputs, randomise
from laws.block_removal import answers
from zoo_architectures import ZOO

from mobileprune import block_ranking, rerun
from mobileprune.block_ranking import BlockLosses, rank_blocks
from mobileprune.block_removal import remove_blocks
from mobileprune.blocks import BlockGraph
from mobileprune.errors import DatasetError, PlanError
from mobileprune.flat_graph import FlatCall

layers, ops = keras.layers, keras.ops


@pytest.fixture(scope="module")
def model():
    return randomise(ARCHITECTURES["inverted_residual"]())


@pytest.fixture(scope="module")
def images(model):
    return random_inputs(model, batch=24)[0]


def softmax(x):
    return np.asarray(ops.softmax(ops.cast(x, "float64")))


def test_sensitivity_is_that_of_the_model_without_the_block(model, images):
    whole = softmax(answers(model, [images])[0])
    for ranked in rank_blocks(model, images):
        cut = softmax(answers(remove_blocks(model, [ranked.block]), [images])[0])
        assert ranked.loss == pytest.approx((whole * np.log(whole / cut)).sum(-1).mean(), rel=1e-3)
        assert ranked.agreement == np.mean(whole.argmax(-1) == cut.argmax(-1))
        assert ranked.accuracy is None


def test_labels_count_where_they_are_given(model, images):
    labels = np.arange(len(images)) % 5
    whole = softmax(answers(model, [images])[0])
    for ranked in rank_blocks(model, images, labels=labels):
        cut = softmax(answers(remove_blocks(model, [ranked.block]), [images])[0])
        rows = np.arange(len(labels))
        assert ranked.loss == pytest.approx(np.log(whole[rows, labels] / cut[rows, labels]).mean(), rel=1e-3, abs=1e-5)
        assert ranked.accuracy == np.mean(cut.argmax(-1) == labels)


def test_probabilities_are_taken_as_they_are(images):
    inputs = keras.Input((16, 16, 3))
    x = layers.Conv2D(4, 3, padding="same")(inputs)
    x = layers.Add(name="sum")([x, layers.Conv2D(4, 3, padding="same")(x)])
    x = layers.GlobalMaxPooling2D()(x)
    logits = randomise(keras.Model(inputs, layers.Dense(5)(x)))
    probable = keras.Model(inputs, layers.Softmax()(logits.output))
    assert rank_blocks(probable, images)[0].loss == pytest.approx(rank_blocks(logits, images)[0].loss, rel=1e-3)


def test_models_that_are_no_classifiers_are_measured_by_their_error():
    model = randomise(ZOO["unet"]())
    inputs = random_inputs(model, batch=6)
    whole = answers(model, inputs)[0]
    for ranked in rank_blocks(model, inputs[0]):
        cut = answers(remove_blocks(model, [ranked.block]), inputs)[0]
        assert ranked.loss == pytest.approx(np.square(cut - whole).mean() / whole.var(), rel=1e-3)
        assert ranked.agreement is None
    with pytest.raises(PlanError, match="no classifier"):
        rank_blocks(model, inputs[0], labels=np.zeros(6, int))


def test_change_is_the_cosine_between_what_is_read_and_what_is_given(model, images):
    graph = BlockGraph(model)
    for ranked in rank_blocks(model, images, by="change"):
        region = graph.places[ranked.block.name].region
        entry, exit = keras.Model(model.inputs, [region.entry, region.exit])(images, training=False)
        entry, exit = np.float64(entry), np.float64(exit)
        lengths = np.linalg.norm(entry, axis=-1) * np.linalg.norm(exit, axis=-1)
        cosine = np.divide((entry * exit).sum(-1), lengths, out=np.zeros_like(lengths), where=lengths > 1e-12)
        both_zero = (entry == exit).all(-1)
        assert ranked.loss == pytest.approx(1 - np.where(both_zero, 1, cosine).mean(), abs=1e-5)
        assert ranked.change == pytest.approx(np.linalg.norm(exit - entry) / np.linalg.norm(entry), rel=1e-4)


@pytest.mark.parametrize("by", ["change", "sensitivity"])
def test_a_block_that_does_nothing_comes_first(by):
    model = randomise(ZOO["vit_learned_positions"]())
    last = [place for place in BlockGraph(model).places.values() if place.block.kind == "residual"][-1]
    idle = model.get_layer(last.block.layers[-2])
    idle.set_weights([np.zeros_like(weight) for weight in idle.get_weights()])
    ranked = rank_blocks(model, random_inputs(model, batch=4)[0], by=by)
    assert ranked[0].block == last.block
    assert ranked[0].loss == pytest.approx(0, abs=1e-6)
    assert ranked[-1].loss > 1e-4
    assert [each.loss for each in ranked] == sorted(each.loss for each in ranked)


def test_blocks_that_are_gone_are_missing_in_all_others(model, images):
    names = [name for name, place in BlockGraph(model).places.items() if place.block.kind == "residual"]
    whole = softmax(answers(model, [images])[0])
    ranked = rank_blocks(model, images, without=names[:1])
    assert not {each.block.name for each in ranked} & {names[0]}
    other = next(each for each in ranked if each.block.name == names[1])
    cut = softmax(answers(remove_blocks(model, names), [images])[0])
    assert other.loss == pytest.approx((whole * np.log(whole / cut)).sum(-1).mean(), rel=1e-3)
    places = [BlockGraph(model).places[name] for name in names]
    graph = BlockGraph(model)
    together = BlockLosses(model, images).together([graph.places[place.block.name] for place in places])
    assert together["loss"] == pytest.approx(other.loss, rel=1e-6)


def test_small_batches_and_nested_models_give_the_same(monkeypatch):
    model = randomise(ZOO["nested_deeply"]())
    images = random_inputs(model, batch=7)[0]
    (once,) = rank_blocks(model, images)
    monkeypatch.setattr(rerun, "_VALUES_AT_ONCE", 3 * images[0].size)
    (parts,) = rank_blocks(model, images)
    assert parts.loss == pytest.approx(once.loss, rel=1e-4)
    assert once.loss > 1e-4


def test_only_what_stands_behind_the_block_is_computed(model, images, monkeypatch):
    made = []
    right = FlatCall.run
    monkeypatch.setattr(FlatCall, "run", lambda call, known: (made.append(call.node), right(call, known))[1])
    runs = rerun.Rerun(model)
    known = runs.run([images])
    whole = len(made)
    last = list(BlockGraph(model).places.values())[-1]
    made.clear()
    runs.again(known, {id(last.region.exit): last.region.entry})
    assert 0 < len(made) < whole / 3


def test_what_makes_no_sense_is_refused(model, images):
    with pytest.raises(PlanError, match=r"Unknown by='weight'\. Known: change, sensitivity"):
        rank_blocks(model, images, by="weight")
    with pytest.raises(PlanError, match="reads no labels"):
        rank_blocks(model, images, by="change", labels=np.zeros(24, int))
    with pytest.raises(DatasetError, match="24 class numbers below 5"):
        rank_blocks(model, images, labels=np.full(24, 5))
    with pytest.raises(DatasetError, match="calibration data are"):
        rank_blocks(model, images[:, :8])
    with pytest.raises(DatasetError, match="NaN"):
        rank_blocks(model, images * np.nan)
    assert block_ranking.WAYS == ("change", "sensitivity")
