"""One finished run of the main job in its smallest settings, made once and shared by all tests and test processes."""

import fcntl
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
PIPELINE = ROOT / "pipelines" / "classify_mobile.py"
# Twice the preset's training, because after less the base model is too poor for its files to be verified.
SMOKE = ("--preset=smoke", "--train_epochs=2", "--limit_images=512")


def classify(*flags: object, cwd: Path = ROOT, **options: object) -> subprocess.CompletedProcess:
    """Runs the real pipeline in a process of its own."""
    return subprocess.run(command(*flags), cwd=cwd, capture_output=True, text=True, timeout=400, **options)


def command(*flags: object) -> list[str]:
    return [sys.executable, str(PIPELINE), *map(str, flags)]


def smoke_flags(folder: Path) -> tuple[str, ...]:
    return (*SMOKE, f"--out_dir={folder}")


def finished_smoke_run(tmp_path_factory) -> tuple[Path, str]:
    """The run's folder, for reading only, and what it printed."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder, printed = shared / "smoke", shared / "smoke.txt"
    with open(shared / "smoke.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not printed.exists():
            done = classify(*smoke_flags(folder))
            assert done.returncode == 0, done.stderr
            assert done.stderr == "", done.stderr
            printed.write_text(done.stdout)
    return folder, printed.read_text()
