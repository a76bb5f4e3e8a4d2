"""Files of data sets, which strangers made: regular ones only, read whole, every fault named."""

from __future__ import annotations

import gzip
import json
import math
import os
import stat
import zlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsod.errors import DataError

__all__ = [
    "CORNERS",
    "MAX_CLASSES",
    "Member",
    "check_regular",
    "corners",
    "files_below",
    "finite",
    "inside",
    "read_bytes",
    "read_classes",
    "read_json",
    "read_lines",
]

MAX_CLASSES = 1_000_000
"""Labels from this on are refused: a table a class would not fit."""

CORNERS = ("x0", "y0", "x1", "y1")
"""What a box's columns or keys are called."""

MOST_LINKS = 100
"""To one folder: links to each other's folders make endlessly many paths of a few."""

MAX_UNPACKED = 1 << 28
"""Bytes a gzipped list may unpack to: a small file can hold any number."""


@dataclass(frozen=True)
class Member:
    """A file within a file, such as a tar's.

    Args:
        path: the outer file.
        name: of the inner one.
        start: its first byte in the outer one.
        size: its bytes.
    """

    path: Path
    name: str
    start: int
    size: int

    def __str__(self) -> str:
        return f"{self.path}: {self.name}"

    def read_bytes(self) -> bytes:
        """What it holds.

        Raises:
            DataError: naming it, where that is too much or cannot be read.
        """
        if self.size > MAX_UNPACKED:
            raise DataError(self, f"at most {MAX_UNPACKED} bytes", self.size)
        try:
            with self.path.open("rb") as file:
                file.seek(self.start)
                content = file.read(self.size)
        except OSError as error:
            raise DataError(self, "a readable file", error) from error
        if len(content) != self.size:
            raise DataError(self, f"{self.size} bytes", len(content), "The file around it is cut short.")
        return content


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


def read_bytes(path: Path | Member, what: str) -> bytes:
    """All of a file, a gzipped one unpacked.

    Args:
        path: the file.
        what: it should be, for messages.

    Raises:
        DataError: where it is missing, no ordinary file, cannot be read or unpacks to too much.
    """
    if isinstance(path, Member):
        return path.read_bytes()
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


def read_lines(path: Path | Member) -> list[str]:
    """The non-empty lines of a text file (gzipped ones too), stripped.

    Raises:
        DataError: naming the file, where it cannot be read.
    """
    try:
        text = read_bytes(path, "a text file").decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(path, "a readable text file", error) from error
    return [line.strip() for line in text.splitlines() if line.strip()]


def files_below(folder: Path) -> list[Path]:
    """All files in a folder and those below it, in order; linked ones too, unless they hold the link.

    Raises:
        DataError: naming a folder that cannot be read, or one with too many links to it.
    """

    def refuse(error: OSError) -> None:
        raise DataError(error.filename, "a folder that can be read", error.strerror)

    found, reached = [], Counter[str]()
    for here, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        real = os.path.realpath(here)
        reached[real] += 1
        if reached[real] > MOST_LINKS:
            raise DataError(here, f"at most {MOST_LINKS} links to one folder", "more")
        if here != str(folder) and Path(here).parent.resolve().is_relative_to(real):
            folders.clear()
            continue
        found += [Path(here, name) for name in names]
    return sorted(path for path in found if path.is_file())


def read_classes(path: Path) -> tuple[str, ...]:
    """Class names, one a line.

    Raises:
        DataError: naming the file, without any, or with one twice.
    """
    names = tuple(read_lines(path))
    if len(set(names)) != len(names) or not names:
        raise DataError(path, "different class names, one a line", f"{len(names)} lines")
    return names


def read_json(path: Path | Member) -> Any:
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


def corners(row: Mapping[str, Any], where: object) -> tuple[float, ...]:
    """A row's x0, y0, x1, y1.

    Raises:
        DataError: naming the row, for anything but finite numbers.
    """
    try:
        return tuple(finite(row.get(key)) for key in CORNERS)
    except ValueError:
        got = str([row.get(key) for key in CORNERS])[:200]
        raise DataError(where, "numbers x0, y0, x1, y1", got) from None


def inside(name: object, where: object, what: str) -> str:
    """A name that is a path below some folder, and nowhere else.

    Raises:
        DataError: at `where`, for an absolute path, one that climbs, or one that names no file.
    """
    parts = name.split("/") if isinstance(name, str) else [""]
    if parts[0] == "" or parts[-1] in ("", ".") or ".." in parts or "\0" in str(name):
        raise DataError(where, what, repr(name)[:200])
    return str(name)
