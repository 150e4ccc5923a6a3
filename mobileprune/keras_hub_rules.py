"""Channel rules for layers of Keras Hub that own weights; known by name, so that Keras Hub need not be there.

What Keras Hub composes of other layers needs no rule: `inline_layers` shows what is inside.
"""

from mobileprune.channel_calls import Call, Ids, rule_for_package
from mobileprune.channel_ids import ChannelIds
from mobileprune.embedding_rules import reversible_embedding

rule_for_package("keras_hub", "ReversibleEmbedding")(reversible_embedding)


@rule_for_package("keras_hub", "LlamaLayerNorm", "MistralLayerNormalization", "Phi3LayerNorm", "QwenLayerNorm")
def _norm(ids: ChannelIds, call: Call) -> list[Ids]:
    """Normalisations by the root of the mean square along the last axis."""
    ids.inexact(call.inputs[0], f"{type(call.operation).__name__} {call.path!r} reads all channels at once")
    channels = ids.channels(call.inputs[0])
    ids.follow(call, "scale", {0: channels})
    return call.inputs


@rule_for_package("keras_hub", "PositionEmbedding")
def _positions(ids: ChannelIds, call: Call) -> list[Ids]:
    """A row for each position, as wide as what it is called on and added to it afterwards."""
    channels = ids.channels(call.inputs[0])
    if channels is None:
        return ids.refuse(call, f"PositionEmbedding {call.path!r} is used in a way that cannot be followed")
    ids.follow(call, "position_embeddings", {1: channels})
    return call.spread(channels)


@rule_for_package("keras_hub", "DropPath")
def _pass(ids: ChannelIds, call: Call) -> list[Ids]:
    return call.inputs
