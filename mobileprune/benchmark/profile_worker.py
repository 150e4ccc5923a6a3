"""A child process that asks LiteRT what each operator of a file takes; `profiles.py` is its other half.

`python -m mobileprune.benchmark.profile_worker MODEL THREADS RUNS` runs the file on noise and writes one JSON object to
stdout. LiteRT's Python interface hands out no profile. The library beneath it does, through its public C interface
(litert/c/*.h, Apache-2.0, declared stable there); what is declared here is the part that is called. The file is
hostile: whoever started this expects it to crash, hang or answer rubbish.
"""

import ctypes
import importlib.util
import json
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mobileprune.tflite_worker import set_limits

MEMORY_LIMIT = 4 << 30
MOST_TENSORS = 64
# More is no classifier's input or output; a hostile shape must not become an allocation.
MOST_BYTES = 1 << 31
ALIGNMENT = 64
CPU = 1
AUTO_REGISTER_ACCELERATORS, INTEGER = 24, 2
OPERATOR_INVOKE = 1 << 1
BY_DELEGATE = 1 << 2 | 1 << 3
# LiteRT's numbers for element types that are plain numbers: their sizes in bytes.
ELEMENT_BYTES = {1: 4, 2: 4, 3: 1, 4: 8, 6: 1, 7: 2, 9: 1, 10: 2, 11: 8, 13: 8, 16: 4, 17: 2, 19: 2}
FLOAT32 = 1

Handle = ctypes.c_void_p
# The library asks for a destructor of memory that stays with this process.
Destructor = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class Layout(ctypes.Structure):
    _fields_ = (
        ("rank", ctypes.c_uint, 7),
        ("has_strides", ctypes.c_uint, 1),
        ("dimensions", ctypes.c_int32 * 8),
        ("strides", ctypes.c_uint32 * 8),
    )


class TensorType(ctypes.Structure):
    _fields_ = (("element_type", ctypes.c_int), ("layout", Layout))


class Event(ctypes.Structure):
    _fields_ = (
        ("tag", ctypes.c_char_p),
        ("event_type", ctypes.c_int),
        ("start_us", ctypes.c_uint64),
        ("elapsed_us", ctypes.c_uint64),
        ("memory", ctypes.c_size_t * 6),
        ("metadata", ctypes.c_uint64 * 2),
        ("source", ctypes.c_int),
    )


class EnvironmentOption(ctypes.Structure):
    # The last two are a structure of their own there, which begins at a multiple of its alignment.
    _fields_ = (("tag", ctypes.c_int64), ("type", ctypes.c_int64), ("value", ctypes.c_int64))


class LiteRt:
    """LiteRT's C functions, which return 0 when all is well."""

    def __init__(self) -> None:
        package = importlib.util.find_spec("ai_edge_litert")
        if package is None or not package.submodule_search_locations:
            raise ValueError("LiteRT is not installed")
        self._library = ctypes.CDLL(str(Path(next(iter(package.submodule_search_locations))) / "libLiteRt.so"))

    def call(self, name: str, *arguments: Any) -> None:
        function = getattr(self._library, f"LiteRt{name}")
        function.restype = ctypes.c_int
        if status := function(*arguments):
            raise ValueError(f"{name} failed with status {status}")

    def handle(self, name: str, *arguments: Any) -> Handle:
        """What a function answers through its last argument."""
        made = Handle()
        self.call(name, *arguments, ctypes.byref(made))
        return made


class Profiled:
    """One loaded file with a profiler and memory for its inputs and outputs."""

    def __init__(self, path: str, threads: int) -> None:
        self._lite = lite = LiteRt()
        self._kept: list[Any] = []  # what the library points at
        self._leave = Destructor(lambda _: None)
        only_cpu = EnvironmentOption(AUTO_REGISTER_ACCELERATORS, INTEGER, CPU)
        environment = lite.handle("CreateEnvironment", 1, ctypes.byref(only_cpu))
        model = lite.handle("CreateModelFromFile", environment, os.fsencode(path))
        options = lite.handle("CreateOptions")
        lite.call("SetOptionsHardwareAccelerators", options, CPU)
        self._add(options, b"xnnpack", f"num_threads = {threads}\n")
        self._add(options, b"runtime_options_string", "enable_profiling = true\n")
        self._compiled = lite.handle("CreateCompiledModel", environment, model, options)
        signature = lite.handle("GetModelSignature", model, ctypes.c_size_t(0))
        self._inputs = self._buffers(signature, "Input")
        self._outputs = self._buffers(signature, "Output")
        self._profiler = lite.handle("CompiledModelGetProfiler", self._compiled)

    def _add(self, options: Handle, kind: bytes, text: str) -> None:
        words = ctypes.create_string_buffer(text.encode())
        self._kept.append(words)
        opaque = self._lite.handle("CreateOpaqueOptions", kind, words, self._leave)
        self._lite.call("AddOpaqueOptions", options, opaque)

    def _buffers(self, signature: Handle, side: str) -> Any:
        count = ctypes.c_size_t()
        self._lite.call(f"GetNumSignature{side}s", signature, ctypes.byref(count))
        if not 0 < count.value <= MOST_TENSORS:
            raise ValueError(f"the file has {count.value} {side.lower()}s")
        types = [TensorType() for _ in range(count.value)]
        for index, kind in enumerate(types):
            tensor = self._lite.handle(f"GetSignature{side}TensorByIndex", signature, ctypes.c_size_t(index))
            self._lite.call("GetRankedTensorType", tensor, ctypes.byref(kind))
            if kind.layout.rank > 8:
                raise ValueError(f"an {side.lower()} has {kind.layout.rank} dimensions")
            if side == "Input":
                self._close(kind.layout, index)
        if side == "Output":  # their sizes follow from the inputs'
            layouts = (Layout * count.value)()
            self._lite.call(
                *("GetCompiledModelOutputTensorLayouts", self._compiled, ctypes.c_size_t(0), count, layouts, True)
            )
            for kind, layout in zip(types, layouts, strict=True):
                kind.layout = layout
        return (Handle * count.value)(*(self._buffer(kind) for kind in types))

    def _close(self, layout: Layout, index: int) -> None:
        """Sets the open dimensions of an input to 1."""
        rank = layout.rank
        if any(size < 0 for size in layout.dimensions[:rank]):
            for number in range(rank):
                layout.dimensions[number] = max(1, layout.dimensions[number])
            where = (self._compiled, ctypes.c_size_t(0), ctypes.c_size_t(index))
            self._lite.call("CompiledModelResizeInputTensor", *where, layout.dimensions, ctypes.c_size_t(rank))

    def _buffer(self, kind: TensorType) -> Handle:
        shape = kind.layout.dimensions[: kind.layout.rank]
        size = ELEMENT_BYTES[kind.element_type] * math.prod(shape)
        if min(shape, default=1) < 1 or size > MOST_BYTES:
            raise ValueError(f"an input or output has the shape {shape}")
        memory = np.zeros(size + 2 * ALIGNMENT, np.uint8)  # the runtime may read whole vectors past the end
        start = -memory.ctypes.data % ALIGNMENT
        if kind.element_type == FLOAT32:
            noise = np.random.default_rng(0).standard_normal(size // 4, np.float32)
            memory[start : start + size] = noise.view(np.uint8)
        self._kept.append(memory)
        kind.layout.has_strides = 0
        address = ctypes.c_void_p(memory.ctypes.data + start)
        made = self._lite.handle(
            *("CreateTensorBufferFromHostMemory", ctypes.byref(kind), address, ctypes.c_size_t(size), self._leave)
        )
        self._kept.append(kind)
        return made

    def run(self) -> None:
        counts = [ctypes.c_size_t(len(each)) for each in (self._inputs, self._outputs)]
        arguments = (self._compiled, ctypes.c_size_t(0), counts[0], self._inputs, counts[1], self._outputs)
        self._lite.call("RunCompiledModel", *arguments)

    def profile(self) -> list[tuple[str, bool, int]]:
        """Name, whether a delegate ran it, and microseconds of each operator of one invocation."""
        self._lite.call("StartProfiler", self._profiler)
        self.run()
        self._lite.call("StopProfiler", self._profiler)
        count = ctypes.c_int()
        self._lite.call("GetNumProfilerEvents", self._profiler, ctypes.byref(count))
        events = (Event * max(1, count.value))()
        self._lite.call("GetProfilerEvents", self._profiler, count, events)
        found = [
            ((event.tag or b"").decode(errors="replace"), bool(event.event_type & BY_DELEGATE), int(event.elapsed_us))
            for event in events[: count.value]
            if event.event_type & (OPERATOR_INVOKE | BY_DELEGATE)
        ]
        self._lite.call("ResetProfiler", self._profiler)
        return found


def main(words: Sequence[str]) -> int:
    # The runtime's C++ side prints to fd 1: keep a private copy for the answer and send that noise to stderr.
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answer:
        os.dup2(2, 1)
        path, threads, runs = words[0], int(words[1]), int(words[2])
        set_limits(MEMORY_LIMIT)
        try:
            model = Profiled(path, threads)
            for _ in range(3):
                model.run()
            found = [model.profile() for _ in range(runs)]
        except (ValueError, KeyError, OSError, MemoryError, AttributeError) as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            return 3
        json.dump({"operators": found}, answer)
    # What taking the runtime apart could break is of no interest.
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
