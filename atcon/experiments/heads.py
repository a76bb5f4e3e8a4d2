"""All heads side by side: how well they classify, and where their maps point."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from atcon.config import FinetuneConfig
from atcon.experiments.base import Arm, Experiment, Measure
from atcon.experiments.headed import accuracy, trained
from atcon.experiments.readings import Reading
from atcon.experiments.views import View, scores_of
from wsod.config import merge
from wsod.models import HEADS

__all__ = ["Heads"]


@dataclass(frozen=True, kw_only=True)
class Heads(Experiment):
    """The same training of every head, scored by the head's own map, by Grad-CAM and by a centred Gaussian.

    Args:
        heads: which; `linear`'s own map is CAM.
        options: of a head, by its name.
        images: the first N images of a split only; 0 = all.
        arch, weights, size: of the classifier.
        train: what its stage sets otherwise.
        extra: what its `[data]` sets otherwise.
    """

    name: ClassVar[str] = "heads"
    measures: ClassVar[tuple[Measure, ...]] = (
        Measure("accuracy", "top class right"),
        Measure("pointing", "pointing game"),
        Measure("boxes", "MaxBoxAccV2, threshold of val"),
        Measure("mask_iou", "mask IoU, threshold of val"),
        Measure("jaccard", "mask IoU, Otsu"),
    )

    data: str = "shapes:simple=true,count=400"
    heads: tuple[str, ...] = ("linear", "lfi", "ltpa", "abn", "calm")
    options: dict[str, dict[str, Any]] = field(default_factory=dict)
    images: int = 0
    arch: str = "smallnet"
    weights: str = "none"
    size: int = 48
    train: dict[str, Any] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for head in self.heads:
            HEADS[head]  # an unknown one is found before any work starts

    def arms(self) -> tuple[Arm, ...]:
        return (
            Arm("center", None, self._views(("center",))),
            *(
                Arm(head, partial(self._config, head), self._views((self._own(head), "gradcam")))
                for head in self.heads
            ),
        )

    @staticmethod
    def _own(head: str) -> str:
        return "cam" if head == "linear" else "attention"

    def _views(self, maps: tuple[str, ...]) -> tuple[View, ...]:
        metrics = ("pointing_game", "max_box_acc_v2", "mask_iou", "jaccard")
        val = View("val", self.data, "val", self.images, maps, metrics=("max_box_acc_v2", "mask_iou"))
        test = View(
            "test",
            self.data,
            "test",
            self.images,
            maps,
            metrics=metrics,
            threshold_from="val",
            predictions=True,
        )
        return val, test

    def _config(self, head: str, seed: int, home: Path) -> FinetuneConfig:
        model = {"arch": self.arch, "weights": self.weights, "size": self.size, "head": head}
        model["head_options"] = self.options.get(head, {})
        data = merge({"spec": self.data, "train": "train", "val": "val"}, self.extra)
        return trained(self.name, seed, data=data, model=model, train=self.train)

    def read(self, folder: Path) -> Mapping[str, Mapping[str, Reading]]:
        rows = {"center": self._readings(folder / "center" / "test", "center")}
        for head in self.heads:
            view = folder / head / "test"
            rows[head] = {"accuracy": accuracy(view), **self._readings(view, self._own(head))}
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
