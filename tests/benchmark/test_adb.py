"""The real adb program and a device that runs commands for real, on loopback. Without adb they are skipped."""

import os
import shutil
import subprocess
import time

import pytest
from benchmark.phone import Phone, adb_server, attached

from mobileprune.benchmark.adb import (
    Adb,
    AttachedDevice,
    DeviceLost,
    android_devices,
    choose_device,
    clean,
    devices_in,
    not_ready,
    quoted,
)
from mobileprune.errors import InterpreterError, SettingsError

pytestmark = pytest.mark.skipif(shutil.which("adb") is None, reason="There is no adb program here (apt: adb).")
FOLDER = "/data/local/tmp"


@pytest.fixture(scope="module", autouse=True)
def _server():
    with adb_server():
        yield


@pytest.fixture
def phone(tmp_path):
    made = Phone(tmp_path / "phone")
    with attached(made):
        yield made


@pytest.fixture
def adb(phone):
    return Adb(phone.serial)


def test_no_device():
    assert android_devices() == []
    with pytest.raises(SettingsError, match="No Android device is attached"):
        choose_device()


def test_the_only_device_is_chosen(phone):
    expected = AttachedDevice(phone.serial, "device", "Test_Phone")
    assert android_devices() == [expected]
    assert choose_device() == choose_device(phone.serial) == expected
    with pytest.raises(SettingsError, match=rf"serial 'other' is attached. Attached: {phone.serial} \(device\)"):
        choose_device("other")


def test_of_two_devices_one_has_to_be_named(phone, tmp_path, monkeypatch):
    other = Phone(tmp_path / "other")
    with attached(other):
        with pytest.raises(SettingsError, match="Several Android devices are attached") as failure:
            choose_device()
        assert phone.serial in str(failure.value)
        assert other.serial in str(failure.value)
        assert choose_device(other.serial).serial == other.serial
        monkeypatch.setenv("ANDROID_SERIAL", phone.serial)
        assert choose_device().serial == phone.serial


def test_a_device_that_has_not_allowed_this_computer(tmp_path):
    phone = Phone(tmp_path / "phone")
    phone.authorized = False
    with attached(phone), pytest.raises(SettingsError, match="has not allowed this computer to debug it"):
        choose_device()


def test_a_device_that_does_not_answer(phone, adb):
    phone.replug_s = None
    phone.unplug_at = ("sleep", frozenset({1}))
    with pytest.raises(DeviceLost):
        adb.shell("sleep 5")
    assert android_devices()[0].state == "offline"
    with pytest.raises(SettingsError, match="does not answer"):
        choose_device()


def test_what_adb_lists_of_other_devices():
    listing = (
        "* daemon started successfully\n"
        "List of devices attached\n"
        "????????????           no permissions (user is in the plugdev group); see [http://x] usb:1-1\n"
        "R58M12ABCDE            device usb:1-2 product:beyond1lte model:SM_G973F device:beyond1 transport_id:4\n"
        "emulator-5554          bootloader\n"
        "* something that is no device\n\n"
    )
    unreadable, samsung, emulator = devices_in(listing)
    assert unreadable == AttachedDevice("????????????", "no permissions")
    assert samsung == AttachedDevice("R58M12ABCDE", "device", "SM_G973F")
    assert [each.ready for each in (unreadable, samsung, emulator)] == [False, True, False]
    assert "may not be opened by this user. On Linux install" in not_ready(unreadable)
    assert "is in the state 'bootloader'" in not_ready(emulator)


def test_no_adb_program(monkeypatch, tmp_path):
    for name in ("ANDROID_HOME", "ANDROID_SDK_ROOT"):
        monkeypatch.delenv(name, raising=False)
    program = shutil.which("adb")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SettingsError, match=r"There is no adb program here.*apt-get install adb"):
        android_devices()
    (tmp_path / "sdk" / "platform-tools").mkdir(parents=True)
    os.symlink(program, tmp_path / "sdk" / "platform-tools" / "adb")
    monkeypatch.setenv("ANDROID_HOME", str(tmp_path / "sdk"))
    assert android_devices() == []


def test_an_adb_that_fails(monkeypatch, tmp_path):
    (tmp_path / "adb").write_text("#!/bin/sh\necho 'cannot bind' >&2\nexit 1\n")
    (tmp_path / "adb").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SettingsError, match="adb cannot list devices: cannot bind"):
        android_devices()


@pytest.mark.parametrize("shell_v2", [True, False], ids=["", "before Android 7"])
def test_commands_answer_with_output_errors_and_exit_code(tmp_path, shell_v2):
    phone = Phone(tmp_path / "phone")
    phone.shell_v2 = shell_v2
    with attached(phone):
        adb = Adb(phone.serial)
        answer = adb.shell("echo out; echo err >&2; exit 7")
        assert sorted(answer.output.split()) == ["err", "out"]
        assert (answer.code, adb.shell("printf 'no line break'").output) == (7, "no line break")
        assert adb.shell("cat").output == ""  # there is nothing to read
        assert adb.ask("echo fine", "It fails") == "fine\n"
        with pytest.raises(InterpreterError, match="It fails: the command ended with 3: why"):
            adb.ask("echo why; exit 3", "It fails")


def test_a_command_that_a_signal_ended(adb):
    assert "was killed by signal 11 (SIGSEGV)" in adb.shell("sh -c 'kill -SEGV $$'").failure
    assert adb.shell("exit 200").failure == "ended with 200 and said nothing"


def test_a_stream_that_breaks_off_is_no_success(phone, adb):
    phone.cut = "half"
    command = "echo half; sleep 1; exit 3"
    assert subprocess.run(["adb", "-s", phone.serial, "shell", "-n", command], capture_output=True).returncode == 0
    with pytest.raises(DeviceLost, match="broke: no exit code came"):
        adb.shell(command)


def test_a_command_cannot_fake_the_end_of_another(phone, adb):
    phone.cut = "mark"
    with pytest.raises(DeviceLost):
        adb.shell("echo; echo 0123456789abcdef:0; echo mark; sleep 1")


def test_what_says_too_much_or_takes_too_long(adb):
    with pytest.raises(InterpreterError, match="said more than 1,000 bytes") as failure:
        adb.shell("yes", limit=1000)
    assert not isinstance(failure.value, DeviceLost)
    begin = time.monotonic()
    with pytest.raises(InterpreterError, match=r"was still busy after 0\.5 s: begun") as failure:
        adb.shell("echo begun; sleep 30", timeout_s=0.5)
    assert not isinstance(failure.value, DeviceLost)
    assert time.monotonic() - begin < 20


def test_nothing_of_a_device_reaches_a_terminal(adb):
    answer = adb.shell(r"printf '\033[31mred\033]0;title\007 \303\251 \342\200\256 \377\tend\r.'; exit 1")
    assert answer.output == "�[31mred�]0;title� é � � end�."
    assert answer.failure.isprintable()


def test_text_for_messages():
    assert clean(b"a\r\nb\x1b\x9b\xc2\x9b") == "a\nb���"
    assert quoted("1\n2\n\n 3 \n4\n5\n") == "2 | 3 | 4 | 5"
    assert len(quoted("x" * 10_000)) == 300


def test_files_are_brought_once_and_read_back(phone, adb, tmp_path):
    source = tmp_path / "file"
    source.write_bytes(os.urandom(3_000_000))
    target = f"{FOLDER}/file"
    assert adb.push(source, target, mode="644", timeout_s=30)
    stored = phone.root / target[1:]
    assert stored.read_bytes() == source.read_bytes()
    assert stored.stat().st_mode & 0o777 == 0o644
    assert not adb.push(source, target, mode="644", timeout_s=30)
    assert len(phone.pushed) == 1
    stored.write_bytes(b"changed")
    assert adb.push(source, target, mode="644", timeout_s=30)
    assert stored.read_bytes() == source.read_bytes()
    assert phone.files() == ["data/local/tmp/file"]
    back = tmp_path / "back"
    subprocess.run(["adb", "-s", phone.serial, "pull", target, back], check=True, capture_output=True)
    assert back.read_bytes() == source.read_bytes()


@pytest.mark.parametrize(
    ("trouble", "said"),
    [
        ({"space": 100}, "cannot be brought to .*No space left on device"),
        ({"push_failure": "couldn't create file: Permission denied"}, "cannot be brought to .*Permission denied"),
        ({"damage": True}, "arrived damaged on"),
    ],
)
def test_files_that_do_not_arrive(phone, adb, tmp_path, trouble, said):
    source = tmp_path / "file"
    source.write_bytes(bytes(range(200)))
    for name, value in trouble.items():
        setattr(phone, name, value)
    with pytest.raises(InterpreterError, match=said) as failure:
        adb.push(source, f"{FOLDER}/file", mode="644", timeout_s=30)
    assert not isinstance(failure.value, DeviceLost)
    assert phone.files() == []


def test_a_device_that_cannot_read_back_what_it_got(phone, adb, tmp_path):
    phone.add_program("sha256sum", "echo 'sha256sum: not found'; exit 127")
    (tmp_path / "file").write_bytes(b"content")
    with pytest.raises(InterpreterError, match=r"arrived damaged on .*: sha256sum cannot read it there"):
        adb.push(tmp_path / "file", f"{FOLDER}/file", mode="644", timeout_s=30)
    assert phone.files() == []


def test_a_device_that_is_unplugged_and_comes_back(phone, adb):
    phone.unplug_at = ("sleep", frozenset({1}))
    with pytest.raises(DeviceLost):
        adb.shell("sleep 5")
    assert adb.reconnect(20)
    assert adb.shell("echo back").output == "back\n"


def test_a_device_that_the_server_has_forgotten_is_called_anew(phone, adb):
    subprocess.run(["adb", "disconnect", phone.serial], check=True, capture_output=True)
    with pytest.raises(DeviceLost, match="not found"):
        adb.shell("true")
    assert adb.reconnect(20)
    assert adb.state() == "device"


def test_a_device_that_does_not_come_back(phone, adb, tmp_path):
    phone.replug_s = None
    phone.unplug_at = ("sha256sum", frozenset({1}))
    source = tmp_path / "file"
    source.write_bytes(b"content")
    with pytest.raises(DeviceLost):
        adb.push(source, f"{FOLDER}/file", mode="644", timeout_s=30)
    assert not adb.reconnect(0.5)
