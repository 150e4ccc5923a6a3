"""A command in, nothing out; of one that fails, one line with the last of what it said."""

import subprocess
from collections.abc import Sequence

from mobileprune.errors import SettingsError


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
