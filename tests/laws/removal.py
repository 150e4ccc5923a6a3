"""The law of channel pruning, as functions that any model can be given to.

Silence what every consumer reads of the channels that a plan removes. The pruned model must then say what the original
says, in inference and in training, whatever the weights. Layers that normalise over channels see the removed channels
however silent their consumers are; there the original is run as its *twin*, in which these layers normalise the
survivors only, and the engine has to call such groups inexact.
"""

import fnmatch
import glob

import keras
import numpy as np
from architectures import random_inputs, randomise
from keras.src.models.functional import operation_fn

from mobileprune.channel_calls import attribute_at
from mobileprune.channel_groups import ChannelGraph
from mobileprune.graph import functional_graph
from mobileprune.plan import plan_channels
from mobileprune.prune import prune_channels

layers, ops = keras.layers, keras.ops

# The axes along which a weight reads; the queries' also stand for the product that reads the width of the heads.
READING_AXES = {
    **{(kind, "kernel"): (-2,) for kind in (layers.Conv1D, layers.Conv2D, layers.Conv3D)},
    **{(kind, "kernel"): (-1,) for kind in (layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose)},
    **{(kind, "pointwise_kernel"): (-2,) for kind in (layers.SeparableConv1D, layers.SeparableConv2D)},
    (layers.Dense, "kernel"): (0,),
    (layers.ReversibleEmbedding, "embeddings"): (1,),
    (layers.ReversibleEmbedding, "reverse_embeddings"): (0,),
}
for _kind, _prefix in ((layers.MultiHeadAttention, ""), (layers.GroupQueryAttention, "_")):
    READING_AXES[_kind, f"{_prefix}query_dense.kernel"] = (0, 2)
    READING_AXES[_kind, f"{_prefix}query_dense.bias"] = (1,)
    READING_AXES |= {(_kind, f"{_prefix}{part}_dense.kernel"): (0,) for part in ("key", "value")}
    READING_AXES[_kind, f"{_prefix}output_dense.kernel"] = (0, 1)
    READING_AXES[_kind, "_gate_dense.kernel"] = (0,)
# A recurrent unit is read by the others, too: by its row of the recurrent kernel.
_CELLS = (layers.LSTMCell, layers.GRUCell, layers.SimpleRNNCell)
_CONV_CELLS = tuple(type(kind(1, 1).cell) for kind in (layers.ConvLSTM1D, layers.ConvLSTM2D, layers.ConvLSTM3D))
READING_AXES |= {(kind, name): (-2,) for kind in (*_CELLS, *_CONV_CELLS) for name in ("kernel", "recurrent_kernel")}
# Weights that show which channels a normalisation sees.
SEEN_BY = {
    layers.LayerNormalization: ("gamma", "beta"),
    layers.RMSNormalization: ("scale",),
    layers.GroupNormalization: ("gamma", "beta"),
}
# Normalisations of Keras Hub along the last axis, with a scale: known by name, because it may not be there.
FOREIGN_NORMS = {"LlamaLayerNorm", "MistralLayerNormalization", "Phi3LayerNorm", "QwenLayerNorm"}


def seen_by(layer):
    """Names of the weights that show which channels the layer normalises."""
    return ("scale",) if type(layer).__name__ in FOREIGN_NORMS else SEEN_BY.get(type(layer), ())


def mixes_channels(layer):
    """Whether removing a channel changes what the layer makes of the others, in a way that a twin can show."""
    if isinstance(layer, layers.GroupNormalization):
        weight = layer.gamma if layer.gamma is not None else layer.beta
        return layer.groups < weight.shape[0]
    return bool(seen_by(layer))


def mixed_groups(graph):
    """Names of the groups that a mixing layer sees."""
    return {
        group.name
        for group in graph.groups
        if any(mixes_channels(graph.ids.layers[weight.layer]) for weight, _, _ in graph.weights_of(group))
    }


def law_plan(model, *, importance="random", **target):
    """A random plan; groups that are inexact for a reason without a twin (a mean over channels) are left whole."""
    graph = ChannelGraph(model)
    mixed = mixed_groups(graph)
    keep = [
        glob.escape(name)
        for group in graph.groups
        if getattr(group, "inexact", None) and not group.frozen and group.name not in mixed
        for name in group.layers
    ]
    return plan_channels(model, importance=importance, keep=keep, **target)


def removed_entries(graph, plan):
    """Every weight axis that loses entries: (weight, axis, whether each index is removed)."""
    removed = {entry.group: list(entry.remove) for entry in plan.groups}
    for group in graph.groups:
        gone = np.zeros(group.size, bool)
        gone[removed[group.name]] = True
        for weight, axis, units in graph.weights_of(group):
            dead = (units >= 0) & gone[units]
            if dead.any():
                yield weight, axis, dead


def reading_axes(layer, attribute, rank):
    """The axes, from 0, along which a weight reads channels, by the layer or by the one inside it that holds it."""
    parts = attribute.split(".")
    for inside in range(len(parts)):
        owner = attribute_at(layer, ".".join(parts[:inside])) if inside else layer
        name = ".".join(parts[inside:])
        if type(owner) is layers.EinsumDense and name == "kernel":
            read, _, made = owner.equation.partition("->")
            return {axis for axis, letter in enumerate(read.split(",")[1].strip()) if letter not in made}
        for kind in type(owner).__mro__:
            if (kind, name) in READING_AXES:
                return {axis % rank for axis in READING_AXES[kind, name]}
    return set()


def multiplied_channels(graph):
    """Roots of the channels over which products of two activations are summed."""
    contractions = [weight for weight in graph.ids.weights.values() if weight.attribute == "contraction"]
    found = [ids for weight in contractions for ids in weight.axes.values()]
    return np.unique(graph.ids.roots()[np.concatenate(found)]) if found else np.zeros(0, np.int64)


def silence(graph, plan):
    """Sets to zero what every consumer reads of the removed channels; returns how many entries of how many axes."""
    silenced, multiplied = 0, multiplied_channels(graph)
    for weight, axis, dead in removed_entries(graph, plan):
        layer = graph.ids.layers[weight.layer]
        if axis not in reading_axes(layer, weight.attribute, len(weight.shape)):
            # What two activations are multiplied and summed over no weight reads: there it must be made as zeros.
            dead = dead & np.isin(graph.ids.roots()[weight.axes[axis]], multiplied)
            if not dead.any() or type(layer) not in (layers.Dense, layers.EinsumDense, layers.Conv2D):
                continue
        variable = attribute_at(layer, weight.attribute)
        values = np.moveaxis(np.array(variable), axis, 0)
        values[dead] = 0
        variable.assign(np.moveaxis(values, 0, axis))
        silenced += int(dead.sum())
    return silenced


def survivors(graph, plan):
    """For each mixing layer that loses channels, by its id: which entries of its weights stay."""
    alive = {}
    for weight, axis, dead in removed_entries(graph, plan):
        layer = graph.ids.layers[weight.layer]
        if mixes_channels(layer) and weight.attribute in seen_by(layer):
            mask = alive.setdefault(id(layer), np.ones(weight.shape, bool))
            np.moveaxis(mask, axis, -1)[..., dead] = False
    return alive


def run(model, inputs, training=False, alive=None):
    """A model's outputs as a flat list of arrays; with `alive`, those of its twin (see `survivors`)."""
    if alive:
        found = _through(functional_graph(model), inputs, training, alive)
    else:
        found = model(keras.tree.pack_sequence_as(functional_graph(model).input, inputs), training=training)
    return [np.asarray(tensor) for tensor in keras.tree.flatten(found)]


def _through(graph, inputs, training, alive):
    def twin(operation):
        if id(operation) in alive:
            return lambda x, **_: _normalised(operation, x, alive[id(operation)])
        if isinstance(operation, keras.Model):
            inner = functional_graph(operation)
            return lambda x, **_: _through(inner, x, training, alive)
        return operation_fn(operation, training=training)

    tensors = [ops.convert_to_tensor(array) for array in keras.tree.flatten(inputs)]
    return graph._run_through_graph(tensors, operation_fn=twin)


def _normalised(layer, x, alive):
    """What the layer makes of `x` when its moments are those of the living channels."""
    if type(layer) not in SEEN_BY:
        return _normalised_apart(layer, x, alive)
    if isinstance(layer, layers.GroupNormalization):
        assert layer.axis in (-1, len(x.shape) - 1)
        shape = (x.shape[0], -1, layer.groups, x.shape[-1] // layer.groups)
        moved, axes = ops.reshape(x, shape), (1, 3)
        mask = alive.reshape(1, 1, *shape[2:])
    else:
        moved, axes = x, sorted(axis % len(x.shape) for axis in layer.axis)
        mask = alive.reshape([x.shape[axis] if axis in axes else 1 for axis in range(len(x.shape))])
    mask = ops.broadcast_to(ops.cast(mask, x.dtype), moved.shape)
    count = ops.sum(mask, axis=axes, keepdims=True)
    if not isinstance(layer, layers.RMSNormalization):
        moved = moved - ops.sum(moved * mask, axis=axes, keepdims=True) / count
    power = ops.sum(ops.square(moved) * mask, axis=axes, keepdims=True) / count
    normal = ops.reshape(moved * ops.rsqrt(power + layer.epsilon), x.shape)
    factor, shift = (getattr(layer, name, None) for name in ("gamma", "beta"))
    if isinstance(layer, layers.RMSNormalization):
        factor = layer.scale
    weight_shape = [x.shape[axis] if axis in _weight_axes(layer, x) else 1 for axis in range(len(x.shape))]
    if factor is not None:
        normal = normal * ops.reshape(factor, weight_shape)
    return normal if shift is None else normal + ops.reshape(shift, weight_shape)


def _normalised_apart(layer, x, alive):
    """The same by a layer of the living channels alone; the others are zero, and nobody reads them."""
    places = np.flatnonzero(alive)
    narrow = type(layer).from_config(layer.get_config())
    found = narrow(ops.take(x, places, axis=-1))
    for new, old in zip(narrow.weights, layer.weights, strict=True):
        new.assign(np.asarray(old)[places])
    found = narrow(ops.take(x, places, axis=-1))
    return ops.matmul(found, np.eye(len(alive), dtype="float32")[places])


def _weight_axes(layer, x):
    axes = layer.axis if isinstance(layer.axis, (list, tuple)) else [layer.axis]
    return [axis % len(x.shape) for axis in axes]


def disagreement(expected, found):
    """The largest error of any output as a share of that output's largest value; infinite for another shape or NaN."""
    worst = 0.0
    for large, small in zip(expected, found, strict=True):
        if large.shape != small.shape or not np.isfinite(small).all():
            return np.inf
        assert np.isfinite(large).all(), "The original's own outputs are not finite: the law would say nothing."
        worst = max(worst, float(np.abs(small - large).max() / max(np.abs(large).max(), 1e-30)))
    return worst


def without_randomness(model):
    """Sets every dropout rate and noise to 0, so that training mode is repeatable; wider layers draw other noise."""
    for layer in model._flatten_layers(include_self=False):
        for name in ("rate", "stddev", "drop_path_rate"):
            if isinstance(getattr(layer, name, None), float):
                setattr(layer, name, 0.0)
    return model


def check_law(
    model,
    plan=None,
    *,
    training=(False, True),
    inputs=None,
    seed=0,
    tolerance=1e-4,
    randomised=randomise,
    strict=True,
    **target,
):
    """Holds the law on one model and returns the smaller one.

    Args:
        model: a built model; its weights are overwritten, its dropout is switched off.
        plan: by default a random one for `target` (arguments of `plan_channels`; `ratio=0.5, round_to=2` when none).
        training: the modes to compare in.
        inputs: a list of arrays, batch first; random ones of batch 3 by default.
        tolerance: the largest error allowed, as a share of the largest output.
        randomised: fills the weights, given the model and a seed; for many layers see `randomise_deep`.
        strict: whether it is an error when no consumer was silenced or the outputs hardly depend on the inputs.

    Returns:
        (the smaller model, the plan).

    Raises:
        AssertionError: the law is broken, or the check could not have found it broken.
    """
    without_randomness(randomised(model, seed))
    plan = plan or law_plan(model, seed=seed, **(target or {"ratio": 0.5, "round_to": 2}))
    graph = ChannelGraph(model)
    mixed = mixed_groups(graph)
    for group in graph.groups:
        if group.name in mixed and not group.frozen:
            assert group.inexact, f"{group.name!r} passes a normalisation over channels and is called exact"
    assert silence(graph, plan) > 0 or not strict, "the plan removes nothing that a consumer reads"
    smaller = prune_channels(model, plan)
    assert smaller.count_params() == plan.params < model.count_params()
    alive = survivors(graph, plan)
    inputs = random_inputs(model, batch=3, seed=seed) if inputs is None else inputs
    for mode in training:
        expected, found = run(model, inputs, mode, alive), run(smaller, inputs, mode)
        spread = max(float(np.ptp(output, axis=0).max() / np.abs(output).max()) for output in expected)
        assert spread > 10 * tolerance or not strict, "the outputs hardly depend on the inputs"
        error = disagreement(expected, found)
        assert error <= tolerance, f"training={mode}: outputs differ by {error:.2g} of their largest value"
    return smaller, plan


def check_training(model, inputs):
    """One training step on one batch: a finite loss, and weights that moved.

    Eagerly, because tracing a deep network takes far longer than one step; and by `train_on_batch`, because TensorFlow
    2.21 has twice crashed (segmentation faults below `fit`, the second in the making of its data iterator) when
    hundreds of networks had been run in one process.

    Raises:
        AssertionError: otherwise.
    """
    before = [np.array(weight) for weight in model.trainable_weights]
    output = model.outputs[0] if isinstance(model, keras.Sequential) else model.output
    losses = keras.tree.map_structure(lambda _: "mse", output)
    model.compile(keras.optimizers.SGD(1e-3), loss=losses, run_eagerly=True)
    targets = keras.tree.map_structure(lambda tensor: np.zeros((len(inputs[0]), *tensor.shape[1:])), output)
    losses = model.train_on_batch(inputs if len(inputs) > 1 else inputs[0], targets)
    assert np.isfinite(losses).all()
    assert any((np.array(weight) != old).any() for weight, old in zip(model.trainable_weights, before, strict=True))


def removable(model, ratio=0.75):
    """(names of the groups that can lose channels, share of the parameters gone when each loses `ratio` of them)."""
    plan = plan_channels(model, ratio=ratio, importance="random", round_to=1)
    names = [entry.group for entry in plan.groups if entry.remove]
    return names, 1 - plan.params / plan.params_before


def frozen_layers(model, pattern="*"):
    """Layers, by path, that create channels of frozen groups."""
    return {
        name
        for group in ChannelGraph(model).groups
        if group.frozen
        for name in group.layers
        if fnmatch.fnmatchcase(name, pattern)
    }
