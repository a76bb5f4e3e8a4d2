"""Errors a user can act on: one line that says where, what was expected, what was found, what to do."""

from __future__ import annotations

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DataError",
    "MapError",
    "ModelError",
    "OutputError",
    "ProcessError",
    "WsodError",
]


class WsodError(Exception):
    """Base of every error raised on bad input.

    Args:
        where: the file, option or argument at fault.
        expected: what should have been there.
        got: what was there.
        hint: what to do about it (optional, a sentence).

    >>> print(WsodError("a.xml", "a <size> element", "none", "Write width and height."))
    a.xml: expected a <size> element, got none. Write width and height.
    """

    def __init__(self, where: object, expected: str, got: object, hint: str = "") -> None:
        self.where, self.expected, self.got, self.hint = str(where), expected, str(got), hint
        line = f"{where}: expected {expected}, got {got}. {hint}"
        # half a character (of a file name that is no UTF-8) could not be printed
        super().__init__(" ".join(line.encode("utf-8", "backslashreplace").decode("utf-8").split()))

    def __reduce__(self) -> tuple[type[WsodError], tuple[str, str, str, str]]:
        # the default would rebuild from the one formatted line; worker processes pickle errors
        return type(self), (self.where, self.expected, self.got, self.hint)


class ConfigError(WsodError):
    """A wrong option, recipe, protocol or name."""


class DataError(WsodError):
    """A fault in images or annotations."""


class MapError(WsodError):
    """An attention map that cannot be scored: NaN, infinite, wrong shape, missing."""


class ModelError(WsodError):
    """A model a map method or objective cannot work on."""


class CheckpointError(WsodError):
    """A checkpoint that cannot be read or does not fit."""


class OutputError(WsodError):
    """A file or folder that cannot be written."""


class ProcessError(WsodError):
    """Another process of the same run that is gone."""
