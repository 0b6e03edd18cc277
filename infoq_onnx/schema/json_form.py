"""Conversion of dataclasses to JSON and back."""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from typing import Any, Literal, TypeVar

T = TypeVar("T")

OMITTED = "omitted"
"""Metadata of a field that is left out of the JSON while it is None, as small files and older versions want."""


def to_json(value: Any, *, compact: bool = False) -> str:
    """Serialise a dataclass as JSON with sorted keys. Equal values give the same bytes.

    Parameters
    ----------
    value : an instance of a dataclass
    compact : write no white space; otherwise, indent by one space and add a final newline

    Returns
    -------
    str
    """
    fields = dataclasses.asdict(value)
    for field in dataclasses.fields(value):
        if field.metadata.get(OMITTED) and fields[field.name] is None:
            del fields[field.name]
    if compact:
        return json.dumps(fields, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return json.dumps(fields, sort_keys=True, indent=1, allow_nan=False) + "\n"


class UnknownField(ValueError):  # noqa: N818 - a kind of ValueError, told apart where files are read
    """The JSON has a field that the class does not have."""


def from_json(cls: type[T], text: str) -> T:
    """Rebuild a dataclass from the text of `to_json`.

    Parameters
    ----------
    cls : the dataclass
    text : the JSON text

    Returns
    -------
    T
        An instance of `cls`.

    Raises
    ------
    UnknownField
        A field does not exist in the class. The message names the field.
    ValueError
        The text is not JSON, or a value does not match the class. The message names the field.
    """
    return from_object(cls, json.loads(text))


def from_object(cls: type[T], value: Any) -> T:
    """Rebuild a dataclass from parsed JSON. Raises the errors of `from_json`."""
    return typing.cast(T, _build(cls, value, cls.__name__))


def _build(kind: Any, value: Any, where: str) -> Any:
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        if not isinstance(value, dict):
            raise ValueError(f"{where}: expected an object, found {type(value).__name__}")
        hints = typing.get_type_hints(kind)
        names = {f.name for f in dataclasses.fields(kind)}
        if unknown := sorted(set(value) - names):
            raise UnknownField(f"{where}: unknown field {unknown[0]!r}")
        needed = {f.name for f in dataclasses.fields(kind) if f.default is f.default_factory is dataclasses.MISSING}
        if missing := sorted(needed - set(value)):
            raise ValueError(f"{where}: field {missing[0]!r} is missing")
        return kind(**{name: _build(hints[name], value[name], f"{where}.{name}") for name in sorted(value)})
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        return _build(next(a for a in args if a is not type(None)), value, where)
    if origin is tuple:
        if not isinstance(value, list):
            raise ValueError(f"{where}: expected a list, found {type(value).__name__}")
        return tuple(_build(args[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            raise ValueError(f"{where}: expected an object, found {type(value).__name__}")
        return {key: _build(args[1], item, f"{where}[{key!r}]") for key, item in value.items()}
    if origin is Literal:
        if value not in args:
            raise ValueError(f"{where}: expected one of {', '.join(map(str, args))}, found {value!r}")
        return value
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError as error:
            raise ValueError(f"{where}: the number is too large") from error
    if kind is float and isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where}: {value} is not a finite number")
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ValueError(f"{where}: expected {kind.__name__}, found {type(value).__name__}")
    return value
