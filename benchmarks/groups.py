"""Seconds of channel analysis, planning and surgery on stock architectures, beside a peer's.

  python benchmarks/groups.py [--only=mobilenet_v2,resnet50] [--torch_python=/path/to/python]

For each architecture (fresh weights, its usual input size), medians of a few repeats that are interleaved:

- analysis: `mp.channel_groups(model)`
- plan: `mp.plan_channels(model, macs=0.5)`. One call analyses and plans, so this column is analysis + plan.
- plan by ratio: `mp.plan_channels(model, ratio=0.5, scope="local")`, the same question that the peer is asked.
- surgery: `mp.prune_channels(model, plan)`, and its ratio to `keras.models.clone_model(model)`, which makes a
  network of the same graph with fresh weights and transfers none. The goal is at most 2.
- with `--torch_python`, an interpreter that has torch, torchvision and torch-pruning: how long Torch-Pruning takes to
  build the groups of torchvision's twin and to remove half of each (see torch_pruning_twin.py), and the ratio of
  "plan by ratio" to it. The goal is at most 0.5. What fails there is shown as failed.

About 4 minutes on two cores, 6 with the peer. `--json=FILE` keeps the figures.
"""

import gc
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
from absl import app, flags

import mobileprune as mp

TWIN = Path(__file__).resolve().parent / "torch_pruning_twin.py"
# The name in keras.applications, and in torchvision.models where there is such a network.
ARCHITECTURES = {
    "MobileNetV2": "mobilenet_v2",
    "MobileNetV3Large": "mobilenet_v3_large",
    "ResNet50": "resnet50",
    "EfficientNetB0": "efficientnet_b0",
    "DenseNet121": "densenet121",
    "InceptionV3": "inception_v3",
    "ConvNeXtTiny": "convnext_tiny",
    "VGG16": "vgg16",
    "MobileNet": None,
    "Xception": None,
    "NASNetMobile": None,
    "EfficientNetV2B0": None,
}
GOAL_PEER, GOAL_CLONE = 0.5, 2.0

ONLY = flags.DEFINE_list("only", [], f"Some of {', '.join(ARCHITECTURES)}.")
REPEATS = flags.DEFINE_integer("repeats", 3, "Measurements of each after one that warms up.", lower_bound=1)
TORCH_PYTHON = flags.DEFINE_string("torch_python", None, "An interpreter with torch, torchvision and torch-pruning.")
JSON = flags.DEFINE_string("json", None, "A file for the figures.")


def measure(name: str) -> dict[str, Any]:
    """Medians in seconds for one architecture; `error` says why there are none."""
    model = getattr(keras.applications, name)(weights=None)
    plans: list[Any] = []
    jobs: dict[str, Callable[[], Any]] = {
        "analysis_s": lambda: mp.channel_groups(model),
        "plan_s": lambda: plans.append(mp.plan_channels(model, macs=0.5)),
        "plan_ratio_s": lambda: mp.plan_channels(model, ratio=0.5, scope="local"),
        "surgery_s": lambda: mp.prune_channels(model, plans[-1]),
        "clone_s": lambda: keras.models.clone_model(model),
    }
    seconds: dict[str, list[float]] = {job: [] for job in jobs}
    try:
        for _ in range(REPEATS.value + 1):
            for job, run in jobs.items():
                gc.collect()
                started = time.perf_counter()
                run()
                seconds[job].append(time.perf_counter() - started)
    except Exception as error:  # noqa: BLE001 (one architecture's failure is a result)
        return {"error": f"{type(error).__name__}: {' '.join(str(error).split())}"}
    return {
        "layers": len(model.layers),
        "groups": len(plans[-1].groups),
        "frozen": sum(1 for group in plans[-1].groups if group.frozen),
        **{job: statistics.median(found[1:]) for job, found in seconds.items()},
    }


def peer(name: str, python: str) -> dict[str, Any]:
    """Torch-Pruning's seconds on torchvision's network of that name."""
    # Threads that spin while they wait stand still beside any other program, which would flatter us.
    environment = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ}
    command = [python, str(TWIN), "groups", name, str(REPEATS.value)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if ran.returncode:
        return {"error": (ran.stderr.strip().splitlines() or ["no output"])[-1]}
    found: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return found


def main(_: list[str]) -> int:
    """Measures and prints a markdown table; a failure of ours is exit code 1, a missed goal is not."""
    mp.quiet_tensorflow()
    unknown = set(ONLY.value) - set(ARCHITECTURES)
    if unknown:
        print(f"Unknown: {', '.join(sorted(unknown))}. Known: {', '.join(ARCHITECTURES)}.", file=sys.stderr)
        return 2
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    if load > cores / 2:
        print(f"The machine is busy (load {load:.1f} on {cores} cores): the ratios mean little.", file=sys.stderr)
    chosen = ONLY.value or list(ARCHITECTURES)
    print(
        "| architecture | layers | groups (frozen) | analysis | plan | plan by ratio | surgery | clone "
        "| surgery ÷ clone | peer: build + step | plan by ratio ÷ peer |"
    )
    print(f"|{'---|' * 11}", flush=True)
    figures: dict[str, dict[str, Any]] = {}
    for name in chosen:
        twin = ARCHITECTURES[name]
        theirs = peer(twin, TORCH_PYTHON.value) if twin and TORCH_PYTHON.value else None
        ours = measure(name)
        figures[name] = {"mobileprune": ours, "torch_pruning": theirs}
        print(_row(name, ours, theirs), flush=True)
        keras.backend.clear_session()
        gc.collect()
    for name, figure in figures.items():
        for who, found in figure.items():
            if found and "error" in found:
                print(f"\n{name}, {who}: {found['error']}")
    if JSON.value:
        Path(JSON.value).write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return int(any("error" in figure["mobileprune"] for figure in figures.values()))


def _row(name: str, ours: dict[str, Any], theirs: dict[str, Any] | None) -> str:
    if "error" in ours:
        cells = ["failed", *[""] * 7]
    else:
        ratio = ours["surgery_s"] / ours["clone_s"]
        cells = [
            str(ours["layers"]),
            f"{ours['groups']} ({ours['frozen']})",
            *(f"{ours[key]:.3f} s" for key in ("analysis_s", "plan_s", "plan_ratio_s", "surgery_s", "clone_s")),
            _judged(ratio, GOAL_CLONE),
        ]
    if theirs is None:
        cells += ["", ""]
    elif "error" in theirs:
        cells += ["failed", ""]
    else:
        total = theirs["build_s"] + theirs["step_s"]
        cells.append(f"{theirs['build_s']:.3f} + {theirs['step_s']:.3f} s")
        cells.append("" if "error" in ours else _judged(ours["plan_ratio_s"] / total, GOAL_PEER))
    return f"| {' | '.join([name, *cells])} |"


def _judged(ratio: float, goal: float) -> str:
    return f"{ratio:.2f} {'≤' if ratio <= goal else '>'} {goal:g}"


if __name__ == "__main__":
    sys.exit(app.run(main))
