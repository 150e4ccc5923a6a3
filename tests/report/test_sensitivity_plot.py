import dataclasses
import struct

import pytest

from mobileprune.errors import SettingsError
from mobileprune.report.sensitivity_plot import sensitivity_png, write_sensitivity_plot
from mobileprune.sensitivity_record import PartSensitivity, Sensitivity, SensitivityPoint


def record(kind="channels", parts=9, accuracy=0.9, agreement=True):
    amounts = (8.0, 4.0) if kind == "quantization" else (0.1, 0.5, 0.9)
    made = tuple(
        PartSensitivity(
            f"$odd_{number}$",
            16,
            tuple(
                SensitivityPoint(
                    amount,
                    amount,
                    0.9 - 0.05 * number if agreement else None,
                    None if accuracy is None else 0.8 - 0.05 * number,
                    0.1 if agreement else None,
                    200.0 if number == 0 else 20.0 - number,
                )
                for amount in amounts
            ),
            rebuilt=number == 1,
        )
        for number in range(parts)
    )
    return Sensitivity("net", kind, 32, accuracy, "l2", made)


def size(png):
    assert png.startswith(b"\x89PNG")
    return struct.unpack(">II", png[16:24])


@pytest.mark.parametrize("kind", ["channels", "sparsity", "quantization"])
@pytest.mark.parametrize(("accuracy", "agreement"), [(0.9, True), (None, True), (None, False)])
def test_every_kind_and_figure_is_drawn(kind, accuracy, agreement):
    width, height = size(sensitivity_png(record(kind, accuracy=accuracy, agreement=agreement)))
    assert width > height > 300


def test_many_parts_make_a_taller_picture():
    assert size(sensitivity_png(record(parts=40)))[1] > 1.5 * size(sensitivity_png(record(parts=12)))[1]


def test_other_figures_make_another_picture():
    found = record()
    assert sensitivity_png(found) == sensitivity_png(found)
    other = dataclasses.replace(found.parts[3].points[1], accuracy=0.1)
    points = (found.parts[3].points[0], other, found.parts[3].points[2])
    part = dataclasses.replace(found.parts[3], points=points)
    changed = dataclasses.replace(found, parts=(*found.parts[:3], part, *found.parts[4:]))
    assert sensitivity_png(changed) != sensitivity_png(found)


def test_figures_that_hardly_move_give_way_to_noise():
    found = record()
    assert found.telling == found.measure == "accuracy"
    flat = [
        dataclasses.replace(part, points=tuple(dataclasses.replace(point, accuracy=0.9) for point in part.points))
        for part in found.parts
    ]
    still = dataclasses.replace(found, parts=tuple(flat))
    assert (still.measure, still.telling) == ("accuracy", "snr_db")
    assert size(sensitivity_png(still)) == size(sensitivity_png(found))


def test_it_is_written(tmp_path):
    path = write_sensitivity_plot(record(), tmp_path / "new" / "plot.png")
    assert path.read_bytes() == sensitivity_png(record())


def test_nothing_to_draw_is_an_error():
    with pytest.raises(SettingsError, match="nothing to draw"):
        sensitivity_png(record(parts=0))
