"""The layout of TensorFlow Lite metadata: dicts in, a flatbuffer out, and back.

The tables are those of `metadata_schema.fbs`, version 1.5.0, as far as they concern image classifiers; what is not
listed is passed over. No package with this schema is maintained that can live beside TensorFlow, so it stands here as
data. A field is a name and a kind; its place in the list is its place in the schema.

Metadata comes from outside: every offset is checked, and how much is read is bounded, because tables may be referred to
many times.
"""

import dataclasses
import struct
from collections.abc import Mapping
from typing import Any

import flatbuffers

from mobileprune.errors import ModelError

IDENTIFIER = b"M001"
# The first version of the schema, which has all that is written here; what came later says so in the schema.
PARSER_VERSION = "1.0.0"
MAX_ITEMS = 100_000
MAX_TEXT_BYTES = 2**22


@dataclasses.dataclass(frozen=True)
class Number:
    """A scalar in `struct`'s notation; 0 is not stored."""

    format: str


@dataclasses.dataclass(frozen=True)
class Text:
    """A string in UTF-8."""


@dataclasses.dataclass(frozen=True)
class Table:
    name: str


@dataclasses.dataclass(frozen=True)
class Union:
    """One of several tables, numbered from 1; it takes two fields. The dict has its name as `kind`."""

    names: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Many:
    """A list; numbers in it are float32."""

    of: "Number | Text | Table"


Kind = Number | Text | Table | Union | Many
BYTE, UINT32, INT32, FLOAT32, TEXT = Number("b"), Number("I"), Number("i"), Number("f"), Text()
_FILES = Many(Table("AssociatedFile"))
_TENSORS = Many(Table("TensorMetadata"))
TABLES: Mapping[str, tuple[tuple[str, Kind], ...]] = {
    "AssociatedFile": (("name", TEXT), ("description", TEXT), ("type", BYTE), ("locale", TEXT), ("version", TEXT)),
    "FeatureProperties": (),
    "ImageSize": (("width", UINT32), ("height", UINT32)),
    "ImageProperties": (("color_space", BYTE), ("default_size", Table("ImageSize"))),
    "ValueRange": (("min", INT32), ("max", INT32)),
    "Content": (
        ("content_properties", Union(("FeatureProperties", "ImageProperties"))),
        ("range", Table("ValueRange")),
    ),
    "NormalizationOptions": (("mean", Many(FLOAT32)), ("std", Many(FLOAT32))),
    "ProcessUnit": (("options", Union(("NormalizationOptions",))),),
    "Stats": (("max", Many(FLOAT32)), ("min", Many(FLOAT32))),
    "TensorMetadata": (
        ("name", TEXT),
        ("description", TEXT),
        ("dimension_names", Many(TEXT)),
        ("content", Table("Content")),
        ("process_units", Many(Table("ProcessUnit"))),
        ("stats", Table("Stats")),
        ("associated_files", _FILES),
    ),
    "SubGraphMetadata": (
        ("name", TEXT),
        ("description", TEXT),
        ("input_tensor_metadata", _TENSORS),
        ("output_tensor_metadata", _TENSORS),
        ("associated_files", _FILES),
    ),
    "ModelMetadata": (
        ("name", TEXT),
        ("description", TEXT),
        ("version", TEXT),
        ("subgraph_metadata", Many(Table("SubGraphMetadata"))),
        ("author", TEXT),
        ("license", TEXT),
        ("associated_files", _FILES),
        ("min_parser_version", TEXT),
    ),
}
UNKNOWN, DESCRIPTIONS, TENSOR_AXIS_LABELS = 0, 1, 2
RGB, GRAYSCALE = 1, 2


def pack(metadata: Mapping[str, Any]) -> bytes:
    """The flatbuffer of a `ModelMetadata`: of each table a dict, of each list a list; what is missing is left out.

    Example:
        >>> unpack(pack({"name": "cats", "subgraph_metadata": [{"input_tensor_metadata": [{"name": "image"}]}]}))
        {'name': 'cats', 'subgraph_metadata': [{'input_tensor_metadata': [{'name': 'image'}]}]}
    """
    builder = flatbuffers.Builder(1024)
    builder.Finish(_pack_table(builder, "ModelMetadata", metadata), IDENTIFIER)
    return bytes(builder.Output())


def unpack(data: bytes) -> dict[str, Any]:
    """The `ModelMetadata` in a flatbuffer, as `pack` takes it; fields that are not set are missing.

    Raises:
        ModelError: these bytes are no metadata, damaged, or larger than metadata can be meant to be.
    """
    if len(data) < 8 or data[4:8] != IDENTIFIER:
        raise ModelError(
            f"The {len(data)} bytes of metadata are not in TensorFlow Lite's format: bytes 4 to 8 are {data[4:8]!r} in "
            f"place of {IDENTIFIER!r}."
        )
    reader = _Reader(data)
    try:
        return reader.table(reader.follow(0), "ModelMetadata")
    except (struct.error, ValueError) as error:
        raise ModelError(f"The metadata of the .tflite is damaged: {error}. Add it anew.") from error


def _slots(table: str) -> list[tuple[int, str, Kind]]:
    """The fields of a table with their numbers in the flatbuffer."""
    slots, next_slot = [], 0
    for name, kind in TABLES[table]:
        slots.append((next_slot, name, kind))
        next_slot += 2 if isinstance(kind, Union) else 1
    return slots


def _pack_table(builder: Any, table: str, values: Mapping[str, Any]) -> int:
    unknown = values.keys() - {name for name, _ in TABLES[table]} - {"kind"}
    if unknown:
        raise ValueError(f"{table} has no {', '.join(sorted(unknown))}")
    # What fields refer to is written before the table itself.
    targets = {
        name: _pack_target(builder, kind, values[name])
        for _, name, kind in _slots(table)
        if values.get(name) is not None and not isinstance(kind, Number)
    }
    builder.StartObject(sum(2 if isinstance(kind, Union) else 1 for _, kind in TABLES[table]))
    for slot, name, kind in _slots(table):
        if isinstance(kind, Number):
            _PREPEND[kind.format](builder, slot, values.get(name, 0), 0)
        elif name in targets and isinstance(kind, Union):
            builder.PrependUint8Slot(slot, kind.names.index(values[name]["kind"]) + 1, 0)
            builder.PrependUOffsetTRelativeSlot(slot + 1, targets[name], 0)
        elif name in targets:
            builder.PrependUOffsetTRelativeSlot(slot, targets[name], 0)
    return int(builder.EndObject())


_PREPEND = {
    "b": flatbuffers.Builder.PrependInt8Slot,
    "I": flatbuffers.Builder.PrependUint32Slot,
    "i": flatbuffers.Builder.PrependInt32Slot,
}


def _pack_target(builder: Any, kind: Kind, value: Any) -> int:
    if isinstance(kind, Text):
        return int(builder.CreateString(value))
    if isinstance(kind, Table):
        return _pack_table(builder, kind.name, value)
    if isinstance(kind, Union):
        return _pack_table(builder, value["kind"], value)
    if not isinstance(kind, Many):
        raise ValueError(f"{kind} refers to nothing")
    if isinstance(kind.of, Number):
        builder.StartVector(4, len(value), 4)
        for each in reversed(value):
            builder.PrependFloat32(each)
    else:
        offsets = [_pack_target(builder, kind.of, each) for each in value]
        builder.StartVector(4, len(offsets), 4)
        for offset in reversed(offsets):
            builder.PrependUOffsetTRelative(offset)
    return int(builder.EndVector())


class _Reader:
    """Reads tables out of bytes that may be damaged; all errors are ValueError."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._items = 0
        self._text_bytes = 0

    def number(self, form: str, place: int) -> Any:
        end = place + struct.calcsize("<" + form)
        if not 0 <= place < end <= len(self._data):
            raise ValueError(f"byte {place} of {len(self._data)} is referred to")
        return struct.unpack_from("<" + form, self._data, place)[0]

    def follow(self, place: int) -> int:
        """Where an offset that stands at `place` leads."""
        return place + int(self.number("I", place))

    def table(self, place: int, name: str) -> dict[str, Any]:
        self._count(1)
        fields = place - self.number("i", place)
        size = self.number("H", fields)
        found: dict[str, Any] = {}
        for slot, field, kind in _slots(name):
            value = self._field(place, fields, size, slot, kind)
            if value is not None:
                found[field] = value
        return found

    def _place(self, place: int, fields: int, size: int, slot: int) -> int | None:
        offset = self.number("H", fields + 4 + 2 * slot) if 6 + 2 * slot <= size else 0
        return place + offset if offset else None

    def _field(self, place: int, fields: int, size: int, slot: int, kind: Kind) -> Any:
        at = self._place(place, fields, size, slot)
        if at is None:
            return None
        if isinstance(kind, Number):
            return self.number(kind.format, at)
        if isinstance(kind, Union):
            number = self.number("B", at)
            target = self._place(place, fields, size, slot + 1)
            if target is None or not 1 <= number <= len(kind.names):
                return None  # a table that is not listed here
            table = kind.names[number - 1]
            return {"kind": table, **self.table(self.follow(target), table)}
        if isinstance(kind, Many):
            return self._list(self.follow(at), kind.of)
        return self._target(self.follow(at), kind)

    def _target(self, place: int, kind: Kind) -> Any:
        if isinstance(kind, Table):
            return self.table(place, kind.name)
        length = self.number("I", place)
        self._count(1)
        self._text_bytes += length
        if self._text_bytes > MAX_TEXT_BYTES:
            raise ValueError(f"its text is longer than {MAX_TEXT_BYTES:,} bytes")
        if place + 4 + length > len(self._data):
            raise ValueError(f"a text of {length} bytes begins at byte {place} of {len(self._data)}")
        return self._data[place + 4 : place + 4 + length].decode()

    def _list(self, place: int, of: Kind) -> list[Any]:
        count = self.number("I", place)
        self._count(count)
        places = range(place + 4, place + 4 + 4 * count, 4)
        if isinstance(of, Number):
            return [self.number(of.format, each) for each in places]
        return [self._target(self.follow(each), of) for each in places]

    def _count(self, items: int) -> None:
        self._items += items
        if self._items > MAX_ITEMS:
            raise ValueError(f"it has more than {MAX_ITEMS:,} entries")
