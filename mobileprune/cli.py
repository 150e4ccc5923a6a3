"""`mobileprune VERB …`: single steps from the shell; whole jobs are in `pipelines/`."""

import dataclasses
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from absl import app, flags
from rich.table import Table

import mobileprune as mp
from mobileprune.console import exit_code, make_console, parse_flags
from mobileprune.errors import SettingsError
from mobileprune.tflite_graph import read_graph

FLAGS = flags.FLAGS
_USAGE = """mobileprune VERB … takes single steps:

  mobileprune inspect MODEL.keras              layers, channel groups, MACs, zeros; and why channels stay
  mobileprune inspect FILE.tflite              ops, inputs, outputs, zeros
  mobileprune prune MODEL.keras --macs=0.5 --out=SMALLER.keras [--plan=PLAN.json]
  mobileprune convert MODEL.keras --recipes=float16,int8 --images=FOLDER --out=FOLDER
  mobileprune benchmark FILE.tflite …          latency on this machine, the files in turn
  mobileprune report RUN_FOLDER                report.md and report.html anew from manifest.json

`mobileprune VERB --help` lists a verb's flags. Whole jobs: python pipelines/classify_mobile.py --help"""


def _inspect(arguments: Sequence[str]) -> None:
    path = _one(arguments, "a .keras, .h5 or .tflite file")
    if path.endswith(".tflite"):
        _inspect_tflite(Path(path))
        return
    model = mp.load_model(path)
    table = Table(box=None, pad_edge=False)
    for name, justify in (("layer", "left"), ("kind", "left"), *((each, "right") for each in _COUNTS)):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for layer in mp.layer_facts(model):
        counts = (layer.channels, layer.macs, layer.params)
        table.add_row(layer.name, layer.kind, *(f"{count:,}" for count in counts), f"{layer.sparsity:.0%}")
    facts = mp.model_facts(model)
    console = make_console(120)
    console.print(table)
    console.print(f"{facts.macs:,} MACs, {facts.params:,} parameters, {facts.sparsity:.1%} zeros\n")
    for group in mp.channel_groups(model):
        layers = ", ".join(group.layers)
        stays = f": stays whole, {group.frozen}" if group.frozen else ""
        console.print(f"group {group.name}: {group.size} channels of {layers}{stays}")


_COUNTS = ("channels", "MACs", "parameters", "zeros")


def _inspect_tflite(path: Path) -> None:
    graph = read_graph(_bytes(path))
    console = make_console(120)
    for kind, tensors in (("input", graph.inputs), ("output", graph.outputs)):
        for tensor in tensors:
            scale = f", scale {tensor.scales[0]:.6g}, zero point {tensor.zero_points[0]}" if tensor.scales else ""
            console.print(f"{kind} {tensor.name}: {tensor.dtype.lower()} {list(tensor.shape)}{scale}")
    for op, count in sorted(graph.histogram().items()):
        console.print(f"{count:5d} {op}")
    console.print(f"{graph.zero_fraction():.1%} of the weights are zero; {len(graph.float_ops())} ops compute in float")


def _prune(arguments: Sequence[str]) -> None:
    model = mp.load_model(_one(arguments, "a .keras or .h5 file"))
    if FLAGS.plan:
        plan = mp.PruningPlan.load(FLAGS.plan)
    else:
        plan = mp.plan_channels(
            model,
            macs=FLAGS.macs,
            importance=FLAGS.importance,
            scope=FLAGS.scope,
            round_to=FLAGS.round_to,
            keep=FLAGS.keep,
        )
    out = Path(FLAGS.out)
    if out.suffix != ".keras":
        raise SettingsError(f"--out={out} must end in .keras.")
    mp.save_checkpoint(mp.prune_channels(model, plan), out)
    plan.save(out.with_suffix(".plan.json"))
    print(f"{plan.macs:,} of {plan.macs_before:,} MACs and {plan.params:,} of {plan.params_before:,} parameters left.")
    print(f"Wrote {out} and {out.with_suffix('.plan.json')}. Fine-tune it: nothing has been trained.")


def _prune_flags() -> None:
    flags.DEFINE_float("macs", 0.5, "Share of the multiply-accumulates kept.")
    flags.DEFINE_string("importance", "l2", "How channels are ranked: l1, l2, batch_norm_scale or random.")
    flags.DEFINE_enum("scope", "global", ["global", "local"], "Rank all channels together, or cut all groups alike.")
    flags.DEFINE_integer("round_to", 8, "Channel counts are multiples of this.", lower_bound=1)
    flags.DEFINE_list("keep", [], "Wildcard patterns of layers that keep all channels.")
    flags.DEFINE_string("plan", None, "A plan made before, in the place of a new one.")
    flags.DEFINE_string("out", None, "The .keras file to write; the plan goes beside it.", required=True)


def _convert(arguments: Sequence[str]) -> None:
    path = _one(arguments, "a .keras or .h5 file")
    model = mp.load_model(path)
    contract = mp.input_contract(path, mp.Preprocess(FLAGS.image_size, FLAGS.image_size, fit=FLAGS.fit), model=model)
    own = {"mean": FLAGS.input_mean, "std": FLAGS.input_std}
    contract = dataclasses.replace(contract, **{name: (value,) for name, value in own.items() if value is not None})
    model = mp.with_fixed_input(model, contract)
    images = mp.load_images(FLAGS.images, contract, ()) if FLAGS.images else None
    calibration = images.calibration.images(FLAGS.calibration_images) if images else None
    if images:
        print(
            f"Images become {contract.shape} {contract.color}, (x - {contract.mean}) / {contract.std}, {contract.fit}."
        )
    for variant in mp.convert(model, FLAGS.recipes, calibration, mp.short_name(path)):
        checked = "not verified: no --images"
        if images:
            report = mp.verify(model, variant, images.validation.images(64))
            report.raise_if_failed()
            checked = f"verified, {report.snr_db:.0f} dB"
        written = variant.save(Path(FLAGS.out) / f"{variant.model}_{variant.recipe}.tflite")
        print(f"{written}: {len(variant.content):,} bytes, {checked}")


def _convert_flags() -> None:
    flags.DEFINE_list("recipes", ["float32", "float16", "dynamic_int8"], "How files are made; int8 needs --images.")
    flags.DEFINE_string("images", None, "A folder of images for calibration and verification.")
    flags.DEFINE_integer("calibration_images", 256, "At most so many of them.", lower_bound=2)
    flags.DEFINE_integer("image_size", 224, "Height and width, for models that leave them open.", lower_bound=8)
    flags.DEFINE_enum("fit", "crop", ["crop", "stretch"], "How an image of another shape fits.")
    flags.DEFINE_float("input_mean", None, "Subtracted from 0..255. Default: 0 if the model rescales, else 127.5.")
    flags.DEFINE_float("input_std", None, "Divides them. Default: 1 if it rescales, else 127.5.", lower_bound=1e-6)
    flags.DEFINE_string("out", ".", "The folder to write to.")


def _benchmark(arguments: Sequence[str]) -> None:
    if not arguments:
        raise SettingsError("Name one or more .tflite files.")
    variants = [mp.Variant(Path(path).stem, "file", _bytes(Path(path))) for path in arguments]
    results = mp.benchmark_host(variants, threads=FLAGS.threads, rounds=FLAGS.rounds)
    table = Table(box=None, pad_edge=False)
    for name in ("file", "p50", "p90", "p99", "of the first", "init"):
        table.add_column(name, justify="left" if name == "file" else "right", no_wrap=name == "file", overflow="fold")
    for path, result in zip(arguments, results, strict=True):
        if not isinstance(result, mp.Latency):
            table.add_row(path, f"failed: {result}")
            continue
        times = (result.p50_ms, result.p90_ms, result.p99_ms)
        ratio = f"{result.ratio:.2f} ({result.ratio_low:.2f}–{result.ratio_high:.2f})"
        table.add_row(Path(path).name, *(f"{time:.3g} ms" for time in times), ratio, f"{result.init_ms:.3g} ms")
    make_console(120).print(table)
    first = next((result for result in results if isinstance(result, mp.Latency)), None)
    if first:
        print(f"{first.device}, {first.runtime}, {first.threads} threads. A computer's latency is not a phone's.")


def _benchmark_flags() -> None:
    flags.DEFINE_integer("threads", 1, "Of each interpreter.", lower_bound=1)
    flags.DEFINE_integer("rounds", 30, "Turns of each file, alternating with the others.", lower_bound=1)


def _report(arguments: Sequence[str]) -> None:
    folder = Path(_one(arguments, "a run's folder"))
    manifest = mp.read_manifest(folder)
    print(f"Wrote {mp.write_markdown(folder, manifest)} and {mp.write_html(folder, manifest)}.")


def _no_flags() -> None:
    """For verbs that have none of their own."""


Verb = tuple[Callable[[Sequence[str]], None], Callable[[], None]]
VERBS: dict[str, Verb] = {
    "inspect": (_inspect, _no_flags),
    "prune": (_prune, _prune_flags),
    "convert": (_convert, _convert_flags),
    "benchmark": (_benchmark, _benchmark_flags),
    "report": (_report, _no_flags),
}


def main() -> None:
    """The console command."""
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help", "help"):
        print(_USAGE)
        return
    verb = sys.argv[1]
    if verb not in VERBS:
        print(f"error: unknown verb {verb!r}; known: {', '.join(VERBS)}", file=sys.stderr)
        sys.exit(2)
    work, define = VERBS[verb]
    define()

    def run(arguments: list[str]) -> int:
        def step() -> int:
            mp.quiet_tensorflow()
            work(arguments[1:])
            return 0

        return exit_code(step)

    sys.modules["__main__"].__doc__ = _USAGE
    app.run(run, [f"mobileprune {verb}", *sys.argv[2:]], flags_parser=parse_flags)


def _one(arguments: Sequence[str], what: str) -> str:
    if len(arguments) != 1:
        raise SettingsError(f"Name {what}. Received: {' '.join(arguments) or 'nothing'}.")
    return arguments[0]


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SettingsError(f"Cannot read {path}: {error.strerror or error}.") from error


if __name__ == "__main__":
    main()
