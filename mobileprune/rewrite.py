"""Calls made anew on the channels that survive: static shapes, slices, indices and constants are cut with them."""

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from mobileprune.channel_calls import Call, Ids, compact
from mobileprune.channel_ops import SELECTIONS, moved
from mobileprune.errors import PlanError


def surviving_shape(call: Call, alive: np.ndarray, shape: Sequence[int | None]) -> tuple[int | None, ...]:
    """The shape of what survives of a call's first output; `shape` is what the model says now, -1 stays.

    Args:
        call: the call.
        alive: which ids survive, shape (ids,).
        shape: the static shape, with the batch; entries of axes that lose nothing are kept.

    Raises:
        PlanError: the survivors do not fill a rectangle.
    """
    array = call.outputs[0]
    counts = [int(np.count_nonzero(kept)) for kept in survivors_by_axis(array, alive)]
    left = alive[compact(array)]
    if np.prod(counts) * left.size != np.count_nonzero(left) * array.size:
        raise PlanError(f"What survives the plan cannot be reshaped by {call.path!r}: keep what precedes it.")
    return tuple(said if count == size else count for said, count, size in zip(shape, counts, array.shape, strict=True))


def survivors_by_axis(array: Ids, alive: np.ndarray) -> list[np.ndarray]:
    """For each axis of a tensor which of its entries survive, booleans of shape (size of the axis,)."""
    small = alive[compact(array)]
    axes = range(array.ndim)
    along = [small.any(axis=tuple(other for other in axes if other != axis)) for axis in axes]
    return [np.broadcast_to(kept, (size,)) for kept, size in zip(along, array.shape, strict=True)]


def call_again(call: Call, alive: np.ndarray, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The function of `keras.ops` that `call` recorded, called on the smaller tensors in `args` and `kwargs`.

    Raises:
        PlanError: the survivors cannot be described by a call of it.
    """
    operation = call.operation
    kind = type(operation).__name__
    if all(alive[compact(array)].all() for array in (*call.inputs, *call.outputs)):
        return operation(*args, **kwargs)
    if kind in ("Reshape", "BroadcastTo"):
        entry = "newshape" if kind == "Reshape" else "shape"
        config = operation.get_config()
        changed = {entry: surviving_shape(call, alive, config[entry])}
        return type(operation).from_config({**config, **changed})(*args, **kwargs)
    if kind == "Squeeze" and operation.axis is None:
        # One channel may be left: its axis is not among those that went before.
        single = tuple(axis for axis, size in enumerate(call.node.input_tensors[0].shape) if size == 1)
        return type(operation)(axis=single, name=operation.name)(*args, **kwargs)
    if kind in SELECTIONS:
        return _select(call, alive, args, kwargs)
    if kind in ("Einsum", "Matmul", "Dot"):
        return operation(*args, **kwargs)  # constants meet no channels that go
    if kind == "DotProductAttention":
        return _attend(call, args, kwargs)
    return operation(
        *(_sliced(value, call, alive) for value in args),
        **{name: _sliced(value, call, alive) for name, value in kwargs.items()},
    )


def _sliced(value: Any, call: Call, alive: np.ndarray) -> Any:
    """A constant argument without the entries that belong to removed channels; anything else as it is."""
    if any(isinstance(part, keras.KerasTensor | str | None) for part in keras.tree.flatten([value])):
        return value
    array = np.asarray(value)
    if array.ndim == 0:
        return value
    kept = survivors_by_axis(call.outputs[0], alive)[-array.ndim :]
    for axis, along in enumerate(kept):
        if array.shape[axis] == along.size > 1:
            array = array.compress(along, axis)
    return array


def _attend(call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Attention on fewer columns, which goes on dividing by the root of what it had."""
    scale = args[5] if len(args) > 5 else kwargs.get("scale")
    if scale is None:
        scale = 1 / math.sqrt(call.inputs[0].shape[-1])
    return call.operation(*args[:5], **{**kwargs, "scale": scale})


def _select(call: Call, alive: np.ndarray, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A selection made anew: first the surviving channels that it selects are picked, then it does the rest."""
    array = call.inputs[0]
    kept = survivors_by_axis(array, alive)
    axes = [axis for axis, along in enumerate(kept) if not along.all()]
    if len(axes) != 1:
        raise PlanError(f"What survives the plan cannot be selected by {call.path!r}: keep what precedes it.")
    axis = axes[0]
    if isinstance(getattr(call.operation, "axis", None), list | tuple):
        return call.operation(*args, **kwargs)  # only along axes that hold no channels
    if _own_axis(call.operation, array.ndim) not in (None, axis):
        return call.operation(*args, **kwargs)
    position = np.arange(array.shape[axis]).reshape([-1 if other == axis else 1 for other in range(array.ndim)])
    places = np.cumsum(kept[axis]) - 1
    picked = []
    for selected in moved(call, lambda ids: _tensor(np.broadcast_to(position, ids.shape))):
        old = _vector(selected)
        picked.append(places[old[kept[axis][old]]])
    tensor = args[0]
    kind, operation = type(call.operation).__name__, call.operation
    if kind == "GetItem":
        key = _key_with_all(args[1], axis, array.ndim)
        return type(operation)(name=operation.name)(_pick(tensor, picked[0], axis, operation.name), key)
    if kind == "Slice":
        start, shape = list(args[1]), list(operation.shape)
        start[axis], shape[axis] = 0, len(picked[0])
        made = type(operation)(tuple(shape), name=operation.name)
        return made(_pick(tensor, picked[0], axis, operation.name), tuple(start))
    if kind == "Take" and np.ndim(args[1]) == 0:
        return _entry(tensor, int(picked[0][0]), axis, operation.name)
    names = [operation.name] if len(picked) == 1 else [f"{operation.name}_{index}" for index in range(len(picked))]
    return [_pick(tensor, places, axis, name) for name, places in zip(names, picked, strict=True)]


def _entry(tensor: Any, place: int, axis: int, name: str) -> Any:
    """One entry of a tensor along an axis, which goes."""
    from keras.src.ops.numpy import GetItem

    return GetItem(name=f"{name}_survivor")(tensor, (*(slice(None),) * axis, place))


def _own_axis(operation: Any, rank: int) -> int | None:
    """The axis along which an op selects; None for those that name an entry for each axis."""
    fixed = {"Hsplit": 1 if rank > 1 else 0, "Vsplit": 0, "Dsplit": 2}
    axis = fixed.get(type(operation).__name__, getattr(operation, "axis", None))
    return None if axis is None else int(axis) % rank


def _pick(tensor: Any, places: np.ndarray, axis: int, name: str) -> Any:
    """The entries of a tensor at `places` along an axis: a slice where one describes them."""
    from keras.src.ops.numpy import GetItem, Take

    size = tensor.shape[axis]
    if np.array_equal(places, np.arange(size)):
        return tensor
    step = int(places[1] - places[0]) if len(places) > 1 else 1
    if step > 0 and (np.diff(places) == step).all():
        key = (*(slice(None),) * axis, slice(int(places[0]), int(places[-1]) + 1, None if step == 1 else step))
        return GetItem(name=f"{name}_survivors")(tensor, key)
    return Take(axis=axis, name=f"{name}_survivors")(tensor, [int(place) for place in places])


def _key_with_all(key: Any, axis: int, rank: int) -> tuple[Any, ...]:
    """The key of `x[key]` with everything taken along one axis of `x`; where it took one entry, the only one left."""
    entries = list(key) if isinstance(key, tuple) else [key]
    used = sum(entry is not None and entry is not Ellipsis for entry in entries)
    if not any(entry is Ellipsis for entry in entries):
        entries.append(Ellipsis)
    where = next(place for place, entry in enumerate(entries) if entry is Ellipsis)
    entries[where : where + 1] = [slice(None)] * (rank - used)
    places = [place for place, entry in enumerate(entries) if entry is not None]
    entries[places[axis]] = 0 if isinstance(entries[places[axis]], int) else slice(None)
    return tuple(entries)


def _vector(selected: np.ndarray) -> np.ndarray:
    """The positions that were selected, in order: they differ along one axis at most."""
    axes = [axis for axis in range(selected.ndim) if (np.diff(selected, axis=axis) != 0).any()]
    if len(axes) > 1:
        raise PlanError("A selection that moves channels along two axes cannot be made anew.")
    along = axes[0] if axes else None
    first = selected[tuple(slice(None) if axis == along else 0 for axis in range(selected.ndim))]
    if along is None:
        # One position, or one that is repeated.
        return np.atleast_1d(first)
    return first


def _tensor(positions: Ids) -> Any:
    return keras.ops.convert_to_tensor(np.ascontiguousarray(positions), "int64")
