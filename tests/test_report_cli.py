import subprocess
import sys

import pytest
from records_samples import changed, default_run

from mobileprune.manifest import write_manifest


def report(*arguments):
    command = [sys.executable, "-m", "mobileprune.cli", "report", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for name in ("old", "new"):
        write_manifest(folder / name, changed(default_run(), command=f"python {name}.py"))
    return folder / "old", folder / "new"


def test_one_run_gets_its_report_anew(runs):
    done = report(runs[0])
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(path.name for path in runs[0].iterdir()) == ["manifest.json", "report.html", "report.md"]


def test_two_runs_are_compared(runs, tmp_path):
    done = report(*runs, f"--out={tmp_path}")
    assert (done.returncode, done.stderr) == (0, "")
    assert "Smallest: the same file, as large, as fast, ±0.0 points, no clear difference." in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["comparison.html", "comparison.md"]
    assert "# new against old" in (tmp_path / "comparison.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "Name a run's folder, or two. Received: nothing."),
        (("a", "b", "c"), "Received: a b c."),
        (("nowhere",), "Cannot read nowhere/manifest.json"),
        (("RUN", "nowhere"), "Cannot read nowhere/manifest.json"),
        (("RUN", "--out=x"), "--out is for two runs"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_what_is_no_run_is_one_clear_error(runs, arguments, said):
    done = report(*(runs[0] if argument == "RUN" else argument for argument in arguments))
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
