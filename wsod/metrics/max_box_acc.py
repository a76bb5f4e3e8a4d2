"""MaxBoxAcc: box accuracy at IoU 0.5, at the best global threshold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from wsod.metrics.box_hits import BoxHits

__all__ = ["MaxBoxAcc"]


@dataclass(kw_only=True, eq=False)
class MaxBoxAcc(BoxHits):
    """max over t of the share of cases whose largest component's box has IoU >= 0.5 with a true box.

    Choe et al., Evaluating Weakly Supervised Object Localization Methods Right, CVPR 2020, section 4.1.

    Args:
        iou: needed for a hit.
    """

    name: ClassVar[str] = "max_box_acc"
    average: ClassVar[Literal["cases", "classes"] | None] = "cases"
    iou: float = 0.5

    @property
    def _ious(self) -> tuple[float, ...]:
        return (self.iou,)
