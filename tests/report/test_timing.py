import numpy as np
import pytest
from records_samples import changed, default_run, latency, manifest, variant

from mobileprune.benchmark.statistics import quantiles
from mobileprune.report.timing import distributions, loading, spread, spreads
from mobileprune.report.words import devices

RUN = default_run()
HOST = devices(RUN)[0]


def test_the_spread_is_that_of_the_inferences():
    times = np.random.default_rng(0).gamma(4.0, 1e5, 20_000)
    found = spread(changed(latency(1.0), histogram=quantiles(times)))
    expected = np.quantile(times, [0.05, 0.25, 0.5, 0.75, 0.95]) / 1e6
    ours = [found.low, found.quarter, found.middle, found.three_quarters, found.high]
    np.testing.assert_allclose(ours, expected, rtol=0.05)  # straight lines between quantiles


@pytest.mark.parametrize("kept", [(), (1.0,)])
def test_without_quantiles_nothing_is_known(kept):
    assert spread(changed(latency(1.0), histogram=kept)) is None
    old = manifest(variant("base", "float32"))
    assert (distributions(old, devices(old)[0]), loading(old, devices(old)[0])) == ("", "")


def test_files_stand_in_the_order_of_their_medians():
    rows = spreads(RUN, HOST)
    assert len(rows) == len(RUN.variants)
    assert [each.middle for _, each in rows] == sorted(each.middle for _, each in rows)
    drawing = distributions(RUN, HOST)
    places = [drawing.index(f">{entry.model} {entry.recipe}<") for entry, _ in rows]
    assert places == sorted(places)
    assert f">{rows[0][1].middle:.3g}<" in drawing


def test_the_time_to_load_has_the_same_rows():
    drawing = loading(RUN, HOST)
    for entry in RUN.variants:
        assert f">{entry.model} {entry.recipe}<" in drawing


def test_a_phone_has_plots_of_its_own():
    entry = RUN.variants[0]
    phone = changed(entry.latency[0], device="Pixel 6", accelerator="GPU")
    both = changed(RUN, variants=(changed(entry, latency=(entry.latency[0], phone)), *RUN.variants[1:]))
    assert devices(both) == [HOST, "Pixel 6, 1 thread, GPU"]
    assert [each.file for each, _ in spreads(both, "Pixel 6, 1 thread, GPU")] == [entry.file]
    assert len(spreads(both, HOST)) == len(RUN.variants)
