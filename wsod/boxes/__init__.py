"""Score maps → masks and boxes: at one threshold (`convert`), at all of them at once (`sweep`)."""

from __future__ import annotations

from wsod.boxes.convert import heatmap_to_boxes, heatmap_to_mask
from wsod.boxes.iou import iou

__all__ = ["heatmap_to_boxes", "heatmap_to_mask", "iou"]
