"""What the experiments about heads share: how one is trained, and what is read off it."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atcon.config import FinetuneConfig, config_from_tables
from atcon.experiments.base import Experiment
from atcon.experiments.predictions import Predictions
from atcon.experiments.readings import Cases
from atcon.experiments.views import stored_maps
from wsod.boxes.convert import heatmap_to_mask
from wsod.config import merge

__all__ = ["HeadExperiment", "accuracy", "map_iou", "row_iou"]

SCRATCH: Mapping[str, Any] = {
    "steps": 300,
    "batch": 32,
    "lr": 2e-3,
    "schedule": "cosine",
    "warmup": 10,
    "evaluate_every": 1_000_000,
    "select": "last",
    "objectives": {"supervised": {}},
}


@dataclass(frozen=True, kw_only=True)
class HeadExperiment(Experiment, ABC):
    """One supervised stage an arm, on a trunk that all arms have in common.

    Args:
        tune: split that thresholds are chosen on.
        test: split that is scored; another one.
        images: the first N images of these two only; 0 = all.
        arch, weights, size: of the classifier, as a recipe's `[model]` has them.
        train: what the stages set otherwise than `SCRATCH`.
        extra: what `[data]` sets otherwise.
    """

    data: str = "shapes:simple=true,count=400"
    tune: str = "val"
    test: str = "test"
    images: int = 0
    arch: str = "smallnet"
    weights: str = "none"
    size: int = 48
    train: dict[str, Any] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)

    def trained(
        self,
        seed: int,
        head: str,
        options: Mapping[str, Any],
        *,
        train: Mapping[str, Any] | None = None,
        data: Mapping[str, Any] | None = None,
    ) -> FinetuneConfig:
        """How an arm is trained.

        Args:
            seed: of the run.
            head: its name.
            options: of the head.
            train, data: what this arm sets otherwise, beyond the experiment's own.
        """
        model = {"arch": self.arch, "weights": self.weights, "size": self.size, "head": head}
        table = {
            "data": merge({"spec": self.data, "train": "train", "val": "val", **(data or {})}, self.extra),
            "model": {**model, "head_options": options},
            "stages": {"start": merge(merge(SCRATCH, self.train), train or {})},
            "seed": seed,
            "recipe": self.name,
        }
        return config_from_tables(table, {}, self.name)

    @staticmethod
    def own(head: str) -> str:
        """The map that a head makes; of the network's own head, CAM."""
        return "cam" if head == "linear" else "attention"


def accuracy(view: Path) -> Cases:
    """Whether the top class of an image is one it shows."""
    said = Predictions.load(view / "logits.npz")
    assert said is not None, f"{view} keeps predictions"
    hits = said.positive[np.arange(len(said.images)), said.logits.argmax(1)]
    return Cases({(image, ""): float(hit) for image, hit in zip(said.images, hits, strict=True)})


def map_iou(views: Sequence[Path], maps: str, size: tuple[int, int], threshold: float = 100 / 255) -> Cases:
    """Mean over pairs of runs of the IoU of {map > threshold}, case by case; LFI-CAM's stability.

    Args:
        views: of the runs, which keep these maps.
        maps: which.
        size: (height, width) maps are resized to.
        threshold: of min-max scaled maps; the paper's is 100 of 255.

    Returns:
        Two empty masks overlap wholly.
    """
    claims = [
        {case: _claim(values, size, threshold) for case, values in stored_maps(view, maps).items()}
        for view in views
    ]
    found: dict[tuple[str, str], list[float]] = {}
    for a, b in combinations(claims, 2):
        for image, label in a.keys() & b.keys():
            one, other = a[image, label], b[image, label]
            union = (one | other).sum()
            iou = float((one & other).sum() / union) if union else 1.0
            found.setdefault((image, str(label)), []).append(iou)
    return Cases({case: float(np.mean(ious)) for case, ious in sorted(found.items())})


def _claim(values: NDArray[Any], size: tuple[int, int], threshold: float) -> NDArray[np.bool_]:
    claim: NDArray[np.bool_] = heatmap_to_mask(values, threshold, rule="max", size=size)
    return claim


def row_iou(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    """The "IoU" of LFI-CAM's public script: a mean over rows, smoothed so that two empty rows count 1.

    Only to understand its figures: two disjoint squares of 10 pixels in 64×64 score 0.6875, not 0.
    """
    intersection, union = (a & b).sum(1), (a | b).sum(1)
    return float(((intersection + 1e-6) / (union + 1e-6)).mean())
