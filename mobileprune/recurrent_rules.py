"""How channel ids pass through recurrent layers, what runs a layer over time, and embeddings.

A recurrent unit owns a column in each gate's block of the kernels, and a row of the recurrent kernel, through which the
other units read what it was one step before. Once all of its readers, that row among them, are zero, it can go.
"""

from typing import Any

import keras
import numpy as np

from mobileprune.channel_calls import Call, Ids, compact, register_channels
from mobileprune.channel_ids import ChannelIds
from mobileprune.channel_rules import freeze_if_mixing
from mobileprune.graph import is_channels_last, model_over_time

layers = keras.layers

_RECURRENT = (layers.LSTM, layers.GRU, layers.SimpleRNN)
_CONVOLUTIONAL = (layers.ConvLSTM1D, layers.ConvLSTM2D, layers.ConvLSTM3D)
# How many blocks the last axis of a cell's kernels has, one for each gate and one for what is remembered.
_GATES = {
    layers.LSTMCell: 4,
    layers.GRUCell: 3,
    layers.SimpleRNNCell: 1,
    **{type(kind(1, 1).cell): 4 for kind in _CONVOLUTIONAL},
}
_STATES = {kind: 1 if kind in (layers.GRUCell, layers.SimpleRNNCell) else 2 for kind in _GATES}


@register_channels(*_RECURRENT, *_CONVOLUTIONAL, layers.RNN)
def _recurrent(ids: ChannelIds, call: Call) -> list[Ids]:
    read, states = _sequence(ids, call)
    if read is None or not _is_known(call.operation):
        return _refused(ids, call, {"": call.operation})
    made, own = _cells(ids, call, read, states)
    return _spread(call, [made, *own])


@register_channels(layers.Bidirectional)
def _bidirectional(ids: ChannelIds, call: Call) -> list[Ids]:
    """Unit k of both directions is one channel with two places in the output: Keras takes their widths for equal."""
    layer = call.operation
    read, states = _sequence(ids, call)
    both = {"forward_layer": layer.forward_layer, "backward_layer": layer.backward_layer}
    if read is None or not all(_is_known(one) for one in both.values()):
        return _refused(ids, call, both)
    made, left = _cells(ids, _direction(call, "forward_layer", "layer"), read, states[: len(states) // 2])
    _, right = _cells(ids, _direction(call, "backward_layer", "backward_layer"), read, states[len(states) // 2 :])
    merged = [made, made] if layer.merge_mode is None else [made]
    if layer.merge_mode == "concat":
        merged = [np.concatenate([made, made])]
    return _spread(call, [*merged, *left, *right])


def _direction(call: Call, place: str, setting: str) -> Call:
    return call.within(getattr(call.operation, place), place, call.inputs, call.output_shapes, setting)


@register_channels(layers.TimeDistributed)
def _time_distributed(ids: ChannelIds, call: Call) -> list[Ids]:
    """The layer's own rule, or the walk through the model, on what all time steps have in common."""
    array, *masks = call.inputs
    small = compact(array)
    if small.shape[1] > 1 and all(size == 1 for axis, size in enumerate(small.shape) if axis != 1):
        return ids.refuse(call, f"TimeDistributed {call.path!r} takes channels for time steps")
    if small.shape[1] > 1:
        ids.unify(small[:, :1], small)
    for mask in masks:
        ids.freeze(mask, f"{call.path!r} is masked by it")
    layer, steps = call.operation.layer, array.shape[1]
    (shape,) = call.output_shapes
    if model_over_time(call.operation) is not None:
        (found,) = ids.walk_inside(call, layer, [array[:, 0]], steps)
    else:
        (found,) = ids.inside(call.within(layer, "layer", [array[:, 0]], [(shape[0], *shape[2:])], times=steps))
    return [np.broadcast_to(np.expand_dims(found, 1), shape)]


@register_channels(layers.Masking)
def _masking(ids: ChannelIds, call: Call) -> list[Ids]:
    ids.inexact(call.inputs[0], f"Masking {call.path!r} reads all channels at once")
    return call.inputs


def _sequence(ids: ChannelIds, call: Call) -> tuple[Ids | None, list[Ids]]:
    """The channels of the sequence that a call reads, None if they cannot be followed, and of its initial states."""
    known = {id(tensor): array for tensor, array in zip(call.node.input_tensors, call.inputs, strict=True)}
    names = ("sequences", "initial_state", "mask")
    given = {**dict(zip(names, call.node.arguments.args, strict=False)), **call.node.arguments.kwargs}
    if isinstance(given.get("mask"), keras.KerasTensor):
        ids.freeze(known[id(given["mask"])], f"{call.path!r} is masked by it")
    states = [known.get(id(tensor)) for tensor in keras.tree.flatten(given.get("initial_state")) if tensor is not None]
    array = call.inputs[0]
    last = not isinstance(call.operation, _CONVOLUTIONAL) or is_channels_last(call.operation)
    read = ids.channels(array) if last else None
    vectors = [None if state is None else ids.channels(state) for state in states]
    whole = [vector for vector in vectors if vector is not None]
    return (None if len(whole) < len(vectors) else read), whole


def _cells(ids: ChannelIds, call: Call, read: Ids, states: list[Ids]) -> tuple[Ids, list[Ids]]:
    """What a recurrent layer makes, and its states, empty where it does not return them; one id for each channel."""
    layer = call.operation
    # A layer named after its cell has the cell's settings as its own.
    outer = "cell.config." if type(layer) is layers.RNN else ""
    positions = _positions(layer, call)
    left, made = list(states), []
    for place, cell in _cells_of(layer).items():
        index = place.rpartition(".")[2] if "." in place else ""
        units = ids.create(call, _width(cell), f"cell_{index}" if index else "")
        entry = f"cells.{index}.config." if index else ""
        ids.resize(call, f"{outer}{entry}{'filters' if hasattr(cell, 'filters') else 'units'}", units)
        for name in ("activation", "recurrent_activation"):
            if hasattr(cell, name):  # a simple cell has no gates
                freeze_if_mixing(ids, call, units, getattr(cell, name))
        gates = _blocks(units, _GATES[type(cell)])
        ids.follow(call, f"{place}.kernel", {-2: read, -1: gates}, positions)
        ids.follow(call, f"{place}.recurrent_kernel", {-2: units, -1: gates}, positions)
        ids.follow(call, f"{place}.bias", {-1: gates})
        for given in left[: _STATES[type(cell)]]:
            ids.unify(given, units)
        del left[: _STATES[type(cell)]]
        made += [units] * _STATES[type(cell)]
        read = units
    return read, made if layer.return_state else []


def _blocks(units: Ids, gates: int) -> Ids:
    """The ids along the last axis of a cell's kernels: all units of the first gate, then all of the second, …."""
    return np.tile(units, gates)


def _cells_of(layer: Any) -> dict[str, Any]:
    """The cells of a recurrent layer, by the attribute that holds each."""
    if type(layer.cell) is layers.StackedRNNCells:
        return {f"cell.cells.{index}": cell for index, cell in enumerate(layer.cell.cells)}
    return {"cell": layer.cell}


def _is_known(layer: Any) -> bool:
    recurrent = type(layer) in (*_RECURRENT, *_CONVOLUTIONAL, layers.RNN)
    return recurrent and all(type(cell) in _GATES for cell in _cells_of(layer).values())


def _width(cell: Any) -> int:
    return int(cell.filters if hasattr(cell, "filters") else cell.units)


def _positions(layer: Any, call: Call) -> int:
    """How often a cell's kernels are applied: once a time step, at every position of what a convolution makes."""
    steps = int(call.inputs[0].shape[1])
    if type(layer) not in _CONVOLUTIONAL:
        return steps
    return int(steps * np.prod(call.output_shapes[0][1 + layer.return_sequences :]) // _width(layer.cell))


def _spread(call: Call, vectors: list[Ids]) -> list[Ids]:
    return [np.broadcast_to(one, shape) for one, shape in zip(vectors, call.output_shapes, strict=True)]


def _refused(ids: ChannelIds, call: Call, parts: dict[str, Any]) -> list[Ids]:
    """`parts`: the layer's recurrent parts by the attribute that holds each."""
    kernels = {
        ".".join(filter(None, (part, place, name))): _positions(layer, call)
        for part, layer in parts.items()
        if hasattr(layer, "cell")
        for place, cell in _cells_of(layer).items()
        if type(cell) in _GATES
        for name in ("kernel", "recurrent_kernel")
    }
    kind = type(call.operation).__name__
    return ids.refuse(call, f"{kind} {call.path!r} is used, or has a cell, in a way that cannot be followed", kernels)
