from records_samples import changed, default_run, manifest, variant

from mobileprune.report.training import best_epoch, curves, trained
from mobileprune.run_records import Epoch, Stage

RUN = default_run()


def test_stages_that_kept_epochs_have_curves():
    assert [stage.name for stage in trained(RUN)] == ["base", "s80", "c50", "c50_s80", "control"]
    plots = dict(curves(RUN))
    assert list(plots) == ["Accuracy", "Loss"]
    for words in ("base", "c50_s80", "control", "validation", "training", "epoch of the stage"):
        assert all(f">{words}<" in drawing for drawing in plots.values())


def test_old_runs_have_no_curves():
    assert curves(manifest(variant("base", "float32"))) == []


def test_the_best_epoch_is_the_first_of_equals():
    stage = Stage("s", 1.0, curve=(Epoch(1), Epoch(2, validation_accuracy=0.9), Epoch(3, validation_accuracy=0.9)))
    assert best_epoch(stage).epoch == 2
    assert best_epoch(Stage("s", 1.0, curve=(Epoch(1, loss=0.5),))) is None


def test_epochs_without_figures_can_be_drawn():
    holes = (Epoch(1), Epoch(2, loss=None, validation_accuracy=0.5), Epoch(3, loss=0.2))
    assert len(curves(changed(RUN, stages=(Stage("base", 1.0, curve=holes),)))) == 2
    assert len(curves(changed(RUN, stages=(Stage("base", 1.0, curve=(Epoch(1),)),)))) == 2
