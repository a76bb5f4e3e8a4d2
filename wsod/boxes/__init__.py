"""Score maps → masks and boxes: at one threshold (`convert`), at all of them at once (`sweep`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from wsod.boxes.convert import heatmap_to_boxes, heatmap_to_mask
from wsod.boxes.iou import iou

if TYPE_CHECKING:
    from wsod.boxes.batch import best_ious
    from wsod.boxes.sweep import ThresholdSweep, threshold_sweep

__all__ = ["ThresholdSweep", "best_ious", "heatmap_to_boxes", "heatmap_to_mask", "iou", "threshold_sweep"]


def __getattr__(name: str) -> Any:
    if name in ("ThresholdSweep", "threshold_sweep"):
        # numba takes half a second to import; a mask or a box at one threshold does without
        from wsod.boxes import sweep

        return getattr(sweep, name)
    if name == "best_ious":
        from wsod.boxes.batch import best_ious

        return best_ious
    raise AttributeError(f"module 'wsod.boxes' has no attribute {name!r}")
