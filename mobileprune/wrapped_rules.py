"""How channel ids pass through layers wrapped for weight sparsity, and through those that train with int8's rounding.

A wrapped layer follows the rule of the layer inside, and stays wrapped: masks are cut with their weights, ranges of
activations hold for fewer channels, too. What wrappers note for themselves is not counted among the parameters.
"""

from mobileprune.channel_calls import Call, Ids, register_channels
from mobileprune.channel_ids import ChannelIds
from mobileprune.channel_rules import freeze_if_mixing
from mobileprune.fake_quant import FakeQuantize, QuantizedActivation, QuantizedKernel
from mobileprune.pruning_wrapper import PruneLowMagnitude


@register_channels(PruneLowMagnitude)
def _sparse(ids: ChannelIds, call: Call) -> list[Ids]:
    wrapper = call.operation
    ids.set_aside(wrapper.pruning_step, *wrapper.masks.values())
    return ids.inside(call.within(wrapper.layer, "layer", call.inputs, call.output_shapes, node=call.node))


@register_channels(QuantizedKernel)
def _quantized_kernel(ids: ChannelIds, call: Call) -> list[Ids]:
    """The layer's own rule, then that of the batch normalisation that is folded into its weights."""
    layer = call.operation
    if layer.between is not None:
        ids.set_aside(*layer.between.weights)
    found = ids.inside(call.within(layer.layer, "layer", call.inputs, call.output_shapes))
    return found if layer.norm is None else ids.inside(call.within(layer.norm, "norm", found, call.output_shapes))


@register_channels(FakeQuantize)
def _rounded(ids: ChannelIds, call: Call) -> list[Ids]:
    ids.set_aside(*call.operation.weights)
    return call.inputs


@register_channels(QuantizedActivation)
def _activation(ids: ChannelIds, call: Call) -> list[Ids]:
    freeze_if_mixing(ids, call, call.inputs[0], call.operation.activation)
    return call.inputs
