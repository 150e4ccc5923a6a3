"""The Python in docs/ runs from top to bottom, its shell commands exist, and its links lead somewhere."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCS = sorted((ROOT / "docs").glob("*.md"))


def anchors(text):
    """What GitHub makes of headings."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_there_are_pages():
    assert ROOT / "docs" / "channel_pruning.md" in DOCS


@pytest.mark.parametrize("page", DOCS, ids=lambda page: page.stem)
def test_python_blocks_run_in_order(page, tmp_path):
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    program = tmp_path / "page.py"
    program.write_text("\n".join(blocks), encoding="utf-8")
    done = subprocess.run([sys.executable, program], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "assert" in program.read_text(encoding="utf-8")


@pytest.mark.parametrize("page", DOCS, ids=lambda page: page.stem)
def test_commands_and_their_flags_exist(page):
    commands = re.findall(r"`((?:mobileprune|python pipelines/\w+\.py) [^`]+)`", page.read_text(encoding="utf-8"))
    assert commands
    for command in commands:
        words = command.split()
        start = ["-m", "mobileprune.cli", words[1]] if words[0] == "mobileprune" else [str(ROOT / words[1])]
        known = subprocess.run([sys.executable, *start, "--help"], capture_output=True, text=True, timeout=60).stdout
        for flag in re.findall(r"--(\w+)", command):
            assert f"--{flag}:" in known or f"--[no]{flag}:" in known, f"{command}: no flag --{flag}"


@pytest.mark.parametrize("page", DOCS, ids=lambda page: page.stem)
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)]+)\)", text):
        path, _, anchor = link.partition("#")
        assert not path or (page.parent / path).exists(), link
        assert not anchor or path or anchor in anchors(text), link
