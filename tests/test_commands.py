import sys
import time

import pytest

from mobileprune.commands import Said, run_bounded, run_command
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


def bounded(code, timeout_s=30.0, limit=1000):
    return run_bounded([sys.executable, "-c", code], timeout_s=timeout_s, limit=limit)


def test_what_a_program_said_and_how_it_ended():
    code = "import sys; print('out'); print('err', file=sys.stderr); print(len(sys.stdin.read())); sys.exit(3)"
    assert bounded(code) == Said(3, b"out\n0\n", b"err\n", False)


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_program_that_never_stops_talking_is_stopped(stream):
    said = bounded(f"import sys\nwhile True: sys.{stream}.write('x' * 999)")
    assert (said.code, said.too_much) == (None, True)
    assert {"stdout": said.output, "stderr": said.errors}[stream] == b"x" * 1000


def test_a_program_that_hangs_is_stopped_and_its_words_are_kept():
    begin = time.monotonic()
    said = bounded("import time; print('begun', flush=True); time.sleep(600)", timeout_s=1.5)
    assert said == Said(None, b"begun\n", b"", False)
    assert time.monotonic() - begin < 300


def test_a_child_that_holds_on_to_the_output_is_not_waited_for():
    code = "import subprocess; print('done', flush=True); subprocess.Popen(['sleep', '3'])"
    assert bounded(code) == Said(0, b"done\n", b"", False)


def test_a_program_that_is_not_there():
    with pytest.raises(SettingsError, match="Cannot start /no/such/program: No such file"):
        run_bounded(["/no/such/program"], timeout_s=1, limit=1)
