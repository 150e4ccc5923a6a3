"""One phone through the adb program: which are attached, commands for it and files to it.

It is the program itself and no Python client, because whoever has a phone to measure has it already, it alone speaks
USB, and clients need its server in any case. What it lacks is made up for here: it answers 0 when a stream breaks off,
so every command says its own exit code as its last words, and an answer without them is none. What a phone says is
hostile: its length is bounded, and nothing in it reaches a terminal that a terminal would obey.
"""

import dataclasses
import os
import re
import secrets
import shutil
import signal
import time
from pathlib import Path

from mobileprune.commands import Said, run_bounded
from mobileprune.errors import InterpreterError, SettingsError, known_names
from mobileprune.files import file_digest

MOST_OUTPUT_BYTES = 1 << 20
# What is quoted of a phone in a message.
QUOTED_LINES, QUOTED_CHARACTERS = 4, 300
# A short question, which a phone answers at once or not at all.
QUESTION_S = 15.0
POLL_S = 0.5
STATES = "device|offline|unauthorized|authorizing|connecting|bootloader|recovery|sideload|rescue|host|unknown"
WAYS_OUT = {
    "unauthorized": "has not allowed this computer to debug it. Unlock it and confirm the question on its screen.",
    "authorizing": "has not allowed this computer to debug it yet. Unlock it and confirm the question on its screen.",
    "offline": "does not answer. Plug it in again, or run `adb reconnect offline`.",
    "connecting": "does not answer yet. Wait a moment, or plug it in again.",
    "no permissions": "may not be opened by this user. On Linux install the package android-sdk-platform-tools-common "
    "(its udev rules), join the group plugdev, log in again and plug it in again.",
}


class DeviceLost(InterpreterError):
    """The connection broke while a command ran."""


@dataclasses.dataclass(frozen=True)
class AttachedDevice:
    """A line of `adb devices`.

    Attributes:
        serial: what `adb -s` takes.
        state: `device` when it is ready; `unauthorized`, `offline`, `no permissions`, ….
        model: as adb knows it; empty where it does not.
    """

    serial: str
    state: str
    model: str = ""

    @property
    def ready(self) -> bool:
        """Whether commands can be sent to it."""
        return self.state == "device"


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a command on the phone said, without control characters, and its exit code."""

    output: str
    code: int

    @property
    def failure(self) -> str:
        """How it ended, with its last words: `ended with 2: No such file`."""
        words = quoted(self.output)
        ending = f"ended with {self.code}"
        if 128 < self.code < 128 + signal.NSIG:
            try:
                ending = f"was killed by signal {self.code - 128} ({signal.Signals(self.code - 128).name})"
            except ValueError:
                ending = f"was killed by signal {self.code - 128}"
        return f"{ending}: {words}" if words else f"{ending} and said nothing"


def android_devices() -> list[AttachedDevice]:
    """The phones that adb knows of, ready or not. Starts adb's server where none runs, as adb itself does.

    Raises:
        SettingsError: there is no adb program, or it does not work.

    Example:
        >>> mp.android_devices()  # doctest: +SKIP
        [AttachedDevice(serial='1A2B3C4D5E', state='device', model='Pixel_6')]
    """
    said = run_bounded([adb_program(), "devices", "-l"], timeout_s=QUESTION_S, limit=MOST_OUTPUT_BYTES)
    if said.code != 0:
        raise SettingsError(f"adb cannot list devices: {quoted(clean(said.output + said.errors)) or 'it hangs'}")
    return devices_in(clean(said.output))


def devices_in(listing: str) -> list[AttachedDevice]:
    """The devices in what `adb devices -l` says."""
    found = []
    for line in listing.partition("List of devices attached")[2].splitlines():
        # Serials of USB devices that are not ready can be anything, even `????????????`.
        matched = re.match(rf"(\S+)\s+({STATES}|no permissions)\b(.*)", line)
        if matched:
            model = re.search(r"\bmodel:(\S+)", matched[3])
            found.append(AttachedDevice(matched[1], matched[2], model[1] if model else ""))
    return found


def choose_device(serial: str | None = None) -> AttachedDevice:
    """The phone that is meant.

    Args:
        serial: its serial; None for what the environment variable `ANDROID_SERIAL` names, or else the only one.

    Raises:
        SettingsError: none is attached, several are and none was named, or the one that is meant is not ready.
    """
    devices = android_devices()
    serial = serial or os.environ.get("ANDROID_SERIAL") or None
    listed = known_names(f"{device.serial} ({device.state})" for device in devices)
    if not devices:
        raise SettingsError(
            f"No Android device is attached{f', and so not {serial}' if serial else ''}. Switch on USB debugging in "
            "its developer options and plug it in; `adb devices` must list it."
        )
    if serial is None and len(devices) > 1:
        raise SettingsError(f"Several Android devices are attached. Name one by its serial: {listed}.")
    device = next((device for device in devices if serial in (None, device.serial)), None)
    if device is None:
        raise SettingsError(f"No Android device with the serial {serial!r} is attached. Attached: {listed}.")
    if not device.ready:
        raise SettingsError(not_ready(device))
    return device


def not_ready(device: AttachedDevice) -> str:
    """Why a device that is not ready is not, with the way out."""
    way_out = WAYS_OUT.get(device.state, f"is in the state {device.state!r}. Start Android on it.")
    return f"The Android device {device.serial} {way_out}"


class Adb:
    """One phone, by its serial.

    Example:
        >>> Adb("1A2B3C4D5E").shell("getprop ro.product.model").output  # doctest: +SKIP
        'Pixel 6\\n'
    """

    def __init__(self, serial: str):
        self.serial = serial
        self._program = adb_program()

    def shell(self, command: str, *, timeout_s: float = QUESTION_S, limit: int = MOST_OUTPUT_BYTES) -> Answer:
        """Runs a command of the phone's shell; its standard error counts as output.

        Args:
            command: for a POSIX shell.
            timeout_s: seconds.
            limit: bytes of output.

        Raises:
            DeviceLost: the connection broke before it ended.
            InterpreterError: it took too long, or said too much.
        """
        mark = secrets.token_hex(8)
        # A line of its own for the mark: what a command says need not end with one.
        wrapped = f"( {command}\n) 2>&1; code=$?; echo; echo {mark}:$code"
        said = self._run("shell", "-n", wrapped, timeout_s=timeout_s, limit=limit)
        if said.too_much:
            raise InterpreterError(f"{self.serial} said more than {limit:,} bytes: {quoted(clean(said.output))}")
        output, found, code = clean(said.output).rpartition(f"\n{mark}:")
        if found and re.fullmatch(r"\d{1,3}\s*", code):
            return Answer(output, int(code))
        if said.code is None and self.state() == "device":
            raise InterpreterError(f"{self.serial} was still busy after {timeout_s:g} s: {quoted(clean(said.output))}")
        raise DeviceLost(f"The connection to {self.serial} broke: {quoted(clean(said.errors)) or 'no exit code came'}")

    def ask(self, command: str, failure: str) -> str:
        """What a command says that must succeed.

        Args:
            command: for a POSIX shell.
            failure: what it means when it fails, a clause that begins the message.

        Raises:
            InterpreterError: it failed, or see `shell`.
        """
        answer = self.shell(command)
        if answer.code:
            raise InterpreterError(f"{failure}: the command {answer.failure}")
        return answer.output

    def push(self, source: Path, target: str, *, mode: str, timeout_s: float) -> bool:
        """Brings a file to the phone, unless it is there already; what is there afterwards has been read back.

        Args:
            source: a file here.
            target: its path on the phone, of plain characters, in a folder that exists.
            mode: as for chmod.
            timeout_s: seconds for all of it.

        Returns:
            Whether it had to be sent.

        Raises:
            DeviceLost: the connection broke.
            InterpreterError: it does not fit, is not allowed, or arrived damaged.
        """
        digest = file_digest(source)
        if self._digest(target, timeout_s) == digest:
            return False
        arriving = f"{target}.part"
        said = self._run("push", str(source), arriving, timeout_s=timeout_s, limit=MOST_OUTPUT_BYTES)
        if said.code != 0:
            # Its report of progress follows the error on the same stream.
            lines = clean(said.output + b"\n" + said.errors).splitlines()
            reason = quoted(next((line for line in lines if "error" in line), ""))
            if said.code is None and self.state() == "device":
                reason = f"it takes longer than {timeout_s:g} s"
            elif ": remote " not in reason:  # what the phone itself says begins so
                raise DeviceLost(f"The connection to {self.serial} broke: {reason}")
            self.shell(f"rm -f {arriving}")
            raise InterpreterError(f"{source.name} cannot be brought to {self.serial}: {reason}")
        arrived = self._digest(arriving, timeout_s)
        if arrived != digest:
            self.shell(f"rm -f {arriving}")
            found = f"it has the SHA-256 {arrived}, not {digest}" if arrived else "sha256sum cannot read it there"
            raise InterpreterError(f"{source.name} arrived damaged on {self.serial}: {found}.")
        self.ask(f"chmod {mode} {arriving} && mv -f {arriving} {target}", f"{target} cannot be put into place")
        return True

    def state(self) -> str:
        """`device` when it is ready; else what adb says instead."""
        said = self._run("get-state", timeout_s=QUESTION_S, limit=MOST_OUTPUT_BYTES)
        return clean(said.output).strip() or quoted(clean(said.errors)) or "unknown"

    def reconnect(self, limit_s: float) -> bool:
        """Waits until a phone that was lost is back; one on the network is called anew.

        Returns:
            Whether it is, within `limit_s` seconds.
        """
        deadline = time.monotonic() + limit_s
        while True:
            if re.fullmatch(r".+:\d+", self.serial) and self.state() != "device":
                command = [self._program, "connect", self.serial]
                run_bounded(command, timeout_s=QUESTION_S, limit=MOST_OUTPUT_BYTES)
            if self.state() == "device":
                return True
            if time.monotonic() > deadline:
                return False
            time.sleep(POLL_S)

    def _digest(self, path: str, timeout_s: float) -> str | None:
        answer = self.shell(f"sha256sum {path}", timeout_s=timeout_s)
        matched = re.match(r"([0-9a-f]{64})\s", answer.output)
        return matched[1] if matched and answer.code == 0 else None

    def _run(self, *words: str, timeout_s: float, limit: int) -> Said:
        return run_bounded([self._program, "-s", self.serial, *words], timeout_s=timeout_s, limit=limit)


def adb_program() -> str:
    """The adb program's path.

    Raises:
        SettingsError: there is none.
    """
    found = shutil.which("adb")
    for name in ("ANDROID_HOME", "ANDROID_SDK_ROOT"):
        if found is None and os.environ.get(name):
            found = shutil.which("adb", path=str(Path(os.environ[name]) / "platform-tools"))
    if found is None:
        raise SettingsError(
            "There is no adb program here, which talks to Android devices. Install it (on Debian and Ubuntu: sudo "
            "apt-get install adb), or let ANDROID_HOME name an Android SDK with its platform tools."
        )
    return found


def clean(output: bytes) -> str:
    """Text that nobody need fear to print: line breaks stay, all else that is no printable character is replaced."""
    lines = output.decode("utf-8", errors="replace").replace("\r\n", "\n").replace("\t", " ").split("\n")
    return "\n".join(line if line.isprintable() else _printable(line) for line in lines)


def _printable(line: str) -> str:
    return "".join(each if each.isprintable() else "\ufffd" for each in line)


def quoted(text: str) -> str:
    """The last lines of a text on one line, for a message."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " | ".join(lines[-QUOTED_LINES:])[-QUOTED_CHARACTERS:]
