"""How channel ids pass through products: `EinsumDense`, `einsum`, `matmul` and attention written out in them.

A letter of the equation is an axis. Of each tensor one axis holds the channels. Where two tensors share a letter their
channels along it are one; a letter that is summed over is where channels of a product are read.
"""

import dataclasses
import math
import string
from typing import Any

import keras
import numpy as np

from mobileprune.channel_calls import CONSTANT, Call, Ids, compact, register_channels, rule_for_ops
from mobileprune.channel_ids import ChannelIds
from mobileprune.channel_rules import freeze_if_mixing
from mobileprune.errors import ModelError

layers = keras.layers


@dataclasses.dataclass(frozen=True)
class _Term:
    """One tensor of a product: a letter for each axis, and which of them holds its channels (if any does)."""

    letters: str
    letter: str = ""
    channels: Ids = dataclasses.field(default_factory=lambda: np.zeros(0, np.int64))


@register_channels(layers.EinsumDense)
def einsum_dense(ids: ChannelIds, call: Call) -> list[Ids]:
    """The rule for `keras.layers.EinsumDense`: of several axes that it makes the innermost is that of the channels.

    For queries, keys and values alike that is the width of the heads, the same columns of each.
    """
    layer = call.operation
    if layer.quantization_mode is not None or getattr(layer, "lora_enabled", False):
        return ids.refuse(call, f"EinsumDense {call.path!r} is quantized or has LoRA weights", {"kernel": 0})
    if layer.equation.replace(" ", "").find("...") > 0:
        raise ModelError("its equation has an ellipsis that does not stand first")
    (letters, weight), output = _parsed(layer.equation, (call.inputs[0].ndim, layer.kernel.ndim))
    read = _term(ids, call.inputs[0], letters)
    sizes = {
        **dict(zip(weight, layer.kernel.shape, strict=True)),
        **dict(zip(letters, call.inputs[0].shape, strict=True)),
    }
    positions = math.prod(sizes.values()) // math.prod(layer.kernel.shape)
    followed = {read.letter: read.channels} if read.letter else {}
    passed = read.letter if read.letter in output else ""
    made = [letter for letter in output if letter not in letters]
    if read.letter and not passed and read.letter not in weight:
        ids.inexact(read.channels, f"EinsumDense {call.path!r} sums over all channels at once")
    letter = passed or (made[-1] if made else "")
    if passed:
        ids.create_frozen(call, f"EinsumDense {call.path!r} makes positions, not channels")
    elif made:
        followed[letter] = ids.create(call, sizes[letter])
    if letter:
        freeze_if_mixing(ids, call, followed[letter], call.operation.activation)
        _resize(ids, call, output.index(letter) - len(output), followed[letter])
    ids.follow(call, "kernel", {axis: followed.get(each) for axis, each in enumerate(weight)}, positions)
    if layer.bias is not None:
        inner = output[len(output) - layer.bias.ndim :]
        along = {axis: followed.get(each) for axis, each in enumerate(inner) if layer.bias.shape[axis] == sizes[each]}
        ids.follow(call, "bias", along)
        sized = [followed.get(each, sizes[each]) for each in output]
        ids.adds_bias(call, [sized[axis - len(inner)] if axis in along else 1 for axis in range(len(inner))], sized)
    # Keras leaves open what the configuration does, though the input tells it.
    shape = tuple(sizes[each] for each in output)
    return [_placed(followed.get(letter), output.find(letter) if letter else None, shape)]


def _resize(ids: ChannelIds, call: Call, axis: int, channels: Ids) -> None:
    """The size that the configuration gives an axis of the output; none where it is left to the input."""
    given = call.operation.get_config()["output_shape"]
    given = [given] if isinstance(given, int) else given
    if len(given) >= -axis and given[axis] is not None:
        entry = "output_shape" if len(given) == 1 else f"output_shape.{len(given) + axis}"
        ids.resize(call, entry, channels)


@rule_for_ops("Einsum")
def _einsum(ids: ChannelIds, call: Call) -> list[Ids]:
    arrays = _operands(call, call.node.arguments.args)
    terms, output = _parsed(call.operation.subscripts, [array.ndim for array in arrays])
    return _product(ids, call, arrays, terms, output)


@rule_for_ops("Matmul")
def _matmul(ids: ChannelIds, call: Call) -> list[Ids]:
    return _matrices(ids, call, _operands(call, call.node.arguments.args))


@rule_for_ops("Dot")
def _dot(ids: ChannelIds, call: Call) -> list[Ids]:
    arrays = _operands(call, call.node.arguments.args)
    if arrays[1].ndim > 2 or not arrays[0].ndim or not arrays[1].ndim:
        return ids.refuse(call, f"dot {call.path!r} has tensors of more axes than matrices")
    return _matrices(ids, call, arrays)


def _matrices(ids: ChannelIds, call: Call, arrays: list[Ids]) -> list[Ids]:
    left, right = arrays
    letters = iter(string.ascii_letters)
    summed, row, column = (next(letters) for _ in range(3))
    ends = [(row + summed)[-left.ndim :], (summed + column)[: right.ndim]]
    # Axes in front are counted from the end; one that is spread over the other's has a letter of its own.
    batches = [array.shape[: array.ndim - len(end)] for array, end in zip(arrays, ends, strict=True)]
    names: list[str] = ["", ""]
    output = ""
    for place in range(1, max(map(len, batches)) + 1):
        sizes = [batch[-place] if len(batch) >= place else None for batch in batches]
        shared, own = next(letters), next(letters)
        widest = max(size for size in sizes if size is not None)
        for index, size in enumerate(sizes):
            if size is not None:
                names[index] = (shared if size == widest else own) + names[index]
        output = shared + output
    output += row * (left.ndim > 1) + column * (right.ndim > 1)
    return _product(ids, call, arrays, [name + end for name, end in zip(names, ends, strict=True)], output)


@rule_for_ops("DotProductAttention")
def _dot_product_attention(ids: ChannelIds, call: Call) -> list[Ids]:
    """Queries (batch, positions, heads, width), keys and values alike; surgery sees to the scale."""
    names = ("query", "key", "value", "bias", "mask", "scale")
    given = {**dict(zip(names, call.node.arguments.args, strict=False)), **call.node.arguments.kwargs}
    known = {id(tensor): array for tensor, array in zip(call.node.input_tensors, call.inputs, strict=True)}
    attending = [known[id(given[name])] for name in names[:3]]
    for array in call.inputs:
        if not any(array is other for other in attending):
            ids.freeze(array, f"{call.path!r} is masked by it")
    query, key, _ = attending
    heads = "n" if query.shape[2] == key.shape[2] else "m"  # heads of keys that are shared are repeated inside
    terms = [
        _term(ids, array, letters)
        for array, letters in zip(attending, ("btnh", f"bs{heads}h", f"bs{heads}v"), strict=True)
    ]
    queries, keys, values = terms
    # What comes out is as wide as the queries.
    if (queries.letter == "h") != (values.letter == "v"):
        for term in (queries, values):
            ids.freeze(term.channels, f"{call.path!r} needs queries and values of one width")
    elif values.letter == "v":
        ids.unify(queries.channels, values.channels)
    _join(ids, call, [queries, keys])
    _join(ids, call, [dataclasses.replace(queries, letters="btn"), values])
    pairs = math.prod(query.shape[:2]) * key.shape[1]
    for name, term, width in (("contraction", queries, "h"), ("product", values, "v")):
        sizes = {"n": query.shape[2], width: query.shape[3]}
        ids.multiplies(call, name, tuple(sizes.values()), _axes(sizes, [queries, term]), pairs)
    out = values if values.letter in ("v", heads) and values.letter != "m" else _Term("")
    return [_placed(out.channels if out.letter else None, "btnv".find(out.letter), call.output_shapes[0])]


def _product(ids: ChannelIds, call: Call, arrays: list[Ids], letters: list[str], output: str) -> list[Ids]:
    if any(len(set(each)) < len(each) for each in letters):
        return ids.refuse(call, f"{call.path!r} takes a diagonal")
    terms = [_term(ids, array, each) for array, each in zip(arrays, letters, strict=True)]
    _join(ids, call, terms)
    sizes: dict[str, int] = {}
    for each, array in zip(letters, arrays, strict=True):
        sizes.update(zip(each, array.shape, strict=True))
    summed = [term for term in terms if term.letter and term.letter not in output]
    for term in summed:
        if sum(term.letter in other.letters for other in terms) == 1:
            ids.inexact(term.channels, f"{call.path!r} sums over all channels at once")
    found = {term.letter: term.channels for term in terms if term.letter and term.letter in output}
    letter = max(found, key=lambda each: (sizes[each], output.index(each)), default="")
    for other, channels in found.items():
        if other != letter:
            ids.freeze(channels, f"{call.path!r} multiplies channels with other channels, each with each")
    spread = {each: sizes[each] for each in sizes if any(each == term.letter for term in terms)}
    rest = math.prod(size for each, size in sizes.items() if each not in spread)
    name = "contraction" if summed else "product"
    ids.multiplies(call, name, tuple(spread.values()) or (1,), _axes(spread, terms), rest)
    return [_placed(found.get(letter), output.find(letter) if letter else None, call.output_shapes[0])]


def _join(ids: ChannelIds, call: Call, terms: list[_Term]) -> None:
    """Makes the channels along each letter one; those that meet what holds none there stay."""
    for term in terms:
        if not term.letter:
            continue
        for other in terms:
            if other.letter == term.letter:
                ids.unify(term.channels, other.channels)
            elif term.letter in other.letters:
                ids.freeze(term.channels, f"{call.path!r} multiplies them with what holds no channels there")


def _axes(sizes: dict[str, int], terms: list[_Term]) -> dict[int, Ids]:
    return {axis: term.channels for axis, letter in enumerate(sizes) for term in terms if term.letter == letter}


def _term(ids: ChannelIds, array: Ids, letters: str) -> _Term:
    """A tensor with its widest axis of channels; along the others its channels become one."""
    small = compact(array)
    spread = [axis for axis, size in enumerate(small.shape) if size > 1]
    if not spread:
        ids.freeze(array, "a product with other tensors reads it")
        return _Term(letters)
    axis = max(spread, key=lambda each: (small.shape[each], each))
    channels = ids.channels(array, axis)
    if channels is None:
        raise ModelError("its channels lie along no axis of their own")
    return _Term(letters, letters[axis], channels)


def _placed(channels: Ids | None, axis: int | None, shape: tuple[int, ...]) -> Ids:
    """Ids of an output that differ along one axis; what has no channels is constant."""
    if channels is None or axis is None:
        return np.full(shape, CONSTANT)
    return np.broadcast_to(channels.reshape([-1 if each == axis else 1 for each in range(len(shape))]), shape)


def _operands(call: Call, given: Any) -> list[Ids]:
    """Ids of each factor; numbers that the call holds are no channels."""
    known = {id(tensor): array for tensor, array in zip(call.node.input_tensors, call.inputs, strict=True)}
    return [
        known[id(value)] if id(value) in known else np.broadcast_to(CONSTANT, np.shape(value))
        for value in keras.tree.flatten(given)
    ]


def _parsed(equation: str, ranks: Any) -> tuple[list[str], str]:
    """Letters of each factor and of the result, an ellipsis written out.

    Raises:
        ModelError: there is no arrow, or the letters do not fit the tensors.
    """
    left, arrow, output = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if not arrow or len(terms) != len(ranks):
        raise ModelError(f"equation {equation!r} does not say what comes out")
    spare = [letter for letter in string.ascii_letters if letter not in equation]
    elided = max(rank - len(term.replace("...", "")) for term, rank in zip(terms, ranks, strict=True))
    found = []
    for term, rank in zip(terms, ranks, strict=True):
        count = rank - len(term.replace("...", ""))
        found.append(term.replace("...", "".join(spare[elided - count : elided])))
        if len(found[-1]) != rank:
            raise ModelError(f"equation {equation!r} does not fit its tensors")
    return found, output.replace("...", "".join(spare[:elided]))
