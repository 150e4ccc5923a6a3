"""What a person sees while a run works: the stage, n of N, and the time left; and a line for each finished stage."""

import os
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Self

import rich.progress
from rich.console import Console

from mobileprune.run_records import Stage


class Progress:
    """One bar over all stages. On a terminal it moves; elsewhere each finished stage prints one line.

    Args:
        steps: the stages in order, each with its share of the work.
    """

    def __init__(self, steps: Mapping[str, int]) -> None:
        # A copy of the descriptor: while converters are silenced, the bar still moves.
        self.console = Console(file=os.fdopen(os.dup(1), "w"), markup=False, highlight=False, soft_wrap=True)
        self._steps = dict(steps)
        self._names = list(steps)
        self._bar = rich.progress.Progress(
            rich.progress.TextColumn("{task.description}", markup=False),
            rich.progress.BarColumn(),
            rich.progress.TaskProgressColumn(),
            rich.progress.TimeElapsedColumn(),
            rich.progress.TextColumn("left"),
            rich.progress.TimeRemainingColumn(),
            rich.progress.TextColumn("{task.fields[words]}", markup=False),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        self._task = self._bar.add_task("", total=sum(self._steps.values()), words="")
        self._started = time.monotonic()

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def start(self, name: str) -> None:
        """Shows that a stage begins."""
        if not self.console.is_terminal:
            self.console.print(f"{self._title(name)} …")
        self._bar.update(self._task, description=self._title(name), completed=self._before(name), words="")

    def advance(self, name: str, step: int) -> None:
        """Shows how many of the stage's steps are done."""
        self._bar.update(self._task, completed=self._before(name) + min(step, self._steps[name]))

    def note(self, words: str) -> None:
        """Shows a few words beside the bar."""
        self._bar.update(self._task, words=words)

    def skip(self, name: str) -> None:
        """Says that a stage was finished by an earlier run."""
        self.console.print(f"{self._title(name)}: finished before", style="dim")
        self._bar.update(self._task, completed=self._before(name) + self._steps[name])

    def finish(self, stage: Stage) -> None:
        """Says what a stage came to."""
        self.console.print(f"{self._title(stage.name)}: {describe(stage)}")
        self._bar.update(self._task, completed=self._before(stage.name) + self._steps[stage.name])

    def _title(self, name: str) -> str:
        return f"stage {self._names.index(name) + 1} of {len(self._names)} · {name}"

    def _before(self, name: str) -> int:
        return sum(self._steps[earlier] for earlier in self._names[: self._names.index(name)])


def describe(stage: Stage) -> str:
    """A stage's figures in one line.

    Example:
        >>> describe(Stage(name="base", seconds=61.2, accuracy=0.8851, macs=5951744, params=212298, sparsity=0.0))
        '61 s, validation accuracy 88.5%, 5.95 M MACs, 212 k parameters'
    """
    facts = [f"{stage.seconds:.0f} s"]
    if stage.accuracy is not None:
        facts.append(f"validation accuracy {stage.accuracy:.1%}")
    if stage.macs is not None:
        facts.append(f"{stage.macs / 1e6:.3g} M MACs")
    if stage.params is not None:
        millions = stage.params >= 999_500
        facts.append(f"{stage.params / (1e6 if millions else 1e3):.3g} {'M' if millions else 'k'} parameters")
    if stage.sparsity:
        facts.append(f"{stage.sparsity:.1%} zeros")
    return ", ".join(facts)
