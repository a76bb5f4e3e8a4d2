"""Classification scores a run is watched and selected by."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["average_precision", "classification_scores", "macro_f1"]

Array = NDArray[np.floating[Any]]


def average_precision(scores: Array, positive: NDArray[np.bool_]) -> float:
    """Area under the precision-recall steps, Σ (Rₙ − Rₙ₋₁)·Pₙ over distinct scores; NaN without positives.

    Images of equal score are one step, so the order of the images does not matter.

    >>> average_precision(np.array([0.9, 0.8, 0.7]), np.array([True, False, True]))
    0.8333333333333333
    """
    if not positive.any():
        return float("nan")
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(positive[order])
    last = np.append(np.diff(scores[order]) != 0, True)
    hits, ranks = hits[last], np.flatnonzero(last) + 1
    return float((np.diff(hits, prepend=0) / hits[-1] * (hits / ranks)).sum())


def macro_f1(predicted: NDArray[np.bool_], positive: NDArray[np.bool_]) -> float:
    """Mean over classes of TP / (TP + (FP + FN)/2); a class neither present nor predicted counts 0.

    Args:
        predicted: (N, C) bool.
        positive: (N, C) bool.
    """
    hits = (predicted & positive).sum(0)
    wrong = (predicted ^ positive).sum(0)
    whole = hits + wrong / 2
    return float(np.divide(hits, whole, out=np.zeros(len(hits)), where=whole > 0).mean())


def classification_scores(logits: Array, targets: NDArray[Any]) -> dict[str, float]:
    """Scores of a whole set of images.

    Args:
        logits: (N, C).
        targets: (N, C) multi-hot, or (N,) class indices.

    Returns:
        multi-hot: `mAP` (mean over the classes that have positives) and `macro_f1` at probability 0.5;
        indices: `top1` and `macro_f1` of the best class.
    """
    if targets.ndim == 2:
        positive = targets > 0.5
        each = [average_precision(logits[:, k], positive[:, k]) for k in range(logits.shape[1])]
        known = [value for value in each if not np.isnan(value)]
        mean = float(np.mean(known)) if known else float("nan")
        return {"mAP": mean, "macro_f1": macro_f1(logits > 0, positive)}
    best = logits.argmax(1)
    classes = np.arange(logits.shape[1])
    f1 = macro_f1(best[:, None] == classes, targets[:, None] == classes)
    return {"top1": float((best == targets).mean()), "macro_f1": f1}
