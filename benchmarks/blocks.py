"""Fewer blocks or fewer channels, for the same latency? Two networks, 30% fewer MACs by blocks, the same fine-tuning.

  python benchmarks/blocks.py [--networks=resnet,mobilenet_v2] [--epochs=1]

`mobilenet_v2` is benchmarks/models/fashion_net.keras, inverted residuals. `resnet` is a small residual network of nine
blocks, trained here for --train_epochs on the 60,000 training images of Fashion-MNIST and kept in --out.

Blocks go one after another, always the one that loses least for the MACs that it saves (`mobileprune.rank_blocks`, by
sensitivity, without labels), until at most --macs of the MACs are left. Channels go by `obs`, and so do those of plans
that remove up to two blocks before, each for the MACs at which the network is as fast as the one without blocks:
float32 files for several targets are timed in turn, on one thread of this machine, then for targets between the two
that are nearest on either side. In the end the whole network and the chosen three are timed once more, in turn. All are
fitted by least squares on the same unlabelled images, then fine-tuned alike on --images images. The accuracies are
those of the 10,000 test images.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fashion_net
import keras
import numpy as np
from absl import app, flags

import mobileprune as mp

NETWORKS = flags.DEFINE_list("networks", ["resnet", "mobilenet_v2"], "Which.")
MACS = flags.DEFINE_float("macs", 0.7, "Share of the MACs that may be left without blocks.", 0.1, 1.0)
TARGETS = flags.DEFINE_list("targets", ["0.8", "0.7", "0.6", "0.5", "0.4"], "MACs targets that are tried for channels.")
CALIBRATION = flags.DEFINE_integer("calibration_images", 512, "For rankings and fits.", lower_bound=16)
TRAIN_EPOCHS = flags.DEFINE_integer("train_epochs", 4, "Of the resnet.", lower_bound=1)
EPOCHS = flags.DEFINE_integer("epochs", 1, "Of fine-tuning.", lower_bound=1)
IMAGES = flags.DEFINE_integer("images", 60000, "That training and fine-tuning see.", lower_bound=128, upper_bound=60000)
OUT = flags.DEFINE_string("out", "benchmarks/results/blocks", "A folder for figures and the trained network.")

layers = keras.layers


def resnet() -> Any:
    """The untrained residual network: 28×28×1 in -1 to 1, 10 logits."""
    inputs = keras.Input((28, 28, 1), name="image")
    x = _conv(inputs, 16, 2, "stem")
    for stage, width in enumerate((16, 32, 64)):
        for number in range(3):
            strides = 2 if stage and not number else 1
            name = f"stage_{stage}_block_{number}"
            y = _conv(_conv(x, width, strides, f"{name}_a"), width, 1, f"{name}_b", relu=False)
            if x.shape != y.shape:
                x = layers.Conv2D(width, 1, strides=strides, use_bias=False, name=f"{name}_shortcut")(x)
                x = layers.BatchNormalization(momentum=0.9, name=f"{name}_shortcut_norm")(x)
            x = layers.ReLU(name=f"{name}_relu")(layers.Add(name=f"{name}_add")([x, y]))
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(inputs, layers.Dense(10, name="logits")(x), name="resnet")


def _conv(x: Any, filters: int, strides: int, name: str, relu: bool = True) -> Any:
    x = layers.Conv2D(filters, 3, strides=strides, padding="same", use_bias=False, name=name)(x)
    x = layers.BatchNormalization(momentum=0.9, name=f"{name}_norm")(x)
    return layers.ReLU(name=f"{name}_relu")(x) if relu else x


def base(name: str, data: fashion_net.Data) -> Any:
    """The trained network."""
    if name == "mobilenet_v2":
        return mp.load_model(str(fashion_net.MODEL_FILE))
    path = Path(OUT.value) / f"resnet_{TRAIN_EPOCHS.value}_{IMAGES.value}.keras"
    if not path.exists():
        mp.set_seed(0)
        model = resnet()
        fashion_net.fit(model, data, epochs=TRAIN_EPOCHS.value, peak=4e-3, warm_up=0.1, augment=True, seed=0)
        plain = resnet()
        plain.set_weights(model.get_weights())
        mp.save_checkpoint(plain, path)
    return mp.load_model(str(path))


def least_missed(model: Any, images: np.ndarray) -> list[str]:
    """Blocks one after another, until the MACs are few enough."""
    most = MACS.value * mp.model_facts(model).macs
    gone: list[str] = []
    while mp.model_facts(mp.remove_blocks(model, gone)).macs > most:
        ranked = mp.rank_blocks(model, images, without=gone)
        if not ranked:
            raise mp.MobilePruneError(f"{model.name!r} has no more blocks, and more than {most:,.0f} MACs.")
        gone.append(min(ranked, key=lambda each: max(each.loss, 0.0) / each.block.macs).block.name)
    return gone


def one_network(name: str, data: fashion_net.Data) -> list[dict[str, Any]]:
    """A row for the whole network and for each way of making it as fast."""
    model = base(name, data)
    images = data.train_images[: CALIBRATION.value]
    facts = mp.model_facts(model)
    plans = {"blocks": mp.plan_channels(model, macs=1.0, blocks=least_missed(model, images))}
    print(name, "without", plans["blocks"].blocks, file=sys.stderr, flush=True)
    for way, blocks in (("channels", None), ("both", plans["blocks"].blocks[:2])):
        common = {"importance": "obs", "calibration": images, "blocks": blocks}
        plans[way] = as_fast(
            model, plans["blocks"], lambda macs, more=common: mp.plan_channels(model, macs=macs, **more)
        )
    rows = [_row(name, "whole", 1.0, facts.macs, facts.params, (), _accuracy(model, data))]
    for (way, plan), ratio in zip(plans.items(), ratios(model, list(plans.values()), rounds=60), strict=True):
        cut = mp.prune_channels(model, plan)
        row = _row(name, way, ratio, plan.macs, plan.params, plan.blocks, _accuracy(cut, data))
        cut = mp.prune_channels(model, plan, "least_squares", images)
        row["fitted"] = _accuracy(cut, data)
        fashion_net.fit(cut, data, epochs=EPOCHS.value, peak=1e-3, warm_up=0.0, augment=False, seed=0)
        row["tuned"] = _accuracy(cut, data)
        row["macs_share"] = plan.macs / facts.macs
        print(json.dumps(row), file=sys.stderr, flush=True)
        rows.append(row)
    return rows


def as_fast(model: Any, other: Any, plan_for: Callable[[float], Any]) -> Any:
    """The plan for the share of MACs at which a network is as fast as by another plan."""
    shares = sorted(map(float, TARGETS.value))
    for _ in range(2):
        plans = {}
        for share in shares:
            try:
                plans[share] = plan_for(share)
            except mp.MobilePruneError as error:
                print(f"{share:.3f} of the MACs: {error}", file=sys.stderr)
        wanted, *found = ratios(model, [other, *plans.values()])
        near = sorted(zip(found, plans, strict=True))
        below = max((share for ratio, share in near if ratio <= wanted), default=near[0][1])
        above = min((share for ratio, share in near if ratio >= wanted), default=near[-1][1])
        shares = np.linspace(min(below, above), max(below, above), 7)[1:-1].tolist()
    return plans[min(zip(found, plans, strict=True), key=lambda pair: abs(pair[0] / wanted - 1))[1]]


def ratios(model: Any, plans: list[Any], rounds: int = 20) -> list[float]:
    """How long the networks of plans take, each as a share of the whole network, all timed in turn."""
    files = [_file(model), *(_file(mp.prune_channels(model, plan)) for plan in plans)]
    timed = mp.benchmark_host(files, rounds=rounds, min_round_ms=8.0)
    for each in timed:
        if not isinstance(each, mp.Latency):
            raise each
    return [each.ratio for each in timed[1:]]


def _file(model: Any) -> mp.Variant:
    (variant,) = mp.convert(model, ["float32"])
    return variant


def _row(name: str, way: str, ratio: float, macs: int, params: int, blocks: Any, accuracy: float) -> dict[str, Any]:
    figures = {"latency": float(ratio), "macs": macs, "params": params, "as_cut": accuracy}
    return {"network": name, "fewer": way, "blocks": list(blocks), "macs_share": 1.0, **figures}


def _accuracy(model: Any, data: fashion_net.Data) -> float:
    return fashion_net.accuracy(model, data.test_images, data.test_labels)


def main(_: list[str]) -> int:
    """Measures what is missing and prints the table."""
    mp.quiet_tensorflow()
    folder = Path(OUT.value)
    folder.mkdir(parents=True, exist_ok=True)
    settings = f"{MACS.value:g}_{CALIBRATION.value}_{TRAIN_EPOCHS.value}_{EPOCHS.value}_{IMAGES.value}"
    path = folder / f"figures_{settings}.json"
    done: dict[str, list[dict[str, Any]]] = json.loads(path.read_text()) if path.exists() else {}
    data = fashion_net.load_data()
    data = data._replace(train_images=data.train_images[: IMAGES.value], train_labels=data.train_labels[: IMAGES.value])
    for name in NETWORKS.value:
        if name not in done:
            done[name] = one_network(name, data)
            path.write_text(json.dumps(done, indent=1) + "\n", encoding="utf-8")
    print("| network | fewer | latency, of the whole | MACs left | parameters | as cut | least squares | fine-tuned |")
    print("|---" * 8 + "|")
    for row in (row for name in NETWORKS.value for row in done[name]):
        blocks = f" ({len(row['blocks'])} blocks)" if row["blocks"] else ""
        scores = " | ".join(f"{100 * row[key]:.1f}" if key in row else "" for key in ("as_cut", "fitted", "tuned"))
        print(
            f"| {row['network']} | {row['fewer']}{blocks} | {row['latency']:.2f} | {row['macs_share']:.0%} | "
            f"{row['params']:,} | {scores} |"
        )
    return 0


if __name__ == "__main__":
    app.run(lambda argv: sys.exit(main(argv)))
