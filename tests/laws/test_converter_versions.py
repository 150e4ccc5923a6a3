"""Op versions and the oldest runtime are what TensorFlow's converter works out from the same graph."""

import functools

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from architectures import ARCHITECTURES, randomise
from op_architectures import OPS

import mobileprune as mp
from mobileprune.recipes import RECIPES, make_variants
from mobileprune.tflite_graph import OP_NAMES, read_graph
from mobileprune.tflite_rewrite import builtin_code, packed, unpacked
from mobileprune.tflite_runner import TfliteRunner

ONE_INPUT = [name for name in ARCHITECTURES if name != "shared_and_two_headed"]
MODES = ("float16", "dynamic", "int8", "int16x8")


@functools.cache
def network(name):
    return randomise({**ARCHITECTURES, **OPS}[name]())


@functools.cache
def converted(name):
    return mp.to_float_flatbuffer(network(name))


def images(name, count):
    shape = network(name).inputs[0].shape[1:]
    return np.random.default_rng(0).uniform(-1, 1, (count, *shape)).astype("float32")


def by_converter(name, mode):
    """The network as TensorFlow's own converter quantizes it, with the versions that it writes."""
    import tensorflow as tf

    model = network(name)

    class Holder(tf.Module):
        def __init__(self):
            super().__init__()
            self.held = [variable.value for variable in model.variables]

    specification = tf.TensorSpec((1, *model.inputs[0].shape[1:]))
    infer = tf.function(lambda x: model(x, training=False), input_signature=[specification], autograph=False)
    converter = tf.lite.TFLiteConverter.from_concrete_functions([infer.get_concrete_function()], Holder())
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if mode == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if mode.startswith("int"):
        converter.representative_dataset = lambda: [[image[None]] for image in images(name, 4)]
        sets = tf.lite.OpsSet
        wide = sets.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8
        converter.target_spec.supported_ops = [wide if mode == "int16x8" else sets.TFLITE_BUILTINS_INT8]
    return bytes(converter.convert())


def versions(content):
    model = unpacked(content)
    return [(OP_NAMES[builtin_code(code)], code.version) for code in model.operatorCodes]


def claimed(content):
    """What the file itself says of the runtime that it needs."""
    model = unpacked(content)
    (entry,) = (entry for entry in model.metadata if entry.name == b"min_runtime_version")
    data = bytes(model.buffers[entry.buffer].data)
    assert len(data) == 16
    return data.rstrip(b"\0").decode()


def forgotten(content):
    """The same file with every op at version 1, as the quantizer leaves it."""
    model = unpacked(content)
    for code in model.operatorCodes:
        code.version = 1
    return packed(model)


@pytest.mark.parametrize("name", [*ARCHITECTURES, "pointwise_ops", "spatial_attention", "dense_on_many_axes"])
def test_float_files_get_what_the_converter_wrote(name):
    content = converted(name)
    again = mp.with_versions(forgotten(content))
    assert versions(again) == versions(content)
    assert claimed(again) == claimed(content) == mp.minimum_runtime(content)
    assert mp.unknown_ops(content) == ()


@pytest.mark.parametrize("name", ["sequential_convnet", "squeeze_and_excite"])
@pytest.mark.parametrize("mode", MODES)
def test_quantized_files_get_no_less_than_the_converter_wrote(name, mode):
    content = by_converter(name, mode)
    again = mp.with_versions(forgotten(content))
    assert mp.unknown_ops(content) == ()
    for (op, ours), (_, theirs) in zip(versions(again), versions(content), strict=True):
        # It writes what int8 needs for int16, too.
        assert ours == theirs if mode != "int16x8" else ours >= theirs, op
    assert _key(claimed(again)) >= _key(claimed(content))


def _key(version):
    return [int(part) for part in version.split(".")]


def answers(content):
    """What the runtime computes of noise."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=content, num_threads=1)
    interpreter.allocate_tensors()
    (taken,) = interpreter.get_input_details()
    interpreter.set_tensor(taken["index"], np.random.default_rng(1).normal(0, 9, taken["shape"]).astype(taken["dtype"]))
    interpreter.invoke()
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])


@pytest.mark.parametrize("name", ONE_INPUT)
def test_every_recipes_files_are_loaded_with_their_versions(name):
    recipes = [recipe.name for recipe in RECIPES.values() if not recipe.sparse]
    for variant in make_variants(converted(name), recipes, images(name, 8)):
        content = mp.with_versions(variant.content)
        assert mp.unknown_ops(content) == ()
        assert claimed(content) == mp.minimum_runtime(content) == mp.minimum_runtime(variant.content)
        assert mp.with_versions(content) == content
        assert read_graph(content) == read_graph(variant.content)
        np.testing.assert_array_equal(answers(content), answers(variant.content))
        found = dict(versions(content))
        if variant.recipe in ("int8", "int8_float_io", "uint8_io"):
            assert found["CONV_2D"] in (3, 6)  # 6: grouped
            assert _key(claimed(content)) >= [1, 14, 0]


def test_the_quantizer_claims_too_little():
    """Why this is needed: should it change, so may this."""
    (variant,) = make_variants(converted("inverted_residual"), ["int8"], images("inverted_residual", 8))
    assert {version for _, version in versions(variant.content)} == {1}
    assert claimed(variant.content) == "1.6.0" or claimed(variant.content) < "1.14"
    assert mp.minimum_runtime(variant.content) != claimed(variant.content)


def test_a_runtime_refuses_a_version_that_it_does_not_know():
    """What the versions are for."""
    model = unpacked(converted("inverted_residual"))
    for code in model.operatorCodes:
        if builtin_code(code) == schema.BuiltinOperator.CONV_2D:
            code.version = 99
    with pytest.raises(mp.MobilePruneError, match="CONV_2D"), TfliteRunner(packed(model)) as runner:
        runner.run(images("inverted_residual", 1))
