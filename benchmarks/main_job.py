"""What the main job costs and comes to: one run of `pipelines/classify_mobile.py`, measured from outside.

  python benchmarks/main_job.py [flags of the pipeline]

Prints the wall time, the largest resident memory of any process, and the figures that the README quotes, all of the
same run. Without flags about 7 minutes on two cores; `--control` adds about 2.
"""

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from mobileprune.manifest import read_manifest
from mobileprune.run_records import Manifest

PIPELINE = Path(__file__).resolve().parent.parent / "pipelines" / "classify_mobile.py"


def main(flags: list[str]) -> int:
    """Runs the pipeline in a temporary folder and returns its exit code."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.monotonic()
        code = subprocess.run(
            [sys.executable, str(PIPELINE), f"--out_dir={folder}/run", *flags], check=False
        ).returncode
        seconds = time.monotonic() - started
        if code == 0:
            report(read_manifest(Path(folder) / "run"), seconds)
    return code


def report(manifest: Manifest, seconds: float) -> None:
    """Prints a line for each figure."""
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    print(f"\nwall time                        {seconds:.0f} s")
    print(f"peak memory of one process       {peak / 1e9:.2f} GB")
    base, integer = manifest.variant("base", "float32"), manifest.variant("base", "int8")
    if base is None or base.accuracy is None:
        return
    print(f"base float32, test accuracy      {base.accuracy:.4f}")
    small, narrow = manifest.variant("c50", "int8"), manifest.variant("c50", "float32")
    if small is not None and small.accuracy is not None:
        change = 100 * (small.accuracy - base.accuracy)
        print(f"c50 int8, test accuracy          {small.accuracy:.4f} ({change:+.2f} points)")
        print(f"base float32 / c50 int8, size    {base.bytes / small.bytes:.2f}")
        if integer is not None:
            print(f"base int8 / c50 int8, size       {integer.bytes / small.bytes:.2f}")
    if narrow is not None and narrow.latency and narrow.latency[0].ratio is not None:
        print(f"c50 / base float32, latency      {narrow.latency[0].ratio:.3f}")
    for goal, file in manifest.recommended.items():
        print(f"recommended, {goal:<19} {file}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
