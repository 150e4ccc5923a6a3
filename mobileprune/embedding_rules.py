"""How channel ids begin in embeddings: a table's columns are channels, its rows are not."""

import keras

from mobileprune.channel_calls import Call, Ids, register_channels
from mobileprune.channel_ids import ChannelIds

layers = keras.layers


@register_channels(layers.Embedding)
def embedding(ids: ChannelIds, call: Call) -> list[Ids]:
    """The rule for `keras.layers.Embedding`."""
    layer = call.operation
    ids.freeze(call.inputs[0], f"Embedding {call.path!r} looks up by it")
    if layer.quantization_mode is not None or getattr(layer, "lora_enabled", False):
        return ids.refuse(call, f"Embedding {call.path!r} is quantized or has LoRA weights")
    made = ids.create(call, layer.output_dim)
    ids.resize(call, "output_dim", made)
    ids.follow(call, "embeddings", {1: made})
    return call.spread(made)


@register_channels(layers.ReversibleEmbedding)
def reversible_embedding(ids: ChannelIds, call: Call) -> list[Ids]:
    """The rule for `keras.layers.ReversibleEmbedding`: called in reverse, it reads along what it makes otherwise."""
    layer = call.operation
    if not _is_reverse(call):
        found = embedding(ids, call)
        if not layer.tie_weights and layer.quantization_mode is None:
            ids.follow(call, "reverse_embeddings", {0: ids.channels(found[0])})
        return found
    read = ids.channels(call.inputs[0])
    if read is None or layer.quantization_mode is not None:
        return ids.refuse(call, f"ReversibleEmbedding {call.path!r} is used in a way that cannot be followed")
    ids.resize(call, "output_dim", read)
    ids.follow(call, "embeddings", {1: read}, call.positions if layer.tie_weights else 0)
    if not layer.tie_weights:
        ids.follow(call, "reverse_embeddings", {0: read}, call.positions)
    return call.spread(ids.create(call, layer.input_dim, "words"))


def _is_reverse(call: Call) -> bool:
    arguments = call.node.arguments
    return bool(arguments.kwargs.get("reverse", arguments.args[1] if len(arguments.args) > 1 else False))
