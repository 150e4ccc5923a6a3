"""How channel ids pass through layers of attention: whole heads go, and so does the width of all heads.

Softmax runs over positions, so attention never mixes channels. Queries and keys meet in a product over the width of a
head: there a channel is one column of every query and key kernel, and the queries' scale follows the width that is
left. Heads as in Michel et al. 2019, "Are Sixteen Heads Really Better than One?", arXiv:1905.10650.
"""

import dataclasses
import math

import keras
import numpy as np

from mobileprune.channel_calls import Call, Ids, register_channels
from mobileprune.channel_ids import ChannelIds

layers = keras.layers


@dataclasses.dataclass(frozen=True)
class _Width:
    """Ids of what attention makes inside itself.

    Attributes:
        query_heads: of the queries' heads and of those of what comes out.
        key_heads: of the heads of keys and values.
        keys: of the columns of queries and keys.
        values: of the columns of values.
    """

    query_heads: Ids
    key_heads: Ids
    keys: Ids
    values: Ids


@register_channels(layers.MultiHeadAttention)
def multi_head_attention(ids: ChannelIds, call: Call) -> list[Ids]:
    """The rule for `keras.layers.MultiHeadAttention`."""
    layer = call.operation
    config = layer.get_config()
    if len(np.atleast_1d(config["output_shape"] or 0)) > 1:
        return ids.refuse(call, f"MultiHeadAttention {call.path!r} gives an output of several axes")
    read = _inputs(call)
    tensors = _read(ids, read)
    if tensors is None:
        return ids.refuse(call, f"MultiHeadAttention {call.path!r} attends to what holds channels on another axis")
    _freeze_masks(ids, call, read)
    heads = ids.create(call, layer.num_heads, "heads")
    keys = ids.create(call, layer.key_dim, "keys")
    values = ids.create(call, layer.value_dim, "values")
    made = ids.create(call, call.output_shapes[0][-1])
    for entry, counted in (("num_heads", heads), ("key_dim", keys), ("value_dim", values), ("output_shape", made)):
        ids.resize(call, entry, counted)
    return _attend(ids, call, read, tensors, _Width(heads, heads, keys, values), made, "")


@register_channels(layers.GroupQueryAttention)
def grouped_query_attention(ids: ChannelIds, call: Call) -> list[Ids]:
    """The rule for `keras.layers.GroupQueryAttention` (Ainslie et al. 2023, "GQA", arXiv:2305.13245).

    Heads of keys go with all queries that share them; where there are more queries to each than heads of keys, the
    same number of queries goes from each. One width serves queries, keys and values.
    """
    layer = call.operation
    read = _inputs(call)
    tensors = _read(ids, read)
    if tensors is None:
        return ids.refuse(call, f"GroupQueryAttention {call.path!r} attends to what holds channels on another axis")
    query, value, _ = tensors
    _freeze_masks(ids, call, read)
    # The layer has no output width of its own, and refuses values that are not as wide as its queries.
    ids.unify(query, value)
    repeats = layer.num_query_heads // layer.num_key_value_heads
    if repeats > layer.num_key_value_heads:
        by_key = ids.create(call, repeats, "queries")
        query_heads = np.tile(by_key, layer.num_key_value_heads)
        key_heads = ids.create(call, layer.num_key_value_heads, "heads")
        ids.freeze(key_heads, f"{call.path!r} loses queries of each head, not heads")
    else:
        key_heads = ids.create(call, layer.num_key_value_heads, "heads")
        query_heads = np.repeat(key_heads, repeats)
    width = ids.create(call, layer.head_dim, "width")
    ids.resize(call, "num_query_heads", query_heads)
    ids.resize(call, "num_key_value_heads", key_heads)
    ids.resize(call, "head_dim", width)
    return _attend(ids, call, read, tensors, _Width(query_heads, key_heads, width, width), query, "_")


def _attend(
    ids: ChannelIds, call: Call, read: list[Ids], tensors: list[Ids], width: _Width, made: Ids, prefix: str
) -> list[Ids]:
    """Says which weights follow what; `prefix` is how the layer's names of its dense layers begin."""
    query, value, key = tensors
    queries, others = (math.prod(array.shape[:-1]) for array in read[:2])
    inner = [
        ("query", query, width.query_heads, width.keys, queries),
        ("key", key, width.key_heads, width.keys, others),
        ("value", value, width.key_heads, width.values, others),
    ]
    if call.operation.get_config().get("use_gate"):
        # It multiplies what the heads give, column by column.
        inner.append(("gate", query, width.query_heads, width.values, queries))
    for name, channels, heads, columns, positions in inner:
        dense = f"{prefix or ('_' if name == 'gate' else '')}{name}_dense"
        ids.follow(call, f"{dense}.kernel", {0: channels, 1: heads, 2: columns}, positions)
        ids.follow(call, f"{dense}.bias", {0: heads, 1: columns})
        if call.operation.use_bias:
            source = read[("query", "value", "key").index(name)] if name != "gate" else read[0]
            ids.adds_bias(call, (heads, columns), (*source.shape[:-1], heads, columns))
    # The layer divides by the root of its width: what is left of the queries must be as large as it was.
    for attribute in ("kernel", "bias"):
        ids.rescale(call, f"{prefix}query_dense.{attribute}", width.keys, 0.5)
    output = f"{prefix}output_dense"
    ids.follow(call, f"{output}.kernel", {0: width.query_heads, 1: width.values, 2: made}, queries)
    ids.follow(call, f"{output}.bias", {0: made})
    pairs = _pairs(call, read)
    for name, columns in (("scores", width.keys), ("mixture", width.values)):
        shape = (len(width.query_heads), len(columns))
        ids.multiplies(call, name, shape, {0: width.query_heads, 1: columns}, pairs)
    scores = [ids.create_frozen(call, "attention scores", 1)] if len(call.output_shapes) > 1 else []
    if scores:
        ids.freeze(width.query_heads, f"the scores of {call.path!r} are read")
    return [*call.spread(made), *scores]


def _inputs(call: Call) -> list[Ids]:
    """Ids of the query, the value and the key; masks are no channels."""
    known = {id(tensor): array for tensor, array in zip(call.node.input_tensors, call.inputs, strict=True)}
    names = ("query", "value", "key")
    given = {**dict(zip(names, call.node.arguments.args, strict=False)), **call.node.arguments.kwargs}
    query, value = given["query"], given["value"]
    key = given.get("key")
    return [known[id(tensor)] for tensor in (query, value, value if key is None else key)]


def _read(ids: ChannelIds, arrays: list[Ids]) -> list[Ids] | None:
    """The channels of each tensor; None if one of them holds its channels elsewhere than on its last axis."""
    found = [ids.channels(array) for array in arrays]
    return None if any(channels is None for channels in found) else [each for each in found if each is not None]


def _freeze_masks(ids: ChannelIds, call: Call, read: list[Ids]) -> None:
    for array in call.inputs:
        if not any(array is other for other in read):
            ids.freeze(array, f"{call.path!r} is masked by it")


def _pairs(call: Call, read: list[Ids]) -> int:
    """How many pairs of a query and a key there are: along the axes of attention all, along the others like with like.

    Layers of grouped queries attend along the one axis that they have.
    """
    query, value = read[0].shape, read[1].shape
    axes = getattr(call.operation, "attention_axes", None) or range(1, len(query) - 1)
    attended = {axis % len(query) for axis in axes}
    others: int = math.prod(size for axis, size in enumerate(value) if axis in attended)
    return math.prod(query[:-1]) * others
