"""The table of single ops: what is timed, kept and interpolated, with a device whose times are known."""

import json
import math

import numpy as np
import pytest
from tiny_models import shared_convnet, variants

from mobileprune.benchmark.batch import benchmark_batch
from mobileprune.channel_groups import ChannelGraph
from mobileprune.errors import InterpreterError, ModelError, OutputError, SettingsError
from mobileprune.latency_table import FRIENDLY, Curve, LatencyTable, grid
from mobileprune.network_latency import followed_channels
from mobileprune.op_signatures import ResizableFile
from mobileprune.records import Latency
from mobileprune.tflite_graph import read_graph

OVERHEAD_MS = 0.002


def latency(ms: float, device: str = "pretend (16 lanes)", runtime: str = "LiteRT 2.3.0") -> Latency:
    return Latency(device, runtime, 1, "XNNPACK", ms, ms, ms, 3, 1.0, 0)


def work(content: bytes, lanes: int = 1) -> float:
    """Nanoseconds that the pretended device takes: 1 for each multiply-accumulate and each value written."""
    graph = read_graph(content)
    total = 0.0
    for op in graph.ops:
        made = graph.tensors[op.outputs[0]].shape
        out = -(-made[-1] // lanes) * lanes
        total += math.prod(made[:-1]) * out
        if op.name in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"):
            kernel = graph.tensors[op.inputs[1]].shape
            each = math.prod(kernel[1:3]) if op.name == "DEPTHWISE_CONV_2D" else math.prod(kernel[1:])
            total += math.prod(made[:-1]) * out * each
    return total


class Device:
    """A device that counts; `seen` are the files that it was given."""

    def __init__(self, lanes: int = 1, **place):
        self.lanes, self.place, self.seen = lanes, place, []

    def __call__(self, files):
        self.seen += files
        return [latency(OVERHEAD_MS + work(file.content, self.lanes) / 1e6, **self.place) for file in files]


@pytest.fixture(scope="module")
def file() -> ResizableFile:
    content = variants()["float32"].content
    return ResizableFile(content, followed_channels(ChannelGraph(shared_convnet()), read_graph(content)))


def unit(file, name):
    return next(each for each in file.units if name in each.name)


def test_an_op_costs_its_share_of_the_copies_without_the_call(file):
    device = Device()
    table = LatencyTable(device)
    project = unit(file, "project")
    assert table.measure([(file, project, (16,))]) == 1
    # The empty file costs 8 here, which the table takes for a part of the call.
    copies = len(read_graph(device.seen[-1].content).outputs)
    macs = 8 * 8 * 16 * 17
    assert copies > 1
    assert table.ns(file, project, (16,)) == pytest.approx(macs - 8 / copies)


def test_the_same_op_is_timed_once(file):
    device = Device()
    table = LatencyTable(device)
    project = unit(file, "project")
    wanted = [(file, project, (16,)), (file, project, (8,)), (file, project, (16,))]
    assert table.measure(wanted) == 2
    assert table.measure(wanted) == 0
    assert len(device.seen) == 3  # with the empty file


def test_what_was_timed_is_kept_for_the_same_place_only(file, tmp_path):
    project = unit(file, "project")
    first = LatencyTable(Device(), tmp_path)
    first.measure([(file, project, (8,))])
    again = LatencyTable(Device(), tmp_path)
    assert len(again) == 1
    assert again.ns(file, project, (8,)) == first.ns(file, project, (8,))
    assert not len(LatencyTable(Device(runtime="LiteRT 2.4.0"), tmp_path))
    assert not len(LatencyTable(Device(device="another"), tmp_path))
    with pytest.raises(KeyError):
        again.ns(file, project, (16,))
    with pytest.raises(SettingsError, match="has 1 vectors of channels; 2 counts"):
        again.ns(file, project, (16, 8))


@pytest.mark.parametrize(
    "change",
    [
        lambda data: [],
        lambda data: {**data, "schema": 2},
        lambda data: {**data, "runtime": "LiteRT 1.0"},
        lambda data: {**data, "nanoseconds": [1, 2]},
        lambda data: {**data, "nanoseconds": {"CONV_2D": "fast"}},
        lambda data: {**data, "nanoseconds": {"CONV_2D": -1}},
        lambda data: {**data, "nanoseconds": {"CONV_2D": True}},
        lambda data: {**data, "nanoseconds": {"CONV_2D": float("inf")}},
        lambda data: {**data, "nanoseconds": {"CONV_2D": {}}},
    ],
)
def test_a_hostile_cache_is_one_line(file, tmp_path, change):
    LatencyTable(Device(), tmp_path).measure([(file, unit(file, "project"), (16,))])
    (path,) = tmp_path.glob("*.json")
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(OutputError, match="Delete it and run again") as caught:
        LatencyTable(Device(), tmp_path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_cache_that_is_no_json_is_one_line(file, tmp_path):
    LatencyTable(Device(), tmp_path).measure([(file, unit(file, "project"), (16,))])
    (path,) = tmp_path.glob("*.json")
    path.write_bytes(b"\x80 no JSON")
    with pytest.raises(OutputError, match="Delete it and run again"):
        LatencyTable(Device(), tmp_path)


def test_an_op_that_the_device_does_not_run_is_named(file):
    def refuses(files):
        return [latency(0.001) if file.model == "nothing" else InterpreterError("no such kernel") for file in files]

    with pytest.raises(ModelError, match=r"CONV_2D 'project:CONV_2D' cannot be timed on pretend.*no such kernel"):
        LatencyTable(refuses).measure([(file, unit(file, "project"), (16,))])


def test_a_device_that_runs_nothing_says_why():
    with pytest.raises(InterpreterError, match="unplugged"):
        LatencyTable(lambda files: [InterpreterError("unplugged") for _ in files])


def test_a_device_that_answers_for_too_few_files_is_refused(file):
    table = LatencyTable(Device())
    table.measure_files = lambda files: []
    with pytest.raises(InterpreterError, match="1 files were to be timed; the device answered for 0"):
        table.measure([(file, unit(file, "project"), (16,))])


def test_a_device_that_turns_into_another_is_refused(file):
    table = LatencyTable(Device())
    table.measure_files = Device(device="another")
    with pytest.raises(InterpreterError, match="another"):
        table.measure([(file, unit(file, "project"), (16,))])


@pytest.mark.parametrize("full", [1, 8, 16, 24, 64, 72, 96, 1000, 1024])
def test_the_grid_is_friendly_and_ends_in_the_whole(full):
    axis, step = grid(full), FRIENDLY if full > 64 else FRIENDLY // 2
    assert axis[-1] == full
    assert all(count % step == 0 for count in axis[:-1])
    assert (np.diff(axis) >= step).all()


def test_narrow_layers_are_measured_at_more_than_their_whole():
    assert grid(16).tolist() == [8, 16]
    assert grid(24).tolist() == [8, 16, 24]
    assert grid(31).tolist() == [8, 16, 31]
    found = curve((24, 24), lambda cin, cout: 2.0 * cin * cout)
    assert found.ns((12, 8)) == pytest.approx(192)


def test_two_processes_with_one_cache_keep_each_others_times(file, tmp_path):
    first, second = LatencyTable(Device(), tmp_path), LatencyTable(Device(), tmp_path)
    first.measure([(file, unit(file, "project"), (16,))])
    second.measure([(file, unit(file, "project"), (8,))])
    assert len(LatencyTable(Device(), tmp_path)) == 2


class Wide:
    """A file's place in a curve without a file: the time of any counts by a function; joined ones end in their sum."""

    def __init__(self, full, times):
        self.full, self.times = full, times
        joined = full[-1] == sum(full[:-1])
        self.reads = tuple(range(len(full) - 1)) if joined else ()
        self.makes = len(full) - 1
        self.places = {place: place for place in range(len(full))} if joined else {}

    def ns(self, file, unit, counts):
        return self.times(*counts)


def curve(full, times) -> Curve:
    wide = Wide(full, times)
    found = Curve(None, wide, [True] * len(full))
    found.read(wide)
    return found


def test_between_measured_counts_a_product_is_met_exactly():
    found = curve((96, 320), lambda cin, cout: 3.0 * cin * cout + 5.0 * cout + 7.0)
    for counts in ((96, 320), (50, 131), (8, 16), (33, 1)):
        assert found.ns(counts) == pytest.approx(3.0 * counts[0] * counts[1] + 5.0 * counts[1] + 7.0)


def test_steps_are_found_where_there_are_any():
    found = curve((320, 320), lambda cin, cout: cin * (-(-cout // 16) * 16))
    assert found.steps == [1, 16]
    assert found.ns((100, 113)) == found.ns((100, 128)) == pytest.approx(12800)
    assert found.ns((100, 112)) == pytest.approx(11200)


def test_narrow_counts_within_one_step_are_one_point():
    found = curve((48, 48), lambda cin, cout: cin * (-(-cout // 16) * 16))
    assert found.steps == [1, 16]
    assert [found.ns((8, count)) for count in (8, 16, 17, 48)] == pytest.approx([128, 128, 256, 384])


def test_a_whole_between_two_steps_is_rounded_up_too():
    found = curve((200,), lambda count: -(-count // 16) * 16)
    assert found.ns((200,)) == 208
    assert found.ns((184,)) == found.ns((192,)) == pytest.approx(192)


def test_more_channels_never_take_less_time_on_a_monotone_device():
    found = curve((200, 72), lambda cin, cout: (cin + 20) ** 1.2 * (-(-cout // 16) * 16))
    for cin in range(8, 200, 24):
        times = [found.ns((cin, cout)) for cout in range(8, 73, 8)]
        assert (np.diff(times) >= 0).all()


def test_many_inputs_are_narrowed_alike():
    found = curve((64, 64, 64), lambda a, b, c: 10.0 * (a + b + c))
    assert len(found.points) == 4
    assert found.ns((64, 64, 64)) == 1920
    assert found.ns((40, 40, 40)) == pytest.approx(1200)


def test_equal_sums_of_inputs_are_one_point():
    found = curve((32, 32, 24), lambda a, b, c: 10.0 * (a + b + c))
    assert found.ns((8, 8, 8)) == pytest.approx(240)
    assert found.ns((20, 20, 16)) == pytest.approx(560)


def test_what_is_joined_is_as_wide_as_its_inputs_together():
    found = curve((64, 64, 64, 64, 256), lambda *counts: 10.0 * counts[-1])
    assert all(point[-1] == sum(point[:-1]) for point in found.points)
    assert len({sum(point[:-1]) for point in found.points}) == 4
    for width in (8, 32, 50, 64):
        assert found.ns((width, width, width, width, 4 * width)) == pytest.approx(40 * width)


def test_this_machine_times_tiny_files(file):
    table = LatencyTable(lambda files: benchmark_batch(files, passes=1, budget_ms=1.0))
    wanted = [(file, each, each.full) for each in file.units]
    assert table.measure(wanted) == len({file.signature(each, each.full) for each in file.units})
    assert all(np.isfinite(table.ns(*each)) for each in wanted)
    assert "host" in table.place.device
    assert "LiteRT" in table.place.runtime


def test_a_file_that_no_runtime_takes_is_that_files_result():
    good = variants()["float32"]
    bad = type(good)("bad", "float32", b"no .tflite at all")
    one, other, again = benchmark_batch([good, bad, good], passes=2, budget_ms=1.0)
    assert isinstance(other, InterpreterError)
    assert one.p50_ms > 0
    assert again.p50_ms > 0
