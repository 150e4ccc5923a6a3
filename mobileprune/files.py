"""Writing files so that a reader never meets half of one."""

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from mobileprune.errors import OutputError


def write_bytes(path: Path, content: bytes) -> Path:
    """Writes `content` to a temporary neighbour and renames it to `path`.

    Returns:
        `path`.

    Raises:
        OutputError: the folder cannot be written, or the disk is full. Nothing is left behind.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise OutputError(f"Cannot write {path}: {error.strerror or error}. Choose another --out_dir.") from error
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        Path(temporary).unlink(missing_ok=True)
        raise OutputError(
            f"Cannot write {path}: {error.strerror or error}. Free some space or choose another --out_dir."
        ) from error
    return path


def file_digest(path: str | Path) -> str:
    """The SHA-256 of a file's content.

    Raises:
        OutputError: it cannot be read.
    """
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise OutputError(f"Cannot read {path}: {error.strerror or error}.") from error


def write_json(path: Path, data: Any) -> Path:
    """Writes `data` as indented JSON, atomically; NaN and infinity are refused because JSON has neither."""
    return write_bytes(path, (json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        OutputError: it cannot be read or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise OutputError(f"Cannot read {path}: {error.strerror or error}.") from error
    except (ValueError, RecursionError) as error:  # the second is what deep nesting ends in
        raise OutputError(f"Cannot read {path} as JSON: {error}. Delete it and run again.") from error
