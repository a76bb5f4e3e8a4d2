"""Metrics taken at one global threshold of the maps: the best on the evaluated split, or a given one."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from wsod.errors import ConfigError
from wsod.metrics.base import Metric, accepted_thresholds
from wsod.types import Score

__all__ = ["SweptMetric", "Threshold"]

#: a threshold, or one by name (an IoU) where a metric has several: `Score.best_threshold`
Threshold = float | Mapping[str, float]
Places = NDArray[np.intp]


@dataclass(kw_only=True, eq=False)
class SweptMetric(Metric):
    """Base of the metrics that count at every threshold and report the score at one.

    Args:
        step: thresholds 0, step, 2·step … below 1.
        thresholds: explicit thresholds instead; a single one is fixed, not tuned.
    """

    step: float = 0.01
    thresholds: tuple[float, ...] = ()

    @cached_property
    def _thresholds(self) -> NDArray[np.float64]:
        return accepted_thresholds(self.name, self.thresholds, self.step)

    @property
    def swept(self) -> bool:
        """Whether there is a threshold to choose."""
        return len(self._thresholds) > 1

    @property
    def supervision(self) -> tuple[str, ...]:
        return ("threshold: evaluated split",) if self.swept else ()

    @abstractmethod
    def compute(self, threshold: Threshold | None = None) -> Score:
        """The score so far, with the curve over all thresholds.

        Args:
            threshold: where to take the score, chosen elsewhere, one of this metric's thresholds;
                None = where it is largest.

        Raises:
            ConfigError: for a threshold that is none of the metric's.
        """

    def _places(self, curves: NDArray[np.float64], names: list[str], threshold: Threshold | None) -> Places:
        """(n,) the column of each (n, thresholds) curve that the score is taken at."""
        if threshold is None:
            best: Places = curves.argmax(1)
            return best
        where = f"{self.name}: threshold"
        if isinstance(threshold, Mapping):
            if len(names) == 1 or set(threshold) != set(names):
                raise ConfigError(where, "one for each of " + ", ".join(names), ", ".join(threshold))
            wanted = [threshold[name] for name in names]
        else:
            if len(names) > 1:
                raise ConfigError(where, "one for each of " + ", ".join(names), threshold)
            wanted = [threshold]
        places: Places = np.abs(self._thresholds[:, None] - np.array(wanted, np.float64)).argmin(0)
        if not np.array_equal(self._thresholds[places], wanted):
            raise ConfigError(where, "one of the metric's thresholds", threshold)
        return places

    def _place_of(self, score: Score) -> Places:
        """Index, by curve, of the thresholds a score was taken at."""
        best = score.best_threshold
        chosen = list(best.values()) if isinstance(best, Mapping) else [best]
        places: Places = np.searchsorted(self._thresholds, np.array(chosen, np.float64))
        return places
