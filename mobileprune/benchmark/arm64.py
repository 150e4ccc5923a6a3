"""Runs `.tflite` files on ARM64's kernels before they ship: emulated, or natively where the processor is one.

What an emulator can say: whether a file loads and runs there at all, whether it answers what it answers here, and
which kernels XNNPACK chose; above all whether it took the sparse ones, which are switched off on x86 processors with
AVX. What it cannot say is a phone's latency: QEMU is hundreds of times slower, and computes floating point in software.

Each call starts a process of its own (`arm64_runner.c`), so that whatever a file does, it does not do it here. `make
arm64` sets up what is needed (:mod:`mobileprune.benchmark.arm64_setup`).
"""

import dataclasses
import json
import math
import os
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from mobileprune.benchmark.arm64_setup import Installation, installation
from mobileprune.errors import InterpreterError, ModelError, SettingsError
from mobileprune.tflite_graph import GraphTensor, TfliteGraph, read_graph
from mobileprune.tflite_runner import NOISE, STDERR_TAIL_BYTES

# LiteRT's numbers for element types that are plain NumPy types, too.
ELEMENT_TYPES = {1: "float32", 2: "int32", 3: "uint8", 4: "int64", 6: "bool", 7: "int16", 9: "int8", 10: "float16"}
# What the runtime reports while all is well.
CHATTER = (*NOISE, "INFO:", "WARNING: [model_load.cc")
MOST_FACTS_BYTES = 1 << 24


@dataclasses.dataclass(frozen=True)
class Operator:
    """One operator as the runtime ran it, which need not be one of the file's.

    Attributes:
        name: `Convolution (NCHW, F32) SPMM`: XNNPACK's name and kernel, or the file's op where no delegate took it.
        delegated: whether XNNPACK ran it.
        microseconds: of one invocation; emulated times are no phone's.
    """

    name: str
    delegated: bool
    microseconds: int

    @property
    def sparse(self) -> bool:
        """Whether a 1×1 convolution skipped the zeros of its weights (sparse × dense matrix multiplication)."""
        return self.delegated and self.name.endswith(" SPMM")


@dataclasses.dataclass(frozen=True)
class Arm64Run:
    """What a file did on ARM64.

    Attributes:
        outputs: each output for all images, float32 with N first, dequantized, in the order of the file.
        steps: for each output the size of a quantization step; None for float outputs.
        init_s: creating the interpreter and allocating its tensors, in seconds.
        first_s: the first invocation.
        invoke_s: those after the first.
        cpu_s: the processor's time for the same invocations, all threads together.
        memory_bytes: what the runtime has allocated in all, without the file itself; None where operators were listed,
            which takes memory of its own.
        operators: of one invocation, in the order in which they ran; empty if not asked for.
        device: `emulated arm64 (cortex-a76, QEMU 7.2.22)`.
        runtime: `LiteRT 2.3.0`.
        emulated: whether the times are an emulator's.
    """

    outputs: tuple[np.ndarray, ...] = dataclasses.field(repr=False)
    steps: tuple[float | None, ...]
    init_s: float
    first_s: float
    invoke_s: tuple[float, ...]
    cpu_s: tuple[float, ...]
    memory_bytes: int | None
    operators: tuple[Operator, ...]
    device: str
    runtime: str
    emulated: bool

    @property
    def accelerator(self) -> str | None:
        """`"XNNPACK"` when it ran at least a part of the graph, else `"none"`; None where operators were not listed."""
        if not self.operators:
            return None
        return "XNNPACK" if any(operator.delegated for operator in self.operators) else "none"


def arm64_missing() -> str | None:
    """Why ARM64 cannot be run here, in one sentence with the way out; None if it can."""
    found = installation()
    return found if isinstance(found, str) else None


def run_on_arm64(
    content: bytes,
    images: np.ndarray,
    *,
    threads: int = 1,
    runs: int = 0,
    operators: bool = False,
    timeout_s: float = 300.0,
    name: str = "the .tflite",
) -> Arm64Run:
    """Runs a file on ARM64.

    Args:
        content: the bytes of a file with one input.
        images: float32 (N, H, W, C) as the Keras model takes them, run one by one; an integer input is quantized by the
            file's own scale and zero point.
        threads: how many the kernels may use.
        runs: how many more times the last image is run, to be timed.
        operators: whether to list what ran; XNNPACK then looks at its clock between operators.
        timeout_s: seconds after which the process is killed.
        name: what errors call the file.

    Raises:
        SettingsError: ARM64 is not set up, or arguments that cannot be meant.
        InterpreterError: `content` is no whole `.tflite`, or the runtime refused it or the images, crashed, hung or
            answered rubbish.

    Example:
        >>> done = run_on_arm64(variant.content, images[:4], operators=True)  # doctest: +SKIP
        >>> sum(operator.sparse for operator in done.operators)  # doctest: +SKIP
        13
    """
    found = installation()
    if isinstance(found, str):
        raise SettingsError(found)
    if threads < 1 or runs < 0 or timeout_s <= 0:
        raise SettingsError(f"threads={threads}, runs={runs}, timeout_s={timeout_s:g}: too small.")
    graph = parsed(content, name)
    with tempfile.TemporaryDirectory(prefix="mobileprune-") as folder:
        paths = [Path(folder) / each for each in ("model.tflite", "inputs", "outputs", "facts")]
        paths[0].write_bytes(content)
        paths[1].write_bytes(_fed(images, graph.inputs[0], name).tobytes())
        numbers = (threads, runs, int(operators))
        _start([*found.command, *map(str, paths), *map(str, numbers)], folder, timeout_s, name)
        try:
            facts = json.loads(paths[3].read_bytes()[:MOST_FACTS_BYTES])
            order = [tensor.index for tensor in graph.outputs]
            return _read(facts, paths[2].read_bytes(), order, len(images), found, operators)
        except (KeyError, ValueError, TypeError, IndexError, OverflowError) as error:
            raise InterpreterError(f"{name} answered rubbish on {found.device}: {error!r}.") from error


def parsed(content: bytes, name: str) -> TfliteGraph:
    """The file's graph, if it has one input.

    Raises:
        InterpreterError: it has several, or is damaged.
    """
    try:
        graph = read_graph(content)
    except ModelError as error:
        raise InterpreterError(f"{name}: {error}") from error
    if len(graph.inputs) != 1:
        raise InterpreterError(f"{name} has {len(graph.inputs)} inputs; only files with one can be fed images.")
    return graph


def _start(command: Sequence[str], folder: str, timeout_s: float, name: str) -> None:
    """Runs the runner to its end, which must be a good one."""
    with (Path(folder) / "stderr").open("w+b") as stderr:
        try:
            # In the temporary folder, where a core file is no litter; with no variables that an emulated loader heeds.
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                cwd=folder,
                env={"LC_ALL": "C"},
                timeout=timeout_s,
            )
        except subprocess.TimeoutExpired as error:
            raise InterpreterError(
                f"{name} did not finish on ARM64 within {timeout_s:g} s and was stopped.{_said(stderr)}"
            ) from error
        except OSError as error:
            raise InterpreterError(f"{name}: no process could be started for it: {error}.") from error
        if done.returncode < 0:
            how = signal.strsignal(-done.returncode) or f"signal {-done.returncode}"
            raise InterpreterError(f"{name} crashed on ARM64 ({how}).{_said(stderr)}")
        if done.returncode:
            raise InterpreterError(f"{name} does not run on ARM64.{_said(stderr)}")


def _said(stderr: IO[bytes]) -> str:
    """The end of what the process wrote, on one line, without what it says while all is well."""
    size = stderr.seek(0, os.SEEK_END)
    stderr.seek(max(0, size - STDERR_TAIL_BYTES))
    lines = [line.strip() for line in stderr.read().decode(errors="replace").splitlines()]
    kept = [line for line in lines if line and not line.startswith(CHATTER)]
    return f" It said: {' | '.join(kept[-5:])}" if kept else ""


def _fed(images: np.ndarray, tensor: GraphTensor, name: str) -> np.ndarray:
    """The images as the file takes them."""
    if images.dtype != np.float32:
        raise InterpreterError(f"{name}: the images are {images.dtype}, not float32. Give what the Keras model takes.")
    if images.ndim != len(tensor.shape) or images.shape[1:] != tensor.shape[1:] or not len(images):
        raise InterpreterError(f"{name} takes input of shape {tensor.shape}, but the images have shape {images.shape}.")
    if tensor.shape[0] not in (1, -1):
        raise InterpreterError(f"{name} takes batches of {tensor.shape[0]}; convert it for a batch of 1.")
    if not np.isfinite(images).all():
        raise InterpreterError(f"{name}: the images hold NaN or infinity.")
    if tensor.dtype.startswith("FLOAT"):
        return images.astype(tensor.dtype.lower())
    if len(tensor.scales) != 1 or not tensor.scales[0] > 0 or tensor.dtype not in ("INT8", "UINT8", "INT16"):
        raise InterpreterError(f"{name} takes {tensor.dtype} with {len(tensor.scales)} scales, which cannot be fed.")
    limits = np.iinfo(tensor.dtype.lower())
    zero_point = tensor.zero_points[0] if tensor.zero_points else 0
    steps: np.ndarray = np.rint(images / np.float32(tensor.scales[0])) + zero_point
    return steps.clip(limits.min, limits.max).astype(limits.dtype)


def _read(facts: Any, content: bytes, order: list[int], images: int, made: Installation, listed: bool) -> Arm64Run:
    """The runner's answer; anything that does not fit raises what `run_on_arm64` makes an error of."""
    outputs: dict[int, tuple[np.ndarray, float | None]] = {}
    answers = np.frombuffer(content, np.uint8).reshape(images, -1)
    at = 0
    for tensor in facts["outputs"]:
        dtype, shape = np.dtype(ELEMENT_TYPES[tensor["type"]]), tuple(map(int, tensor["shape"]))
        size = math.prod(shape) * dtype.itemsize
        answer = np.ascontiguousarray(answers[:, at : at + size]).view(dtype).reshape(images, *shape[1:])
        at += size
        step = float(tensor["scale"]) or None
        if dtype.kind == "f" or step is None:
            outputs[tensor["index"]] = answer.astype(np.float32), None
        else:
            outputs[tensor["index"]] = (answer.astype(np.float32) - tensor["zero_point"]) * np.float32(step), step
    if at != answers.shape[1]:
        raise ValueError(f"{answers.shape[1]} bytes of outputs where {at} were announced")
    times = [(float(clock) / 1e6, float(processor) / 1e6) for clock, processor in facts["invocations"]]
    return Arm64Run(
        outputs=tuple(outputs[index][0] for index in order),
        steps=tuple(outputs[index][1] for index in order),
        init_s=float(facts["init_us"]) / 1e6,
        first_s=times[0][0],
        invoke_s=tuple(clock for clock, _ in times[1:]),
        cpu_s=tuple(processor for _, processor in times[1:]),
        memory_bytes=None if listed else int(facts["heap_bytes"]),
        operators=tuple(
            Operator(str(label), bool(delegated), int(time)) for label, delegated, time in facts.get("operators", ())
        ),
        device=made.device,
        runtime=made.runtime,
        emulated=made.emulated,
    )
