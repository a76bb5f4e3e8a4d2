"""Scores of attention maps against ground truth. One file a metric; `METRICS` by result name."""

from __future__ import annotations

from wsod.metrics.attribution_localization import AttributionLocalization
from wsod.metrics.auc import AUC
from wsod.metrics.average_drop import AverageDrop, IncreaseInConfidence
from wsod.metrics.base import Metric
from wsod.metrics.box_ap import BoxAP
from wsod.metrics.corloc import CorLoc, CorLocImage
from wsod.metrics.energy_pointing_game import EnergyPointingGame
from wsod.metrics.gt_known_loc import GTKnownLoc
from wsod.metrics.insertion import Deletion, Insertion
from wsod.metrics.jaccard import Jaccard
from wsod.metrics.map_stability import MapStability
from wsod.metrics.mask_iou import MaskIoU
from wsod.metrics.max_box_acc import MaxBoxAcc
from wsod.metrics.max_box_acc_v2 import MaxBoxAccV2
from wsod.metrics.miou import MIoU
from wsod.metrics.miou_atcon import MIoUATCON
from wsod.metrics.pointing_game import PointingGame
from wsod.metrics.pxap import PxAP
from wsod.metrics.relevance_mass import RelevanceMass
from wsod.metrics.relevance_rank import RelevanceRank
from wsod.metrics.topk_intersection import TopKIntersection
from wsod.metrics.topk_loc import Top1Loc, Top5Loc
from wsod.metrics.voc_ap import VocAP
from wsod.registry import Registry

__all__ = [
    "AUC",
    "METRICS",
    "AttributionLocalization",
    "AverageDrop",
    "BoxAP",
    "CorLoc",
    "CorLocImage",
    "Deletion",
    "EnergyPointingGame",
    "GTKnownLoc",
    "IncreaseInConfidence",
    "Insertion",
    "Jaccard",
    "MIoU",
    "MIoUATCON",
    "MapStability",
    "MaskIoU",
    "MaxBoxAcc",
    "MaxBoxAccV2",
    "Metric",
    "PointingGame",
    "PxAP",
    "RelevanceMass",
    "RelevanceRank",
    "Top1Loc",
    "Top5Loc",
    "TopKIntersection",
    "VocAP",
]

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
    Jaccard,
    PxAP,
    MIoU,
    MIoUATCON,
    BoxAP,
    VocAP,
    AttributionLocalization,
    RelevanceMass,
    RelevanceRank,
    TopKIntersection,
    AUC,
    AverageDrop,
    IncreaseInConfidence,
    Insertion,
    Deletion,
    MapStability,
)

METRICS: Registry[type[Metric]] = Registry("metric", {metric.name: metric for metric in _METRICS})
