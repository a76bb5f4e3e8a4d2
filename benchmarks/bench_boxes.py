"""Boxes at all thresholds: component trees against one `cv2.findContours` a threshold.

Both give, for every map, the best IoU with the true boxes at each of the WSOL benchmark's 1000 thresholds;
the results are compared before anything is timed. Ours and the peer take turns in one process, on one
thread each, and the fastest of the turns counts. CPU time of the process, not the clock, so that a busy
machine changes little. The floor is reading and bucket-sorting the bytes of a map.

Rows named `multi` take all components and holes, rows named `single` the largest contour. Rows named `exact`
compare the scores themselves with the thresholds, without bytes. Rows named `threads2` hand batches of maps
to two threads (`wsod.boxes.best_ious`) and to one; they count the clock without the time in which the system
had no core for a thread (Linux tells it), so what two threads lose to each other shows and what they lose to
other programs does not.

    python benchmarks/bench_boxes.py [--maps N] [--rounds N] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from scipy import ndimage

from wsod.boxes import best_ious
from wsod.boxes.sweep import quantise, threshold_sweep
from wsod.boxes.tree import descending
from wsod.scoremaps import resize_map

Array = np.ndarray
SIDE = 224
THRESHOLDS = np.arange(0, 1, 0.001)


def minmax(values: Array) -> Array:
    values = values - values.min()
    return values / values.max()


def cam(rng: np.random.Generator, grid: int) -> Array:
    """A few blobs on a grid of `grid` cells, resized as a class activation map is."""
    rows, columns = np.mgrid[:grid, :grid]
    values = 0.05 * rng.random((grid, grid))
    for _ in range(5):
        y, x, width = *rng.random(2) * grid, (0.5 + 2 * rng.random()) * grid / 14
        values += rng.random() * np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / width**2)
    return minmax(resize_map(values, (SIDE, SIDE), "bicubic"))


def noise(rng: np.random.Generator, sigma: float) -> Array:
    return minmax(ndimage.gaussian_filter(rng.standard_normal((SIDE, SIDE)), sigma))


FAMILIES: dict[str, Callable[[np.random.Generator], Array]] = {
    "cam14": lambda rng: cam(rng, 14),
    "cam28": lambda rng: cam(rng, 28),
    "noise6": lambda rng: noise(rng, 6),
    "noise2": lambda rng: noise(rng, 2),
}


def ours(scores: Array, truth: Array, multi: bool, exact: bool = False) -> Array:
    """(1000,) best IoU at each threshold."""
    sweep = threshold_sweep(scores, holes=multi, exact=exact)
    best = sweep.best_iou if multi else sweep.largest_iou
    return sweep.at(best(truth, edge=1, clip=True), THRESHOLDS)


def peer(scores: Array, truth: Array, multi: bool, exact: bool = False) -> Array:
    """The same, threshold by threshold."""
    values = (scores * 255).astype(np.uint8)
    height, width = values.shape
    best = np.zeros(len(THRESHOLDS))
    for i, t in enumerate(THRESHOLDS):
        if exact:
            mask = (scores > t * scores.max()).view(np.uint8)
        else:
            _, mask = cv2.threshold(values, int(t * values.max()), 255, cv2.THRESH_BINARY)
        contours, _ = cv2.findContours(mask, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)
        if not multi:
            contours = [max(contours, key=cv2.contourArea)]
        rects = np.array([cv2.boundingRect(contour) for contour in contours])
        corners = np.minimum(rects[:, :2] + rects[:, 2:], [width - 1, height - 1])
        best[i] = overlaps(rects[:, :2], corners, truth).max()
    return best


def overlaps(first: Array, last: Array, truth: Array) -> Array:
    """IoU with the last pixel counted."""
    top_left = np.maximum(first[:, None], truth[None, :, :2])
    bottom_right = np.minimum(last[:, None], truth[None, :, 2:])
    both = (bottom_right - top_left + 1).clip(0).prod(2)
    own, other = (last - first + 1).prod(1), (truth[:, 2:] - truth[:, :2] + 1).prod(1)
    return both / (own[:, None] + other[None] - both)


def spent(work: Callable[[], object], clock: Callable[[], float] = time.process_time) -> float:
    start = clock()
    work()
    return clock() - start


def measure(maps: list[Array], truth: Array, multi: bool, rounds: int, exact: bool) -> dict[str, float]:
    """Seconds a map: ours, the peer's, the floor."""
    for scores in maps:
        np.testing.assert_array_equal(ours(scores, truth, multi, exact), peer(scores, truth, multi, exact))
    values = [quantise(scores) for scores in maps]
    turns: dict[str, Callable[[], object]] = {
        "ours_s": lambda: [ours(scores, truth, multi, exact) for scores in maps for _ in range(10)],
        "peer_s": lambda: [peer(scores, truth, multi, exact) for scores in maps],
        "floor_s": lambda: [descending(bytes_, 255) for bytes_ in values for _ in range(10)],
    }
    if exact:
        turns["floor_s"] = lambda: [np.sort(scores.ravel()) for scores in maps for _ in range(10)]
    repeats = {"ours_s": 10, "peer_s": 1, "floor_s": 10}
    best = dict.fromkeys(turns, float("inf"))
    for _ in range(rounds):
        for name, work in turns.items():
            best[name] = min(best[name], spent(work) / repeats[name] / len(maps))
    return best


def waited() -> float:
    """Seconds this thread was ready to run while the system had no core for it; 0 where it does not tell."""
    try:
        counters = Path(f"/proc/self/task/{threading.get_native_id()}/schedstat").read_text().split()
    except OSError:
        return 0.0
    return int(counters[1]) / 1e9


def threads(maps: list[Array], truth: Array, multi: bool, rounds: int) -> tuple[float, float]:
    """Seconds a map on two threads and on one, without those spent waiting for a core."""
    stack, truths = np.stack(maps * 5), [truth] * (5 * len(maps))
    components: Any = "all" if multi else "largest"
    sweep, batches = threshold_sweep(stack[0], holes=multi), 16
    expected = (sweep.best_iou if multi else sweep.largest_iou)(truth, 1, True)

    def batch(_: int) -> float:
        start, before = time.perf_counter(), waited()
        best, _ = best_ious(stack, truths, components=components, holes=multi, edge=1, clip=True)
        np.testing.assert_array_equal(best[0, : len(expected)], expected)
        return time.perf_counter() - start - (waited() - before)

    def run(workers: int) -> float:
        with ThreadPoolExecutor(workers) as pool:
            return sum(pool.map(batch, range(batches))) / workers / (batches * len(stack))

    batch(0)  # loads the compiled code
    times = [(run(2), run(1)) for _ in range(rounds)]
    return min(two for two, _ in times), min(one for _, one in times)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--maps", type=int, default=5, help="maps of each family")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    cv2.setNumThreads(1)
    truth = np.array([[40, 50, 150, 170], [10, 120, 90, 200]])
    rows: list[dict[str, Any]] = []
    print(f"{'row':<24}{'ours ms':>9}{'peer ms':>9}{'ratio':>7}{'floor ms':>10}")
    for family, make in FAMILIES.items():
        maps = [make(np.random.default_rng(seed)) for seed in range(options.maps)]
        for multi in (True, False):
            mode, which = ("multi", "all") if multi else ("single", "largest")
            for exact in (False, True):
                found = measure(maps, truth, multi, options.rounds, exact)
                name = f"boxes exact {which} {family}" if exact else f"boxes {mode} {family}"
                row = {"name": name, "peer": "cv2.findContours a threshold", **found}
                rows.append({**row, "ratio": found["peer_s"] / found["ours_s"]})
            two, one = threads(maps, truth, multi, options.rounds)
            row = {"name": f"boxes threads2 {which} {family}", "peer": "ours, 1 thread"}
            row |= {"ours_s": two, "peer_s": one, "floor_s": one / 2, "ratio": one / two}
            rows.append(row)
    for row in rows:
        times = [f"{1000 * row[key]:>9.3f}" for key in ("ours_s", "peer_s")]
        print(
            f"{row['name'].removeprefix('boxes '):<24}{''.join(times)}{row['ratio']:>7.1f}"
            f"{1000 * row['floor_s']:>10.3f}"
        )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
