"""A child process that holds one interpreter, so that a crash of a kernel ends the child and not the job.

`python -m mobileprune.tflite_worker` reads frames on stdin and answers each with one frame on stdout. A frame is a
4-byte little-endian length, a JSON header of that length, and the raw bytes of the arrays that the header's `arrays`
lists as `[dtype, shape]`. Nothing is pickled: the other side may be hostile.

The parent's side is :class:`mobileprune.tflite_runner.TfliteRunner`. This module must start fast: it imports NumPy
and the runtime, and neither Keras nor TensorFlow. It runs with older versions of NumPy, too: an older runtime needs one
(see `mobileprune.runtimes`).
"""

import importlib
import json
import math
import os
import struct
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

MAX_HEADER_BYTES = 1 << 20
MAX_ARRAY_BYTES = 1 << 31
DTYPES = ("float32", "int32", "int64")
# What each module of an interpreter is called in records, before its version.
LIBRARIES = {"ai_edge_litert": "LiteRT", "tflite_runtime": "TensorFlow Lite"}

# What a file that no runtime can use, or a request that does not fit it, raises here.
REFUSALS = (ValueError, TypeError, KeyError, IndexError, AttributeError, ArithmeticError, RuntimeError)

Header = dict[str, Any]


class FrameError(ValueError):
    """What was read is not a frame."""


def send_frame(stream: IO[bytes], header: Header, arrays: Sequence[np.ndarray] = ()) -> None:
    """Writes one frame and flushes it."""
    described = [[array.dtype.name, list(array.shape)] for array in arrays]
    encoded = json.dumps({**header, "arrays": described}).encode()
    stream.write(struct.pack("<I", len(encoded)) + encoded)
    for array in arrays:
        stream.write(np.ascontiguousarray(array).tobytes())
    stream.flush()


def read_frame(stream: IO[bytes]) -> tuple[Header, list[np.ndarray]] | None:
    """Reads one frame; None at the end of the stream.

    Raises:
        FrameError: the bytes are not a frame, or end in the middle of one.
    """
    prefix = stream.read(4)
    if not prefix:
        return None
    if len(prefix) < 4:
        raise FrameError(f"The stream ends after {len(prefix)} of 4 length bytes.")
    (size,) = struct.unpack("<I", prefix)
    if size > MAX_HEADER_BYTES:
        raise FrameError(f"A header of {size} bytes is announced; at most {MAX_HEADER_BYTES} are allowed.")
    try:
        header = json.loads(_exactly(stream, size))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise FrameError(f"The header is not JSON: {error}.") from error
    if not isinstance(header, dict) or not isinstance(header.get("arrays"), list):
        raise FrameError("The header is not an object with a list of arrays.")
    return header, [_read_array(stream, description) for description in header.pop("arrays")]


def _read_array(stream: IO[bytes], description: Any) -> np.ndarray:
    match description:
        case [str() as name, list() as shape] if name in DTYPES and all(
            type(size) is int and size >= 0 for size in shape
        ):
            dtype = np.dtype(name)
        case _:
            raise FrameError(f"{description!r} does not describe an array.")
    size = math.prod(shape) * dtype.itemsize
    if size > MAX_ARRAY_BYTES:
        raise FrameError(f"An array of {size} bytes is announced; at most {MAX_ARRAY_BYTES} are allowed.")
    return np.frombuffer(_exactly(stream, size), dtype).reshape(shape)


def _exactly(stream: IO[bytes], size: int) -> bytes:
    content = stream.read(size)
    if len(content) < size:
        raise FrameError(f"The stream ends after {len(content)} of {size} bytes.")
    return content


class Session:
    """One loaded file and what has been measured on it.

    Args:
        path: the file.
        threads: for the kernels.
        library: the interpreter's package, one of LIBRARIES.
        delegate: whether XNNPACK may take what it can; without it the runtime's own kernels run.
        keep_tensors: whether every tensor can be read after an inference. A delegate keeps what is inside its part to
            itself, so there must be none.
    """

    def __init__(
        self,
        path: str,
        threads: int,
        library: str = "ai_edge_litert",
        delegate: bool = True,
        keep_tensors: bool = False,
    ) -> None:
        if library not in LIBRARIES:
            raise ValueError(f"there is no runtime {library!r}")
        runtime = importlib.import_module(f"{library}.interpreter")
        version = importlib.import_module(library).__version__
        delegate = delegate and not keep_tensors
        self.runtime = f"{LIBRARIES[library]} {version}{'' if delegate else ' without XNNPACK'}"
        resolvers = runtime.OpResolverType
        resolver = resolvers.AUTO if delegate else resolvers.BUILTIN_WITHOUT_DEFAULT_DELEGATES
        self.memory_before = _start_memory_peak()
        begin = time.perf_counter_ns()
        self.interpreter = runtime.Interpreter(
            model_path=path,
            num_threads=threads,
            experimental_op_resolver_type=resolver,
            experimental_preserve_all_tensors=keep_tensors,
        )
        self.details: dict[int, Any] = {}
        if keep_tensors:
            self.details = {int(detail["index"]): detail for detail in self.interpreter.get_tensor_details()}
        self.interpreter.allocate_tensors()
        self.init_ns = time.perf_counter_ns() - begin
        self.first_ns: int | None = None
        self.inputs = self.interpreter.get_input_details()
        self.outputs = self.interpreter.get_output_details()

    def run(self, images: np.ndarray) -> list[np.ndarray]:
        """Every output for `images` (N, H, W, C), as float32 with N first."""
        detail = self._only_input()
        if not self.outputs:
            raise ValueError("the file has no outputs")
        batch = self._batch(images)
        collected: list[list[np.ndarray]] = [[] for _ in self.outputs]
        for start in range(0, len(images), batch):
            chunk = images[start : start + batch]
            if len(chunk) < batch:  # a file of a fixed batch takes no less: repeat the last image, drop its answers
                chunk = np.concatenate([chunk, np.repeat(chunk[-1:], batch - len(chunk), axis=0)])
            self.interpreter.set_tensor(detail["index"], _fed(chunk, detail))
            self._invoke()
            for answers, output in zip(collected, self.outputs, strict=True):
                answer = _dequantized(self.interpreter.get_tensor(output["index"]), output)
                if answer.ndim == 0 or len(answer) != batch:
                    raise ValueError(
                        f"output {output['name']!r} has shape {answer.shape}, which does not begin with the batch of "
                        f"{batch}"
                    )
                answers.append(answer)
        return [np.concatenate(answers)[: len(images)] for answers in collected]

    def tensors(self, image: np.ndarray, indices: Sequence[int]) -> list[np.ndarray]:
        """The chosen tensors after one inference on `image`, one or a batch of one, as float32."""
        unknown = [index for index in indices if index not in self.details]
        if unknown:
            raise ValueError(f"tensor {unknown[0]} cannot be read; the file has {len(self.details)}, if they are kept")
        self._set_all(image)
        self._invoke()
        return [_dequantized(self.interpreter.get_tensor(index), self.details[index]) for index in indices]

    def time(self, image: np.ndarray, runs: int) -> np.ndarray:
        """Nanoseconds of each of `runs` invocations on one input, which is set once."""
        self._set_all(image)
        self._invoke()
        durations = np.empty(runs, np.int64)
        invoke, clock = self.interpreter.invoke, time.perf_counter_ns
        for index in range(runs):
            begin = clock()
            invoke()
            durations[index] = clock() - begin
        return durations

    def facts(self) -> Header:
        # The public interface does not say whether a delegate took the graph; the op list does.
        ops = [str(op["op_name"]) for op in self.interpreter._get_ops_details()]
        return {
            "runtime": self.runtime,
            "inputs": [_facts_of(detail) for detail in self.inputs],
            "outputs": [_facts_of(detail) for detail in self.outputs],
            "accelerator": "XNNPACK" if "DELEGATE" in ops else "none",
            "init_ms": self.init_ns / 1e6,
            "first_ms": None if self.first_ns is None else self.first_ns / 1e6,
            "peak_memory_bytes": max(0, _memory("VmHWM") - self.memory_before),
        }

    def _invoke(self) -> None:
        begin = time.perf_counter_ns()
        self.interpreter.invoke()
        if self.first_ns is None:
            self.first_ns = time.perf_counter_ns() - begin

    def _only_input(self) -> Any:
        if len(self.inputs) != 1:
            raise ValueError(f"the file has {len(self.inputs)} inputs; only files with one can be fed images")
        return self.inputs[0]

    def _set_all(self, image: np.ndarray) -> None:
        """Sets the whole batch to one image."""
        detail = self._only_input()
        image = image[None] if image.ndim < len(detail["shape"]) else image
        self.interpreter.set_tensor(detail["index"], _fed(np.repeat(image[:1], self._batch(image), axis=0), detail))

    def _batch(self, images: np.ndarray) -> int:
        wanted = tuple(int(size) for size in self.inputs[0]["shape"])
        if images.ndim != len(wanted) or images.shape[1:] != wanted[1:] or not len(images):
            raise ValueError(f"the file takes input of shape {wanted}, but the images have shape {images.shape}")
        return wanted[0]


def _scale_of(detail: Any) -> tuple[float, int]:
    scales = detail["quantization_parameters"]["scales"]
    if len(scales) != 1 or not scales[0] > 0:
        raise ValueError(
            f"{detail['name']!r} is {np.dtype(detail['dtype']).name} with {len(scales)} scales {scales[:3]}; "
            "one positive scale is needed"
        )
    return float(scales[0]), int(detail["quantization_parameters"]["zero_points"][0])


def _fed(images: np.ndarray, detail: Any) -> np.ndarray:
    """The images as the input holds them. Whole numbers are ids, of words for example, which no scale changes."""
    dtype = np.dtype(detail["dtype"])
    if images.dtype.kind == "i":
        if dtype.kind != "i" or len(detail["quantization_parameters"]["scales"]):
            raise ValueError(
                f"input {detail['name']!r} takes {dtype.name} values, and ids ({images.dtype.name}) are given"
            )
        limits = np.iinfo(dtype)
        if images.min() < limits.min or images.max() > limits.max:
            raise ValueError(f"input {detail['name']!r} is {dtype.name}, which does not hold every id given")
        return images.astype(dtype, copy=False)
    if dtype.kind == "f":
        return images.astype(dtype, copy=False)
    scale, zero_point = _scale_of(detail)
    limits = np.iinfo(dtype)
    steps: np.ndarray = np.rint(images / np.float32(scale)) + zero_point
    return steps.clip(limits.min, limits.max).astype(dtype)


def _dequantized(answer: np.ndarray, detail: Any) -> np.ndarray:
    if answer.dtype.kind == "f":
        return answer.astype(np.float32)
    scale, zero_point = _scale_of(detail)
    return (answer.astype(np.float32) - zero_point) * np.float32(scale)


def _facts_of(detail: Any) -> Header:
    parameters = detail["quantization_parameters"]
    return {
        "name": str(detail["name"]),
        "dtype": np.dtype(detail["dtype"]).name,
        "shape": [int(size) for size in detail["shape"]],
        "scale": float(parameters["scales"][0]) if len(parameters["scales"]) else None,
        "zero_point": int(parameters["zero_points"][0]) if len(parameters["zero_points"]) else None,
    }


def set_limits(memory: int | None) -> None:
    """Lets no file take the machine's memory, or leave its own on the disk when it crashes.

    A tensor's size is one field of a file, and wrong ones ask for anything up to what an address can name.
    """
    if not sys.platform.startswith("linux"):  # elsewhere a limit of memory has no effect
        return
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if memory is not None:
        # What is allocated, with neither mapped files nor address space that is only set aside.
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        soft = int(memory) if hard == resource.RLIM_INFINITY else min(int(memory), hard)
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _start_memory_peak() -> int:
    """Forgets the peak that start-up reached and returns what is resident now, in bytes."""
    clear = Path("/proc/self/clear_refs")
    if not clear.exists():
        return _memory("VmHWM")
    try:
        clear.write_text("5")  # resets VmHWM; see proc(5)
    except OSError:  # a container may forbid it: then only what rises above the start-up peak is seen
        return _memory("VmHWM")
    return _memory("VmRSS")


def _memory(field: str) -> int:
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def serve(requests: IO[bytes], answers: IO[bytes]) -> None:
    """Answers frames until `quit` or the end of the stream. An error that Python sees is an answer, too."""
    session: Session | None = None
    while (frame := read_frame(requests)) is not None:
        header, arrays = frame
        command = header.get("command")
        if command == "quit":
            return
        reply: Header = {}
        results: list[np.ndarray] = []
        try:
            if command == "load":
                session = None  # a file that fails to load does not leave the one before it in its place
                set_limits(header.get("memory_limit"))
                library, delegate = header.get("library", "ai_edge_litert"), header.get("delegate", True)
                keep_tensors = bool(header.get("keep_tensors"))
                session = Session(header["path"], header["threads"], library, delegate, keep_tensors)
            elif session is None:
                raise ValueError("no file is loaded")
            elif command == "run":
                results = session.run(arrays[0])
            elif command == "tensors":
                results = session.tensors(arrays[0], header["indices"])
            elif command == "time":
                results = [session.time(arrays[0], header["runs"])]
            elif command == "facts":
                reply = session.facts()
            else:
                raise ValueError(f"there is no command {command!r}")
        except (*REFUSALS, ImportError, MemoryError, OSError) as error:
            reply = {"error": f"{type(error).__name__}: {str(error) or 'no reason was given'}"}
            results = []
        send_frame(answers, reply, results)


def main() -> None:
    # The runtime's C++ side prints to fd 1: keep the protocol on a private copy and send that noise to stderr.
    with os.fdopen(os.dup(0), "rb") as requests, os.fdopen(os.dup(1), "wb") as answers:
        os.dup2(2, 1)
        serve(requests, answers)


if __name__ == "__main__":
    main()
