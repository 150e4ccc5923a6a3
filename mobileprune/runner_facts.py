"""What a runtime says of a file that it has loaded."""

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class TensorFacts:
    """An input or output as the runtime sees it; `scale` and `zero_point` are None for float tensors."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    scale: float | None
    zero_point: int | None


@dataclasses.dataclass(frozen=True)
class RunnerFacts:
    """What the runtime says of a loaded file.

    Attributes:
        runtime: the runtime with its version, `"LiteRT 2.3.0"`, `"TensorFlow Lite 2.16.1"`, ….
        accelerator: `"XNNPACK"` when that delegate took at least a part of the graph, else `"none"`.
        inputs: the input tensors.
        outputs: the output tensors.
        init_ms: creating the interpreter and allocating its tensors.
        first_ms: the first invocation, which also packs weights; None before there was one.
        peak_memory_bytes: how far the process's resident memory rose, at most, above what it held before loading.
    """

    runtime: str
    accelerator: str
    inputs: tuple[TensorFacts, ...]
    outputs: tuple[TensorFacts, ...]
    init_ms: float
    first_ms: float | None
    peak_memory_bytes: int


def facts_in(answer: Mapping[str, Any]) -> RunnerFacts:
    """The facts in a child process's answer, which may hold anything.

    Raises:
        KeyError, TypeError, ValueError: they are not in it.
    """
    return RunnerFacts(
        runtime=str(answer["runtime"]),
        accelerator=answer["accelerator"],
        inputs=tuple(_tensor_facts(tensor) for tensor in answer["inputs"]),
        outputs=tuple(_tensor_facts(tensor) for tensor in answer["outputs"]),
        init_ms=float(answer["init_ms"]),
        first_ms=answer["first_ms"],
        peak_memory_bytes=int(answer["peak_memory_bytes"]),
    )


def _tensor_facts(tensor: Any) -> TensorFacts:
    return TensorFacts(
        name=str(tensor["name"]),
        dtype=str(tensor["dtype"]),
        shape=tuple(int(size) for size in tensor["shape"]),
        scale=tensor["scale"],
        zero_point=tensor["zero_point"],
    )
