import pytest
from records_samples import latency, manifest, variant

from mobileprune.report.words import (
    comparison_with_control,
    goals,
    milliseconds,
    notes,
    percent,
    runtimes,
    size,
    versus,
)


@pytest.mark.parametrize(
    ("count", "words"),
    [(1, "0.0 kB"), (87_654, "87.7 kB"), (999_000, "999.0 kB"), (1_000_000, "1.00 MB"), (3_600_000, "3.60 MB")],
)
def test_sizes(count, words):
    assert size(count) == words


@pytest.mark.parametrize(("share", "words"), [(0.0, "0.0%"), (0.8851, "88.5%"), (1.0, "100.0%"), (None, "–")])
def test_percentages(share, words):
    assert percent(share) == words


@pytest.mark.parametrize(("value", "words"), [(0.07349, "0.0735 ms"), (1.5, "1.5 ms"), (123.4, "123 ms")])
def test_milliseconds(value, words):
    assert milliseconds(value) == words


def test_a_ratio_comes_with_its_interval():
    assert versus(latency(1.0, 0.5)) == "0.50 (0.47–0.53)"
    assert versus(latency(1.0, None)) == ""


def test_goals_name_their_files_in_a_fixed_order():
    entries = (variant("base", "float32"), variant("c50", "int8"))
    recommended = {"most_accurate": entries[0].file, "smallest": entries[1].file, "fastest": entries[1].file}
    assert goals(manifest(*entries, recommended=recommended)) == [
        ("Smallest", entries[1]),
        ("Fastest on this host", entries[1]),
        ("Most accurate", entries[0]),
    ]
    assert [words for words, _ in goals(manifest(*entries, recommended={"smallest": entries[0].file}))] == ["Smallest"]


def compared(pruned, control, images):
    entries = [variant("c50", "float32", accuracy=pruned), variant("control", "float32", accuracy=control)]
    base = manifest(*entries)
    counts = {**base.dataset["images"], "test": images}
    return comparison_with_control(manifest(*entries, dataset={**base.dataset, "images": counts}))


def test_pruning_that_wins_is_said_to_win():
    assert compared(0.90, 0.86, 5000) == (
        "Pruning beats a narrower network trained as long: c50 90.0%, control 86.0% on 5000 test images."
    )


@pytest.mark.parametrize("name", ["c30", "params40", "file_bytes200000", "ratio30", "channels"])
def test_the_pruned_network_is_found_whatever_target_it_is_named_after(name):
    models = {"base": 0.9, "s80": 0.5, f"{name}_s80": 0.5, name: 0.9, "control": 0.1}
    entries = [variant(model, "float32", accuracy=accuracy) for model, accuracy in models.items()]
    assert f"{name} 90.0%, control 10.0%" in comparison_with_control(manifest(*entries))


def test_a_control_that_wins_is_said_to_win():
    sentence = compared(0.86, 0.90, 5000)
    assert sentence.startswith("**The narrower network wins:** it beats the pruned one")
    assert "c50 86.0%, control 90.0%" in sentence
    assert "Pruning beats" not in sentence


@pytest.mark.parametrize(("pruned", "control"), [(0.90, 0.86), (0.86, 0.90), (0.9, 0.9)])
def test_a_difference_within_chance_is_no_difference(pruned, control):
    # Two standard errors of such a difference on 100 images are 9 points.
    assert compared(pruned, control, 100).startswith("No clear difference")


@pytest.mark.parametrize(("images", "clear"), [(1100, False), (1250, True)])
def test_the_border_lies_at_two_standard_errors(images, clear):
    # 2 * sqrt((0.90 * 0.10 + 0.8727 * 0.1273) / n) = 0.0273 at n = 1080.3; in between lies one more image.
    pruned, control = 0.90, 0.8740
    error = 2 * ((pruned * (1 - pruned) + control * (1 - control)) / images) ** 0.5
    assert (pruned - control > error) is clear
    assert compared(pruned, control, images).startswith("Pruning beats") is clear


def test_without_a_control_nothing_is_said():
    assert comparison_with_control(manifest(variant("c50", "float32"))) == ""
    assert comparison_with_control(manifest(variant("control", "float32"))) == ""


def test_without_labels_nothing_is_said():
    entries = [
        variant(model, "float32", accuracy=None, validation_accuracy=None, agreement=0.9)
        for model in ("c50", "control")
    ]
    assert comparison_with_control(manifest(*entries)) == ""


def test_notes_are_said_once_with_their_files():
    passed = variant("base", "float32", runtimes=())
    noted = [variant(model, "int8", runtimes=(), notes=("Too few images.",), float_ops=()) for model in ("base", "c50")]
    assert notes(manifest(passed)) == []
    assert notes(manifest(passed, *noted)) == ["net_base_int8.tflite, net_c50_int8.tflite: Too few images."]
    (said,) = notes(manifest(variant("base", "int8", runtimes=())))
    assert said == "net_base_int8.tflite: These ops compute in float: ELU of 'elu_3'."
    (said,) = notes(manifest(variant("base", "float32")))
    assert said == "net_base_float32.tflite: Old Runtime does not run it right: It crashed."


def test_runtimes_are_those_that_every_file_passed_on():
    both = variant("base", "float32", verified_runtimes=("New 2", "Old 1"))
    assert runtimes(manifest(both)) == "New 2, Old 1"
    assert runtimes(manifest(both, variant("c50", "float32", verified_runtimes=("New 2",)))) == "New 2"
