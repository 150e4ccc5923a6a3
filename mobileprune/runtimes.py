"""The runtimes with an interpreter that a child process can load, by name, and why one of them cannot be used.

| name | what it is |
|---|---|
| `litert` | the installed LiteRT; its XNNPACK delegate takes what it can |
| `litert_reference` | the same without XNNPACK: the runtime's own kernels, which also run what XNNPACK does not take |
| `tflite_2.16.1` | TensorFlow Lite 2.16.1 with its XNNPACK, the last one for Android under that name |

ARM64's kernels are reached in another way (`mobileprune.benchmark.arm64`); `mobileprune.runtime_checks` knows them all.
"""

import dataclasses
import importlib.metadata
from pathlib import Path

from mobileprune import runtime_setup
from mobileprune.errors import SettingsError, known_names

OLD = f"tflite_{runtime_setup.VERSION}"
INTERPRETERS = ("litert", "litert_reference", OLD)


@dataclasses.dataclass(frozen=True)
class Interpreter:
    """How a child process gets at a runtime.

    Attributes:
        title: what records call it: `LiteRT 2.3.0`, `TensorFlow Lite 2.16.1`, ….
        library: the Python package of the interpreter.
        delegate: whether XNNPACK may take what it can.
        path: a folder to be searched for modules before all others; None for this Python's own.
    """

    title: str
    library: str
    delegate: bool = True
    path: Path | None = None


def find_interpreter(name: str) -> Interpreter:
    """How to start a runtime's interpreter, whether or not it is set up.

    Raises:
        SettingsError: there is no runtime of that name with an interpreter; the message lists them.

    Example:
        >>> find_interpreter("tflite_2.16.1").title
        'TensorFlow Lite 2.16.1'
    """
    if name not in INTERPRETERS:
        raise SettingsError(f"There is no runtime {name!r} with an interpreter; known: {known_names(INTERPRETERS)}.")
    if name == OLD:
        return Interpreter(
            f"TensorFlow Lite {runtime_setup.VERSION}", runtime_setup.LIBRARY, path=runtime_setup.folder()
        )
    title = f"LiteRT {importlib.metadata.version('ai-edge-litert')}"
    if name == "litert":
        return Interpreter(title, "ai_edge_litert")
    return Interpreter(f"{title} without XNNPACK", "ai_edge_litert", delegate=False)


def interpreter_missing(name: str) -> str | None:
    """Why a runtime's interpreter cannot be used here, in one sentence with the way out; None if it can.

    Raises:
        SettingsError: as `find_interpreter`.
    """
    find_interpreter(name)
    return runtime_setup.missing() if name == OLD else None
