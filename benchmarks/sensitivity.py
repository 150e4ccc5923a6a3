"""What a sensitivity analysis of MobileNetV2 costs beside the naive way: rebuild and evaluate the network for each cut.

  python benchmarks/sensitivity.py [--images=256] [--naive_every=4] [--workers=1,2]

`mp.analyse_sensitivity` measures every channel group at 5 ratios (fresh weights, 96 pixels, images of noise: none of it
changes the time). The naive way cuts the same channels off with `mp.prune_channels` and runs the images through the
smaller network with `predict_on_batch`, 64 at a time, as `mp.agreement` does; the whole network's answers are computed
once. It is run for every `--naive_every`th group, at all ratios, and its mean is taken for all of them; with
`--naive_every=1` for each. In all that it runs both must say the same. The goal is at most a quarter of the naive time.
`--workers` are numbers of processes to try; the first is compared.

Exit code 1 when the goal is missed or figures differ. Some minutes on two cores; `--json=FILE` keeps the figures.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import keras
import numpy as np
from absl import app, flags

import mobileprune as mp

IMAGES = flags.DEFINE_integer("images", 256, "How many images.", lower_bound=2)
SIZE = flags.DEFINE_integer("size", 96, "Height and width in pixels.", lower_bound=32)
RATIOS = flags.DEFINE_list("ratios", ["0.1", "0.3", "0.5", "0.7", "0.9"], "Shares of the channels that go.")
EVERY = flags.DEFINE_integer("naive_every", 4, "The naive way is run for every so many-th group.", lower_bound=1)
WORKERS = flags.DEFINE_list("workers", ["1"], "Numbers of processes.")
JSON = flags.DEFINE_string("json", None, "A file for the figures.")

GOAL = 0.25
# Of the images' mean squared outputs; float32 in another order of summation.
TOLERANCE = 1e-4


def answers(model: Any, images: np.ndarray) -> np.ndarray:
    """The model's outputs, computed as `mp.agreement` computes them."""
    return np.concatenate([model.predict_on_batch(images[at : at + 64]) for at in range(0, len(images), 64)])


def naive(model: Any, images: np.ndarray, part: Any, ranks: Any, expected: np.ndarray) -> tuple[np.ndarray, float]:
    """Seconds to rebuild and evaluate one group at all ratios, and by how much the figures differ at most."""
    seconds, worst = np.zeros(2), 0.0
    for point in part.points:
        begin = now()
        kept = part.size - round(point.taken * part.size)
        plan = mp.plan_channels(model, channels={part.name: kept}, importance=ranks)
        found = answers(mp.prune_channels(model, plan), images)
        seconds += now() - begin
        noise = float(np.square(found.astype(np.float64) - expected).mean())
        told = float(expected.var(axis=0).mean()) / 10 ** (point.snr_db / 10)
        worst = max(worst, abs(noise - told) / float(np.square(expected).mean()))
    return seconds, worst


def now() -> np.ndarray:
    """Seconds on the wall, and of this process on all cores."""
    return np.array([time.perf_counter(), time.process_time()])


def network() -> Any:
    """MobileNetV2 whose signal neither dies nor explodes: fresh, with the batch norms' statistics of noise."""
    keras.utils.set_random_seed(0)
    model = keras.applications.MobileNetV2(
        input_shape=(SIZE.value, SIZE.value, 3), weights=None, classifier_activation=None
    )
    mp.recalibrate(model, np.random.default_rng(1).normal(size=(64, SIZE.value, SIZE.value, 3)).astype("float32"))
    return model


def main(_: list[str]) -> int:
    """Measures, prints, and says whether the goal is met."""
    mp.quiet_tensorflow()
    model = network()
    images = np.random.default_rng(0).normal(size=(IMAGES.value, SIZE.value, SIZE.value, 3)).astype("float32")
    ratios = [float(ratio) for ratio in RATIOS.value]
    seconds: dict[int, np.ndarray] = {}
    for workers in map(int, WORKERS.value):
        begin = now()
        found = mp.analyse_sensitivity(model, images, ratios=ratios, workers=workers)
        seconds[workers] = now() - begin
        asked = f"{len(found.parts)} groups × {len(ratios)} ratios on {len(images)} images of {SIZE.value} pixels"
        print(f"{asked}, workers={workers}: {seconds[workers][0]:.1f} s", flush=True)
    begin = now()
    expected = answers(model, images)
    once = now() - begin
    ranks = mp.channel_rankings(found)
    sample = found.parts[:: EVERY.value]
    each, worst = [], 0.0
    for part in sample:
        took, differs = naive(model, images, part, ranks, expected)
        each.append(took)
        worst = max(worst, differs)
        print(f"naive, {part.name}: {took[0]:.1f} s for {len(ratios)} ratios", flush=True)
    whole = once + np.mean(each, axis=0) * len(found.parts)
    ours = next(iter(seconds.values()))
    share = ours / whole
    how = "measured" if EVERY.value == 1 else f"{len(sample)} groups measured, the others taken as their mean"
    print(f"{asked}: {ours[0]:.1f} s; naive {whole[0]:.1f} s ({how}).")
    print(f"{share[0]:.3f} of the naive time, {share[1]:.3f} of its processor time; goal {GOAL}.")
    print(f"Largest difference of a figure: {worst:.1e} of the outputs' mean square.")
    if JSON.value:
        figures = {"images": len(images), "size": SIZE.value, "naive_s": whole[0], "naive_cpu_s": whole[1]}
        figures |= {"seconds": {str(workers): took[0] for workers, took in seconds.items()}, "cpu_s": ours[1]}
        figures |= {
            "groups": len(found.parts),
            "naive_groups": len(sample),
            "difference": worst,
            "cores": os.cpu_count(),
        }
        Path(JSON.value).write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return 0 if share[0] <= GOAL and worst <= TOLERANCE else 1


if __name__ == "__main__":
    sys.exit(app.run(main))
