"""Text of ordinary files."""

from __future__ import annotations

import stat
from pathlib import Path

__all__ = ["read_text"]


def read_text(path: Path) -> str:
    """What a UTF-8 file holds. A pipe would be waited for, a device never ends.

    Raises:
        OSError: where it is missing, no ordinary file, or cannot be read.
        UnicodeDecodeError: where it is no UTF-8.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError("no ordinary file")
    return path.read_text("utf-8")
