"""Baselines that see no image: a box at the centre, and the whole image."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from atcon.experiments.readings import Cases
from wsod.data.dataset import Dataset
from wsod.metrics.truth import TruthSource, truth_mask

__all__ = ["box_rows"]

SIDES = tuple(np.linspace(0.05, 1.0, 20).tolist())
TRUTHS: dict[str, TruthSource] = {"miou_atcon_all": "boxes", "mask_iou": "masks"}


def box_rows(train: Dataset, scored: Dataset, limit: int = 0) -> dict[str, dict[str, Cases]]:
    """IoU of `centre box` and `whole image` with each true class's boxes, and with its pixels.

    The centre box has the image's proportions, and the share of its sides that is best on `train`.

    Args:
        train: where that share is chosen, for boxes and for pixels apart.
        scored: what is scored.
        limit: first N images of each only; 0 = all.

    Returns:
        By row, `miou_atcon_all` (against boxes) and `mask_iou` (against masks; empty without them).
    """
    rows: dict[str, dict[str, Cases]] = {"centre box": {}, "whole image": {}}
    found = {name: list(_overlaps(train, limit, truth)) for name, truth in TRUTHS.items()}
    for name, truth in TRUTHS.items():
        mean = np.mean([ious for _, ious in found[name]], axis=0) if found[name] else np.zeros(len(SIDES))
        best = int(np.argmax(mean))
        scores = dict(_overlaps(scored, limit, truth))
        rows["centre box"][name] = Cases({case: float(ious[best]) for case, ious in scores.items()})
        rows["whole image"][name] = Cases({case: float(ious[-1]) for case, ious in scores.items()})
    return rows


def _overlaps(
    dataset: Dataset, limit: int, truth: TruthSource
) -> Iterator[tuple[tuple[str, str], np.ndarray]]:
    """(image, class) and the IoU of the centre box of each of `SIDES`."""
    for index in range(min(limit or len(dataset), len(dataset))):
        sample = dataset[index]
        height, width = sample.size
        for label in sample.classes:
            pixels = truth_mask(sample, label, sample.size, truth)
            if pixels is None:
                continue
            foreground, ignore = pixels
            ious = []
            for side in SIDES:
                claim = np.zeros(sample.size, np.bool_)
                y, x = round(height * (1 - side) / 2), round(width * (1 - side) / 2)
                claim[y : height - y, x : width - x] = True
                claim &= ~ignore
                union = (claim | foreground).sum()
                ious.append((claim & foreground).sum() / union if union else 0.0)
            yield (sample.image_id, dataset.classes[label]), np.array(ious)
