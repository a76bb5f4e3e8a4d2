"""Named things: a dictionary that answers a wrong name with the nearest right one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import TypeVar

from wsod.errors import ConfigError

__all__ = ["Registry", "nearest"]

T = TypeVar("T")
SHOWN = 50


def nearest(name: str, choices: Mapping[str, object] | list[str]) -> str:
    """A hint: the closest choice, or all of them, where they are few.

    >>> nearest("gradcamm", ["cam", "gradcam"])
    "Did you mean 'gradcam'?"
    """
    close = get_close_matches(str(name), list(choices), n=1)
    if close:
        return f"Did you mean '{close[0]}'?"
    more = f", … ({len(choices)} in all)" if len(choices) > SHOWN else ""
    return f"Choose from: {', '.join(sorted(choices)[:SHOWN])}{more}."


class Registry(Mapping[str, T]):
    """A read-only mapping from name to entry. Adding an entry is one line where the registry is made.

    Args:
        kind: what the entries are, for messages ("map method").
        entries: the entries by name.
    """

    def __init__(self, kind: str, entries: Mapping[str, T]) -> None:
        self.kind = kind
        self._entries = dict(entries)

    def __getitem__(self, name: str) -> T:
        try:
            return self._entries[name]
        except KeyError:
            raise ConfigError(self.kind, "a known name", f"{name!r}", nearest(name, self._entries)) from None

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)
