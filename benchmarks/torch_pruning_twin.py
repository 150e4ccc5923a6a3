"""Torch-Pruning on the twin of a Keras network. Runs in an interpreter that has torch, torchvision and torch-pruning.

  /path/to/python benchmarks/torch_pruning_twin.py groups mobilenet_v2
  /path/to/python benchmarks/torch_pruning_twin.py one_shot exchange_folder

`groups.py` and `one_shot.py` start it when they are given `--torch_python=/path/to/python`; mobileprune itself needs
none of the three packages:

  python -m venv torch_pruning && torch_pruning/bin/pip install torch torchvision torch-pruning==1.6.1

Prints one line of JSON, the last of its output.
"""

import copy
import functools
import importlib.metadata
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch  # type: ignore[import-not-found]
import torch_pruning as tp  # type: ignore[import-not-found]
import torchvision  # type: ignore[import-not-found]
from torch import nn

ROUND_TO = 8
MOST = 0.9  # no group loses a larger share
BATCH_SIZE = 128


def groups(name: str, repeats: int, ratio: float) -> dict[str, Any]:
    """Seconds in which Torch-Pruning finds the groups of a torchvision network, and removes `ratio` of each.

    `build_s` is the construction of the pruner, which traces the network and builds its DependencyGraph; `step_s` ranks
    (L2, local) and cuts.
    """
    network = getattr(torchvision.models, name)(weights=None)
    network.eval()
    size = 299 if name == "inception_v3" else 224
    example = torch.randn(1, 3, size, size)
    build, step, failure = [], [], None
    for _ in range(repeats + 1):  # the first one warms up
        twin = copy.deepcopy(network)
        before = sum(each.numel() for each in twin.parameters())
        started = time.perf_counter()
        try:
            pruner = pruner_of(twin, example, ratio, global_pruning=False, round_to=None)
            built = time.perf_counter()
            pruner.step()
            done = time.perf_counter()
            twin(example)
        except Exception as error:  # noqa: BLE001 (a peer's failure is a result)
            failure = f"{type(error).__name__}: {error}"
            break
        build.append(built - started)
        step.append(done - built)
    if failure:
        return {"error": failure}
    after = sum(each.numel() for each in twin.parameters())
    return {
        "build_s": statistics.median(build[1:]),
        "step_s": statistics.median(step[1:]),
        "params_kept": after / before,
    }


def pruner_of(network: Any, example: Any, ratio: float, *, global_pruning: bool, round_to: int | None) -> Any:
    """The peer's L2 pruner; the last layer keeps its classes."""
    heads = [each for each in network.modules() if isinstance(each, nn.Linear) and each.out_features in (10, 1000)]
    return tp.pruner.MagnitudePruner(
        network,
        example,
        importance=tp.importance.MagnitudeImportance(p=2),
        global_pruning=global_pruning,
        pruning_ratio=ratio,
        max_pruning_ratio=MOST if global_pruning else 1.0,
        ignored_layers=heads,
        round_to=round_to,
    )


class FashionNet(nn.Module):
    """The network of `fashion_net.py`, with the weights of its file."""

    def __init__(self, weights: dict[str, np.ndarray], strides: list[int]) -> None:
        super().__init__()
        take = functools.partial(_convolution, weights)
        self.stem = take("stem", 1, relu=True)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                *take(f"block_{number}_expand", 1, relu=True),
                *take(f"block_{number}_depthwise", stride, relu=True),
                *take(f"block_{number}_project", 1, relu=False),
            )
            for number, stride in enumerate(strides, start=1)
        )
        self.head = take("head", 1, relu=True)
        kernel = weights["logits/kernel"]
        self.logits = nn.Linear(*kernel.shape)
        self.logits.weight.data = torch.tensor(kernel.T.copy())
        self.logits.bias.data = torch.tensor(weights["logits/bias"])
        # A residual add where shapes allow it, as in Keras; decided now, because pruning changes shapes.
        self.adds = [f"block_{number}_add" in weights["adds"].tolist() for number in range(1, len(strides) + 1)]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for block, add in zip(self.blocks, self.adds, strict=True):
            x = x + block(x) if add else block(x)
        result: torch.Tensor = self.logits(self.head(x).mean((2, 3)))
        return result


def _convolution(weights: dict[str, np.ndarray], name: str, stride: int, *, relu: bool) -> nn.Sequential:
    kernel = weights[f"{name}/kernel"]
    depthwise = name.endswith("_depthwise")
    # Keras: height, width, in, out (depthwise: height, width, channels, 1). Torch: out, in / groups, height, width.
    values = torch.tensor(kernel.transpose((2, 3, 0, 1) if depthwise else (3, 2, 0, 1)).copy())
    size, channels = kernel.shape[0], values.shape[0]
    groups = channels if depthwise else 1
    # At stride 2 and an even size TensorFlow's "same" pads below and on the right only.
    padding = [nn.ZeroPad2d((0, 1, 0, 1))] if stride == 2 else []
    inside = 0 if padding else size // 2
    convolution = nn.Conv2d(values.shape[1] * groups, channels, size, stride, inside, groups=groups, bias=False)
    convolution.weight.data = values
    norm = nn.BatchNorm2d(channels, eps=1e-3, momentum=0.1)
    for theirs, ours in (("weight", "gamma"), ("bias", "beta"), ("running_mean", "moving_mean")):
        getattr(norm, theirs).data = torch.tensor(weights[f"{name}_norm/{ours}"])
    norm.running_var.data = torch.tensor(weights[f"{name}_norm/moving_variance"])
    return nn.Sequential(*padding, convolution, norm, *([nn.ReLU6()] if relu else []))


def one_shot(folder: Path) -> dict[str, Any]:
    """Accuracy of the twin as Torch-Pruning cuts it, and after fine-tuning.

    Args:
        folder: has `request.json` (macs: targets, fine_tune: targets that are also trained, epochs, learning_rate,
            seed, calibration_images, strides), `weights.npz` and `data.npz` (uint8 images, labels), as `one_shot.py`
            writes them.
    """
    request = json.loads((folder / "request.json").read_text(encoding="utf-8"))
    with np.load(folder / "weights.npz") as file:
        weights = dict(file)
    with np.load(folder / "data.npz") as file:
        data = dict(file)
    network = FashionNet(weights, request["strides"]).eval()
    example = _scaled(data["test_images"][:2])
    judge = functools.partial(accuracy, images=data["test_images"], labels=data["test_labels"])
    # The same images as in `one_shot.py`.
    chosen = np.random.default_rng(request["seed"]).permutation(len(data["train_images"]))
    chosen = chosen[: request["calibration_images"]]
    rows = []
    for target in request["macs"]:
        for scope in ("global", "local"):
            started = time.perf_counter()
            smaller = cut_to(network, example, target, scope)
            seconds = time.perf_counter() - started
            row = {
                "target": target,
                "scope": scope,
                "macs_kept": macs(smaller, example) / macs(network, example),
                "params_kept": _params(smaller) / _params(network),
                "seconds": seconds,
                "accuracy": judge(smaller),
            }
            again = copy.deepcopy(smaller)
            recalibrate(again, data["train_images"][chosen])
            row["recalibrated"] = judge(again)
            if target in request["fine_tune"]:
                started = time.perf_counter()
                fine_tune(smaller, data, request["epochs"], request["learning_rate"], request["seed"])
                row["fine_tuned"] = judge(smaller)
                row["fine_tune_seconds"] = time.perf_counter() - started
            rows.append(row)
    return {"base": judge(network), "macs": macs(network, example), "params": _params(network), "rows": rows}


def cut_to(network: nn.Module, example: torch.Tensor, target: float, scope: str) -> nn.Module:
    """The largest network within `target` of the multiply-accumulates that some pruning ratio leads to."""

    def cut(ratio: float) -> nn.Module:
        twin = copy.deepcopy(network)
        is_global = scope == "global"
        pruner_of(twin, example, ratio, global_pruning=is_global, round_to=ROUND_TO).step()
        return twin

    budget = target * macs(network, example)
    low, high = 0.0, MOST
    for _ in range(8):
        middle = (low + high) / 2
        low, high = (low, middle) if macs(cut(middle), example) <= budget else (middle, high)
    return cut(high)


def macs(network: nn.Module, example: torch.Tensor) -> int:
    """Multiply-accumulates of convolutions and dense layers, counted as mobileprune counts them."""
    total = 0

    def count(module: Any, _: Any, output: torch.Tensor) -> None:
        nonlocal total
        positions = output.shape[2] * output.shape[3] if output.dim() == 4 else 1
        total += module.weight.numel() * positions

    hooks = [
        each.register_forward_hook(count) for each in network.modules() if isinstance(each, (nn.Conv2d, nn.Linear))
    ]
    with torch.no_grad():
        network(example[:1])
    for hook in hooks:
        hook.remove()
    return total


def accuracy(network: nn.Module, images: np.ndarray, labels: np.ndarray) -> float:
    """Share of images classified right, 0 to 1."""
    network.eval()
    right = 0
    with torch.no_grad():
        for start in range(0, len(images), 500):
            answers = network(_scaled(images[start : start + 500])).argmax(1).numpy()
            right += int(np.sum(answers == labels[start : start + 500]))
    return right / len(images)


def fine_tune(network: nn.Module, data: dict[str, np.ndarray], epochs: int, rate: float, seed: int) -> None:
    """Adam with a cosine decay to zero on all training images, in the order in which `fashion_net.py` takes them."""
    images, labels = data["train_images"], torch.tensor(data["train_labels"].astype(np.int64))
    steps = epochs * -(-len(images) // BATCH_SIZE)
    optimizer = torch.optim.Adam(network.parameters(), rate, eps=1e-7)  # Keras's epsilon
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = np.random.default_rng(seed)
    network.train()
    for _ in range(epochs):
        order = generator.permutation(len(images))
        for start in range(0, len(images), BATCH_SIZE):
            chosen = order[start : start + BATCH_SIZE]
            loss = nn.functional.cross_entropy(network(_scaled(images[chosen])), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


def recalibrate(network: nn.Module, images: np.ndarray, batch_size: int = 64) -> None:
    """New batch-norm statistics: the plain mean over batches, as `mp.recalibrate` takes it."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None  # a cumulative average
    network.train()
    with torch.no_grad():
        for start in range(0, len(images), batch_size):
            network(_scaled(images[start : start + batch_size]))


def _scaled(pixels: np.ndarray) -> torch.Tensor:
    return (torch.tensor(pixels[:, None].astype(np.float32)) - 127.5) / 127.5


def _params(network: nn.Module) -> int:
    """As Keras counts them: with the statistics of the batch norms."""
    statistics_ = [each for name, each in network.named_buffers() if name.endswith(("_mean", "_var"))]
    return sum(each.numel() for each in (*network.parameters(), *statistics_))


def main(arguments: list[str]) -> int:
    """Runs one of the two jobs and prints its result."""
    torch.manual_seed(0)
    jobs: dict[str, Callable[[], dict[str, Any]]] = {
        "groups": lambda: groups(arguments[1], repeats=int(arguments[2]) if len(arguments) > 2 else 3, ratio=0.5),
        "one_shot": lambda: one_shot(Path(arguments[1])),
    }
    if len(arguments) < 2 or arguments[0] not in jobs:
        print(__doc__, file=sys.stderr)
        return 2
    result = jobs[arguments[0]]()
    versions = {
        "torch": torch.__version__,
        "torch_pruning": importlib.metadata.version("torch-pruning"),
        "threads": torch.get_num_threads(),
    }
    print(json.dumps({**result, "versions": versions}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
