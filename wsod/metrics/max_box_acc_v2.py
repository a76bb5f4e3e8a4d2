"""MaxBoxAccV2: box accuracy of the best component, averaged over IoU 0.3, 0.5 and 0.7."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from wsod.metrics.box_hits import BoxHits

__all__ = ["MaxBoxAccV2"]


@dataclass(kw_only=True, eq=False)
class MaxBoxAccV2(BoxHits):
    """Mean over IoUs d of max over t of the share of cases with any component's box of IoU >= d.

    Each IoU has its own best threshold. Choe et al., Evaluation for Weakly Supervised Object Localization:
    Protocol, Metrics, and Datasets, TPAMI 2022 (arXiv 2007.04178), section 4.

    Args:
        ious: needed for a hit, each counted apart.
    """

    name: ClassVar[str] = "max_box_acc_v2"
    average: ClassVar[Literal["cases", "classes"] | None] = "cases"
    components: Literal["all", "largest"] = "all"
    ious: tuple[float, ...] = (0.3, 0.5, 0.7)

    @property
    def _ious(self) -> tuple[float, ...]:
        return self.ious
