"""Which weights of a layer masks may zero: known for every stock layer with kernels, registered for others.

Depthwise kernels are left alone: they are few, precious, and slow when sparse.
"""

import dataclasses
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np

from mobileprune.errors import SparsityError, known_names

layers = keras.layers


@dataclasses.dataclass(frozen=True)
class Kernel:
    """One weight that masks may zero, and how its axes are read by block and n:m patterns.

    Attributes:
        path: the layer's attribute, dotted for inner layers.
        inputs: the axes of what the weight reads.
        outputs: the axes of what it makes; all others are taps.
    """

    path: str
    inputs: tuple[int, ...] = (-2,)
    outputs: tuple[int, ...] = (-1,)

    def to_taps(self, values: np.ndarray) -> np.ndarray:
        """The weight as (taps, inputs, outputs)."""
        order = self._order(values.ndim)
        inputs, outputs = (int(np.prod([values.shape[axis] for axis in axes])) for axes in (self.inputs, self.outputs))
        return values.transpose(order).reshape(-1, inputs, outputs)

    def from_taps(self, values: np.ndarray, shape: Sequence[int]) -> np.ndarray:
        """The inverse of `to_taps`."""
        order = self._order(len(shape))
        return values.reshape([shape[axis] for axis in order]).transpose(np.argsort(order))

    def _order(self, rank: int) -> list[int]:
        ends = [axis % rank for axis in (*self.inputs, *self.outputs)]
        return [axis for axis in range(rank) if axis not in ends] + ends


_KERNEL = (Kernel("kernel"),)
_TRANSPOSED = (Kernel("kernel", inputs=(-1,), outputs=(-2,)),)
_POINTWISE = (Kernel("pointwise_kernel"),)
_CELL = (Kernel("kernel"), Kernel("recurrent_kernel"))


def _attention(prefix: str) -> tuple[Kernel, ...]:
    heads = (Kernel(f"{prefix}{name}_dense.kernel", (0,), (1, 2)) for name in ("query", "key", "value"))
    return (*heads, Kernel(f"{prefix}output_dense.kernel", (0, 1), (2,)))


def _einsum(layer: Any) -> tuple[Kernel, ...]:
    read, kernel, made = re.split(",|->", layer.equation.replace(" ", ""))
    inputs = tuple(axis for axis, letter in enumerate(kernel) if letter not in made)
    return (
        Kernel("kernel", inputs, tuple(a for a, letter in enumerate(kernel) if letter in made and letter not in read)),
    )


_KERNELS: dict[type, tuple[Kernel, ...] | Callable[[Any], tuple[Kernel, ...]]] = {
    layers.Conv1D: _KERNEL,
    layers.Conv2D: _KERNEL,
    layers.Conv3D: _KERNEL,
    layers.Conv1DTranspose: _TRANSPOSED,
    layers.Conv2DTranspose: _TRANSPOSED,
    layers.Conv3DTranspose: _TRANSPOSED,
    layers.SeparableConv1D: _POINTWISE,
    layers.SeparableConv2D: _POINTWISE,
    layers.Dense: _KERNEL,
    layers.EinsumDense: _einsum,
    layers.Embedding: (Kernel("embeddings"),),
    layers.MultiHeadAttention: _attention("_"),
    layers.GroupQueryAttention: _attention("_"),
    layers.LSTMCell: _CELL,
    layers.GRUCell: _CELL,
    layers.SimpleRNNCell: _CELL,
    type(layers.ConvLSTM1D(1, 1).cell): _CELL,
    type(layers.ConvLSTM2D(1, 1).cell): _CELL,
    type(layers.ConvLSTM3D(1, 1).cell): _CELL,
}
# Layers that hold others: where those are.
_HOLDERS: dict[type, Callable[[Any], dict[str, Any]]] = {
    layers.RNN: lambda layer: {"cell": layer.cell},
    layers.StackedRNNCells: lambda layer: {f"cells.{index}": cell for index, cell in enumerate(layer.cells)},
    layers.Bidirectional: lambda layer: {"forward_layer": layer.forward_layer, "backward_layer": layer.backward_layer},
    layers.Wrapper: lambda layer: {"layer": layer.layer},
}


def register_prunable(*kernels: str | Kernel) -> Callable[[type], type]:
    """Says which weights of a layer of your own masks may zero.

    Args:
        kernels: names of the layer's attributes, dotted for inner layers, or `Kernel` where the last two axes are not
            (inputs, outputs).

    Raises:
        SparsityError: no name was given.

    Example:
        >>> @register_prunable("kernel")
        ... class Scale(keras.layers.Layer):
        ...     def build(self, shape):
        ...         self.kernel = self.add_weight(shape=(shape[-1], 4))
    """
    if not kernels:
        raise SparsityError("Name at least one attribute of the layer: @register_prunable('kernel').")

    def register(kind: type) -> type:
        _KERNELS[kind] = tuple(Kernel(kernel) if isinstance(kernel, str) else kernel for kernel in kernels)
        return kind

    return register


def kernels_of(layer: Any) -> tuple[Kernel, ...]:
    """The weights of a layer, built or not, that masks may zero; none for layers that are not known."""
    for kind in type(layer).__mro__:
        if kind in _KERNELS:
            known = _KERNELS[kind]
            return known(layer) if callable(known) else known
        if kind in _HOLDERS:
            return tuple(
                dataclasses.replace(kernel, path=f"{place}.{kernel.path}")
                for place, inner in _HOLDERS[kind](layer).items()
                for kernel in kernels_of(inner)
            )
    return ()


def prunable_weights(layer: Any) -> dict[str, Any]:
    """The variables of a built layer that masks may zero, by their path."""
    return {kernel.path: variable_at(layer, kernel.path) for kernel in kernels_of(layer)}


def variable_at(layer: Any, path: str) -> Any:
    """The variable at a dotted path of a built layer; whole numbers are places in a list.

    Raises:
        SparsityError: there is none.
    """
    found = layer
    for part in path.split("."):
        try:
            found = found[int(part)] if part.isdigit() else getattr(found, part, None)
        except (IndexError, TypeError):  # too short a list, or none
            found = None
    if not isinstance(found, keras.Variable):
        raise SparsityError(
            f"{type(layer).__name__} {layer.name!r} has no weight {path!r}. Build the layer first; if it is your own, "
            "check the names that @register_prunable got."
        )
    return found


def check_prunable(layer: Any) -> None:
    """Refuses a layer without weights to zero.

    Raises:
        SparsityError: with the known kinds and how to make others known.
    """
    if not kernels_of(layer):
        raise SparsityError(
            f"{type(layer).__name__} {layer.name!r} has no weights to prune. Known: {known_names(_known())}; others by "
            "@register_prunable."
        )


def _known() -> Iterator[str]:
    return (kind.__name__ for kind in _KERNELS if issubclass(kind, keras.Layer) and "Cell" not in kind.__name__)
