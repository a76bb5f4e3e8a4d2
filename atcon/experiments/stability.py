"""Do a head's maps stay where they are when training is set otherwise?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from atcon.config import FinetuneConfig
from atcon.experiments.base import Arm, Measure
from atcon.experiments.headed import HeadExperiment, accuracy, map_iou
from atcon.experiments.readings import Cases, Reading
from atcon.experiments.views import View, scores_of
from wsod.config import plain
from wsod.errors import ConfigError
from wsod.models import HEADS

__all__ = ["Stability"]

SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "base": {},
    "batch": {"batch": 16},
    "lr": {"lr": 1e-3},
    # decoupled, times the rate: over 300 steps, weights shrink by a quarter
    "decay": {"weight_decay": 1.0},
}

NAMED = {"drop": "average_drop", "increase": "increase_in_confidence", "pointing": "pointing_game"}


@dataclass(frozen=True, kw_only=True)
class Stability(HeadExperiment):
    """LFI-CAM's claim: maps of trainings with other batch size, learning rate, weight decay overlap more.

    Lee et al., LFI-CAM, ICCV 2021, section on stability: the IoU of {map > 100/255} between runs, here over
    all pairs of settings of a seed (their script computes something else, see docs/protocols.md). Average
    drop and increase in confidence are means over the settings. All settings of a seed start from the same
    weights and see the images in the same order, so what differs is the setting alone.

    Args:
        heads: `linear` is read by CAM, the others by their own map.
        settings: what each training sets otherwise than the first; empty = other batch size, learning rate
            and weight decay, one at a time.
        options: of a head, by its name.
        frame: side, in pixels, maps are compared at.
    """

    name: ClassVar[str] = "stability"
    measures: ClassVar[tuple[Measure, ...]] = (
        Measure("iou", "map IoU between runs"),
        Measure("accuracy", "top class right"),
        Measure("drop", "average drop"),
        Measure("increase", "increase in confidence"),
        Measure("pointing", "pointing game"),
    )

    heads: tuple[str, ...] = ("linear", "lfi", "abn")
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    options: dict[str, dict[str, Any]] = field(default_factory=dict)
    frame: int = 64

    def __post_init__(self) -> None:
        for head in self.heads:
            HEADS[head]
        trained = [plain(self._config(self.heads[0], name, 0, Path())) for name in self._settings()]
        if len(trained) < 2 or any(a == b for a, b in combinations(trained, 2)):
            got = ", ".join(self._settings())
            raise ConfigError("experiment stability: settings", "two or more different trainings", got)

    def _settings(self) -> Mapping[str, Mapping[str, Any]]:
        return self.settings or SETTINGS

    def arms(self) -> tuple[Arm, ...]:
        return tuple(
            Arm(f"{head}-{setting}", partial(self._config, head, setting), (self._view(head),))
            for head in self.heads
            for setting in self._settings()
        )

    def _view(self, head: str) -> View:
        return View(
            "test",
            self.data,
            self.test,
            self.images,
            (self.own(head),),
            metrics=tuple(NAMED.values()),
            predictions=True,
            save_maps=True,
        )

    def _config(self, head: str, setting: str, seed: int, home: Path) -> FinetuneConfig:
        return self.trained(seed, head, self.options.get(head, {}), train=self._settings()[setting])

    def read(self, folder: Path) -> Mapping[str, Mapping[str, Reading]]:
        return {head: self._readings(folder, head) for head in self.heads}

    def _readings(self, folder: Path, head: str) -> dict[str, Reading]:
        maps = self.own(head)
        views = [folder / f"{head}-{setting}" / "test" for setting in self._settings()]
        return {
            "iou": map_iou(views, maps, (self.frame, self.frame)),
            "accuracy": _mean([accuracy(view) for view in views]),
            **{
                key: _mean([scores_of(view, metric, maps) for view in views]) for key, metric in NAMED.items()
            },
        }

    def contrasts(self) -> tuple[tuple[str, str], ...]:
        """Every head against every one before it."""
        return tuple((b, a) for i, b in enumerate(self.heads) for a in self.heads[:i])


def _mean(readings: list[Cases]) -> Cases:
    """The mean over runs, case by case, of cases that all have."""
    shared = set.intersection(*(set(reading.values) for reading in readings))
    return Cases({c: float(np.mean([reading.values[c] for reading in readings])) for c in sorted(shared)})
