"""What is read off one run, and what becomes of it when other images are drawn."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["F1", "Cases", "MeanAP", "Number", "Reading"]

Array = NDArray[np.float64]


class Reading(ABC):
    """A score of one run that can be taken again on other images."""

    @property
    @abstractmethod
    def units(self) -> Mapping[Any, str]:
        """What it is made of, and the image each is of: what two runs must share to be compared."""

    @abstractmethod
    def only(self, units: Set[Any]) -> Reading:
        """The same of some of its units."""

    @abstractmethod
    def draws(self, columns: Mapping[str, int], weights: Array) -> Array:
        """(R,) the score where image i counts `weights[:, columns[i]]` times; NaN of nothing.

        Args:
            columns: image → column.
            weights: (R, N).
        """

    def value(self) -> float:
        """The score."""
        columns = {image: i for i, image in enumerate(dict.fromkeys(self.units.values()))}
        return float(self.draws(columns, np.ones((1, len(columns))))[0])


@dataclass(frozen=True)
class Cases(Reading):
    """The mean of one number a case.

    Args:
        values: by (image, whatever tells the image's cases apart, such as the label).
    """

    values: Mapping[tuple[str, str], float]

    @property
    def units(self) -> Mapping[Any, str]:
        return {case: case[0] for case in self.values}

    def only(self, units: Set[Any]) -> Cases:
        return Cases({case: value for case, value in self.values.items() if case in units})

    def draws(self, columns: Mapping[str, int], weights: Array) -> Array:
        sums, counts = np.zeros(weights.shape[1]), np.zeros(weights.shape[1])
        for (image, _), value in self.values.items():
            sums[columns[image]] += value
            counts[columns[image]] += 1
        return _ratio(weights @ sums, weights @ counts)


@dataclass(frozen=True)
class F1(Reading):
    """Macro F1: the mean over classes of TP / (TP + (FP + FN)/2), as `atcon.metrics.macro_f1` has it.

    A class that only a resample lacks is left out of that resample's mean.

    Args:
        images: (N,) their ids.
        predicted: (N, C) bool.
        positive: (N, C) bool.
    """

    images: tuple[str, ...]
    predicted: NDArray[np.bool_]
    positive: NDArray[np.bool_]

    @property
    def units(self) -> Mapping[Any, str]:
        return {image: image for image in self.images}

    def only(self, units: Set[Any]) -> F1:
        rows = [i for i, image in enumerate(self.images) if image in units]
        return F1(tuple(self.images[i] for i in rows), self.predicted[rows], self.positive[rows])

    def draws(self, columns: Mapping[str, int], weights: Array) -> Array:
        weights = weights[:, np.array([columns[image] for image in self.images], np.int64)]
        hits = weights @ (self.predicted & self.positive).astype(np.float64)
        whole = hits + weights @ (self.predicted ^ self.positive).astype(np.float64) / 2
        seen = whole > 0
        share = (self.predicted | self.positive).any(0).mean()
        each = np.divide(hits, whole, out=np.zeros_like(hits), where=seen)
        means = _ratio(each.sum(1), seen.sum(1).astype(np.float64))
        return means * float(share)


@dataclass(frozen=True)
class MeanAP(Reading):
    """Mean average precision over the classes that have positives, as `atcon.metrics` has it.

    Args:
        images: (N,) their ids.
        scores: (N, C), such as logits.
        positive: (N, C) bool.
    """

    images: tuple[str, ...]
    scores: Array
    positive: NDArray[np.bool_]

    @property
    def units(self) -> Mapping[Any, str]:
        return {image: image for image in self.images}

    def only(self, units: Set[Any]) -> MeanAP:
        rows = [i for i, image in enumerate(self.images) if image in units]
        return MeanAP(tuple(self.images[i] for i in rows), self.scores[rows], self.positive[rows])

    def draws(self, columns: Mapping[str, int], weights: Array) -> Array:
        weights = weights[:, np.array([columns[image] for image in self.images], np.int64)]
        total, classes = np.zeros(len(weights)), np.zeros(len(weights))
        for scores, positive in zip(self.scores.T, self.positive.T, strict=True):
            order = np.argsort(-scores, kind="stable")
            # images of equal score are one step
            last = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True)[: len(order)])
            ranks = weights[:, order].cumsum(1)[:, last]
            hits = (weights[:, order] * positive[order]).cumsum(1)[:, last]
            precision = np.divide(hits, ranks, out=np.zeros_like(hits), where=ranks > 0)
            whole = hits.max(1, initial=0.0)
            found = whole > 0
            steps = np.diff(hits, prepend=0, axis=1)
            total += np.where(found, (steps * precision).sum(1) / np.where(found, whole, 1.0), 0.0)
            classes += found
        return _ratio(total, classes)


@dataclass(frozen=True)
class Number(Reading):
    """One number a run that no image stands behind, such as the seconds of a step."""

    number: float

    @property
    def units(self) -> Mapping[Any, str]:
        return {}

    def only(self, units: Set[Any]) -> Number:
        return self

    def draws(self, columns: Mapping[str, int], weights: Array) -> Array:
        return np.full(len(weights), self.number)


def _ratio(above: Array, below: Array) -> Array:
    ratio: Array = np.divide(above, below, out=np.full(len(above), np.nan), where=below > 0)
    return ratio
