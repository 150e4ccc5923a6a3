"""The oldest runtime that can run a `.tflite`, worked out from its ops, their types and options; and files that say so.

The quantizer that the recipes use leaves every op at version 1 and the file's own claim at 1.6.0, whatever it needs:
an old runtime then loads what it cannot compute. With the right numbers it refuses with a clear message.
"""

from typing import Any

from mobileprune.op_calls import Call, calls
from mobileprune.op_versions import needed_version
from mobileprune.tflite_extras import attached_files
from mobileprune.tflite_graph import read_graph
from mobileprune.tflite_rewrite import packed, set_metadata, unpacked

ENTRY = "min_runtime_version"
# Readers expect this many bytes, filled up with zeros.
ENTRY_BYTES = 16
OLDEST = "1.5.0"
# Float activations with int4 weights in convolutions: no op version tells them from float weights, and TensorFlow Lite
# 2.16.1, whose kernels load such a file, answers NaN or noise. This is the release after it, itself not tried.
INT4_WITH_FLOAT = "2.17.0"
# The first runtime with version 1, 2, 3, … of each op, from TensorFlow Lite's `tools/versioning/runtime_version.cc` (as
# of LiteRT 2.3). Up to 2.21 these are versions of TensorFlow; what is later exists in LiteRT only, which goes on
# counting in that file.
RUNTIMES = {
    "ABS": "1.13.0 2.4.0 2.5.0 2.6.0 2.12.0",
    "ADD": "1.5.0 1.14.0 2.4.0 2.6.0 2.13.0 2.23.0",
    "ARG_MAX": "1.9.0 1.14.0 2.9.0",
    "AVERAGE_POOL_2D": "1.5.0 1.14.0 2.3.0",
    "BATCH_MATMUL": "2.3.0 2.3.0 2.4.0 2.5.0",
    "BATCH_TO_SPACE_ND": "1.6.0 1.14.0 2.3.0 2.12.0",
    "BROADCAST_TO": "2.5.0 2.5.0 2.5.0",
    "CAST": "1.5.0 2.7.0 2.8.0 2.9.0 2.12.0 2.15.0 2.17.0 2.21.0",
    "CEIL": "1.14.0",
    "CONCATENATION": "1.5.0 1.14.0 2.3.0 2.14.0 2.21.0 2.23.0",
    "CONV_2D": "1.5.0 1.14.0 1.14.0 2.3.0 2.4.0 2.9.0 2.11.0 2.15.0",
    "CONV_3D": "2.5.0",
    "COS": "1.14.0 2.23.0",
    "CUMSUM": "2.4.0",
    "DENSIFY": "2.2.0",
    "DEPTHWISE_CONV_2D": "1.5.0 1.12.0 1.14.0 2.2.0 2.3.0 2.3.0 2.11.0",
    "DEPTH_TO_SPACE": "2.1.0 2.5.0",
    "DEQUANTIZE": "1.13.1 1.14.0 1.15.0 2.2.0 2.7.0 2.18.0 2.21.0 2.22.0",
    "DIV": "1.6.0 2.3.0",
    "ELU": "1.14.0",
    "EQUAL": "1.14.0 1.14.0 2.3.0 2.13.0 2.21.0",
    "EXP": "1.7.0 2.12.0",
    "EXPAND_DIMS": "1.10.0",
    "FLOOR": "1.9.0",
    "FULLY_CONNECTED": "1.5.0 1.10.0 1.14.0 1.14.0 2.0.0 2.1.0 2.3.0 2.3.0 2.3.0 2.11.0 2.15.0 2.17.0 2.18.0 2.21.0",
    "GATHER": "1.6.0 1.14.0 1.15.0 2.4.0 2.5.0 2.13.0 2.15.0",
    "GELU": "2.9.0 2.9.0",
    "GREATER": "1.14.0 1.14.0",
    "GREATER_EQUAL": "1.14.0 1.14.0 2.13.0",
    "HARD_SWISH": "1.15.0",
    "L2_NORMALIZATION": "1.5.0 1.14.0",
    "LEAKY_RELU": "1.13.1 2.3.0",
    "LESS": "1.14.0 1.14.0 2.13.0",
    "LESS_EQUAL": "1.14.0 1.14.0",
    "LOG": "1.14.0 2.15.0",
    "LOGICAL_AND": "1.11.0",
    "LOGICAL_NOT": "1.11.0",
    "LOGICAL_OR": "1.11.0",
    "LOGISTIC": "1.14.0 1.14.0 2.3.0",
    "LOG_SOFTMAX": "1.14.0 1.14.0",
    "MAXIMUM": "1.14.0 1.14.0 2.3.0 2.3.0",
    "MAX_POOL_2D": "1.5.0 1.14.0 2.3.0",
    "MEAN": "1.6.0 1.14.0 2.4.0",
    "MINIMUM": "1.14.0 1.14.0 2.3.0 2.3.0",
    "MIRROR_PAD": "1.13.1 2.3.0 2.12.0",
    "MUL": "1.5.0 1.14.0 1.15.0 2.3.0 2.6.0 2.11.0 2.13.0 2.23.0",
    "NEG": "1.9.0",
    "NOT_EQUAL": "1.14.0 1.14.0 2.3.0 2.21.0",
    "ONE_HOT": "1.11.0",
    "PACK": "1.11.0 1.14.0 2.3.0 2.13.0",
    "PAD": "1.5.0 1.14.0 2.4.0 2.6.0 2.20.0",
    "PADV2": "1.9.0 1.14.0 2.4.0 2.6.0 2.20.0",
    "POW": "1.10.0",
    "PRELU": "1.8.0",
    "QUANTIZE": "1.14.0 1.15.0 2.7.0 2.21.0 2.21.0 2.21.0",
    "RANK": "1.14.0",
    "REDUCE_MAX": "1.11.0 1.14.0 2.5.0",
    "REDUCE_MIN": "1.11.0 1.14.0 2.5.0",
    "REDUCE_PROD": "1.11.0 2.6.0",
    "RELU": "1.5.0 2.1.0 2.5.0",
    "RELU6": "1.5.0 1.14.0 2.5.0",
    "RELU_0_TO_1": "2.10.0",
    "RELU_N1_TO_1": "1.5.0",
    "RESHAPE": "1.5.0",
    "RESIZE_BILINEAR": "1.7.0 1.14.0 2.2.0 2.5.0",
    "RESIZE_NEAREST_NEIGHBOR": "1.13.1 1.14.0 2.3.0 2.4.0",
    "REVERSE_V2": "1.14.0 2.2.0 2.5.0",
    "ROUND": "1.14.0",
    "RSQRT": "1.10.0 2.5.0 2.15.0",
    "SELECT": "1.14.0 1.14.0 2.12.0 2.12.0",
    "SELECT_V2": "2.2.0 2.12.0",
    "SHAPE": "1.10.0",
    "SIN": "1.9.0 2.23.0",
    "SLICE": "1.14.0 1.14.0 1.14.0 2.4.0 2.5.0 2.14.0 2.21.0 2.23.0",
    "SOFTMAX": "1.5.0 1.14.0 2.3.0 2.23.0",
    "SPACE_TO_BATCH_ND": "1.6.0 1.14.0 2.3.0 2.12.0",
    "SPACE_TO_DEPTH": "1.5.0 1.14.0",
    "SPLIT": "1.5.0 1.14.0 1.14.0 2.3.0",
    "SPLIT_V": "1.13.1 2.3.0",
    "SQRT": "1.10.0 2.21.0",
    "SQUARE": "1.12.0",
    "SQUARED_DIFFERENCE": "1.13.1 2.5.0",
    "SQUEEZE": "1.6.0 2.5.0",
    "STRIDED_SLICE": "1.6.0 1.14.0 2.1.0 2.2.0 2.5.0 2.6.0 2.14.0 2.14.0",
    "SUB": "1.6.0 1.14.0 2.3.0 2.4.0 2.4.0",
    "SUM": "1.10.0 1.15.0",
    "TANH": "1.14.0 1.14.0 2.3.0",
    "TILE": "1.10.1 2.2.0 2.8.0",
    "TRANSPOSE": "1.6.0 1.14.0 1.15.0 2.3.0 2.4.0 2.12.0 2.14.4 2.22.0 2.23.0",
    "TRANSPOSE_CONV": "1.9.0 2.2.0 2.3.0 2.13.0 2.15.0",
    "UNPACK": "1.11.0 1.14.0 2.2.0 2.3.0 2.22.0",
    "ZEROS_LIKE": "1.12.0",
}


def minimum_runtime(content: bytes) -> str:
    """The oldest TensorFlow Lite that has every op of a file in the version that its types and options need.

    Args:
        content: a `.tflite`. What it claims itself does not count; the versions of its op codes do where they are
            higher than needed, because they are what a runtime looks at. Ops of `unknown_ops` are passed over.

    Returns:
        A version such as `"2.3.0"`.

    Raises:
        ModelError: not a `.tflite`, or a damaged one.

    Example:
        >>> minimum_runtime(int8_variant.content)  # doctest: +SKIP
        '1.14.0'
    """
    read_graph(content)
    return _minimum(unpacked(content))


def with_versions(content: bytes) -> bytes:
    """The same file with the op versions that it needs, and `min_runtime_version` to match. Versions never go down.

    Older runtimes may refuse the result where they loaded `content`; that is its purpose. Files that are attached stay.

    Args:
        content: a `.tflite`, with metadata or without. Ops of `unknown_ops` keep their version.

    Raises:
        ModelError: not a `.tflite`, or a damaged one.
    """
    read_graph(content)
    model = unpacked(content)
    for code, call in calls(model):
        code.version = max(code.version, needed_version(call) or 0)
    set_metadata(model, ENTRY, _minimum(model).encode().ljust(ENTRY_BYTES, b"\0"))
    return packed(model, attached_files(content))


def with_minimum_runtime(content: bytes) -> bytes:
    """The same file with `min_runtime_version` as its ops and types need it; the versions of its ops stay.

    `with_versions` makes old runtimes refuse a file. Here they go on as they are, because some compute right what they
    do not know by its version: TensorFlow Lite 2.16.1 the int8 weights of dense layers, for one. What a runtime makes
    of a file, `mobileprune.runtime_checks` measures.

    Raises:
        ModelError: not a `.tflite`, or a damaged one.
    """
    read_graph(content)
    model = unpacked(content)
    set_metadata(model, ENTRY, _minimum(model).encode().ljust(ENTRY_BYTES, b"\0"))
    return packed(model, attached_files(content))


def unknown_ops(content: bytes) -> tuple[str, ...]:
    """The ops of a file about whose versions nothing is known here, sorted; custom ones count as `CUSTOM`.

    Raises:
        ModelError: not a `.tflite`, or a damaged one.
    """
    read_graph(content)
    found = {call.name for code, call in calls(unpacked(content)) if _runtime_of(code, call) is None}
    return tuple(sorted(found))


def _minimum(model: Any) -> str:
    runtimes = [_runtime_of(code, call) for code, call in calls(model)]
    return max((each for each in runtimes if each), key=_key, default=OLDEST)


def _runtime_of(code: Any, call: Call) -> str | None:
    needed = needed_version(call)
    version = max(code.version, needed or 0)
    runtimes = RUNTIMES.get(call.name, "").split()
    if needed is None or version > len(runtimes):
        return None
    found: str = runtimes[version - 1]
    if call.name in ("CONV_2D", "DEPTHWISE_CONV_2D") and call.types() == ("FLOAT32", "INT4", "FLOAT32"):
        return max(found, INT4_WITH_FLOAT, key=_key)
    return found


def _key(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))
