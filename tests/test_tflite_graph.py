import random

import numpy as np
import pytest
from tiny_models import CLASSES, SIZE, convnet, shared_convnet, variants

from mobileprune.errors import ModelError
from mobileprune.tflite_graph import GraphTensor, read_graph

OPS = {"CONV_2D": 2, "DEPTHWISE_CONV_2D": 1, "ADD": 1, "MEAN": 1, "FULLY_CONNECTED": 1}


def test_a_float_file():
    graph = read_graph(variants()["float32"].content)
    assert graph.histogram() == OPS
    assert len(graph.float_ops()) == len(graph.ops)
    assert [(tensor.dtype, tensor.shape) for tensor in graph.inputs] == [("FLOAT32", (1, SIZE, SIZE, 3))]
    assert [(tensor.dtype, tensor.shape) for tensor in graph.outputs] == [("FLOAT32", (1, CLASSES))]
    assert graph.signatures == {"serving_default": {"image": graph.inputs[0].index}}
    assert sum(tensor.size for tensor in graph.weights()) == sum(
        variable.shape.num_elements() for variable in shared_convnet().variables if len(variable.shape) > 1
    )


def test_an_int8_file():
    graph = read_graph(variants()["int8"].content)
    assert graph.histogram() == OPS
    assert graph.float_ops() == ()
    for tensor in graph.inputs + graph.outputs:
        assert tensor.dtype == "INT8"
        assert len(tensor.scales) == len(tensor.zero_points) == 1
    kernels = {tensor.shape: len(tensor.scales) for tensor in graph.weights()}
    assert kernels == {(16, 3, 3, 3): 16, (1, 3, 3, 16): 16, (16, 1, 1, 16): 16, (CLASSES, 16): CLASSES}


@pytest.mark.parametrize(
    ("recipe", "dtype", "in_float"),
    [("float16", "FLOAT16", 6), ("dynamic_int8", "INT8", 2), ("int8_float_io", "INT8", 0)],
)
def test_weights_and_float_ops_of_each_recipe(recipe, dtype, in_float):
    graph = read_graph(variants()[recipe].content)
    assert {tensor.dtype for tensor in graph.weights()} == {dtype}
    assert len(graph.float_ops()) == in_float


def test_zeros_are_counted_in_every_recipe():
    from mobileprune.convert import convert

    model = convnet(seed=3)
    zeros = total = 0
    for layer in model.layers:
        for variable in layer.weights:
            if len(variable.shape) > 1:
                values = variable.numpy()
                values[np.abs(values) < np.quantile(np.abs(values), 0.75)] = 0
                variable.assign(values)
                zeros += int((values == 0).sum())
                total += values.size
    share = zeros / total
    for variant in convert(model, ["float32", "float16", "dynamic_int8"]):
        found = read_graph(variant.content).zero_fraction()
        assert found == pytest.approx(share, abs=1e-9 if variant.recipe == "float32" else 0.01)
        assert found >= share - 1e-9


@pytest.mark.parametrize(
    ("tensor", "nonzeros"),
    [
        (GraphTensor(0, "a", "INT8", (2, 2), (0.1,), (3,), data=bytes([3, 3, 0, 1])), 2),
        (GraphTensor(0, "b", "UINT8", (2, 2), (0.1, 0.2), (3, 0), axis=0, data=bytes([3, 3, 0, 1])), 1),
        (GraphTensor(0, "c", "INT4", (3,), (0.1,), (0,), data=bytes([0xF0, 0x01])), 2),
        (GraphTensor(0, "d", "FLOAT32", (2,), data=np.float32([-0.0, 1]).tobytes()), 1),
        (GraphTensor(0, "e", "BFLOAT16", (2,), data=np.uint16([0x8000, 0x3F80]).tobytes()), 1),
    ],
)
def test_nonzeros_are_counted_from_the_zero_point(tensor, nonzeros):
    assert tensor.nonzeros() == nonzeros


@pytest.mark.parametrize("content", [b"", b"abc", b"PK\x03\x04" * 10, bytes(1000)])
def test_other_files_are_refused(content):
    with pytest.raises(ModelError, match=r"not a \.tflite"):
        read_graph(content)


def test_damaged_files_are_refused_on_one_line_or_read():
    """Truncated ones always; with wrong bytes, the schema may still be whole."""
    content = variants()["int8"].content
    for length in range(8, len(content) - 8, 97):
        with pytest.raises(ModelError, match="damaged"):
            read_graph(content[:length])
    generator = random.Random(0)
    messages = []
    for _ in range(400):
        wrong = bytearray(content)
        for _ in range(generator.choice([1, 4, 16])):
            wrong[generator.randrange(8, len(wrong))] = generator.choice([0, 128, 255, generator.randrange(256)])
        try:
            graph = read_graph(bytes(wrong))
            graph.zero_fraction()
            graph.float_ops()
        except ModelError as error:
            messages.append(str(error))
    assert len(messages) > 100
    assert not any("\n" in message for message in messages)


def rewritten(content, change):
    """The file with what `change` does to its main graph's object."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content, 0))
    change(model, model.subgraphs[0])
    builder = flatbuffers.Builder()
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def largest(model, graph):
    """The tensor with the most bytes."""

    def size(tensor):
        data = model.buffers[tensor.buffer].data
        return 0 if data is None else len(data)

    return max(graph.tensors, key=size)


@pytest.mark.parametrize("more", [4, -1])
def test_a_sparse_weight_has_whole_values_and_not_more_than_its_shape(more):
    def change(model, graph):
        from ai_edge_litert import schema_py_generated as schema

        weight = largest(model, graph)
        weight.sparsity = schema.SparsityParametersT()
        buffer = model.buffers[weight.buffer]
        buffer.data = np.resize(buffer.data, len(buffer.data) + more)

    with pytest.raises(ModelError, match=r"damaged.*bytes of data"):
        read_graph(rewritten(variants()["float32"].content, change))


def test_weights_without_numbers_are_refused_when_they_are_counted():
    def change(model, graph):
        from ai_edge_litert import schema_py_generated as schema

        largest(model, graph).type = schema.TensorType.STRING

    with pytest.raises(ModelError, match="holds STRING"):
        read_graph(rewritten(variants()["float32"].content, change)).zero_fraction()


def test_names_hold_nothing_that_a_terminal_obeys():
    def change(model, graph):
        graph.tensors[graph.inputs[0]].name = b"ima\x1b[2Jge\n\xc3\xa9"

    (image,) = read_graph(rewritten(variants()["float32"].content, change)).inputs
    assert image.name == "ima\ufffd[2Jge\ufffdé"
