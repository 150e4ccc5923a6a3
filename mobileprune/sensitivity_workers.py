"""Several processes share a sensitivity analysis: each measures some of its parts and keeps them in the store."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from mobileprune.errors import ModelError, WorkerError
from mobileprune.files import write_json
from mobileprune.sensitivity_changes import Asked
from mobileprune.sensitivity_run import Analysis, Part, key_of
from mobileprune.sensitivity_store import Store

MODEL, IMAGES, LABELS, ASKED, PARTS = "model.keras", "images_{}.npy", "labels.npy", "asked.json", "parts.json"
_POLL_S = 0.2


def share(
    analysis: Analysis, parts: Sequence[Part], asked: Asked, store: Store, workers: int, look: Callable[[], None]
) -> None:
    """Measures parts in several processes.

    Args:
        analysis: what is analysed.
        parts: what of it is to be measured.
        asked: the same for another process.
        store: where the processes keep what they measure.
        workers: how many there are; each gets its share of the cores.
        look: called every now and then while they work.

    Raises:
        WorkerError: one ended before its work was done; the others are ended, too.
        ModelError: the model cannot be saved for them.
    """
    with tempfile.TemporaryDirectory(prefix="mobileprune_sensitivity_") as name:
        folder = Path(name)
        try:
            analysis.model.save(folder / MODEL)
        except (NotImplementedError, TypeError, ValueError) as error:
            raise ModelError(
                f"{analysis.model.name!r} cannot be saved for other processes: {error}. Use workers=1."
            ) from error
        for number, array in enumerate(analysis.images):
            np.save(folder / IMAGES.format(number), array)
        if analysis.labels is not None:
            np.save(folder / LABELS, analysis.labels)
        write_json(folder / ASKED, asked.to_json())
        known = [key_of(part) for part in analysis.parts()]
        write_json(folder / PARTS, [known.index(key_of(part)) for part in parts])
        running: list[tuple[subprocess.Popen[bytes], IO[bytes]]] = []
        try:
            for number in range(workers):
                running.append(_start(folder, store.folder, number, workers))
            while any(process.poll() is None for process, _ in running):
                _check(running)
                look()
                time.sleep(_POLL_S)
            _check(running)
        finally:
            for process, said in running:
                process.kill()
                process.wait()
                if process.stdin is not None:
                    process.stdin.close()
                said.close()


def _start(folder: Path, store: Path, number: int, workers: int) -> tuple[subprocess.Popen[bytes], IO[bytes]]:
    paths = (str(Path(__file__).resolve().parent.parent), os.environ.get("PYTHONPATH", ""))
    threads = str(max(1, (os.cpu_count() or 1) // workers))
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "TF_NUM_INTRAOP_THREADS": threads,
        "TF_NUM_INTEROP_THREADS": "1",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    said = tempfile.TemporaryFile()  # noqa: SIM115 - `share` closes it
    command = [
        sys.executable,
        "-P",
        "-m",
        "mobileprune.sensitivity_worker",
        str(folder),
        str(store),
        str(number),
        str(workers),
    ]
    # The worker ends when this pipe does, so that none outlives a killed parent.
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=said, stderr=said, env=environment)
    return process, said


def _check(running: list[tuple[subprocess.Popen[Any], IO[bytes]]]) -> None:
    for number, (process, said) in enumerate(running):
        if process.poll():
            said.seek(0)
            lines = said.read().decode(errors="replace").splitlines()
            # An error of ours is its last line; a crash takes some more.
            last = " | ".join(line.strip() for line in lines[-1 if process.returncode == 2 else -3 :] if line.strip())
            raise WorkerError(
                f"Worker {number + 1} of {len(running)} ended with code {process.returncode}"
                f"{f': {last[-600:]}' if last else ''}. What is in the cache stays; run again, or with workers=1."
            )
