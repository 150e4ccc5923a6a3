"""What pruning left of each layer: as rows, as bars and as strips of colour."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from mobileprune.report.drawing import COLORS, FAINT, INK, MUTED, RULE, page_svg, plain_text
from mobileprune.run_records import LayerFacts, Manifest, Stage

# Drawn for a phone, as all plots are.
_WIDTH = 5.0
_POINT = 1 / 72
# More bars than that are not read: of deeper networks those of the layers with the most parameters are shown.
MOST_LAYERS = 60


@dataclasses.dataclass(frozen=True)
class LayerChange:
    """One layer before and after pruning.

    Attributes:
        name: the layer.
        before: what it was.
        after: what is left of it; None where the pruned network has no such layer.
    """

    name: str
    before: LayerFacts
    after: LayerFacts | None

    @property
    def nonzero(self) -> int:
        """About how many parameters are left that are not zero."""
        return round(self.after.params * (1 - self.after.sparsity)) if self.after else 0

    @property
    def channels_kept(self) -> float | None:
        """Share of the channels that are left; None of a layer that creates none."""
        if not self.before.channels:
            return None
        return self.after.channels / self.before.channels if self.after else 0.0


def unpruned(manifest: Manifest) -> Stage | None:
    """The stage whose layers the others are compared with; None where the run kept no layers."""
    known = [stage for stage in manifest.stages if stage.layers]
    return next((stage for stage in known if stage.name == "base"), known[0] if known else None)


def pruned(manifest: Manifest) -> list[Stage]:
    """The stages that made a smaller or sparser model out of the unpruned one, the narrower control not among them."""
    base = unpruned(manifest)
    return [
        stage
        for stage in manifest.stages
        if stage.layers and base and stage.name not in (base.name, "control") and not stage.name.endswith("_qat")
    ]


def changes(before: Stage, after: Stage) -> list[LayerChange]:
    """Every layer of the unpruned network with what is left of it, in the order of the graph."""
    left = {layer.name: layer for layer in after.layers}
    return [LayerChange(layer.name, layer, left.get(layer.name)) for layer in before.layers]


def shown(found: Sequence[LayerChange], most: int = MOST_LAYERS) -> list[LayerChange]:
    """The layers with the most parameters, in the order of the graph."""
    largest = sorted(range(len(found)), key=lambda at: -found[at].before.params)[:most]
    return [found[at] for at in sorted(largest)]


def bars(before: Stage, after: Stage) -> str:
    """Parameters of each layer before and after, and how many of those are not zero, as an SVG element."""
    rows = shown(changes(before, after))
    sparse = any(row.after and row.after.sparsity > 0.01 for row in rows)

    def draw(figure: Any, axes: Any) -> None:
        places = range(len(rows))
        axes.barh(places, [row.before.params for row in rows], height=0.78, color=RULE, label="before")
        kept = [row.after.params if row.after else 0 for row in rows]
        axes.barh(places, kept, height=0.78, color=COLORS[5], label="kept")
        if sparse:
            axes.barh(places, [row.nonzero for row in rows], height=0.78, color=COLORS[0], label="not zero")
        axes.set_yticks(places, [plain_text(row.name, 26) for row in rows], fontsize=9, color=INK)
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        _counts(axes)
        axes.set_xlabel("parameters")
        axes.grid(axis="x")
        axes.spines["left"].set_visible(False)
        figure.legend(loc="outside lower center", ncols=3)

    height = (78 + 14.5 * len(rows)) * _POINT
    words = f"Parameters of each layer of {before.name} and what {after.name} has left of them."
    return page_svg(f"layers-{_id(after.name)}", (_WIDTH, height), draw, words)


def strips(manifest: Manifest) -> str:
    """Channels left and zeros of every model, layer by layer, as an SVG element; empty where the run kept no layers."""
    base = unpruned(manifest)
    others = [stage for stage in manifest.stages if stage.layers and base and stage.name != base.name]
    others = [stage for stage in others if not stage.name.endswith("_qat")]
    if base is None or not others:
        return ""
    channels = {
        stage.name: [None if each.channels_kept is None else 1 - each.channels_kept for each in changes(base, stage)]
        for stage in others
    }
    zeros = {
        stage.name: [each.after.sparsity if each.after else None for each in changes(base, stage)] for stage in others
    }

    def draw(figure: Any, axes: Any) -> None:
        figure.delaxes(axes)  # two are wanted
        panels = figure.subplots(2, 1, sharex=True)
        _strip(figure, panels[0], channels, "channels removed")
        _strip(figure, panels[1], zeros, "weights that are zero")
        panels[1].set_xlabel(f"the {len(base.layers)} layers, from the input to the output")

    height = (84 + 2 * 17 * len(others)) * _POINT
    words = "For every model and layer, the share of channels removed and the share of weights that are zero."
    return page_svg("strips", (_WIDTH, height), draw, words)


def _strip(figure: Any, axes: Any, shares: Mapping[str, Sequence[float | None]], title: str) -> None:
    """One row a model, one cell a layer: the more is gone, the stronger its colour. A dot: the layer has none."""
    from matplotlib.colors import to_rgb

    for row, values in enumerate(shares.values()):
        known = [(at, min(max(value, 0.0), 1.0)) for at, value in enumerate(values) if value is not None]
        cells = [(at - 0.46, 0.92) for at, _ in known]
        axes.broken_barh(cells, (row - 0.43, 0.86), facecolors=FAINT)
        axes.broken_barh(cells, (row - 0.43, 0.86), facecolors=[(*to_rgb(COLORS[0]), gone) for _, gone in known])
        without = [at for at, value in enumerate(values) if value is None]
        axes.plot(without, [row] * len(without), linestyle="", marker=".", markersize=2, color=MUTED)
    axes.set_yticks(range(len(shares)), [plain_text(name, 16) for name in shares], color=INK, fontsize=9)
    axes.set_ylim(len(shares) - 0.5, -0.5)
    axes.set_xlim(-0.5, max(len(values) for values in shares.values()) - 0.5)
    axes.set_xticks([])
    axes.tick_params(axis="y", length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_title(title, fontsize=10, loc="left", color=MUTED)


def _counts(axes: Any) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))


def short(count: float) -> str:
    """A large number in few characters.

    Example:
        >>> short(1_300_000), short(40_000), short(7)
        ('1.3 M', '40 k', '7')
    """
    for unit, name in ((1e6, " M"), (1e3, " k")):
        if count >= unit:
            return f"{count / unit:.3g}{name}"
    return f"{count:.3g}"


def _id(name: str) -> str:
    """A name as part of an id."""
    return "".join(each if each.isascii() and each.isalnum() else "-" for each in name)
