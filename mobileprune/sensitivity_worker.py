"""One process of several that share a sensitivity analysis; `mobileprune.sensitivity_workers` starts it."""

import os
import sys
import threading
from pathlib import Path

import numpy as np

from mobileprune.errors import MobilePruneError
from mobileprune.files import read_json
from mobileprune.models import load_model
from mobileprune.sensitivity_changes import Asked, changes_of
from mobileprune.sensitivity_run import Analysis
from mobileprune.sensitivity_store import Store
from mobileprune.sensitivity_workers import ASKED, IMAGES, LABELS, MODEL, PARTS


def main(arguments: list[str]) -> int:
    """Measures every n-th of the parts that are wanted.

    Args:
        arguments: the folder with model and images, the store's, which worker this is, and how many there are.
    """
    threading.Thread(target=_end_with_parent, daemon=True).start()
    folder, store, number, workers = Path(arguments[0]), Store(Path(arguments[1])), int(arguments[2]), int(arguments[3])
    asked = Asked.from_json(read_json(folder / ASKED))
    model = load_model(folder / MODEL)
    count = len(list(folder.glob(IMAGES.format("*"))))
    images = [np.load(folder / IMAGES.format(at), allow_pickle=False) for at in range(count)]
    labels = np.load(folder / LABELS, allow_pickle=False) if (folder / LABELS).is_file() else None
    analysis = Analysis(model, images, labels, changes_of(model, asked))
    parts = analysis.parts()
    # Those of one depth cost about the same, so that taking turns makes even shares.
    mine = [parts[place] for place in read_json(folder / PARTS)[number::workers]]
    for part, sums in analysis.run(mine):
        store.write(part, sums)
    return 0


def _end_with_parent() -> None:
    # Not through `sys.stdin`, whose lock this thread would still hold when the interpreter ends.
    while os.read(0, 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except MobilePruneError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
