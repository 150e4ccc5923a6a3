import re

import pytest
from records_samples import changed, default_run, layers, manifest, variant

from mobileprune.report.layer_changes import MOST_LAYERS, bars, changes, pruned, short, shown, strips, unpruned
from mobileprune.run_records import LayerFacts, Stage

RUN = default_run()
BASE = unpruned(RUN)


def stage(name):
    return next(each for each in RUN.stages if each.name == name)


def test_what_is_left_of_a_layer_by_hand():
    before = Stage("base", 1.0, layers=(LayerFacts("a", "Conv2D", 10, 1, 100, 0.0), LayerFacts("d", "D", 0, 1, 9, 0.0)))
    after = Stage("c50", 1.0, layers=(LayerFacts("a", "Conv2D", 4, 1, 40, 0.25),))
    first, second = changes(before, after)
    assert (first.channels_kept, first.nonzero) == (0.4, 30)
    assert (second.channels_kept, second.nonzero, second.after) == (None, 0, None)


def test_the_control_and_rounding_are_no_pruning():
    assert [each.name for each in pruned(RUN)] == ["s80", "c50", "c50_s80"]
    rounded = changed(stage("c50"), name="c50_qat")
    assert rounded not in pruned(changed(RUN, stages=(*RUN.stages, rounded)))


def test_old_runs_without_layers_have_no_plots():
    old = manifest(variant("base", "float32"))
    assert (unpruned(old), pruned(old), strips(old)) == (None, [], "")


def test_bars_name_every_layer_and_what_is_left():
    drawing = bars(BASE, stage("c50_s80"))
    assert drawing.startswith("<svg")
    for words in (*(layer.name for layer in BASE.layers), "before", "kept", "not zero", "parameters"):
        assert f">{words}<" in drawing
    assert ">not zero<" not in bars(BASE, stage("c50"))


def test_of_deep_networks_the_largest_layers_are_shown_in_order():
    deep = changed(BASE, layers=layers(blocks=60))
    rows = shown(changes(deep, deep))
    assert len(rows) == MOST_LAYERS
    names = [layer.name for layer in deep.layers]
    assert [names.index(row.name) for row in rows] == sorted(names.index(row.name) for row in rows)
    left_out = {layer.params for layer in deep.layers} - {row.before.params for row in rows}
    assert max(left_out) <= min(row.before.params for row in rows)
    heights = [float(re.search(r'viewBox="0 0 [\d.]+ ([\d.]+)"', bars(each, each))[1]) for each in (BASE, deep)]
    assert heights[0] < heights[1] < 1200


def opacities(drawing):
    """How strong the cells are, those of no strength left out."""
    return sorted(float(each) for each in re.findall(r"opacity: ([\d.]+)", drawing))


def test_strips_are_as_strong_as_what_is_gone():
    drawing = strips(RUN)
    for words in ("s80", "c50", "c50_s80", "control", "channels removed", "weights that are zero"):
        assert f">{words}<" in drawing
    assert 0.8 in opacities(drawing)
    whole = changed(RUN, stages=tuple(changed(each, layers=BASE.layers) for each in RUN.stages if each.layers))
    assert max(opacities(strips(whole)), default=0.0) == 0.0


@pytest.mark.parametrize(
    ("count", "words"), [(0, "0"), (7, "7"), (1300, "1.3 k"), (40_000, "40 k"), (2_500_000, "2.5 M")]
)
def test_large_numbers_are_short(count, words):
    assert short(count) == words
