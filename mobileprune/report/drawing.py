"""A drawing by Matplotlib in, one SVG element for a web page out."""

import io
from collections.abc import Callable
from typing import Any


def svg(size: tuple[float, float], draw: Callable[[Any, Any], None]) -> str:
    """What `draw` draws, as an SVG element; the same drawing gives the same text.

    Args:
        size: width and height in inches.
        draw: takes Matplotlib's figure and its only axes.

    Example:
        >>> svg((4, 3), lambda figure, axes: axes.plot([1, 2]))[:4]  # doctest: +SKIP
        '<svg'
    """
    import matplotlib

    matplotlib.use("Agg")  # no window
    import matplotlib.pyplot as plt

    with plt.rc_context({"svg.fonttype": "none", "svg.hashsalt": "mobileprune", "font.family": "sans-serif"}):
        figure, axes = plt.subplots(figsize=size, layout="constrained")
        draw(figure, axes)
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
        plt.close(figure)
    drawing = file.getvalue()
    return drawing[drawing.index("<svg") :]
