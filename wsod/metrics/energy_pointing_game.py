"""The energy-based pointing game: how much of the map's mass lies on the object?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from wsod.errors import ConfigError
from wsod.metrics.base import CaseMean
from wsod.metrics.truth import TruthSource, truth_mask
from wsod.types import AttentionMaps, Sample

__all__ = ["EnergyPointingGame"]


@dataclass(kw_only=True, eq=False)
class EnergyPointingGame(CaseMean):
    """Mean over cases of the map's sum inside the class's boxes over its whole sum.

    Wang et al., Score-CAM, CVPR workshops 2020, section 4.3. Differs from the published code, which
    swaps the image's axes.

    Args:
        truth: the class's `boxes` (their union) or its pixel `masks`.
        max_share: cases whose truth covers that share of the image or more are left out (the paper: 0.5);
            1 = only those that cover all of it.
        difficult: difficult objects are truth too.
        crowd: crowd objects are truth too; else their pixels are left out of both sums.
    """

    name: ClassVar[str] = "energy_pointing_game"
    truth: TruthSource = "boxes"
    max_share: float = 1.0
    difficult: bool = True
    crowd: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.max_share <= 1:
            raise ConfigError(f"{self.name}: max_share", "a share above 0, at most 1", self.max_share)
        super().__post_init__()

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({self.truth})

    def case(self, maps: AttentionMaps, k: int, sample: Sample) -> float | None:
        label = int(maps.labels[k])
        options = {"difficult": self.difficult, "crowd": self.crowd}
        found = truth_mask(sample, label, self.processing.size(maps), self.truth, **options)
        if found is None or found[0].mean() >= self.max_share:
            return None
        score = self.processing.score(maps, k)
        foreground, ignore = found
        inside = score.scores[foreground].sum()
        total = inside + score.scores[~(foreground | ignore)].sum()
        return float(inside / total) if total > 0 and not score.constant else 0.0
