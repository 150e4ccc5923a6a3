"""A phone for tests: a daemon, the programs that Android has, and what is installed on it. All of it runs for real."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmark.adb_daemon import AdbDaemon

HERE = Path(__file__).resolve().parent
PROPERTIES = """ro.product.manufacturer=Acme
ro.product.model=Phone 7
ro.product.cpu.abi=arm64-v8a
ro.soc.manufacturer=Acme
ro.soc.model=Chip 7
ro.build.version.release=14
ro.build.version.sdk=34
"""
BATTERY = """Current Battery Service state:
  AC powered: false
  USB powered: true
  status: 2
  level: 87
  scale: 100
  voltage: 4312
  temperature: 314
"""
# What dumpsys says of heat comes from a file with a line for each question; its last line stays.
PROGRAMS = {
    "getprop": 'sed -n "s/^$1=//p" "$PHONE/properties"',
    "dumpsys": """case "$1" in
battery) cat "$PHONE/battery" ;;
thermalservice) head -n 1 "$PHONE/heat"
  if [ "$(wc -l < "$PHONE/heat")" -gt 1 ]; then sed -i 1d "$PHONE/heat"; fi ;;
*) echo "Can't find service: $1" ;;
esac""",
    "pm": 'if [ -e "$PHONE/installed" ]; then echo "package:/data/app/base.apk"; else exit 1; fi',
    "am": f"""case "$1" in
force-stop) if [ -e "$PHONE/app.pid" ]; then kill -9 "$(cat "$PHONE/app.pid")" 2>/dev/null; rm "$PHONE/app.pid"; fi ;;
start) if [ -e "$PHONE/no_activity" ]; then echo "Error type 3"; exit 0; fi
  {sys.executable} "$PHONE/app/demo_app.py" "$@" > "$PHONE/app_output" 2>&1 &
  echo $! > "$PHONE/app.pid"
  echo "Starting: Intent {{ cmp=com.mobileprune.demo/.HeadlessActivity }}"
  echo "Status: ok" ;;
esac""",
    "pidof": 'p=$(cat "$PHONE/app.pid" 2>/dev/null) && kill -0 "$p" 2>/dev/null && echo "$p"',
    "logcat": 'cat "$PHONE/logcat" 2>/dev/null',
}


class Phone(AdbDaemon):
    """A device with Android's programs on it; the demo app only after `install_app`."""

    def __init__(self, root: Path):
        super().__init__(root)
        for name, script in PROGRAMS.items():
            self.add_program(name, script)
        self.write("properties", PROPERTIES)
        self.write("battery", BATTERY)
        self.write("heat", "Thermal Status: 0\n")

    def add_program(self, name: str, script: str) -> None:
        path = self.root / "bin" / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def write(self, name: str, text: str) -> None:
        (self.root / name).write_text(text)

    def install_app(self) -> None:
        (self.root / "app").mkdir()
        for name in ("benchmark_model.py", "demo_app.py"):
            shutil.copy(HERE / name, self.root / "app" / name)
        self.write("installed", "")

    def files(self) -> list[str]:
        """What is on its storage."""
        folders = (self.root / "data/local/tmp", self.root / "sdcard")
        found = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
        return sorted(str(path.relative_to(self.root)) for path in found)


def litert_program(folder: Path) -> Path:
    """The program `benchmark_model` of the tests, which can be started."""
    return program(folder, (HERE / "benchmark_model.py").read_text(), sys.executable)


def program(folder: Path, text: str, interpreter: str = "/bin/sh") -> Path:
    path = folder / "benchmark_model"
    path.write_text(f"#!{interpreter}\n{text}")
    return path


@contextmanager
def adb_server() -> Iterator[None]:
    """An adb server of the tests' own, with no other devices; adb finds it through the environment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    own = {"ANDROID_ADB_SERVER_PORT": str(port), "ADB_LOCAL_TRANSPORT_MAX_PORT": "5554"}
    before = {name: os.environ.get(name) for name in (*own, "ANDROID_SERIAL")}
    with tempfile.TemporaryDirectory() as home:  # its keys
        os.environ.update(own)
        os.environ.pop("ANDROID_SERIAL", None)
        try:
            environment = {**os.environ, "HOME": home}
            subprocess.run(["adb", "start-server"], check=True, capture_output=True, timeout=30, env=environment)
            yield
        finally:
            subprocess.run(["adb", "kill-server"], check=True, capture_output=True, timeout=30)
            for name, value in before.items():
                os.environ.pop(name, None)
                if value is not None:
                    os.environ[name] = value


@contextmanager
def attached(phone: AdbDaemon) -> Iterator[None]:
    """The adb server knows it, in whatever state."""
    with phone:
        subprocess.run(["adb", "connect", phone.serial], check=True, capture_output=True, timeout=30)
        try:
            yield
        finally:
            subprocess.run(["adb", "disconnect", phone.serial], capture_output=True, timeout=30)
