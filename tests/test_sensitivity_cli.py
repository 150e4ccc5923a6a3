"""`mobileprune sensitivity`, run as a person would."""

import subprocess
import sys

import pytest
from photo_models import NAMES, photo_net, photos

from mobileprune.sensitivity_record import Sensitivity


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The model and its labels."""
    path = tmp_path_factory.mktemp("sensitivity")
    photo_net().save(path / "net.keras")
    (path / "labels.txt").write_text("\n".join(NAMES))
    return path


def sensitivity(folder, *flags, model="net.keras", expected=0):
    images = photos()[0][0].parent.parent
    command = [sys.executable, "-m", "mobileprune.cli", "sensitivity", folder / model, f"--images={images}", *flags]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300)
    assert done.returncode == expected, done.stdout + done.stderr
    return done.stderr if expected else done.stdout


def test_channels_with_labels(folder, tmp_path):
    text = sensitivity(folder, f"--labels={folder / 'labels.txt'}", "--ratios=0.3,0.7", f"--out={tmp_path}")
    assert "Shown: accuracy in %" in text
    assert "-30%" in text
    assert "Unchanged the accuracy is" in text
    found = Sensitivity.load(tmp_path / "sensitivity_channels.json")
    assert all(part.name in text for part in found.parts)
    assert found.accuracy is not None
    assert (tmp_path / "sensitivity_channels.png").read_bytes().startswith(b"\x89PNG")
    assert len(list((tmp_path / "cache").rglob("*.json"))) == len(found.parts)


def test_quantization_without_labels(folder, tmp_path):
    text = sensitivity(folder, "--kind=quantization", "--most_images=16", f"--out={tmp_path}")
    found = Sensitivity.load(tmp_path / "sensitivity_quantization.json")
    told = {"agreement": "share of images with the same top-1 class as unchanged, in %,", "snr_db": "signal-to-noise"}
    assert f"Shown: {told[found.telling]}" in text
    assert "on 16 images." in text
    assert "4 bits" in text
    assert found.amounts == (8, 4)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--ratios=some"], "--ratios=some are no numbers"),
        (["--ratios=1.5"], "above 0 and below 1"),
        (["--kind=quantization", "--bits=nan"], "bits"),
        (["--kind=quantization", "--bits=inf"], "bits"),
        (["--only=wild*"], "matches no layer"),
    ],
)
def test_bad_flags_are_one_line(folder, tmp_path, flags, said):
    text = sensitivity(folder, *flags, f"--out={tmp_path}", expected=2)
    assert said in text
    assert len(text.strip().splitlines()) == 1


def test_a_missing_model_is_one_line(folder, tmp_path):
    text = sensitivity(folder, f"--out={tmp_path}", model="none.keras", expected=2)
    assert "There is no model file" in text
    assert len(text.strip().splitlines()) == 1
