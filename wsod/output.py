"""What is written: files whole or not at all, a folder by one process at a time."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Literal

from wsod.errors import OutputError

__all__ = ["append_line", "only_writer", "refuse_link", "remove", "shortened", "write_bytes", "write_text"]


def write_bytes(path: Path, content: bytes, *, held: bool = False) -> None:
    """Write a file whole or not at all: aside first, then renamed.

    Args:
        path: the file.
        content: all of it.
        held: no other process writes it now (`only_writer`), so what a killed one left aside is written over.

    Raises:
        OutputError: naming the file, where that fails; what was there before still is.
    """
    if not path.name:
        raise OutputError(path, "the name of a file", "a folder")
    aside = path.with_name(f".{shortened(path.name)}.{0 if held else os.getpid()}.tmp")
    try:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            aside.write_bytes(content)
            aside.replace(path)
        finally:
            with suppress(OSError):
                aside.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(path, "a file that can be written", error.strerror or error) from error


def shortened(name: str, most: int = 220) -> str:
    """A file's name of at most so many bytes, one of its own for each: file systems take 255.

    >>> shortened("a" * 99, 30)
    'aaaaaaaaaaaaa.132844681d57d5ae'
    """
    raw = os.fsencode(name)
    digest = sha256(raw).hexdigest()[:16]
    return name if len(raw) <= most else f"{raw[: most - 17].decode(errors='ignore')}.{digest}"


def write_text(path: Path, text: str, *, held: bool = False) -> None:
    """Write a text file as `write_bytes` does. Half characters become escapes, which JSON reads back."""
    write_bytes(path, text.encode("utf-8", "backslashreplace"), held=held)


def append_line(path: Path, line: str) -> None:
    """Add a line to a file in one go. A process killed there leaves it whole or cut short, never mixed.

    Raises:
        OutputError: naming the file.
    """
    content = f"{line}\n".encode("utf-8", "backslashreplace")
    try:
        with path.open("ab", buffering=0) as file:
            if file.write(content) != len(content):
                raise OSError("no space left on the device")
    except OSError as error:
        raise OutputError(path, "a file that can be written", error.strerror or error) from error


def refuse_link(folder: Path) -> None:
    """Nothing is written outside of the output folder.

    Raises:
        OutputError: where a folder below it is a link.
    """
    if folder.is_symlink():
        hint = "Delete the link, or write to where it leads."
        raise OutputError(
            folder, "a folder of the output folder's own", f"a link to {folder.resolve()}", hint
        )


def remove(path: Path) -> None:
    """Delete a file, if it is there.

    Raises:
        OutputError: naming the file.
    """
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(path, "a file that can be deleted", error.strerror or error) from error


@contextmanager
def only_writer(folder: Path, among: Literal["alone", "first", "other"] = "alone") -> Iterator[None]:
    """Hold an output folder, made where there is none. The system lets go of it when the process ends.

    Args:
        folder: to write to.
        among: the processes of one run hold it together: the `first` one, as one `alone`, where no other
            process does; then the `other` ones. A run that was killed holds it until its last process ends.

    Raises:
        OutputError: where another run holds it, or it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):  # before hours of work, not behind them
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        handle = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise OutputError(folder, "a folder that can be written", error.strerror or error) from error
    try:
        if among != "other":
            _lock(handle, folder, shared=False)
        if among != "alone":
            _lock(handle, folder, shared=True)
        _HELD.add(handle)
        yield
    finally:
        _HELD.discard(handle)
        os.close(handle)


def _let_go() -> None:
    """In a forked process, which may outlive this one: the folder is its parent's."""
    while _HELD:
        os.close(_HELD.pop())


_HELD: set[int] = set()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)


def _lock(handle: int, folder: Path, *, shared: bool) -> None:
    try:
        import fcntl
    except ImportError:  # not on Windows
        return
    try:
        fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        hint = "Wait for it, or name another --out."
        raise OutputError(folder, "a folder no one else writes to", "another process at work", hint) from None
    except OSError:
        return  # a file system without locks
