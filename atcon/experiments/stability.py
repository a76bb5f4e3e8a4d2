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
        others: maps of the network's own head that are scored beside CAM, for comparison: the main component
            of its features, which knows no class and needs no training of its own, and a Gaussian that is the
            same for every image.
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
    others: tuple[str, ...] = ("eigencam", "center")
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

    def _rows(self) -> dict[str, tuple[str, str]]:
        """Head and maps by row."""
        rows = {head: (head, self.own(head)) for head in self.heads}
        if "linear" in self.heads:
            rows |= {f"linear, {maps}": ("linear", maps) for maps in self.others}
        return rows

    def arms(self) -> tuple[Arm, ...]:
        return tuple(
            Arm(
                f"{head}-{setting}",
                partial(self._config, head, setting),
                tuple(self._view(row) for row, (other, _) in self._rows().items() if other == head),
            )
            for head in self.heads
            for setting in self._settings()
        )

    def _view(self, row: str) -> View:
        head, maps = self._rows()[row]
        return View(
            "test" if row == head else f"test-{maps}",
            self.data,
            self.test,
            self.images,
            (maps,),
            metrics=tuple(NAMED.values()),
            predictions=row == head,
            save_maps=True,
        )

    def _config(self, head: str, setting: str, seed: int, home: Path) -> FinetuneConfig:
        return self.trained(seed, head, self.options.get(head, {}), train=self._settings()[setting])

    def read(self, folder: Path) -> Mapping[str, Mapping[str, Reading]]:
        return {row: self._readings(folder, row) for row in self._rows()}

    def _readings(self, folder: Path, row: str) -> dict[str, Reading]:
        head, maps = self._rows()[row]
        views = [folder / f"{head}-{setting}" / self._view(row).name for setting in self._settings()]
        found: dict[str, Reading] = {
            key: _mean([scores_of(view, metric, maps) for view in views]) for key, metric in NAMED.items()
        }
        found["iou"] = map_iou(views, maps, (self.frame, self.frame))
        if row == head:
            found["accuracy"] = _mean([accuracy(view) for view in views])
        return found

    def contrasts(self) -> tuple[tuple[str, str], ...]:
        """Every head against every one before it, and against the other maps."""
        others = [row for row in self._rows() if row not in self.heads]
        pairs = [(b, a) for i, b in enumerate(self.heads) for a in self.heads[:i]]
        return tuple(pairs + [(head, row) for head in self.heads for row in others])


def _mean(readings: list[Cases]) -> Cases:
    """The mean over runs, case by case, of cases that all have."""
    shared = set.intersection(*(set(reading.values) for reading in readings))
    return Cases({c: float(np.mean([reading.values[c] for reading in readings])) for c in sorted(shared)})
