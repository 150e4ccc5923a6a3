"""Are sparse files smaller and faster on ARM's kernels? MobileNets made sparse-ready, on emulated ARM64.

  make arm64 && python benchmarks/sparse_arm64.py [--size=128] [--networks=MobileNet,MobileNetV2] [--zeros=0.8,0.9]

Stock networks of keras.applications with random weights go through `sparse_ready`; the given shares of the weights that
`PruneForLatencyOnXNNPack` names become zero; the dense and the sparse file take turns on ARM64's kernels. For each the
1×1 convolutions on XNNPACK's sparse kernels (by its own profile), how far ARM's answers are from this machine's, the
ratio of times to the dense twin with its 95% interval, and the sizes. Emulated times tell ratios of float files and
nothing else. About 3 minutes on two idle cores.
"""

import sys
from typing import Any

import keras
import numpy as np
from absl import app, flags

import mobileprune as mp
from mobileprune.errors import SettingsError

SIZE = flags.DEFINE_integer("size", 128, "Height and width of the images.", lower_bound=32)
NETWORKS = flags.DEFINE_list("networks", ["MobileNet", "MobileNetV2"], "Names in keras.applications.")
ZEROS = flags.DEFINE_list("zeros", ["0.8", "0.9"], "Shares of zeros.")
ROUNDS = flags.DEFINE_integer("rounds", 3, "Turns of each file.", lower_bound=2)

# Ratio to the dense twin at most, and dense bytes / sparse bytes at least, by share of zeros.
GOALS = {0.8: (0.45, 0.0), 0.9: (0.33, 4.5)}
MOST_ERROR = 1e-3


def randomised(name: str) -> Any:
    """A stock network whose weights and statistics are all different."""
    keras.utils.set_random_seed(0)
    model = getattr(keras.applications, name)(
        (SIZE.value, SIZE.value, 3), weights=None, classes=10, classifier_activation=None
    )
    generator = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            gamma, _, mean, _ = layer.get_weights()
            size = gamma.shape
            layer.set_weights(
                [
                    generator.uniform(0.5, 1.5, size),
                    generator.normal(0, 0.1, size),
                    mean + generator.normal(0, 0.1, size),
                    generator.uniform(0.5, 1.5, size),
                ]
            )
    return model


def measure(name: str, shares: list[float]) -> bool:
    """Prints a row for each share of zeros; whether all goals are met."""
    ready = mp.sparse_ready(randomised(name)).model
    policy = mp.PruneForLatencyOnXNNPack()
    policy.ensure_model_supports_pruning(ready)
    names = [layer.name for layer in ready.layers if policy.allow_pruning(layer)]
    met = True
    for share in shares:
        sparse = mp.prune_one_shot(ready, dict.fromkeys(names, share), method="magnitude")
        # Both files hold the same weights: the dense one stores its zeros.
        files = mp.convert(sparse, ["float32", "float32_sparse", "float16_sparse"], name=name)
        dense, *others = mp.benchmark_arm64(files, rounds=ROUNDS.value)
        for file, found in zip(files[1:], others, strict=True):
            if not isinstance(found, mp.Latency) or not isinstance(dense, mp.Latency):
                print(f"| {name} {file.recipe} | {share:.0%} | failed: {found}, {dense} |")
                met = False
                continue
            kernels, difference = mp.sparse_kernels(file.content), mp.compare_on_arm64(file.content)
            smaller = len(files[0].content) / len(file.content)
            print(
                f"| {name} {file.recipe} | {share:.0%} | {kernels.sparse} of {kernels.pointwise} | {found.ratio:.3f} "
                f"({found.ratio_low:.3f}–{found.ratio_high:.3f}) | {difference.max_abs_error:.1e} | "
                f"{len(file.content) / 1e6:.2f} MB | {smaller:.1f}× | {found.init_ms / dense.init_ms:.2f} |",
                flush=True,
            )
            slowest, least = GOALS.get(share, (1.0, 0.0))
            met &= kernels.sparse == kernels.pointwise == len(names) and difference.max_abs_error <= MOST_ERROR
            met &= found.ratio is not None and found.ratio <= slowest and smaller >= least
    return met


def main(argv: list[str]) -> int:
    """Prints the table; exit code 1 when a goal is missed, 2 when ARM64 is not set up."""
    if reason := mp.arm64_missing():
        print(SettingsError(reason), file=sys.stderr)
        return 2
    print("| network | zeros | sparse 1×1 convs | time, of dense | largest error | size | smaller | init, of dense |")
    print("|---" * 8 + "|")
    met = [measure(name, [float(share) for share in ZEROS.value]) for name in NETWORKS.value]
    print(f"all goals met: {all(met)}")
    return 0 if all(met) else 1


if __name__ == "__main__":
    app.run(lambda argv: sys.exit(main(argv)))
