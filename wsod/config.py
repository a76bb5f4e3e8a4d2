"""TOML files and `key=value` options bound to dataclasses, every wrong key or type named."""

from __future__ import annotations

import dataclasses
import math
import numbers
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import tomli_w

from wsod.errors import ConfigError
from wsod.output import write_text
from wsod.registry import nearest
from wsod.textfiles import read_text

__all__ = [
    "bind",
    "convert",
    "dump_toml",
    "merge",
    "parse_settings",
    "parse_value",
    "plain",
    "read_toml",
    "write_text",
]

T = TypeVar("T")
MAX_DOTS = 500


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file's tables, or a ConfigError naming the file and line."""
    try:
        text = read_text(path)
        if max((line.count(".") for line in text.splitlines()), default=0) > MAX_DOTS:
            # the parser's time grows with the square of a key's parts
            raise ConfigError(path, f"lines of at most {MAX_DOTS} dots", "a key without end")
        return tomllib.loads(text)
    except (OSError, ValueError, RecursionError) as error:  # no UTF-8, no TOML, nested without end
        raise ConfigError(path, "a readable TOML file", error) from error


def parse_settings(settings: Iterable[str]) -> dict[str, Any]:
    """`["train.lr=1e-5", "data.split=val"]` as nested tables; values are TOML, or plain words.

    >>> parse_settings(["a.b=1", "a.c=word", "d=[1, 2]"])
    {'a': {'b': 1, 'c': 'word'}, 'd': [1, 2]}
    """
    tables: dict[str, Any] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"--set {setting}", "key=value", repr(setting))
        value = parse_value(text)
        for part in reversed(key.strip().split(".")):
            value = {part: value}
        tables = merge(tables, value)
    return tables


def parse_value(text: str) -> Any:
    """A TOML value, or the word itself.

    >>> [parse_value(text) for text in ("1e-5", "[1, 2]", "word", "1\\nb = 2")]
    [1e-05, [1, 2], 'word', '1\\nb = 2']
    """
    try:
        table = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    return table["value"] if len(table) == 1 else text


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Tables merged key by key, `over` winning.

    >>> merge({"a": {"b": 1, "c": 2}}, {"a": {"c": 3}})
    {'a': {'b': 1, 'c': 3}}
    """
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        both = isinstance(old, Mapping) and isinstance(value, Mapping)
        merged[key] = merge(old, value) if both else value  # type: ignore[arg-type]
    return merged


def bind(cls: type[T], table: Mapping[str, Any], where: object) -> T:
    """An instance of the dataclass `cls` from a table, its types checked.

    See `convert` for the types that are understood.

    Raises:
        ConfigError: for an unknown key (with the nearest known one), a missing key or a wrong type.
    """
    if not isinstance(table, Mapping):
        raise ConfigError(where, "a table of options", repr(table))
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}  # type: ignore[arg-type]
    for key in table:
        if key not in fields:
            raise ConfigError(where, "a known option", repr(key), nearest(key, fields))
    values = {}
    for name, spec in fields.items():
        if name in table:
            values[name] = convert(hints[name], table[name], f"{where}: {name}")
        elif spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING:
            raise ConfigError(where, f"the option {name!r}", "none")
    return cls(**values)


# NumPy's numbers are numbers
_KINDS: dict[Any, Any] = {
    bool: bool,
    int: numbers.Integral,
    float: numbers.Real,
    str: str,
    Path: (str, Path),
}


def convert(hint: Any, value: Any, where: str) -> Any:
    """A value as an option of that type.

    Understands bool, int, float (finite; an int will do), str, Path, Literal, X | None, tuple[X, ...],
    Sequence[X] and list[X] (lists), dict[str, X] and dataclasses; of another type a value is taken as it is.

    Raises:
        ConfigError: for a value of another type.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        kinds = [kind for kind in arguments if kind is not type(None)]
        for kind in kinds[:-1]:
            try:
                return convert(kind, value, where)
            except ConfigError:
                continue
        return convert(kinds[-1], value, where)
    if origin is typing.Literal:
        if value not in arguments or isinstance(value, bool) != isinstance(arguments[0], bool):
            raise ConfigError(where, "one of " + ", ".join(map(repr, arguments)), repr(value))
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(where, "a list", repr(value))
        if arguments[-1] is Ellipsis:
            arguments = (arguments[0],) * len(value)
        elif len(arguments) != len(value):
            raise ConfigError(where, f"{len(arguments)} values", f"{len(value)}")
        pairs = zip(arguments, value, strict=True)
        return tuple(convert(kind, item, f"{where}[{i}]") for i, (kind, item) in enumerate(pairs))
    if origin in (Sequence, list):
        if not isinstance(value, list | tuple):
            raise ConfigError(where, "a list", repr(value))
        return [convert(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value)]
    if origin in (dict, Mapping):
        if not isinstance(value, Mapping):
            raise ConfigError(where, "a table", repr(value))
        return {key: convert(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if dataclasses.is_dataclass(hint):
        if isinstance(value, typing.cast(type, hint)):
            return value
        return bind(typing.cast(type, hint), value, where)
    if hint not in _KINDS:
        return value
    wanted = _KINDS[hint]
    if not isinstance(value, wanted) or (isinstance(value, bool) and hint is not bool):
        raise ConfigError(where, f"a value of type {hint.__name__}", repr(value))
    try:
        converted = hint(value)
    except OverflowError:
        raise ConfigError(where, f"a value of type {hint.__name__}", f"{str(value)[:20]}…") from None
    if hint is float and not math.isfinite(converted):
        raise ConfigError(where, "a finite number", value)  # NaN would pass every check of a range
    return converted


def plain(value: Any) -> Any:
    """A dataclass tree as JSON- and TOML-able tables; None fields are left out."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        items = ((f.name, getattr(value, f.name)) for f in dataclasses.fields(value) if f.init)
        return {name: plain(item) for name, item in items if item is not None}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def dump_toml(value: Any) -> str:
    """A dataclass tree or table as TOML text."""
    return tomli_w.dumps(plain(value))
