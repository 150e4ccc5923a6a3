"""How the models were trained, epoch by epoch."""

from collections.abc import Callable
from typing import Any

from mobileprune.report.drawing import INK, page_svg, plain_text
from mobileprune.report.pareto import WIDTH, model_colors
from mobileprune.run_records import Epoch, Manifest, Stage


def trained(manifest: Manifest) -> list[Stage]:
    """The stages that kept their epochs."""
    return [stage for stage in manifest.stages if stage.curve]


def best_epoch(stage: Stage) -> Epoch | None:
    """The epoch with the highest validation accuracy, the first of equals; None where none was measured."""
    known = [epoch for epoch in stage.curve if epoch.validation_accuracy is not None]
    return max(known, key=lambda epoch: epoch.validation_accuracy or 0.0, default=None)


def curves(manifest: Manifest) -> list[tuple[str, str]]:
    """Accuracy and loss over the epochs: each plot's title and SVG element; none where the run kept no epochs."""
    stages = trained(manifest)
    if not stages:
        return []
    return [
        (
            "Accuracy",
            _curves(
                manifest,
                "accuracy",
                "accuracy, %",
                lambda epoch: _percent(epoch.validation_accuracy),
                lambda epoch: _percent(epoch.accuracy),
            ),
        ),
        (
            "Loss",
            _curves(manifest, "loss", "loss", lambda epoch: epoch.validation_loss, lambda epoch: epoch.loss),
        ),
    ]


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


Read = Callable[[Epoch], float | None]


def _curves(manifest: Manifest, name: str, label: str, validation: Read, training: Read) -> str:
    stages = trained(manifest)
    colors = model_colors([entry.model for entry in manifest.variants] + [stage.name for stage in stages])

    def line(axes: Any, stage: Stage, read: Read, **style: Any) -> None:
        known = [(epoch.epoch, value) for epoch in stage.curve if (value := read(epoch)) is not None]
        if known:
            axes.plot(*zip(*known, strict=True), color=colors[stage.name], **style)

    def draw(figure: Any, axes: Any) -> None:
        from matplotlib.lines import Line2D
        from matplotlib.ticker import MaxNLocator

        for stage in stages:
            line(axes, stage, training, linewidth=1, linestyle=(0, (2, 1.5)), alpha=0.75)
            line(axes, stage, validation, linewidth=1.8, marker="o", markersize=3.5)
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        axes.set_xlabel("epoch of the stage")
        axes.set_ylabel(label)
        axes.grid(axis="y")
        handles = [
            Line2D([], [], color=colors[stage.name], linewidth=2.5, label=plain_text(stage.name, 24))
            for stage in stages
        ]
        handles += [
            Line2D([], [], color=INK, linewidth=1.8, marker="o", markersize=3.5, label="validation"),
            Line2D([], [], color=INK, linewidth=1, linestyle=(0, (2, 1.5)), label="training"),
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=4, handlelength=1.6, columnspacing=1.2)

    words = f"Training and validation {name} over the epochs of {len(stages)} stages."
    return page_svg(f"training-{name}", (WIDTH, 3.6), draw, words)
