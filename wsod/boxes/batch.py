"""The best IoU at every threshold for many maps in one compiled call, so that threads share nothing.

`wsod.boxes.sweep` goes in and out of compiled code several times a map; each way back waits for the
interpreter's lock, and for a whole time slice where the machine is busy and its holder was put to sleep.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wsod.boxes import basins, hills, sweep, tree
from wsod.errors import ConfigError, MapError

__all__ = ["best_ious"]

Array = NDArray[np.float64]
LEVELS = 255


def best_ious(
    heatmaps: ArrayLike,
    boxes: Sequence[ArrayLike],
    *,
    components: Literal["all", "largest"] = "all",
    holes: bool = False,
    edge: int = 0,
    clip: bool = False,
) -> tuple[Array, NDArray[np.int64]]:
    """`ThresholdSweep.best_iou` or `.largest_iou` of many score maps of one size.

    Runs without the interpreter's lock: hand batches of maps to the threads of a pool.

    Args:
        heatmaps: (N, H, W) scores in [0, 1].
        boxes: for each map (m, 4) xyxy, any m.
        components: the best box of `all` components, or that of the `largest` by contour area.
        holes, edge, clip: as for `threshold_sweep` and `best_iou`.

    Returns:
        `(best, maximum)`: (N, 255) float64, by level T = 0 … 254, 0 where there is no box; and (N,) each
        map's largest byte M. The level of a threshold t in [0, 1) is int(t · M) (`levels`).

    Raises:
        MapError: maps that are not finite or outside [0, 1], or not as many as the lists of boxes.

    >>> best, maximum = best_ious([[[0.2, 1.0, 0.2, 0.6]]], [[[1, 0, 2, 1]]])
    >>> best[0, [50, 100, 200]].tolist(), maximum.tolist()
    ([0.25, 1.0, 1.0], [255])
    """
    if components not in ("all", "largest"):
        raise ConfigError("best_ious", "components 'all' or 'largest'", repr(components))
    maps = np.require(heatmaps, np.float64, ["C", "W"])
    if maps.ndim != 3 or 0 in maps.shape[1:]:
        raise MapError("best_ious", "non-empty maps of shape (N, H, W)", maps.shape)
    if len(boxes) != len(maps):
        raise MapError("best_ious", f"boxes for each of {len(maps)} maps", f"{len(boxes)} lists of them")
    truth = [sweep.true_boxes(own) for own in boxes]
    starts = np.cumsum([0, *map(len, truth)])
    largest = components == "largest"
    best, maximum, fault = _batch(
        maps,
        np.concatenate([np.zeros((0, 4)), *truth]),
        starts,
        largest,
        holes,
        edge,
        clip,
        basins.MANY,
        LEVELS,
    )
    if fault >= 0:
        sweep.quantise(maps[fault])  # which says what is wrong with it
    return best, maximum


def _sources() -> str:
    """Of the code that `_batch` is compiled from: before it uses its cache numba looks at this file only."""
    modules = (basins, hills, sweep, tree)
    return hashlib.sha256(b"".join(Path(str(m.__file__)).read_bytes() for m in modules)).hexdigest()


def _compile(sources: str) -> Callable[..., tuple[Array, NDArray[np.int64], int]]:
    @tree.compiled
    def batch(
        maps: Array,
        truth: Array,
        starts: NDArray[np.int64],
        largest: bool,
        holes: bool,
        edge: int,
        clip: bool,
        many: int,
        top: int,
    ) -> Any:
        sources  # noqa: B018  (what a function closes over is part of its key in the cache)
        count, height, width = maps.shape
        best = np.zeros((count, top))
        maximum = np.zeros(count, np.int64)
        hill_room = np.empty(3 * height * (width // 2 + 1), np.int32)
        room = np.empty(0, np.int32)
        right, bottom = (width - 1, height - 1) if clip else (width, height)
        for k in range(count):
            scores = maps[k]
            values, inside = hills.quantised(scores)
            if not inside:
                return best, maximum, k
            maximum[k] = values.max()
            if largest:
                lower = hills.find_basins(scores, False, -1.0, hill_room)
                if lower[3] > many:
                    boxes = tree.largest_boxes(tree.fill_holes(values, top), top)
                else:
                    if room.size < hills.tables_size(lower):
                        room = np.empty(hills.tables_size(lower), np.int32)
                    filled, keys = basins.fill_holes(values, scores, *lower, room)
                    upper = hills.find_basins(keys, True, 1.0, hill_room)
                    if room.size < hills.tables_size(upper):
                        room = np.empty(hills.tables_size(upper), np.int32)
                    boxes = basins.largest_boxes(filled, *upper, room)
                nodes = sweep.half_open_levels(boxes[: maximum[k]])
            else:
                upper, lower = hills.survey(scores, holes, hill_room)
                if max(upper[3], lower[3]) > many:
                    found, gaps = tree.boxes_and_gaps(values, ~values, holes, top)
                else:
                    size = max(hills.tables_size(upper), hills.tables_size(lower))
                    if room.size < size:
                        room = np.empty(size, np.int32)
                    found, gaps = basins.boxes_and_gaps(values, upper, lower, holes, room)
                nodes = sweep.half_open(found, gaps, height, width, top)
            own = truth[starts[k] : starts[k + 1]]
            ious = sweep.node_ious(nodes[0], own, edge, right, bottom)
            best[k] = sweep.best_by_level(ious, nodes[1], nodes[2], top)
        return best, maximum, -1

    return batch


_batch = _compile(_sources())
