"""How sensitive each part of a network is, as a picture: a curve for each part, and a map of parts × amounts."""

from pathlib import Path
from typing import Any

from mobileprune.errors import SettingsError
from mobileprune.files import write_bytes
from mobileprune.report.drawing import COLORS, INK, MUTED, PAPER, RULE, plain_text, png
from mobileprune.sensitivity_record import Sensitivity, SensitivityPoint

_OTHERS = "#b4bcc6"
# So many curves are told apart by colour and named; the others stay grey.
_NAMED = 6
_LABELS = {
    "accuracy": "accuracy, %",
    "agreement": "same top-1 class as unchanged, %",
    "snr_db": "signal-to-noise ratio of the outputs, dB",
}
_AMOUNTS = {
    "channels": "% of the group's channels removed",
    "sparsity": "% of the layer's weights zero",
    "quantization": "bits of the layer's weights",
}
# Above it nothing can be told apart any more.
_MOST_DB = 80.0


def write_sensitivity_plot(sensitivity: Sensitivity, path: str | Path) -> Path:
    """Writes curves and map as a PNG and returns the path.

    Args:
        sensitivity: what `analyse_sensitivity` found.
        path: of the PNG.

    Raises:
        SettingsError: there is nothing in it.
        OutputError: the file cannot be written.

    Example:
        >>> write_sensitivity_plot(sensitivity, "sensitivity.png")          # doctest: +SKIP
        PosixPath('sensitivity.png')
    """
    return write_bytes(Path(path), sensitivity_png(sensitivity))


def sensitivity_png(sensitivity: Sensitivity) -> bytes:
    """Curves and map as a PNG.

    Raises:
        SettingsError: there is nothing in it.
    """
    if not sensitivity.parts or not sensitivity.amounts:
        raise SettingsError("The sensitivity analysis is empty: there is nothing to draw.")
    rows = len(sensitivity.parts)
    order = sorted(range(len(sensitivity.amounts)), key=lambda at: _order(sensitivity, sensitivity.amounts[at]))

    def draw(figure: Any) -> None:
        curves, grid = figure.subplots(1, 2, width_ratios=(1.25, 1))
        _curves(curves, sensitivity, order)
        _map(figure, grid, sensitivity, order)
        words = "channel group" if sensitivity.kind == "channels" else "layer"
        whole = "" if sensitivity.accuracy is None else f", {100 * sensitivity.accuracy:.1f}% right unchanged"
        title = (
            f"{plain_text(sensitivity.model, 40)}: one {words} changed at a time, {sensitivity.images} images{whole}"
        )
        figure.suptitle(title, fontsize=11, color=INK)

    return png((12.5, max(4.8, 1.4 + 0.21 * rows)), draw)


def _curves(axes: Any, sensitivity: Sensitivity, order: list[int]) -> None:
    bits, decibels = sensitivity.kind == "quantization", sensitivity.telling == "snr_db"
    ranked = sorted(sensitivity.parts, key=lambda part: sum(_shown(sensitivity, point) for point in part.points))
    colors = {part.name: color for part, color in zip(ranked[:_NAMED], COLORS, strict=False)}
    whole = 100 * (1.0 if sensitivity.accuracy is None else sensitivity.accuracy)
    for part in sensitivity.parts:
        points = [part.points[at] for at in order]
        places = [float(at) for at in range(1, len(order) + 1)] if bits else [100 * point.taken for point in points]
        values = [_shown(sensitivity, point) for point in points]
        if not decibels:  # unchanged there is no noise, which no axis shows
            places, values = [0.0, *places], [whole, *values]
        named = part.name in colors
        axes.plot(
            places,
            values,
            color=colors.get(part.name, _OTHERS),
            marker="o",
            markersize=3.2,
            linewidth=1.9 if named else 1.1,
            zorder=3 if named else 2,
            label=plain_text(part.name, 30) if named else None,
        )
    axes.set_xlabel(_AMOUNTS[sensitivity.kind])
    axes.set_ylabel(_LABELS[sensitivity.telling])
    if bits:
        told = [f"{sensitivity.amounts[at]:g}" for at in order]
        axes.set_xticks(range(decibels, len(order) + 1), told if decibels else ["float", *told])
    axes.grid(axis="y")
    if not decibels:
        axes.set_ylim(-2, 102)
    title = f"the {len(colors)} most sensitive" if len(sensitivity.parts) > _NAMED else ""
    axes.legend(title=title, title_fontsize=9, frameon=True, facecolor=PAPER, edgecolor=RULE, framealpha=0.9)


def _map(figure: Any, axes: Any, sensitivity: Sensitivity, order: list[int]) -> None:
    values = [[_shown(sensitivity, part.points[at]) for at in order] for part in sensitivity.parts]
    low, high = 0.0, 100.0
    if sensitivity.telling == "snr_db":
        low, high = min(map(min, values)), max(max(map(max, values)), min(map(min, values)) + 1)
    image = axes.imshow(values, aspect="auto", cmap="viridis", vmin=low, vmax=high)
    for row, each in enumerate(values):
        for column, value in enumerate(each):
            color = "black" if value > low + 0.6 * (high - low) else "white"
            axes.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=7.5, color=color)
    names = [plain_text(part.name, 30) + (" *" if part.rebuilt else "") for part in sensitivity.parts]
    axes.set_yticks(range(len(names)), names, fontsize=8, color=INK)
    bits = sensitivity.kind == "quantization"
    told = [f"{sensitivity.amounts[at]:g}" if bits else f"{100 * sensitivity.amounts[at]:.0f}" for at in order]
    axes.set_xticks(range(len(told)), told)
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)
    star = "   * not exact: rebuilt" if any(part.rebuilt for part in sensitivity.parts) else ""
    axes.set_xlabel(_AMOUNTS[sensitivity.kind] + star)
    bar = figure.colorbar(image, ax=axes, fraction=0.04, pad=0.02)
    bar.outline.set_visible(False)
    bar.set_label(_LABELS[sensitivity.telling], color=MUTED)


def _shown(sensitivity: Sensitivity, point: SensitivityPoint) -> float:
    value = float(getattr(point, sensitivity.telling))
    return min(value, _MOST_DB) if sensitivity.telling == "snr_db" else 100 * value


def _order(sensitivity: Sensitivity, amount: float) -> float:
    """Gentle amounts first: small shares, many bits."""
    return -amount if sensitivity.kind == "quantization" else amount
