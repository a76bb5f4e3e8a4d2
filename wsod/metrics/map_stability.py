"""Map stability: do several rows of maps, such as those of several checkpoints, claim the same pixels?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from wsod.boxes.convert import Rule, heatmap_to_mask
from wsod.errors import ConfigError
from wsod.metrics.base import CaseMean, Scene
from wsod.types import AttentionMaps, Sample

__all__ = ["MapStability"]


@dataclass(kw_only=True, eq=False)
class MapStability(CaseMean):
    """Mean over cases of the IoU of the thresholded map with the other rows' thresholded maps of it.

    With several other rows a case's score is the mean over them, so the mean of all rows is the mean over
    pairs of rows. Lee et al., LFI-CAM, ICCV 2021, compare so the maps of models trained with other
    hyper-parameters. Needs no annotations. Where one of two maps claims nothing (constant, or an empty
    mask) their IoU is 0; a case that no other row has is left out.

    Args:
        rule: what the threshold is a fraction of (`heatmap_to_mask`), the same for all rows.
        threshold: of that rule; the paper's is 100 of 255.
    """

    name: ClassVar[str] = "map_stability"
    rule: Rule = "max"
    threshold: float = 100 / 255

    def __post_init__(self) -> None:
        heatmap_to_mask([[0.0, 1.0]], self.threshold, rule=self.rule)  # refuses a wrong threshold now
        super().__post_init__()

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"rows"})

    def prepare(self, batch: Sequence[Scene]) -> None:
        for maps, _, others in batch:
            maps.cache["other rows"] = others

    def case(self, maps: AttentionMaps, k: int, sample: Sample) -> float | None:
        if not maps.cache.get("other rows"):
            raise ConfigError(self.name, "two rows of maps or more", "one", "Repeat --maps.")
        label, overlaps = maps.labels[k], []
        for other in maps.cache["other rows"]:
            (places,) = np.nonzero(other.labels == label)
            if len(places):
                a, b = self._mask(maps, k), self._mask(other, int(places[0]))
                union = (a | b).sum()
                overlaps.append((a & b).sum() / union if union else 0.0)
        return float(np.mean(overlaps)) if overlaps else None

    def _mask(self, maps: AttentionMaps, k: int) -> NDArray[np.bool_]:
        key = ("mask", self.processing, self.rule, self.threshold, k)
        if key not in maps.cache:
            score = self.processing.score(maps, k)
            mask = heatmap_to_mask(score.scores, self.threshold, rule=self.rule)
            maps.cache[key] = mask & (not score.constant)
        found: NDArray[np.bool_] = maps.cache[key]
        return found
