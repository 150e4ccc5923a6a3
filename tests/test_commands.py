import sys

import pytest

from mobileprune.commands import run_command
from mobileprune.errors import SettingsError


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("raise SystemExit(3)", r"It fails: exit code 3$"),
        ("print('only\\nthis'); raise SystemExit(1)", r"It fails: only \| this$"),
        ("raise ValueError('seven')", r"It fails: ValueError: seven$"),
    ],
)
def test_what_a_failing_command_said_is_one_line(code, message):
    with pytest.raises(SettingsError, match=message):
        run_command([sys.executable, "-c", code], "It fails")


def test_a_command_that_ends_well_is_silent(capfd):
    run_command([sys.executable, "-c", "print('error')"], "It fails")
    assert capfd.readouterr() == ("", "")
