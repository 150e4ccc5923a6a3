"""A drawing by Matplotlib in, one SVG element for a web page, or a PNG, out."""

import html
import io
import re
import warnings
from collections.abc import Callable, Mapping
from typing import Any

# What plots are drawn with. In a page each is a variable of the style sheet, which has other values in the dark. The
# colours of models can be told apart by the colour-blind (Okabe and Ito, 2008).
INK, MUTED, RULE, PAPER, FAINT = "#1b2430", "#5c6773", "#d5dae0", "#fefefe", "#e9edf2"
COLORS = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#8a6d1f", "#7a5cc0")
CONTROL = "#4b5563"
_VARIABLES = {INK: "ink", MUTED: "muted", RULE: "rule", PAPER: "paper", FAINT: "faint", CONTROL: "control"} | {
    color: f"c{at}" for at, color in enumerate(COLORS)
}
# Room at both sides, in inches: a figure below the end of an axis is wider than what it stands for.
_EDGE = 0.12
_STYLE = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.labelsize": 10,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": RULE,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "text.color": INK,
    "text.parse_math": False,  # names from files are no formulas, whatever dollar signs they have
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
}


def svg(size: tuple[float, float], draw: Callable[[Any, Any], None]) -> str:
    """What `draw` draws, as an SVG element; the same drawing gives the same text.

    Args:
        size: width and height in inches.
        draw: takes Matplotlib's figure and its only axes.

    Example:
        >>> svg((4, 3), lambda figure, axes: axes.plot([1, 2]))[:4]  # doctest: +SKIP
        '<svg'
    """
    return _element(size, draw, {"svg.fonttype": "none", "font.family": "sans-serif"}, "mobileprune")


def page_svg(
    name: str,
    size: tuple[float, float],
    draw: Callable[[Any, Any], None],
    description: str,
    tips: Mapping[str, str] | None = None,
) -> str:
    """The same for a page with several drawings and a style sheet: with its colours, and with ids of its own.

    Args:
        name: of the drawing in the page; letters, digits and hyphens.
        size: width and height in inches.
        draw: takes Matplotlib's figure and its only axes.
        description: what a screen reader says.
        tips: what a mouse at rest is told, by the gid of an artist.

    Example:
        >>> page_svg("size", (4, 3), lambda figure, axes: axes.plot([1, 2]), "Two points.")[:4]  # doctest: +SKIP
        '<svg'
    """
    drawing = _element(size, draw, _STYLE, f"mobileprune {name}")
    # Only inside tags: what stands between them may be anybody's text. Matplotlib escapes < and > there.
    drawing = re.sub(r"<[^>]+>", lambda tag: _own_tag(tag[0], name), drawing)
    for gid, tip in (tips or {}).items():
        group = f'<g id="{name}-{gid}">'
        drawing = drawing.replace(group, f"{group}<title>{html.escape(tip)}</title>", 1)
    label = f' role="img" aria-label="{html.escape(description)}"'
    return drawing.replace("<svg", f"<svg{label}", 1)


def png(size: tuple[float, float], draw: Callable[[Any], None]) -> bytes:
    """What `draw` draws, as a PNG with the page's colours on its paper.

    Args:
        size: width and height in inches.
        draw: takes Matplotlib's figure.

    Example:
        >>> png((4, 3), lambda figure: figure.subplots().plot([1, 2]))[1:4]  # doctest: +SKIP
        b'PNG'
    """
    import matplotlib

    matplotlib.use("Agg")  # no window
    import matplotlib.pyplot as plt

    style: Any = {**_STYLE, "figure.facecolor": PAPER}
    with plt.rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph \d+ .*missing from font")
        figure = plt.figure(figsize=size, layout="constrained")
        draw(figure)
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=130, metadata={"Software": None})
        plt.close(figure)
    return file.getvalue()


def plain_text(text: str, most: int = 80) -> str:
    """Text for a page's drawing, as it is but not too long.

    Example:
        >>> plain_text("block_17_expand", 10)
        'block…pand'
    """
    text = "".join(each if each.isprintable() else "\ufffd" for each in text)
    if len(text) > most:
        text = f"{text[: most // 2]}…{text[len(text) - (most - 1 - most // 2) :]}"
    return text


def _own_tag(tag: str, name: str) -> str:
    """A tag with the page's colours in the place of fixed ones, and with an id that no other drawing has."""
    tag = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", tag)
    return re.sub(
        r"#[0-9a-f]{6}\b", lambda color: f"var(--{_VARIABLES[color[0]]})" if color[0] in _VARIABLES else color[0], tag
    )


def _element(size: tuple[float, float], draw: Callable[[Any, Any], None], style: Any, salt: str) -> str:
    import matplotlib

    matplotlib.use("Agg")  # no window
    import matplotlib.pyplot as plt
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    with plt.rc_context({**style, "svg.hashsalt": salt}), warnings.catch_warnings():
        # Whoever shows the text has fonts of their own.
        warnings.filterwarnings("ignore", message=r"Glyph \d+ .*missing from font")
        figure, axes = plt.subplots(figsize=size, layout=ConstrainedLayoutEngine(w_pad=_EDGE))
        draw(figure, axes)
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
        plt.close(figure)
    drawing = file.getvalue()
    return drawing[drawing.index("<svg") :]
