import json
from importlib import resources

import keras
import numpy as np
import pytest
from tiny_models import images, reference, shared_convnet, variants

import mobileprune
from mobileprune.calibration import calibrate
from mobileprune.convert import convert
from mobileprune.errors import ConversionError
from mobileprune.layer_names import float_layers, layer_of
from mobileprune.mixed_recipe import NAME, OPS, PRECISIONS, Recipe, Rule, read_recipe
from mobileprune.recipes import RECIPES, check_recipes, make_variants, quantize, recipe_named
from mobileprune.tflite_graph import read_graph
from mobileprune.tflite_runner import TfliteRunner
from mobileprune.verify import verify


@pytest.fixture(scope="module")
def content():
    return variants()["float32"].content


@pytest.fixture(scope="module")
def ranges(content):
    return calibrate(content, images(50, seed=1))


def written(folder, **fields):
    path = folder / "my_mix.json"
    path.write_text(json.dumps(fields))
    return path


def kernels(content: bytes) -> dict[str, tuple[str, str]]:
    """By layer: the types of the input and of the kernel of its op."""
    graph = read_graph(content)
    return {
        layer_of(graph.tensors[op.outputs[0]].name): (
            graph.tensors[op.inputs[0]].dtype,
            graph.tensors[op.inputs[1]].dtype,
        )
        for op in graph.ops
        if op.name in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
    }


KINDS = {
    "float32": ("FLOAT32", "FLOAT32"),
    "float16": ("FLOAT32", "FLOAT32"),
    "weight_only_int8": ("FLOAT32", "FLOAT32"),
    "dynamic_int8": ("FLOAT32", "INT8"),
    "dynamic_int4": ("FLOAT32", "INT4"),
    "int8": ("INT8", "INT8"),
    "int16x8": ("INT16", "INT8"),
}


@pytest.mark.parametrize("inside", sorted(KINDS))
@pytest.mark.parametrize("outside", ["float32", "int8", "int16x8"])
def test_each_op_gets_its_precision_and_the_file_runs(content, ranges, outside, inside):
    recipe = Recipe("mix", "", outside, rules=(Rule(inside, layer="proj*"),))
    file = quantize(content, recipe, ranges)
    found = kernels(file)
    assert {layer: found[layer] for layer in ("stem", "depthwise", "head")} == dict.fromkeys(
        ("stem", "depthwise", "head"), KINDS[outside]
    )
    assert found["project"] == KINDS[inside]
    assert {tensor.dtype for tensor in read_graph(file).inputs + read_graph(file).outputs} == {"FLOAT32"}
    with TfliteRunner(file) as runner:
        answers = runner.run(images(256, seed=7)[:64])
    noise = np.std(answers - reference()[:64]) / np.std(reference()[:64])
    assert noise < (0.7 if inside == "dynamic_int4" else 0.2)


def test_a_file_says_it_by_layer_op_and_tensor_and_the_last_wins(tmp_path, content, ranges):
    path = written(
        tmp_path,
        description="three ways",
        default="int8",
        io="int8",
        rules=[
            {"op": "CONV_2D", "precision": "dynamic_int8"},
            {"layer": "stem", "op": "CONV_2D", "precision": "float32"},
            {"tensor": "^head:", "precision": "int16x8"},
        ],
    )
    recipe = read_recipe(path)
    assert (recipe.name, recipe.description, recipe.io) == ("my_mix", "three ways", "int8")
    assert recipe.precisions == ("int8", "dynamic_int8", "float32", "int16x8")
    file = quantize(content, recipe, ranges)
    assert kernels(file) == {
        "stem": KINDS["float32"],
        "depthwise": KINDS["int8"],
        "project": KINDS["dynamic_int8"],
        "head": KINDS["int16x8"],
    }
    graph = read_graph(file)
    assert {tensor.dtype for tensor in graph.inputs + graph.outputs} == {"INT8"}


def test_convert_takes_names_files_and_recipes_and_verify_knows_what_they_may_change(tmp_path):
    path = written(
        tmp_path, name="from_file", default="dynamic_int8", rules=[{"layer": "head", "precision": "float16"}]
    )
    single = Recipe("single", "one op", "int8", rules=(Rule.for_op("stem:CONV_2D", "float32"),))
    made = convert(shared_convnet(), ["float32", str(path), single], calibration=images(50, seed=1))
    assert [variant.recipe for variant in made] == ["float32", "from_file", "single"]
    assert [variant.precisions for variant in made] == [(), ("dynamic_int8", "float16"), ("int8", "float32")]
    for variant in made:
        verify(reference(), variant, images(256, seed=7)).raise_if_failed()
    assert [op.layer for op in float_layers(made[2].content)] == ["stem"]


def test_an_op_without_a_kernel_of_that_precision_keeps_what_it_had(content, ranges):
    recipe = Recipe("mix", "", "int8", rules=(Rule("dynamic_int4", layer="*"),))
    found = kernels(quantize(content, recipe, ranges))
    assert found["project"] == KINDS["dynamic_int4"]
    assert found["depthwise"] == KINDS["int8"]


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (
            Rule("float32", layer="block_9*"),
            r"rule {layer='block_9\*'} -> float32 matches none of the 6 ops.*stem, dep",
        ),
        (Rule("float32", op="SOFTMAX"), "matches none of the 6 ops. Their kinds: CONV_2D"),
        (Rule("float32", tensor="nowhere"), "matches none"),
        (Rule("dynamic_int4", op="DEPTHWISE_CONV_2D"), "only ops without such a kernel: DEPTHWISE_CONV_2D"),
    ],
)
def test_a_rule_that_does_nothing_is_an_error_that_names_it(content, ranges, rule, message):
    with pytest.raises(ConversionError, match=message):
        quantize(content, Recipe("mix", "", "int8", rules=(rule,)), ranges)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"default": "int3"}, "no precision 'int3'. Known: float32, float16, dynamic_int8"),
        ({"io": "int4"}, "no io 'int4'. Known: float32, int8, int16, uint8"),
        ({"defualt": "int8"}, "no field 'defualt'. Known: name, description, default, io, rules"),
        ({"default": 8}, "'default' is 8; it must be text"),
        ({"rules": {}}, "'rules' is a dict; give a list"),
        ({"rules": ["int8"]}, "A rule is an object with the fields layer, op, tensor, precision, not a str"),
        ({"rules": [{"layer": "a"}]}, "A rule has no 'precision'. Known: float32"),
        ({"rules": [{"layer": "a", "precision": "int2"}]}, "no precision 'int2'"),
        ({"rules": [{"precision": "int8"}]}, "names no ops"),
        ({"rules": [{"op": "CONV2D", "precision": "int8"}]}, "no op 'CONV2D'. Known: ADD, AVERAGE_POOL_2D.*UNPACK"),
        ({"rules": [{"tensor": "(", "precision": "int8"}]}, "not a regular expression"),
        ({"rules": [{"tensor": "a" * 501, "precision": "int8"}]}, "has 501 characters"),
        ({"rules": [{"layers": "a", "precision": "int8"}]}, "no field 'layers'. Known: layer, op, tensor, precision"),
        ({"name": "../../up"}, "cannot be a recipe's name"),
        ({"name": ""}, "cannot be a recipe's name"),
        ({"name": "a" * 65}, "cannot be a recipe's name.*up to 64 lower-case letters"),
        ({"name": "Mine"}, "cannot be a recipe's name"),
        ({"name": "my-mix"}, "cannot be a recipe's name"),
        ({"name": "my__mix"}, "cannot be a recipe's name"),
        ({"name": "mix_"}, "cannot be a recipe's name"),
        ({"name": "mix\n"}, "cannot be a recipe's name"),
    ],
)
def test_files_that_cannot_be_meant_are_one_error(tmp_path, fields, message):
    with pytest.raises(ConversionError, match=message) as caught:
        read_recipe(written(tmp_path, **fields))
    assert "my_mix.json: " in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("stem", ["My-Mix", "a" * 65, "mix 1"])
def test_a_file_whose_stem_is_no_name_needs_one_inside(tmp_path, stem):
    path = tmp_path / f"{stem}.json"
    path.write_text(json.dumps({"default": "float16"}))
    with pytest.raises(ConversionError, match=r"cannot be a recipe's name.*Add a \"name\" to the file"):
        recipe_named(str(path))
    path.write_text(json.dumps({"default": "float16", "name": "mix_1"}))
    assert recipe_named(str(path)).name == "mix_1"


def test_names_are_those_that_the_manifest_takes():
    schema = json.loads(resources.files(mobileprune).joinpath("manifest.schema.json").read_text(encoding="utf-8"))
    assert schema["$defs"]["name"]["pattern"] == f"^{NAME.pattern}$"
    assert all(NAME.fullmatch(name) for name in RECIPES)
    assert Recipe("a" * 64, "").name == "a" * 64


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "\udcff", "7", "[]"])
def test_what_is_no_recipe_file_is_refused(tmp_path, text):
    path = tmp_path / "broken.json"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ConversionError, match=r"broken\.json"):
        read_recipe(path)


def test_missing_and_huge_files_are_refused(tmp_path):
    with pytest.raises(ConversionError, match="cannot be read: No such file"):
        recipe_named(str(tmp_path / "absent.json"))
    (tmp_path / "huge.json").write_bytes(b" " * (2 << 20))
    with pytest.raises(ConversionError, match="more than 1048576 bytes"):
        read_recipe(tmp_path / "huge.json")


def test_names_that_are_taken_are_refused(content):
    with pytest.raises(ConversionError, match="called 'int8', which is built in"):
        make_variants(content, [Recipe("int8", "another one")])
    with pytest.raises(ConversionError, match="called 'mix', which stands for another one"):
        check_recipes([Recipe("mix", "", "float16"), Recipe("mix", "", "dynamic_int8")], None)


def test_a_mixed_recipe_says_when_it_needs_calibration():
    with pytest.raises(ConversionError, match="'mix' needs calibration"):
        check_recipes([Recipe("mix", "", rules=(Rule("int16x8", layer="a"),))], None)
    assert check_recipes([Recipe("mix", "", "dynamic_int8")], None)[0].needs_calibration is False


def test_strict_refuses_what_is_left_in_float_and_not_what_was_asked_for():
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.ELU(name="soft")(keras.layers.Conv2D(4, 3, name="conv")(inputs))
    model = keras.Model(inputs, keras.layers.Dense(2, name="head")(keras.layers.GlobalAveragePooling2D()(x)))
    data = images(10, size=8)
    with pytest.raises(ConversionError, match=r"'int8' leaves 1 ops in float.*ELU of 'soft'"):
        convert(model, ["float32", "int8"], calibration=data, strict_int8=True)
    asked = Recipe("asked", "", "int8", rules=(Rule("float32", layer="soft"), Rule("float32", layer="conv")))
    (variant,) = convert(model, [asked], calibration=data, strict_int8=True)
    assert [op.layer for op in float_layers(variant.content)] == ["conv", "soft"]
    convert(model, ["dynamic_int8"], strict_int8=True)


def test_the_lists_are_those_of_the_quantizer_and_of_the_recipes():
    from ai_edge_litert.schema_py_generated import BuiltinOperator
    from litert_quantizer.utils.tfl_flatbuffer_utils import TFL_OP_NAME_TO_CODE

    names = {code: name for name, code in vars(BuiltinOperator).items() if isinstance(code, int)}
    assert sorted(OPS) == sorted(names[code] for code in TFL_OP_NAME_TO_CODE.values())
    assert set(PRECISIONS) <= set(RECIPES)
