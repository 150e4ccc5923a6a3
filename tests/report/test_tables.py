from records_samples import changed, default_run, manifest, variant

from mobileprune.report import tables
from mobileprune.report.words import devices
from mobileprune.run_records import Stage

RUN = default_run()
OLD = manifest(variant("base", "float32"))


def test_every_table_is_one():
    for table in (
        tables.layers(RUN),
        tables.training(RUN),
        tables.latencies(RUN, devices(RUN)[0]),
        tables.environment(RUN),
    ):
        assert table.rows
        assert {len(row) for row in table.rows} == {len(table.head)}


def test_old_runs_have_less_to_tell():
    assert tables.layers(OLD).rows == ()
    assert tables.training(OLD).rows == ()
    assert tables.latencies(OLD, devices(OLD)[0]).rows[0][1:4] == ("–", "–", "1 ms")


def test_a_layers_row_says_what_each_model_has_of_it():
    table = tables.layers(RUN)
    row = dict(zip(table.head, next(row for row in table.rows if row[0] == "block_1_expand"), strict=True))
    assert row["kind"] == "Conv2D"
    assert row["base"] == "128 ch, 4,096 params"
    assert row["c50_s80"] == "77 ch, 1,463 params, 80% zeros"
    fewer = tuple(changed(stage, layers=stage.layers[:1]) if stage.name == "c50" else stage for stage in RUN.stages)
    rows = tables.layers(changed(RUN, stages=fewer)).rows
    assert next(row for row in rows if row[0] == "logits")[table.head.index("c50")] == "–"


def test_a_training_row_has_its_best_and_last_epoch():
    base = tables.training(RUN).rows[0]
    assert base == ("base", "4", "82.8%", "4", "82.8%", "0.325", "64.0 76.5 80.7 82.8")
    long = Stage("base", 1.0, curve=RUN.stages[0].curve * 30)
    cells = tables.training(changed(RUN, stages=(long,))).rows[0]
    assert cells[-1].endswith(" …")
    assert len(cells[-1].split()) <= 21


def test_the_environment_names_what_figures_depend_on():
    said = dict(tables.environment(RUN).rows)
    assert "keras 1.2.3" in said["made with"]
    assert "5,000 test" in said["images"]
    assert said["an image becomes"] == "32×32 grayscale, stretch, bilinear with antialiasing, (x − 127.5) ÷ 127.5"
    assert said["timed on"] == "host (test), 1 thread"


def test_more_skipped_images_than_anybody_reads_are_counted():
    many = [{"file": f"{number}.jpg", "reason": "it ends early"} for number in range(1000)]
    made = manifest(variant("base", "float32"), dataset={**OLD.dataset, "skipped": many})
    found, more = tables.skipped(made)
    assert (len(found), more) == (tables.MOST_SKIPPED, 1000 - tables.MOST_SKIPPED)
    assert tables.skipped(OLD) == ([], 0)
