"""Attention maps of image classifiers → masks and boxes → scores against VOC, COCO and WSOL ground truth."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wsod.boxes.convert import heatmap_to_boxes, heatmap_to_mask
    from wsod.boxes.sweep import ThresholdSweep, threshold_sweep
    from wsod.comparison import compare
    from wsod.data import open_dataset
    from wsod.errors import WsodError
    from wsod.evaluation import evaluate
    from wsod.maps.extract import attention_maps
    from wsod.models import load_classifier
    from wsod.types import AttentionMaps, Sample, Score

__version__ = "0.1.0"

# where each public name lives; imported on first use, so that `import wsod` stays free of torch
_HOMES = {
    "AttentionMaps": "wsod.types",
    "Sample": "wsod.types",
    "Score": "wsod.types",
    "ThresholdSweep": "wsod.boxes.sweep",
    "WsodError": "wsod.errors",
    "attention_maps": "wsod.maps.extract",
    "compare": "wsod.comparison",
    "evaluate": "wsod.evaluation",
    "heatmap_to_boxes": "wsod.boxes.convert",
    "heatmap_to_mask": "wsod.boxes.convert",
    "load_classifier": "wsod.models",
    "open_dataset": "wsod.data",
    "threshold_sweep": "wsod.boxes.sweep",
}

__all__ = [
    "AttentionMaps",
    "Sample",
    "Score",
    "ThresholdSweep",
    "WsodError",
    "attention_maps",
    "compare",
    "evaluate",
    "heatmap_to_boxes",
    "heatmap_to_mask",
    "load_classifier",
    "open_dataset",
    "threshold_sweep",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if name in ("boxes", "data", "maps", "metrics", "models"):
        return importlib.import_module(f"wsod.{name}")
    raise AttributeError(f"module 'wsod' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
