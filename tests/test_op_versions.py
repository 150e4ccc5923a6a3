import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from mobileprune.op_calls import Call
from mobileprune.op_versions import needed_version


def tensor(kind, shape=(1, 8, 8, 4), scales=(), sparse=False):
    made = schema.TensorT()
    made.type = getattr(schema.TensorType, kind)
    made.shape = np.array(shape, np.int32)
    if scales:
        made.quantization = schema.QuantizationParametersT()
        made.quantization.scale = np.array(scales, np.float32)
    if sparse:
        made.sparsity = schema.SparsityParametersT()
    return made


def needed(name, *inputs, to=None, options=None, **chosen):
    """The version of an op on tensors given as types or tensors; it answers in the first one's type."""
    tensors = tuple(tensor(each) if isinstance(each, str) else each for each in inputs)
    answer = tensor(to) if isinstance(to, str) else to or tensors[0]
    made = options() if options else None
    for option, value in chosen.items():
        assert hasattr(made, option), option
        setattr(made, option, value)
    return needed_version(Call(name, tensors, (answer,), made))


F, I8, I16 = "FLOAT32", "INT8", "INT16"
KERNEL = (16, 3, 3, 4)
PER_CHANNEL = (0.5,) * 16


@pytest.mark.parametrize(
    ("kinds", "scales", "version"),
    [
        ((F, F), (), 1),
        ((F, I8), (0.5,), 2),
        ((F, I8), PER_CHANNEL, 5),
        ((I8, I8), PER_CHANNEL, 3),
        ((I8, "INT4"), PER_CHANNEL, 7),
        ((F, "INT4"), PER_CHANNEL, 7),
        ((I16, I8), PER_CHANNEL, 4),
        (("UINT8", "UINT8"), (0.5,), 1),
    ],
)
def test_convolutions(kinds, scales, version):
    assert needed("CONV_2D", kinds[0], tensor(kinds[1], KERNEL, scales), options=schema.Conv2DOptionsT) == version


def test_options_of_convolutions():
    wide = {"options": schema.Conv2DOptionsT, "quantizedBiasType": schema.TensorType.INT64}
    assert needed("CONV_2D", I16, tensor(I8, KERNEL, PER_CHANNEL), **wide) == 8
    for kind in (F, I8, I16):
        assert needed("CONV_2D", kind, tensor(F if kind == F else I8, (16, 3, 3, 2), PER_CHANNEL)) == 6
    dilated = {"options": schema.DepthwiseConv2DOptionsT, "dilationWFactor": 2}
    kernel = tensor(F, (1, 3, 3, 4))
    assert needed("DEPTHWISE_CONV_2D", F, kernel, **dilated) == 2
    assert needed("DEPTHWISE_CONV_2D", F, kernel, options=schema.DepthwiseConv2DOptionsT) == 1


@pytest.mark.parametrize(
    ("kinds", "scales", "version"),
    [((F, I8), (0.5,), 4), ((F, I8), (0.5,) * 4, 6), ((I8, I8), (), 3), ((I8, "INT4"), (), 7), ((I16, I8), (), 5)],
)
def test_depthwise_convolutions(kinds, scales, version):
    assert needed("DEPTHWISE_CONV_2D", kinds[0], tensor(kinds[1], (1, 3, 3, 4), scales)) == version


@pytest.mark.parametrize(
    ("kinds", "scales", "version"),
    [
        ((F, F), (), 1),
        ((F, I8), (0.5,), 3),
        ((F, I8), (0.5,) * 6, 12),
        ((F, "INT4"), (0.5,) * 6, 12),
        ((F, "INT2"), (0.5,) * 6, 14),
        ((I8, I8), (0.5,) * 6, 4),
        ((I8, "INT4"), (0.5,) * 6, 10),
        ((I16, I8), (0.5,) * 6, 7),
        ((I16, "INT4"), (0.5,) * 6, 13),
    ],
)
def test_dense_layers(kinds, scales, version):
    weights, options = tensor(kinds[1], (6, 4), scales), {"options": schema.FullyConnectedOptionsT}
    assert needed("FULLY_CONNECTED", kinds[0], weights, "INT32", **options) == version


def test_options_of_dense_layers():
    options, weights = schema.FullyConnectedOptionsT, tensor(F, (6, 4))
    assert needed("FULLY_CONNECTED", F, weights, options=options) == 6  # no bias
    assert needed("FULLY_CONNECTED", F, weights, F, options=options, keepNumDims=True) == 5
    assert needed("FULLY_CONNECTED", F, weights, F, options=options, weightsFormat=1) == 2
    assert needed("FULLY_CONNECTED", F, tensor(F, (6, 4), sparse=True), F, options=options) == 8
    coarse = tensor(I8, (6, 4), (0.5,))
    assert needed("FULLY_CONNECTED", F, coarse, F, options=options, asymmetricQuantizeInputs=True) == 9


@pytest.mark.parametrize(
    ("name", "kinds", "to", "version"),
    [
        ("QUANTIZE", [F], I8, 1),
        ("QUANTIZE", ["UINT8"], I8, 1),
        ("QUANTIZE", [F], I16, 2),
        ("QUANTIZE", [F], "INT4", 4),
        ("QUANTIZE", [F], tensor(I8, (4,), (0.5,) * 4), 3),
        ("DEQUANTIZE", [I8], F, 2),
        ("DEQUANTIZE", ["FLOAT16"], F, 3),
        ("DEQUANTIZE", [tensor(I8, (4,), (0.5,) * 4)], F, 5),
        ("ADD", [tensor(I16, scales=(0.5,))] * 2, I16, 3),
        ("ADD", [I16, I16], I16, 5),
        ("ADD", [I8, I8], I8, 2),
        ("SUB", [tensor(F, (1,) * 5), tensor(F, (2,) * 5)], F, 3),
        ("MUL", [tensor(I8, scales=(0.5,))] * 2, tensor(I8, scales=(0.5,)), 2),
        ("MUL", [tensor(I8, scales=(2.0,))] * 2, tensor(I8, scales=(0.5,)), 3),
        ("MUL", [tensor(I16, scales=(0.5,))] * 2, I16, 4),
        ("MUL", [I16, I16], I16, 7),
        ("DIV", [F, F], F, 1),
        ("MEAN", [I8, "INT32"], I8, 2),
        ("MEAN", [I16, "INT32"], I16, 3),
        ("SPLIT", ["INT32", I8], I8, 2),
        ("SPLIT", ["INT32", F], F, 1),
        ("TRANSPOSE", [tensor(F, (1,) * 5)], F, 4),
        ("TRANSPOSE", [I8], I8, 2),
        ("PAD", [tensor(F, (1,) * 5)], F, 4),
        ("SLICE", [tensor(I8, (1,) * 5)], I8, 5),
        ("STRIDED_SLICE", [I8], I8, 2),
        ("SPACE_TO_BATCH_ND", [tensor(F, (1,) * 3)], F, 3),
        ("MAXIMUM", [I16, I16], I16, 4),
        ("GATHER", [F, I16], F, 6),
        ("BATCH_MATMUL", [F, F], F, 1),
        ("BATCH_MATMUL", [I8, I8], I8, 2),
        ("TRANSPOSE_CONV", ["INT32", I8, I8, "INT32"], I8, 3),
        ("TRANSPOSE_CONV", ["INT32", I8, I8], I8, 2),
        ("CAST", [F, "FLOAT16"], "FLOAT16", 5),
        ("CAST", ["UINT8"], F, 1),
        ("ABS", [I8], I8, 2),
        ("SOFTMAX", [I8], I8, 2),
        ("SELECT", ["BOOL", F, F], F, 1),
        ("SELECT", ["BOOL", tensor(F, (1,) * 5), F], F, 3),
        ("EQUAL", [I8, I8], "BOOL", 2),
        ("BROADCAST_TO", [F, "INT32"], F, 2),
        ("RESHAPE", [I8, "INT32"], I8, 1),
        ("DENSIFY", [F], F, 1),
        ("HARD_SWISH", [I8], I8, 1),
    ],
)
def test_other_ops(name, kinds, to, version):
    assert needed(name, *kinds, to=to) == version


def test_resizing():
    bilinear, nearest = schema.ResizeBilinearOptionsT, schema.ResizeNearestNeighborOptionsT
    assert needed("RESIZE_BILINEAR", F, options=bilinear) == 1
    assert needed("RESIZE_BILINEAR", F, options=bilinear, halfPixelCenters=True) == 3
    assert needed("RESIZE_BILINEAR", F, options=bilinear, alignCorners=True) == 1
    assert needed("RESIZE_NEAREST_NEIGHBOR", F, options=nearest, alignCorners=True) == 3
    assert needed("RESIZE_NEAREST_NEIGHBOR", I8, options=nearest) == 2


def test_ops_without_a_rule_are_none():
    assert needed("CUSTOM", F) is None
    assert needed("SVDF", F) is None
