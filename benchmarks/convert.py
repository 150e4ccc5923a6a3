"""What six files of MobileNetV2 cost, beside TensorFlow's own converter.

  python benchmarks/convert.py [--rounds=3] [--size=224] [--images=20]

Three ways, each in a fresh process, in turn, so that noise hits all alike:

- `mobileprune`: `convert(model, six recipes, calibration)`: float32, float16, dynamic_int8, int8, int8_float_io and
  int16x8;
- `one`: one float32 file by `TFLiteConverter.from_keras_model(model).convert()`;
- `six`: the same six kinds of file, each by a TFLiteConverter of its own with the options and the calibration it needs.

Printed are the medians of time (from the built Keras model to the last file; importing TensorFlow and building the
model are not counted, what mobileprune imports is) and of the largest resident memory, and the medians of the ratios
within rounds. Weights are random. About 4 minutes on two idle cores.
"""

import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from absl import app, flags

ROUNDS = flags.DEFINE_integer("rounds", 3, "How often each way is measured.", lower_bound=1)
SIZE = flags.DEFINE_integer("size", 224, "Height and width of the images.", lower_bound=32)
IMAGES = flags.DEFINE_integer("images", 20, "Calibration images.", lower_bound=1)
SIX = flags.DEFINE_bool("six", True, "Measure six conversions, too.")
WAY = flags.DEFINE_enum("way", None, ["mobileprune", "one", "six"], "Measure this one here (what each process does).")

RECIPES = ("float32", "float16", "dynamic_int8", "int8", "int8_float_io", "int16x8")
# Of mobileprune's time and memory over another way's, the most.
GOALS = {("seconds", "one"): 1.7, ("seconds", "six"): 1 / 3, ("bytes", "one"): 1.3}


def measure(way: str) -> dict[str, float]:
    """Seconds and peak memory of one way in this process."""
    from mobileprune.noise import quiet_tensorflow

    quiet_tensorflow()
    import keras
    import tensorflow as tf

    shape = (SIZE.value, SIZE.value, 3)
    model = keras.applications.MobileNetV2(shape, weights=None)
    images = np.random.default_rng(0).uniform(-1, 1, (IMAGES.value, *shape)).astype(np.float32)
    started = time.perf_counter()
    if way == "mobileprune":
        import mobileprune as mp

        files = [variant.content for variant in mp.convert(model, RECIPES, calibration=images)]
    else:
        wanted = RECIPES[:1] if way == "one" else RECIPES
        files = [by_tensorflow(tf, model, recipe, images) for recipe in wanted]
    seconds = time.perf_counter() - started
    if not all(files):
        raise SystemExit(f"{way} made an empty file")
    # Linux counts in kilobytes.
    return {"seconds": seconds, "bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


def by_tensorflow(tf: Any, model: Any, recipe: str, images: np.ndarray) -> bytes:
    """One file as TensorFlow's own guide makes it."""
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    if recipe != "float32":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if recipe == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if recipe.startswith("int"):
        converter.representative_dataset = lambda: ([image[None]] for image in images)
        ops = tf.lite.OpsSet
        sixteen = ops.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8
        converter.target_spec.supported_ops = [sixteen if recipe == "int16x8" else ops.TFLITE_BUILTINS_INT8]
        if recipe != "int8_float_io":
            kind = tf.int16 if recipe == "int16x8" else tf.int8
            converter.inference_input_type = converter.inference_output_type = kind
    return bytes(converter.convert())


def in_a_process(way: str) -> dict[str, float]:
    """The same in a fresh process: what one way leaves in memory must not help or harm the next."""
    shared = [f"--{flag.name}={flag.value}" for flag in (SIZE, IMAGES)]
    done = subprocess.run([sys.executable, __file__, f"--way={way}", *shared], stdout=subprocess.PIPE, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main(argv: list[str]) -> int:
    """Prints the table; exit code 1 when a goal is missed."""
    if WAY.value:
        print(json.dumps(measure(WAY.value)))
        return 0
    ways = ("mobileprune", "one", "six")[: 2 + SIX.value]
    rounds = []
    for number in range(ROUNDS.value):
        print(f"round {number + 1} of {ROUNDS.value} …", file=sys.stderr)
        rounds.append({way: in_a_process(way) for way in ways})

    def median(figure: Callable[[dict[str, dict[str, float]]], float]) -> float:
        return statistics.median(map(figure, rounds))

    print("| | seconds | peak memory |\n|---|---|---|")
    for way in ways:
        seconds, memory = (median(lambda each, w=way, o=of: each[w][o]) for of in ("seconds", "bytes"))
        print(f"| {way} | {seconds:.1f} | {memory / 1e9:.2f} GB |")
    missed = 0
    for (of, way), goal in GOALS.items():
        if way in ways:
            ratio = median(lambda each, w=way, o=of: each["mobileprune"][o] / each[w][o])
            print(f"mobileprune / {way}, {of}: {ratio:.2f} (goal: at most {goal:.2f}{', missed' * (ratio > goal)})")
            missed += ratio > goal
    return 1 if missed else 0


if __name__ == "__main__":
    app.run(lambda argv: sys.exit(main(argv)))
