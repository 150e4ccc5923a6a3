"""`mobileprune sensitivity`: what each part of a model costs to prune, to make sparse or to quantize."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import rich.progress
from absl import flags
from rich.table import Table

import mobileprune as mp
from mobileprune import image_flags
from mobileprune.console import make_console
from mobileprune.errors import SettingsError
from mobileprune.preprocess import load
from mobileprune.verify_files import find_images

FLAGS = flags.FLAGS
_KINDS = ("channels", "sparsity", "quantization")


def define() -> None:
    """The verb's flags."""
    image_flags.define("A folder of images as the model will see; sub-folders called as classes label them.", True)
    flags.DEFINE_string("labels", None, "Class names, one a line in the order of the outputs; else agreement is told.")
    flags.DEFINE_enum("kind", "channels", _KINDS, "What is changed, one group or layer at a time.")
    flags.DEFINE_list("ratios", ["0.1", "0.3", "0.5", "0.7", "0.9"], "Shares of the channels or weights that go.")
    flags.DEFINE_list("bits", ["8", "4"], "Bits of the weights, for --kind=quantization.")
    flags.DEFINE_string("importance", "l2", "How channels are ranked: l1, l2, batch_norm_scale, fpgm, taylor, obs, …")
    flags.DEFINE_list("only", [], "Wildcard patterns of the only layers to look at.")
    flags.DEFINE_integer("most_images", 256, "At most so many images, classes in turn.", lower_bound=2)
    flags.DEFINE_integer("workers", 1, "Processes that share the work.", lower_bound=1)
    flags.DEFINE_string("cache", None, "A folder that keeps what was measured. Default: cache in --out.")
    flags.DEFINE_string("out", None, "A folder to write sensitivity_KIND.json and .png to.", required=True)


def run(arguments: Sequence[str]) -> None:
    """Measures, prints a table, and writes JSON and PNG."""
    if len(arguments) != 1 or arguments[0].endswith(".tflite"):
        raise SettingsError(f"Name a .keras or .h5 file. Received: {' '.join(arguments) or 'nothing'}.")
    ratios, bits = _numbers("ratios"), _numbers("bits")
    model = mp.load_model(arguments[0])
    contract = image_flags.contract(arguments[0], model)
    from mobileprune.inspect import plain  # it loads Keras, for which `--help` should not wait

    model = mp.with_fixed_input(plain(model), contract)
    names = mp.read_labels(FLAGS.labels, mp.output_count(model)) if FLAGS.labels else ()
    paths, labels = find_images(Path(FLAGS.images), FLAGS.most_images, names)
    print(image_flags.told(contract))
    images = np.stack([load(path, contract) for path in paths])
    out = Path(FLAGS.out)
    console = make_console(100)
    with rich.progress.Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("parts", total=None)
        found = mp.analyse_sensitivity(
            model,
            images,
            labels=labels,
            kind=FLAGS.kind,
            ratios=ratios,
            bits=[int(each) if each.is_integer() else each for each in bits],
            importance=FLAGS.importance,
            only=FLAGS.only,
            cache=FLAGS.cache or out / "cache",
            workers=FLAGS.workers,
            progress=lambda done, of, name: bar.update(task, completed=done, total=of, description=name or "parts"),
        )
    console.print(_table(found))
    whole = "" if found.accuracy is None else f" Unchanged the accuracy is {found.accuracy:.1%}."
    print(f"Shown: {_TOLD[found.telling]} on {found.images} images.{whole} Nothing was fitted or trained afterwards.")
    print(f"Wrote {found.save(out / f'sensitivity_{found.kind}.json')}.")
    print(f"Wrote {mp.write_sensitivity_plot(found, out / f'sensitivity_{found.kind}.png')}.")


_TOLD = {
    "accuracy": "accuracy in %",
    "agreement": "share of images with the same top-1 class as unchanged, in %,",
    "snr_db": "signal-to-noise ratio of the outputs in dB",
}


def _table(found: mp.Sensitivity) -> Table:
    table = Table(box=None, pad_edge=False)
    channels = found.kind == "channels"
    table.add_column("group" if channels else "layer", overflow="fold")
    table.add_column("channels" if channels else "weights", justify="right")
    for amount in found.amounts:
        table.add_column(f"{amount:g} bits" if found.kind == "quantization" else f"-{amount:.0%}", justify="right")
    table.add_column("")
    for part in found.parts:
        values = [getattr(point, found.telling) * (1 if found.telling == "snr_db" else 100) for point in part.points]
        table.add_row(
            part.name, f"{part.size:,}", *(f"{value:.1f}" for value in values), "rebuilt: not exact" * part.rebuilt
        )
    return table


def _numbers(flag: str) -> list[float]:
    try:
        return [float(each) for each in FLAGS[flag].value]
    except ValueError as error:
        raise SettingsError(f"--{flag}={','.join(FLAGS[flag].value)} are no numbers: {error}.") from error
