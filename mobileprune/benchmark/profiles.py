"""Where the time of a file goes, operator by operator, as the runtime itself says."""

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from mobileprune.errors import InterpreterError, SettingsError
from mobileprune.tflite_runner import STDERR_TAIL_BYTES

MOST_ANSWER_BYTES = 1 << 26
_CHATTER = ("INFO:", "WARNING:")


@dataclasses.dataclass(frozen=True)
class OperatorTime:
    """One operator as the runtime ran it, which need not be one of the file's: XNNPACK merges some and adds others.

    Attributes:
        name: `Convolution (NHWC, F32) IGEMM`: XNNPACK's name and kernel, or the file's op where no delegate took it.
        delegated: whether XNNPACK ran it.
        ms: milliseconds of one inference, without interruptions. The runtime counts whole microseconds.
        share: of all operators' milliseconds, 0 to 1; 0 where they all take less than can be counted.
    """

    name: str
    delegated: bool
    ms: float
    share: float


def profile_host(
    content: bytes, *, threads: int = 1, runs: int = 50, timeout_s: float = 60.0, name: str = "the .tflite"
) -> tuple[OperatorTime, ...]:
    """Asks LiteRT what each operator of a file takes on this machine, XNNPACK's included.

    The clock is read between operators, which costs some time itself: shares mean more than milliseconds, and their sum
    is more than `benchmark_host` measures.

    Args:
        content: the file.
        threads: for the kernels.
        runs: how many inferences are profiled; of each operator's times the middle half is averaged.
        timeout_s: after which the process is killed.
        name: what errors call the file.

    Returns:
        The operators in the order in which they run.

    Raises:
        SettingsError: arguments that cannot be meant.
        InterpreterError: the runtime refused the file, or it crashed, hung or answered rubbish.

    Example:
        >>> max(profile_host(variant.content), key=lambda op: op.ms).name  # doctest: +SKIP
        'Fully Connected (NC, F32) GEMM'
    """
    if threads < 1 or runs < 1 or timeout_s <= 0:
        raise SettingsError(f"threads={threads}, runs={runs}, timeout_s={timeout_s:g}: too small.")
    with tempfile.TemporaryDirectory(prefix="mobileprune-") as folder:
        path = Path(folder) / "model.tflite"
        path.write_bytes(content)
        answer = _answer([str(path), str(threads), str(runs)], Path(folder), timeout_s, name)
    try:
        return _read(json.loads(answer))
    except (KeyError, ValueError, TypeError, IndexError, OverflowError, RecursionError) as error:
        raise InterpreterError(f"{name} answered rubbish to the profiler: {error!r}.") from error


def _answer(words: list[str], folder: Path, timeout_s: float, name: str) -> bytes:
    root = str(Path(__file__).resolve().parents[2])
    paths = os.pathsep.join(path for path in (root, os.environ.get("PYTHONPATH", "")) if path)
    with (folder / "stdout").open("w+b") as stdout, (folder / "stderr").open("w+b") as stderr:
        try:
            done = subprocess.run(
                [sys.executable, "-P", "-m", "mobileprune.benchmark.profile_worker", *words],
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                cwd=folder,
                env={**os.environ, "PYTHONPATH": paths},
                timeout=timeout_s,
            )
        except subprocess.TimeoutExpired as error:
            raise InterpreterError(f"{name} was not profiled within {timeout_s:g} s and was stopped.") from error
        except OSError as error:
            raise InterpreterError(f"{name}: no process could be started for it: {error}.") from error
        if done.returncode:
            how = f"exit code {done.returncode}" if done.returncode > 0 else f"signal {-done.returncode}"
            stderr.seek(max(0, stderr.seek(0, os.SEEK_END) - STDERR_TAIL_BYTES))
            lines = [line.strip() for line in stderr.read().decode(errors="replace").splitlines()]
            said = " | ".join([line for line in lines if line and not line.startswith(_CHATTER)][-3:])
            raise InterpreterError(f"{name} cannot be profiled ({how}). It said: {said or 'nothing'}.")
        stdout.seek(0)
        return stdout.read(MOST_ANSWER_BYTES)


def _read(answer: object) -> tuple[OperatorTime, ...]:
    """The worker's answer; what does not fit raises what `profile_host` makes an error of."""
    if not isinstance(answer, dict):
        raise TypeError("no object")
    runs = answer["operators"]
    kinds = [[(str(name)[:128], bool(delegated)) for name, delegated, _ in run] for run in runs]
    if not kinds[0] or any(kind != kinds[0] for kind in kinds):
        raise ValueError("inferences differ in their operators")
    times = np.sort(np.array([[float(time) for _, _, time in run] for run in runs]), axis=0) / 1e3
    cut = len(times) // 4
    ms = times[cut : len(times) - cut].mean(axis=0)
    if not (ms >= 0).all():
        raise ValueError("times that are none")
    total = max(float(ms.sum()), 1e-9)
    return tuple(
        OperatorTime("".join(each if each.isprintable() else "?" for each in name), delegated, time, time / total)
        for (name, delegated), time in zip(kinds[0], ms.tolist(), strict=True)
    )
