"""How large the `.tflite` of a choice of channels will be, without converting it."""

from typing import Any

import numpy as np

from mobileprune.channel_calls import Weight
from mobileprune.channel_groups import ChannelGraph
from mobileprune.errors import PlanError, known_names

# Bytes of one entry of a kernel; biases have 4 whatever the recipe.
KERNEL_BYTES = {"float32": 4, "float16": 2, "dynamic_int8": 1, "int8": 1, "int8_float_io": 1}
# A scale (float32) and a zero point (int64) for each channel of a quantized kernel, and of an int8 file's bias.
_SCALE_BYTES = {"dynamic_int8": 12, "int8": 24, "int8_float_io": 24}
# Names, shapes and operators: what a file holds besides data, in all and for each kernel. Measured on
# tests/architectures.py and `mobilenet_small` with TensorFlow 2.21 and litert-quantizer 0.11.
_FILE_BYTES = 1900
_OVERHEAD = {"float32": 350, "float16": 460, "dynamic_int8": 370, "int8": 460, "int8_float_io": 460}
_FOLDING = ("Conv1D", "Conv2D", "DepthwiseConv1D", "DepthwiseConv2D", "Conv2DTranspose", "SeparableConv2D", "Dense")


def check_size_recipe(recipe: str) -> None:
    """Refuses a recipe whose size is not known and lists the others."""
    if recipe not in KERNEL_BYTES:
        raise PlanError(f"The size of recipe={recipe!r} is not known. Known: {known_names(KERNEL_BYTES)}.")


class FileSize:
    """The estimated size of a model's `.tflite` in one recipe.

    Kernels at 4, 2 or 1 bytes an entry, biases at 4, batch norms inside the convolution or dense layer before them (two
    constants a channel where there is none), 12 or 24 bytes a channel for the scales of int8 files, and constants for
    the file and each kernel for names and operators. Against `mobileprune.convert` it is within 2% for the networks of
    more than 100 kB in tests/test_file_size.py and within 10% for smaller ones, where long layer names and many
    operators without weights count.

    Args:
        graph: the model's channel graph.
        recipe: float32, float16, dynamic_int8, int8 or int8_float_io.

    Raises:
        PlanError: another recipe.

    Example:
        >>> FileSize(graph, "int8").bytes(graph.everything())               # doctest: +SKIP
        552160
    """

    def __init__(self, graph: ChannelGraph, recipe: str = "float32") -> None:
        check_size_recipe(recipe)
        self._graph, self._recipe = graph, recipe
        self._folded = {name for name, layer in graph.ids.layers.items() if _folds(layer)}
        self._kinds = {name: type(layer).__name__ for name, layer in graph.ids.layers.items()}
        counted = sum(int(np.prod(weight.shape)) for weight in graph.ids.weights.values())
        # Weights that follow no channel are not listed; they never change.
        self._other = graph.cost(graph.everything()).params - counted

    def bytes(self, alive: np.ndarray) -> int:
        """The file's bytes when only the channels in `alive` (booleans by id) are left."""
        return (
            _FILE_BYTES
            + self._other * KERNEL_BYTES[self._recipe]
            + sum(self._bytes_of(weight, alive) for weight in self._graph.ids.weights.values())
        )

    def _bytes_of(self, weight: Weight, alive: np.ndarray) -> int:
        shape = [
            int(np.count_nonzero(alive[weight.axes[axis]])) if axis in weight.axes else length
            for axis, length in enumerate(weight.shape)
        ]
        entry = KERNEL_BYTES[self._recipe]
        kind, attribute = self._kinds[weight.layer], weight.attribute.rpartition(".")[2]
        if weight.positions:
            channels = _channels(shape, kind, attribute)
            # The bias is there whether the layer has one or not.
            per_channel = 4 + _SCALE_BYTES.get(self._recipe, 0)
            return int(np.prod(shape)) * entry + channels * per_channel + _OVERHEAD[self._recipe]
        if kind == "BatchNormalization":
            # A factor and an offset are left of the four.
            return 0 if attribute != "moving_mean" or weight.layer in self._folded else 2 * shape[0] * entry
        return 0 if attribute == "bias" else int(np.prod(shape)) * entry


def _channels(shape: list[int], kind: str, attribute: str) -> int:
    """The number of a kernel's output channels."""
    if attribute == "depthwise_kernel" or kind.startswith("Depthwise"):
        return shape[-1] * shape[-2]
    return shape[-2] if kind.endswith("Transpose") else shape[-1]


def _folds(layer: Any) -> bool:
    """Whether a batch norm directly follows a layer that takes it in: one with no activation and no other reader."""
    if type(layer).__name__ != "BatchNormalization":
        return False
    for node in layer._inbound_nodes:
        before = node.input_tensors[0]._keras_history.operation
        linear = getattr(getattr(before, "activation", None), "__name__", "") == "linear"
        alone = {id(after.operation) for after in before._outbound_nodes} == {id(layer)}
        if type(before).__name__ in _FOLDING and linear and alone:
            return True
    return False
