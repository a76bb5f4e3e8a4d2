"""All heads side by side: how well they classify, and where their maps point."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from atcon.config import FinetuneConfig
from atcon.experiments.base import Arm, Measure
from atcon.experiments.headed import HeadExperiment, accuracy
from atcon.experiments.readings import Reading
from atcon.experiments.views import View, scores_of
from wsod.models import HEADS

__all__ = ["Heads"]


@dataclass(frozen=True, kw_only=True)
class Heads(HeadExperiment):
    """The same training of every head, scored by the head's own map, by Grad-CAM and by a centred Gaussian.

    Args:
        heads: which; `linear`'s own map is CAM.
        options: of a head, by its name.
    """

    name: ClassVar[str] = "heads"
    measures: ClassVar[tuple[Measure, ...]] = (
        Measure("accuracy", "top class right"),
        Measure("pointing", "pointing game"),
        Measure("boxes", "MaxBoxAccV2, tuned threshold"),
        Measure("mask_iou", "mask IoU, tuned threshold"),
        Measure("jaccard", "mask IoU, Otsu"),
    )

    heads: tuple[str, ...] = ("linear", "lfi", "ltpa", "abn", "calm")
    options: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for head in self.heads:
            HEADS[head]  # an unknown one is found before any work starts

    def arms(self) -> tuple[Arm, ...]:
        return (
            Arm("center", None, self._views(("center",))),
            *(
                Arm(head, partial(self._config, head), self._views((self.own(head), "gradcam")))
                for head in self.heads
            ),
        )

    def _views(self, maps: tuple[str, ...]) -> tuple[View, ...]:
        tuned = ("max_box_acc_v2", "mask_iou")
        metrics = ("pointing_game", *tuned, "jaccard")
        return (
            View("val", self.data, self.tune, self.images, maps, metrics=tuned),
            View(
                "test",
                self.data,
                self.test,
                self.images,
                maps,
                metrics=metrics,
                threshold_from="val",
                predictions=True,
            ),
        )

    def _config(self, head: str, seed: int, home: Path) -> FinetuneConfig:
        return self.trained(seed, head, self.options.get(head, {}))

    def read(self, folder: Path) -> Mapping[str, Mapping[str, Reading]]:
        rows = {"center": self._readings(folder / "center" / "test", "center")}
        for head in self.heads:
            view = folder / head / "test"
            rows[head] = {"accuracy": accuracy(view), **self._readings(view, self.own(head))}
            rows[f"{head}, gradcam"] = self._readings(view, "gradcam")
        return rows

    def _readings(self, view: Path, maps: str) -> dict[str, Reading]:
        named = {"pointing": "pointing_game", "boxes": "max_box_acc_v2", "mask_iou": "mask_iou"}
        return {key: scores_of(view, metric, maps) for key, metric in {**named, "jaccard": "jaccard"}.items()}

    def contrasts(self) -> tuple[tuple[str, str], ...]:
        """Each head's map against the first head's, its own Grad-CAM, and the centred Gaussian."""
        first, *others = self.heads
        pairs = [(head, first) for head in others] + [(head, "center") for head in self.heads]
        return tuple(pairs + [(head, f"{head}, gradcam") for head in self.heads])
