"""Keeping what converters and quantizers print away from the person who reads, but not from error messages."""

import contextlib
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator

import absl.logging


def quiet_tensorflow() -> None:
    """Imports TensorFlow without its start-up notes and keeps its warnings out of a program's output.

    For programs, not for libraries: it sets the process's log levels.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # read when TensorFlow is imported
    with captured_noise():
        import tensorflow as tf

        tf.constant(0)  # the devices are looked for, and reported, at the first use
    tf.get_logger().setLevel("ERROR")
    absl.logging.set_verbosity(absl.logging.ERROR)


@contextlib.contextmanager
def captured_noise() -> Iterator[Callable[[], str]]:
    """Keeps what C++ and Python write to stdout and stderr from the terminal; yields what tells its last lines.

    The converter, the runtime and litert-quantizer print start-up notes and progress bars that no level or flag turns
    off; they go to file descriptors, so replacing `sys.stderr` is not enough. What other threads print meanwhile is
    kept away, too: a live progress display misses some redraws and catches up afterwards.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    saved = [os.dup(number) for number in (1, 2)]
    with tempfile.TemporaryFile() as file:

        def said() -> str:
            file.flush()
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 2000))
            lines = file.read().decode(errors="replace").splitlines()
            return " | ".join(line.strip() for line in lines[-3:] if line.strip())

        for number in (1, 2):
            os.dup2(file.fileno(), number)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield said
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for number, copy in zip((1, 2), saved, strict=True):
                os.dup2(copy, number)
                os.close(copy)


def described(error: BaseException, said: str = "") -> str:
    """A foreign error on one line, with what was printed before it."""
    lines = " ".join(f"{str(error) or type(error).__name__} {said}".split())
    return lines if len(lines) <= 600 else f"{lines[:300]} … {lines[-300:]}"
