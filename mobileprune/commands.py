"""Foreign programs: a command in, and of one that fails, one line with the last of what it said."""

import dataclasses
import os
import subprocess
import threading
from collections.abc import Sequence
from typing import IO

from mobileprune.errors import SettingsError

# After a program has ended its output is complete, unless a child of its own holds on to it.
LAST_WORDS_S = 1.0


@dataclasses.dataclass(frozen=True)
class Said:
    """What a program said.

    Attributes:
        code: its exit code; None when it was killed because its time was up or because it said too much.
        output: its standard output, cut at the limit.
        errors: its standard error, cut at the limit.
        too_much: whether it said more than the limit.
    """

    code: int | None
    output: bytes
    errors: bytes
    too_much: bool


def run_command(command: Sequence[str], failure: str) -> None:
    """Runs a program to its end.

    Args:
        command: the program and its arguments; no shell reads them.
        failure: what it means when it fails, a clause that begins the message.

    Raises:
        SettingsError: its exit code was not 0; the message has its last lines that speak of an error, or its last ones.

    Example:
        >>> run_command(["pip", "download", "absent"], "pip cannot download it")  # doctest: +SKIP
        SettingsError: pip cannot download it: ERROR: No matching distribution found for absent
    """
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        kept = [line.strip() for line in said if "error" in line.lower()] or said
        raise SettingsError(f"{failure}: {' | '.join(kept[-4:]) or f'exit code {done.returncode}'}")


def run_bounded(command: Sequence[str], *, timeout_s: float, limit: int) -> Said:
    """Runs a program that may hang or never stop talking: it is killed then, and no more than `limit` bytes are kept.

    Args:
        command: the program and its arguments; no shell reads them. It has nothing to read.
        timeout_s: seconds until it is killed.
        limit: bytes of its output, and as many of its errors, that it must not reach.

    Raises:
        SettingsError: the program cannot be started.

    Example:
        >>> run_bounded(["echo", "hello"], timeout_s=10, limit=100)
        Said(code=0, output=b'hello\\n', errors=b'', too_much=False)
    """
    try:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    except OSError as error:
        raise SettingsError(f"Cannot start {command[0]}: {error.strerror or error}.") from error
    kept = (bytearray(), bytearray())
    too_much = threading.Event()

    def read(pipe: IO[bytes], into: bytearray) -> None:
        with pipe:
            while piece := os.read(pipe.fileno(), 1 << 16):
                into += piece[: limit - len(into)]
                if len(into) == limit:
                    too_much.set()
                    process.kill()
                    return

    pipes = [pipe for pipe in (process.stdout, process.stderr) if pipe is not None]
    readers = [threading.Thread(target=read, args=each, daemon=True) for each in zip(pipes, kept, strict=True)]
    for reader in readers:
        reader.start()
    code: int | None = None
    try:
        code = process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        pass
    finally:
        process.kill()
        process.wait()
        for reader in readers:
            reader.join(LAST_WORDS_S)
    return Said(None if too_much.is_set() else code, bytes(kept[0]), bytes(kept[1]), too_much.is_set())
