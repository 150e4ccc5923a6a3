"""Sets up what runs `.tflite` files on ARM64: LiteRT's library for it, a small program, and, elsewhere, an emulator.

`make arm64` calls `python -m mobileprune.benchmark.arm64_setup`. The emulator (QEMU's user mode) and the C compiler
come from the system's packages, the library from the ARM64 wheel of the very LiteRT version that is installed here. All
else is made in one folder: `.arm64` in a checkout, `~/.cache/mobileprune/arm64` otherwise, or what `MOBILEPRUNE_ARM64`
names.
"""

import argparse
import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from mobileprune.commands import run_command
from mobileprune.errors import MobilePruneError, SettingsError

SOURCE = Path(__file__).with_name("arm64_runner.c")
DISTRIBUTION = "ai-edge-litert"
LIBRARY = "libLiteRt.so"
# A core of phones since 2019, with the dot-product and half-precision instructions. QEMU's "max" has more than any
# phone, and int8 results that differ by a step.
CPU = "cortex-a76"
CROSS_LIBRARIES = Path("/usr/aarch64-linux-gnu/lib")
# The tags that pip accepts are those named, not those they imply.
PLATFORMS = (*(f"manylinux_2_{minor}_aarch64" for minor in (34, 31, 28, 27, 17)), "manylinux2014_aarch64")
# LiteRT looks into /proc/cpuinfo to choose its kernels, and the host's, in the style of x86, makes it crash.
CPUINFO = """processor\t: 0
BogoMIPS\t: 100.00
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x4
CPU part\t: 0xd0b
CPU revision\t: 1

"""


@dataclasses.dataclass(frozen=True)
class Installation:
    """What `make arm64` left, ready to run.

    Attributes:
        command: the words that start the runner, before its own arguments.
        emulated: whether an emulator is among them.
        device: how records name it: `emulated arm64 (cortex-a76, QEMU 7.2.22)`.
        runtime: `LiteRT 2.3.0`.
    """

    command: tuple[str, ...]
    emulated: bool
    device: str
    runtime: str


def folder() -> Path:
    """Where the library and the runner are, or would be."""
    if named := os.environ.get("MOBILEPRUNE_ARM64"):
        return Path(named).absolute()
    root = Path(__file__).resolve().parents[2]
    if (root / "pyproject.toml").is_file():
        return root / ".arm64"
    return Path.home() / ".cache" / "mobileprune" / "arm64"


def native() -> bool:
    """Whether this machine is an ARM64 one, which needs no emulator."""
    return platform.machine() in ("aarch64", "arm64")


def installation() -> Installation | str:
    """What is set up here, or in one sentence why nothing can be run."""
    if sys.platform != "linux":
        return f"ARM64 files run on Linux only; this is {sys.platform}."
    emulator = None if native() else _emulator()
    if emulator is None and not native():
        return f"There is no emulator of ARM64 here. {_way_out()}"
    try:
        made = json.loads((folder() / "made.json").read_text())
        runtime, source = str(made["litert"]), str(made["source"])
    except (OSError, ValueError, KeyError, TypeError):
        return f"ARM64 is not set up in {folder()}. {_way_out()}"
    if runtime != _litert_version() or source != _source_digest():
        return f"What is in {folder()} was made for LiteRT {runtime}, or for another runner. Run `make arm64` again."
    runner = str(folder() / "runner")
    if emulator is None:
        return Installation((runner,), False, f"arm64 ({platform.machine()})", f"LiteRT {runtime}")
    command = (emulator, "-cpu", CPU, "-L", str(folder() / "root"), runner)
    return Installation(command, True, f"emulated arm64 ({CPU}, {_emulator_version(emulator)})", f"LiteRT {runtime}")


def missing_packages() -> list[str]:
    """The Debian packages that have to be installed before `set_up` can work."""
    if native():
        return [] if shutil.which("gcc") else ["gcc", "libc6-dev"]
    missing = [] if _emulator() else ["qemu-user-static"]
    if not shutil.which("aarch64-linux-gnu-gcc"):
        missing.append("gcc-aarch64-linux-gnu")
    if not (CROSS_LIBRARIES / "crt1.o").exists():
        missing.append("libc6-dev-arm64-cross")
    if not (CROSS_LIBRARIES / "libstdc++.so.6").exists():
        missing.append("libstdc++6-arm64-cross")
    return missing


def set_up(lock: Path | None = None) -> Path:
    """Downloads the library, compiles the runner and returns their folder. Done before, it does nothing.

    Args:
        lock: a requirements file with the hashes of LiteRT's wheels; without one they are not checked.

    Raises:
        SettingsError: packages are missing (it names them), or the download or the compiler failed (it says how).
    """
    if sys.platform != "linux":
        raise SettingsError(f"ARM64 files run on Linux only; this is {sys.platform}.")
    if missing := missing_packages():
        raise SettingsError(
            f"For ARM64 these packages are missing: {' '.join(missing)}. On Debian and Ubuntu: "
            f"sudo apt-get install {' '.join(missing)}"
        )
    target = folder()
    if isinstance(installation(), Installation):
        return target
    if target.exists() and not (target / "made.json").exists() and any(target.iterdir()):
        raise SettingsError(f"{target} holds other things and would be replaced. Let MOBILEPRUNE_ARM64 name a new one.")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".arm64-") as name:
        made = Path(name) / "made"
        made.mkdir()
        _unpack(_download(Path(name), lock), made)
        compiler = "gcc" if native() else "aarch64-linux-gnu-gcc"
        link = (f"-L{made}", "-lLiteRt", "-Wl,-rpath,$ORIGIN", "-Wl,--allow-shlib-undefined")
        run_command(
            [compiler, "-O2", "-Wall", "-o", str(made / "runner"), str(SOURCE), *link], "The runner does not compile"
        )
        if not native():
            (made / "root" / "proc").mkdir(parents=True)
            (made / "root" / "proc" / "cpuinfo").write_text(CPUINFO)
            (made / "root" / "lib").symlink_to(CROSS_LIBRARIES)
        (made / "made.json").write_text(json.dumps({"litert": _litert_version(), "source": _source_digest()}))
        shutil.rmtree(target, ignore_errors=True)
        made.rename(target)
    problem = installation()
    if isinstance(problem, str):
        raise SettingsError(problem)
    return target


def _download(into: Path, lock: Path | None) -> Path:
    """The ARM64 wheel of the LiteRT that is installed here."""
    wanted = into / "wanted.txt"
    hashes = _hashes(lock) if lock else ()
    pin = f"{DISTRIBUTION}=={_litert_version()}"
    wanted.write_text(" \\\n    ".join((pin, *(f"--hash={each}" for each in hashes))) + "\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--implementation", "cp"]
    command += ["--python-version", f"{sys.version_info.major}.{sys.version_info.minor}"]
    command += [word for tag in PLATFORMS for word in ("--platform", tag)]
    command += ["--require-hashes"] if hashes else []
    run_command([*command, "--dest", str(into), "--requirement", str(wanted)], f"pip cannot download {pin} for ARM64")
    return next(into.glob("*.whl"))


def _hashes(lock: Path) -> tuple[str, ...]:
    """What the lock file says of the version that is installed here."""
    try:
        text = lock.read_text()
    except OSError as error:
        raise SettingsError(f"Cannot read {lock}: {error.strerror or error}.") from error
    pin = f"{DISTRIBUTION}=={_litert_version()}"
    for entry in text.replace("\\\n", " ").splitlines():
        name, *words = entry.split() or [""]
        if name == pin:
            return tuple(word.removeprefix("--hash=") for word in words if word.startswith("--hash="))
    raise SettingsError(f"{lock} does not pin {pin}, which is installed here. Install what it pins, or give no lock.")


def _unpack(wheel: Path, into: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        member = f"{DISTRIBUTION.replace('-', '_')}/{LIBRARY}"
        if member not in archive.namelist():
            raise SettingsError(f"{wheel.name} holds no {member}: this LiteRT cannot be run on ARM64 in this way.")
        (into / LIBRARY).write_bytes(archive.read(member))


def _emulator() -> str | None:
    return shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")


@functools.cache
def _emulator_version(emulator: str) -> str:
    said = subprocess.run([emulator, "--version"], capture_output=True, text=True).stdout.split()
    return f"QEMU {said[said.index('version') + 1]}" if "version" in said else "QEMU"


def _litert_version() -> str:
    return importlib.metadata.version(DISTRIBUTION)


def _source_digest() -> str:
    return hashlib.sha256(SOURCE.read_bytes()).hexdigest()


def _way_out() -> str:
    missing = missing_packages()
    packages = f"Install {' '.join(missing)} (apt), then run" if missing else "Run"
    return f"{packages} `make arm64`, or `python -m mobileprune.benchmark.arm64_setup`."


def main() -> None:
    """The command behind `make arm64`."""
    parser = argparse.ArgumentParser(description="Sets up what runs .tflite files on ARM64.")
    parser.add_argument("--lock", type=Path, help="a requirements file with the hashes of LiteRT's wheels")
    try:
        print(f"ARM64 is ready in {set_up(parser.parse_args().lock)}.")
    except (MobilePruneError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
