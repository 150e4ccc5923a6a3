"""Float flatbuffer in, the same flatbuffer with its sparse weights stored sparsely out.

Of a weight that is mostly zeros, the file keeps the values that are not, with their places: every axis but the last
stays dense, and along the last one each row lists its columns (compressed sparse rows). A DENSIFY op in front of each
such weight says that readers shall unpack it. XNNPACK unpacks it once, when the file is loaded; and finding it, tries
its sparse kernels (see `mobileprune.sparse_path`), as in Elsen et al., "Fast Sparse ConvNets", CVPR 2020.

The file is rewritten through its schema. TensorFlow's converter has a private function for this (`mlir_sparsify`), not
used here: it stores whatever has 30% zeros sparsely, whether that is smaller or not; dense layers with zeros in blocks
get a form that XNNPACK refuses; and of float16 files by litert-quantizer it makes ones that answer NaN.
"""

import copy
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from mobileprune.errors import ConversionError, ModelError
from mobileprune.tflite_extras import attached_files
from mobileprune.tflite_graph import DAMAGE, GraphTensor, read_graph
from mobileprune.tflite_rewrite import add_buffer, packed, storage_op, unpacked

FLOAT_WEIGHTS: dict[str, np.dtype[Any]] = {"FLOAT32": np.dtype(np.float32), "FLOAT16": np.dtype(np.float16)}
# What a second tensor, its buffer, its dimensions and the op take in the file, measured: smaller savings are none.
OVERHEAD_BYTES = 400


def encode_sparse(content: bytes) -> bytes:
    """Stores the weights of a float file sparsely, each one that takes less room so.

    In float32 that is from 20 to 35% zeros on, in float16 from 35 to 50%: the place of a value takes a byte in rows of
    up to 256 values, and two in longer ones. Outputs are the same to the last bit wherever the dense kernels run.

    Args:
        content: a `.tflite` with float32 or float16 weights, as of the recipes `float32` and `float16`.

    Returns:
        The smaller file.

    Raises:
        ConversionError: the weights are integers; some are stored sparsely already; or there are too few zeros for any
            weight to become smaller. The message has the share of zeros.
        ModelError: not a `.tflite`, or a damaged one.

    Example:
        >>> len(content), len(encode_sparse(content))  # doctest: +SKIP
        (13218352, 2551880)
    """
    graph = read_graph(content)
    weights = graph.weights()
    for tensor in weights:
        if tensor.dtype not in FLOAT_WEIGHTS:
            raise ConversionError(
                f"Weight {tensor.name!r} is {tensor.dtype}; only float32 and float16 files can store weights sparsely. "
                "Give the file of recipe 'float32' or 'float16'."
            )
        if tensor.sparse:
            raise ConversionError(f"Weight {tensor.name!r} is stored sparsely already. Give the dense file.")
    ends = {tensor.index for tensor in graph.inputs + graph.outputs}
    chosen = {tensor.index: rows for tensor in weights if tensor.index not in ends and (rows := _smaller(tensor))}
    if not chosen:
        raise ConversionError(
            f"{graph.zero_fraction():.0%} of the weights are zero, and none of the {len(weights)} weights takes less "
            "room when stored sparsely: float32 needs more than 20 to 35% zeros in it, float16 more than 35 to 50%. "
            "Make the model sparse first (prune_low_magnitude), or use the dense recipe."
        )
    try:
        return _rewritten(content, chosen)
    except DAMAGE as error:  # `read_graph` does not look at every field, and here all are copied
        raise ModelError(
            f"The .tflite is damaged: {type(error).__name__}: {error}. Convert the model again."
        ) from error


class _Rows:
    """A weight as compressed sparse rows along its last axis."""

    def __init__(self, values: np.ndarray) -> None:
        flat = values.reshape(-1, values.shape[-1])
        kept = flat != 0
        self.shape = values.shape
        self.values = flat[kept]
        self.columns = np.nonzero(kept)[1].astype(_index_type(values.shape[-1] - 1))
        ends = np.concatenate([[0], np.cumsum(kept.sum(axis=1))])
        self.ends = ends.astype(_index_type(int(ends[-1])))

    @property
    def nbytes(self) -> int:
        return int(self.values.nbytes + self.columns.nbytes + self.ends.nbytes)


def _smaller(tensor: GraphTensor) -> _Rows | None:
    """The weight as rows where that saves room."""
    if tensor.data is None or len(tensor.shape) not in (2, 4) or not tensor.size:
        return None
    rows = _Rows(np.frombuffer(tensor.data, FLOAT_WEIGHTS[tensor.dtype]).reshape(tensor.shape))
    # A weight of zeros only would have no values, and an empty buffer means "computed".
    return rows if len(rows.values) and rows.nbytes + OVERHEAD_BYTES < len(tensor.data) else None


def _index_type(largest: int) -> np.dtype[Any]:
    return np.dtype(np.uint8 if largest < 1 << 8 else np.uint16 if largest < 1 << 16 else np.int32)


def _rewritten(content: bytes, chosen: dict[int, _Rows]) -> bytes:
    model = unpacked(content)
    graph = model.subgraphs[0]
    for index, rows in chosen.items():
        stored = graph.tensors[index]
        dense = copy.copy(stored)
        dense.name = bytes(stored.name or b"") + b"/densify"
        dense.buffer = 0  # by convention the empty one: computed
        graph.tensors.append(dense)
        for op in graph.operators:
            if index in op.inputs:
                op.inputs = [len(graph.tensors) - 1 if each == index else int(each) for each in op.inputs]
        first = next(place for place, op in enumerate(graph.operators) if len(graph.tensors) - 1 in op.inputs)
        graph.operators.insert(first, storage_op(model, "Densify", index, len(graph.tensors) - 1))
        stored.sparsity = _sparsity(rows)
        stored.buffer = add_buffer(model, rows.values)
    return packed(model, attached_files(content))


def _sparsity(rows: _Rows) -> Any:
    sparsity = schema.SparsityParametersT()
    sparsity.traversalOrder = list(range(len(rows.shape)))
    sparsity.dimMetadata = []
    for size in rows.shape[:-1]:
        dimension = schema.DimensionMetadataT()
        dimension.format, dimension.denseSize = schema.DimensionType.DENSE, size
        sparsity.dimMetadata.append(dimension)
    last = schema.DimensionMetadataT()
    last.format = schema.DimensionType.SPARSE_CSR
    last.arraySegmentsType, last.arraySegments = _index_vector(rows.ends)
    last.arrayIndicesType, last.arrayIndices = _index_vector(rows.columns)
    sparsity.dimMetadata.append(last)
    return sparsity


def _index_vector(values: np.ndarray) -> tuple[int, Any]:
    kinds = schema.SparseIndexVector
    kind, vector = {
        np.dtype(np.uint8): (kinds.Uint8Vector, schema.Uint8VectorT),
        np.dtype(np.uint16): (kinds.Uint16Vector, schema.Uint16VectorT),
        np.dtype(np.int32): (kinds.Int32Vector, schema.Int32VectorT),
    }[values.dtype]
    made = vector()
    made.values = values
    return kind, made
