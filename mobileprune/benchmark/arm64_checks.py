"""What running files on ARM64 tells before they ship: sparse kernels taken, answers as here, and ratios of times."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from mobileprune.benchmark.arm64 import Arm64Run, Operator, arm64_missing, parsed, run_on_arm64
from mobileprune.benchmark.comparison import FEWEST_PAIRS, compare
from mobileprune.benchmark.inputs import noise_images
from mobileprune.benchmark.statistics import median_ratio, percentiles
from mobileprune.errors import InterpreterError, SettingsError
from mobileprune.records import Latency, Variant
from mobileprune.tflite_graph import TfliteGraph
from mobileprune.tflite_runner import TfliteRunner


@dataclasses.dataclass(frozen=True)
class SparseKernels:
    """Whether XNNPACK computes a file's 1×1 convolutions with its sparse kernels.

    Attributes:
        sparse: how many ran on them.
        pointwise: how many 1×1 convolutions the file holds.
        operators: everything that ran.
    """

    sparse: int
    pointwise: int
    operators: tuple[Operator, ...] = dataclasses.field(repr=False)

    @property
    def taken(self) -> bool:
        """Whether any did. Networks are taken whole, from the stem to the global pooling, or not at all."""
        return self.sparse > 0


@dataclasses.dataclass(frozen=True)
class Difference:
    """How far ARM64's answers are from this machine's, for the same images and the same version of the runtime.

    Attributes:
        images: how many were compared.
        agreement: share of images with the same largest value in every output, 0 to 1.
        max_abs_error: largest absolute difference of any output; infinite where only one of the two is a number.
        max_steps: the same in quantization steps; None for files with a float output.
        device: where the answers come from.
    """

    images: int
    agreement: float
    max_abs_error: float
    max_steps: float | None
    device: str


def sparse_kernels(content: bytes, *, timeout_s: float = 300.0, name: str = "the .tflite") -> SparseKernels:
    """Says which kernels XNNPACK chooses for a file's 1×1 convolutions on ARM64.

    The names are XNNPACK's own (its runtime's profile), so nothing is inferred from times. Its conditions are those of
    Elsen et al., "Fast Sparse ConvNets" (2020), as implemented in XNNPACK's subgraph rewriting.

    Raises:
        As `run_on_arm64`.

    Example:
        >>> sparse_kernels(content)  # doctest: +SKIP
        SparseKernels(sparse=13, pointwise=13)
    """
    graph = parsed(content, name)
    images = noise_images(graph.inputs[0].shape, name)
    done = run_on_arm64(content, images, operators=True, timeout_s=timeout_s, name=name)
    return SparseKernels(sum(each.sparse for each in done.operators), _pointwise(graph), done.operators)


def compare_on_arm64(
    content: bytes, images: np.ndarray | None = None, *, timeout_s: float = 300.0, name: str = "the .tflite"
) -> Difference:
    """Runs a file here and on ARM64, and says how far the answers are apart.

    Float outputs differ by rounding (1e-6 of their size), integer ones by one step at most; more is a kernel's fault.

    Args:
        content: the file.
        images: float32 (N, H, W, C), see `run_on_arm64`; by default four of noise.
        timeout_s: for each of the two.
        name: what errors call the file.

    Raises:
        As `run_on_arm64`; InterpreterError also if the file fails here.
    """
    if images is None:
        images = noise_images(parsed(content, name).inputs[0].shape, name, count=4)
    with TfliteRunner(content, timeout_s=timeout_s, name=name) as runner:
        expected = runner.run_all(images)
    done = run_on_arm64(content, images, timeout_s=timeout_s, name=name)
    return difference(expected, done)


def difference(expected: Sequence[np.ndarray], done: Arm64Run) -> Difference:
    """Compares answers that are already there; see `compare_on_arm64`.

    Raises:
        InterpreterError: as many outputs, or outputs of the same shapes, were expected.
    """
    shapes = [each.shape for each in expected]
    if shapes != [each.shape for each in done.outputs]:
        raise InterpreterError(
            f"The outputs have shapes {[each.shape for each in done.outputs]} on {done.device}, {shapes} here."
        )
    same = np.ones(len(expected[0]), bool)
    errors, steps = [0.0], [0.0]
    for here, there, step in zip(expected, done.outputs, done.steps, strict=True):
        here, there = here.reshape(len(same), -1).astype(np.float64), there.reshape(len(same), -1).astype(np.float64)
        same &= here.argmax(axis=1) == there.argmax(axis=1)
        # Equal infinities are no difference, and neither is NaN in both.
        equal = (here == there) | (np.isnan(here) & np.isnan(there))
        gaps = np.abs(np.where(equal, 0.0, here) - np.where(equal, 0.0, there))
        errors.append(float(np.nan_to_num(gaps, nan=math.inf, posinf=math.inf).max()))
        steps.append(math.nan if step is None else errors[-1] / step)
    return Difference(
        images=len(same),
        agreement=float(same.mean()),
        max_abs_error=max(errors),
        max_steps=None if any(map(math.isnan, steps)) else max(steps),
        device=done.device,
    )


def benchmark_arm64(
    variants: Sequence[Variant],
    baseline: int = 0,
    *,
    threads: int = 1,
    rounds: int = 3,
    runs: int = 2,
    seed: int = 0,
    timeout_s: float = 300.0,
) -> list[Latency | InterpreterError]:
    """Times variants against each other on ARM64, taking turns. `device` says when the times are emulated.

    Emulated, only the ratio of two files of the *same* number type means anything: float arithmetic is emulated in
    software and integer arithmetic is not.

    Args:
        variants: the files.
        baseline: which of them the others are compared with, by index.
        threads: for each interpreter.
        rounds: how often every file gets its turn, each time in a new process; 2 at least.
        runs: how many invocations are timed in a turn, after the first, which packs weights.
        seed: of the input, the order and the bootstrap.
        timeout_s: for each turn.

    Returns:
        For each variant its latency, or the error that ended it. Emulated on one thread, `ratio` is that of the
        processor's times, which neighbours disturb less than the clock's; with 6 rounds or more its interval is that of
        `comparison.compare`. `peak_memory_bytes` is what the runtime allocated, without the file itself.

    Raises:
        SettingsError: ARM64 is not set up, or an argument that cannot be meant.
    """
    if not variants:
        return []
    if not 0 <= baseline < len(variants) or rounds < 2 or runs < 1:
        raise SettingsError(f"baseline={baseline}, rounds={rounds}, runs={runs} for {len(variants)} variants.")
    if reason := arm64_missing():
        raise SettingsError(reason)
    turns: list[list[Arm64Run]] = [[] for _ in variants]
    errors: dict[int, InterpreterError] = {}
    generator = np.random.default_rng(seed)
    for number in range(rounds):
        for index in map(int, generator.permutation(len(variants))):
            variant = variants[index]
            name = variant.file_name
            if index in errors:
                continue
            try:
                turns[index].append(
                    run_on_arm64(
                        variant.content,
                        noise_images(parsed(variant.content, name).inputs[0].shape, name, seed=seed),
                        threads=threads,
                        runs=runs,
                        operators=number == 0,  # says whether XNNPACK ran; costs a look at the clock for each
                        timeout_s=timeout_s,
                        name=name,
                    )
                )
            except InterpreterError as error:
                errors[index] = error
    return [
        errors[index]
        if index in errors
        else _latency(turns[index], None if baseline in errors else turns[baseline], threads, seed, len(variants) - 1)
        for index in range(len(variants))
    ]


def _pointwise(graph: TfliteGraph) -> int:
    shapes = [
        graph.tensors[op.inputs[1]].shape
        for op in graph.ops
        if op.name == "CONV_2D" and len(op.inputs) > 1 and op.inputs[1] >= 0
    ]
    return sum(len(shape) == 4 and shape[1:3] == (1, 1) for shape in shapes)


def _latency(
    turns: Sequence[Arm64Run], baseline: Sequence[Arm64Run] | None, threads: int, seed: int, others: int
) -> Latency:
    summary = percentiles(np.concatenate([turn.invoke_s for turn in turns]) * 1e9)
    ratio = None
    if baseline is not None:
        # Emulated times are work, not latency: the processor's own count is free of the neighbours' share.
        worked = turns[0].emulated and threads == 1
        medians = [
            [float(np.median(turn.cpu_s if worked else turn.invoke_s)) for turn in each] for each in (turns, baseline)
        ]
        if len(turns) >= FEWEST_PAIRS:
            pairs = [[np.array([median]) for median in each] for each in medians]
            ratio = compare(pairs[0], pairs[1], comparisons=max(1, others))
        else:
            ratio = median_ratio(*medians, seed=seed)
    return Latency(
        device=turns[0].device,
        runtime=turns[0].runtime,
        threads=threads,
        accelerator=turns[0].accelerator or "none",
        p50_ms=summary.p50_ms,
        p90_ms=summary.p90_ms,
        p99_ms=summary.p99_ms,
        runs=summary.runs,
        init_ms=1e3 * float(np.median([turn.init_s for turn in turns])),
        peak_memory_bytes=max(turn.memory_bytes or 0 for turn in turns),
        ratio=None if ratio is None else ratio.median,
        ratio_low=None if ratio is None else ratio.low,
        ratio_high=None if ratio is None else ratio.high,
        confidence=None if ratio is None else ratio.confidence,
        first_ms=1e3 * float(np.median([turn.first_s for turn in turns])),
        restarts=len(turns),
        rounds=len(turns),
    )
