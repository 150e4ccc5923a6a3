"""What a user registers for the layers of `custom_layers` so that their channels can be removed."""

from custom_layers import AddPositions, ScaleChannels

import mobileprune as mp


@mp.register_channels(ScaleChannels)
def _scale_channels(ids, call):
    ids.follow(call, "gamma", {0: ids.channels(call.inputs[0])})
    return call.inputs


@mp.register_channels(AddPositions)
def _add_positions(ids, call):
    ids.follow(call, "positions", {1: ids.channels(call.inputs[0])})
    return call.inputs
