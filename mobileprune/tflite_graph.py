"""Reads a `.tflite`: its ops, its tensors, how many of its weights are zero. Runs nothing and needs no Keras."""

import collections
import dataclasses
import functools
import math
import struct
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from mobileprune.errors import ModelError

OP_NAMES = {code: name for name, code in vars(schema.BuiltinOperator).items() if isinstance(code, int)}
"""Op code → the built-in op's name in the schema."""
TYPE_NAMES = {code: name for name, code in vars(schema.TensorType).items() if isinstance(code, int)}
"""Type of a tensor, as stored → its name in the schema."""

FLOATS = ("FLOAT32", "FLOAT16", "BFLOAT16", "FLOAT64")
INTEGERS = ("INT8", "UINT8", "INT16", "INT4", "INT2", "UINT4")
# Ops whose second input is a kernel.
KERNEL_OPS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV", "CONV_3D", "BATCH_MATMUL")
# Ops that only change how a tensor is stored.
STORAGE_OPS = ("QUANTIZE", "DEQUANTIZE", "DENSIFY")
BITS = {"INT2": 2, "INT4": 4, "UINT4": 4, "FLOAT8_E4M3FN": 8, "FLOAT8_E5M2": 8}
# What damaged flatbuffers make the generated schema raise, measured on mutated files.
DAMAGE = (struct.error, ValueError, TypeError, IndexError, KeyError, AttributeError, OverflowError, UnicodeDecodeError)


@dataclasses.dataclass(frozen=True)
class GraphTensor:
    """One tensor of a `.tflite`.

    Attributes:
        index: its place in the file.
        name: as the converter wrote it.
        dtype: the schema's name, `"FLOAT32"`, `"INT8"`, ….
        shape: sizes; a batch that may vary is -1.
        scales: one a channel or one in all; empty where the tensor is not quantized.
        zero_points: as many as scales, or none.
        axis: which dimension the scales belong to.
        data: the stored bytes of a constant; None for what is computed.
        sparse: whether `data` holds the non-zero values only.
    """

    index: int
    name: str
    dtype: str
    shape: tuple[int, ...]
    scales: tuple[float, ...] = ()
    zero_points: tuple[int, ...] = ()
    axis: int = 0
    data: bytes | None = dataclasses.field(default=None, repr=False)
    sparse: bool = False

    @property
    def constant(self) -> bool:
        return self.data is not None

    @property
    def quantized(self) -> bool:
        return bool(self.scales)

    @property
    def size(self) -> int:
        """How many values the shape says."""
        return math.prod(self.shape)

    def nonzeros(self) -> int:
        """How many values of a constant differ from zero (from the zero point, where it is quantized)."""
        values = _values(self)
        zero: np.ndarray | int = 0
        if len(self.zero_points) == 1:
            zero = self.zero_points[0]
        elif self.zero_points and not self.sparse and values.size == self.size:
            shape = [1] * len(self.shape)
            shape[self.axis] = -1
            values, zero = values.reshape(self.shape), np.reshape(self.zero_points, shape)
        return int(np.count_nonzero(values != zero))


@dataclasses.dataclass(frozen=True)
class GraphOp:
    """One op: its name in the schema (or a custom op's own) and the indices of its tensors; -1 is an absent input."""

    index: int
    name: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class TfliteGraph:
    """The main subgraph of a `.tflite`."""

    tensors: tuple[GraphTensor, ...] = dataclasses.field(repr=False)
    ops: tuple[GraphOp, ...] = dataclasses.field(repr=False)
    inputs: tuple[GraphTensor, ...]
    outputs: tuple[GraphTensor, ...]
    signatures: dict[str, dict[str, int]] = dataclasses.field(default_factory=dict)
    """Signature name → input name → tensor index."""

    def histogram(self) -> dict[str, int]:
        """How often each op occurs, the most frequent first."""
        return dict(collections.Counter(op.name for op in self.ops).most_common())

    def weights(self) -> tuple[GraphTensor, ...]:
        """The kernels of convolutions and dense layers, each once, found through DEQUANTIZE and DENSIFY, too."""
        found: dict[int, GraphTensor] = {}
        for op in self.ops:
            if op.name in KERNEL_OPS and len(op.inputs) > 1 and op.inputs[1] >= 0:
                tensor = self._stored(op.inputs[1])
                if tensor.constant:
                    found[tensor.index] = tensor
        return tuple(found.values())

    def zero_fraction(self) -> float:
        """The share of the weights that are exactly zero, 0 to 1; biases do not count. 0.0 without weights."""
        weights = self.weights()
        total = sum(tensor.size for tensor in weights)
        return 1 - sum(tensor.nonzeros() for tensor in weights) / total if total else 0.0

    def float_ops(self) -> tuple[GraphOp, ...]:
        """The ops that compute in floating point.

        Not among them: ops that only change the storage (QUANTIZE, DEQUANTIZE, DENSIFY), and kernels with float
        activations and integer weights, which the runtime computes in integers (dynamic range).
        """
        return tuple(op for op in self.ops if self._computes_in_float(op))

    def _computes_in_float(self, op: GraphOp) -> bool:
        if op.name in STORAGE_OPS or not any(self.tensors[index].dtype in FLOATS for index in op.outputs):
            return False
        kernel = op.inputs[1] if op.name in KERNEL_OPS and len(op.inputs) > 1 else -1
        return kernel < 0 or self.tensors[kernel].dtype not in INTEGERS

    def _stored(self, index: int) -> GraphTensor:
        for _ in range(len(self.ops)):  # bounded: a damaged file may hold a cycle
            producer = self._producers.get(index)
            if producer is None or producer.name not in STORAGE_OPS or not producer.inputs or producer.inputs[0] < 0:
                break
            index = producer.inputs[0]
        return self.tensors[index]

    @functools.cached_property
    def _producers(self) -> dict[int, GraphOp]:
        return {index: op for op in self.ops for index in op.outputs}


def read_graph(content: bytes) -> TfliteGraph:
    """Reads the main subgraph of a `.tflite`.

    Every index is checked, and that constants have the bytes that their shape needs, so that nothing that uses the
    result needs to.

    Raises:
        ModelError: `content` is not a `.tflite`, or a damaged one.

    Example:
        >>> graph = read_graph(variant.content)  # doctest: +SKIP
        >>> graph.histogram()  # doctest: +SKIP
        {'CONV_2D': 7, 'DEPTHWISE_CONV_2D': 3, 'ADD': 3, 'MEAN': 1, 'FULLY_CONNECTED': 1}
    """
    if len(content) < 8 or content[4:8] != b"TFL3":
        raise ModelError(
            f"These {len(content)} bytes are not a .tflite: bytes 4 to 8 are {content[4:8]!r} in place of b'TFL3'."
        )
    try:
        return _read(content)
    except DAMAGE as error:
        raise ModelError(
            f"The .tflite is damaged: {type(error).__name__}: {error}. Convert the model again."
        ) from error


def _read(content: bytes) -> TfliteGraph:
    model = schema.Model.GetRootAs(content, 0)
    codes = [_op_name(code) for code in _items(content, model.OperatorCodesLength, model.OperatorCodes)]
    if not model.SubgraphsLength():
        raise ValueError("it holds no graph")
    graph = model.Subgraphs(0)
    tensors = tuple(
        _tensor(index, tensor, model, content)
        for index, tensor in enumerate(_items(content, graph.TensorsLength, graph.Tensors))
    )
    ops = []
    for index, op in enumerate(_items(content, graph.OperatorsLength, graph.Operators)):
        inputs = _indices(op.InputsAsNumpy(), op.InputsLength(), len(tensors), lowest=-1)
        outputs = _indices(op.OutputsAsNumpy(), op.OutputsLength(), len(tensors))
        ops.append(GraphOp(index, codes[_checked(op.OpcodeIndex(), len(codes), "op code")], inputs, outputs))
    inputs = _indices(graph.InputsAsNumpy(), graph.InputsLength(), len(tensors))
    outputs = _indices(graph.OutputsAsNumpy(), graph.OutputsLength(), len(tensors))
    return TfliteGraph(
        tensors=tensors,
        ops=tuple(ops),
        inputs=tuple(tensors[index] for index in inputs),
        outputs=tuple(tensors[index] for index in outputs),
        signatures=_signatures(model, content, len(tensors)),
    )


def _signatures(model: Any, content: bytes, tensors: int) -> dict[str, dict[str, int]]:
    return {
        _text(signature.SignatureKey()): {
            _text(entry.Name()): _checked(entry.TensorIndex(), tensors, "tensor")
            for entry in _items(content, signature.InputsLength, signature.Inputs)
        }
        for signature in _items(content, model.SignatureDefsLength, model.SignatureDefs)
        if signature.SubgraphIndex() == 0
    }


def _tensor(index: int, tensor: Any, model: Any, content: bytes) -> GraphTensor:
    quantization = tensor.Quantization()
    scales: tuple[float, ...] = ()
    zero_points: tuple[int, ...] = ()
    axis = 0
    if quantization is not None and quantization.ScaleLength():
        scales = tuple(float(scale) for scale in quantization.ScaleAsNumpy())
        if quantization.ZeroPointLength():
            zero_points = tuple(int(point) for point in quantization.ZeroPointAsNumpy())
        axis = quantization.QuantizedDimension()
    shape = _shape(tensor.ShapeSignatureAsNumpy(), tensor.ShapeSignatureLength()) or _shape(
        tensor.ShapeAsNumpy(), tensor.ShapeLength()
    )
    data = _data(model.Buffers(_checked(tensor.Buffer(), model.BuffersLength(), "buffer")), content)
    read = GraphTensor(
        index=index,
        name=_text(tensor.Name()),
        dtype=TYPE_NAMES[tensor.Type()],
        shape=shape,
        scales=scales,
        zero_points=zero_points,
        axis=axis,
        data=data,
        sparse=tensor.Sparsity() is not None,
    )
    if len(scales) > 1 and (not 0 <= axis < len(shape) or shape[axis] != len(scales)):
        raise ValueError(f"tensor {index} of shape {shape} has {len(scales)} scales on axis {axis}")
    if zero_points and len(zero_points) != len(scales):
        raise ValueError(f"tensor {index} has {len(scales)} scales and {len(zero_points)} zero points")
    if data is not None and read.dtype != "STRING":
        bits = BITS.get(read.dtype) or _dtype(read.dtype).itemsize * 8
        dense = (read.size * bits + 7) // 8
        fits = 8 * len(data) % bits == 0 and len(data) <= dense if read.sparse else len(data) == dense
        if min(shape, default=1) < 0 or not fits:
            raise ValueError(f"tensor {index}, {read.dtype} of shape {shape}, has {len(data)} bytes of data")
    return read


def _data(buffer: Any, content: bytes) -> bytes | None:
    if buffer.Offset() > 1:  # files above 2 GB keep their data behind the flatbuffer
        begin, size = buffer.Offset(), buffer.Size()
        if begin + size > len(content):
            raise ValueError(f"a buffer ends at byte {begin + size} of {len(content)}")
        return content[begin : begin + size]
    if not buffer.DataLength():
        return None
    return bytes(buffer.DataAsNumpy().tobytes())


def _values(tensor: GraphTensor) -> np.ndarray:
    if tensor.data is None:
        raise ModelError(f"{tensor.name!r} is computed, not stored: it has no values to read.")
    if tensor.dtype in ("INT4", "UINT4"):
        packed = np.frombuffer(tensor.data, np.uint8)
        values = np.stack([packed & 15, packed >> 4], axis=-1).reshape(-1)[: tensor.size]
        return np.where(values > 7, values.astype(np.int8) - 16, values) if tensor.dtype == "INT4" else values
    if tensor.dtype in BITS or tensor.dtype == "STRING":
        raise ModelError(f"{tensor.name!r} holds {tensor.dtype}, whose values cannot be read here.")
    if tensor.dtype == "BFLOAT16":  # NumPy has no such type; zero is 0x0000 or 0x8000
        return np.frombuffer(tensor.data, np.uint16) & 0x7FFF
    return np.frombuffer(tensor.data, _dtype(tensor.dtype))


def _dtype(name: str) -> np.dtype[Any]:
    return np.dtype("uint16" if name == "BFLOAT16" else name.lower())


def _items(content: bytes, length: Callable[[], int], item: Callable[[int], Any]) -> Iterator[Any]:
    count = length()
    if count > len(content) // 4:  # each takes an offset of 4 bytes: more is damage, and not worth counting to
        raise ValueError(f"a list of {count} entries in a file of {len(content)} bytes")
    return (item(index) for index in range(count))


def _indices(values: Any, length: int, limit: int, lowest: int = 0) -> tuple[int, ...]:
    return tuple(_checked(int(value), limit, "tensor", lowest) for value in values) if length else ()


def _shape(values: Any, length: int) -> tuple[int, ...]:
    return tuple(int(value) for value in values) if length else ()


def _checked(index: int, limit: int, kind: str, lowest: int = 0) -> int:
    if not lowest <= index < limit:
        raise ValueError(f"{kind} {index} of {limit}")
    return index


def _text(value: bytes | None) -> str:
    text = (value or b"").decode()
    # Names end up on terminals, and a file may name a tensor what moves a cursor or ends a line.
    return text if text.isprintable() else "".join(each if each.isprintable() else "\ufffd" for each in text)


def _op_name(code: Any) -> str:
    # Codes up to 127 stand in a byte of their own, for old readers.
    name = OP_NAMES[max(code.BuiltinCode(), code.DeprecatedBuiltinCode())]
    return _text(code.CustomCode()) if name == "CUSTOM" else name
