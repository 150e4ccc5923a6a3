"""Every op of every file knows the Keras layer that it comes from, and it is the right one."""

import functools

import keras
import numpy as np
import pytest
from architectures import ARCHITECTURES, randomise
from tiny_models import convnet, images, shared_convnet, variants
from zoo_architectures import ZOO

from mobileprune.convert import convert, to_float_flatbuffer
from mobileprune.layer_names import Call, call_scope, float_layers, layer_of, op_layers, with_layer_names
from mobileprune.sparse_encoding import encode_sparse
from mobileprune.tflite_graph import KERNEL_OPS, read_graph
from mobileprune.tflite_runner import TfliteRunner

layers = keras.layers
# What the class of a layer has in its name, by kind of op.
CLASSES = {
    "CONV_2D": ("Conv",),
    "DEPTHWISE_CONV_2D": ("DepthwiseConv", "SeparableConv"),
    "TRANSPOSE_CONV": ("Transpose",),
    "FULLY_CONNECTED": ("Dense", "ReversibleEmbedding"),
    "BATCH_MATMUL": ("Attention", "Einsum", "Matmul"),
    "MAX_POOL_2D": ("MaxPooling",),
    "AVERAGE_POOL_2D": ("AveragePooling",),
    "REDUCE_MAX": ("GlobalMaxPooling",),
    "MEAN": ("GlobalAveragePooling", "Normalization", "Mean"),
    "CONCATENATION": ("Concatenate", "MixNeighbours"),
    "SPLIT": ("Split",),
    "SOFTMAX": ("Dense", "Softmax", "Attention"),
}
# Activations are part of any layer that has one; additions and multiplications of normalisations, too.
HAS_NO = ("Reshape", "Flatten", "Padding", "Pooling", "Dropout", "Permute", "Transpose", "Input")


def found_in(model, path: str):
    """The layer or op of that path."""
    for name in path.split("/"):
        inside = getattr(model, "operations", None) or model._flatten_layers(include_self=False)
        (model,) = {id(each): each for each in inside if each.name == name}.values()
    return model


@functools.cache
def built(name: str):
    model = {**ARCHITECTURES, **ZOO}[name]()
    randomise(model)
    return model, to_float_flatbuffer(model)


# The zoo's largest have nothing that these lack, and take seconds each.
LARGE = ("shufflenet_v2_ops", "shufflenet_v2_layers", "ssd", "unet", "convnext_custom_scale", "convnext_keras_scale")


@pytest.mark.parametrize("name", sorted({*ARCHITECTURES, *ZOO} - {*LARGE}))
def test_every_op_has_the_right_layer(name):
    model, content = built(name)
    graph = read_graph(content)
    used = set()
    for op, path in zip(graph.ops, op_layers(graph), strict=True):
        layer = found_in(model, path)
        used.add(path)
        kind = type(layer).__name__
        assert any(part in kind for part in CLASSES.get(op.name, ("",))), (op.name, path)
        if op.name in ("ADD", "MUL", "SUB"):
            assert not any(part in kind for part in HAS_NO), (op.name, path)
        if op.name in KERNEL_OPS and graph.tensors[op.inputs[1]].constant:
            kernel = graph.tensors[op.inputs[1]]
            assert kernel.size in [weight.numpy().size for weight in layer.weights], (op.name, path)
            if kernel.name.endswith(":kernel"):
                assert layer_of(kernel.name) == path
    # The other way round: no layer with a kernel is missing.
    for layer in model._flatten_layers(include_self=False):
        if isinstance(layer, (layers.Dense, layers.EinsumDense)) or "Conv" in type(layer).__name__:
            assert any(path.rsplit("/", 1)[-1] == layer.name for path in used), layer.name


def test_the_kernels_are_those_of_the_layers_that_the_ops_name():
    """Every kernel of this network is of another layer of the same shape: only the values tell them apart."""
    inputs = keras.Input((8, 8, 4))
    x = inputs
    for number in range(4):
        x = layers.Conv2D(4, 3, padding="same", name=f"same_{number}", activation="relu")(x)
    model = keras.Model(inputs, x)
    randomise(model)
    graph = read_graph(to_float_flatbuffer(model))
    for op, path in zip(graph.ops, op_layers(graph), strict=True):
        stored = np.frombuffer(graph.tensors[op.inputs[1]].data, np.float32).reshape(4, 3, 3, 4)
        np.testing.assert_array_equal(stored, np.moveaxis(model.get_layer(path).kernel.numpy(), 3, 0))
    assert len(set(op_layers(graph))) == 4


def test_padding_normalisation_and_activation_count_to_the_convolution():
    inputs = keras.Input((9, 9, 3))
    x = layers.ZeroPadding2D(1, name="pad")(inputs)
    x = layers.Conv2D(8, 3, strides=2, use_bias=False, groups=1, name="conv")(x)
    x = layers.ReLU(6.0, name="relu")(layers.BatchNormalization(name="norm")(x))
    x = layers.ReLU(name="last")(layers.Add(name="sum")([x, x * x]))
    model = keras.Model(inputs, x)
    randomise(model)
    graph = read_graph(to_float_flatbuffer(model))
    named = dict(zip([op.name for op in graph.ops], op_layers(graph), strict=True))
    assert named["CONV_2D"] == "conv"
    assert found_in(model, named["MUL"]).__class__.__name__ == "Multiply"
    assert named["ADD"] in ("sum", "last")


def test_the_first_and_last_op_and_ops_written_as_operators_are_mapped():
    inputs = keras.Input((4, 4, 3), name="picture")
    x = keras.ops.abs(2 - inputs)
    model = keras.Model(inputs, keras.ops.mean(x, axis=(1, 2)) + 1)
    graph = read_graph(to_float_flatbuffer(model))
    kinds = [type(found_in(model, path)).__name__ for path in op_layers(graph)]
    assert kinds == ["Subtract", "Absolute", "Mean", "Add"]
    assert graph.signatures == {"serving_default": {"picture": 0}}
    assert graph.inputs[0].name == "picture"


@pytest.mark.parametrize("recipe", ["float16", "dynamic_int8", "weight_only_int8", "int8", "int8_float_io", "int16x8"])
def test_quantized_files_tell_the_same_layers(recipe):
    pooling = next(layer.name for layer in shared_convnet().layers if "pooling" in layer.name)
    (add,) = (layer.name for layer in shared_convnet().layers if type(layer).__name__ == "Add")
    expected = ("stem", "depthwise", "project", add, pooling, "head")
    for name, storage in ((recipe, ("QUANTIZE", "DEQUANTIZE")), ("float32", ())):
        graph = read_graph(variants()[name].content)
        found = zip(graph.ops, op_layers(graph), strict=True)
        assert tuple(layer for op, layer in found if op.name not in storage) == expected
        assert all(
            layer in expected or op.name == "QUANTIZE" for op, layer in zip(graph.ops, op_layers(graph), strict=True)
        )


def test_sparse_files_tell_the_same_layers():
    model = convnet()
    for name in ("stem", "project"):
        kernel = model.get_layer(name).kernel
        kernel.assign(np.where(np.random.default_rng(0).random(kernel.shape) < 0.95, 0, kernel.numpy()))
    content = to_float_flatbuffer(model)
    sparse = read_graph(encode_sparse(content))
    assert "DENSIFY" in sparse.histogram()
    assert set(op_layers(sparse)) == set(op_layers(read_graph(content)))


def test_names_are_short_and_unique_and_the_model_says_what_it_said():
    graph = read_graph(variants()["float32"].content)
    names = [tensor.name for tensor in graph.tensors]
    assert len(set(names)) == len(names)
    assert {"image", "stem:CONV_2D", "stem:kernel", "stem:bias", "head:FULLY_CONNECTED"} <= set(names)
    assert max(map(len, names)) < 40
    with TfliteRunner(variants()["float32"].content) as runner:
        batch = images(5)
        np.testing.assert_allclose(runner.run(batch), shared_convnet()(batch, training=False), atol=1e-4)


def test_a_name_from_elsewhere_tells_no_layer():
    for name in ("StatefulPartitionedCall:0", "serving_default_image:0", "model_1/stem_1/convolution;x", "", ":", "a:"):
        assert layer_of(name) == ""
    assert layer_of("a:b/c:CONV_2D_dequant") == "a:b/c"


def test_the_renamer_prefers_the_kind_of_op_and_avoids_names_that_are_taken():
    """On a file whose names are known: what the tests above see only through TensorFlow."""
    content = to_float_flatbuffer(shared_convnet())
    graph = read_graph(content)
    assert read_graph(with_layer_names(content, [], {})).tensors == graph.tensors
    # A second time with other layers: numbers are gone from the names, so nothing may change but the last op's.
    renamed = read_graph(with_layer_names(content, [Call("other")], {"output_0": 0}))
    assert op_layers(renamed)[-1] == "other"
    assert call_scope(7) == "call.7/"


def test_keras_is_as_before_even_after_an_error():
    before = keras.layers.Layer.__call__, keras.Operation.__call__

    class Broken(layers.Layer):
        def call(self, inputs):
            if isinstance(inputs, keras.KerasTensor):
                return inputs
            raise RuntimeError("on purpose")

    inputs = keras.Input((4,))
    with pytest.raises(Exception, match="on purpose"):
        to_float_flatbuffer(keras.Model(inputs, Broken()(inputs)))
    assert (keras.layers.Layer.__call__, keras.Operation.__call__) == before
    to_float_flatbuffer(shared_convnet())
    assert (keras.layers.Layer.__call__, keras.Operation.__call__) == before


def test_what_stays_in_float_is_listed_with_its_layer():
    inputs = keras.Input((8, 8, 3))
    x = layers.ELU(name="soft")(layers.Conv2D(4, 3, name="conv")(inputs))
    model = keras.Model(inputs, layers.Dense(2, name="head")(layers.GlobalAveragePooling2D()(x)))
    randomise(model)
    whole, integer = convert(model, ["float32", "int8"], calibration=images(10, size=8))
    assert [str(op) for op in float_layers(integer.content)] == ["ELU of 'soft'"]
    assert len(float_layers(whole.content)) == 4
    assert float_layers(variants()["int8"].content) == ()
