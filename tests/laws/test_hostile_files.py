"""The law: whatever a `.tflite` holds, the process that inspects, runs or times it goes on, and says one clear line.

Half of the files have bytes changed at random. The other half are sound flatbuffers with one field of a wrong value: no
check of the format finds these, and some of them do crash an interpreter, which is why it has a process of its own.
"""

import functools
import itertools
import random
from collections import Counter

import flatbuffers
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from mutations import damaged, with_a_wrong_field
from tiny_models import convnet, images, variants

import mobileprune as mp
from mobileprune import cli
from mobileprune.console import one_line
from mobileprune.errors import InterpreterError, MobilePruneError
from mobileprune.records import Latency, Variant
from mobileprune.tflite_runner import TfliteRunner

FILES = 1000
SHARDS = 4
LONGEST_LINE = 3000  # the end of what a runtime wrote is quoted


@functools.cache
def seeds() -> dict[str, bytes]:
    """Sound files of every kind: float, quantized in whole and in part, 4-bit, with zeros, and stored sparsely."""
    from litert_quantizer import quantizer, recipe

    from mobileprune.convert import to_float_flatbuffer

    found = {name: variant.content for name, variant in variants().items()}
    four_bits = quantizer.Quantizer(found["float32"], recipe.dynamic_wi4_afp32())
    found["dynamic_int4"] = bytes(four_bits.quantize(enable_progress_report=False).quantized_model)
    model = convnet()
    generator = np.random.default_rng(0)
    for variable in model.trainable_variables:
        if len(variable.shape) > 1:
            variable.assign(variable.numpy() * (generator.random(variable.shape) > 0.8))
    found["zeros"] = to_float_flatbuffer(model)
    found["sparse"] = mp.encode_sparse(found["zeros"])
    return found


def hostile(number: int) -> tuple[bytes, str]:
    """File `number`, always the same, and what is wrong with it."""
    names = sorted(seeds())
    name = names[number // 2 % len(names)]
    harm = with_a_wrong_field if number % 2 else damaged
    content, what = harm(seeds()[name], random.Random(number))
    return content, f"file {number}: {name}, {what}"


def check_line(error: Exception) -> None:
    line = one_line(error)
    assert 20 < len(line) < LONGEST_LINE
    assert line.isprintable()
    assert "Traceback" not in line


def outcome(job) -> str:
    """`"ran"` or `"refused"`; anything but a refusal with a clear line is raised."""
    try:
        job()
    except MobilePruneError as error:
        check_line(error)
        return "refused"
    return "ran"


def jobs(content, path, runner):
    """What is done with files: read, looked at, rewritten; and loaded, asked and run in a process of its own."""
    path.write_bytes(content)

    def run():
        runner.load(content, name="hostile.tflite")
        facts = runner.facts
        answer = runner.run(images(2))
        assert answer.shape[0] == 2
        assert facts.runtime.startswith("LiteRT")

    return {
        "inspect": functools.partial(cli._inspect_tflite, path),
        "encode": functools.partial(mp.encode_sparse, content),
        "check_arm": functools.partial(mp.check_arm, content),
        "run": run,
    }


@pytest.mark.parametrize("runtime", ["litert", "litert_reference"])
@pytest.mark.parametrize("shard", range(SHARDS // 2))
def test_files_are_inspected_and_run_or_refused(tmp_path, capsys, shard, runtime):
    seen = Counter()
    # Half of the files meet XNNPACK, the other half the runtime's own kernels.
    first = shard * 2 + (runtime != "litert")
    with TfliteRunner(seeds()["float32"], timeout_s=5, runtime=runtime) as runner:
        for number in range(first * FILES // SHARDS, (first + 1) * FILES // SHARDS):
            content, what = hostile(number)
            for name, job in jobs(content, tmp_path / "hostile.tflite", runner).items():
                try:
                    seen[name, outcome(job)] += 1
                except BaseException as error:
                    error.add_note(f"{name} of {what}")
                    raise
        # The process, or the one in its place, is in order still.
        runner.load(seeds()["float32"])
        assert runner.run(images(2)).shape == (2, 6)
    capsys.readouterr()
    # Neither are all files harmless nor all beyond use.
    for name in ("inspect", "check_arm", "run"):
        assert min(seen[name, "ran"], seen[name, "refused"]) > FILES // SHARDS // 10


def test_a_scale_without_a_zero_point_is_inspected(tmp_path, capsys):
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(seeds()["int8"], 0))
    graph = model.subgraphs[0]
    graph.tensors[graph.inputs[0]].quantization.zeroPoint = None
    (tmp_path / "a.tflite").write_bytes(packed(model))
    cli._inspect_tflite(tmp_path / "a.tflite")
    assert "zero point 0" in capsys.readouterr().out


def test_files_are_timed_or_refused():
    found = [hostile(number) for number in range(FILES, FILES + 32)]
    for result, (_, what) in zip(timed([content for content, _ in found]), found, strict=True):
        if not isinstance(result, Latency):
            assert isinstance(result, InterpreterError), what
            check_line(result)


def timed(contents):
    files = [Variant("file", str(number), content) for number, content in enumerate(contents)]
    return mp.benchmark_host(files, rounds=1, min_round_ms=0.01, seconds=0.01, timeout_s=20)


def with_input_shape(content, shape):
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content, 0))
    graph = model.subgraphs[0]
    graph.tensors[graph.inputs[0]].shape = list(shape)
    graph.tensors[graph.inputs[0]].shapeSignature = None
    return packed(model)


def packed(model):
    builder = flatbuffers.Builder()
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def test_a_huge_tensor_does_not_take_the_memory():
    large = with_input_shape(seeds()["float32"], (1, 2000, 2000, 3))  # 280 MB, all tensors together
    with TfliteRunner(large) as runner:
        assert runner.facts.inputs[0].shape == (1, 2000, 2000, 3)
    with pytest.raises(InterpreterError), TfliteRunner(large, memory_limit=150 << 20):
        pass


def test_a_huge_input_is_not_made_here_to_time_a_file():
    shapes = [(1, 30000, 30000, 3), (1, 8, 8, 3), (1, 0, 8, 3)]
    huge, sound, empty = timed([with_input_shape(seeds()["float32"], shape) for shape in shapes])
    assert isinstance(sound, Latency)
    for result in (huge, empty):
        assert isinstance(result, InterpreterError)
        check_line(result)


def test_the_law_notices_a_crash_a_hang_and_a_line_that_is_none():
    def wrong():
        raise ValueError("not ours")

    def unclear():
        raise InterpreterError("no")

    with pytest.raises(ValueError, match="not ours"):
        outcome(wrong)
    with pytest.raises(AssertionError):
        outcome(unclear)


def test_the_files_are_as_said():
    contents = [hostile(number)[0] for number in range(100)]
    assert [hostile(number)[0] for number in range(100)] == contents
    assert len(set(contents)) > 95
    for first, second in itertools.pairwise(contents):
        assert first != second
    # Those with a wrong field are whole flatbuffers: writing them anew changes nothing that counts.
    for content in contents[1::2]:
        model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content, 0))
        assert model.version == 3
        assert len(model.subgraphs) == 1
