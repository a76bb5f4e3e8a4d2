"""A memory of label maps: a class's pixels in the evaluation frame, read and resized once a process.

Decoding mask files costs many times what scoring a map against them does, and they are asked for again by
every metric, every row of maps and every later evaluation (each epoch of a training). Kept are packed and
compressed bits, about a kilobyte a label map, at most `LIMIT` in all; those not asked for longest go first.
A file that has changed is read again. Nothing is written to disk.
"""

from __future__ import annotations

import threading
import zlib
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["LIMIT", "LabelMaps"]

Mask = NDArray[np.bool_]
LIMIT = 64 * 2**20
"""Bytes."""
KEY = 500
"""Bytes of a key, about."""


class LabelMaps:
    """(foreground, ignore) masks by key, compressed. Threads may share it.

    Args:
        limit: bytes to keep at most.
    """

    def __init__(self, limit: int = LIMIT) -> None:
        self.limit, self.size = limit, 0
        self._kept: OrderedDict[Hashable, tuple[bytes, tuple[int, int]]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, masks: Any, key: Hashable, make: Callable[[], tuple[Mask, Mask]]) -> tuple[Mask, Mask]:
        """What `make` gives, from memory where it was made before from the same files.

        Args:
            masks: whose label map it is. Only frozen dataclasses with `files` (paths) are remembered: others
                are in memory anyway.
            key: what else the label map depends on.
            make: reads and resizes it, both masks of one shape.
        """
        files = getattr(masks, "files", ())
        if not files or not is_dataclass(masks) or isinstance(masks, type):
            return make()
        # a copy, without what the masks themselves may keep
        whole = (replace(masks), key, tuple(_version(path) for path in files))
        with self._lock:
            found = self._kept.get(whole)
            if found is not None:
                self._kept.move_to_end(whole)
        if found is not None:
            return _unpacked(*found)
        pair = make()
        packed = zlib.compress(np.packbits(np.stack(pair)).tobytes(), 1)
        with self._lock:
            if whole not in self._kept:
                self._kept[whole] = packed, (pair[0].shape[0], pair[0].shape[1])
                self.size += len(packed) + KEY
            while self.size > self.limit:
                _, (old, _) = self._kept.popitem(last=False)
                self.size -= len(old) + KEY
        return pair

    def __len__(self) -> int:
        return len(self._kept)


def _version(path: Path) -> tuple[int, int] | None:
    try:
        about = path.stat()
    except OSError:
        return None  # reading it will say what is wrong
    return about.st_mtime_ns, about.st_size


def _unpacked(packed: bytes, shape: tuple[int, int]) -> tuple[Mask, Mask]:
    bits = np.frombuffer(zlib.decompress(packed), np.uint8)
    pair = np.unpackbits(bits, count=2 * shape[0] * shape[1]).view(np.bool_)
    foreground, ignore = pair.reshape(2, *shape)
    return foreground, ignore
