"""Thresholds of an earlier run, so that none is chosen on the split that is evaluated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsod.config import bind, plain
from wsod.data import same_images
from wsod.errors import ConfigError
from wsod.metrics.swept import SweptMetric, Threshold
from wsod.protocols import Protocol
from wsod.results import Result

__all__ = ["ChosenThreshold", "ThresholdSource", "protocol_of"]


def protocol_of(result: Result) -> Protocol:
    """The protocol a result was made by, as it was then."""
    return bind(Protocol, result.config.get("protocol", {}), "result.json: config.protocol")


@dataclass(frozen=True)
class ChosenThreshold:
    """A threshold and the images it was chosen on.

    Args:
        threshold: one, or one an IoU.
        data: data set spec.
        split: its split.
    """

    threshold: Threshold
    data: str
    split: str

    def supervision(self, data: str, split: str) -> str:
        """What the supervision column says where this split of that data set is evaluated.

        A threshold chosen on those images is tuned on them, whichever run it comes from.
        """
        if self.split == split and (self.data == data or same_images(self.data, data, split)):
            return "threshold: evaluated split"
        return f"threshold: from {self.data}, {self.split}"


class ThresholdSource:
    """The best thresholds of a run, by row and metric.

    Args:
        path: a result directory, or its result.json.

    Raises:
        DataError: where it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._where = f"--threshold-from {path}"
        self._result = Result.load(path)
        self._protocol = protocol_of(self._result)

    def find(self, row: str, metric: SweptMetric) -> ChosenThreshold:
        """The threshold of that metric, in the row of that name or the only one.

        Raises:
            ConfigError: where the run has no such row or metric, or computed it in another way.
        """
        name, rows = metric.name, {one.maps: one.scores for one in self._result.rows}
        if row not in rows and len(rows) != 1:
            raise ConfigError(self._where, f"a row {row!r}, or a single row", ", ".join(rows) or "no row")
        scores = rows[row] if row in rows else next(iter(rows.values()))
        if name not in scores:
            hint = "Evaluate it there too, or choose others with --metrics."
            raise ConfigError(self._where, f"a run with {name}", ", ".join(scores) or "no metric", hint)
        (there,) = self._protocol.build(metric.classes, [name]).values()
        difference = _difference(plain(there.options()), plain(metric.options()))
        if difference:
            raise ConfigError(self._where, f"{name} computed as here", difference)
        score = scores[name]
        if score["best_threshold"] is None:
            raise ConfigError(self._where, f"a threshold of {name}", f"none, from {score['count']} cases")
        # a run that took its threshold from another one passes on where that was chosen
        origin = score.get("threshold_from") or self._result.config
        return ChosenThreshold(score["best_threshold"], origin["data"], origin["split"])


def _difference(there: Mapping[str, Any], here: Mapping[str, Any], path: str = "") -> str:
    """The first option that differs, with both values; empty where none does."""
    for key in here:
        left, right = there.get(key), here[key]
        if isinstance(right, Mapping) and isinstance(left, Mapping):
            inner = _difference(left, right, f"{path}{key}.")
            if inner:
                return inner
        elif left != right:
            return f"{path}{key} = {left} there, {right} here"
    return ""
