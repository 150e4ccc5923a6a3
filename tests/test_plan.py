import functools

import keras
import numpy as np
import pytest
from architectures import ARCHITECTURES, randomise
from hypothesis import given, settings
from hypothesis import strategies as st
from plan_networks import WIDTHS, chain

from mobileprune.allocation import SCOPES, structure
from mobileprune.channel_groups import ChannelGraph, channel_groups
from mobileprune.errors import DatasetError, PlanError
from mobileprune.file_size import FileSize
from mobileprune.importance import score
from mobileprune.inspect import model_facts
from mobileprune.plan import plan_channels, pruning_floor
from mobileprune.prune import prune_channels
from mobileprune.pruning_plan import cost_of_plan, removed_roots
from mobileprune.ranking import Ranking
from mobileprune.scoring import Scoring

layers = keras.layers
model = functools.cache(chain)  # planning never changes it


def kept(plan):
    return {entry.group: entry.size - len(entry.remove) for entry in plan.groups}


def scores_of(importance, seed=0):
    graph = ChannelGraph(model())
    scoring = Scoring(model(), graph, seed=seed)
    return {group.name: score(scoring, group, importance) for group in graph.groups}


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["macs", "params"]),
    st.floats(0.01, 1),
    st.sampled_from(["global", "local", "isomorphic"]),
    st.sampled_from([1, 3, 4, 8, 16]),
    st.sampled_from([0.3, 0.75, 0.9]),
    st.sampled_from([1, 7, 16]),
    st.sampled_from(["l1", "l2", "fpgm", "random"]),
    st.sampled_from(["sum", "mean", "max", "gaussian", "none"]),
)
def test_a_plan_keeps_its_budget_its_multiples_and_its_largest_share_or_is_refused(
    target, wanted, scope, round_to, max_ratio, min_channels, importance, normalise
):
    before = getattr(model_facts(model()), target)
    limits = {"round_to": round_to, "max_ratio": max_ratio, "min_channels": min_channels}
    arguments = {"scope": scope, "importance": importance, "normalise": normalise, **limits}
    try:
        plan = plan_channels(model(), **{target: wanted}, **arguments)
    except PlanError as error:
        floor = int(str(error).split("below ")[1].split(" ")[0].replace(",", ""))
        assert floor > wanted * before
        assert floor == getattr(pruning_floor(model(), **limits), target)
        reached = plan_channels(model(), **{target: float(floor)}, **arguments)
        assert getattr(reached, target) == floor
        return
    assert getattr(plan, target) <= wanted * before
    for name, left in kept(plan).items():
        size = WIDTHS.get(name)
        if size is None:
            continue
        assert left == size or left % round_to == 0
        assert left >= size * (1 - max_ratio) - 1e-9
        assert left >= min(size, min_channels)


@settings(max_examples=30, deadline=None)
@given(st.floats(0.1, 0.9), st.sampled_from(["l1", "l2", "fpgm", "random"]), st.sampled_from(SCOPES))
def test_what_goes_scores_no_higher_than_what_stays(wanted, importance, scope):
    plan = plan_channels(model(), macs=wanted, importance=importance, scope=scope, round_to=1)
    scores = scores_of(importance)
    for entry in plan.groups:
        if not entry.remove:
            continue
        gone = np.isin(np.arange(entry.size), entry.remove)
        assert scores[entry.group][gone].max() <= scores[entry.group][~gone].min()


@pytest.mark.parametrize("scope", ["global", "local"])
def test_a_fine_rounding_comes_close_to_the_target(scope):
    plan = plan_channels(model(), macs=0.5, scope=scope, round_to=1)
    assert 0.47 * plan.macs_before < plan.macs <= 0.5 * plan.macs_before


def test_a_target_above_one_is_absolute():
    plan = plan_channels(model(), macs=400_000, round_to=1)
    assert plan.macs <= 400_000
    assert plan.macs_before == model_facts(model()).macs
    assert plan_channels(model(), params=5_000, round_to=1).params <= 5_000


def test_a_target_that_is_met_already_removes_nothing():
    for arguments in ({"macs": 1.0}, {"params": 1}, {"macs": 10**12}):
        plan = plan_channels(model(), **arguments)
        assert not any(entry.remove for entry in plan.groups)
        assert (plan.macs, plan.params) == (plan.macs_before, plan.params_before)


def test_a_ratio_removes_the_same_share_of_every_group():
    plan = plan_channels(model(), ratio=0.25, round_to=1)
    assert {name: kept(plan)[name] for name in WIDTHS} == {"stem": 24, "wide": 36, "odd": 15, "small": 6}


def test_local_removes_alike_where_global_follows_the_scores():
    made = randomise(keras.models.clone_model(model()))
    wide = made.get_layer("wide")
    kernel = np.array(wide.kernel)
    kernel[..., :40] *= 1e-3
    wide.kernel.assign(kernel)
    made.get_layer("odd").kernel.assign(np.array(made.get_layer("odd").kernel) * np.r_[[1e-3] * 40, [1] * 8][:, None])
    together = kept(plan_channels(made, macs=0.6, scope="global", round_to=1))
    alike = kept(plan_channels(made, macs=0.6, scope="local", round_to=1))
    assert together["wide"] / 48 < together["stem"] / 32 - 0.2
    shares = [alike[name] / size for name, size in WIDTHS.items()]
    assert max(shares) - min(shares) < 0.15


def test_rounding_leaves_groups_whole_that_are_no_larger():
    left = kept(plan_channels(model(), ratio=0.5, round_to=8))
    assert left == {"image": 3, "stem": 16, "wide": 24, "odd": 8, "small": 8, "head": 5}


def test_channels_of_inputs_and_outputs_stay_with_their_reason():
    plan = plan_channels(model(), ratio=0.9, round_to=1)
    entries = {entry.group: entry for entry in plan.groups}
    assert (entries["image"].remove, entries["image"].frozen) == ((), "model input 'image'")
    assert entries["head"].remove == ()
    assert entries["head"].frozen == "model output 'head'"
    assert all(entries[name].frozen is None and entries[name].remove for name in WIDTHS)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_frozen_group_loses_nothing_in_any_architecture(name):
    made = ARCHITECTURES[name]()
    frozen = {group.name: group.frozen for group in channel_groups(made) if group.frozen}
    plan = plan_channels(made, ratio=0.9, round_to=1)
    assert {entry.group: entry.frozen for entry in plan.groups if entry.frozen} == frozen
    assert not any(entry.remove for entry in plan.groups if entry.group in frozen)
    assert sum(bool(entry.remove) for entry in plan.groups) == len(plan.groups) - len(frozen)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_cost_in_the_plan_is_the_cost_of_the_smaller_model(name):
    made = ARCHITECTURES[name]()
    plan = plan_channels(made, macs=0.6, round_to=2)
    facts = model_facts(prune_channels(made, plan))
    assert (facts.macs, facts.params) == (plan.macs, plan.params)
    before = model_facts(made)
    assert (before.macs, before.params) == (plan.macs_before, plan.params_before)


def test_keep_patterns_keep_whole_groups_and_say_so():
    plan = plan_channels(model(), ratio=0.5, round_to=1, keep=["st*", "odd"])
    entries = {entry.group: entry for entry in plan.groups}
    assert entries["stem"].frozen == "kept by 'st*'"
    assert entries["odd"].frozen == "kept by 'odd'"
    assert not entries["stem"].remove
    assert not entries["odd"].remove
    assert len(entries["wide"].remove) == 24


def test_keep_reaches_a_group_by_any_of_its_layers():
    inputs = keras.Input((4,))
    parts = [layers.Dense(8, name=name)(inputs) for name in ("first", "second")]
    made = keras.Model(inputs, layers.Dense(2)(layers.Add()(parts)))
    for name in ("first", "second"):
        plan = plan_channels(made, ratio=0.5, round_to=1, keep=[name])
        assert not any(entry.remove for entry in plan.groups)


def test_a_keep_pattern_without_a_match_lists_the_layers():
    with pytest.raises(PlanError, match=r"keep='block_\*' matches no layer.*stem, wide, odd, small, head"):
        plan_channels(model(), macs=0.5, keep=["block_*"])


def test_an_unreachable_target_tells_the_floor_and_the_way_out():
    with pytest.raises(
        PlanError, match=r"macs cannot go below ([\d,]+) \(\d+% of the model\).*lower round_to"
    ) as caught:
        plan_channels(model(), macs=0.001, round_to=8)
    floor = float(str(caught.value).split("below ")[1].split(" ")[0].replace(",", ""))
    assert plan_channels(model(), macs=floor, round_to=8).macs == floor
    with pytest.raises(PlanError, match="cannot go below"):
        plan_channels(model(), macs=floor - 1, round_to=8)


def test_a_model_that_is_kept_whole_has_itself_for_a_floor():
    with pytest.raises(PlanError, match="100% of the model"):
        plan_channels(model(), params=0.9, keep=["*"])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({}, "exactly one target of macs, params, file_bytes, ratio, channels, latency_ms, speedup. Received: none"),
        ({"macs": 0.5, "ratio": 0.5}, "exactly one target"),
        ({"macs": 0}, "leaves no channels"),
        ({"macs": -1}, "leaves no channels"),
        ({"params": float("nan")}, "leaves no channels"),
        ({"ratio": 0.0}, "leaves no channels"),
        ({"ratio": 1.0}, "leaves no channels"),
        ({"ratio": 1.5}, "leaves no channels"),
        ({"ratio": 0.95}, "max_ratio=0.9"),
        ({"ratio": 0.5, "max_ratio": 0.25}, "max_ratio=0.25"),
        ({"macs": 0.5, "round_to": 0}, "round_to"),
        ({"macs": 0.5, "max_ratio": 0.0}, "max_ratio"),
        ({"macs": 0.5, "max_ratio": 1.0}, "max_ratio"),
        ({"file_bytes": 0}, "leaves no channels"),
        ({"channels": {}}, "mapping of layers to channels kept"),
        ({"channels": 24}, "mapping of layers to channels kept"),
        ({"macs": 0.5, "scope": "everywhere"}, "'everywhere'. Known: global, local, isomorphic"),
        ({"macs": 0.5, "importance": "beauty"}, "'beauty'. Known: l1"),
        ({"macs": 0.5, "importance": "taylor"}, "'taylor' needs calibration="),
        ({"macs": 0.5, "normalise": "median"}, "'median'. Known: sum"),
        ({"macs": 0.5, "recipe": "int3"}, "'int3' is not known"),
        ({"macs": 0.5, "min_channels": 0}, "min_channels"),
    ],
)
def test_senseless_arguments_are_refused(arguments, says):
    with pytest.raises(PlanError, match=says):
        plan_channels(model(), **arguments)


@pytest.mark.parametrize("target", ["macs", "params", "file_bytes"])
def test_a_target_below_the_floor_is_refused_before_any_score(target):
    def untouched(*_):
        raise AssertionError("a score was asked for")

    with pytest.raises(PlanError, match=f"{target} cannot go below"):
        plan_channels(model(), **{target: 0.001}, importance=untouched)
    with pytest.raises(AssertionError, match="a score was asked for"):
        plan_channels(model(), **{target: 0.9}, importance=untouched)


def test_the_floor_is_the_cost_of_the_least_of_every_group():
    limits = {"round_to": 4, "max_ratio": {"stem": 0.5, "*": 0.75}, "min_channels": {"small": 6}, "keep": ["odd"]}
    least = {"stem": 16, "wide": 12, "small": 8}
    smallest = plan_channels(model(), channels=least)
    assert pruning_floor(model(), **limits) == cost_of_plan(model(), smallest)
    assert pruning_floor(model(), **limits).macs == plan_channels(model(), macs=float(smallest.macs), **limits).macs
    only = pruning_floor(model(), prune_only=["stem"])
    assert only == cost_of_plan(model(), plan_channels(model(), channels={"stem": 8}))


def test_channels_are_kept_as_they_are_counted():
    plan = plan_channels(model(), channels={"stem": 13, "*d*": 7}, round_to=8)
    assert kept(plan) == {"image": 3, "stem": 13, "wide": 7, "odd": 7, "small": 8, "head": 5}
    assert plan.target == "channels=stem:13,*d*:7"
    assert prune_channels(model(), plan).get_layer("wide").filters == 7
    # The least important of them go.
    gone = {entry.group: set(entry.remove) for entry in plan.groups}["stem"]
    assert gone == set(np.argsort(scores_of("l2")["stem"])[:19].tolist())


@pytest.mark.parametrize("recipe", ["float32", "float16", "dynamic_int8", "int8"])
def test_file_bytes_are_a_budget(recipe):
    graph = ChannelGraph(model())
    size = FileSize(graph, recipe)
    plan = plan_channels(model(), file_bytes=0.6, recipe=recipe, round_to=1)
    left = size.bytes(graph.without(removed_roots(graph, plan)))
    assert 0.57 < left / size.bytes(graph.everything()) <= 0.6
    assert plan.target == f"file_bytes=0.6 recipe={recipe}"
    assert plan_channels(model(), file_bytes=float(left), recipe=recipe, round_to=1).groups == plan.groups


def test_prune_only_leaves_the_rest_whole():
    plan = plan_channels(model(), ratio=0.5, round_to=1, prune_only=["stem", "odd"])
    assert kept(plan) == {"image": 3, "stem": 16, "wide": 48, "odd": 10, "small": 8, "head": 5}
    assert {entry.group: entry.frozen for entry in plan.groups}["wide"] == "'wide' is not in prune_only"


def test_limits_of_single_layers():
    limits = {"max_ratio": {"stem": 0.25, "*": 0.9}, "min_channels": {"odd": 15}}
    assert kept(plan_channels(model(), ratio=0.5, round_to=1, **limits)) == {
        "image": 3,
        "head": 5,
        "stem": 24,
        "wide": 24,
        "odd": 15,
        "small": 4,
    }
    with pytest.raises(PlanError, match="more than any group may lose"):
        plan_channels(model(), ratio=0.95, max_ratio={"stem": 0.25})


@pytest.mark.parametrize("importance", ["fpgm", "taylor"])
@pytest.mark.parametrize("scope", ["global", "local", "isomorphic"])
def test_every_scope_works_with_importances_of_every_kind(importance, scope):
    images = np.random.default_rng(0).normal(size=(8, 8, 8, 3)).astype("float32")
    plan = plan_channels(model(), macs=0.5, importance=importance, scope=scope, round_to=2, calibration=images)
    assert 0.35 < plan.macs / plan.macs_before <= 0.5
    assert (plan.importance, plan.scope) == (importance, scope)


def test_the_normalisation_matters_and_is_recorded():
    plans = [plan_channels(model(), macs=0.5, round_to=1, normalise=name) for name in ("sum", "mean", "gaussian")]
    assert [plan.normalise for plan in plans] == ["sum", "mean", "gaussian"]
    assert len({plan.groups for plan in plans}) == 3


def test_a_function_ranks_and_leaves_its_name():
    def last_ones_first(graph, group, values):
        return np.arange(group.size)[::-1]

    plan = plan_channels(model(), ratio=0.25, round_to=1, importance=last_ones_first)
    assert plan.importance == "last_ones_first"
    assert {entry.group: entry.remove for entry in plan.groups}["small"] == (6, 7)


def test_finished_rankings_decide_what_goes():
    free = WIDTHS
    made = {
        name: Ranking(np.arange(size)[::-1], np.full(size, 0.0 if name == "wide" else 9.0), absolute=True)
        for name, size in free.items()
    }
    plan = plan_channels(model(), macs=0.6, round_to=1, importance=made)
    assert plan.importance == "rankings"
    removed = {entry.group: entry.remove for entry in plan.groups}
    assert removed["wide"] == tuple(range(48 - len(removed["wide"]), 48))
    assert removed["wide"]
    assert not any(removed[name] for name in free if name != "wide")
    with pytest.raises(PlanError, match="no ranking for 'odd'"):
        plan_channels(model(), macs=0.6, importance={name: made[name] for name in ("stem", "wide")})


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_isomorphic_classes_lose_the_same_share(name):
    made = randomise(ARCHITECTURES[name]())
    graph = ChannelGraph(made)
    plan = plan_channels(made, macs=0.6, scope="isomorphic", round_to=1, max_ratio=0.99)
    classes = {}
    for group, entry in zip(graph.groups, plan.groups, strict=True):
        if not group.frozen:
            classes.setdefault(structure(graph, group), []).append((len(entry.remove), group.size))
    lost, sizes, counts = np.array([[*map(sum, zip(*parts, strict=True)), len(parts)] for parts in classes.values()]).T
    # A class loses whole units, and refilling puts back one of each group at most.
    share = ((lost - 1) / sizes).max()
    assert share > 0.1
    assert (lost + counts >= share * sizes).all()


def test_weights_that_are_not_finite_are_refused():
    made = keras.models.clone_model(model())
    made.get_layer("odd").kernel.assign(np.full(made.get_layer("odd").kernel.shape, np.nan))
    with pytest.raises(PlanError, match="not all finite"):
        plan_channels(made, macs=0.5)


def test_weights_that_are_all_zero_can_be_planned():
    made = keras.models.clone_model(model())
    for variable in made.weights:
        variable.assign(np.zeros(variable.shape))
    for scope in ("global", "local"):
        plan = plan_channels(made, macs=0.5, scope=scope)
        assert plan.macs <= 0.5 * plan.macs_before


def test_a_plan_is_the_same_every_time_and_random_ones_follow_their_seed():
    assert plan_channels(model(), macs=0.5) == plan_channels(model(), macs=0.5)
    plans = [plan_channels(model(), macs=0.5, importance="random", seed=seed) for seed in (1, 1, 2)]
    assert plans[0] == plans[1] != plans[2]


def test_planning_leaves_the_model_as_it_is():
    made = randomise(ARCHITECTURES["inverted_residual"]())
    before, config = made.get_weights(), made.get_config()
    plan_channels(made, macs=0.5)
    assert made.get_config() == config
    for one, other in zip(before, made.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_heads_are_called_by_their_label_and_by_their_layer():
    inputs = keras.Input((6, 8))
    model = keras.Model(
        inputs, keras.layers.Dense(3)(keras.layers.MultiHeadAttention(4, 4, name="mha")(inputs, inputs))
    )
    removed = lambda plan: {entry.group: len(entry.remove) for entry in plan.groups}  # noqa: E731
    assert removed(plan_channels(model, channels={"mha:heads": 2}))["mha:heads"] == 2
    assert removed(plan_channels(model, ratio=0.5, keep=["mha:heads"], round_to=1))["mha:heads"] == 0
    assert removed(plan_channels(model, ratio=0.5, keep=["mha"], round_to=1))["mha:heads"] == 0


@pytest.mark.parametrize("images", [np.ones((1, 8, 8, 3)), np.full((4, 8, 8, 3), np.nan)], ids=["one", "nan"])
def test_backward_elimination_ends_on_one_image_and_refuses_nan(images):
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(16, 3)(keras.layers.Conv2D(16, 3)(inputs))
    model = keras.Model(inputs, keras.layers.Dense(3)(keras.layers.GlobalAveragePooling2D()(x)))
    if np.isnan(images).any():
        with pytest.raises(DatasetError, match="NaN or infinite"):
            plan_channels(model, macs=0.5, importance="obs", calibration=images)
    else:
        plan = plan_channels(model, macs=0.5, importance="obs", calibration=images)
        assert plan.macs <= plan.macs_before / 2
