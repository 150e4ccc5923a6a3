import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from tiny_models import images, variants

from mobileprune.errors import ModelError
from mobileprune.tflite_graph import read_graph
from mobileprune.tflite_rewrite import BUFFER_ALIGNMENT, add_buffer, builtin_code, operator_code, packed, unpacked
from mobileprune.tflite_runner import TfliteRunner


@pytest.mark.parametrize("recipe", ["float32", "float16", "dynamic_int8", "int8", "uint8_io"])
def test_a_file_survives(recipe):
    content = variants()[recipe].content
    again = packed(unpacked(content))
    assert read_graph(again) == read_graph(content)
    assert packed(unpacked(again)) == again
    data = images(4)
    with TfliteRunner(content) as old, TfliteRunner(again) as new:
        np.testing.assert_array_equal(new.run(data), old.run(data))


@pytest.mark.parametrize("recipe", ["float32", "int8", "as converted"])
def test_constants_are_aligned(recipe):
    content = variants()["float32" if recipe == "as converted" else recipe].content
    if recipe != "as converted":
        content = packed(unpacked(content))
    model = schema.Model.GetRootAs(content, 0)
    places = []
    for index in range(model.BuffersLength()):
        buffer = model.Buffers(index)
        if buffer.DataLength():
            vector = buffer._tab.Vector(buffer._tab.Offset(4))
            places.append(vector % BUFFER_ALIGNMENT)
    assert len(places) > 5
    assert set(places) == {0}


def test_what_is_behind_the_flatbuffer_is_taken_in():
    content = variants()["float32"].content
    model = unpacked(content)
    weight = read_graph(content).weights()[0]
    stored = model.buffers[model.subgraphs[0].tensors[weight.index].buffer]
    stored.data, stored.offset, stored.size = None, 2, len(weight.data)  # any offset above 1 keeps its place
    begin = len(packed(model))
    stored.offset = begin
    behind = packed(model) + weight.data
    assert len(behind) == begin + len(weight.data)
    assert read_graph(packed(unpacked(behind))) == read_graph(content)


def test_buffers_that_nothing_uses_become_empty():
    model = unpacked(variants()["float32"].content)
    before = len(packed(model))
    assert add_buffer(model, b"x" * 1000) == len(model.buffers) - 1
    assert len(packed(model)) < before + 100


def test_op_codes_are_shared_and_wide_ones_have_both_fields():
    model = unpacked(variants()["float32"].content)
    first = operator_code(model, schema.BuiltinOperator.QUANTIZE)
    assert operator_code(model, schema.BuiltinOperator.QUANTIZE) == first
    assert operator_code(model, schema.BuiltinOperator.QUANTIZE, 2) == first + 1
    wide = model.operatorCodes[operator_code(model, schema.BuiltinOperator.GELU)]
    assert (wide.builtinCode, wide.deprecatedBuiltinCode) == (schema.BuiltinOperator.GELU, 127)
    assert builtin_code(wide) == schema.BuiltinOperator.GELU
    wide.builtinCode, wide.deprecatedBuiltinCode = 0, schema.BuiltinOperator.ADD  # as before 2020
    assert builtin_code(wide) == schema.BuiltinOperator.ADD


def test_damage_outside_the_main_graph_is_a_clear_error():
    content = bytearray(variants()["float32"].content)
    model = schema.Model.GetRootAs(content, 0)
    metadata = model.Metadata(0)._tab
    place = metadata.Pos + metadata.Offset(4)
    content[place : place + 4] = (0x7FFFFFFF).to_bytes(4, "little")
    read_graph(bytes(content))
    with pytest.raises(ModelError, match="damaged"):
        unpacked(bytes(content))
