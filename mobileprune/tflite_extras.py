"""What a `.tflite` carries beside its network: named entries of metadata, and files appended to it as a zip archive.

Zip archives are read from their end and flatbuffers from their beginning, so that one file can be both. Archives come
from outside: sizes are bounded while reading, names must be plain, and nothing is ever written to a disk.
"""

import io
import struct
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any

from ai_edge_litert import schema_py_generated as schema

from mobileprune.errors import ModelError
from mobileprune.tflite_graph import DAMAGE

METADATA_NAME = "TFLITE_METADATA"
MAX_FILES = 64
MAX_FILE_BYTES = 4 * 2**20
MAX_NAME_LENGTH = 200
# Readers in apps ask for stored files: they use them in place.
_STORED = zipfile.ZIP_STORED
_METHODS = (_STORED, zipfile.ZIP_DEFLATED)
_FIXED_DATE = (1980, 1, 1, 0, 0, 0)
# What damaged archives make zipfile raise.
_DAMAGE = (
    *(zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError),
    *(RuntimeError, ValueError, IndexError, OverflowError),
)


def metadata_entry(content: bytes, name: str = METADATA_NAME) -> bytes | None:
    """The data of a named entry of metadata in a file that `read_graph` has accepted, or None if there is none.

    Raises:
        ModelError: the file is damaged there.
    """
    try:
        model = schema.Model.GetRootAs(content, 0)
        count = model.MetadataLength()
        if count > len(content) // 4:
            raise ValueError(f"{count} entries of metadata in a file of {len(content)} bytes")
        for index in range(count):
            entry = model.Metadata(index)
            if entry.Name() == name.encode():
                return _buffer(model, entry.Buffer(), content)
    except DAMAGE as error:
        raise ModelError(
            f"The .tflite is damaged: {type(error).__name__}: {error}. Convert the model again."
        ) from error
    return None


def attached_files(content: bytes) -> dict[str, bytes]:
    """The files in the zip archive behind a `.tflite` with metadata, by name; none where it has no metadata.

    Raises:
        ModelError: the archive is damaged or larger than such archives can be meant to be, or a name is a path.
    """
    # Without metadata nothing says that what looks like an archive is one: weights can hold any bytes.
    if metadata_entry(content) is None or not zipfile.is_zipfile(io.BytesIO(content)):
        return {}
    found: dict[str, bytes] = {}
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = archive.infolist()
            if len(members) > MAX_FILES:
                raise ModelError(f"{len(members)} files are attached to the .tflite; at most {MAX_FILES} are read.")
            for member in members:
                if member.filename in found:
                    raise ModelError(f"Two files called {member.filename!r} are attached to the .tflite.")
                found[_plain_name(member.filename)] = _read(archive, member)
    except _DAMAGE as error:
        raise ModelError(
            f"The files attached to the .tflite cannot be read: {type(error).__name__}: {error}. Add its metadata anew."
        ) from error
    return found


def with_attached(content: bytes, files: Mapping[str, bytes]) -> bytes:
    """A flatbuffer with files attached. The same files give the same bytes.

    Raises:
        ModelError: a name is a path, or a file is too large to be read again.
    """
    if not files:
        return content
    if len(files) > MAX_FILES or max(map(len, files.values())) > MAX_FILE_BYTES:
        raise ModelError(
            f"{len(files)} files, the largest of {max(map(len, files.values())):,} bytes, cannot be attached to a "
            f".tflite: at most {MAX_FILES} of {MAX_FILE_BYTES:,} bytes are read again."
        )
    made = io.BytesIO()
    made.write(content)
    # Mode "w" goes on where the stream is; "a" would look for an archive among the weights.
    with zipfile.ZipFile(made, "w", _STORED) as archive:
        for name, data in files.items():
            member = zipfile.ZipInfo(_plain_name(name), _FIXED_DATE)
            member.create_system = 0  # else it would tell on which system it was made
            archive.writestr(member, data)
    return made.getvalue()


def _buffer(model: Any, index: int, content: bytes) -> bytes:
    if not 0 <= index < model.BuffersLength():
        raise ValueError(f"buffer {index} of {model.BuffersLength()}")
    buffer = model.Buffers(index)
    if buffer.Offset() > 1:
        begin, size = buffer.Offset(), buffer.Size()
        if begin + size > len(content):
            raise ValueError(f"a buffer ends at byte {begin + size} of {len(content)}")
        return content[begin : begin + size]
    return buffer.DataAsNumpy().tobytes() if buffer.DataLength() else b""


def _plain_name(name: str) -> str:
    """`name`, if it can be nothing but a file's name."""
    if not name or len(name) > MAX_NAME_LENGTH or name in (".", "..") or any(each in name for each in "/\\:\0"):
        raise ModelError(f"{name[:60]!r} is no name for a file attached to a .tflite: it may not be a path.")
    return name


def _read(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    if member.compress_type not in _METHODS:
        raise ModelError(f"{member.filename!r} is attached to the .tflite in a compression that is not read.")
    with archive.open(member) as file:
        data = file.read(MAX_FILE_BYTES + 1)  # what the archive says of its size need not be true
    if len(data) > MAX_FILE_BYTES:
        raise ModelError(
            f"{member.filename!r}, attached to the .tflite, has more than {MAX_FILE_BYTES:,} bytes; no more are read."
        )
    return data
