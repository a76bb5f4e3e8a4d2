"""Semantic mIoU of seeds at 60 background thresholds: one pass against one arg max a threshold.

The peer does what irn's `eval_cam` is described to do, threshold by threshold: pad the maps (K, H, W) with
the threshold as background, take the arg max, look up the classes, count where the truth is not void into a
confusion matrix by `bincount`. Confusion matrices of all thresholds are compared before anything is timed. No
files are read. The floor is one pass over the pixels that adds up scores and truth.

    python benchmarks/bench_miou.py [--rounds N] [--json FILE]
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from measure import alternate, options, report, row
from numba import njit
from scipy import ndimage

from wsod.data.masks import SemanticMasks
from wsod.metrics import MIoU
from wsod.scoremaps import MapProcessing
from wsod.types import AttentionMaps, Sample

Array = np.ndarray
SIZE, CLASSES, VOID = (375, 500), 20, 255
TAUS = [i / 100 for i in range(60)]


class Truth(SemanticMasks):
    def __init__(self, truth: Array) -> None:
        self.truth = np.where(truth == VOID, -1, truth.astype(np.int64))

    def semantic(self) -> Array:
        return self.truth


@dataclass
class Image:
    """Normalised float32 maps of the classes `keys`, and the truth: key + 1, 0 or void (object borders)."""

    keys: Array
    cams: Array
    truth: Array
    sample: Sample


def image(seed: int, classes: int) -> Image:
    rng = np.random.default_rng(seed)
    keys = np.sort(rng.choice(CLASSES, classes, replace=False))
    truth, cams = np.zeros(SIZE, np.uint8), []
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    for key in keys:
        y, x, height, width = *(rng.random(2) * SIZE), *(60 + 90 * rng.random(2))
        away = ((rows - y) / height) ** 2 + ((columns - x) / width) ** 2
        truth[away < 1] = key + 1
        cam = np.exp(-away) + 0.4 * ndimage.gaussian_filter(rng.random(SIZE), 12)
        cams.append((cam - cam.min()) / (cam.max() - cam.min() + 1e-5))
    truth[ndimage.morphological_gradient(truth, 5) > 0] = VOID
    sample = Sample(str(seed), None, SIZE, labels=keys, masks=Truth(truth))
    return Image(keys, np.stack(cams).astype(np.float32), truth, sample)


def peer(images: list[Image]) -> Array:
    """(60, 21, 21) pixels [truth, prediction]."""
    n = CLASSES + 1
    confusion = np.zeros((len(TAUS), n, n), np.int64)
    for each in images:
        keys = np.pad(each.keys + 1, (1, 0))
        for i, tau in enumerate(TAUS):
            padded = np.pad(each.cams, ((1, 0), (0, 0), (0, 0)), constant_values=tau)
            predicted = keys[padded.argmax(0)]
            counted = each.truth != VOID
            truth, predicted = each.truth[counted].astype(np.int64), predicted[counted]
            confusion[i] += np.bincount(n * truth + predicted, minlength=n * n).reshape(n, n)
    return confusion


def ours(images: list[Image]) -> MIoU:
    metric = MIoU(
        classes=CLASSES,
        thresholds=tuple(TAUS),
        float32=True,
        processing=MapProcessing(normalise="none"),
    )
    for each in images:
        metric.update(AttentionMaps(each.sample.image_id, SIZE, each.keys, each.cams), each.sample)
    return metric


@njit(fastmath=True)
def one_pass(cams: Array, truth: Array) -> float:
    total = 0.0
    for y in range(truth.shape[0]):
        for x in range(truth.shape[1]):
            total += truth[y, x]
            for k in range(len(cams)):
                total += cams[k, y, x]
    return total


def main() -> None:
    chosen = options(__doc__)
    rows = []
    for classes in (1, 2, 3):
        images = [image(seed, classes) for seed in range(4)]
        expected, metric = peer(images), ours(images)
        for i in range(len(TAUS)):
            np.testing.assert_array_equal(metric.confusion(i), expected[i])
        turns = {
            "ours": lambda images=images: ours(images),
            "peer": lambda images=images: peer(images),
            "floor": lambda images=images: [one_pass(each.cams, each.truth) for each in images],
        }
        name = f"miou 60 thresholds, {classes} class{'es' * (classes > 1)}"
        seconds = alternate(turns, chosen.rounds)
        rows.append(row(name, "irn: pad, argmax, bincount a threshold", seconds, len(images)))
    report(rows, chosen.json)


if __name__ == "__main__":
    main()
