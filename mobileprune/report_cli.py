"""`mobileprune report`: a run's report anew, or two runs side by side."""

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from mobileprune.errors import SettingsError
from mobileprune.manifest import FILE as MANIFEST_FILE
from mobileprune.manifest import read_manifest
from mobileprune.report.compare import compare_runs, write_comparison
from mobileprune.report.html import write_html
from mobileprune.report.markdown import write_markdown
from mobileprune.report.plausible import check_plausible

FLAGS = flags.FLAGS


def define() -> None:
    """The verb's flags."""
    flags.DEFINE_string("out", None, "Where two runs' comparison goes. Default: the second run's folder.")


def run(arguments: Sequence[str]) -> None:
    """Writes report.md and report.html of one run, or comparison.md and comparison.html of two.

    Raises:
        SettingsError: no run was named, or more than two, or --out with a single one.
        OutputError: a folder without a manifest or with one that no run writes, or that cannot be written.
    """
    folders = [Path(name) for name in arguments]
    if not 1 <= len(folders) <= 2:
        raise SettingsError(f"Name a run's folder, or two. Received: {' '.join(arguments) or 'nothing'}.")
    runs = [read_manifest(folder) for folder in folders]
    for folder, manifest in zip(folders, runs, strict=True):
        check_plausible(manifest, str(folder / MANIFEST_FILE))
    if len(folders) == 1:
        if FLAGS.out:
            raise SettingsError("--out is for two runs; one run's report goes into its folder.")
        print(f"Wrote {write_markdown(folders[0], runs[0])} and {write_html(folders[0], runs[0])}.")
        return
    names = tuple(folder.resolve().name for folder in folders)
    if names[0] == names[1]:
        names = tuple(str(folder) for folder in folders)
    found = compare_runs(runs[0], runs[1], (names[0], names[1]))
    paths = write_comparison(Path(FLAGS.out) if FLAGS.out else folders[1], found)
    for sentence in (*found.verdicts(), *found.doubts):
        print(sentence.replace("`", ""))
    print(f"Wrote {paths[0]} and {paths[1]}.")
