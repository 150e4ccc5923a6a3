import os
import pty
import subprocess
import sys
import threading

import pytest

from mobileprune.progress import Progress, describe
from mobileprune.run_records import Stage

STEPS = {"base": 100, "s80": 50, "convert": 10}
BASE = Stage("base", 61.2, accuracy=0.8851, macs=5_951_744, params=212_298, sparsity=0.0)


@pytest.mark.parametrize(
    ("stage", "words"),
    [
        (BASE, "61 s, validation accuracy 88.5%, 5.95 M MACs, 212 k parameters"),
        (Stage("s80", 9.6, accuracy=0.0, sparsity=0.8), "10 s, validation accuracy 0.0%, 80.0% zeros"),
        (Stage("c50", 48.0, macs=193_000_000, params=4_694_024), "48 s, 193 M MACs, 4.69 M parameters"),
        (Stage("c50", 48.0, macs=193_000_000, params=999_900), "48 s, 193 M MACs, 1 M parameters"),
        (Stage("convert", 0.2), "0 s"),
    ],
)
def test_a_stage_is_described_by_what_is_known(stage, words):
    assert describe(stage) == words


def test_each_stage_prints_its_number_and_its_figures(capfd):
    with Progress(STEPS) as progress:
        progress.skip("base")
        progress.start("s80")
        progress.advance("s80", 10)
        progress.note("epoch 1")
        progress.finish(Stage("s80", 5.0, sparsity=0.8))
    lines = capfd.readouterr().out.splitlines()
    assert lines[0] == "stage 1 of 3 · base: finished before"
    assert lines[-1] == "stage 2 of 3 · s80: 5 s, 80.0% zeros"


def test_outside_a_terminal_no_bar_and_no_colour_is_printed(capfd):
    with Progress(STEPS) as progress:
        progress.start("base")
        for step in range(100):
            progress.advance("base", step)
            progress.note(f"epoch {step}")
        progress.finish(BASE)
    said = capfd.readouterr()
    assert "\x1b" not in said.out + said.err
    assert "epoch" not in said.out + said.err
    assert len(said.out.splitlines()) <= 2


def test_a_line_is_never_folded(capfd):
    name = "a_stage_with_a_long_name" * 10
    with Progress({name: 1}) as progress:
        progress.finish(Stage(name, 1.0, accuracy=0.5, macs=10**6))
    assert len(capfd.readouterr().out.splitlines()) == 1


def test_the_share_done_counts_all_stages_by_their_length(capfd):
    progress = Progress(STEPS)
    bar = progress._bar.tasks[0]
    assert bar.total == 160
    progress.skip("base")
    assert bar.completed == 100
    progress.start("s80")
    progress.advance("s80", 20)
    assert bar.completed == 120
    progress.advance("s80", 900)  # never into the next stage
    assert bar.completed == 150
    progress.finish(Stage("s80", 1.0))
    assert bar.completed == 150


def test_a_line_is_seen_while_stdout_is_silenced():
    code = (
        "from mobileprune.noise import captured_noise; from mobileprune.progress import Progress\n"
        "progress = Progress({'base': 1})\n"
        "with captured_noise():\n"
        "    print('noise')\n"
        "    progress.skip('base')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout == "stage 1 of 1 · base: finished before\n"


def test_on_a_terminal_the_bar_shows_stage_note_and_time_left():
    # A pseudo-terminal stands for the screen; stdout is redirected to it while the bar is made.
    screen, terminal = pty.openpty()
    shown = []
    reader = threading.Thread(target=_read_all, args=(screen, shown), daemon=True)
    reader.start()
    saved = os.dup(1)
    os.dup2(terminal, 1)
    os.close(terminal)
    try:
        progress = Progress(STEPS)
    finally:
        os.dup2(saved, 1)
        os.close(saved)
    with progress:
        progress.start("base")
        progress.advance("base", 80)
        progress.note("epoch 4")
        progress._bar.refresh()
    progress.console.file.close()
    reader.join(timeout=10)
    text = b"".join(shown).decode()
    for words in ("stage 1 of 3", "base", "50%", "epoch 4", "left"):
        assert words in text


def _read_all(screen, shown):
    try:
        while part := os.read(screen, 4096):
            shown.append(part)
    except OSError:
        pass  # the terminal was closed
