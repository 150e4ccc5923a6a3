"""Does the latency table rank pruned networks as this machine does? 50 held-out variants of four networks.

  python benchmarks/latency_table.py [--networks=MobileNet,ResNet50] [--variants=50] --efficientnet=PATH

For each network its table is measured, the whole network and eight narrower ones once, and then --variants plans are
drawn: random channels, 25 to 95% of the MACs, all groups alike or not, counts in multiples of 8 or 16. Each becomes a
file of the plan's shapes (`ResizableFile.resized`: the ops that conversion would give, as
tests/test_network_latency.py holds), which is predicted by the table and timed, in turn with all others and the whole
network, five times. Prints the rank correlation (Spearman) and the median error of the predictions, both as shares of
the whole network's time, with those of MACs beside it.

`--efficientnet` is a .keras file of EfficientNet-Lite0; without it that network is left out. Weights do not matter.
"""

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import keras
import numpy as np
from absl import app, flags

import mobileprune as mp
from mobileprune.benchmark.batch import benchmark_batch
from mobileprune.channel_groups import ChannelGraph
from mobileprune.latency_setup import latency_model
from mobileprune.pruning_plan import removed_roots

NETWORKS = flags.DEFINE_list("networks", ["MobileNet", "MobileNetV2", "EfficientNetLite0", "ResNet50"], "Which.")
VARIANTS = flags.DEFINE_integer("variants", 50, "Of each network.", lower_bound=5)
EFFICIENTNET = flags.DEFINE_string("efficientnet", None, "A .keras file of EfficientNet-Lite0.")
CACHE = flags.DEFINE_string("cache", None, "A folder that keeps the table. Default: a new one each time.")
SEED = flags.DEFINE_integer("seed", 0, "Of the plans.")
OUT = flags.DEFINE_string("out", None, "A JSON file for every prediction and measurement.")


def network(name: str) -> Any:
    """A network with fresh weights, or EfficientNet-Lite0 from its file; None without one."""
    if name == "EfficientNetLite0":
        return mp.load_model(EFFICIENTNET.value) if EFFICIENTNET.value else None
    return getattr(keras.applications, name)(weights=None)


def plans(model: Any, count: int) -> list[mp.PruningPlan]:
    """Plans of all sizes and shapes."""
    generator = np.random.default_rng(SEED.value)
    found: list[mp.PruningPlan] = []
    while len(found) < count:
        share = float(generator.uniform(0.25, 0.95))
        options = {"scope": ("global", "local")[len(found) % 2], "round_to": int(generator.choice([8, 8, 16]))}
        try:
            found.append(mp.plan_channels(model, macs=share, importance="random", seed=len(found), **options))
        except mp.MobilePruneError:  # below this network's floor
            continue
    return found


def ranks(values: np.ndarray) -> np.ndarray:
    """The rank of each value."""
    return np.argsort(np.argsort(values))


def measured(name: str, model: Any, cache: str) -> dict[str, Any]:
    """Predictions and measurements of one network."""
    started = time.monotonic()
    latency = latency_model(model, "host", cache=cache)
    seconds = time.monotonic() - started
    graph = ChannelGraph(model)
    drawn = plans(model, VARIANTS.value)
    alive = [graph.everything(), *(graph.without(removed_roots(graph, plan)) for plan in drawn)]
    files = [mp.Variant(name, "float32", latency.file.resized(each)) for each in alive]
    results = benchmark_batch(files, passes=5, budget_ms=60.0)
    failed = [result for result in results if not isinstance(result, mp.Latency)]
    if failed:
        raise failed[0]
    return {
        "network": name,
        "ops": latency.measured,
        "seconds": seconds,
        "base_ms": latency.ms(alive[0]),
        "base_measured_ms": results[0].p50_ms,
        "scale": float(latency.times[-1] / latency.sums[-1]),
        "predicted_ms": [latency.ms(each) for each in alive[1:]],
        "measured_ms": [result.p50_ms for result in results[1:]],
        "units": [unit.name for unit in latency.units],
        "parts_us": [(latency.parts(each) / 1e3).round(3).tolist() for each in alive],
        "macs": [plan.macs for plan in drawn],
        "macs_before": drawn[0].macs_before,
    }


def row(figures: dict[str, Any]) -> str:
    """A line of the table."""
    # Shares of the whole network's time: a machine that is shared is not as fast now as when the table was measured.
    times = np.array(figures["measured_ms"]) / figures["base_measured_ms"]
    guesses = np.array(figures["predicted_ms"]) / figures["base_ms"]
    by_macs = np.array(figures["macs"]) / figures["macs_before"]

    def told(guess: np.ndarray) -> str:
        errors = np.abs(guess / times - 1)
        correlation = np.corrcoef(ranks(guess), ranks(times))[0, 1]
        return f"{correlation:.3f} | {np.median(errors):.1%} | {np.quantile(errors, 0.9):.1%}"

    return (
        f"| {figures['network']} | {figures['base_ms']:.2f} ms | {figures['ops']} in {figures['seconds']:.0f} s | "
        f"{figures['scale']:.2f} | {told(guesses)} | {told(by_macs)} |"
    )


def main(argv: list[str]) -> int:
    """Measures, and prints the table."""
    mp.quiet_tensorflow()
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for name in NETWORKS.value:
            model = network(name)
            if model is None:
                print(f"{name} left out: give --efficientnet=PATH.", file=sys.stderr)
                continue
            found.append(measured(name, model, CACHE.value or folder))
            print(row(found[-1]), file=sys.stderr, flush=True)
            keras.backend.clear_session()
    print("| network | whole | ops timed | whole over sum | ranks | error | 90% | ranks by MACs | error | 90% |")
    print("|---" * 10 + "|")
    print("\n".join(map(row, found)))
    if OUT.value:
        Path(OUT.value).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    app.run(lambda argv: sys.exit(main(argv)))
