"""Files of data sets, which strangers made: regular ones only, read whole, every fault named."""

from __future__ import annotations

import gzip
import json
import math
import stat
import zlib
from pathlib import Path
from typing import Any

from wsod.errors import DataError

__all__ = ["MAX_CLASSES", "check_regular", "finite", "inside", "read_bytes", "read_json", "read_lines"]

MAX_CLASSES = 1_000_000
"""Labels from this on are refused: a table a class would not fit."""

MAX_UNPACKED = 1 << 28
"""Bytes a gzipped list may unpack to: a small file can hold any number."""


def check_regular(path: Path, what: str) -> None:
    """Refuse what is no ordinary file: a pipe would be waited for, a device never ends.

    Raises:
        DataError: naming the path.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise DataError(path, what, "no such file") from None
    except (OSError, ValueError) as error:  # a loop of links, a name too long, a NUL in it
        raise DataError(path, what, error) from error
    if not stat.S_ISREG(mode):
        raise DataError(path, what, "a folder" if stat.S_ISDIR(mode) else "a pipe or device")


def read_bytes(path: Path, what: str) -> bytes:
    """All of a file, a gzipped one unpacked.

    Args:
        path: the file.
        what: it should be, for messages.

    Raises:
        DataError: where it is missing, no ordinary file, cannot be read or unpacks to too much.
    """
    check_regular(path, what)
    try:
        if path.suffix != ".gz":
            return path.read_bytes()
        with gzip.open(path) as file:
            content = file.read(MAX_UNPACKED + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(path, "a readable gzipped list", error) from error
    if len(content) > MAX_UNPACKED:
        raise DataError(path, f"at most {MAX_UNPACKED} bytes unpacked", "more")
    return content


def read_lines(path: Path) -> list[str]:
    """The non-empty lines of a text file (gzipped ones too), stripped.

    Raises:
        DataError: naming the file, where it cannot be read.
    """
    try:
        text = read_bytes(path, "a text file").decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(path, "a readable text file", error) from error
    return [line.strip() for line in text.splitlines() if line.strip()]


def read_json(path: Path) -> Any:
    """The value a JSON file holds.

    Raises:
        DataError: naming the file, where it is missing or no JSON.
    """
    try:
        return json.loads(read_bytes(path, "a JSON file"))
    except (ValueError, RecursionError) as error:
        raise DataError(path, "JSON that parses", error) from error


def finite(value: object) -> float:
    """A finite number, from a number or its text.

    Raises:
        ValueError: for anything else, true and false, and Python's own spellings such as 1_000.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"no number: {value!r}")
    if isinstance(value, str) and ("_" in value or not value.isascii()):
        raise ValueError(f"no number: {value!r}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"no finite number: {value!r}")
    return number


def inside(name: object, where: object, what: str) -> str:
    """A name that is a path below some folder, and nowhere else.

    Raises:
        DataError: at `where`, for an absolute path, one that climbs, or one that names no file.
    """
    parts = name.split("/") if isinstance(name, str) else [""]
    if parts[0] == "" or parts[-1] in ("", ".") or ".." in parts or "\0" in str(name):
        raise DataError(where, what, repr(name)[:200])
    return str(name)
