import re

import pytest
from records_samples import changed, default_run, manifest, variant

from mobileprune.report.pareto import front, model_colors, plot, tip

RUN = default_run()


def sizes(made):
    return [entry.bytes / 1000 for entry in made.variants]


@pytest.mark.parametrize(
    ("costs", "gains", "best"),
    [
        ([1, 2, 3], [0.5, 0.6, 0.7], [0, 1, 2]),
        ([3, 2, 1], [0.5, 0.6, 0.7], [2]),
        ([1, 1], [0.5, 0.6], [1]),
        ([1, 2], [0.5, 0.5], [0]),
        ([2.0], [0.1], [0]),
    ],
)
def test_the_front_is_what_no_other_beats_in_both(costs, gains, best):
    assert front(costs, gains) == best


def test_every_file_is_a_point_that_says_what_it_is():
    drawing = plot(RUN, RUN.variants, sizes(RUN), "size, kB")
    for entry in RUN.variants:
        assert f"<title>{tip(entry)}</title>" in drawing
    assert drawing.count("<title>") == len(RUN.variants)


def test_the_files_to_take_and_the_base_have_their_names():
    drawing = plot(RUN, RUN.variants, sizes(RUN), "size, kB")
    for file in (*RUN.recommended.values(), "net_base_float32.tflite"):
        entry = next(each for each in RUN.variants if each.file == file)
        assert f">{entry.model} {entry.recipe}<" in drawing


def test_no_name_is_written_twice():
    drawing = plot(RUN, RUN.variants, sizes(RUN), "size, kB")
    names = [each for each in re.findall(r">([^<>]+)</text>", drawing) if " " in each.strip()]
    assert len(names) == len(set(names)) >= 10


def test_models_keep_their_colours_and_the_control_has_its_own():
    colors = model_colors(["base", "s80", "control", "c50"])
    assert len(set(colors.values())) == 4
    assert colors == model_colors(["base", "s80", "c50"])
    assert model_colors(["control"])["control"] == colors["control"]


def test_colours_follow_the_page():
    drawing = plot(RUN, RUN.variants, sizes(RUN), "size, kB")
    assert "var(--c0)" in drawing
    assert "var(--ink)" in drawing
    assert not re.findall(r"(?:fill|stroke): #(?!ffffff)[0-9a-f]{6}", drawing)


@pytest.mark.parametrize("name", ["a$b$c", "$x", "<b>&amp;", "é" * 90, "名前", "\x1b[31m", "a\u202eb"])
def test_odd_names_are_text_of_bounded_length(name):
    drawing = plot(manifest(variant(name, name)), [variant(name, name)], [1.0], "size, kB")
    assert max(len(each) for each in re.findall(r">([^<>]+)</text>", drawing)) < 100
    assert not set(re.findall(r"<(\w+)", drawing)) & {"b", "script", "img"}


def test_one_file_and_files_all_alike_can_be_drawn():
    one = manifest(variant("base", "float32"))
    assert plot(one, one.variants, [1.0], "size, kB").startswith("<svg")
    alike = manifest(*(variant("base", recipe) for recipe in ("float32", "float16", "int8")))
    assert plot(alike, alike.variants, [1.0, 1.0, 1.0], "size, kB").startswith("<svg")


def test_chance_is_shown_where_labels_were_drawn_and_only_there():
    def band(made):
        return "var(--faint)" in plot(made, made.variants, sizes(made), "size, kB")

    assert band(RUN)
    entry = changed(variant("base", "float32"), accuracy=None, validation_accuracy=None, agreement=0.9)
    assert not band(manifest(entry))
