"""Where a quantized file parts from float, as a picture."""

from typing import Any

from mobileprune.layer_errors import FALL_DB, LayerErrors
from mobileprune.report.drawing import svg

# Above it no eye can tell anything, and an exact input would flatten all the rest.
_MOST_DB = 80.0


def layer_plot(errors: LayerErrors, title: str = "") -> str:
    """The signal-to-noise ratio of every op as an SVG element; ops that lose `FALL_DB` or more stand out.

    Args:
        errors: what `mobileprune.layer_errors.layer_errors` measured.
        title: above the plot.

    Example:
        >>> layer_plot(errors, "net_int8.tflite")[:4]  # doctest: +SKIP
        '<svg'
    """
    layers = errors.layers

    def draw(figure: Any, axes: Any) -> None:
        fallen = [layer.fall_db >= FALL_DB for layer in layers]
        axes.barh(
            range(len(layers)),
            [min(layer.snr_db, _MOST_DB) for layer in layers],
            color=["tab:red" if fell else "tab:blue" for fell in fallen],
        )
        axes.set_yticks(range(len(layers)), [_escaped(layer.layer) for layer in layers], fontsize=6)
        axes.invert_yaxis()
        axes.set_xlabel(f"signal-to-noise ratio, dB; red: {FALL_DB:g} dB or more below the op's inputs")
        axes.set_title(_escaped(title), fontsize="medium")
        axes.grid(axis="x", alpha=0.3)

    return svg((7, 1.2 + 0.18 * len(layers)), draw)


def _escaped(text: str) -> str:
    """Text as it is: Matplotlib takes what stands between two dollar signs for a formula."""
    return text[:80].replace("$", r"\$")
