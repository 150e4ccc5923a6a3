"""One run's folder: what is finished stays finished, and a killed run goes on in the stage that it was in.

A stage's result is written when it is complete, and atomically; a stage whose result is there is not run again.
"""

import dataclasses
import fcntl
import json
import math
import os
import re
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mobileprune.errors import OutputError
from mobileprune.files import read_json, write_bytes, write_json
from mobileprune.json_record import Json
from mobileprune.progress import Progress
from mobileprune.records import Variant
from mobileprune.run_records import Epoch, Stage
from mobileprune.train import load_checkpoint, save_checkpoint

# Names that `write_bytes` and `save_checkpoint` give to files that are not whole yet.
_LOCK = "lock"
# How a stage's training went, in its own folder, and what the record calls Keras's figures.
_CURVE = "curve.json"
_FIGURES = {
    "loss": "loss",
    "accuracy": "accuracy",
    "val_loss": "validation_loss",
    "val_accuracy": "validation_accuracy",
}
# A plot shows no more than that.
_MOST_EPOCHS = 200
_TEMPORARY = re.compile(r"\..+\.(json|md|html|tflite)\.[a-z0-9_]{8}|\.\d+_.+\.keras")


@dataclasses.dataclass(frozen=True)
class Task:
    """What a running stage may use.

    Attributes:
        folder: its own folder below `checkpoints/`, for what it must remember when it is killed.
        advance: tells the progress bar how many of the stage's steps are done.
        note: shows a few words beside the bar.
    """

    folder: Path
    advance: Callable[[int], None]
    note: Callable[[str], None]

    def epoch(self, number: int, figures: Mapping[str, float]) -> None:
        """Keeps what a finished epoch came to for the stage's record, those before a kill included.

        Args:
            number: from 1.
            figures: as Keras names them: `loss`, `accuracy`, `val_loss`, `val_accuracy`; others are not kept.
        """
        kept = read_json(self.folder / _CURVE) if (self.folder / _CURVE).exists() else []
        known = {name: figures.get(name, math.nan) for name in _FIGURES}
        finite = {_FIGURES[name]: value if math.isfinite(value) else None for name, value in known.items()}
        before = [epoch for epoch in kept if epoch["epoch"] < number]  # later ones are of a training that was lost
        write_json(self.folder / _CURVE, [*before, Epoch(number, **finite).to_json()])

    def curve(self) -> list[Json]:
        """The epochs that were kept, in order; of very many, some evenly between the first and the last."""
        epochs: list[Json] = read_json(self.folder / _CURVE) if (self.folder / _CURVE).exists() else []
        last = len(epochs) - 1
        if last < _MOST_EPOCHS:
            return epochs
        return [epochs[round(at * last / (_MOST_EPOCHS - 1))] for at in range(_MOST_EPOCHS)]


class Run:
    """A run's folder and the stages done in it.

    Args:
        out_dir: the run's folder, made if needed.
        settings: everything that results depend on, as JSON types. A folder that holds a run with other settings is
            refused.
        steps: for each stage of this run, in order, about how long it takes in any one unit; training steps do.
        overwrite: throw away what an earlier run left in `checkpoints/`.

    Raises:
        OutputError: the folder cannot be written, or holds another run.
    """

    def __init__(
        self, out_dir: Path, settings: Mapping[str, Any], steps: Mapping[str, int], overwrite: bool = False
    ) -> None:
        self.out_dir = out_dir
        self.checkpoints = out_dir / "checkpoints"
        self.stages: list[Stage] = []
        self._steps = dict(steps)
        self._lock()
        if overwrite:
            self._clear()
        self._claim(dict(settings))
        self._sweep()
        self.progress = Progress(self._steps)

    def model(
        self, name: str, make: Callable[[Task], Any], measure: Callable[[Any], Json], epochs: int | None = None
    ) -> Any:
        """The model that `make` makes, or the one that an earlier run with these settings kept.

        Args:
            name: the stage, and the model's name (`base`, `s80`, …).
            make: does the work.
            measure: what the stage's record says of the model: fields of `Stage`.
            epochs: passes over the training images that `make` takes, for the record.
        """
        kept = self.checkpoints / f"{name}.keras"
        made: list[Any] = []

        def work(task: Task) -> Json:
            model = make(task)
            facts = {"model": name, "epochs": epochs, **measure(model)}
            save_checkpoint(model, kept)
            made.append(model)
            return facts

        self._stage(name, work)
        return made[0] if made else load_checkpoint(kept)

    def facts(self, name: str, make: Callable[[Task], Json]) -> Json:
        """The JSON that `make` returns, or what an earlier run kept of it."""
        kept = self.checkpoints / f"{name}.json"

        def work(task: Task) -> Json:
            write_json(kept, make(task))
            return {}

        self._stage(name, work)
        result: Json = read_json(kept)
        return result

    def depend(self, stage: str, settings: Mapping[str, Any]) -> None:
        """Says what a stage and all after it depend on beside the run's settings; they run anew when it has changed.

        Args:
            stage: the first stage that reads these settings.
            settings: JSON types.
        """
        known = self.checkpoints / f"{stage}.settings.json"
        wanted = json.loads(json.dumps(dict(settings)))  # as it will be read
        if not known.exists() or read_json(known) != wanted:
            self.redo(stage)
            write_json(known, wanted)

    def redo(self, stage: str) -> None:
        """Forgets that a stage and all after it are finished."""
        names = list(self._steps)
        for name in names[names.index(stage) :]:
            (self.checkpoints / f"{name}.done.json").unlink(missing_ok=True)

    def keep_variant(self, variant: Variant, file: str) -> None:
        """Keeps a variant's bytes beside the checkpoints until it has been verified."""
        write_bytes(self.checkpoints / "variants" / file, variant.content)

    def kept_variant(self, model: str, recipe: str, file: str, precisions: tuple[str, ...] = ()) -> Variant:
        """What `keep_variant` kept; `precisions` as of the variant."""
        path = self.checkpoints / "variants" / file
        try:
            return Variant(model, recipe, path.read_bytes(), precisions)
        except OSError as error:
            raise OutputError(f"Cannot read {path}: {error.strerror}. Run again with --overwrite.") from error

    def _stage(self, name: str, work: Callable[[Task], Json]) -> None:
        done = self.checkpoints / f"{name}.done.json"
        folder = self.checkpoints / f"{name}.partial"
        if done.exists():
            stage = Stage.from_json(read_json(done))
            shutil.rmtree(folder, ignore_errors=True)  # a kill may have come between the two
            self.progress.skip(name)
        else:
            clock = _Clock(folder / "seconds.json")

            def advance(step: int) -> None:
                clock.keep()
                self.progress.advance(name, step)

            self.progress.start(name)
            task = Task(folder, advance, self.progress.note)
            facts = work(task)
            seconds = round(clock.seconds(), 3)
            stage = Stage.from_json({"name": name, "seconds": seconds, "curve": task.curve(), **facts})
            write_json(done, stage.to_json())
            shutil.rmtree(folder)
            self.progress.finish(stage)
        self.stages.append(stage)

    def _lock(self) -> None:
        """Keeps a second process out of the folder for as long as this one lives; the system lifts it in any case."""
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            self._lock_file = open(self.checkpoints / _LOCK, "w")  # noqa: SIM115  (held until the process ends)
            fcntl.lockf(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OutputError(f"Another run works in {self.out_dir}. Wait, or choose another --out_dir.") from error
        except OSError as error:
            raise OutputError(
                f"Cannot write {self.checkpoints}: {error.strerror}. Choose another --out_dir."
            ) from error

    def _clear(self) -> None:
        try:
            for path in self.checkpoints.iterdir():
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                elif path.name != _LOCK:
                    path.unlink()
        except OSError as error:
            raise OutputError(
                f"Cannot clear {self.checkpoints}: {error.strerror}. Choose another --out_dir."
            ) from error

    def _sweep(self) -> None:
        """Removes what a killed run was writing: files that never got their names."""
        for path in [*self.out_dir.glob(".*"), *self.checkpoints.rglob(".*")]:
            if _TEMPORARY.fullmatch(path.name):
                path.unlink(missing_ok=True)

    def _claim(self, settings: Json) -> None:
        known = self.checkpoints / "settings.json"
        if os.path.exists(known):  # Path.exists raises where a folder may not be read
            before = read_json(known)
            changed = sorted(name for name in settings.keys() | before.keys() if settings.get(name) != before.get(name))
            if changed:
                name = changed[0]
                raise OutputError(
                    f"{self.out_dir} holds a run with {name}={before.get(name)!r}, not {settings.get(name)!r}. "
                    "Choose another --out_dir, or start it again with --overwrite."
                )
            return
        write_json(known, settings)


class _Clock:
    """Seconds spent on a stage, those of killed runs included as far as they were kept."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._before = float(read_json(path)) if path.exists() else 0.0
        self._started = self._kept = time.monotonic()
        write_json(path, self._before)

    def seconds(self) -> float:
        return self._before + time.monotonic() - self._started

    def keep(self) -> None:
        if time.monotonic() - self._kept > 2:
            self._kept = time.monotonic()
            write_json(self._path, self.seconds())
