"""Runs a `.tflite` in a process of its own, so that whatever the file does, it does not do it here."""

import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, NoReturn, Self

import numpy as np

from mobileprune.errors import InterpreterError, SettingsError
from mobileprune.runner_facts import RunnerFacts, facts_in
from mobileprune.runtimes import find_interpreter, interpreter_missing
from mobileprune.tflite_worker import FrameError, Header, read_frame, send_frame

# Images per request: many enough to hide the pipe, few enough that a time limit for one request means something.
CHUNK = 32
STDERR_TAIL_BYTES = 2000
# What a child may allocate: more than any phone has for an app, and less than a wrong size in a file can ask for.
MEMORY_LIMIT = 4 << 30
# What the runtime says on every start; it explains no crash.
NOISE = ("INFO: Created TensorFlow Lite XNNPACK delegate", "INFO: Initialized TensorFlow Lite runtime")


class TfliteRunner:
    """A `.tflite` loaded into a child process.

    Args:
        content_or_path: the bytes of the file, or where it is.
        threads: how many threads the kernels may use.
        timeout_s: seconds that one request may take (loading, 32 images, or one call of `time`) before the child is
            killed.
        name: what errors call the file; its path by default.
        runtime: which one runs it, by name (see `mobileprune.runtimes`).
        memory_limit: bytes that the child may allocate.
        keep_tensors: run the runtime's own kernels, without XNNPACK, and keep every tensor for `tensors`.

    Raises:
        SettingsError: there is no such runtime, or it is not set up.
        InterpreterError: on entering or in any method: the file cannot be read, the runtime refuses it, or the child
            crashed, hung or answered rubbish. The child is gone then.

    Example:
        >>> with TfliteRunner("model.tflite") as runner:  # doctest: +SKIP
        ...     logits = runner.run(images)
    """

    def __init__(
        self,
        content_or_path: bytes | str | Path,
        threads: int = 1,
        timeout_s: float = 60.0,
        *,
        name: str | None = None,
        runtime: str = "litert",
        memory_limit: int = MEMORY_LIMIT,
        keep_tensors: bool = False,
    ) -> None:
        if threads < 1:
            raise InterpreterError(f"threads is {threads}; at least 1 is needed.")
        self._interpreter = find_interpreter(runtime)
        if missing := interpreter_missing(runtime):
            raise SettingsError(missing)
        self._threads = threads
        self._timeout_s = timeout_s
        self._memory_limit = memory_limit
        self._keep_tensors = keep_tensors
        self._process: subprocess.Popen[bytes] | None = None
        self._stderr: IO[bytes] | None = None
        self._stderr_start = 0
        self._set_source(content_or_path, name)

    def _set_source(self, content_or_path: bytes | str | Path, name: str | None) -> None:
        self._source = content_or_path
        self.name = name or ("the .tflite" if isinstance(content_or_path, bytes) else str(content_or_path))

    @property
    def pid(self) -> int | None:
        """The child's process id, None when there is no child."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Starts the child without waiting for it, so that several can start at once. Entering does it otherwise."""
        if self._process is not None:
            return
        # -P and the explicit path: neither a numpy.py in the working directory nor a source checkout is an obstacle.
        paths = [str(self._interpreter.path or ""), str(Path(__file__).resolve().parent.parent)]
        paths.append(os.environ.get("PYTHONPATH", ""))
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path)}
        environment.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow Lite's package says hello otherwise
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - close() ends it
        self._stderr_start = 0
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "mobileprune.tflite_worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
                env=environment,
            )
        except OSError as error:
            self._stderr.close()
            raise InterpreterError(f"{self.name}: no process could be started for it: {error}.") from error

    def __enter__(self) -> Self:
        self.start()
        try:
            self._load()
        except BaseException:
            self.close()
            raise
        return self

    def load(self, content_or_path: bytes | str | Path, *, name: str | None = None) -> None:
        """Loads another file in the place of the present one, which saves the start of another child.

        Raises:
            InterpreterError: as on the class; the next call of `load` then starts a new child where this one is gone.
        """
        self._set_source(content_or_path, name)
        self.start()
        self._load()

    def _load(self) -> None:
        if self._stderr is not None:
            self._stderr_start = self._stderr.seek(0, os.SEEK_END)
        request: Header = {
            "command": "load",
            "threads": self._threads,
            "library": self._interpreter.library,
            "delegate": self._interpreter.delegate and not self._keep_tensors,
            "keep_tensors": self._keep_tensors,
            "memory_limit": self._memory_limit,
        }
        if not isinstance(self._source, bytes):
            if not Path(self._source).is_file():
                raise InterpreterError(f"{self.name} is not a file. Give the path of a .tflite.")
            self._request({**request, "path": str(Path(self._source).resolve())})
            return
        # By path, as on a phone: bytes handed over would be held twice and spoil the memory figure. The runtime maps
        # the file, so its name can go as soon as it is loaded.
        with tempfile.TemporaryDirectory(prefix="mobileprune-") as folder:
            path = Path(folder) / "model.tflite"
            try:
                path.write_bytes(self._source)
            except OSError as error:
                raise InterpreterError(f"{self.name}: no room for a temporary copy in {folder}: {error}.") from error
            self._request({**request, "path": str(path)})

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the child and reaps it. Idle, it leaves by itself; otherwise it is killed."""
        process, self._process = self._process, None
        if process is not None:
            _end(process)
        if self._stderr is not None:
            self._stderr.close()
            self._stderr = None

    def run(self, images: np.ndarray) -> np.ndarray:
        """The file's only output for `images`.

        Args:
            images: float32 (N, H, W, C), or whatever follows N, as the Keras model takes them. An integer input is
                quantized by the file's own scale and zero point, and a fixed batch is filled image by image. Ids, of
                words for example, are int32 or int64 and go in as they are.

        Returns:
            float32 (N, outputs), dequantized.

        Raises:
            InterpreterError: as on the class; also several outputs, other shapes, NaN in `images`, ids for an input
                that has none.
        """
        outputs = self.run_all(images)
        if len(outputs) != 1:
            raise InterpreterError(f"{self.name} has {len(outputs)} outputs; take them with run_all().")
        return outputs[0].reshape(len(images), -1)

    def run_all(self, images: np.ndarray) -> list[np.ndarray]:
        """Every output for `images`, float32, each with N first; see `run`."""
        images = self._checked(images)
        chunks = []
        for start in range(0, len(images), CHUNK):
            chunk = images[start : start + CHUNK]
            _, outputs = self._request({"command": "run"}, chunk)
            if not outputs or any(output.dtype != np.float32 or len(output) != len(chunk) for output in outputs):
                self._fail("answered rubbish: arrays of another length or type were expected")
            chunks.append(outputs)
        return [np.concatenate(parts) for parts in zip(*chunks, strict=True)]

    def tensors(self, image: np.ndarray, indices: Sequence[int]) -> list[np.ndarray]:
        """What the chosen tensors hold after one inference; the runner must have been made with `keep_tensors`.

        Args:
            image: as `run` takes them: one, or a batch of one.
            indices: of tensors in the file's main graph, see `mobileprune.tflite_graph`. Ask only for as many as there
                is memory for: all of MobileNetV2's take 60 MB.

        Returns:
            One float32 array for each index, dequantized.

        Raises:
            InterpreterError: as on the class; also a tensor that is not there or has a scale for each channel.
        """
        self._checked(image[None])
        _, arrays = self._request({"command": "tensors", "indices": [int(index) for index in indices]}, image)
        if len(arrays) != len(indices) or any(array.dtype != np.float32 for array in arrays):
            self._fail(f"answered rubbish: {len(indices)} tensors were expected")
        return arrays

    def time(self, image: np.ndarray, runs: int) -> np.ndarray:
        """Nanoseconds of each of `runs` invocations on `image`, one or a batch of one, as int64 (runs,).

        The input is set, and one invocation made, before the first one that counts.
        """
        if runs < 1:
            raise InterpreterError(f"{self.name}: {runs} runs cannot be timed; at least 1 is needed.")
        self._checked(image[None])
        _, arrays = self._request({"command": "time", "runs": int(runs)}, image)
        if len(arrays) != 1 or arrays[0].shape != (runs,) or arrays[0].dtype != np.int64:
            self._fail(f"answered rubbish: {runs} durations were expected")
        return arrays[0]

    @property
    def facts(self) -> RunnerFacts:
        """What the runtime says of the file now: memory and the first invocation are known after some work only."""
        header, _ = self._request({"command": "facts"})
        try:
            return facts_in(header)
        except (KeyError, TypeError, ValueError) as error:
            self._fail(f"answered rubbish: {error!r}")

    def _checked(self, images: np.ndarray) -> np.ndarray:
        if images.dtype not in (np.float32, np.int32, np.int64):
            raise InterpreterError(
                f"{self.name}: the images are {images.dtype}, not float32, or int32 of ids. Give what the Keras model "
                "takes."
            )
        if not len(images):
            raise InterpreterError(f"{self.name}: there are no images to run.")
        finite = np.isfinite(images).reshape(len(images), -1).all(axis=1)
        if not finite.all():
            raise InterpreterError(f"{self.name}: image {int(np.argmin(finite))} holds NaN or infinity.")
        return images

    def _request(self, header: Header, *arrays: np.ndarray) -> tuple[Header, list[np.ndarray]]:
        process = self._process
        if process is None or process.stdin is None or process.stdout is None:
            raise InterpreterError(f"{self.name} is not loaded. Use the runner in a `with` block.")
        late = threading.Event()

        def give_up() -> None:
            late.set()
            process.kill()

        # Killing the child ends every read and write on its pipes, so plain blocking ones will do.
        timer = threading.Timer(self._timeout_s, give_up)
        timer.daemon = True
        timer.start()
        reason = None
        try:
            send_frame(process.stdin, header, arrays)
            answer = read_frame(process.stdout)
        except (BrokenPipeError, ConnectionResetError):
            answer = None
        except FrameError as error:
            answer, reason = None, f"answered rubbish: {error}"
        finally:
            timer.cancel()
        if late.is_set():
            self._fail(f"did not answer {header['command']!r} within {self._timeout_s:g} s and was stopped")
        if answer is None:
            self._fail(reason)
        reply, results = answer
        if "error" in reply:
            raise InterpreterError(f"{self.name}: {reply['error']}{self._tail()}")
        return reply, results

    def _fail(self, reason: str | None) -> NoReturn:
        """Ends the child and raises; without a reason, the way it died is the reason."""
        process = self._process
        if process is not None and reason is not None:
            process.kill()
        if process is not None:
            code = process.wait()
            reason = reason or (
                f"crashed its interpreter with {_signal_name(-code)}"
                if code < 0
                else f"ended its interpreter with exit code {code}"
            )
        tail = self._tail()
        self.close()
        raise InterpreterError(f"{self.name} {reason}.{tail}")

    def _tail(self) -> str:
        """The end of what the child wrote to stderr, on one line; empty when it wrote nothing of interest."""
        if self._stderr is None:
            return ""
        size = self._stderr.seek(0, os.SEEK_END)
        self._stderr.seek(max(self._stderr_start, size - STDERR_TAIL_BYTES))
        lines = self._stderr.read().decode(errors="replace").splitlines()
        self._stderr.seek(0, os.SEEK_END)  # the child shares the position
        kept = [line.strip() for line in lines if line.strip() and not line.startswith(NOISE)]
        return f" It said: {' | '.join(kept[-5:])}" if kept else ""


def _end(process: subprocess.Popen[bytes]) -> None:
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            try:
                stream.close()
            except BrokenPipeError:
                continue  # unsent bytes to a dead child
    try:
        process.wait(timeout=0.5)  # it leaves when its stdin ends
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
