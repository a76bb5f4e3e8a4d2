"""Scores of attention maps against ground truth. One file a metric; `METRICS` by result name."""

from __future__ import annotations

from wsod.metrics.base import Metric
from wsod.metrics.corloc import CorLoc, CorLocImage
from wsod.metrics.energy_pointing_game import EnergyPointingGame
from wsod.metrics.gt_known_loc import GTKnownLoc
from wsod.metrics.mask_iou import MaskIoU
from wsod.metrics.max_box_acc import MaxBoxAcc
from wsod.metrics.max_box_acc_v2 import MaxBoxAccV2
from wsod.metrics.pointing_game import PointingGame
from wsod.metrics.topk_loc import Top1Loc, Top5Loc
from wsod.registry import Registry

_METRICS: tuple[type[Metric], ...] = (
    MaxBoxAcc,
    MaxBoxAccV2,
    GTKnownLoc,
    Top1Loc,
    Top5Loc,
    CorLoc,
    CorLocImage,
    PointingGame,
    EnergyPointingGame,
    MaskIoU,
)

METRICS: Registry[type[Metric]] = Registry("metric", {metric.name: metric for metric in _METRICS})

__all__ = ["METRICS", "Metric", *sorted(metric.__name__ for metric in _METRICS)]
