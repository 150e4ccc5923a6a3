import pytest
from records_samples import changed, latency, manifest, variant

from mobileprune.report.words import (
    accuracy_change,
    chance,
    choices,
    comparison_with_control,
    devices,
    gained,
    goals,
    latency_on,
    milliseconds,
    notes,
    percent,
    points,
    runtimes,
    size,
    times_faster,
    times_smaller,
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


def test_chance_is_two_standard_errors_of_the_difference():
    entry = variant("base", "float32", accuracy=0.887)
    images = {"train": 1, "validation": 1, "calibration": 1, "test": 5000}
    made = manifest(entry)
    made = changed(made, dataset={**made.dataset, "images": images})
    # 2 * sqrt(2 * 0.887 * 0.113 / 5000) = 0.012663
    assert chance(made, entry) == pytest.approx(1.2663, abs=1e-3)
    unlabelled = changed(entry, accuracy=None, validation_accuracy=None, agreement=0.9)
    assert chance(made, unlabelled) == 0.0


@pytest.mark.parametrize(
    ("value", "words"), [(0.04, "±0.0 points"), (-0.04, "±0.0 points"), (0.06, "+0.1 points"), (-12.34, "−12.3 points")]
)
def test_differences_have_their_sign(value, words):
    assert points(value) == words


@pytest.mark.parametrize(
    ("ratio", "words"),
    [(0.29, "3.4× faster"), (0.9, "1.11× faster"), (1.0, "as fast"), (1.98, "2.0× slower"), (None, "")],
)
def test_speed_is_said_against_the_base(ratio, words):
    assert times_faster(latency(1.0, ratio)) == words
    assert times_faster(None) == ""


def test_an_interval_that_holds_one_is_as_fast():
    assert times_faster(changed(latency(1.0, 0.97), ratio_low=0.9, ratio_high=1.01)) == "as fast"
    assert times_faster(changed(latency(1.0, 0.97), ratio_low=0.9, ratio_high=0.99)) == "1.03× faster"


def test_a_file_that_is_best_at_several_is_named_once():
    base, small = variant("base", "float32", bytes=800_000), variant("c50", "int8", ms=0.5, accuracy=0.6)
    best = {"smallest": small.file, "fastest": small.file, "most_accurate": base.file}
    made = manifest(base, small, recommended=best)
    assert [(choice.goals, choice.entry) for choice in choices(made)] == [
        ("Smallest and fastest on this host", small),
        ("Most accurate", base),
    ]
    assert gained(made) == (
        "Smallest and fastest on this host: c50 int8, 8.0× smaller, 2.0× faster, −30.0 points, a clear difference. "
        "Most accurate: base float32, as it is."
    )


def test_a_difference_that_can_be_chance_is_no_clear_one():
    base, other = variant("base", "float32"), variant("c50", "float32", accuracy=0.88)
    assert accuracy_change(manifest(base, other), other, base) == "−2.0 points, no clear difference"
    assert times_smaller(base, other) == "1.0× smaller"
    assert times_smaller(changed(base, bytes=200_000), other) == "2.0× larger"


def test_devices_are_told_apart_and_the_processors_kernels_are_not():
    base, other = latency(1.0), changed(latency(2.0), accelerator="none")
    phone = changed(latency(3.0), device="Pixel 6", threads=4, accelerator="GPU")
    made = manifest(variant("base", "float32", latency=(base, phone)), variant("c50", "float32", latency=(other,)))
    assert devices(made) == ["host (test), 1 thread", "Pixel 6, 4 threads, GPU"]
    assert latency_on(made.variants[1], "host (test), 1 thread") == other
    assert latency_on(made.variants[1], "Pixel 6, 4 threads, GPU") is None
