"""Frozen dataclasses that are at home in JSON; `records.py` and `run_records.py` hold them."""

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, Self

from mobileprune.errors import OutputError

Json = dict[str, Any]


class Record:
    """JSON round trip for frozen dataclasses: nested records, tuples and optional fields."""

    def to_json(self) -> Json:
        """The record as plain JSON types; tuples become lists."""
        fields = dataclasses.fields(typing.cast(Any, self))
        return {field.name: _plain(getattr(self, field.name)) for field in fields}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The record that `to_json` wrote.

        Raises:
            OutputError: a field is missing, or one is not known.
        """
        if not isinstance(data, Mapping):
            raise OutputError(f"Not a {cls.__name__}: {data!r:.60}.")
        hints = typing.get_type_hints(cls)
        names = {field.name for field in dataclasses.fields(typing.cast(Any, cls))}
        unknown = sorted(set(data) - names)
        if unknown:
            raise OutputError(f"{cls.__name__} has no field {unknown[0]!r}; it has {', '.join(sorted(names))}.")
        try:
            return cls(**{name: _typed(hints[name], value) for name, value in data.items()})
        except TypeError as error:
            raise OutputError(f"Not a complete {cls.__name__}: {error}.") from error


def _plain(value: Any) -> Any:
    if isinstance(value, Record):
        return value.to_json()
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return value


def _typed(hint: Any, value: Any) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if value is None or hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        return _typed(next(kind for kind in arguments if kind is not type(None)), value)
    if isinstance(hint, type) and issubclass(hint, Record):
        return hint.from_json(value)
    if origin is tuple:
        return tuple(_typed(arguments[0], item) for item in value)
    if origin is dict:
        return {key: _typed(arguments[1], item) for key, item in value.items()}
    return value
