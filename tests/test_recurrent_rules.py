import keras
import numpy as np
import pytest
from architectures import random_inputs, randomise
from laws.removal import ChannelGraph, check_law, disagreement, run, silence
from sequence_architectures import SEQUENCES

from mobileprune import recurrent_rules
from mobileprune.inspect import layer_facts, model_facts
from mobileprune.plan import plan_channels
from mobileprune.prune import prune_channels

layers, ops = keras.layers, keras.ops
GATES = {layers.SimpleRNN: 1, layers.GRU: 3, layers.LSTM: 4}


def model_of(*chain, shape=(6, 5)):
    """A network of one layer after another; a dense layer reads the last."""
    inputs = x = keras.Input(shape)
    for layer in chain:
        x = layer(x)
    return keras.Model(inputs, layers.Dense(3, name="head")(x))


def free(model):
    return {group.name: group.size for group in ChannelGraph(model).groups if not group.frozen}


def reasons(model):
    return " ".join(group.frozen for group in ChannelGraph(model).groups if group.frozen)


@pytest.mark.parametrize("kind", GATES)
def test_a_unit_owns_a_column_in_each_gate_and_a_row(kind):
    model = model_of(kind(4, name="cell"))
    graph = ChannelGraph(model)
    (group,) = (group for group in graph.groups if not group.frozen)
    followed = {(weight.attribute, axis): units for weight, axis, units in graph.weights_of(group)}
    assert {key[0] for key in followed} == {"cell.kernel", "cell.recurrent_kernel", "cell.bias", "kernel"}
    np.testing.assert_array_equal(followed["cell.kernel", 1], np.tile(range(4), GATES[kind]))
    np.testing.assert_array_equal(followed["cell.recurrent_kernel", 1], np.tile(range(4), GATES[kind]))
    np.testing.assert_array_equal(followed["cell.recurrent_kernel", 0], range(4))
    bias = (axis for name, axis in followed if name == "cell.bias")
    assert list(bias) == [1 if kind is layers.GRU else 0]  # `reset_after` has a row for each of two biases


@pytest.mark.parametrize(
    ("kind", "name"), [(layers.LSTM, "crnn"), (layers.LSTM, "bilstm_tagger"), (layers.GRU, "recurrent_kinds")]
)
def test_units_of_one_gate_shifted_break_the_law(kind, name, monkeypatch):
    """The planted mistake: one gate's block begins a unit later than the others'."""
    gates = GATES[kind]
    right = recurrent_rules._blocks

    def shifted(units, count):
        blocks = right(units, count).reshape(count, -1).copy()
        if count == gates:
            blocks[1] = np.roll(blocks[1], 1)
        return blocks.ravel()

    check_law(SEQUENCES[name]())
    monkeypatch.setattr(recurrent_rules, "_blocks", shifted)
    with pytest.raises(AssertionError, match="outputs differ"):
        check_law(SEQUENCES[name]())


@pytest.mark.parametrize("kind", GATES)
def test_units_that_the_others_still_read_break_the_law(kind):
    """The recurrent kernel's rows are readers like any other."""
    model = randomise(model_of(kind(8, return_sequences=True)))
    plan = plan_channels(model, ratio=0.5, importance="random", round_to=2)
    graph = ChannelGraph(model)
    kernel = model.layers[1].cell.recurrent_kernel
    before = np.array(kernel)
    assert silence(graph, plan) > 0
    inputs = random_inputs(model)
    assert disagreement(run(model, inputs), run(prune_channels(model, plan), inputs)) < 1e-5
    kernel.assign(before)
    assert disagreement(run(model, inputs), run(prune_channels(model, plan), inputs)) > 1e-2


def test_macs_are_counted_for_every_step_and_gate():
    model = model_of(layers.LSTM(4, return_sequences=True, name="lstm"), layers.GRU(2, name="gru"))
    macs = {layer.name: layer.macs for layer in layer_facts(model)}
    assert macs == {"lstm": 6 * (5 + 4) * 16, "gru": 6 * (4 + 2) * 6, "head": 6}
    both = model_of(layers.Bidirectional(layers.LSTM(4)))
    assert model_facts(both).macs == 2 * 6 * (5 + 4) * 16 + 8 * 3
    images = layers.ConvLSTM2D(4, 3, strides=2, padding="same", return_sequences=True)
    model = model_of(images, shape=(6, 8, 10, 5))
    assert {layer.name: layer.macs for layer in layer_facts(model)}[images.name] == 6 * 4 * 5 * 9 * (5 + 4) * 16


def test_macs_are_counted_for_every_step_of_what_runs_over_time():
    members = [keras.Input((8, 8, 2)), layers.Conv2D(4, 3, name="conv"), layers.Flatten()]
    inputs = keras.Input((5, 8, 8, 2))
    x = layers.TimeDistributed(keras.Sequential(members, name="frame"), name="frames")(inputs)
    model = keras.Model(inputs, layers.TimeDistributed(layers.Dense(3), name="last")(x))
    macs = {layer.name: layer.macs for layer in layer_facts(model)}
    assert macs == {"frames/frame/conv": 5 * 36 * 72, "last": 5 * 144 * 3}
    assert model_facts(model).params == model.count_params()


@pytest.mark.parametrize("steps", [6, None])
@pytest.mark.parametrize("kind", [*GATES, layers.Bidirectional])
def test_sequences_of_any_length(kind, steps):
    layer = layers.Bidirectional(layers.LSTM(8)) if kind is layers.Bidirectional else kind(8)
    model = model_of(layers.Dense(8), layer, shape=(steps, 5))
    inputs = [np.random.default_rng(0).normal(size=(3, 4 if steps is None else steps, 5)).astype("float32")]
    smaller, _ = check_law(model, inputs=inputs)
    assert smaller.input_shape == model.input_shape


@pytest.mark.parametrize(
    "layer",
    [
        layers.Reshape((4, 6, 8)),
        layers.Flatten(),
        layers.Permute((2, 1, 3)),
        layers.LSTM(8),
        layers.SeparableConv2D(8, 3),
        layers.PReLU(shared_axes=[1, 2]),
        layers.GlobalAveragePooling2D(),
        layers.GroupNormalization(-1),
        layers.Dropout(0.0),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_what_time_distributed_runs_loses_channels(layer):
    inputs = keras.Input((3, 6, 4, 2))
    x = layers.TimeDistributed(layers.Conv2D(8, 1, activation="relu"))(inputs)
    if isinstance(layer, layers.LSTM):
        x = layers.TimeDistributed(layers.Reshape((24, 8)))(x)
    x = layers.TimeDistributed(type(layer).from_config(layer.get_config()))(x)
    x = layers.TimeDistributed(layers.Dense(8, activation="relu"))(x)
    model = keras.Model(inputs, layers.Dense(3)(layers.Flatten()(x)))
    smaller, plan = check_law(model)
    assert all(entry.remove for entry in plan.groups if not entry.frozen)
    again = keras.models.model_from_json(smaller.to_json())
    again.set_weights(smaller.get_weights())
    given = random_inputs(model)
    assert disagreement(run(smaller, given), run(again, given)) < 1e-6


def test_a_shared_layer_over_time_loses_the_same_channels_everywhere():
    inputs = keras.Input((3, 6, 2))
    shared = layers.TimeDistributed(layers.Conv1D(8, 3, padding="same"))
    squeeze = layers.TimeDistributed(layers.Reshape((48,)))
    x = [squeeze(shared(inputs)), squeeze(shared(ops.flip(inputs, axis=2)))]
    check_law(keras.Model(inputs, layers.Dense(3)(layers.Flatten()(layers.Concatenate()(x)))))


def test_state_that_is_kept_between_batches_shrinks_with_its_units():
    inputs = keras.Input(batch_shape=(3, 6, 5))
    model = keras.Model(inputs, layers.Dense(3)(layers.LSTM(8, stateful=True)(inputs)))
    smaller, _ = check_law(model, training=[False], inputs=random_inputs(model))
    assert smaller.layers[1].states[0].shape == (3, 4)


def test_channels_along_the_axis_of_time_stay():
    x = inputs = keras.Input((6, 5))
    x = layers.Permute((2, 1))(layers.Conv1D(8, 1)(x))
    model = keras.Model(
        inputs, layers.Dense(3)(layers.Flatten()(layers.TimeDistributed(layers.Dense(4))(x[..., None])))
    )
    assert "takes channels for time steps" in reasons(model)
    assert free(model) == {}


class Leaky(layers.Layer):
    """A cell of the user's own."""

    state_size = output_size = 5

    def call(self, inputs, states):
        state = 0.5 * states[0] + inputs
        return state, [state]


def test_cells_and_calls_that_no_rule_knows_stay_whole():
    model = model_of(layers.Dense(5, name="before"), layers.RNN(Leaky(), name="own"), layers.Dense(8, name="free"))
    assert free(model) == {"free": 8}
    assert "RNN 'own' is used, or has a cell, in a way that cannot be followed" in reasons(model)
    mixed = layers.RNN([layers.LSTMCell(5), Leaky()], name="mixed")
    assert free(model_of(mixed, layers.Dense(8, name="free"))) == {"free": 8}
    inputs = keras.Input((6, 5))
    fixed = layers.GRU(8, name="gru")(inputs, initial_state=[ops.ones((1, 8))])
    model = keras.Model(inputs, layers.Dense(3)(fixed))
    assert free(model) == {}
    assert model_facts(model).macs == 6 * (5 + 8) * 24 + 24


def test_an_activation_over_all_units_is_called_so():
    groups = {
        group.name: group for group in ChannelGraph(model_of(layers.GRU(4, activation="softmax", name="gru"))).groups
    }
    assert groups["gru"].inexact == "softmax of 'gru' reads all channels at once"
    own = layers.LSTM(4, recurrent_activation=lambda x: x - ops.max(x), name="lstm")
    assert "may read all channels at once" in reasons(model_of(own))


def test_embeddings_with_other_weights_than_their_table_stay():
    inputs = keras.Input((6,), dtype="int32")
    table = layers.Embedding(9, 8, lora_rank=2)
    model = keras.Model(inputs, layers.Dense(3)(table(inputs)))
    assert free(model) == {}
    assert "is quantized or has LoRA weights" in reasons(model)


def test_what_masks_by_its_channels_is_inexact():
    model = model_of(layers.Dense(8, activation="relu", name="a"), layers.Masking(), layers.LSTM(4))
    groups = {group.name: group for group in ChannelGraph(model).groups}
    assert groups["a"].inexact.startswith("Masking")


def test_directions_of_other_widths_are_left_whole():
    layer = layers.Bidirectional(layers.LSTM(4), backward_layer=layers.LSTM(6, go_backwards=True), merge_mode=None)
    inputs = keras.Input((6, 5))
    forward, _ = layer(inputs)
    assert free(keras.Model(inputs, layers.Dense(3)(forward))) == {}
