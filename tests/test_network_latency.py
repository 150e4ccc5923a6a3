"""A network's latency by its ops: the sum, resized files, and plans within a budget, with a device that counts."""

import dataclasses

import numpy as np
import pytest
from test_latency_table import Device, work
from tiny_models import convnet, images, shared_convnet, variants

import mobileprune as mp
from mobileprune.channel_groups import ChannelGraph
from mobileprune.errors import ModelError, PlanError, SettingsError
from mobileprune.latency_setup import cache_folder, latency_model, measuring
from mobileprune.latency_table import LatencyTable
from mobileprune.network_latency import LatencyModel, _line, followed_channels
from mobileprune.op_signatures import ResizableFile
from mobileprune.pruning_plan import removed_roots
from mobileprune.records import Variant
from mobileprune.tflite_graph import read_graph


def signatures(content: bytes) -> list[str]:
    """What the latency of a file depends on."""
    file = ResizableFile(content, {})
    return [file.signature(unit, ()) for unit in file.units]


@pytest.fixture(scope="module")
def graph() -> ChannelGraph:
    return ChannelGraph(wide())


_MADE = {}


def wide():
    """An inverted residual with a squeeze, a padding before a stride, a concatenation and a dense head; made once."""
    import keras

    if "model" in _MADE:
        return _MADE["model"]
    layers = keras.layers
    inputs = keras.Input((16, 16, 3), name="image")
    x = layers.ZeroPadding2D(1, name="pad")(inputs)
    x = layers.Conv2D(32, 3, strides=2, use_bias=False, name="stem")(x)
    x = first = layers.ReLU(6.0, name="stem_relu")(layers.BatchNormalization(name="stem_norm")(x))
    x = layers.Conv2D(96, 1, activation="relu", name="expand")(x)
    x = layers.DepthwiseConv2D(3, padding="same", name="depthwise")(x)
    s = layers.GlobalAveragePooling2D(keepdims=True, name="squeeze")(x)
    s = layers.Conv2D(96, 1, activation="sigmoid", name="excite")(s)
    x = layers.Multiply(name="scaled")([x, s])
    x = layers.Add(name="add")([first, layers.Conv2D(32, 1, name="project")(x)])
    x = layers.Concatenate(name="both")([x, layers.Conv2D(64, 1, name="branch")(x)])
    x = layers.MaxPooling2D(name="pooled")(layers.Conv2D(48, 3, padding="same", name="mixed")(x))
    x = layers.Dense(40, activation="relu", name="hidden")(layers.Flatten(name="flat")(x))
    _MADE["model"] = keras.Model(inputs, layers.Dense(7, name="head")(x), name="wide")
    _MADE["content"] = mp.to_float_flatbuffer(_MADE["model"])
    return _MADE["model"]


def by_counting(graph, lanes=1) -> tuple[LatencyModel, Device]:
    device = Device(lanes)
    found = LatencyModel(graph, _MADE["content"], LatencyTable(device))
    found.calibrate()
    return found, device


def choice(graph, seed, share=0.5):
    plan = mp.plan_channels(wide(), macs=share, importance="random", seed=seed)
    return plan, graph.without(removed_roots(graph, plan))


def test_a_resized_file_has_the_ops_of_the_pruned_and_converted_model(graph):
    plan, alive = choice(graph, 1)
    latency, _ = by_counting(graph)
    converted = mp.to_float_flatbuffer(mp.prune_channels(wide(), plan))
    resized = latency.file.resized(alive)
    assert signatures(resized) == signatures(converted)
    assert signatures(resized) != signatures(_MADE["content"])  # so it can fail


def test_a_resized_file_runs(graph):
    latency, _ = by_counting(graph)
    files = [Variant("cut", "float32", latency.file.resized(choice(graph, seed)[1])) for seed in (1, 2)]
    files.append(Variant("whole", "float32", latency.file.resized(graph.everything())))
    assert len(files[-1].content) == pytest.approx(len(_MADE["content"]), rel=0.01)
    for result in mp.benchmark_host([*files], rounds=1, min_round_ms=0.1):
        assert isinstance(result, mp.Latency), result


def test_in_int8_too():
    model, content = shared_convnet(), variants()["int8"].content
    graph = ChannelGraph(model)
    plan = mp.plan_channels(model, ratio=0.5, round_to=8)
    file = ResizableFile(content, followed_channels(graph, read_graph(content)))
    resized = file.resized(graph.without(removed_roots(graph, plan)))
    (result,) = mp.benchmark_host([Variant("cut", "int8", resized)], rounds=1, min_round_ms=0.1)
    assert isinstance(result, mp.Latency), result
    (smaller,) = mp.convert(mp.prune_channels(model, plan), ["int8"], calibration=images(4))
    assert signatures(resized) == signatures(smaller.content)


def test_narrow_networks_bring_sums_to_what_they_take(graph):
    latency, _ = by_counting(graph)
    latency.sums, latency.times = np.array([100.0, 200.0, 400.0]), np.array([80.0, 200.0, 600.0])
    latency.offset = 0.0
    assert [latency.whole(each) for each in (50, 100, 150, 300, 400, 800)] == [40, 80, 140, 400, 600, 1200]
    for each in (50, 150, 300, 800):
        assert latency.sum_for(latency.whole(each)) == pytest.approx(each)


def test_measured_networks_give_a_line_that_is_no_worse_than_a_factor():
    sums = np.array([400.0, 100.0, 250.0])
    ends, times = _line(sums, 1.5 * sums - 60)
    assert ends.tolist() == [100, 400]
    assert times == pytest.approx([90, 540])
    # Neighbours on the processor that make less work take longer: a factor.
    wrong = np.array([200.0, 300.0, 250.0])
    ends, times = _line(sums, wrong)
    assert times / ends == pytest.approx([np.median(wrong / sums)] * 2)
    assert [each.tolist() for each in _line(np.array([50.0]), np.array([70.0]))] == [[50], [70]]


def test_a_chain_takes_the_sum_of_its_ops(graph):
    latency, _device = by_counting(graph)
    assert latency.times / latency.sums == pytest.approx(1, rel=0.03)  # the device knows of no caches
    whole = graph.everything()
    assert latency.ns(whole) == pytest.approx(work(_MADE["content"]) + 2000, rel=1e-3)
    for seed in range(5):
        alive = choice(graph, seed, 0.3 + 0.1 * seed)[1]
        assert latency.ns(alive) == pytest.approx(work(latency.file.resized(alive)) + 2000, rel=0.03)


def test_shapes_cost_nothing_and_a_padding_goes_with_its_reader(graph):
    latency, _ = by_counting(graph)
    kinds = [unit.name.split()[0] for unit in latency.units]
    assert "PAD+CONV_2D" in kinds
    assert not {"PAD", "RESHAPE"} & set(kinds)
    assert "RESHAPE" in read_graph(_MADE["content"]).histogram()


def test_fewer_channels_never_take_longer_where_kernels_do_not(graph):
    latency, _ = by_counting(graph, lanes=16)
    for group in (group for group in graph.groups if group.frozen is None):
        times = [latency.ns(graph.without(group.roots[:count])) for count in range(0, group.size, 8)]
        assert (np.diff(times) <= 1).all(), group.name


def test_what_an_addition_joins_is_one_count(graph):
    latency, _ = by_counting(graph)
    units = {unit.name: unit for unit in latency.units}
    assert units["ADD 'add:ADD'"].full == (32,)
    assert units["CONV_2D 'expand:CONV_2D'"].full == (32, 96)


def test_what_cuts_by_constants_is_named():
    import keras

    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(32, 1, name="first")(inputs)
    x = keras.layers.Conv2D(32, 1, name="second")(x[..., :16])
    model = keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(x))
    with pytest.raises(ModelError, match=r"SLICE.*places channels by constants.*keep="):
        latency_model(model, Device(), cache="")


def plan(graph, lanes=1, **target):
    latency, device = by_counting(graph, lanes)
    return mp.plan_channels(wide(), device=latency, **target), latency, device


@pytest.mark.parametrize("importance", ["l2", "random"])
@pytest.mark.parametrize("scope", ["global", "local"])
@pytest.mark.parametrize("lanes", [1, 16])
def test_the_measured_network_keeps_the_budget(graph, importance, scope, lanes):
    found, latency, _ = plan(graph, lanes, speedup=2.0, importance=importance, scope=scope)
    alive = graph.without(removed_roots(graph, found))
    real = work(latency.file.resized(alive), lanes) + 2000
    assert real <= 1.02 * latency.ns(graph.everything()) / 2
    assert found.latency.ms == pytest.approx(real / 1e6)
    assert found.latency.before_ms == pytest.approx((work(_MADE["content"], lanes) + 2000) / 1e6)
    assert found.latency.ms > 0.8 * found.latency.before_ms / 2  # and not far below it


def test_milliseconds_and_speedup_are_the_same_budget(graph):
    by_speed, latency, _ = plan(graph, speedup=2.0)
    by_time, _, _ = plan(graph, latency_ms=latency.ms(graph.everything()) / 2)
    assert by_time.groups == by_speed.groups
    assert by_time.target.startswith("latency_ms=")
    assert by_speed.target == "speedup=2 recipe=float32"


def test_a_table_that_is_wrong_is_corrected_once(graph):
    latency, device = by_counting(graph)
    latency.times = 0.8 * latency.times  # it now believes that everything is faster than it is
    whole = latency.measure([graph.everything()])[0]
    device.seen.clear()
    found = mp.plan_channels(wide(), latency_ms=whole / 2e6, device=latency)
    assert found.latency.ms <= 1.02 * whole / 2e6
    assert len(device.seen) == 4  # the whole and the cut network, twice


def test_channels_that_cost_most_time_go_first_not_those_that_cost_macs(graph):
    from mobileprune.ranking import Ranking

    class Slow(Device):
        """Depthwise convolutions take a thousand times as long."""

        def __call__(self, files):
            results = super().__call__(files)
            return [
                dataclasses.replace(result, p50_ms=result.p50_ms + 9000 * slow(file.content) / 1e6)
                for file, result in zip(files, results, strict=True)
            ]

    def slow(content):
        graph = read_graph(content)
        depthwise = [op for op in graph.ops if op.name == "DEPTHWISE_CONV_2D"]
        return sum(np.prod(graph.tensors[op.outputs[0]].shape) for op in depthwise)

    alike = {
        group.name: Ranking(np.arange(group.size), np.ones(group.size), absolute=True)
        for group in graph.groups
        if group.frozen is None
    }
    latency = LatencyModel(graph, _MADE["content"], LatencyTable(Slow()))
    latency.calibrate()
    timed = mp.plan_channels(wide(), speedup=1.3, importance=alike, device=latency)
    counted = mp.plan_channels(wide(), macs=0.7, importance=alike)

    def lost(found):
        return {entry.group: len(entry.remove) for entry in found.groups if entry.remove}

    assert list(lost(timed)) == ["expand"]
    assert lost(counted) != lost(timed)


def test_exactly_one_target(graph):
    with pytest.raises(PlanError, match=r"exactly one target.*latency_ms, speedup.*'macs': 0.5"):
        mp.plan_channels(wide(), macs=0.5, latency_ms=1.0)
    with pytest.raises(PlanError, match="exactly one"):
        mp.plan_channels(wide(), speedup=2.0, latency_ms=1.0)


@pytest.mark.parametrize("speedup", [1.0, 0.5, float("inf"), float("nan"), -2.0])
def test_a_speedup_is_above_1(speedup):
    with pytest.raises(PlanError, match="speedup="):
        mp.plan_channels(wide(), speedup=speedup)


def test_a_budget_below_the_floor_is_refused_with_the_floor(graph):
    latency, _ = by_counting(graph)
    with pytest.raises(
        PlanError, match=r"cannot go below .* ms \(\d+% of the model's\) on pretend.*1e-06 ms were asked"
    ):
        mp.plan_channels(wide(), latency_ms=1e-6, device=latency)


def test_the_latency_of_another_model_is_refused(graph):
    latency, _ = by_counting(graph)
    with pytest.raises(PlanError, match="another model than 'tiny'"):
        mp.plan_channels(shared_convnet(), speedup=1.5, device=latency)


def test_a_plan_for_a_latency_is_saved_and_read(graph, tmp_path):
    found, _, _ = plan(graph, speedup=1.5)
    assert mp.PruningPlan.load(found.save(tmp_path / "plan.json")) == found
    assert found.latency.device == "pretend (16 lanes)"
    assert mp.PruningPlan.load(mp.plan_channels(wide(), macs=0.5).save(tmp_path / "old.json")).latency is None


def test_an_unknown_device_is_refused():
    with pytest.raises(SettingsError, match=r"Unknown device 'phone'\. Known: host, arm64"):
        measuring("phone")


def test_the_cache_is_where_it_is_said(monkeypatch, tmp_path):
    monkeypatch.setenv("MOBILEPRUNE_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path / "latency"


def test_a_small_network_on_this_machine(monkeypatch, tmp_path):
    monkeypatch.setenv("MOBILEPRUNE_CACHE", str(tmp_path))
    model = convnet()
    found = mp.plan_channels(model, latency_ms=10.0, round_to=8)
    assert not any(entry.remove for entry in found.groups)  # it takes microseconds
    assert found.latency.recipe == "float32"
    (kept,) = (tmp_path / "latency").glob("host_*.json")
    before = kept.read_bytes()
    again = latency_model(model)
    assert again.measured == 0
    assert kept.read_bytes() == before
    assert again.ms(again.graph.everything()) > 0
