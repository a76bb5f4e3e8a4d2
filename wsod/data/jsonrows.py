"""The lists of a large JSON file, an object at a time: where each lies is kept, it is read when asked."""

from __future__ import annotations

import codecs
import json
import re
from array import array
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from wsod.errors import DataError

__all__ = ["JsonRows", "find_rows"]

Row = Mapping[str, Any]
CHUNK = 1 << 20
AGAIN = "Run again, and leave it alone meanwhile."
_SPACE = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder()


class JsonRows:
    """The objects of one list.

    Args:
        path: the file.
        columns: keys whose values, whole numbers, are kept.
    """

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        self.path = path
        self.starts, self.ends = array("q"), array("q")
        self.columns = {key: array("q") for key in columns}

    def __len__(self) -> int:
        return len(self.starts)

    def add(self, row: object, start: int, end: int) -> None:
        """One more, from the file's bytes `start` to `end`.

        Raises:
            ValueError: for anything but an object with its columns.
        """
        if not isinstance(row, dict):
            raise ValueError("no object")
        for key, column in self.columns.items():
            if type(row.get(key)) is not int or abs(row[key]) >= 1 << 63:
                raise ValueError(f"no whole number as {key}")
            column.append(row[key])
        self.starts.append(start)
        self.ends.append(end)

    def read(self, places: Iterable[int]) -> list[Row]:
        """The objects at these places of the list.

        Raises:
            DataError: where the file is no longer what it was.
        """
        rows = []
        try:
            with self.path.open("rb") as file:
                for n in places:
                    file.seek(self.starts[n])
                    row = json.loads(file.read(self.ends[n] - self.starts[n]))
                    if any(row[key] != column[n] for key, column in self.columns.items()):
                        raise ValueError("other numbers")
                    rows.append(row)
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise DataError(self.path, "the file as it was when it was opened", "another", AGAIN) from error
        return rows


def find_rows(path: Path, columns: Mapping[str, Sequence[str]]) -> dict[str, JsonRows] | None:
    """The lists of a JSON file's one object; None where it is of another form, or no JSON in UTF-8.

    The file is read once, from beginning to end, and an object is forgotten once it was seen.

    Args:
        path: an ordinary file.
        columns: by list, the keys that each of its objects has a whole number under.
    """
    try:
        with path.open("rb") as file:
            found = _Reader(file).lists(path, columns)
    except (OSError, ValueError, RecursionError):
        return None
    return found if found.keys() == columns.keys() else None


class _Reader:
    """JSON from a file, with as much of it in memory as its largest value takes."""

    def __init__(self, file: Any) -> None:
        self._file = file
        # a character a byte: places in the text are places in the file. Whether it is UTF-8 is seen beside
        self._text, self._at, self._dropped = "", 0, 0
        self._utf8, self._end = codecs.getincrementaldecoder("utf-8")(), False

    def _more(self) -> None:
        content = self._file.read(max(CHUNK, len(self._text) - self._at))
        self._end = not content
        self._utf8.decode(content, final=self._end)
        self._text = self._text[self._at :] + content.decode("latin-1")
        self._dropped, self._at = self._dropped + self._at, 0

    def _peek(self) -> str:
        """The next character that is no space; nothing at the end."""
        while True:
            match = _SPACE.match(self._text, self._at)
            assert match is not None
            self._at = match.end()
            if self._at < len(self._text) or self._end:
                return self._text[self._at : self._at + 1]
            self._more()

    def _take(self, wanted: str) -> str:
        found = self._peek()
        if not found or found not in wanted:
            raise ValueError(f"{found!r} where one of {wanted!r} belongs")
        self._at += 1
        return found

    def _value(self) -> tuple[Any, int, int]:
        """The next value, and the bytes it lies between."""
        self._peek()
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
                # a number may go on: after 12, and after the 0 of 0.
                if self._text[end : end + 1] not in ("", ".", "e", "E") or self._end:
                    break
            except ValueError:
                if self._end:
                    raise
            self._more()
        start, self._at = self._dropped + self._at, end
        return value, start, self._dropped + end

    def lists(self, path: Path, columns: Mapping[str, Sequence[str]]) -> dict[str, JsonRows]:
        found: dict[str, JsonRows] = {}
        self._take("{")
        while True:
            key = self._value()[0]
            if not isinstance(key, str):
                raise ValueError("no key")
            self._take(":")
            if key in columns:
                found[key] = self._rows(JsonRows(path, columns[key]))
            else:
                self._value()
            if self._take(",}") == "}":
                break
        if self._peek():
            raise ValueError("more than one value")
        return found

    def _rows(self, rows: JsonRows) -> JsonRows:
        self._take("[")
        if self._peek() == "]":
            self._take("]")
            return rows
        while True:
            rows.add(*self._value())
            if self._take(",]") == "]":
                return rows
