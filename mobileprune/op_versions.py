"""Which version of each op a `.tflite` uses: a kernel learns new types and options in versions, and old runtimes refuse
those that they do not know. With too low a number in the file they compute something else instead.

The rules are those of TensorFlow Lite, `GetBuiltinOperatorVersion` in `tools/versioning/op_version.cc` (as of LiteRT
2.3), for the ops of convnets and vision transformers. In three places they are stricter, because there TensorFlow
Lite's own number lets runtimes run what they have no kernel for; each has a comment.
"""

import functools
from collections.abc import Callable

from mobileprune.errors import ModelError
from mobileprune.op_calls import Call
from mobileprune.tflite_graph import DAMAGE


def needed_version(call: Call) -> int | None:
    """The version that an op needs for its types and options; None where there is no rule for the op.

    Raises:
        ModelError: it lacks inputs, outputs or options that every op of its kind has.
    """
    rule = _RULES.get(call.name)
    try:
        return None if rule is None else rule(call)
    except DAMAGE as error:
        raise ModelError(
            f"The .tflite is damaged: a {call.name} with {len(call.inputs)} inputs and {len(call.outputs)} outputs is "
            f"none ({type(error).__name__}: {error}). Convert the model again."
        ) from error


def _conv_2d(call: Call) -> int:
    types = call.types()
    if types == ("INT16", "INT8", "INT16"):
        # TensorFlow Lite's rule asks for int16 weights, which no kernel has; the kernel for int16 activations is 4.
        return 8 if call.option("quantizedBiasType") else max(4, _grouped(call))
    if _grouped(call) == 6:
        return 6
    if types == ("FLOAT32", "INT8", "FLOAT32"):
        return 5 if call.per_channel(1, 0) else 2
    if call.kind(1) == "INT4":
        # Also for float activations: TensorFlow Lite's number for them is 1, and its 2.16 answers noise.
        return 7
    return 3 if types == ("INT8", "INT8", "INT8") else 1


def _grouped(call: Call) -> int:
    inputs, weights = call.shape(0), call.shape(1)
    return 6 if len(inputs) == len(weights) == 4 and inputs[3] != weights[3] else 1


def _depthwise_conv_2d(call: Call) -> int:
    types = call.types()
    if types[0] == types[2] == "INT16":
        return 5  # as for CONV_2D
    if types == ("FLOAT32", "INT8", "FLOAT32"):
        return 6 if call.per_channel(1, 3) else 4
    if call.kind(1) == "INT4":
        return 7
    if types == ("INT8", "INT8", "INT8"):
        return 3
    dilated = any(call.option(f"dilation{side}Factor") not in (0, 1) for side in "HW")
    return 2 if dilated else 1


def _fully_connected(call: Call) -> int:
    types = call.types()
    if types[1] == "INT2":
        return 14
    if types == ("INT16", "INT4", "INT16"):
        return 13
    if types[0] == types[2] == "FLOAT32" and (types[1] == "INT4" or (types[1] == "INT8" and call.per_channel(1, 0))):
        # One scale a channel with float activations. In int4 TensorFlow Lite's number is that of float weights.
        return 12
    if types == ("INT16", "INT8", "INT16") and call.option("quantizedBiasType"):
        return 11
    if call.inputs[1] is not None and call.inputs[1].sparsity is not None:
        return 8
    if types[0] == types[2] == "INT16":
        return 7
    if types == ("INT8", "INT4", "INT8"):
        return 10  # above what the two options need
    if len(call.inputs) == 2:
        return 6
    if call.option("keepNumDims"):
        return 5
    if types == ("INT8", "INT8", "INT8"):
        return 4
    if types == ("FLOAT32", "INT8", "FLOAT32"):
        return 9 if call.option("asymmetricQuantizeInputs") else 3
    return 2 if call.option("weightsFormat") else 1


def _transpose_conv(call: Call) -> int:
    if (call.kind(), call.kind(1)) == ("INT16", "INT8") and call.option("quantizedBiasType"):
        return 5
    if call.option("fusedActivationFunction"):
        return 4
    if call.kind(3):
        return 3
    return 2 if call.kind(1) == "INT8" else 1


def _mul(call: Call) -> int:
    kind = call.kind()
    if kind == "FLOAT16":
        return 8
    quantized = any(call.scales(position) for position in range(2))
    if kind == "UINT32" or (kind == "INT16" and not quantized):
        return 7
    if kind in ("COMPLEX64", "INT64", "INT16"):
        return {"COMPLEX64": 6, "INT64": 5, "INT16": 4}[kind]
    left, right, result = call.scales(0), call.scales(1), call.answer_scales()
    if left and right and result and result[0] and left[0] * right[0] / result[0] >= 1:
        return 3
    return 2 if kind == "INT8" else 1


def _add(call: Call) -> int:
    kind = call.kind()
    if kind == "INT16":
        return 5 if not call.scales(0) else 1 if call.option("potScaleInt16") else 3
    return {"FLOAT16": 6, "INT64": 4, "INT8": 2}.get(kind, 1)


def _sub(call: Call) -> int:
    if call.kind() == call.answer() == "INT16" and not call.option("potScaleInt16"):
        return 5
    if call.kind() == "INT64":
        return 4
    if call.broadcasts_in_5d():
        return 3
    return 2 if call.kind() == "INT8" else 1


def _larger_or_smaller(call: Call) -> int:
    if call.kind() == call.answer() == "INT16":
        return 4
    if call.broadcasts_in_5d():
        return 3
    return 2 if call.kind() == "INT8" else 1


def _resize(call: Call, *, corners: bool) -> int:
    if call.kind() == "INT16":
        return 4
    if call.option("halfPixelCenters") or (corners and call.option("alignCorners")):
        return 3
    return 2 if call.kind() == "INT8" else 1


def _strided_slice(call: Call) -> int:
    if call.option("offset"):
        return 8
    if call.kind() == "UINT32":
        return 7
    if call.option("ellipsisMask") or call.option("newAxisMask"):
        return 6
    if call.kind() == "STRING":
        return 5
    return 4 if call.rank() > 4 else {"BOOL": 3, "INT8": 2}.get(call.kind(), 1)


def _slice(call: Call) -> int:
    early = {"FLOAT16": 8, "INT4": 7, "UINT32": 6}.get(call.kind())
    if early:
        return early
    return 5 if call.rank() > 4 else {"INT16": 4, "STRING": 3, "INT8": 2}.get(call.kind(), 1)


def _transpose(call: Call) -> int:
    kind, rank = call.kind(), call.rank()
    if kind == "FLOAT16":
        return 9
    if rank > 6 or kind == "BFLOAT16":
        return 8
    if kind == "INT4":
        return 7
    if rank > 5:
        return 6
    if kind == "INT16":
        return 5
    return 4 if rank > 4 else {"BOOL": 3, "INT8": 2}.get(kind, 1)


def _pad(call: Call) -> int:
    if call.kind() == "BOOL":
        return 5
    return 4 if call.rank() > 4 else {"INT16": 3, "INT8": 2}.get(call.kind(), 1)


def _space_and_batch(call: Call) -> int:
    if call.kind() == "INT16":
        return 4
    return 3 if call.rank() != 4 else 2 if call.kind() == "INT8" else 1


def _gather(call: Call) -> int:
    if call.kind() == "INT4":
        return 7
    if call.kind(1) == "INT16":
        return 6
    return 5 if call.option("batchDims") else {"INT16": 4, "BOOL": 3, "INT8": 2}.get(call.kind(), 1)


def _dequantize(call: Call) -> int:
    if call.kind() == "INT8":
        return 5 if len(call.scales(0)) > 1 else 2
    return {"UINT4": 8, "INT2": 7, "INT4": 6, "INT16": 3, "FLOAT16": 3}.get(call.kind(), 1)


def _quantize(call: Call) -> int:
    types = (call.kind(), call.answer())
    if "UINT4" in types:
        return 5
    if "INT4" in types:
        return 4
    if len(call.answer_scales()) > 1:
        return 3
    return 2 if call.answer() == "INT16" else 1


def _batch_matmul(call: Call) -> int:
    if call.types() == ("FLOAT32", "INT8", "FLOAT32") and call.option("asymmetricQuantizeInputs"):
        return 4
    return {"INT16": 3, "INT8": 2}.get(call.kind(), 1)


def _cast(call: Call) -> int:
    types = {call.kind(), call.answer()}
    if call.kind() == "INT4" and call.answer() == "FLOAT32":
        return 6
    for version, kinds in (
        (8, {"INT2", "UINT4"}),
        (7, {"BFLOAT16"}),
        (5, {"FLOAT64", "FLOAT16"}),
        (4, {"UINT16"}),
        (3, {"INT8"}),
        (2, {"UINT32"}),
    ):
        if types & kinds:
            return version
    return 1


def _abs(call: Call) -> int:
    if call.kind() == "INT16":
        return 3 if call.scales(0) else 4
    return {"INT32": 5, "INT8": 2, "UINT8": 2}.get(call.kind(), 1)


def _select(call: Call) -> int:
    if call.kind() == "UINT32":
        return 4
    if 5 in (call.rank(position) for position in range(3)):
        return 3
    return 2 if call.kind() == "INT8" else 1


def _divide(call: Call) -> int:
    return 2 if call.broadcasts_in_5d() else 1


def _always(version: int) -> Callable[[Call], int]:
    return lambda call: version


def _by_type(position: int = 0, otherwise: int = 1, **versions: int) -> Callable[[Call], int]:
    return lambda call: versions.get(call.kind(position), otherwise)


_INT8_INT16 = _by_type(INT8=2, INT16=3)
_INT8 = _by_type(INT8=2)
_INTEGERS_2 = _by_type(INT8=2, INT16=2)
_RULES: dict[str, Callable[[Call], int]] = {
    "CONV_2D": _conv_2d,
    "DEPTHWISE_CONV_2D": _depthwise_conv_2d,
    "FULLY_CONNECTED": _fully_connected,
    "TRANSPOSE_CONV": _transpose_conv,
    "BATCH_MATMUL": _batch_matmul,
    "ADD": _add,
    "SUB": _sub,
    "MUL": _mul,
    "DIV": _divide,
    "MAXIMUM": _larger_or_smaller,
    "MINIMUM": _larger_or_smaller,
    "RESIZE_BILINEAR": functools.partial(_resize, corners=False),
    "RESIZE_NEAREST_NEIGHBOR": functools.partial(_resize, corners=True),
    "STRIDED_SLICE": _strided_slice,
    "SLICE": _slice,
    "TRANSPOSE": _transpose,
    "PAD": _pad,
    "PADV2": _pad,
    "SPACE_TO_BATCH_ND": _space_and_batch,
    "BATCH_TO_SPACE_ND": _space_and_batch,
    "GATHER": _gather,
    "QUANTIZE": _quantize,
    "DEQUANTIZE": _dequantize,
    "CAST": _cast,
    "ABS": _abs,
    "RELU": _by_type(INT8=2, UINT8=2, INT16=3),
    "GELU": _by_type(INT8=2, UINT8=2),
    "CONCATENATION": _by_type(FLOAT16=6, INT4=5, UINT32=4, INT16=3, INT8=2),
    "SOFTMAX": _by_type(FLOAT16=4, INT16=3, INT8=2),
    "SPLIT": _by_type(1, INT16=4, INT32=3, INT8=2),
    "PACK": _by_type(UINT32=4, INT16=3, INT8=2),
    "UNPACK": _by_type(BFLOAT16=5, FLOAT16=5, INT16=4, BOOL=3, INT8=2, UINT8=2),
    "TILE": _by_type(INT8=3, STRING=2),
    "SQUEEZE": _by_type(STRING=2),
    "LEAKY_RELU": _by_type(INT16=2),
    "ARG_MAX": _by_type(BOOL=3, INT8=2),
    "BROADCAST_TO": _by_type(otherwise=2, INT8=3, INT16=3),
    "SIN": _by_type(FLOAT16=2),
    "COS": _by_type(FLOAT16=2),
    "REVERSE_V2": _by_type(INT8=3, BOOL=2),
    "SELECT": _select,
    "SELECT_V2": _by_type(UINT32=2),
    "EQUAL": _by_type(INT16=5, STRING=3, INT8=2),
    "NOT_EQUAL": _by_type(INT16=4, STRING=3, INT8=2),
    "LESS": _INT8_INT16,
    "GREATER_EQUAL": _INT8_INT16,
    **dict.fromkeys(("MAX_POOL_2D", "AVERAGE_POOL_2D", "TANH", "LOGISTIC"), _INT8_INT16),
    **dict.fromkeys(("MEAN", "MIRROR_PAD", "REDUCE_MAX", "REDUCE_MIN", "RELU6", "RSQRT"), _INT8_INT16),
    **dict.fromkeys(("SUM", "SPLIT_V", "LOG_SOFTMAX", "GREATER", "LESS_EQUAL", "SQUARED_DIFFERENCE"), _INT8),
    **dict.fromkeys(("DEPTH_TO_SPACE", "SPACE_TO_DEPTH", "L2_NORMALIZATION"), _INT8),
    **dict.fromkeys(("EXP", "LOG", "SQRT", "REDUCE_PROD"), _INTEGERS_2),
    **dict.fromkeys(("RESHAPE", "EXPAND_DIMS", "SHAPE", "DENSIFY", "HARD_SWISH", "PRELU", "ELU"), _always(1)),
    **dict.fromkeys(("NEG", "POW", "SQUARE", "FLOOR", "CEIL", "ROUND", "CONV_3D", "ZEROS_LIKE"), _always(1)),
    **dict.fromkeys(("RELU_N1_TO_1", "RELU_0_TO_1", "LOGICAL_AND", "LOGICAL_OR", "LOGICAL_NOT"), _always(1)),
    **dict.fromkeys(("ONE_HOT", "RANK", "CUMSUM"), _always(1)),
}
