import re

import pytest
from records_samples import changed, default_run, manifest, variant

from mobileprune.report.compare import compare_runs, write_comparison

OLD = default_run()


def better(bytes_=0.5, ms=0.5, accuracy=0.0):
    """The run with other figures."""
    entries = []
    for entry in OLD.variants:
        time = entry.latency[0]
        entries.append(
            changed(
                entry,
                bytes=int(entry.bytes * bytes_),
                accuracy=entry.accuracy + accuracy,
                latency=(changed(time, p50_ms=time.p50_ms * ms),),
            )
        )
    return changed(OLD, variants=tuple(entries))


def test_what_changed_is_said_for_every_goal():
    assert compare_runs(OLD, better(accuracy=0.05)).verdicts() == [
        f"{goal}: the same file, 2.00× smaller, 2.00× faster, +5.0 points, a clear difference."
        for goal in ("Smallest", "Fastest on this host", "Most accurate")
    ]
    assert compare_runs(better(), OLD).verdicts()[0].startswith("Smallest: the same file, 2.00× larger, 2.00× slower")


def test_no_difference_is_an_answer():
    for sentence in compare_runs(OLD, better(1.0, 1.03, 0.002)).verdicts():
        assert sentence.endswith("the same file, as large, as fast, +0.2 points, no clear difference.")


def test_another_recommended_file_is_named():
    new = changed(OLD, recommended={**OLD.recommended, "smallest": "net_c50_int8.tflite"})
    assert compare_runs(OLD, new).verdicts()[0].startswith("Smallest: c50 int8, ")


def test_files_are_paired_by_model_and_recipe():
    new = changed(OLD, variants=(*OLD.variants[1:], variant("c30", "int8")))
    found = compare_runs(OLD, new)
    assert [pair.name for pair in found.pairs] == [f"{each.model} {each.recipe}" for each in OLD.variants[1:]]
    assert found.only == (("base float32",), ("c30 int8",))


def test_figures_that_cannot_be_compared_are_not():
    elsewhere = changed(OLD, dataset={**OLD.dataset, "name": "birds"})
    found = compare_runs(OLD, elsewhere)
    assert any("different images" in each for each in found.doubts)
    assert "on other images" in found.table().rows[0][4]
    assert "difference" not in found.table().rows[0][4]
    phone = [changed(each, latency=(changed(each.latency[0], device="phone"),)) for each in OLD.variants]
    found = compare_runs(OLD, changed(OLD, variants=tuple(phone)))
    assert any("latencies cannot be compared" in each for each in found.doubts)
    assert found.table().rows[0][5:] == ("–", "")


def test_runs_with_nothing_in_common_are_said_to_have_nothing(tmp_path):
    other = manifest(variant("c9", "int8"), recommended={})
    found = compare_runs(OLD, other)
    assert found.verdicts() == ["The runs recommend nothing for the same goal."]
    assert any("nothing" in each or "no model" in each for each in found.doubts)
    for path in write_comparison(tmp_path, found):
        assert "have no model and recipe in common" in path.read_text(encoding="utf-8")


def test_settings_that_differ_are_listed_and_no_others():
    new = changed(OLD, command="python other.py", versions={**OLD.versions, "keras": "9.9"})
    rows = {row[0]: row[1:] for row in compare_runs(OLD, new).settings().rows}
    assert rows == {"command": (OLD.command, "python other.py"), "keras": ("1.2.3", "9.9")}
    assert compare_runs(OLD, OLD).settings().rows == ()


def test_both_pages_say_the_same(tmp_path):
    found = compare_runs(OLD, better(), ("old | run", "<script>alert(1)</script>"))
    markdown, page = write_comparison(tmp_path, found)
    assert (markdown.name, page.name) == ("comparison.md", "comparison.html")
    text = page.read_text(encoding="utf-8")
    assert "<script" not in text
    assert text.count("<svg") == 2
    rows = [line for line in markdown.read_text(encoding="utf-8").splitlines() if line.startswith("| base ")]
    assert len(rows) == 4
    assert {len(re.split(r"(?<!\\)\|", line)) for line in rows} == {9}
    for sentence in found.verdicts():
        assert sentence in text
        assert sentence in markdown.read_text(encoding="utf-8")


@pytest.mark.parametrize("labelled", [True, False])
def test_agreement_is_compared_without_a_claim(labelled):
    entry = variant("base", "int8")
    if not labelled:
        entry = changed(entry, accuracy=None, validation_accuracy=None, agreement=0.9)
    cell = compare_runs(manifest(entry), manifest(entry)).table().rows[0][4]
    assert ("no clear difference" in cell) is labelled
