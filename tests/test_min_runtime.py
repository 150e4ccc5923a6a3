import pytest
from ai_edge_litert import schema_py_generated as schema
from tiny_models import variants

from mobileprune.errors import ModelError
from mobileprune.min_runtime import RUNTIMES, minimum_runtime, unknown_ops, with_minimum_runtime, with_versions
from mobileprune.op_calls import calls
from mobileprune.op_versions import _RULES
from mobileprune.tflite_graph import OP_NAMES
from mobileprune.tflite_rewrite import builtin_code, operator_code, packed, unpacked


def content(recipe="int8"):
    return variants()[recipe].content


@pytest.mark.parametrize(
    ("recipe", "runtime"),
    [
        ("float32", "1.6.0"),  # MEAN
        ("float16", "1.15.0"),  # DEQUANTIZE of float16
        ("dynamic_int8", "2.17.0"),  # FULLY_CONNECTED, one scale a channel
        ("int8", "1.14.0"),
        ("uint8_io", "1.14.0"),
    ],
)
def test_recipes(recipe, runtime):
    assert minimum_runtime(content(recipe)) == runtime
    assert minimum_runtime(with_versions(content(recipe))) == runtime


def test_every_rule_has_a_runtime_and_every_runtime_a_rule():
    assert set(RUNTIMES) == set(_RULES)
    assert set(RUNTIMES) <= set(OP_NAMES.values())
    for text in RUNTIMES.values():
        numbers = [tuple(map(int, each.split("."))) for each in text.split()]
        assert numbers == sorted(numbers)


def test_versions_never_go_down():
    model = unpacked(content("float32"))
    for code in model.operatorCodes:
        if builtin_code(code) == schema.BuiltinOperator.CONV_2D:
            code.version = 8
    raised = packed(model)
    assert minimum_runtime(raised) == "2.15.0"
    kept = {OP_NAMES[builtin_code(code)]: code.version for code in unpacked(with_versions(raised)).operatorCodes}
    assert kept["CONV_2D"] == 8


def test_unknown_ops_keep_their_version_and_are_named():
    model = unpacked(content("float32"))
    main = model.subgraphs[0]
    main.operators[0].opcodeIndex = operator_code(model, schema.BuiltinOperator.SVDF, 3)
    main.operators[1].opcodeIndex = operator_code(model, schema.BuiltinOperator.CUSTOM)
    main.operators[2].opcodeIndex = operator_code(model, schema.BuiltinOperator.CONV_2D, 50)
    changed = packed(model)
    assert unknown_ops(changed) == ("CONV_2D", "CUSTOM", "SVDF")
    after = [(call.name, code.version) for code, call in calls(unpacked(with_versions(changed)))]
    assert after[:3] == [("SVDF", 3), ("CUSTOM", 1), ("CONV_2D", 50)]
    assert minimum_runtime(changed) == "1.6.0"


def test_int4_weights_under_float_activations_need_a_runtime_that_has_them():
    from litert_quantizer import quantizer
    from litert_quantizer.recipe import dynamic_wi4_afp32

    made = bytes(quantizer.Quantizer(content("float32"), dynamic_wi4_afp32()).quantize().quantized_model)
    types = {call.types() for _, call in calls(unpacked(made))}
    assert ("FLOAT32", "INT4", "FLOAT32") in types
    assert minimum_runtime(made) >= "2.17.0"


def test_a_graph_without_ops_runs_anywhere():
    model = unpacked(content("float32"))
    model.subgraphs[0].operators = []
    assert minimum_runtime(packed(model)) == "1.5.0"


def test_it_is_deterministic_and_done_once():
    assert with_versions(content()) == with_versions(content())
    assert with_versions(with_versions(content())) == with_versions(content())


@pytest.mark.parametrize("function", [minimum_runtime, with_versions, unknown_ops])
def test_other_files_are_refused(function):
    with pytest.raises(ModelError):
        function(b"abc")


def test_a_second_graph_that_is_damaged_is_refused():
    model = unpacked(content())
    second = schema.SubGraphT()
    second.tensors, second.inputs, second.outputs = [], [], []
    op = schema.OperatorT()
    op.inputs, op.outputs = [7], []
    second.operators = [op]
    model.subgraphs.append(second)
    with pytest.raises(ModelError, match="tensor 7 of 0"):
        minimum_runtime(packed(model))


def test_the_file_says_its_minimum_and_its_ops_keep_their_versions():
    before, after = unpacked(content("dynamic_int8")), unpacked(with_minimum_runtime(content("dynamic_int8")))
    assert [code.version for code in after.operatorCodes] == [code.version for code in before.operatorCodes]
    assert [code.version for code in unpacked(with_versions(content("dynamic_int8"))).operatorCodes] != [
        code.version for code in before.operatorCodes
    ]
    (entry,) = (each for each in after.metadata if each.name == b"min_runtime_version")
    assert bytes(after.buffers[entry.buffer].data).rstrip(b"\0") == b"2.17.0"
