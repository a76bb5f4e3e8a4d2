"""Component trees: the bounding boxes of all connected components at all thresholds.

Pixels are switched on from the highest value down and joined by union-find; a component's box is written
down with the interval of thresholds over which it lived whenever it changes or is absorbed. Cost does not
depend on the number of thresholds. The method is that of max-tree construction by union-find (Najman and
Couprie, IEEE TIP 2006), keeping boxes only.

Maps are of levels 0 … top: bytes with top 255, or the ranks of a map's distinct values. All boxes here are
(x0, y0, x1, y1) with x1, y1 the *last* pixel. At threshold T the mask is value > T.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

import numpy as np
from numba import njit
from numpy.typing import NDArray

__all__ = ["boxes_and_gaps", "compiled", "descending", "fill_holes", "largest_boxes", "superlevel_boxes"]

Bytes = NDArray[np.uint8]
Ints = NDArray[np.int32]
Levels = NDArray[np.uint8] | NDArray[np.int32]
Nodes = tuple[Ints, Ints, Ints]
Function = TypeVar("Function", bound=Callable[..., object])


def compiled(function: Function) -> Function:
    """Compile with the GIL released; kept on disk between runs where some cache folder can be written."""
    try:
        return cast(Function, njit(nogil=True, cache=True)(function))
    except RuntimeError:  # numba found no folder to write to
        return cast(Function, njit(nogil=True)(function))


@compiled
def descending(values: Levels, top: int) -> tuple[Ints, Ints]:
    """Pixel indices by descending value, raster order within a value; and where each value starts."""
    counts = np.zeros(top + 2, np.int32)
    flat = values.ravel()
    for pixel in range(flat.size):
        counts[top + 1 - flat[pixel]] += 1
    for value in range(top + 1):
        counts[value + 1] += counts[value]
    starts = counts.copy()
    order = np.empty(flat.size, np.int32)
    for pixel in range(flat.size):
        value = top - flat[pixel]
        order[counts[value]] = pixel
        counts[value] += 1
    return order, starts


@compiled
def _root(parent: Ints, pixel: int) -> int:
    while parent[pixel] != pixel:
        parent[pixel] = parent[parent[pixel]]
        pixel = parent[pixel]
    return pixel


@compiled
def superlevel_boxes(values: Levels, eight: bool, top: int) -> Nodes:
    """Boxes of the connected components of {values > T}, T = 0 … top - 1.

    Args:
        values: (H, W) levels.
        eight: 8-connected, else 4-connected.

    Returns:
        `(boxes, low, high)`: (n, 4), (n,), (n,) int32; the box is that of a component at T = low … high.
    """
    height, width = values.shape
    flat = values.ravel()
    order, starts = descending(values, top)
    parent = np.full(flat.size, -1, np.int32)
    box = np.empty((flat.size, 4), np.int32)
    born = np.empty(flat.size, np.int32)
    # a node ends by absorption (once a root) or by growth (once a pixel)
    nodes = np.empty((2 * flat.size, 6), np.int32)
    n = 0
    neighbours = 8 if eight else 4
    dxs = (1, -1, 0, 0, 1, -1, 1, -1)
    dys = (0, 0, 1, -1, 1, 1, -1, -1)
    for level in range(top, 0, -1):
        threshold = level - 1
        for place in range(starts[top - level], starts[top - level + 1]):
            pixel = order[place]
            y, x = pixel // width, pixel % width
            parent[pixel] = pixel
            root = pixel
            box[pixel, 0] = box[pixel, 2] = x
            box[pixel, 1] = box[pixel, 3] = y
            born[pixel] = threshold
            for k in range(neighbours):
                nx, ny = x + dxs[k], y + dys[k]
                if nx < 0 or ny < 0 or nx >= width or ny >= height or parent[ny * width + nx] < 0:
                    continue
                other = _root(parent, ny * width + nx)
                if other == root:
                    continue
                if born[other] > born[root]:
                    root, other = other, root
                # the older lives on; the younger has been seen at higher thresholds too unless new
                if born[other] > threshold:
                    nodes[n, :4] = box[other]
                    nodes[n, 4], nodes[n, 5] = threshold + 1, born[other]
                    n += 1
                parent[other] = root
                if (
                    box[other, 0] < box[root, 0]
                    or box[other, 1] < box[root, 1]
                    or box[other, 2] > box[root, 2]
                    or box[other, 3] > box[root, 3]
                ):
                    if born[root] > threshold:
                        nodes[n, :4] = box[root]
                        nodes[n, 4], nodes[n, 5] = threshold + 1, born[root]
                        n += 1
                        born[root] = threshold
                    box[root, 0] = min(box[root, 0], box[other, 0])
                    box[root, 1] = min(box[root, 1], box[other, 1])
                    box[root, 2] = max(box[root, 2], box[other, 2])
                    box[root, 3] = max(box[root, 3], box[other, 3])
    for pixel in range(flat.size):
        if parent[pixel] == pixel:
            nodes[n, :4] = box[pixel]
            nodes[n, 4], nodes[n, 5] = 0, born[pixel]
            n += 1
    return nodes[:n, :4].copy(), nodes[:n, 4].copy(), nodes[:n, 5].copy()


@compiled
def boxes_and_gaps(values: Levels, upside_down: Levels, holes: bool, top: int) -> tuple[Nodes, Nodes]:
    """`superlevel_boxes` of a map, and (with `holes`, else none) of the map upside down, 4-connected."""
    boxes = superlevel_boxes(values, True, top)
    if holes:
        return boxes, superlevel_boxes(upside_down, False, top)
    return boxes, (boxes[0][:0], boxes[1][:0], boxes[2][:0])


@compiled
def fill_holes(values: Levels, top: int) -> Levels:
    """(H, W) with every pixel raised to the lowest pass on its 4-connected ways to the border.

    Thresholding the result at any T gives the mask of `values` at T with its holes filled.
    """
    height, width = values.shape
    flat = values.ravel()
    filled = flat.copy()
    seen = np.zeros(flat.size, np.bool_)
    following = np.empty(flat.size, np.int32)
    head = np.full(top + 1, -1, np.int32)  # a linked stack of pixels for each level
    for y in range(height):
        for x in range(width):
            if y == 0 or x == 0 or y == height - 1 or x == width - 1:
                pixel = y * width + x
                seen[pixel] = True
                following[pixel] = head[flat[pixel]]
                head[flat[pixel]] = pixel
    for level in range(top + 1):
        while head[level] >= 0:
            pixel = head[level]
            head[level] = following[pixel]
            y, x = pixel // width, pixel % width
            for k in range(4):
                nx, ny = x + (1, -1, 0, 0)[k], y + (0, 0, 1, -1)[k]
                if nx < 0 or ny < 0 or nx >= width or ny >= height or seen[ny * width + nx]:
                    continue
                other = ny * width + nx
                seen[other] = True
                filled[other] = max(flat[other], level)
                following[other] = head[filled[other]]
                head[filled[other]] = other
    return filled.reshape(height, width)


@compiled
def _live(parent: Ints, roots: Ints, n: int) -> int:
    """Leaves out those of the first n that are roots no more; how many remain."""
    kept = 0
    for place in range(n):
        if parent[roots[place]] == roots[place]:
            roots[kept] = roots[place]
            kept += 1
    return kept


@compiled
def largest_boxes(filled: Levels, top: int) -> Ints:
    """Box of the component of largest contour area at each threshold.

    The area is that of the polygon through the centres of the outer border's pixels (OpenCV's
    `contourArea`): half the number of 2x2 quads with at least three pixels plus half the number with
    four. Of equal areas, the component whose first pixel in raster order comes last (the first in
    OpenCV's contour list).

    Args:
        filled: (H, W) levels without holes (`fill_holes`).

    Returns:
        (top, 4) int32, the box at T = 0 … top - 1; rows of -1 where the mask is empty.
    """
    height, width = filled.shape
    flat = filled.ravel()
    order, starts = descending(filled, top)
    parent = np.full(flat.size, -1, np.int32)
    box = np.empty((flat.size, 4), np.int32)
    quads = np.zeros(flat.size, np.int32)
    first = np.empty(flat.size, np.int32)
    roots = np.empty(flat.size, np.int32)
    live = 0
    result = np.full((top, 4), -1, np.int32)
    best, best_quads, best_first = -1, 0, 0
    dxs = (1, -1, 0, 0, 1, -1, 1, -1)
    dys = (0, 0, 1, -1, 1, 1, -1, -1)
    for level in range(top, 0, -1):
        for place in range(starts[top - level], starts[top - level + 1]):
            pixel = order[place]
            y, x = pixel // width, pixel % width
            parent[pixel] = pixel
            first[pixel] = pixel
            box[pixel, 0] = box[pixel, 2] = x
            box[pixel, 1] = box[pixel, 3] = y
            root = pixel
            for k in range(8):
                nx, ny = x + dxs[k], y + dys[k]
                if nx < 0 or ny < 0 or nx >= width or ny >= height or parent[ny * width + nx] < 0:
                    continue
                other = _root(parent, ny * width + nx)
                if other == root:
                    continue
                if other < root:  # any rule will do; the lower index keeps the result reproducible
                    root, other = other, root
                parent[other] = root
                quads[root] += quads[other]
                first[root] = min(first[root], first[other])
                box[root, 0] = min(box[root, 0], box[other, 0])
                box[root, 1] = min(box[root, 1], box[other, 1])
                box[root, 2] = max(box[root, 2], box[other, 2])
                box[root, 3] = max(box[root, 3], box[other, 3])
            for qy in (y - 1, y):
                for qx in (x - 1, x):
                    if qx < 0 or qy < 0 or qx + 1 >= width or qy + 1 >= height:
                        continue
                    corner = qy * width + qx
                    on = (parent[corner] >= 0) + (parent[corner + 1] >= 0)
                    on += (parent[corner + width] >= 0) + (parent[corner + width + 1] >= 0)
                    if on >= 3:
                        quads[root] += 1
            roots[live] = pixel
            live += 1
        fresh = live - (starts[top - level + 1] - starts[top - level])
        if best >= 0:
            best = _root(parent, best)
            # areas only grow, so the best is still ahead of all that did not change, unless it lost a tie
            if quads[best] == best_quads and first[best] < best_first:
                fresh, live = 0, _live(parent, roots, live)
        for place in range(fresh, live):
            root = _root(parent, roots[place])
            if (
                best < 0
                or quads[root] > quads[best]
                or (quads[root] == quads[best] and first[root] > first[best])
            ):
                best = root
        if best >= 0:
            best_quads, best_first = quads[best], first[best]
            result[level - 1] = box[best]
    return result
