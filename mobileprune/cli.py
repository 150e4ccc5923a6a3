"""`mobileprune VERB …`: single steps from the shell; whole jobs are in `pipelines/`."""

import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import app, flags
from rich.table import Table

import mobileprune as mp
from mobileprune import (
    benchmark_cli,
    convert_cli,
    image_flags,
    options,
    report_cli,
    sensitivity_cli,
    ship_cli,
    sparsity_options,
    verify_cli,
)
from mobileprune.console import exit_code, make_console, parse_flags
from mobileprune.errors import ConversionError, ModelError, SettingsError, known_names
from mobileprune.sparse_path import sparse_path
from mobileprune.tflite_graph import read_graph

FLAGS = flags.FLAGS
_USAGE = """mobileprune VERB … takes single steps:

  mobileprune inspect MODEL.keras              layers, MACs, zeros, channel groups, why channels stay; sparse inference
  mobileprune inspect FILE.tflite              ops, inputs, outputs, zeros; sparse inference
  mobileprune prune MODEL.keras --macs=0.5 --images=FOLDER --out=SMALLER.keras [--plan=PLAN.json]
  mobileprune sparsify MODEL.keras --sparsity=0.8 --images=FOLDER --out=SPARSE.keras [--sparse_ready]
  mobileprune sensitivity MODEL.keras --images=FOLDER --out=FOLDER [--kind=channels|sparsity|quantization]
                                               what each part costs, one at a time: table, JSON, picture
  mobileprune convert MODEL.keras --recipes=float16,int8 --images=FOLDER --out=FOLDER
  mobileprune verify MODEL.keras FILE.tflite --images=FOLDER [--labels=NAMES.txt] [--per_layer] [--out=FOLDER]
                                               does it say what the model says; exit code 3 where it does not
  mobileprune benchmark FILE.tflite … [--threads=1,2,4]
                                               latency on this machine, the files in turn
  mobileprune benchmark FILE.tflite … --compare
                                               which are really faster than the first: 30 seconds for each
  mobileprune benchmark FILE.tflite … --device=arm64
                                               on emulated ARM64: does it run, are its zeros skipped, same answers?
  mobileprune benchmark FILE.tflite … --device=SERIAL --benchmark_model=PROGRAM
                                               on an Android phone, through adb
  mobileprune ship RUN_FOLDER                  the recommended files into the Android demo, with pictures to check it by
  mobileprune report RUN_FOLDER [OTHER_RUN]    report.md and report.html anew from manifest.json, or two runs compared

`mobileprune VERB --help` lists a verb's flags. Whole jobs: python pipelines/classify_mobile.py --help"""


def _inspect(arguments: Sequence[str]) -> None:
    path = _one(arguments, "a .keras, .h5 or .tflite file")
    if path.endswith(".tflite"):
        _inspect_tflite(Path(path))
        return
    model = mp.load_model(path)
    console = make_console(120)
    rows = [
        (each.name, each.kind, f"{each.channels:,}", f"{each.macs:,}", f"{each.params:,}", f"{each.sparsity:.0%}")
        for each in mp.layer_facts(model)
    ]
    console.print(_table(("layer", "kind", "channels", "MACs", "parameters", "zeros"), rows, right=(2, 3, 4, 5)))
    facts = mp.model_facts(model)
    console.print(f"{facts.macs:,} MACs, {facts.params:,} parameters, {facts.sparsity:.1%} zeros")
    model = _plain(model)
    _inspect_groups(console, model)
    try:
        verdict = sparse_path(mp.to_float_flatbuffer(model)).sentence()
    except (ConversionError, ModelError) as error:  # everything above holds without a file
        verdict = f"Sparse inference on ARM: not known. {error}"
    console.print(f"\n{verdict}", markup=False)


def _inspect_groups(console: Any, model: Any) -> None:
    """Which channels can go, how far that leads, and why the others stay."""
    from mobileprune.channel_groups import channel_groups

    groups = channel_groups(model)
    free = [group for group in groups if group.frozen is None]
    console.print("\nChannels that can be pruned, a group at a time:" if free else "\nNo channels can be pruned.")
    if free:
        rows = [
            (
                group.name,
                f"{group.size:,}",
                known_names(group.layers, 6),
                f"not exact: {group.inexact}" * bool(group.inexact),
            )
            for group in free
        ]
        console.print(_table(("group", "units", "layers", ""), rows, right=(1,)))
        floor = mp.pruning_floor(model)
        console.print(
            f"With the limits as they are by default they can go down to {floor.macs:,} MACs or {floor.params:,} "
            "parameters."
        )
        if any(group.inexact for group in free):
            console.print("Not exact: losing a channel changes what the others become, so fine-tune or compensate.")
    reasons: dict[str, list[str]] = defaultdict(list)
    for group in groups:
        if group.frozen:
            reasons[group.frozen].append(f"{group.name} ({group.size:,})")
    if reasons:
        console.print("\nChannels that stay whole:")
    for reason, names in reasons.items():
        console.print(f"  {reason}: {known_names(names, 12)}")


def _inspect_tflite(path: Path) -> None:
    content = _bytes(path)
    graph = read_graph(content)
    console = make_console(120)
    for kind, tensors in (("input", graph.inputs), ("output", graph.outputs)):
        for tensor in tensors:
            zero_point = tensor.zero_points[0] if tensor.zero_points else 0
            scale = f", scale {tensor.scales[0]:.6g}, zero point {zero_point}" if tensor.scales else ""
            console.print(f"{kind} {tensor.name}: {tensor.dtype.lower()} {list(tensor.shape)}{scale}")
    for op, count in sorted(graph.histogram().items()):
        console.print(f"{count:5d} {op}")
    console.print(f"{graph.zero_fraction():.1%} of the weights are zero; {len(graph.float_ops())} ops compute in float")
    unknown = mp.unknown_ops(content)
    console.print(
        f"Oldest TensorFlow Lite that has all its ops: {mp.minimum_runtime(content)}"
        + (f", not counting {known_names(unknown)}, whose versions are not known" if unknown else "")
    )
    _inspect_metadata(console, mp.read_metadata(content))
    console.print(sparse_path(content).sentence(), markup=False)


def _inspect_metadata(console: Any, metadata: Any) -> None:
    """What the file says of itself."""
    if metadata is None:
        console.print("No metadata.")
        return
    for name in ("name", "description", "version", "author", "license", "output"):
        if value := getattr(metadata, name):
            console.print(f"{name}: {value}", markup=False)
    if contract := metadata.preprocess:
        console.print(image_flags.told(contract))
    if metadata.labels:
        console.print(f"{len(metadata.labels)} labels: {known_names(metadata.labels, 12)}", markup=False)


def _prune(arguments: Sequence[str]) -> None:
    path = _one(arguments, "a .keras or .h5 file")
    out = _keras_file(FLAGS.out)
    for flag, looks in (("importance", options.WITH_IMAGES), ("compensate", ("mean", "least_squares"))):
        if FLAGS[flag].value in looks and not FLAGS.images:
            raise SettingsError(f"--{flag}={FLAGS[flag].value} looks at images. Add --images=FOLDER.")
    if FLAGS.blocks and not FLAGS.images:
        raise SettingsError("--blocks looks at images. Add --images=FOLDER.")
    made = mp.PruningPlan.load(FLAGS.plan) if FLAGS.plan else None
    model = measured = _plain(mp.load_model(path))
    images = None
    if FLAGS.images:
        contract = image_flags.contract(path, model)
        # Only to know what a channel costs: sizes that the model leaves open stay open.
        measured = mp.with_fixed_input(model, contract)
        if made is None:
            options.check(measured)
        images = options.pruning_images(image_flags.images(contract).calibration.images(FLAGS.calibration_images))
    plan = made or options.plan(measured, images)
    smaller = options.prune(model, plan, images)
    mp.save_checkpoint(smaller, out)
    plan.save(out.with_suffix(".plan.json"))
    how = f"ranked by {plan.importance}, compensation: {options.compensation(images is not None)}"
    print(f"Channels {how}, " + ("no images." if images is None else f"on {len(images)} images."))
    if plan.blocks:
        print(f"Blocks removed: {known_names(plan.blocks)}.")
    left = mp.cost_of_plan(measured, plan)
    print(f"{left.macs:,} of {plan.macs_before:,} MACs and {left.params:,} of {plan.params_before:,} parameters left.")
    if plan.latency:
        timed = plan.latency
        print(
            f"{timed.ms:.3g} of {timed.before_ms:.3g} ms as {timed.recipe} on {timed.device}, measured "
            f"({timed.predicted_ms:.3g} ms by the table). A computer's latency is not a phone's."
        )
    print(f"Wrote {out} and {out.with_suffix('.plan.json')}. Fine-tune it: nothing has been trained.")


def _prune_flags() -> None:
    options.define_pruning()
    image_flags.define(
        "A folder of images without labels: for importances that look at images, --blocks and compensation."
    )
    options.define_calibration()
    flags.DEFINE_string("plan", None, "A plan made before, in the place of a new one.")
    flags.DEFINE_string("out", None, "The .keras file to write; the plan goes beside it.", required=True)


def _sparsify(arguments: Sequence[str]) -> None:
    path = _one(arguments, "a .keras or .h5 file")
    out = _keras_file(FLAGS.out)
    model = _plain(mp.load_model(path))
    ready = mp.sparse_ready(model) if FLAGS.sparse_ready else None
    for change in ready.changes if ready else ():
        print(f"{change.layer}: {change.what}{'' if change.exact else ' (not exact)'}")
    sparsity_options.check(ready.model if ready else model)
    images = None
    if FLAGS.images:
        contract = image_flags.contract(path, model)
        images = options.pruning_images(image_flags.images(contract).calibration.images(FLAGS.calibration_images))
    if ready:
        if images is not None and not ready.exact:
            cost = mp.measure_rewrite(model, ready, images)
            print(f"The rewritten network agrees with the old one on {cost.agreement:.0%} of the images.")
        model = ready.model
    sparse = sparsity_options.prune_one_shot(model, images)
    mp.save_checkpoint(sparse, out)
    how = "by magnitude, no images" if images is None else f"by second order on {len(images)} images"
    print(f"{mp.sparsity(sparse):.1%} of the weights that masks may zero are zero, chosen {how}.")
    print(f"Wrote {out}. Fine-tune it with hold_zeros: nothing has been trained.")


def _sparsify_flags() -> None:
    sparsity_options.define()
    image_flags.define("A folder of images without labels; without one the smallest weights go.")
    options.define_calibration()
    flags.DEFINE_string("out", None, "The .keras file to write.", required=True)


def _keras_file(name: str) -> Path:
    if Path(name).suffix != ".keras":
        raise SettingsError(f"--out={name} must end in .keras.")
    return Path(name)


def _no_flags() -> None:
    """For verbs that have none of their own."""


Verb = tuple[Callable[[Sequence[str]], int | None], Callable[[], None]]
VERBS: dict[str, Verb] = {
    "inspect": (_inspect, _no_flags),
    "prune": (_prune, _prune_flags),
    "sparsify": (_sparsify, _sparsify_flags),
    "sensitivity": (sensitivity_cli.run, sensitivity_cli.define),
    "convert": (convert_cli.run, convert_cli.define),
    "verify": (verify_cli.run, verify_cli.define),
    "benchmark": (benchmark_cli.run, benchmark_cli.define),
    "ship": (ship_cli.run, ship_cli.define),
    "report": (report_cli.run, report_cli.define),
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
    others = set(FLAGS)
    define()
    for name in set(FLAGS) - others:  # so that --help lists them wherever they were defined
        FLAGS.register_key_flag_for_module(sys.argv[0], FLAGS[name])

    def run(arguments: list[str]) -> int:
        def step() -> int:
            mp.quiet_tensorflow()
            return work(arguments[1:]) or 0

        return exit_code(step)

    sys.modules["__main__"].__doc__ = _USAGE
    app.run(run, [f"mobileprune {verb}", *sys.argv[2:]], flags_parser=parse_flags)


def _plain(model: Any) -> Any:
    """The model without sparsity wrappers."""
    from mobileprune.inspect import plain  # it loads Keras, for which `--help` should not wait

    return plain(model)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int]) -> Table:
    """A plain table with the columns in `right` to the right."""
    table = Table(box=None, pad_edge=False)
    for index, name in enumerate(head):
        table.add_column(name, justify="right" if index in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


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
