"""What a Keras model consists of: parameters, multiply-accumulates, zeros; nothing is changed."""

import dataclasses
from typing import Any

import numpy as np

from mobileprune.channel_groups import ChannelGraph
from mobileprune.graph import is_nested, model_over_time
from mobileprune.masks import zero_fraction
from mobileprune.models import check_readable
from mobileprune.prunable import prunable_weights
from mobileprune.pruning_wrapper import wrapped_layers
from mobileprune.quantize_aware import is_quantize_aware, strip_quantization
from mobileprune.run_records import LayerFacts
from mobileprune.sparsify import sparsity, strip_pruning


@dataclasses.dataclass(frozen=True)
class ModelFacts:
    """MACs of one inference at batch 1, parameters, and the share of zeros among the weights that masks may zero."""

    macs: int
    params: int
    sparsity: float


def model_facts(model: Any) -> ModelFacts:
    """MACs, parameters and sparsity of a built Sequential or functional model.

    MACs are counted for convolutions, dense and recurrent layers and attention: each kernel's size times the positions,
    or time steps, it is applied at. Nested models are looked into; of a model wrapped for sparsity the masks are not
    counted.

    Raises:
        ModelError: the model, or one nested in it, is subclassed or not built.

    Example:
        >>> model_facts(keras.applications.MobileNetV2(weights=None)).macs      # doctest: +SKIP
        300774272
    """
    graph = ChannelGraph(plain(model))
    cost = graph.cost(graph.everything())
    return ModelFacts(cost.macs, cost.params, sparsity(model))


def layer_facts(model: Any) -> list[LayerFacts]:
    """One entry for each layer with weights, in the order of the graph, read like `model_facts` reads them."""
    ids = ChannelGraph(plain(model)).ids
    macs: dict[str, int] = {}
    for weight in ids.weights.values():
        macs[weight.layer] = macs.get(weight.layer, 0) + weight.positions * int(np.prod(weight.shape))
    return [
        LayerFacts(
            name=name,
            kind=type(layer).__name__,
            channels=len(ids.outputs.get(name, ())),
            macs=macs.get(name, 0),
            params=int(layer.count_params()),
            sparsity=zero_fraction([np.asarray(kernel) for kernel in prunable_weights(layer).values()]),
        )
        for name, layer in ids.layers.items()
        if layer.weights and not is_nested(layer) and model_over_time(layer) is None
    ]


def record_of_layers(model: Any, most: int = 300) -> list[LayerFacts]:
    """What a run's record says of a model's layers: those that compute with kernels, in the order of the graph.

    Args:
        model: read like `model_facts` reads it.
        most: of deeper networks the layers with the most parameters.

    Example:
        >>> [layer.name for layer in record_of_layers(model)]      # doctest: +SKIP
        ['stem', 'block_1_depthwise', 'block_1_project', 'head']
    """
    layers = [layer for layer in layer_facts(model) if layer.macs]
    largest = sorted(range(len(layers)), key=lambda at: -layers[at].params)[:most]
    return [layers[at] for at in sorted(largest)]


def plain(model: Any) -> Any:
    """The model without sparsity wrappers and rounding, which the channel ids do not know: they would count no MACs.

    Raises:
        ModelError: the model, or one nested in it, is subclassed or not built.
    """
    check_readable(model)
    if is_quantize_aware(model):
        model = strip_quantization(model)
    return strip_pruning(model) if wrapped_layers(model) else model
