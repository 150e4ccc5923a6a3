"""`mobileprune ship`, run as a person would."""

import subprocess
import sys

import pytest
from smoke_run import ROOT, finished_smoke_run
from test_ship import needs_runtime

from mobileprune.manifest import read_manifest
from mobileprune.ship import check_shipped


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    return finished_smoke_run(tmp_path_factory)[0]


def ship(*arguments, expected=0):
    command = [sys.executable, "-m", "mobileprune.cli", "ship", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == expected, done.stdout + done.stderr
    return done.stderr if expected else done.stdout


@needs_runtime
def test_a_run_on_a_known_dataset_ships_with_its_test_images(smoke, tmp_path):
    said = ship(smoke, f"--assets={tmp_path / 'assets'}", "--name=smoke", "--files=all")
    assert "golden_0.jpg" in said
    assert len(read_manifest(tmp_path / "assets" / "smoke").variants) == len(read_manifest(smoke).variants)
    assert check_shipped(tmp_path / "assets") == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "Name a run's folder"),
        (["absent"], "absent/manifest.json"),
        (["absent", "--name=../x"], "is no name for a folder of assets"),
        (["absent", "--assets=/nowhere/at/all"], "/nowhere/at is missing"),
        (["absent", "--license_file=absent.txt"], "absent.txt cannot be read"),
    ],
)
def test_bad_input_is_one_line(arguments, said):
    line = ship(*arguments, expected=2)
    assert said in line
    assert line.count("\n") == 1
