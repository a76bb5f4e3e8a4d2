"""Means and intervals of case scores: within groups of cases, and by a bootstrap over images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["Average", "bootstrap_interval", "group_means", "mean_of"]

Average = Literal["cases", "classes"]


def mean_of(sums: NDArray[np.float64], counts: NDArray[np.float64], average: Average) -> NDArray[np.float64]:
    """(..., C) sums and counts by class → the mean over cases, or over the classes seen of their means."""
    with np.errstate(invalid="ignore", divide="ignore"):
        if average == "cases":
            mean: NDArray[np.float64] = sums.sum(-1) / counts.sum(-1)
        else:
            seen = counts > 0
            mean = np.where(seen, sums / counts, 0.0).sum(-1) / seen.sum(-1)
    return mean


def group_means(
    values: ArrayLike,
    labels: ArrayLike,
    groups: Sequence[str | None],
    names: Sequence[str],
    average: Average = "cases",
) -> dict[str, dict[str, Any]]:
    """The score within each group of cases.

    Args:
        values: (N,) score of each case.
        labels: (N,) class of each case, used by `average="classes"`.
        groups: (N,) the group of each case, or None for no group.
        names: the groups wanted.
        average: how the score is made from its cases.

    Returns:
        By name `{"value": …, "count": cases}`; NaN for an empty group.

    >>> group_means([1, 0, 1], [0, 0, 1], ["a", "a", None], ["a", "b"])
    {'a': {'value': 0.5, 'count': 2}, 'b': {'value': nan, 'count': 0}}
    """
    scores, (_, columns) = np.asarray(values, np.float64), np.unique(labels, return_inverse=True)
    means: dict[str, dict[str, Any]] = {}
    for name in names:
        inside = np.array([group == name for group in groups], np.bool_)
        sums = np.bincount(columns[inside], scores[inside], minlength=1).astype(np.float64)
        counts = np.bincount(columns[inside], minlength=1).astype(np.float64)
        means[name] = {"value": float(mean_of(sums, counts, average)), "count": int(inside.sum())}
    return means


def bootstrap_interval(
    values: ArrayLike,
    images: ArrayLike,
    labels: ArrayLike,
    *,
    average: Average = "cases",
    divisor: int | None = None,
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[float, float] | None:
    """Percentile interval of a mean of case scores, images resampled with replacement.

    Cases of one image are not independent, hence images are drawn, not cases. A threshold chosen on the
    same data is held fixed: the interval says nothing of that choice.

    Args:
        values: (N,) score of each case.
        images: (N,) index of the image of each case.
        labels: (N,) class of each case, used by `average="classes"`.
        average: how the score is made from its cases.
        divisor: number of classes a mean of classes is divided by, where those never seen count as 0; None =
            the classes seen. A class that only a resample lacks is left out of that resample's mean.

    Returns:
        (low, high), or None with fewer than two images.
    """
    scores = np.asarray(values, np.float64)
    _, rows = np.unique(np.asarray(images), return_inverse=True)
    _, columns = np.unique(np.asarray(labels), return_inverse=True)
    if average == "cases":
        columns = np.zeros_like(columns)
    n = int(rows.max(initial=-1)) + 1
    if n < 2:
        return None
    shape = (n, int(columns.max()) + 1)
    sums, counts = np.zeros(shape), np.zeros(shape)
    np.add.at(sums, (rows, columns), scores)
    np.add.at(counts, (rows, columns), 1.0)
    generator = np.random.default_rng(seed)
    means = []
    chunk = max(1, min(resamples, 20_000_000 // n))  # bounds memory at about 160 MB
    for start in range(0, resamples, chunk):
        rounds = min(chunk, resamples - start)
        weights = generator.multinomial(n, np.full(n, 1.0 / n), size=rounds).astype(np.float64)
        means.append(mean_of(weights @ sums, weights @ counts, average))
    tail = 50.0 * (1.0 - confidence)
    share = shape[1] / divisor if divisor and average == "classes" else 1.0
    low, high = share * np.nanpercentile(np.concatenate(means), [tail, 100.0 - tail])
    return float(low), float(high)
