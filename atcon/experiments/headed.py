"""What the experiments about heads share: how one is trained, and what is read off it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atcon.config import FinetuneConfig, config_from_tables
from atcon.experiments.predictions import Predictions
from atcon.experiments.readings import Cases
from atcon.experiments.views import stored_maps
from wsod.boxes.convert import heatmap_to_mask
from wsod.config import merge

__all__ = ["accuracy", "map_iou", "row_iou", "trained"]

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


def trained(
    recipe: str,
    seed: int,
    *,
    data: Mapping[str, Any],
    model: Mapping[str, Any],
    train: Mapping[str, Any],
) -> FinetuneConfig:
    """Supervised training, from random weights unless `model` says otherwise.

    Args:
        recipe: the experiment's name.
        seed: of the run.
        data, model: tables of a recipe.
        train: what its stage sets otherwise than `SCRATCH`.
    """
    table = {"data": data, "model": model, "stages": {"start": merge(SCRATCH, train)}, "seed": seed}
    return config_from_tables({**table, "recipe": recipe}, {}, recipe)


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
