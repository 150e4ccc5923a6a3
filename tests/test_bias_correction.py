import flatbuffers
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from tiny_models import SIZE, convnet, images, reference, variants

from mobileprune.activations import Activations
from mobileprune.bias_correction import correct_biases
from mobileprune.calibration import calibrate
from mobileprune.errors import ConversionError, DatasetError
from mobileprune.recipes import quantize
from mobileprune.tflite_graph import KERNEL_OPS, read_graph
from mobileprune.tflite_runner import TfliteRunner

pytestmark = pytest.mark.filterwarnings("ignore:.*calibration images")
DATA = images(48, seed=1)


@pytest.fixture(scope="module")
def content():
    return variants()["float32"].content


@pytest.fixture(scope="module")
def quantized(content):
    return quantize(content, "int8", calibrate(content, DATA))


def kernels(graph):
    return [op for op in graph.ops if op.name in KERNEL_OPS]


def biases(content):
    graph = read_graph(content)
    return [(graph.tensors[op.inputs[2]].data, graph.tensors[op.inputs[2]]) for op in kernels(graph)]


def with_biases(content, new):
    """The file with `new(values, number of the op)` in the place of each int32 bias."""
    for number, (data, _) in enumerate(biases(content)):
        assert content.count(data) == 1
        content = content.replace(data, new(np.frombuffer(data, np.int32), number).astype(np.int32).tobytes())
    return content


def channel_means(content):
    """The mean of every channel that a convolution or dense layer gives, one array an op."""
    activations = Activations(content)
    wanted = [op.outputs[0] for op in kernels(activations.graph)]
    sums = dict.fromkeys(wanted, 0.0)
    for image in DATA:
        for tensor, values in activations.run(image[None]):
            if tensor.index in sums:
                sums[tensor.index] += values.reshape(-1, values.shape[-1]).mean(axis=0) / len(DATA)
    return [sums[index] for index in wanted]


def shifts(content, other):
    """How far the means of each op's channels lie apart, as a share of their spread."""
    pairs = zip(channel_means(content), channel_means(other), strict=True)
    return np.array([np.abs(one - two).mean() / one.std() for one, two in pairs])


def error(content):
    with TfliteRunner(content) as runner:
        return np.std(runner.run(images(256, seed=7)) - reference())


def test_means_come_back_and_nothing_but_biases_changes(content, quantized):
    corrected = correct_biases(content, quantized, DATA)
    before, after = shifts(content, quantized), shifts(content, corrected)
    assert after.mean() < 0.3 * before.mean()
    assert len(corrected) == len(quantized)
    old = [data for data, _ in biases(quantized)]
    assert with_biases(corrected, lambda _, number: np.frombuffer(old[number], np.int32)) == quantized
    assert error(corrected) < error(quantized)


@pytest.mark.parametrize("recipe", ["int8", "int8_float_io", "int16x8"])
def test_planted_shifts_are_taken_back(content, recipe):
    """Other biases: the answers are wrong, and nearly right again afterwards (ReLU6 hides a part of the shift)."""
    right = quantize(content, recipe, calibrate(content, DATA))
    kind = np.int64 if recipe == "int16x8" else np.int32
    wrong = right
    for data, tensor in biases(right):
        values = np.frombuffer(data, kind) + (0.2 / np.array(tensor.scales)).astype(kind)
        wrong = wrong.replace(data, values.astype(kind).tobytes())
    assert error(wrong) > 3 * error(right)
    assert error(correct_biases(content, wrong, DATA)) < 0.4 * error(wrong)


def test_batches_will_do(content, quantized):
    corrected = correct_biases(content, quantized, iter([(DATA[:30], np.zeros(30)), DATA[30:]]))
    assert corrected == correct_biases(content, quantized, DATA)


@pytest.mark.parametrize("sign", [-1, 1])
def test_biases_stop_at_the_ends_of_their_integers(quantized, sign):
    """A model whose last bias no int32 can hold: it goes to the end and does not wrap around."""
    from mobileprune.convert import to_float_flatbuffer

    shifted = convnet()
    shifted.get_layer("head").bias.assign_add([sign * 1e9] * 6)
    corrected = correct_biases(to_float_flatbuffer(shifted), quantized, DATA)
    limits = np.iinfo(np.int32)
    values = np.frombuffer(biases(corrected)[-1][0], np.int32)
    assert (values == (limits.max if sign > 0 else limits.min)).all()


def test_biases_that_share_their_bytes_stay(content, quantized):
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(quantized, 0))
    graph = read_graph(quantized)
    first, second = (op.inputs[2] for op in kernels(graph)[1:3])
    for buffer in model.buffers:
        if buffer.offset > 1:
            buffer.data = np.frombuffer(quantized, np.uint8, buffer.size, buffer.offset)
            buffer.offset = buffer.size = 0
    model.subgraphs[0].tensors[second].buffer = model.subgraphs[0].tensors[first].buffer
    builder = flatbuffers.Builder(len(quantized))
    builder.Finish(model.Pack(builder), b"TFL3")
    shared = bytes(builder.Output())
    corrected = read_graph(correct_biases(content, shared, DATA))
    changed = {
        op.name
        for op, twin in zip(kernels(corrected), kernels(read_graph(shared)), strict=True)
        if corrected.tensors[op.inputs[2]].data != read_graph(shared).tensors[twin.inputs[2]].data
    }
    assert corrected.tensors[first].data == corrected.tensors[second].data == read_graph(shared).tensors[first].data
    assert changed == {"CONV_2D", "FULLY_CONNECTED"}


def test_files_that_do_not_belong_together_are_refused(content, quantized):
    import keras

    from mobileprune.convert import to_float_flatbuffer

    inputs = keras.Input((SIZE, SIZE, 3))
    other = keras.Model(inputs, keras.layers.Conv2D(4, 3)(inputs))
    with pytest.raises(ConversionError, match="was not made of the float one: their 4 and 1 convolutions"):
        correct_biases(to_float_flatbuffer(other), quantized, DATA)


def test_files_without_integer_biases_are_refused(content):
    with pytest.raises(ConversionError, match="no integer biases"):
        correct_biases(content, quantize(content, "dynamic_int8"), DATA)


@pytest.mark.parametrize("data", [DATA[:0], DATA[..., :1], DATA.astype(np.float64)])
def test_images_that_do_not_fit_are_refused(content, quantized, data):
    with pytest.raises(DatasetError):
        correct_biases(content, quantized, data)
