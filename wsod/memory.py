"""Work that does not fit in memory: done in halves, the smaller size kept and told once."""

from __future__ import annotations

import gc
import logging
import sys
from collections.abc import Callable, Iterator
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

__all__ = ["Room", "free", "ran_out", "room_for", "tell"]

T = TypeVar("T")
# torch's processor, GPUs and their libraries; none has a class of its own on every version
_SAID = ("out of memory", "allocate memory", "not enough memory", "alloc_failed", "bad_alloc")


def ran_out(error: BaseException) -> bool:
    """Whether an exception says that memory, the machine's or the accelerator's, ran out.

    >>> ran_out(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."))
    True
    >>> ran_out(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    False
    """
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in _SAID)


def free() -> None:
    """Give back what a failed attempt left behind. To be called after its exception is gone."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def tell(message: str) -> None:
    """One line to whoever listens to the logger `wsod`; by default, standard error."""
    logging.getLogger("wsod").warning(message)


class Room:
    """How many items fit at once: halved whenever memory runs out, from there on.

    Args:
        what: the items, for the line that says so.

    Attributes:
        size: the number that fits; as many as there are, until memory ran out.
    """

    def __init__(self, what: str) -> None:
        self.what, self.size = what, sys.maxsize
        self._tried = 0

    def over(self, items: Any, work: Callable[[Any], T]) -> Iterator[T]:
        """`work` of consecutive parts of the items, all at once where they fit.

        Work on a part that did not fit is done again from its beginning: it must leave nothing behind.

        Args:
            items: a list or tensor.
            work: of a slice of it.

        Raises:
            Exception: that of `work`; also where one item alone does not fit.
        """
        start = 0
        while start < len(items):
            part = items[start : start + self.size]
            short = False
            try:
                found = work(part)
            except Exception as error:
                short = len(part) > 1 and ran_out(error)
                if not short:
                    raise
            if short:  # the exception, which held on to what was made, is gone
                self._tried = self._tried or len(part)
                self.size = len(part) // 2
                free()
                continue
            if self._tried:
                tell(f"out of memory: from here on {self.size}, not {self._tried} {self.what}")
                self._tried = 0
            yield found
            start += len(part)


_ROOMS: WeakKeyDictionary[Any, dict[str, Room]] = WeakKeyDictionary()


def room_for(owner: Any, what: str) -> Room:
    """The room for such items, kept as long as their owner, such as a classifier, is there."""
    return _ROOMS.setdefault(owner, {}).setdefault(what, Room(what))
