"""PxAP with label maps read once, against decoding and resizing the mask files at each call.

The peer does what the WSOL benchmark's `MaskEvaluator` is described to do: read each mask file (OpenCV),
resize it to 224x224 by nearest neighbour, join the masks, drop the ignored pixels, add two histograms over
the scores. Ours is timed on later runs over the same images, as in every epoch of a training or for every
further row of maps; the first run, which reads the files, is a row of its own. Histograms are compared
before anything is timed. Files of 1024x683, the size of OpenImages. Maps are 224x224 scores in memory on
both sides. The floor is one pass that finds each pixel's bin.

    python benchmarks/bench_pxap.py [--rounds N] [--json FILE]
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import cv2
import numpy as np
from measure import alternate, options, report, row
from numba import njit
from scipy import ndimage

from wsod.data.wsol import WsolMasks
from wsod.metrics import PxAP, truth
from wsod.metrics.labelmaps import LabelMaps
from wsod.scoremaps import MapProcessing, resize_map
from wsod.types import AttentionMaps, Sample

Array = np.ndarray
SIZE, FRAME, STEP = (683, 1024), 224, 0.001
EDGES = np.append(np.arange(0, 1, STEP), [1.0, 2.0, 3.0])


def write_masks(folder: Path, seed: int) -> WsolMasks:
    """One to three instances and an ignore region, as 8-bit PNG."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    files = []
    for n in range(2 + seed % 3):
        y, x = rng.random(2) * SIZE
        wobble = 1 + 0.2 * np.sin(5 * np.arctan2(rows - y, columns - x) + seed)
        inside = np.hypot(rows - y, columns - x) < wobble * (40 + 160 * rng.random())
        files.append(folder / f"{seed}_{n}.png")
        cv2.imwrite(str(files[-1]), 255 * inside.astype(np.uint8))
    return WsolMasks(tuple(files[1:]), files[0], SIZE, 0)


def score_map(seed: int) -> Array:
    coarse = ndimage.gaussian_filter(np.random.default_rng(seed).random((14, 14)), 1)
    scores = resize_map(coarse, (FRAME, FRAME), "bicubic")
    scores -= scores.min()
    return scores / scores.max()


def read_small(path: Path) -> Array:
    grey = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE).astype(np.float32)
    return cv2.resize(grey, (FRAME, FRAME), interpolation=cv2.INTER_NEAREST) > 0.5


def peer(masks: list[WsolMasks], maps: list[Array]) -> Array:
    """(2, bins) pixels outside and inside."""
    counts = np.zeros((2, len(EDGES) - 1))
    for own, scores in zip(masks, maps, strict=True):
        inside = np.zeros((FRAME, FRAME), bool)
        for path in own.masks:
            inside |= read_small(path)
        outside = ~inside & ~read_small(own.ignored)
        counts[0] += np.histogram(scores[outside], EDGES)[0]
        counts[1] += np.histogram(scores[inside], EDGES)[0]
    return counts


def ours(masks: list[WsolMasks], maps: list[Array]) -> PxAP:
    metric = PxAP(classes=1, step=STEP, processing=MapProcessing(frame=FRAME, normalise="none"))
    for n, (own, scores) in enumerate(zip(masks, maps, strict=True)):
        # as every evaluation makes them anew
        again = WsolMasks(own.masks, own.ignored, SIZE, 0)
        sample = Sample(str(n), None, SIZE, labels=np.zeros(1, np.int64), masks=again)
        metric.update(AttentionMaps(str(n), SIZE, np.zeros(1, np.int64), scores[None]), sample)
    return metric


def first_time(masks: list[WsolMasks], maps: list[Array]) -> None:
    truth.LABEL_MAPS = LabelMaps()
    ours(masks, maps)


@njit
def one_pass(scores: Array, counts: Array) -> None:
    for score in scores.ravel():
        counts[int(score * 1000)] += 1


def main() -> None:
    chosen = options(__doc__)
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        masks = [write_masks(Path(folder), seed) for seed in range(12)]
        maps = [score_map(seed) for seed in range(len(masks))]
        expected, metric = peer(masks, maps), ours(masks, maps)
        # ours has no bins above 1, where no score is
        np.testing.assert_array_equal(metric._state["pixels"][0], expected[:, : len(EDGES) - 2])
        turns = {
            "ours": lambda: ours(masks, maps),
            "peer": lambda: peer(masks, maps),
            "first": lambda: first_time(masks, maps),
            "floor": lambda: [one_pass(scores, np.zeros(1001, np.int64)) for scores in maps],
        }
        seconds = alternate(turns, chosen.rounds)
    name = "WSOL benchmark: decode, resize, histogram"
    later = row("pxap, later runs", name, seconds, len(masks))
    first = row("pxap, first run", name, {**seconds, "ours": seconds["first"]}, len(masks))
    report([later, first], chosen.json)


if __name__ == "__main__":
    main()
