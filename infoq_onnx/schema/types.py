"""Check the types of settings and arguments, as programs may give them.

Only types that a caller is likely to confuse are checked: numbers, texts, paths, lists and mappings of these, and
choices. Everything else, such as a reporter, passes.
"""

from __future__ import annotations

import functools
import inspect
import numbers
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

from infoq_onnx.errors import SettingsError, enumerated, setting

P = ParamSpec("P")
R = TypeVar("R")

_NAMES = {int: "a whole number", float: "a number", bool: "True or False", str: "a text", Path: "a path"}


def require_types(settings: object) -> None:
    """Refuse settings (a dataclass) of the wrong types.

    Raises
    ------
    SettingsError
        The message names the setting and the type that it has to have.
    """
    for name, kind in get_type_hints(type(settings)).items():
        _require(name, getattr(settings, name), kind)


def typed(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function to refuse arguments of the wrong types, and empty paths, with a `SettingsError`."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        hints = get_type_hints(function)
        for name, value in signature.bind(*args, **kwargs).arguments.items():
            kind = hints[name]
            if signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
                continue
            _require(name, value, kind)
            if value == "" and Path in get_args(kind):
                # it would mean the working folder
                raise SettingsError(f"{setting(name)} '': the path is empty")
        return function(*args, **kwargs)

    return checked


def _require(name: str, value: Any, kind: Any) -> None:
    if not _matches(value, kind):
        raise SettingsError(f"{setting(name)} {value!r}: give {_described(kind)}")


def _matches(value: Any, kind: Any) -> bool:
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return any(_matches(value, one) for one in args)
    if origin is Literal:
        return value in args
    if origin is Mapping:
        return isinstance(value, Mapping) and all(
            _matches(key, args[0]) and _matches(one, args[1]) for key, one in value.items()
        )
    if origin in (tuple, Sequence):
        # a text is a sequence of letters, which is never meant
        is_list = isinstance(value, Sequence) and not isinstance(value, str | bytes)
        fixed = origin is tuple and Ellipsis not in args
        return is_list and (not fixed or len(value) == len(args)) and all(_matches(one, args[0]) for one in value)
    if kind in (int, float):
        return isinstance(value, numbers.Integral if kind is int else numbers.Real) and not isinstance(value, bool)
    if kind in (str, bool, Path, type(None)):
        return isinstance(value, kind)
    return not isinstance(value, int | float | str | bytes | list | tuple | dict | None)


def _described(kind: Any) -> str:
    return enumerated(_alternatives(kind), "or")


def _alternatives(kind: Any) -> list[str]:
    """Describe each of the types or values that are allowed."""
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        # a path may be given as text
        named = [one for one in args if one is not type(None) and not (one is str and Path in args)]
        return [text for one in named for text in _alternatives(one)] + ["None"] * (type(None) in args)
    if origin is Literal:
        return [repr(one) for one in args]
    return [_named(kind)]


def _named(kind: Any) -> str:
    """Describe a type that has no alternatives."""
    origin, args = get_origin(kind), get_args(kind)
    if origin is Mapping:
        return f"a mapping of {_described(args[0])} to {_described(args[1])}"
    if origin in (tuple, Sequence):
        return f"a list, each of it {_described(args[0])}"
    return "a function" if origin is Callable else _NAMES.get(kind, f"a {getattr(kind, '__name__', kind)}")
