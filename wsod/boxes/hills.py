"""Hills and basins: where every pixel gets to by climbing.

Every pixel climbs the unquantised map to one of its maxima; those that reach the same maximum are a
*basin*. Within a row the pixels that climb to the same peak are an interval, a *hill*; only the hills' peaks
look at the rows above and below. The order of pixels is (value, raster index), so that plateaus need no care.
"""

from __future__ import annotations

import threading

import numpy as np
from numpy.typing import NDArray

from wsod.boxes.tree import Bytes, Ints, compiled

__all__ = ["find_basins", "quantised", "room_for", "scratch", "survey", "tables_size"]

Keys = NDArray[np.float64]
_local = threading.local()


Found = tuple[Ints, Ints, Ints, int]


def scratch(size: int) -> Ints:
    """Room for at least so many numbers, kept by each thread.

    Fresh memory would cost more than filling it, and threads would wait for each other to get it.
    """
    buffer: Ints | None = getattr(_local, "buffer", None)
    if buffer is None or buffer.size < size:
        buffer = _local.buffer = np.empty(size, np.int32)
    return buffer


def room_for(*found: Found) -> Ints:
    """`scratch` for the tables of basins, and for the passes between their hills."""
    return scratch(max(tables_size(each) for each in found))


@compiled
def tables_size(found: Found) -> int:
    """How many numbers of room that takes."""
    return found[3] * 5 * 256 + (4 * len(found[2]) + 4) * 3


@compiled
def quantised(scores: Keys) -> tuple[Bytes, bool]:
    """Bytes of scores in [0, 1], truncated products with 255; and whether they all are in [0, 1]."""
    height, width = scores.shape
    values = np.empty((height, width), np.uint8)
    inside = True
    for y in range(height):
        for x in range(width):
            score = scores[y, x]
            # false for NaN too
            inside &= (score >= 0) & (score <= 1)
            values[y, x] = np.uint8(np.int32(score * 255))
    return values, inside


@compiled
def find_basins(keys: Keys, eight: bool, sign: float, room: Ints) -> Found:
    """The hills of each row and their basins.

    Args:
        keys: (H, W) any order-preserving refinement of the bytes.
        eight: climb to 8 neighbours, else to 4.
        sign: 1, or -1 for the map upside down.
        room: at least 3 · H · (W // 2 + 1) numbers of `scratch`.

    Returns:
        `(rows, hills, basin, n)`: hills rows[y] … rows[y + 1] - 1 lie in row y; hills (h, 3) start, peak
        and last column; (h,) basin of each, 0 … n - 1.
    """
    height, width = keys.shape
    rows = np.zeros(height + 1, np.int32)
    hills = room[: height * (width // 2 + 1) * 3].reshape(-1, 3)
    n = 0
    for y in range(height):
        row = keys[y]
        x = 0
        while x < width:
            hills[n, 0] = x
            while x + 1 < width and sign * row[x + 1] >= sign * row[x]:
                x += 1
            hills[n, 1] = x
            while x + 1 < width and sign * row[x + 1] < sign * row[x]:
                x += 1
            hills[n, 2] = x
            n += 1
            x += 1
        rows[y + 1] = n
    reach = 1 if eight else 0
    parent = np.empty(n, np.int32)
    for y in range(height):
        for hill in range(rows[y], rows[y + 1]):
            peak = hills[hill, 1]
            best = sign * keys[y, peak]
            to_y, to_x = -1, -1
            # below, equals are higher in the order; above they are lower
            if y + 1 < height:
                for x in range(max(peak - reach, 0), min(peak + reach + 1, width)):
                    if sign * keys[y + 1, x] >= best:
                        best, to_y, to_x = sign * keys[y + 1, x], y + 1, x
            if y > 0:
                for x in range(max(peak - reach, 0), min(peak + reach + 1, width)):
                    if sign * keys[y - 1, x] > best:
                        best, to_y, to_x = sign * keys[y - 1, x], y - 1, x
            parent[hill] = hill
            if to_y >= 0:
                low, high = rows[to_y], rows[to_y + 1] - 1
                while low < high:
                    middle = (low + high) // 2
                    if hills[middle, 2] < to_x:
                        low = middle + 1
                    else:
                        high = middle
                parent[hill] = low
    basin = np.full(n, -1, np.int32)
    count = 0
    for hill in range(n):
        top = hill
        while parent[top] != top and basin[top] < 0:
            top = parent[top]
        if basin[top] < 0:
            basin[top] = count
            count += 1
        found = basin[top]
        while basin[hill] < 0:
            basin[hill] = found
            hill = parent[hill]
    return rows, hills[:n].copy(), basin, count


@compiled
def survey(keys: Keys, holes: bool, room: Ints) -> tuple[Found, Found]:
    """The 8-connected basins, and the 4-connected ones of the map upside down (with `holes`, else the same).

    One call, so that threads seldom meet at the interpreter's lock.
    """
    upper = find_basins(keys, True, 1.0, room)
    return upper, find_basins(keys, False, -1.0, room) if holes else upper
