"""Average precision on resampled images, from detections that have been matched once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from wsod.metrics.resampling import known_mean

__all__ = ["FALSE", "IGNORED", "TRUE", "Ranking", "resampled_ap", "resampled_map"]

Floats = NDArray[np.float64]
PART = 2_000_000  # numbers held at once
# what became of a detection
FALSE, TRUE, IGNORED = 0, 1, 2


class Ranking(NamedTuple):
    """A class's detections in all images, by descending score.

    Attributes:
        images: (D,) index of the image of each.
        outcome: (T, D) what became of it at each needed IoU: `FALSE`, `TRUE`, `IGNORED`.
        truth: (I,) number of true objects in each image.
    """

    images: NDArray[np.int64]
    outcome: NDArray[np.int8]
    truth: NDArray[np.int64]


def resampled_ap(weights: Floats, ranking: Ranking, levels: Floats | None = None) -> Floats:
    """AP had each image been there as often as the weights say, each copy's boxes matched as its own.

    Only true positives count: precision is highest at one, and recall rises there alone. Copies of a
    detection count together, as equal scores do.

    Args:
        weights: (R, I).
        ranking: of the class.
        levels: recalls, ascending, at which the monotone precision is averaged; None = the area under it.

    Returns:
        (R, T); NaN where no true object is drawn.
    """
    positives = weights @ ranking.truth
    drawn = weights[:, ranking.images]
    counted = drawn.cumsum(1)
    found = np.full((len(weights), len(ranking.outcome)), np.nan)
    for place, outcome in enumerate(ranking.outcome):
        (true,) = np.nonzero(outcome == TRUE)
        total = counted[:, true]
        if (outcome == IGNORED).any():
            total = total - (drawn * (outcome == IGNORED)).cumsum(1)[:, true]
        hits = drawn[:, true].cumsum(1)
        precision = np.divide(hits, total, out=np.zeros_like(hits), where=total > 0)
        envelope = np.maximum.accumulate(precision[:, ::-1], 1)[:, ::-1]
        recall = np.divide(hits, positives[:, None], out=np.zeros_like(hits), where=positives[:, None] > 0)
        if levels is not None:
            recall = np.searchsorted(levels, recall, side="right") / len(levels)
        gain = np.diff(recall, prepend=0.0)
        found[:, place] = np.where(positives > 0, (gain * envelope).sum(1), np.nan)
    return found


def resampled_map(weights: Floats, rankings: Iterable[Ranking], levels: Floats | None = None) -> Floats:
    """(R, 1 + C) mean AP over the classes that are drawn, and each class's AP, both averaged over IoUs.

    Args:
        weights: (R, I).
        rankings: of C classes.
        levels: as in `resampled_ap`.
    """
    classes = []
    for ranking in rankings:
        parts = np.array_split(weights, -(-len(weights) * len(ranking.images) // PART) or 1)
        found = [resampled_ap(part, ranking, levels).mean(1) for part in parts]
        classes.append(np.concatenate(found))
    aps = np.stack(classes, 1)
    return np.concatenate([known_mean(aps)[:, None], aps], 1)
