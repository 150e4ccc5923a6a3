import functools

import numpy as np
import pytest
from tiny_models import variants
from xnnpack_models import images, network, with_zeros

from mobileprune.convert import to_float_flatbuffer
from mobileprune.errors import ConversionError, ModelError, VerificationError
from mobileprune.recipes import make_variants, quantize
from mobileprune.sparse_encoding import encode_sparse
from mobileprune.tflite_graph import read_graph
from mobileprune.tflite_runner import TfliteRunner
from mobileprune.verify import verify


@functools.cache
def dense(share=0.8, recipe="float32"):
    import keras

    kinds = (keras.layers.Conv2D, keras.layers.Dense)
    return quantize(to_float_flatbuffer(with_zeros(network(), share, kinds)), recipe)


def outputs(content, data=None):
    with TfliteRunner(content) as runner:
        return runner.run(images() if data is None else data)


@pytest.mark.parametrize("recipe", ["float32", "float16"])
@pytest.mark.parametrize("share", [0.6, 0.8, 0.95])
def test_the_file_is_smaller_and_says_the_same_to_the_last_bit(recipe, share):
    content = dense(share, recipe)
    sparse = encode_sparse(content)
    assert len(sparse) < len(content)
    np.testing.assert_array_equal(outputs(sparse), outputs(content))
    before, after = read_graph(content), read_graph(sparse)
    assert after.zero_fraction() == pytest.approx(before.zero_fraction(), abs=1e-12)
    assert after.signatures == before.signatures
    assert after.inputs == before.inputs
    assert [op.name for op in after.ops if op.name != "DENSIFY"] == [op.name for op in before.ops]


def test_outputs_tell_two_files_apart():
    assert np.abs(outputs(dense(0.8)) - outputs(dense(0.6))).max() > 1e-3


def test_float32_at_90_percent_zeros_is_less_than_a_third():
    content = dense(0.9)
    weights = sum(tensor.size * 4 for tensor in read_graph(content).weights() if tensor.size > 1000)
    assert len(content) - len(encode_sparse(content)) > weights * 2 / 3


def test_only_weights_that_become_smaller_are_stored_sparsely():
    graph = read_graph(encode_sparse(dense(0.8)))
    sparse = {tensor.shape for tensor in graph.weights() if tensor.sparse}
    assert sparse == {(64, 1, 1, 16), (128, 1, 1, 64), (10, 128)}
    assert {tensor.shape for tensor in graph.weights() if not tensor.sparse} == {
        *((16, 3, 3, 3), (1, 3, 3, 16), (1, 3, 3, 64)),
    }
    assert graph.histogram()["DENSIFY"] == 3


@pytest.mark.parametrize(("recipe", "share"), [("float32", 0.1), ("float16", 0.1), ("float16", 0.25)])
def test_too_few_zeros_are_an_error_with_their_share(recipe, share):
    content = dense(share, recipe)
    with pytest.raises(ConversionError, match=f"^{read_graph(content).zero_fraction():.0%} of the weights are zero"):
        encode_sparse(content)


@pytest.mark.parametrize("recipe", ["dynamic_int8", "int8", "int8_float_io"])
def test_integers_are_refused(recipe):
    with pytest.raises(ConversionError, match="is INT8; only float32 and float16"):
        encode_sparse(variants()[recipe].content)


def test_sparse_files_are_refused():
    with pytest.raises(ConversionError, match="stored sparsely already"):
        encode_sparse(encode_sparse(dense()))


def test_other_files_are_refused():
    with pytest.raises(ModelError):
        encode_sparse(b"abc")


def test_a_kernel_that_two_calls_share_is_stored_once():
    import keras

    shared = keras.layers.Conv2D(64, 1)
    model = with_zeros(network(lambda x: shared(shared(keras.layers.Conv2D(64, 1)(x)))))
    content = to_float_flatbuffer(model)
    sparse = encode_sparse(content)
    np.testing.assert_array_equal(outputs(sparse), outputs(content))
    assert read_graph(sparse).histogram()["DENSIFY"] == len({each.index for each in read_graph(sparse).weights()}) - 4


def test_wide_rows_and_many_values_get_wider_indices():
    import keras

    inputs = keras.Input((300,))
    model = keras.Model(inputs, keras.layers.Dense(40)(keras.layers.Dense(700)(inputs)))
    for layer in model.layers[1:]:
        kernel = np.array(layer.kernel)
        kernel[np.random.default_rng(0).random(kernel.shape) < 0.6] = 0  # 84,000 values: more than 16 bits count
        layer.kernel.assign(kernel)
    content = to_float_flatbuffer(model)
    data = np.random.default_rng(1).normal(size=(3, 300)).astype("float32")
    np.testing.assert_array_equal(outputs(encode_sparse(content), data), outputs(content, data))


def test_it_is_as_small_as_what_tensorflow_makes():
    from tensorflow.lite.python.convert import mlir_sparsify

    content = dense(0.8)
    theirs = bytes(mlir_sparsify(content))
    np.testing.assert_array_equal(outputs(encode_sparse(content)), outputs(theirs))
    # It stores the small depthwise kernels sparsely, too.
    assert len(encode_sparse(content)) < 1.1 * len(theirs)


def test_the_recipes_make_files_that_verify():
    model = with_zeros(network())
    for layer in model.layers:
        if getattr(layer, "kernel", None) is not None:
            layer.kernel.assign(3 * layer.kernel)  # untrained as it is, it would hardly tell images apart
    content = to_float_flatbuffer(model)
    made = make_variants(content, ["float32", "float32_sparse", "float16", "float16_sparse"])
    assert all(len(made[i].content) < 0.8 * len(made[i - 1].content) for i in (1, 3))
    for variant in made:
        verify(model, variant, images(32)).raise_if_failed()


def test_a_sparse_recipe_of_a_dense_model_is_refused():
    with pytest.raises(ConversionError, match="0% of the weights are zero"):
        make_variants(to_float_flatbuffer(network()), ["float32_sparse"])


def test_a_sparse_recipe_refuses_what_breaks_on_arm():
    import keras

    model = with_zeros(network(lambda x: keras.layers.Conv2D(32, 1)(keras.layers.MaxPooling2D()(x))))
    with pytest.raises(VerificationError, match="MAX_POOL_2D"):
        make_variants(to_float_flatbuffer(model), ["float32_sparse"])


def test_sparse_files_cannot_be_quantized():
    with pytest.raises(ConversionError, match="DENSIFY"):
        quantize(encode_sparse(dense()), "dynamic_int8")
