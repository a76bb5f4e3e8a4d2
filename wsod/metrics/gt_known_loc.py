"""GT-known localization: box accuracy with the true class given, at a fixed or the best threshold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from wsod.errors import MapError
from wsod.metrics.box_hits import Bool, BoxHits
from wsod.types import AttentionMaps, Sample

__all__ = ["GTKnownLoc"]


@dataclass(kw_only=True, eq=False)
class GTKnownLoc(BoxHits):
    """Share of cases whose map has a box of IoU >= 0.5 with a true box, whatever the classifier says.

    Singh and Lee, Hide-and-Seek, ICCV 2017, section 4.1. With several thresholds the best is taken.

    Args:
        iou: needed for a hit.
    """

    name: ClassVar[str] = "gt_known_loc"
    average: ClassVar[Literal["cases", "classes"] | None] = "cases"
    iou: float = 0.5

    @property
    def _ious(self) -> tuple[float, ...]:
        return (self.iou,)

    def _measure(self, maps: AttentionMaps, sample: Sample) -> dict[int, Bool | None]:
        true, found = sample.classes, super()._measure(maps, sample)
        if any(label not in found for label in true):
            wanted, hint = f"maps of the image's classes, for {self.name}", "Use --labels truth."
            raise MapError(sample.image_id, wanted, f"of {list(found)}", hint)
        return {label: found[label] for label in true}
