import keras
import numpy as np
import pytest
from architectures import randomise

from mobileprune.allocation import Allocation, check_floor, structure
from mobileprune.channel_groups import ChannelGraph
from mobileprune.constraints import constraints
from mobileprune.errors import PlanError
from mobileprune.ranking import Ranking

layers = keras.layers


def network():
    """Two 3×3 convolutions of the same structure, `one` at 64 positions and `two` at 16; then 1×1 with batch norm."""
    model = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.Conv2D(16, 3, padding="same", name="one"),
            layers.Conv2D(16, 3, padding="same", strides=2, name="two"),
            layers.Conv2D(16, 3, padding="same", name="three"),
            layers.BatchNormalization(),
            layers.Conv2D(16, 1, name="four"),
            layers.BatchNormalization(),
            layers.GlobalAveragePooling2D(),
            layers.Dense(2, name="head"),
        ]
    )
    return ChannelGraph(randomise(model))


NAMES = ("one", "two", "three", "four")


def allocation(losses, scope="global", target="macs", absolute=False, **limits):
    graph = network()
    rankings = {name: Ranking(np.arange(16), np.asarray(losses[name], float), absolute) for name in NAMES}
    return graph, Allocation(
        constraints(graph, **{"round_to": 1, **limits}),
        rankings,
        scope,
        target,
        lambda alive: getattr(graph.cost(alive), target),
    )


def flat(**values):
    """Losses a little above each group's value."""
    return {name: values.get(name, 100.0) + np.linspace(0, 1e-3, 16) for name in NAMES}


def whole(graph, target="macs"):
    return getattr(graph.cost(graph.everything()), target)


def test_global_takes_the_smallest_losses_wherever_they_are():
    graph, made = allocation(flat(one=1.0))
    kept = made.within(0.8 * whole(graph))
    assert kept["one"] < 16
    assert [kept[name] for name in NAMES[1:]] == [16] * 3


def test_global_is_the_gentlest_cut_that_fits():
    graph, made = allocation({name: np.arange(16) * 4 + place for place, name in enumerate(NAMES)})
    budget = 0.5 * whole(graph)
    kept = made.within(budget)
    assert graph.cost(made.alive(kept)).macs <= budget
    # One more unit of any group would not fit.
    for name in NAMES:
        more = {**kept, name: kept[name] + 1}
        assert graph.cost(made.alive(more)).macs > budget
    assert max(kept.values()) - min(kept.values()) <= 2


def test_local_takes_alike_whatever_the_losses_say():
    graph, made = allocation(flat(one=1.0), scope="local")
    kept = made.within(0.5 * whole(graph))
    assert max(kept.values()) - min(kept.values()) <= 1


def test_isomorphic_groups_compete_with_each_other_only():
    # `one` and `two` have the same structure, `three` and `four` each another one.
    graph, made = allocation(flat(one=1.0, two=2.0, three=3.0, four=4.0), scope="isomorphic", max_ratio=0.9)
    kept = made.within(0.5 * whole(graph))
    assert kept["one"] < kept["two"] == 16
    share = (32 - kept["one"] - kept["two"]) / 32
    assert 0.1 < share < 0.6
    assert abs((16 - kept["three"]) / 16 - share) < 0.15
    assert abs((16 - kept["four"]) / 16 - share) < 0.15
    # Global would empty the cheapest group first.
    graph, made = allocation(flat(one=1.0, two=2.0, three=3.0, four=4.0), scope="global", max_ratio=0.9)
    assert made.within(0.5 * whole(graph))["four"] == 16


def test_structures_tell_kinds_of_layers_and_weights_but_no_sizes():
    graph = network()
    groups = {group.name: structure(graph, group) for group in graph.groups}
    assert groups["one"] == groups["two"] == (("Conv2D", "bias", 0), ("Conv2D", "kernel", 2), ("Conv2D", "kernel", 3))
    assert len({groups[name] for name in NAMES}) == 3
    assert ("BatchNormalization", "gamma", 0) in groups["three"]
    assert ("Dense", "kernel", 0) in groups["four"]


def test_absolute_losses_are_weighed_by_what_the_unit_costs():
    # A unit of `one` costs 64·27 + 16·144 MACs, one of `four` 16·16 + 2.
    losses = flat(one=1.0, four=0.9)
    graph, made = allocation(losses, absolute=True)
    kept = made.within(0.9 * whole(graph))
    assert kept["one"] < kept["four"] == 16
    graph, made = allocation(losses, absolute=False)
    kept = made.within(0.98 * whole(graph))
    assert kept["four"] < kept["one"]


def test_absolute_losses_are_weighed_by_parameters_for_a_target_of_parameters():
    # A unit of `one` has 3 inputs, one of `two` 16: parameters are saved in `two`.
    graph, made = allocation(flat(one=1.0, two=1.0), target="params", absolute=True)
    kept = made.within(0.9 * whole(graph, "params"))
    assert kept["two"] < kept["one"] == 16


def test_losses_behind_a_dear_unit_do_not_draw_it_along():
    # `one`: its first unit is dear, the others cost nothing. Units go in order, so the group stays.
    losses = flat(two=5.0)
    losses["one"] = np.array([50.0, *np.zeros(15)])
    graph, made = allocation(losses, absolute=True)
    kept = made.within(0.95 * whole(graph))
    assert kept["two"] < 16
    assert kept["one"] == 16


def test_what_still_fits_is_put_back():
    graph, made = allocation({name: np.arange(16) * 4 + place for place, name in enumerate(NAMES)}, round_to=8)
    budget = 0.7 * whole(graph)
    kept = made.within(budget)
    assert set(kept.values()) <= {8, 16}
    for name in NAMES:
        if kept[name] < 16:
            assert graph.cost(made.alive({**kept, name: 16})).macs > budget


@pytest.mark.parametrize("scope", ["global", "local", "isomorphic"])
def test_a_budget_below_the_floor_is_refused_with_the_floor(scope):
    graph, made = allocation(flat(), scope=scope, max_ratio=0.5)
    floor = graph.cost(made.alive(dict.fromkeys(NAMES, 8))).macs
    assert made.within(floor) == dict.fromkeys(NAMES, 8)
    with pytest.raises(PlanError, match=f"macs cannot go below {floor:,}"):
        made.within(floor - 1)


def test_a_budget_that_is_met_keeps_everything():
    graph, made = allocation(flat())
    assert made.within(whole(graph)) == dict.fromkeys(NAMES, 16)


def test_the_floor_is_told_with_its_share():
    check_floor("params", 10, 100, 10)
    with pytest.raises(PlanError, match=r"params cannot go below 1,000 \(25% of the model\); 999 were asked"):
        check_floor("params", 1000, 4000, 999)


def test_units_of_equal_losses_go_in_part_and_from_all_groups():
    """Most of the network has been emptied; half of it is asked for, not what is left of it then."""
    empty = {name: np.append(np.zeros(12), np.linspace(1, 2, 4)) for name in NAMES}
    for target in ("macs", "params"):
        graph, made = allocation(empty, target=target)
        kept = made.within(0.5 * whole(graph, target))
        cost = getattr(graph.cost(made.alive(kept)), target)
        assert 0.45 * whole(graph, target) < cost <= 0.5 * whole(graph, target)
        assert max(kept.values()) - min(kept.values()) <= 2
