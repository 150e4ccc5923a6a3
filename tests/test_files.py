import subprocess
import sys

import pytest

from mobileprune.errors import OutputError
from mobileprune.files import read_json, write_bytes, write_json


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_bytes_round_trip_and_replace_what_was_there(tmp_path):
    path = tmp_path / "deep" / "er" / "file.bin"
    write_bytes(path, b"old and longer")
    assert write_bytes(path, b"new") == path
    assert path.read_bytes() == b"new"
    assert names(path.parent) == ["file.bin"]


def test_json_round_trips(tmp_path):
    data = {"name": "Größe", "list": [1, 2.5, None, True]}
    path = write_json(tmp_path / "data.json", data)
    assert read_json(path) == data
    assert "Größe" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_json_without_a_meaning_is_refused_and_leaves_nothing(tmp_path, number):
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "data.json", {"x": number})
    assert names(tmp_path) == []


def test_a_file_in_place_of_the_folder_is_one_clear_error(tmp_path):
    (tmp_path / "taken").write_text("x")
    with pytest.raises(OutputError, match=r"Cannot write .*Choose another --out_dir\.$"):
        write_bytes(tmp_path / "taken" / "file.bin", b"abc")
    assert (tmp_path / "taken").read_text() == "x"


def test_a_failed_rename_leaves_no_temporary_file(tmp_path):
    (tmp_path / "file.bin").mkdir()
    with pytest.raises(OutputError, match="Cannot write"):
        write_bytes(tmp_path / "file.bin", b"abc")
    assert names(tmp_path) == ["file.bin"]


def test_a_write_that_the_system_stops_midway_keeps_the_old_file(tmp_path):
    resource = pytest.importorskip("resource")
    assert resource.RLIMIT_FSIZE >= 0
    path = tmp_path / "file.bin"
    path.write_bytes(b"old")
    # A limit on file size fails a write the way a full disk does; it needs a process of its own.
    code = f"""
import resource
from pathlib import Path
from mobileprune.errors import OutputError
from mobileprune.files import write_bytes
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    write_bytes(Path({str(path)!r}), bytes(100_000))
except OutputError as error:
    print(error)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "Free some space or choose another --out_dir." in result.stdout
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file.bin"]


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe{}", b"[" * 100_000])
def test_a_damaged_json_file_is_named_with_the_way_out(tmp_path, content):
    path = tmp_path / "state.json"
    path.write_bytes(content)
    with pytest.raises(OutputError, match=r"state\.json as JSON: .*Delete it and run again\.$"):
        read_json(path)


def test_a_missing_json_file_is_an_output_error(tmp_path):
    with pytest.raises(OutputError, match="absent"):
        read_json(tmp_path / "absent.json")
