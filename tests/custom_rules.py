"""What a user registers for the layers of `custom_layers` so that their channels can be removed."""

from custom_layers import AddPositions, ScaleChannels

import mobileprune as mp
from mobileprune.channel_ids import rule

# Engines from before custom layers could be registered have only the decorator for their own rules.
_register = getattr(mp, "register_channels", rule)


@_register(ScaleChannels)
def _scale_channels(ids, call):
    ids.follow(call.operation, "gamma", {0: call.inputs[0].reshape(-1, call.inputs[0].shape[-1])[0]})
    return call.inputs


@_register(AddPositions)
def _add_positions(ids, call):
    ids.follow(call.operation, "positions", {1: call.inputs[0].reshape(-1, call.inputs[0].shape[-1])[0]})
    return call.inputs
