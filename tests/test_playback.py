import keras
import numpy as np
import pytest
from architectures import ARCHITECTURES, random_inputs, randomise
from op_architectures import OPS
from zoo_architectures import ZOO

from mobileprune import playback
from mobileprune.errors import DatasetError
from mobileprune.graph import functional_graph, is_nested, nodes
from mobileprune.playback import play

layers, ops = keras.layers, keras.ops


def leaf_paths(graph, prefix=""):
    """Paths of all calls but those of inputs and of nested models themselves, in order."""
    for node in nodes(graph):
        name = prefix + node.operation.name
        if is_nested(node.operation):
            yield from leaf_paths(functional_graph(node.operation), f"{name}/")
        elif not isinstance(node.operation, layers.InputLayer):
            yield name


def expected_inputs(graph, inputs, prefix=""):
    """What every call reads, in order: each tensor as an output of a model; of nested models on what they read.

    Keras runs these models whole; nothing of the tape is used.
    """
    calls = [node for node in nodes(graph) if not isinstance(node.operation, layers.InputLayer)]
    reads = keras.Model(graph.inputs, [list(node.input_tensors) for node in calls])
    for node, found in zip(calls, reads(inputs, training=False), strict=True):
        path = prefix + node.operation.name
        if is_nested(node.operation):
            yield from expected_inputs(functional_graph(node.operation), found, f"{path}/")
        else:
            yield path, [np.asarray(tensor) for tensor in found]


def played(model, inputs):
    for step in play(model, inputs):
        yield step.path, [np.concatenate([np.asarray(one) for one in batches]) for batches in step.inputs()]


def differing(expected, found):
    """Paths whose inputs differ, or that are not the same calls."""
    expected, found = list(expected), list(found)
    if [path for path, _ in expected] != [path for path, _ in found]:
        return ["the calls differ"]
    return [
        path
        for (path, wanted), (_, given) in zip(expected, found, strict=True)
        if len(wanted) != len(given)
        or any(a.shape != b.shape or not np.allclose(a, b, 1e-4, 1e-5) for a, b in zip(wanted, given, strict=True))
    ]


def test_differing_notices_a_value_a_shape_and_a_call():
    a = [("one", [np.ones(3)]), ("two", [np.zeros((2, 2))])]
    assert differing(a, a) == []
    assert differing(a, [("one", [np.array([1, 1, 1.01])]), a[1]]) == ["one"]
    assert differing(a, [a[0], ("two", [np.zeros((2, 2, 1))])]) == ["two"]
    assert differing(a, [a[0], ("two", [])]) == ["two"]
    assert differing(a, a[:1]) == ["the calls differ"]


NETWORKS = {
    **ARCHITECTURES,
    **{
        name: {**ZOO, **OPS}[name]
        for name in (
            *("siamese", "nested_deeply", "sequential_of_models", "nested_outputs", "many_inputs_and_outputs"),
            *("shufflenet_v2_ops", "cross_attention", "vit_learned_positions", "stacked", "spatial_attention"),
        )
    },
}


@pytest.mark.parametrize("name", NETWORKS)
def test_each_step_reads_what_a_model_of_its_own_gives(name, monkeypatch):
    model = randomise(NETWORKS[name]())
    inputs = random_inputs(model, batch=5)
    monkeypatch.setattr(playback, "_VALUES_AT_ONCE", 2 * sum(array[0].size for array in inputs))
    graph = functional_graph(model)
    assert differing(expected_inputs(graph, inputs), played(model, inputs)) == []


def test_batches_are_as_large_as_said_and_the_last_one_is_what_is_left(monkeypatch):
    model = keras.Sequential([keras.Input((3,)), layers.Dense(4, name="a"), layers.Dense(2, name="b")])
    assert [[len(batch) for batch in step.inputs()[0]] for step in play(model, np.ones((130, 3)))] == [[64, 64, 2]] * 2
    monkeypatch.setattr(playback, "_VALUES_AT_ONCE", 9)
    assert [[len(batch) for batch in step.inputs()[0]] for step in play(model, np.ones((7, 3)))] == [[3, 3, 1]] * 2


@pytest.mark.parametrize("asked", ["always", "seldom", "never"])
def test_the_same_inputs_are_read_however_often_is_asked(asked):
    model = randomise(ARCHITECTURES["residual"]())
    images = random_inputs(model, batch=4)[0]
    steps, last = list(leaf_paths(functional_graph(model))), []
    for number, step in enumerate(play(model, images)):
        if asked == "always" or (asked == "seldom" and number % 4 == 0) or number == len(steps) - 1:
            last = step.inputs()
            assert step.inputs() == last
    wanted = keras.Model(model.inputs[0], model.layers[-2].output)(images)
    np.testing.assert_allclose(last[0][0], wanted, rtol=1e-4, atol=1e-5)


def test_later_calls_see_weights_that_change_between_steps():
    model = randomise(ARCHITECTURES["sequential_convnet"]())
    images = random_inputs(model)[0]
    old = np.asarray(model(images))
    for step in play(model, images):
        if step.operation.weights:
            step.inputs()
            step.operation.weights[0].assign(step.operation.weights[0] * 1.5)
        found = step.inputs()
    wanted = keras.Model(model.inputs[0], model.layers[-2].output)(images)
    np.testing.assert_allclose(found[0][0], wanted, rtol=1e-5)
    assert not np.allclose(np.asarray(model(images)), old, 1e-3)


def test_a_layer_that_is_shared_sees_the_change_in_its_next_call_only():
    inputs, shared = keras.Input((3,)), layers.Dense(3, use_bias=False, name="shared")
    model = keras.Model(inputs, shared(shared(shared(inputs))))
    shared.kernel.assign(np.eye(3))
    found = []
    for step in play(model, np.ones((2, 3))):
        found.append(np.asarray(step.inputs()[0][0])[0, 0])
        shared.kernel.assign(shared.kernel * 2)
    assert found == [1, 2, 8]


def test_inference_mode_uses_moving_statistics_and_drops_nothing():
    model = randomise(
        keras.Sequential(
            [keras.Input((4,)), layers.BatchNormalization(), layers.Dropout(0.9), layers.Dense(1, name="last")]
        )
    )
    before = [np.array(weight) for weight in model.layers[0].weights]
    (found,) = [step.inputs()[0][0] for step in play(model, np.ones((3, 4))) if step.path == "last"]
    gamma, beta, mean, variance = before
    np.testing.assert_allclose(found[0], (1 - mean) / np.sqrt(variance + 1e-3) * gamma + beta, rtol=1e-5)
    for weight, old in zip(model.layers[0].weights, before, strict=True):
        np.testing.assert_array_equal(weight, old)


def test_tensors_that_nobody_reads_any_more_are_forgotten():
    inputs = keras.Input((4,))
    x, kept = inputs, None
    for number in range(20):
        x = layers.Dense(4, name=f"d{number}")(x)
        kept = x if number == 2 else kept
    model = keras.Model(inputs, layers.Add(name="late")([x, kept]))
    sizes = []
    for step in play(model, np.ones((3, 4))):
        step.inputs()
        sizes.append(len(step._tape.tensors))
    assert max(sizes) <= 2
    assert sizes[:3] == [1, 1, 1]
    assert sizes[4:20] == [2] * 16


def test_outputs_of_a_nested_model_outlive_it_and_what_is_inside_does_not():
    model = randomise(ZOO["nested_outputs"]())
    for step in play(model, random_inputs(model)[0]):
        step.inputs()
        assert len(step._tape.tensors) <= 3
    assert not step.path.startswith("backbone/")


def test_tensors_between_nested_models_are_forgotten():
    blocks = [keras.Sequential([keras.Input((4,)), layers.Dense(4)], name=f"block_{number}") for number in range(6)]
    model = keras.Sequential([keras.Input((4,)), *blocks, layers.Dense(4, name="last")])
    held = {step.path: len(step._tape.tensors) for step in play(model, np.ones((3, 4)))}
    assert len(held) == 7
    assert set(held.values()) == {1}


def test_integers_stay_integers():
    inputs = keras.Input((4,), dtype="int32")
    model = keras.Model(inputs, layers.Dense(1)(layers.Flatten()(layers.Embedding(9, 3, name="embed")(inputs))))
    found = {step.path: step.inputs()[0][0] for step in play(model, np.array([[0, 1, 2, 8]]))}
    assert found["embed"].dtype == "int32"
    np.testing.assert_array_equal(found["embed"], [[0, 1, 2, 8]])


def two_inputs():
    left, right = keras.Input((4,), name="left"), keras.Input((6, None), name="right")
    return keras.Model([left, right], [layers.Dense(1)(left), layers.GlobalMaxPooling1D()(right)], name="two")


@pytest.mark.parametrize(
    ("images", "says"),
    [
        (np.ones((2, 4)), "'two' has 2 inputs; calibration data for 1 were given"),
        ([np.ones((2, 4))] * 3, "'two' has 2 inputs; calibration data for 3 were given"),
        ([np.ones((2, 5)), np.ones((2, 6, 1))], r"Input 'left' is \(None, 4\); calibration data are \(2, 5\)"),
        ([np.ones((2, 4)), np.ones((2, 6))], r"Input 'right' is \(None, 6, None\); calibration data are \(2, 6\)"),
        ([np.ones((2, 4)), np.ones((3, 6, 1))], r"Input 'right' .* calibration data are \(3, 6, 1\)"),
        ([np.ones((0, 4)), np.ones((0, 6, 1))], r"Input 'left' .* calibration data are \(0, 4\)"),
    ],
)
def test_images_that_do_not_fit_are_refused(images, says):
    with pytest.raises(DatasetError, match=says):
        next(play(two_inputs(), images))


def test_sizes_that_the_model_leaves_open_may_be_any():
    steps = list(play(two_inputs(), [np.ones((2, 4)), np.ones((2, 6, 9))]))
    assert sorted(type(step.operation).__name__ for step in steps) == ["Dense", "GlobalMaxPooling1D"]
