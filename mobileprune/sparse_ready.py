"""Rewrites a Keras network so that XNNPACK's sparse kernels can run it once its weights are sparse.

The conditions are those of `mobileprune.sparse_path`. Stock networks break some: strided convolutions are padded on
two sides only; heads that keep the pooled map's dimensions continue with 1x1 convolutions; hard sigmoids multiply by a
plain number; and grayscale images have one channel in place of three. All but the first are rewritten exactly. Padding
on all sides moves what a strided convolution sees by one pixel, which a short fine-tune heals; depthwise 3x3 ones can
be written exactly as 5x5 with taps of zero.
"""

import dataclasses
from typing import Any

import keras
import numpy as np

from mobileprune.errors import ModelError
from mobileprune.graph import functional_graph, inline_nested, is_channels_last, nodes, rebuild, same_layer
from mobileprune.json_record import Record
from mobileprune.records import Verification
from mobileprune.verify import Tolerance, compare, reference_outputs

layers = keras.layers
_STRIDED = (layers.Conv2D, layers.DepthwiseConv2D, layers.SeparableConv2D)
# What may stand between a pooled map and its end in a head: ops that treat each number, or each channel, alone.
_ELEMENTWISE = (layers.Activation, layers.ReLU, layers.LeakyReLU, layers.ELU, layers.Dropout, layers.BatchNormalization)
# Settings that a 1x1 convolution and a dense layer share.
_OF_BOTH = (
    *("name", "trainable", "dtype", "activation", "use_bias", "kernel_initializer", "bias_initializer"),
    *("kernel_regularizer", "bias_regularizer", "kernel_constraint", "bias_constraint"),
)
_EVERYTHING = Tolerance(snr_db=-np.inf, max_error=np.inf, agreement=0.0, correlation=-1.0)

Sides = tuple[int, int, int, int]
"""Top, bottom, left, right."""


@dataclasses.dataclass(frozen=True)
class Change(Record):
    """One rewrite.

    Attributes:
        layer: the layer's name.
        what: what became of it, one clause.
        exact: whether the model's outputs stay what they were.
    """

    layer: str
    what: str
    exact: bool


@dataclasses.dataclass(frozen=True)
class SparseReady:
    """A rewritten model, and what was rewritten; no changes if there was nothing to do."""

    model: Any
    changes: tuple[Change, ...]

    @property
    def exact(self) -> bool:
        """Whether the new model answers what the old one answers."""
        return all(change.exact for change in self.changes)


def sparse_ready(model: Any, *, exact: bool = False) -> SparseReady:
    """Rewrites a network to the conditions of XNNPACK's sparse kernels, as far as rewriting can.

    What can be in the way still is for `sparse_path` to say, on the converted result: an average pooling or
    concatenation in the middle, dilation, a convolution of 3x3 or more that is neither stem nor depthwise, or a map of
    odd size at a stride of 2, whose padding the converter always writes as "same". Sizes that are multiples of
    32 have none.

    Args:
        model: a built Sequential or functional model without sparsity wrappers; not changed. Nested models come out
            inlined.
        exact: writes depthwise 3x3 convolutions of stride 2 as 5x5, which changes nothing in what they compute and
            costs 2.8 times their MACs, in place of moving them by a pixel; and moves the image under the stem, which
            then misses its first row and column and nothing else. Only 5x5 ones still move by a pixel.

    Returns:
        A new, uncompiled model with the same weights, and the list of changes.

    Raises:
        ModelError: no graph to follow, or a layer that cannot be made anew from its `get_config()`.

    Example:
        >>> ready = sparse_ready(keras.applications.MobileNetV2(weights=None))  # doctest: +SKIP
        >>> sparse_path(to_float_flatbuffer(ready.model)).reachable  # doctest: +SKIP
        34
    """
    flat = inline_nested(model)
    graph = functional_graph(flat)
    work = _Rewriter(graph, exact)
    made = rebuild(graph, work.layer, work.call, lambda tensor: tensor.shape)
    work.transfer()
    if not model.trainable:
        made.trainable = False
    made.name = model.name
    return SparseReady(made, tuple(work.changes))


def measure_rewrite(model: Any, ready: SparseReady, images: np.ndarray) -> Verification:
    """What a rewrite has cost: how the new model's outputs compare with the old one's.

    Args:
        model: the model before.
        ready: what `sparse_ready` made of it.
        images: float32 (N, H, W, C) as the model takes them, two or more.

    Returns:
        Agreement of the top-1 classes, largest and mean error, and the signal-to-noise ratio; nothing counts as
        failed.

    Raises:
        VerificationError: the model answers NaN, or the same for every image.
    """
    expected, actual = reference_outputs(model, images), reference_outputs(ready.model, images)
    return compare(expected, actual, _EVERYTHING, name="the rewritten model", runtime=f"Keras {keras.__version__}")


@dataclasses.dataclass(frozen=True)
class _Padding:
    """How the padding of one strided convolution becomes symmetric."""

    sides: int
    wide: bool  # 3x3 taps in the place of 5x5
    skip: Any  # the ZeroPadding2D call that is taken in, if any
    before: Sides
    moved: tuple[int, int] | None = None  # rows and columns that the image is moved up and left by, to meet the taps

    @property
    def exact(self) -> bool:
        return self.wide or self.before[0] == self.before[2] == self.sides


class _Rewriter:
    """Decides for every call what it becomes, and makes it."""

    def __init__(self, graph: Any, exact: bool) -> None:
        self.changes: list[Change] = []
        self._wide = exact
        self._made: dict[int, Any] = {}
        self._pairs: list[tuple[Any, Any]] = []
        self._readers: dict[int, list[Any]] = {}
        self._calls: dict[int, int] = {}
        self._source: dict[int, Any] = {}
        self._outputs = {id(tensor) for tensor in keras.tree.flatten(graph.output)}
        order = list(nodes(graph))
        for node in order:
            self._calls[id(node.operation)] = self._calls.get(id(node.operation), 0) + 1
            for tensor in node.input_tensors:
                self._readers.setdefault(id(tensor), []).append(node)
            for tensor in node.output_tensors:
                self._source[id(tensor)] = node
        self._paddings = {id(node): found for node in order if (found := self._padding(node))}
        taken_in = (found.skip for found in self._paddings.values())
        self._skipped = {id(node) for node in taken_in if node is not None}
        self._tripled = {id(node) for node in order if self._reads_gray(node)}
        self._heads: set[int] = set()
        for node in order:
            if self._keeps_dimensions(node) and (head := self._head(node)):
                self._heads |= {id(each) for each in [node, *head]}

    def layer(self, old: Any) -> Any:
        """A fresh layer of the same configuration; the same whenever a shared layer is met again."""
        if id(old) not in self._made:
            made = old if isinstance(old, layers.Lambda) else self._fresh(old)
            self._made[id(old)] = made
            self._pairs.append((old, made))
        return self._made[id(old)]

    def call(self, node: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        operation = node.operation
        if id(node) in self._skipped:
            return args[0]
        if id(node) in self._heads:
            return self._call_in_head(node, args, kwargs)
        if not isinstance(operation, keras.Layer):
            return operation(*self._with_ranks(node, args), **kwargs)
        x = args[0] if args else None
        changed: dict[str, Any] = {}
        if id(node) in self._tripled:
            x = layers.Concatenate(name=f"{operation.name}_gray_to_rgb")([x, x, x])
            self._note(operation, "reads the grayscale image three times, as an RGB image", True)
        if id(node) in self._paddings:
            padding = self._paddings[id(node)]
            name = padding.skip.operation.name if padding.skip else f"{operation.name}_pad"
            if padding.moved:
                # In this order: paddings in a row would become one, and padding all of an odd size would become "same".
                down, right = padding.moved
                x = layers.ZeroPadding2D(((0, down), (0, right)), name=f"{operation.name}_move_pad")(x)
                x = layers.Cropping2D(((down, 0), (right, 0)), name=f"{operation.name}_move")(x)
            x = layers.ZeroPadding2D(padding.sides, name=name)(x)
            changed["padding"] = "valid"
            what = f"padded by {padding.sides} on every side, was (top, bottom, left, right) {padding.before}"
            if padding.moved:
                what = f"without the first row and column of the image, {what}"
            same = padding.before == (padding.sides,) * 4
            if padding.wide:
                changed["kernel_size"] = (5, 5)
                what = f"5x5 with taps of zero, {what}"
            if not same:
                self._note(operation, what, padding.exact)
        if not changed and id(node) not in self._tripled:
            return self.layer(operation)(*args, **kwargs)
        made = self._fresh(operation, changed)
        self._pairs.append((operation, made))
        return made(x)

    def _with_ranks(self, node: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """A factor of a map of one pixel, as in hard sigmoids, as a constant of rank 4: XNNPACK asks for that."""
        shape = node.output_tensors[0].shape
        if type(node.operation).__name__ != "Multiply" or len(shape) != 4 or shape[1:3] != (1, 1):
            return args
        one = (1, 1, 1, 1)
        given = tuple(np.full(one, each, "float32") if isinstance(each, int | float) else each for each in args)
        if any(old is not new for old, new in zip(args, given, strict=True)):
            self._note(node.operation, "multiplies by a constant of rank 4, was a plain number", True)
        return given

    def transfer(self) -> None:
        """Copies the weights; where a kernel has a new form, into it."""
        paddings = {id(node.operation): self._paddings[id(node)] for node in self._nodes_of(self._paddings)}
        for old, new in self._pairs:
            if old is new:
                continue
            for source, destination in zip(old.weights, new.weights, strict=True):
                values = np.asarray(source)
                if values.shape != tuple(destination.shape):
                    values = _reshaped(values, tuple(destination.shape), paddings.get(id(old)))
                destination.assign(values)
            if isinstance(new, layers.Normalization):
                new.finalize_state()  # it computes with copies of its statistics

    def _nodes_of(self, chosen: dict[int, Any]) -> list[Any]:
        return [node for readers in self._readers.values() for node in readers if id(node) in chosen]

    def _note(self, layer: Any, what: str, exact: bool) -> None:
        self.changes.append(Change(layer.name, what, exact))

    def _fresh(self, old: Any, changed: dict[str, Any] | None = None) -> Any:
        try:
            return type(old).from_config({**old.get_config(), **changed}) if changed else same_layer(old)
        except (TypeError, ValueError) as error:
            raise ModelError(
                f"{type(old).__name__} {old.name!r} cannot be made anew from its get_config(): {error}"
            ) from error

    def _padding(self, node: Any) -> _Padding | None:
        """What makes a strided convolution's padding symmetric; None if it is, or cannot be made so."""
        layer = node.operation
        if type(layer) not in _STRIDED or self._calls[id(layer)] != 1 or not is_channels_last(layer):
            return None
        size = layer.kernel_size[0]
        if layer.strides != (2, 2) or layer.kernel_size not in ((3, 3), (5, 5)) or layer.dilation_rate != (1, 1):
            return None
        tensor = node.input_tensors[0]
        skip, before = None, _same_padding(tensor.shape, size)
        if layer.padding == "valid":
            skip = self._source.get(id(tensor))
            if skip is None or type(skip.operation) is not layers.ZeroPadding2D or not self._only_read_by(tensor, node):
                return None
            (top, bottom), (left, right) = skip.operation.padding
            tensor, before = skip.input_tensors[0], (top, bottom, left, right)
        # Where it is symmetric, the converter writes it as "same" whatever the layers say.
        if before is None or (before == (size // 2,) * 4 and not _is_gray_stem(node)):
            return None
        if not _as_large(tensor.shape, size, before):
            return None
        # The taps of 3x3 fit into 5x5 wherever these began up to two pixels before.
        shifts = before[0] != size // 2 or before[2] != size // 2
        wide = self._wide and shifts and type(layer) is layers.DepthwiseConv2D and size == 3 and max(before) <= 2
        moved = (1 - before[0], 1 - before[2])
        stem = self._wide and shifts and type(layer) is layers.Conv2D and size == 3 and min(moved) >= 0
        return _Padding(2 if wide else size // 2, wide, skip, before, moved if stem else None)

    def _only_read_by(self, tensor: Any, node: Any) -> bool:
        return id(tensor) not in self._outputs and self._readers.get(id(tensor)) == [node]

    def _reads_gray(self, node: Any) -> bool:
        """Whether a call is the stem of a grayscale network and will meet the other conditions."""
        return _is_gray_stem(node) and id(node) in self._paddings

    def _keeps_dimensions(self, node: Any) -> bool:
        layer = node.operation
        return type(layer) is layers.GlobalAveragePooling2D and layer.keepdims and is_channels_last(layer)

    def _head(self, start: Any) -> list[Any]:
        """The calls from a pooled map of one pixel to where it is flattened; none if it goes elsewhere."""
        found: list[Any] = []
        waiting = list(start.output_tensors)
        while waiting:
            tensor = waiting.pop()
            readers = self._readers.get(id(tensor), [])
            if id(tensor) in self._outputs or not readers:
                return []
            for node in readers:
                layer = node.operation
                if self._calls.get(id(layer)) != 1 or len(node.input_tensors) != 1:
                    return []
                found.append(node)
                if _flattens(node):
                    continue
                if not (_is_pointwise(layer) or _is_elementwise(layer)):
                    return []
                waiting += node.output_tensors
        return found if any(_is_pointwise(node.operation) for node in found) else []

    def _call_in_head(self, node: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        layer = node.operation
        if self._keeps_dimensions(node):
            made = self._fresh(layer, {"keepdims": False})
            self._note(layer, "pools to a vector", True)
            return made(args[0])
        if _flattens(node):
            return args[0]
        if not _is_pointwise(layer):
            return self.layer(layer)(*args, **kwargs)
        config = layer.get_config()
        made = layers.Dense.from_config({"units": layer.filters, **{name: config[name] for name in _OF_BOTH}})
        self._pairs.append((layer, made))
        self._note(layer, "a dense layer, was a 1x1 convolution of one pixel", True)
        return made(args[0])


def _same_padding(shape: Any, size: int) -> Sides | None:
    """What TensorFlow's "same" adds at stride 2 to a map (N, H, W, C); None where the sizes are open."""
    if None in shape[1:3]:
        return None
    totals = [max((-(-length // 2) - 1) * 2 + size - length, 0) for length in shape[1:3]]
    (top, bottom), (left, right) = ((total // 2, total - total // 2) for total in totals)
    return top, bottom, left, right


def _as_large(shape: Any, size: int, before: Sides) -> bool:
    """Whether padding on all sides gives an output as large as the padding before."""
    if None in shape[1:3]:
        return False
    return all(
        (length + before[2 * axis] + before[2 * axis + 1] - size) // 2 == (length + size // 2 * 2 - size) // 2
        for axis, length in enumerate(shape[1:3])
    )


def _is_gray_stem(node: Any) -> bool:
    layer = node.operation
    return type(layer) is layers.Conv2D and layer.kernel_size == (3, 3) and node.input_tensors[0].shape[-1] == 1


def _is_pointwise(layer: Any) -> bool:
    single = type(layer) is layers.Conv2D and layer.kernel_size == (1, 1)
    return bool(single and layer.groups == 1 and is_channels_last(layer))


def _is_elementwise(layer: Any) -> bool:
    if isinstance(layer, layers.Softmax):
        return bool(layer.axis == -1)
    if isinstance(layer, layers.BatchNormalization):
        return layer.axis in (-1, 3)
    return isinstance(layer, _ELEMENTWISE)


def _flattens(node: Any) -> bool:
    """Whether a call makes a vector of a map of one pixel."""
    kind = type(node.operation)
    return kind in (layers.Flatten, layers.Reshape) and len(node.output_tensors[0].shape) == 2


def _reshaped(values: np.ndarray, shape: tuple[int, ...], padding: _Padding | None) -> np.ndarray:
    """A kernel in its new form: with more taps, more input channels, or as a matrix."""
    made = np.zeros(shape, values.dtype)
    if len(shape) == 2:
        return values.reshape(shape)
    if padding is not None and padding.wide:
        top, left = 2 - padding.before[0], 2 - padding.before[2]
        made[top : top + 3, left : left + 3] = values
    else:
        made[:, :, : values.shape[2]] = values
    return made
