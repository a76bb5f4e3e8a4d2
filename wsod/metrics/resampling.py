"""Bootstraps of scores that are no mean of cases: images in groups, and sums that weights multiply."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["GROUPS", "group_of", "known_mean", "weighted"]

Floats = NDArray[np.float64]
#: Groups that images are gathered in where their own counts would be too many to keep. An interval of so many
#: units is about as sure as one of a thousand resamples.
GROUPS = 256


def group_of(image_id: str) -> int:
    """The group an image is in, by a hash of its name: the same in every run, process and order.

    >>> group_of("2007_000032"), group_of("2007_000033")
    (171, 19)
    """
    return hashlib.blake2b(image_id.encode("utf-8", "surrogatepass"), digest_size=1).digest()[0]


def weighted(weights: Floats, counts: NDArray[Any]) -> Floats:
    """(R, units) weights times (units, …) counts: (R, …)."""
    total: Floats = weights @ counts.reshape(len(counts), -1).astype(np.float64)
    return total.reshape(-1, *counts.shape[1:])


def known_mean(values: Floats) -> Floats:
    """(R, C) → (R,) mean of those that are not NaN; NaN without any."""
    known = ~np.isnan(values)
    count = known.sum(1)
    mean: Floats = np.full(len(values), np.nan)
    np.divide(np.where(known, values, 0.0).sum(1), count, out=mean, where=count > 0)
    return mean
