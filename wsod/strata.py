"""What is known of a case beyond its score: how large its objects are, and what the classifier says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsod.stats import Average, group_means
from wsod.types import AttentionMaps, Sample, ScoredBoxes

__all__ = ["SIZES", "CaseFacts", "given_predicted", "size_of", "size_strata", "union_area"]

#: area shares at which medium and large begin: squares of a quarter and of half the image's side
SIZES: Mapping[str, float] = {"small": 0.0, "medium": 1 / 16, "large": 1 / 4}


def union_area(boxes: NDArray[np.float64]) -> float:
    """Area covered by (N, 4) half-open boxes, in square pixels; what they share counts once.

    >>> union_area(np.array([[0.0, 0, 4, 2], [2, 0, 5, 2]]))
    10.0
    """
    xs, ys = np.unique(boxes[:, ::2]), np.unique(boxes[:, 1::2])
    columns = (boxes[:, :1] <= xs[:-1]) & (xs[1:] <= boxes[:, 2:3])
    rows = (boxes[:, 1:2] <= ys[:-1]) & (ys[1:] <= boxes[:, 3:])
    covered = rows.T.astype(np.int64) @ columns.astype(np.int64) > 0
    return float(np.diff(ys) @ covered @ np.diff(xs))


def size_of(area: float) -> str:
    """The stratum of an area share: `small` below 1/16 of the image, `large` from 1/4, else `medium`.

    >>> size_of(0.06), size_of(0.0625), size_of(0.25)
    ('small', 'medium', 'large')
    """
    return [name for name, lowest in SIZES.items() if area >= lowest][-1]


@dataclass(frozen=True, slots=True)
class CaseFacts:
    """Of one (image, label).

    Args:
        area: share of the image covered by the label's boxes (crowds aside); None without a box.
        rank: the label's place in the classifier's ranking, 1 = the predicted class; None where no
            ranking is known, or the label is not among the classes it lists.
        predicted: whether the label is among the n first classes of the ranking, of an image with n
            classes (n = 1: it is the predicted class); None without a ranking or with one too short to say,
            or for a label the image does not have.
        classes: the number n.
    """

    area: float | None
    rank: int | None
    predicted: bool | None
    classes: int

    @classmethod
    def of(cls, maps: AttentionMaps | ScoredBoxes, sample: Sample, label: int) -> CaseFacts:
        """The facts of one label of an image."""
        boxes = sample.boxes_of(label, crowd=False)
        area = union_area(boxes) / (sample.size[0] * sample.size[1]) if len(boxes) else None
        present, rank, predicted = sample.classes, None, None
        if maps.ranking is not None:
            ranking = maps.ranking.tolist()
            rank = ranking.index(label) + 1 if label in ranking else None
            n = len(present)
            # a ranking shorter than the image's classes may leave the question open
            if label in present and (label in ranking[:n] or len(ranking) >= n):
                predicted = label in ranking[:n]
        return cls(area, rank, predicted, len(present))


def size_strata(
    values: Sequence[float],
    images: Sequence[str],
    labels: Sequence[int],
    facts: Sequence[CaseFacts],
    average: Average,
    seed: int = 0,
) -> dict[str, dict[str, Any]] | None:
    """The score within small, medium and large cases; None where no case has a box.

    Args:
        values: the cases' scores.
        images: their images.
        labels: their classes.
        facts: what is known of them. One without an area is in no stratum.
        average: how the score is made from its cases.
        seed: of the intervals.
    """
    groups = [None if fact.area is None else size_of(fact.area) for fact in facts]
    if not any(groups):
        return None
    return group_means(values, images, labels, groups, tuple(SIZES), average, seed)


def given_predicted(
    values: Sequence[float],
    images: Sequence[str],
    labels: Sequence[int],
    facts: Sequence[CaseFacts],
    average: Average,
    seed: int = 0,
) -> dict[str, Any] | None:
    """The score over the cases whose class is predicted right; None where no ranking is known."""
    if all(fact.predicted is None for fact in facts):
        return None
    groups = ["right" if fact.predicted else None for fact in facts]
    return group_means(values, images, labels, groups, ("right",), average, seed)["right"]
