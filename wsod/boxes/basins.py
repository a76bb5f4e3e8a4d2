"""Component boxes of smooth maps: a few dozen basins instead of one union a pixel.

A path that climbs stays above any threshold its start is above, so a basin (`wsod.boxes.hills`) cut at a
threshold is connected: its box at each of the 256 levels is one table, the level at which two basins meet is
one number, and joining basins from the highest level down (Kruskal) joins their tables. Exact for every map;
fast where basins are few. Conventions and results are those of `wsod.boxes.tree`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from wsod.boxes.hills import Found
from wsod.boxes.tree import Bytes, Ints, compiled

__all__ = ["MANY", "boxes_and_gaps", "fill_holes", "largest_boxes", "superlevel_boxes"]

Keys = NDArray[np.float64]
Nodes = tuple[Ints, Ints, Ints]
MANY = 1500
"""With more basins than this the union-find tree is as fast."""

# columns of the tables, each (basins, 256): smallest and largest x, first pixel in raster order, largest y
LEFT, RIGHT, FIRST, BOTTOM = 0, 1, 2, 3
FAR = np.int32(2**31 - 1)


@compiled
def _tables(values: Bytes, rows: Ints, hills: Ints, basin: Ints, n: int, room: Ints) -> Ints:
    """(n, 4, 256) extents of each basin's pixels of at least each level; FAR or -1 where it has none."""
    height, width = values.shape
    table = room[: n * 1024].reshape(n, 4, 256)
    for b in range(n):
        table[b, LEFT] = FAR
        table[b, RIGHT] = -1
        table[b, FIRST] = FAR
        table[b, BOTTOM] = -1
    for y in range(height):
        row = values[y]
        for hill in range(rows[y], rows[y + 1]):
            own = table[basin[hill]]
            peak = hills[hill, 1]
            for x in range(hills[hill, 0], peak + 1):
                level = row[x]
                own[LEFT, level] = min(own[LEFT, level], x)
                own[FIRST, level] = min(own[FIRST, level], y * width + x)
            for x in range(peak, hills[hill, 2] + 1):
                level = row[x]
                own[RIGHT, level] = max(own[RIGHT, level], x)
            own[BOTTOM, row[peak]] = y
    for b in range(n):
        own = table[b]
        for level in range(254, -1, -1):
            own[LEFT, level] = min(own[LEFT, level], own[LEFT, level + 1])
            own[RIGHT, level] = max(own[RIGHT, level], own[RIGHT, level + 1])
            own[FIRST, level] = min(own[FIRST, level], own[FIRST, level + 1])
            own[BOTTOM, level] = max(own[BOTTOM, level], own[BOTTOM, level + 1])
    return table


@compiled
def _passes(
    values: Bytes, rows: Ints, hills: Ints, basin: Ints, n: int, eight: bool, room: Ints
) -> tuple[Ints, Ints]:
    """Pairs of basins that touch, by descending level of the pass; (e, 2), and starts[255 - level]."""
    height = values.shape[0]
    reach = 1 if eight else 0
    # rows of h and k hills touch at most 1.5 (h + k) times
    edges = room[n * 1280 : n * 1280 + (4 * len(hills) + 4) * 3].reshape(4 * len(hills) + 4, 3)
    n = 0
    for y in range(height):
        row = values[y]
        for hill in range(rows[y], rows[y + 1] - 1):
            if basin[hill] != basin[hill + 1]:
                end = hills[hill, 2]
                edges[n, 0], edges[n, 1] = basin[hill], basin[hill + 1]
                edges[n, 2] = min(row[end], row[end + 1])
                n += 1
        if y + 1 == height:
            break
        below = values[y + 1]
        first = rows[y + 1]
        for hill in range(rows[y], rows[y + 1]):
            start, end = hills[hill, 0], hills[hill, 2]
            while hills[first, 2] + reach < start:
                first += 1
            other = first
            while other < rows[y + 2] and hills[other, 0] <= end + reach:
                if basin[other] != basin[hill]:
                    left, right = hills[other, 0], hills[other, 2]
                    best = 0
                    for x in range(max(start, left - reach), min(end, right + reach) + 1):
                        top = 0
                        for u in range(max(left, x - reach), min(right, x + reach) + 1):
                            top = max(top, below[u])
                        best = max(best, min(row[x], top))
                    if best > 0:
                        edges[n, 0], edges[n, 1], edges[n, 2] = basin[hill], basin[other], best
                        n += 1
                other += 1
    starts = np.zeros(257, np.int32)
    for e in range(n):
        starts[256 - edges[e, 2]] += 1
    for level in range(256):
        starts[level + 1] += starts[level]
    place = starts.copy()
    pairs = np.empty((n, 2), np.int32)
    for e in range(n):
        level = 255 - edges[e, 2]
        pairs[place[level], 0], pairs[place[level], 1] = edges[e, 0], edges[e, 1]
        place[level] += 1
    return pairs, starts


@compiled
def _top(parent: Ints, b: int) -> int:
    while parent[b] != b:
        parent[b] = parent[parent[b]]
        b = parent[b]
    return b


@compiled
def _born(own: Ints) -> int:
    """The highest level at which a basin has a pixel."""
    level = 255
    while level > 0 and own[RIGHT, level] < 0:
        level -= 1
    return level


@compiled
def _join(into: Ints, other: Ints, level: int) -> None:
    """Extents of two basins together, at that level and below."""
    for at in range(level + 1):
        into[LEFT, at] = min(into[LEFT, at], other[LEFT, at])
        into[RIGHT, at] = max(into[RIGHT, at], other[RIGHT, at])
        into[FIRST, at] = min(into[FIRST, at], other[FIRST, at])
        into[BOTTOM, at] = max(into[BOTTOM, at], other[BOTTOM, at])


@compiled
def superlevel_boxes(
    values: Bytes, rows: Ints, hills: Ints, basin: Ints, n: int, eight: bool, room: Ints
) -> tuple[Ints, Ints, Ints]:
    """As `wsod.boxes.tree.superlevel_boxes`, from the basins of an order-preserving refinement.

    `room` is of `wsod.boxes.hills.room_for`, here and below.
    """
    width = values.shape[1]
    table = _tables(values, rows, hills, basin, n, room)
    pairs, starts = _passes(values, rows, hills, basin, n, eight, room)
    parent = np.arange(n).astype(np.int32)
    born = np.empty(n, np.int32)
    ended = np.zeros(n, np.int32)  # the level of the pass over which it was absorbed
    count = 0
    for b in range(n):
        born[b] = _born(table[b])
    for level in range(255, 0, -1):
        for e in range(starts[255 - level], starts[256 - level]):
            a, b = _top(parent, pairs[e, 0]), _top(parent, pairs[e, 1])
            if a != b:
                if born[b] > born[a]:
                    a, b = b, a
                parent[b] = a
                ended[b] = level
                _join(table[a], table[b], level)
    for b in range(n):
        count += max(born[b] - ended[b], 0)
    nodes = np.empty((count, 6), np.int32)
    count = 0
    for b in range(n):
        own = table[b]
        high = born[b]
        while high > ended[b]:
            low = high
            while (
                low - 1 > ended[b]
                and own[LEFT, low - 1] == own[LEFT, high]
                and own[RIGHT, low - 1] == own[RIGHT, high]
                and own[BOTTOM, low - 1] == own[BOTTOM, high]
                and own[FIRST, low - 1] // width == own[FIRST, high] // width
            ):
                low -= 1
            nodes[count, 0] = own[LEFT, high]
            nodes[count, 1] = own[FIRST, high] // width
            nodes[count, 2] = own[RIGHT, high]
            nodes[count, 3] = own[BOTTOM, high]
            # pixels of at least a level are those above the threshold one less
            nodes[count, 4], nodes[count, 5] = low - 1, high - 1
            count += 1
            high = low - 1
    return nodes[:count, :4].copy(), nodes[:count, 4].copy(), nodes[:count, 5].copy()


@compiled
def boxes_and_gaps(values: Bytes, upper: Found, lower: Found, holes: bool, room: Ints) -> tuple[Nodes, Nodes]:
    """`superlevel_boxes` of a map, and (with `holes`, else none) of the map upside down, 4-connected."""
    boxes = superlevel_boxes(values, *upper, True, room)
    if holes:
        return boxes, superlevel_boxes(~values, *lower, False, room)
    return boxes, (boxes[0][:0], boxes[1][:0], boxes[2][:0])


@compiled
def fill_holes(
    values: Bytes, scores: Keys, rows: Ints, hills: Ints, basin: Ints, n: int, room: Ints
) -> tuple[Bytes, Keys]:
    """As `wsod.boxes.tree.fill_holes`, from the 4-connected basins of the map turned upside down.

    A pixel's lowest pass to the border is the higher of itself and the pass of its basin's bottom.

    Args:
        values: (H, W) bytes.
        scores: (H, W) with `values` the truncation of 255 · scores.
        rows, hills, basin, n: 4-connected basins of `scores` with sign -1.

    Returns:
        The filled bytes, and keys that refine them.
    """
    height, width = values.shape
    inverted = ~values
    # highest level of the inverted map at which a basin itself has a border pixel
    outside = np.zeros(n, np.int32)
    for y in range(height):
        for hill in range(rows[y], rows[y + 1]):
            b = basin[hill]
            if y == 0 or y == height - 1:
                outside[b] = max(outside[b], inverted[y, hills[hill, 1]])
            if hills[hill, 0] == 0:
                outside[b] = max(outside[b], inverted[y, 0])
            if hills[hill, 2] == width - 1:
                outside[b] = max(outside[b], inverted[y, width - 1])
    pairs, starts = _passes(inverted, rows, hills, basin, n, False, room)
    # a basin's way out is the widest path to any basin's own exit: relax until none gets wider
    best = outside.copy()
    changed = True
    while changed:
        changed = False
        for level in range(255, 0, -1):
            for e in range(starts[255 - level], starts[256 - level]):
                a, b = pairs[e, 0], pairs[e, 1]
                through = min(level, best[b])
                if through > best[a]:
                    best[a], changed = through, True
                through = min(level, best[a])
                if through > best[b]:
                    best[b], changed = through, True
    filled = values.copy()
    raised = scores * 255
    for y in range(height):
        for hill in range(rows[y], rows[y + 1]):
            spill = 255 - best[basin[hill]]
            if values[y, hills[hill, 1]] >= spill:
                continue
            for x in range(hills[hill, 0], hills[hill, 2] + 1):
                if values[y, x] < spill:
                    # within the byte the old order: a raised bowl still climbs to its walls
                    raised[y, x] = spill + scores[y, x] * 255 / 256
                    filled[y, x] = spill
    return filled, raised


@compiled
def _areas(filled: Bytes, rows: Ints, hills: Ints, basin: Ints, n: int, room: Ints) -> Ints:
    """(n, 256) quads of at least three pixels, plus quads of four, of at least each level, by basin."""
    height, width = filled.shape
    labels = np.empty((2, width), np.int32)
    area = room[n * 1024 : n * 1280].reshape(n, 256)
    area[:] = 0
    for y in range(height):
        own = labels[y % 2]
        for hill in range(rows[y], rows[y + 1]):
            for x in range(hills[hill, 0], hills[hill, 2] + 1):
                own[x] = basin[hill]
        if y == 0:
            continue
        above, up, down = labels[1 - y % 2], filled[y - 1], filled[y]
        for x in range(width - 1):
            a, b, c, d = up[x], up[x + 1], down[x], down[x + 1]
            high_up, low_up = max(a, b), min(a, b)
            high_down, low_down = max(c, d), min(c, d)
            # three pixels on are neighbours of each other: they belong to the highest one's component
            if high_up >= high_down:
                label = above[x] if a >= b else above[x + 1]
            else:
                label = own[x] if c >= d else own[x + 1]
            area[label, min(max(low_up, low_down), min(high_up, high_down))] += 1
            area[label, min(low_up, low_down)] += 1
    for b in range(n):
        for level in range(254, -1, -1):
            area[b, level] += area[b, level + 1]
    return area


@compiled
def largest_boxes(filled: Bytes, rows: Ints, hills: Ints, basin: Ints, n: int, room: Ints) -> Ints:
    """As `wsod.boxes.tree.largest_boxes`, from the 8-connected basins of a refinement of `filled`."""
    width = filled.shape[1]
    table = _tables(filled, rows, hills, basin, n, room)
    area = _areas(filled, rows, hills, basin, n, room)
    pairs, starts = _passes(filled, rows, hills, basin, n, True, room)
    parent = np.arange(n).astype(np.int32)
    result = np.full((255, 4), -1, np.int32)
    live = np.arange(n).astype(np.int32)
    alive = n
    for level in range(255, 0, -1):
        for e in range(starts[255 - level], starts[256 - level]):
            a, b = _top(parent, pairs[e, 0]), _top(parent, pairs[e, 1])
            if a != b:
                parent[b] = a
                _join(table[a], table[b], level)
                for at in range(level + 1):
                    area[a, at] += area[b, at]
        best, kept = -1, 0
        for place in range(alive):
            b = live[place]
            if parent[b] != b:
                continue
            live[kept] = b
            kept += 1
            if table[b, RIGHT, level] < 0:
                continue
            if (
                best < 0
                or area[b, level] > area[best, level]
                or (
                    area[b, level] == area[best, level] and table[b, FIRST, level] > table[best, FIRST, level]
                )
            ):
                best = b
        alive = kept
        if best >= 0:
            own = table[best]
            result[level - 1, 0] = own[LEFT, level]
            result[level - 1, 1] = own[FIRST, level] // width
            result[level - 1, 2] = own[RIGHT, level]
            result[level - 1, 3] = own[BOTTOM, level]
    return result
