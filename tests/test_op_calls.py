from tiny_models import variants

from mobileprune.op_calls import calls
from mobileprune.tflite_graph import read_graph
from mobileprune.tflite_rewrite import unpacked


def test_calls_are_those_of_the_graph():
    for recipe in ("float32", "int8", "dynamic_int8"):
        content = variants()[recipe].content
        graph = read_graph(content)
        found = [call for _, call in calls(unpacked(content))]
        assert [call.name for call in found] == [op.name for op in graph.ops]
        for call, op in zip(found, graph.ops, strict=True):
            assert call.answer() == graph.tensors[op.outputs[0]].dtype
            present = [index for index in op.inputs if index >= 0]
            assert [call.kind(at) for at in range(len(op.inputs)) if call.kind(at)] == [
                graph.tensors[index].dtype for index in present
            ]


def test_scales_of_kernels_are_one_a_channel():
    found = {call.name: call for _, call in calls(unpacked(variants()["int8"].content))}
    assert found["CONV_2D"].per_channel(1, 0)
    assert not found["CONV_2D"].per_channel(0, 1)  # one scale, many rows
    assert found["CONV_2D"].rank() == 4
    assert found["CONV_2D"].scales(9) == ()
