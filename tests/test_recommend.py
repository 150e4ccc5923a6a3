import pytest
from records_samples import latency, manifest, variant

from mobileprune.recommend import Limits, baseline_of, measured, meets, quality, recommend

BASE = variant("base", "float32", ms=1.0, bytes=800_000)


def test_choices_read_validation_figures_only():
    # The test split says the opposite of the validation split.
    good = variant("s80", "int8", 0.5, bytes=300_000, validation_accuracy=0.91, accuracy=0.10)
    bad = variant("c50", "int8", 0.2, bytes=100_000, validation_accuracy=0.50, accuracy=0.99)
    assert recommend([BASE, good, bad], 1.0) == dict.fromkeys(("smallest", "fastest", "most_accurate"), good.file)


def test_other_test_figures_change_no_choice():
    def chosen(accuracies):
        sizes = (800_000, 300_000, 100_000, 90_000)
        entries = [
            variant(model, "float32", ms, bytes=size, validation_accuracy=validation, accuracy=accuracy)
            for model, ms, size, validation, accuracy in zip(
                ("base", "s80", "c50", "c50_s80"),
                (1.0, 0.9, 0.5, 0.4),
                sizes,
                (0.9, 0.9, 0.895, 0.8),
                accuracies,
                strict=True,
            )
        ]
        return recommend(entries, 1.0)

    assert chosen((0.1, 0.2, 0.3, 0.9)) == chosen((0.9, 0.8, 0.1, 0.0)) == chosen((0.5, 0.5, 0.5, 0.5))


def test_each_goal_has_its_own_file():
    small = variant("c50_s80", "int8", 0.9, bytes=50_000, validation_accuracy=0.892)
    fast = variant("c50", "int8", 0.3, bytes=90_000, validation_accuracy=0.893)
    best = variant("s80", "float32", 1.0, bytes=800_000, validation_accuracy=0.92)
    assert recommend([BASE, small, fast, best], 1.0) == {
        "smallest": small.file,
        "fastest": fast.file,
        "most_accurate": best.file,
    }


@pytest.mark.parametrize(("accuracy", "chosen"), [(0.89, "c50"), (0.8899, "base")])
def test_the_tolerated_drop_is_in_points_and_belongs_to_it(accuracy, chosen):
    small = variant("c50", "int8", bytes=50_000, validation_accuracy=accuracy)
    assert f"_{chosen}_" in recommend([BASE, small], 1.0)["smallest"]


def test_when_nothing_is_good_enough_all_are_considered():
    # A negative drop asks for more than the baseline has.
    better = variant("s80", "int8", bytes=500_000, validation_accuracy=0.95)
    smaller = variant("c50", "int8", bytes=90_000, validation_accuracy=0.3)
    assert recommend([BASE, better, smaller], -4.0)["smallest"] == better.file
    assert recommend([BASE, better, smaller], -6.0)["smallest"] == smaller.file


def test_among_files_of_nearly_the_same_size_the_more_accurate_one_is_recommended():
    smallest = variant("c50", "int8", 1.0, bytes=100_000, validation_accuracy=0.893)
    near = variant("c50_s80", "int8", 1.0, bytes=101_900, validation_accuracy=0.899)
    far = variant("s80", "int8", 1.0, bytes=103_000, validation_accuracy=0.91)
    assert recommend([BASE, smallest, near, far], 1.0)["smallest"] == near.file


def test_among_files_of_nearly_the_same_time_the_more_accurate_one_is_recommended():
    fastest = variant("c50", "int8", 0.300, validation_accuracy=0.893)
    near = variant("c50_s80", "int8", 0.305, validation_accuracy=0.899)
    assert recommend([BASE, fastest, near], 1.0)["fastest"] == near.file


def test_of_equally_accurate_files_the_smaller_is_the_most_accurate():
    same = variant("base", "float16", bytes=400_000)
    assert recommend([BASE, same], 1.0)["most_accurate"] == same.file


def test_the_same_files_in_another_order_get_the_same_recommendation():
    entries = [
        BASE,
        variant("c50", "int8", 0.3, bytes=100_000, validation_accuracy=0.893),
        variant("c50_s80", "int8", 0.5, bytes=90_000, validation_accuracy=0.899),
    ]
    assert recommend(entries, 1.0) == recommend(entries[::-1], 1.0)


def test_without_latencies_nothing_is_fastest():
    assert set(recommend([variant("base", "float32", ms=None)], 1.0)) == {"smallest", "most_accurate"}


def test_a_file_whose_timing_failed_is_not_the_fastest():
    failed = variant("c50", "int8", ms=None, bytes=10_000)
    chosen = recommend([BASE, failed], 1.0)
    assert chosen["smallest"] == failed.file
    assert chosen["fastest"] == BASE.file


def test_without_files_nothing_is_recommended():
    assert recommend([], 1.0) == {}


def test_without_labels_agreement_decides():
    def unlabelled(model, recipe, share, size):
        facts = {"accuracy": None, "validation_accuracy": None, "agreement": share, "validation_agreement": share}
        return variant(model, recipe, bytes=size, **facts)

    base, close = unlabelled("base", "float32", 1.0, 800_000), unlabelled("c50", "int8", 0.995, 100_000)
    far = unlabelled("c50_s80", "int8", 0.7, 50_000)
    assert recommend([base, close, far], 1.0)["smallest"] == close.file
    assert (quality(close), measured(close)) == (0.995, 0.995)


def test_figures_that_are_missing_count_as_nothing():
    nothing = variant("base", "float32", accuracy=None, validation_accuracy=None)
    assert (quality(nothing), measured(nothing)) == (0.0, 0.0)


def test_choices_and_reports_read_different_figures():
    entry = variant("base", "float32", accuracy=0.7, validation_accuracy=0.8)
    assert (quality(entry), measured(entry)) == (0.8, 0.7)


def test_the_baseline_is_the_base_models_float32_file():
    assert baseline_of([variant("c50", "float32"), variant("base", "int8"), BASE]) is BASE
    second = variant("base", "int8")
    assert baseline_of([variant("c50", "float32"), second]) is second
    first = variant("c50", "int8")
    assert baseline_of([first, variant("s80", "float32")]) is first


def test_without_base_float32_no_file_is_within_a_drop():
    run = manifest(variant("base", "int8"), variant("c50", "int8"))
    assert meets(run, Limits(max_drop=100.0)) == []
    assert len(meets(run, Limits(max_bytes=10**9))) == 2


def test_label_free_choices_read_the_validation_images():
    def unlabelled(model, validation, test, size):
        facts = {"accuracy": None, "validation_accuracy": None, "agreement": test, "validation_agreement": validation}
        return variant(model, "float32", bytes=size, **facts)

    good, flattered = unlabelled("c90", 0.99, 0.5, 300), unlabelled("c80", 0.5, 0.99, 200)
    assert recommend([unlabelled("base", 1.0, 1.0, 400), good, flattered], 2.0)["smallest"] == good.file


@pytest.mark.parametrize(
    ("limits", "files"),
    [
        (Limits(), ["base", "c50", "s80"]),
        (Limits(max_bytes=200_000), ["c50", "s80"]),
        (Limits(max_bytes=199_999), ["c50"]),
        (Limits(max_bytes=1), []),
        (Limits(max_latency_ms=0.5), ["c50"]),
        (Limits(max_latency_ms=0.49), []),
        (Limits(max_drop=0.0), ["base"]),
        (Limits(max_drop=1.0), ["base", "s80"]),
        (Limits(max_drop=1.0, max_bytes=200_000), ["s80"]),
        (Limits(max_drop=1.0, max_bytes=200_000, max_latency_ms=0.5), []),
    ],
)
def test_limits_are_met_all_together(limits, files):
    entries = (
        variant("base", "float32", ms=1.0, bytes=800_000, accuracy=0.9),
        variant("c50", "int8", ms=0.5, bytes=100_000, accuracy=0.88),
        variant("s80", "int8", ms=0.9, bytes=200_000, accuracy=0.89),
    )
    assert meets(manifest(*entries), limits) == [entry.file for entry in entries if entry.model in files]


def test_the_gate_reads_the_test_split():
    lucky = variant("c50", "int8", bytes=100, accuracy=0.5, validation_accuracy=0.99)
    assert meets(manifest(BASE, lucky), Limits(max_drop=1.0)) == [BASE.file]


def test_a_file_whose_timing_failed_meets_no_latency_limit():
    assert meets(manifest(variant("base", "float32", ms=None)), Limits(max_latency_ms=1e9)) == []


def test_one_device_that_is_fast_enough_suffices():
    entry = variant("base", "float32", latency=(latency(9.0), latency(1.0)))
    assert meets(manifest(entry), Limits(max_latency_ms=1.0)) == [entry.file]


@pytest.mark.parametrize("limits", [Limits(max_drop=0.0), Limits(max_bytes=0), Limits(max_latency_ms=0.0)])
def test_a_limit_of_zero_is_a_limit(limits):
    assert limits.any()
    assert not Limits().any()
