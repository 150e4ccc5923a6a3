"""Sets up TensorFlow Lite 2.16.1's interpreter, which an Android app may carry in the place of the current LiteRT.

`make runtimes` calls `python -m mobileprune.runtime_setup`. Of TensorFlow's package only the interpreter and the one
library that it is linked with are kept, beside a NumPy of its time: it starts in a third of a second, where TensorFlow
takes several. They lie in a folder that is no part of this Python: `.runtimes` in a checkout,
`~/.cache/mobileprune/runtimes` otherwise, or what `MOBILEPRUNE_RUNTIMES` names.
"""

import argparse
import hashlib
import json
import os
import platform
import shutil
import sys
import tempfile
import zipfile
from pathlib import Path

from mobileprune.commands import run_command
from mobileprune.errors import MobilePruneError, SettingsError

VERSION = "2.16.1"
# Exact versions and the hashes of their packages; what was made from another list is made again.
LOCK = Path(__file__).with_name(f"tflite_{VERSION}.lock")
# In a folder of this name TensorFlow's interpreter.py looks for its parts beside itself.
LIBRARY = "tflite_runtime"
PYTHONS = ((3, 11), (3, 12))
_NEEDED = (
    "tensorflow/lite/python/interpreter.py",
    "tensorflow/lite/python/interpreter_wrapper/_pywrap_tensorflow_interpreter_wrapper.so",
    "tensorflow/libtensorflow_framework.so.2",
)
# The module that counts uses, on which the interpreter insists there, is none of TensorFlow's package.
_WRITTEN = {
    "__init__.py": f'__version__ = "{VERSION}"\n',
    "metrics_portable.py": (
        "class TFLiteMetrics:\n    def increase_counter_interpreter_creation(self):\n        pass\n"
    ),
}
_NOT_OF_NUMPY = ("tests", "f2py", "distutils")


def folder() -> Path:
    """Where the old interpreter for this Python is, or would be."""
    tag = f"tflite_{VERSION}-cp{sys.version_info.major}{sys.version_info.minor}"
    if named := os.environ.get("MOBILEPRUNE_RUNTIMES"):
        return Path(named).absolute() / tag
    root = Path(__file__).resolve().parents[1]
    if (root / "pyproject.toml").is_file():
        return root / ".runtimes" / tag
    return Path.home() / ".cache" / "mobileprune" / "runtimes" / tag


def unsupported() -> str | None:
    """Why the old interpreter can never run with this Python on this machine; None if it can."""
    if sys.version_info[:2] not in PYTHONS:
        known = " and ".join(f"{major}.{minor}" for major, minor in PYTHONS)
        return (
            f"TensorFlow Lite {VERSION} cannot run here: it has packages for Python {known}, and this is "
            f"{sys.version_info.major}.{sys.version_info.minor}. Use one of these to check files on it."
        )
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return (
            f"TensorFlow Lite {VERSION} cannot run here: it is set up on Linux for x86-64 only, and this is "
            f"{sys.platform} on {platform.machine()}."
        )
    return None


def missing() -> str | None:
    """Why the old interpreter is not ready, in one sentence with the way out; None if it is."""
    if reason := unsupported():
        return reason
    try:
        made = json.loads((folder() / "made.json").read_text())["digest"]
    except (OSError, ValueError, KeyError, TypeError):
        return f"TensorFlow Lite {VERSION} is not set up in {folder()}. {_WAY_OUT}"
    return None if made == _digest() else f"What is in {folder()} was made by another version. {_WAY_OUT}"


_WAY_OUT = "Run `make runtimes`, or `python -m mobileprune.runtime_setup`."


def set_up() -> Path:
    """Downloads TensorFlow 2.16.1 and NumPy, keeps what is needed and returns its folder. Done before: does nothing.

    Raises:
        SettingsError: it cannot run here, or the download failed (it says how).
    """
    if reason := unsupported():
        raise SettingsError(reason)
    target = folder()
    if missing() is None:
        return target
    if target.exists() and not (target / "made.json").exists() and any(target.iterdir()):
        raise SettingsError(f"{target} holds other things and would be replaced. Move them away.")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".making-") as name:
        wheels, made = Path(name) / "wheels", Path(name) / "made"
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command += ["--only-binary=:all:", "--require-hashes", "--requirement", str(LOCK), "--dest", str(wheels)]
        run_command(command, f"pip cannot download TensorFlow {VERSION}")
        _unpack(wheels, made)
        run_command(_trial(made), f"TensorFlow Lite {VERSION} was downloaded and does not start")
        (made / "made.json").write_text(json.dumps({"digest": _digest()}))
        shutil.rmtree(target, ignore_errors=True)
        made.rename(target)
    return target


def _unpack(wheels: Path, into: Path) -> None:
    library = into / LIBRARY
    library.mkdir(parents=True)
    with zipfile.ZipFile(_wheel(wheels, "tensorflow_cpu")) as archive:
        for member in _NEEDED:
            if member not in archive.namelist():
                raise SettingsError(f"TensorFlow's package holds no {member}: its interpreter cannot be taken out.")
            with archive.open(member) as source, (library / Path(member).name).open("wb") as copy:
                shutil.copyfileobj(source, copy)
    for name, text in _WRITTEN.items():
        (library / name).write_text(text)
    with zipfile.ZipFile(_wheel(wheels, "numpy")) as archive:
        for member in archive.namelist():
            parts = member.split("/")
            if parts[0] in ("numpy", "numpy.libs") and not set(parts) & set(_NOT_OF_NUMPY):
                archive.extract(member, into)


def _wheel(wheels: Path, package: str) -> Path:
    found = sorted(wheels.glob(f"{package}-*.whl"))
    if len(found) != 1:
        raise SettingsError(f"pip downloaded {len(found)} packages of {package}; one was expected.")
    return found[0]


def _trial(made: Path) -> list[str]:
    """A command that starts the interpreter once."""
    code = f"import sys; sys.path.insert(0, {str(made)!r}); import {LIBRARY}.interpreter"
    return [sys.executable, "-P", "-c", code]


def _digest() -> str:
    """Of all that decides what is made."""
    return hashlib.sha256(LOCK.read_bytes() + repr((_NEEDED, _WRITTEN, _NOT_OF_NUMPY)).encode()).hexdigest()


def main() -> None:
    """The command behind `make runtimes`."""
    parser = argparse.ArgumentParser(description=f"Sets up TensorFlow Lite {VERSION}'s interpreter.")
    parser.add_argument(
        "--if-supported", action="store_true", help="where it can never run, say so and end without an error"
    )
    try:
        if parser.parse_args().if_supported and (reason := unsupported()):
            print(reason)
        else:
            print(f"TensorFlow Lite {VERSION} is ready in {set_up()}.")
    except (MobilePruneError, OSError, zipfile.BadZipFile) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
