"""The law of channel pruning, and everything after it, on every network of keras.applications.

  python benchmarks/zoo.py [--only='MobileNet*,ResNet50'] [--limit=5]

Each member, in a process of its own (its memory is given back, and a crash is a result), with fresh weights and
statistics that are all different:

1. groups: the channel groups found, and how many of them must stay whole
2. plan and prune: half of the multiply-accumulates, random channels
3. law: with every weight that reads a removed channel set to zero, the smaller network answers what the large one does
4. saved and reloaded by plain Keras, it answers the same
5. one training step leaves finite weights
6. its float32 `.tflite` agrees with it (`mp.verify`)

One line a member with seconds and a verdict, and a summary; exit code 1 if anything failed. All 38 members take about
an hour on two cores, `--only='*Net*B0,MobileNet*,ResNet50,VGG16'` about 5 minutes.
"""

import contextlib
import fnmatch
import functools
import importlib
import inspect
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
from absl import app, flags

import mobileprune as mp

ONLY = flags.DEFINE_list("only", ["*"], "Wildcard patterns of names in keras.applications.")
LIMIT = flags.DEFINE_integer("limit", None, "At most so many members.", lower_bound=1)
SIZE = flags.DEFINE_integer("size", 96, "Height and width of the input; 0 takes the network's usual.", lower_bound=0)
MACS = flags.DEFINE_float("macs", 0.5, "Share of the multiply-accumulates that is kept.", lower_bound=0, upper_bound=1)
SKIP = flags.DEFINE_list("skip", [], "Steps to leave out: train, tflite.")
TIMEOUT = flags.DEFINE_integer("timeout_s", 1800, "For one member.", lower_bound=1)
JSON = flags.DEFINE_string("json", None, "A file for the figures.")
MEMBER = flags.DEFINE_string("member", None, "Run this one here and print its result as JSON (what each process does).")

# As a share of the largest output: sums in another order, through hundreds of layers.
TOLERANCE = 1e-3


def members() -> list[str]:
    """The names of all networks in keras.applications."""
    return [name for name in dir(keras.applications) if name[0].isupper()]


def build(name: str) -> Any:
    """A member without a softmax at its end, which would hide differences."""
    make = getattr(keras.applications, name)
    arguments: dict[str, Any] = {"weights": None, "classifier_activation": None}
    if SIZE.value:
        arguments["input_shape"] = (SIZE.value, SIZE.value, 3)
    return make(**{key: value for key, value in arguments.items() if key in inspect.signature(make).parameters})


def randomise(model: Any, seed: int = 0) -> None:
    """Makes all weights and statistics different, without outputs that grow from layer to layer.

    Scales and biases move away from 1 and 0; statistics become those of noise.
    """
    generator = np.random.default_rng(seed)
    for variable in model.variables:
        values = np.asarray(variable)
        if not np.issubdtype(values.dtype, np.floating):
            continue
        if values.size > 1 and np.ptp(values) > 0:  # a kernel, drawn when it was built: twice the variance, for ReLU
            variable.assign(values * np.sqrt(2.0).astype(values.dtype))
        else:
            width = 0.3 if np.any(values) else 0.05
            variable.assign(values + generator.uniform(-width, width, values.shape).astype(values.dtype))
    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.Normalization):
            layer.finalize_state()  # it computes with copies of its weights
    mp.recalibrate(model, noise(model, 8, seed + 1), batch_size=8)


def noise(model: Any, count: int, seed: int) -> np.ndarray:
    """Images of smooth noise, in the range that the network's own rescaling expects."""
    generator = np.random.default_rng(seed)
    shape = model.inputs[0].shape[1:]
    inside = any(isinstance(layer, (keras.layers.Rescaling, keras.layers.Normalization)) for layer in model.layers[:4])
    images = generator.normal(size=(count, *shape)).cumsum(axis=1).cumsum(axis=2)
    images /= np.abs(images).max(axis=(1, 2, 3), keepdims=True)
    return (images * 127.5 + 127.5 if inside else images).astype(np.float32)


def law() -> Any:
    """The tests' own definition of the law: what it means to silence, and twins for layers that mix channels."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
    return importlib.import_module("laws.removal")


class Failure(Exception):
    """A step that went wrong, with what."""


@contextlib.contextmanager
def _step(name: str, seconds: dict[str, float]) -> Iterator[None]:
    started = time.perf_counter()
    try:
        yield
    except Exception as error:  # every failure is the member's result
        reason = " ".join(str(error).split())[:300]
        raise Failure(
            f"{name}: {reason if isinstance(error, Failure) else f'{type(error).__name__}: {reason}'}"
        ) from error
    finally:
        seconds[name] = time.perf_counter() - started


def examine(name: str) -> dict[str, Any]:
    """Runs every step on one member."""
    keras.utils.set_random_seed(0)
    seconds: dict[str, float] = {}
    facts: dict[str, Any] = {"name": name, "seconds": seconds, "verdict": "ok"}
    try:
        _examine(name, facts, functools.partial(_step, seconds=seconds))
    except Failure as failure:
        facts["verdict"] = str(failure)
    return facts


def _examine(name: str, facts: dict[str, Any], step: Any) -> None:
    rules = law()
    with step("build"):
        model = build(name)
        randomise(model)
    images = noise(model, 4, seed=7)
    with step("groups"):
        groups = mp.channel_groups(model)
        facts["groups"], facts["frozen"] = len(groups), sum(1 for group in groups if group.frozen)
    with step("plan"):
        plan = rules.law_plan(model, macs=MACS.value)
        facts["macs_kept"], facts["params_kept"] = plan.macs / plan.macs_before, plan.params / plan.params_before
        facts["params"] = plan.params_before
    with step("silence"):
        graph = rules.ChannelGraph(model)
        if rules.silence(graph, plan) == 0:
            raise Failure("nothing was silenced")
        # Layers that normalise over channels see the removed ones however silent their readers are.
        twin = rules.survivors(graph, plan)
        expected = checked(rules.run(model, [images], alive=twin)[0])
    with step("prune"):
        smaller = mp.prune_channels(model, plan)
    del model, graph, twin
    with step("law"):
        if smaller.count_params() != plan.params:
            raise Failure(f"{smaller.count_params()} parameters, the plan says {plan.params}")
        found = answers(smaller, images)
        facts["error"] = difference(found, expected)
        _check(facts["error"], "the smaller network answers otherwise")
    with step("reload"), tempfile.TemporaryDirectory() as folder:
        smaller.save(f"{folder}/smaller.keras")
        reloaded = keras.models.load_model(f"{folder}/smaller.keras", safe_mode=True, compile=False)
        _check(difference(answers(reloaded, images), found), "the reloaded network answers otherwise")
        del reloaded
    if "tflite" not in SKIP.value:
        with step("tflite"):
            many = np.concatenate([images, noise(smaller, 16, seed=8)])
            (variant,) = mp.convert(smaller, ["float32"])
            report = mp.verify(smaller, variant, many, timeout_s=300)
            facts["bytes"], facts["snr_db"] = len(variant.content), report.snr_db
            report.raise_if_failed()
    if "train" not in SKIP.value:
        with step("train"):
            train_one_step(smaller, images)


def answers(model: Any, images: np.ndarray) -> np.ndarray:
    """The network's outputs in inference mode."""
    return checked(np.asarray(model(images, training=False)))


def checked(found: np.ndarray) -> np.ndarray:
    """Outputs, after a look at whether they could show a mistake."""
    if not np.isfinite(found).all():
        raise Failure("outputs are not finite")
    if np.ptp(found, axis=0).max() < 1e-3 * np.abs(found).max():
        raise Failure("outputs are alike for all images, so they prove nothing")
    return found


def difference(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference, as a share of the spread of what is expected."""
    return float(np.abs(found - expected).max() / np.std(expected))


def _check(error: float, what: str) -> None:
    if not error <= TOLERANCE:
        raise Failure(f"{what}: by {error:.2g} of the outputs' spread, {TOLERANCE:g} is allowed")


def train_one_step(model: Any, images: np.ndarray) -> None:
    """One step of gradient descent on random targets."""
    targets = np.random.default_rng(0).normal(size=(len(images), *model.outputs[0].shape[1:])).astype(np.float32)
    before = [np.array(each) for each in model.trainable_variables[:1]]
    model.compile(keras.optimizers.SGD(1e-3), "mse", run_eagerly=True)  # eagerly: one step is not worth tracing
    loss = float(model.train_on_batch(images, targets))
    if not np.isfinite(loss):
        raise Failure(f"the loss is {loss}")
    if any(not np.isfinite(np.asarray(each)).all() for each in model.trainable_variables):
        raise Failure("weights are not finite")
    if all(np.array_equal(each, np.asarray(now)) for each, now in zip(before, model.trainable_variables, strict=False)):
        raise Failure("the first weights did not move")


def in_own_process(name: str) -> dict[str, Any]:
    """`examine(name)` in a process of its own; its crash is a verdict."""
    command = [sys.executable, __file__, f"--member={name}", f"--size={SIZE.value}", f"--macs={MACS.value}"]
    started = time.perf_counter()
    facts: dict[str, Any] = {"name": name, "seconds": {}}
    try:
        ran = subprocess.run(
            [*command, f"--skip={','.join(SKIP.value)}"],
            capture_output=True,
            text=True,
            check=False,
            timeout=TIMEOUT.value,
        )
        lines = ran.stdout.strip().splitlines()
        if ran.returncode == 0 and lines:
            facts = json.loads(lines[-1])
        else:
            last = (ran.stderr.strip().splitlines() or ["no output"])[-1]
            facts["verdict"] = f"the process ended with code {ran.returncode}: {last[:300]}"
    except subprocess.TimeoutExpired:
        facts["verdict"] = f"took longer than {TIMEOUT.value} s"
    facts["total_s"] = time.perf_counter() - started
    return facts


def _line(facts: dict[str, Any]) -> str:
    def shown(key: str, form: str, scale: float = 1) -> str:
        return format(facts[key] * scale, form) if key in facts else "-"

    seconds = " ".join(f"{facts['seconds'][key]:8.2f}" if key in facts["seconds"] else f"{'-':>8}" for key in TIMED)
    groups = f"{facts['groups']} ({facts['frozen']})" if "groups" in facts else "-"
    return (
        f"{facts['name']:<20} {shown('params', '6.1f', 1e-6):>6} {groups:>10} {shown('macs_kept', '5.2f'):>5} "
        f"{shown('params_kept', '5.2f'):>5} {seconds} {facts['total_s']:7.1f} {shown('error', '8.1e'):>8}  "
        f"{facts['verdict']}"
    )


TIMED = ("groups", "plan", "prune", "tflite", "train")
HEADER = (
    f"{'member':<20} {'params':>6} {'groups':>10} {'macs':>5} {'prms':>5} {' '.join(f'{key:>8}' for key in TIMED)} "
    f"{'total':>7} {'error':>8}  verdict\n"
    f"{'':<20} {'in M':>6} {'(frozen)':>10} {'kept':>5} {'kept':>5} {' '.join(['       s'] * len(TIMED))} {'s':>7}"
)


def main(_: list[str]) -> int:
    """Examines the chosen members one after another."""
    if MEMBER.value:
        mp.quiet_tensorflow()
        print(json.dumps(examine(MEMBER.value)))
        return 0
    chosen = [name for name in members() if any(fnmatch.fnmatchcase(name, pattern) for pattern in ONLY.value)]
    if not chosen:
        print(f"--only={','.join(ONLY.value)} matches none of {', '.join(members())}.", file=sys.stderr)
        return 2
    print(HEADER, flush=True)
    results = []
    for name in chosen[: LIMIT.value]:
        results.append(in_own_process(name))
        print(_line(results[-1]), flush=True)
    failed = [facts["name"] for facts in results if facts["verdict"] != "ok"]
    print(f"\n{len(results) - len(failed)} of {len(results)} ok{': failed ' + ', '.join(failed) if failed else ''}.")
    if JSON.value:
        Path(JSON.value).write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(app.run(main))
