"""What programs print, and how they refuse flags: the same for the command line and the pipelines."""

import sys
import warnings
from collections.abc import Callable
from typing import Any

from absl import flags
from rich.console import Console

from mobileprune.errors import MobilePruneError, MobilePruneWarning


def make_console(least_width: int = 0) -> Console:
    """A console that prints text as it is: names from files are no markup. Tables may be wider than the terminal."""
    console = Console(markup=False, highlight=False, soft_wrap=True)
    console.width = max(console.width, least_width)  # rather wrapped by the terminal than cut
    return console


def parse_flags(arguments: list[str]) -> list[str]:
    """For `app.run(…, flags_parser=parse_flags)`: absl's own parser ends in a page of usage and exit code 1."""
    try:
        return list(flags.FLAGS(arguments))
    except flags.Error as error:
        print(f"error: {one_line(error)}; see --help", file=sys.stderr)
        sys.exit(2)


def exit_code(job: Callable[[], int]) -> int:
    """What `job` returns; 2 after one line on stderr when it raises a MobilePruneError. Warnings are one line, too."""
    with warnings.catch_warnings():
        others = warnings.showwarning

        def show(message: Any, category: type[Warning], *where: Any, **more: Any) -> None:
            if issubclass(category, MobilePruneWarning):
                print(f"warning: {one_line(message)}", file=sys.stderr)
            else:
                others(message, category, *where, **more)

        warnings.showwarning = show
        warnings.simplefilter("always", MobilePruneWarning)
        try:
            return job()
        except MobilePruneError as error:
            print(f"error: {one_line(error)}", file=sys.stderr)
            return 2


def one_line(error: BaseException) -> str:
    """An error's message without line breaks, and without what else a terminal would obey."""
    line = " ".join(str(error).split())
    return "".join(each if each.isprintable() else "\ufffd" for each in line)
