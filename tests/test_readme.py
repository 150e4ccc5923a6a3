"""The README's Python runs, its commands exist, and its links lead somewhere."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def test_python_blocks_run_in_order(tmp_path):
    code = "\n".join(blocks("python"))
    assert "mp.convert" in code
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "80% zeros" in done.stdout
    assert re.search(r"^int8 \d+ \d+ dB", done.stdout, re.MULTILINE)


@pytest.mark.parametrize("line", [line for block in blocks("sh") for line in block.splitlines() if line.strip()])
def test_every_shell_line_names_something_that_exists(line):
    words = line.split("#")[0].split()
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    elif words[0] == "python":
        program = ROOT / words[1]
        known = subprocess.run([sys.executable, program, "--help"], capture_output=True, text=True, timeout=60).stdout
        for flag in re.findall(r"--(\w+)", line.split("#")[0]):
            assert f"--{flag}:" in known or f"--[no]{flag}:" in known, f"{program.name} has no flag --{flag}"
    else:
        from mobileprune.cli import VERBS

        assert words[0] == "mobileprune"
        assert words[1] in VERBS


def test_every_flag_in_the_text_exists():
    program = ROOT / "pipelines" / "classify_mobile.py"
    known = subprocess.run([sys.executable, program, "--help"], capture_output=True, text=True, timeout=60).stdout
    named = set(re.findall(r"`--(\w+)", README)) - {"help"}
    assert named
    for flag in named:
        assert f"--{flag}:" in known or f"--[no]{flag}:" in known, f"classify_mobile.py has no flag --{flag}"


def test_links_lead_somewhere():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert links
    for link in links:
        assert (ROOT / link).exists(), link
