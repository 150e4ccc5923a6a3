"""`mobileprune benchmark`: how fast are these files, and is one of them faster than the first?"""

from collections.abc import Callable, Sequence
from pathlib import Path

from absl import flags
from rich.table import Table

import mobileprune as mp
from mobileprune.benchmark import DEVICES, benchmark_files, devices_named
from mobileprune.benchmark.android_results import DELEGATES
from mobileprune.benchmark.android_settings import RUNNERS, AndroidSettings
from mobileprune.benchmark.comparison import verdicts, warnings_of
from mobileprune.benchmark.host import COMPARISON_S
from mobileprune.benchmark.host_facts import NO_PHONE, simd_features
from mobileprune.console import make_console, one_line
from mobileprune.errors import InterpreterError, SettingsError, known_names
from mobileprune.manifest import gzip_bytes
from mobileprune.records import Latency
from mobileprune.report.words import milliseconds, size, versus

FLAGS = flags.FLAGS
MOST_THREADS = 64
_QUICK = "One process a file, so a few percent mean nothing; --compare says which differences are real."
Result = Latency | InterpreterError
# Device, threads, and a result for each file.
Measured = tuple[str, int, Sequence[Result]]


def define() -> None:
    """The verb's flags."""
    flags.DEFINE_list("threads", ["1"], "Of each interpreter; several are measured one after another: 1,2,4.")
    flags.DEFINE_string(
        "device",
        "host",
        f"{known_names(DEVICES)} (emulated on other machines), the serial of a phone, or all that are set up.",
    )
    flags.DEFINE_bool("compare", False, "Say which files are really faster than the first, and which are not.")
    flags.DEFINE_float(
        "seconds", COMPARISON_S, "With --compare: for each file that is compared with the first.", lower_bound=1
    )
    flags.DEFINE_integer(
        "rounds", None, "Turns of each file, alternating: 30; on arm64 3, or 6; on phones 20.", lower_bound=1
    )
    flags.DEFINE_bool("xnnpack", True, "Let XNNPACK take what it can, as phones do. Without: the runtime's kernels.")
    flags.DEFINE_enum("runner", RUNNERS[0], RUNNERS, "What runs files on a phone: LiteRT's program, or the demo app.")
    flags.DEFINE_string("benchmark_model", None, "That program for the phone: a path, or a URL with #sha256=CHECKSUM.")
    flags.DEFINE_enum("accelerator", "cpu", list(DELEGATES), "What computes on a phone.")
    flags.DEFINE_bool("keep", False, "Leave the files on the phone, for the next time.")
    flags.DEFINE_bool("profile", False, "Also print which operators take the time, as the runtime says; host only.")


def run(arguments: Sequence[str]) -> int:
    """Measures the files and prints what was found; the verdicts come last. 0, or 3 where a file failed."""
    if not arguments:
        raise SettingsError("Name one or more .tflite files.")
    if FLAGS.compare and len(arguments) < 2:
        raise SettingsError("--compare needs two or more files; the others are compared with the first.")
    threads = _threads(FLAGS.threads)
    android = AndroidSettings(
        runner=FLAGS.runner, benchmark_model=FLAGS.benchmark_model, accelerator=FLAGS.accelerator, keep=FLAGS.keep
    )
    devices = devices_named(FLAGS.device, phones=FLAGS.runner == "app" or FLAGS.benchmark_model is not None)
    if FLAGS.profile and ("host" not in devices or not FLAGS.xnnpack):
        raise SettingsError("--profile is for --device=host with XNNPACK.")
    if not FLAGS.xnnpack and (others := [device for device in devices if device != "host"]):
        raise SettingsError(f"On {others[0]} XNNPACK cannot be left out. Give --device=host.")
    names = _names(arguments)
    variants = [mp.Variant(name, "", _bytes(path)) for name, path in zip(names, arguments, strict=True)]
    found: list[Measured] = []
    whole = True
    for device in devices:
        for count in threads:
            results = benchmark_files(
                variants,
                device,
                threads=count,
                compare=FLAGS.compare,
                seconds=FLAGS.seconds,
                rounds=FLAGS.rounds,
                xnnpack=FLAGS.xnnpack,
                android=android,
            )
            found.append((device, count, results))
            _print_times(names, variants, results)
        if device == "arm64":
            whole &= _print_arm64(names, variants, results)
        elif device == "host" and FLAGS.profile:
            whole &= _print_profiles(names, variants, results, threads[0])
    for place, count, measured in found:
        _print_facts(names, place, count, measured)
    if FLAGS.compare:
        for place, count, measured in found:
            where = f" ({place}, {_counted(count)})" if len(found) > 1 else ""
            for line in verdicts([name.removesuffix(".tflite") for name in names], measured):
                print(line + where)
    whole &= all(isinstance(result, Latency) for _, _, measured in found for result in measured)
    return 0 if whole else 3


def _threads(words: Sequence[str]) -> list[int]:
    counts = [int(word) if word.isdecimal() and len(word) < 4 else 0 for word in words]
    if not counts or min(counts) < 1 or max(counts) > MOST_THREADS:
        raise SettingsError(f"--threads={','.join(words)}: numbers from 1 to {MOST_THREADS}, with commas between them.")
    return list(dict.fromkeys(counts))


def _counted(threads: int) -> str:
    return "1 thread" if threads == 1 else f"{threads} threads"


def _names(paths: Sequence[str]) -> list[str]:
    """What the files are called: as short as tells them apart."""
    shortened: tuple[Callable[[str], str], ...] = (lambda path: Path(path).name, lambda path: path)
    for shorten in shortened:
        names = [shorten(path) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [f"{path} #{number}" for number, path in enumerate(paths, 1)]  # one file twice, beside itself


def _print_times(names: Sequence[str], variants: Sequence[mp.Variant], results: Sequence[Result]) -> None:
    table = Table(box=None, pad_edge=False)
    columns = ("file", "size", "gzip", "p50", "p90", "p99", "of the first", "load", "first run", "memory", "drift")
    for name in (*columns, "interrupted"):
        table.add_column(name, justify="left" if name == "file" else "right", overflow="fold")
    for name, variant, result in zip(names, variants, results, strict=True):
        sizes = (size(len(variant.content)), size(gzip_bytes(variant.content)))
        if not isinstance(result, Latency):
            table.add_row(name, *sizes, "failed")
            continue
        table.add_row(
            *(name, *sizes, *map(milliseconds, (result.p50_ms, result.p90_ms, result.p99_ms))),
            versus(result),
            milliseconds(result.init_ms),
            "" if result.first_ms is None else milliseconds(result.first_ms),
            size(result.peak_memory_bytes),
            "" if result.drift is None else f"{result.drift:+.1%}",
            "" if result.outliers is None else f"{result.outliers:.1%}",
        )
    make_console(140).print(table)


def _print_arm64(names: Sequence[str], variants: Sequence[mp.Variant], results: Sequence[Result]) -> bool:
    """Do they run there on sparse kernels, and with the answers of this machine; whether that can be said of all."""
    whole = True
    table = Table(box=None, pad_edge=False)
    for name in ("file", "sparse 1×1 convs", "top-1 as here", "largest error"):
        table.add_column(name, justify="left" if name == "file" else "right", overflow="fold")
    for name, variant, result in zip(names, variants, results, strict=True):
        if not isinstance(result, Latency):
            continue  # it is named with the others
        try:
            kernels = mp.sparse_kernels(variant.content, name=name)
            found = mp.compare_on_arm64(variant.content, name=name)
        except InterpreterError as error:
            print(f"failed: {one_line(error)}")
            whole = False
        else:
            worst = f"{found.max_abs_error:.1e}" if found.max_steps is None else f"{found.max_steps:.0f} steps"
            table.add_row(name, f"{kernels.sparse} of {kernels.pointwise}", f"{found.agreement:.0%}", worst)
    if table.row_count:
        make_console(120).print(table)
    return whole


def _print_profiles(
    names: Sequence[str], variants: Sequence[mp.Variant], results: Sequence[Result], threads: int
) -> bool:
    """The operators of each file that take the most time; whether all files say it."""
    whole = True
    for name, variant, result in zip(names, variants, results, strict=True):
        if not isinstance(result, Latency):
            continue
        try:
            operators = mp.profile_host(variant.content, threads=threads, name=name)
        except InterpreterError as error:
            print(f"failed: {one_line(error)}")
            whole = False
            continue
        table = Table(box=None, pad_edge=False, title=f"{name}: {len(operators)} operators", title_justify="left")
        for column in ("place", "operator", "by", "time", "share"):
            table.add_column(column, justify="left" if column in ("operator", "by") else "right", overflow="fold")
        order = sorted(range(len(operators)), key=lambda place: -operators[place].ms)
        for place in order[:10]:
            each = operators[place]
            by = "XNNPACK" if each.delegated else "runtime"
            table.add_row(str(place + 1), each.name, by, milliseconds(each.ms), f"{each.share:.0%}")
        make_console(120).print(table)
    return whole


def _print_facts(names: Sequence[str], device: str, threads: int, results: Sequence[Result]) -> None:
    """On what it was measured, and what may have disturbed it."""
    for name, result in zip(names, results, strict=True):
        if isinstance(result, Latency):
            for warning in warnings_of(result):
                print(f"{name}: {warning}")
        else:
            print(f"failed: {one_line(result)}")
    first = next((result for result in results if isinstance(result, Latency)), None)
    if first is None:
        return
    print(f"{first.device}, {first.runtime}, {_counted(threads)}, accelerator: {first.accelerator}.")
    if device == "host":
        print(f"Vector instructions: {' '.join(simd_features()) or 'not known'}. {NO_PHONE}")
        if not FLAGS.compare and len(results) > 1:
            print(_QUICK)
    elif first.device.startswith("emulated"):
        print("Emulated times are no phone's: compare files of one number type.")


def _bytes(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise SettingsError(f"Cannot read {path}: {error.strerror or error}.") from error
