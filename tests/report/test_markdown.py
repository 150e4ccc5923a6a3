import pytest
from records_samples import changed, latency, manifest, variant

from mobileprune.report.markdown import table_head, table_row, write_markdown
from mobileprune.report.words import milliseconds, size
from mobileprune.run_records import Rejected

BASE = variant("base", "float32", bytes=800_000, gzip_bytes=700_000)
SMALL = variant(
    "c50",
    "int8",
    bytes=100_000,
    gzip_bytes=60_000,
    accuracy=0.885,
    macs=2_970_000,
    sparsity=0.74,
    latency=(latency(0.25, 0.5),),
)


def written(tmp_path, made):
    path = write_markdown(tmp_path, made)
    assert path == tmp_path / "report.md"
    return path.read_text(encoding="utf-8")


def rows(text, first="file"):
    """The cells of the table whose first heading is `first`."""
    lines = iter(text.splitlines())
    table = [line for line in lines if line.startswith(f"| {first} |")]
    for line in lines_after(text, table[0]):
        if not line.startswith("|"):
            break
        table.append(line)
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table]


def lines_after(text, line):
    return text.split(line + "\n", 1)[1].splitlines()


def test_a_rows_cells_are_the_records_figures():
    row = dict(zip(table_head(manifest(BASE, SMALL)), table_row(SMALL, BASE), strict=True))
    assert row["file"] == SMALL.file
    assert row["size"] == "100.0 kB"
    assert row["smaller"] == "8.0×"
    assert row["gzip"] == "60.0 kB"
    assert row["accuracy"] == "88.5%"
    assert row["change"] == "-1.5"
    assert row["latency"] == "0.25 ms"
    assert row["of base"].startswith("0.50 (")
    assert row["MACs"] == "2.97 M"
    assert row["zeros"] == "74%"
    more = dict(zip(table_head(manifest(BASE, SMALL), True), table_row(SMALL, BASE, True), strict=True))
    time = SMALL.latency[0]
    assert (more["load"], more["memory"]) == (milliseconds(time.init_ms), size(time.peak_memory_bytes))


def test_a_failed_measurement_is_said():
    row = dict(zip(table_head(manifest(BASE), True), table_row(changed(BASE, latency=()), BASE, True), strict=True))
    assert (row["load"], row["memory"]) == ("", "")
    row = dict(zip(table_head(manifest(BASE)), table_row(changed(BASE, latency=()), BASE), strict=True))
    assert row["latency"] == "failed"
    assert row["of base"] == ""


def test_without_labels_the_column_is_agreement():
    entry = changed(BASE, accuracy=None, validation_accuracy=None, agreement=0.97)
    head = table_head(manifest(entry))
    assert "agreement" in head
    assert "accuracy" not in head
    assert "97.0%" in table_row(entry, entry)


def test_the_table_is_one(tmp_path):
    table = rows(written(tmp_path, manifest(BASE, SMALL)))
    assert len(table) == 4
    assert len({len(row) for row in table}) == 1
    assert set(table[1]) == {"---"}
    assert [row[0] for row in table[2:]] == [BASE.file, SMALL.file]


def test_the_stages_are_listed(tmp_path):
    table = rows(written(tmp_path, manifest(BASE)), "stage")
    assert table[2] == ["base", "61", "88.5%", "6000000", "200000", "0.0%"]
    assert table[3] == ["convert", "3", "–", "–", "–", "–"]


def test_it_names_data_machine_command_and_versions(tmp_path):
    made = manifest(BASE, SMALL)
    text = written(tmp_path, made)
    for said in (made.dataset["source"], made.host["device"], made.command, "keras 1.2.3", "mobileprune 0.1.0"):
        assert said in text
    assert f"Smallest: `{BASE.file}`" in text
    assert "Not shipped" not in text
    assert "Skipped images" not in text


def test_rejected_files_and_skipped_images_are_named_with_reasons(tmp_path):
    base = manifest(BASE)
    skipped = [{"file": "cat/broken.jpg", "reason": "it ends early"}]
    text = written(
        tmp_path,
        manifest(
            BASE, rejected=(Rejected("net_c50_int8.tflite", "too noisy"),), dataset={**base.dataset, "skipped": skipped}
        ),
    )
    assert "- `net_c50_int8.tflite`: too noisy" in text
    assert "- `cat/broken.jpg`: it ends early" in text


@pytest.mark.parametrize(
    ("pruned", "control", "said"), [(0.5, 0.9, "narrower network wins"), (0.9, 0.5, "Pruning beats")]
)
def test_the_control_is_compared(tmp_path, pruned, control, said):
    entries = [variant("c50", "float32", accuracy=pruned), variant("control", "float32", accuracy=control)]
    assert said in written(tmp_path, manifest(BASE, *entries))


def test_without_a_control_no_comparison_is_made(tmp_path):
    text = written(tmp_path, manifest(BASE))
    assert "narrower" not in text
    assert "None" not in text


def test_an_earlier_report_is_replaced(tmp_path):
    written(tmp_path, manifest(BASE, SMALL))
    assert SMALL.file not in written(tmp_path, manifest(BASE))
    assert [path.name for path in tmp_path.iterdir()] == ["report.md"]
