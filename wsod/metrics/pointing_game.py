"""The pointing game: does the map's maximum fall on the object?"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from wsod.errors import ConfigError, DataError
from wsod.metrics.base import CaseMean
from wsod.metrics.truth import TruthSource, boxes_in_frame, truth_mask
from wsod.textfiles import read_text
from wsod.types import AttentionMaps, Sample, Score

__all__ = ["PointingGame", "is_difficult_pair"]


def is_difficult_pair(sample: Sample, label: int) -> bool:
    """The *difficult* subset: small objects of the class, and other classes about.

    Without objects marked difficult: the boxes of the class cover, in sum, less than a quarter of the
    image, and at least one other class is present. Zhang et al., Top-down Neural Attention by Excitation
    Backprop, ECCV 2016, section 4.1.
    """
    boxes = sample.boxes_of(label, difficult=False)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1).sum()
    others = set(sample.labels[~sample.difficult].tolist()) - {label}
    return bool(len(boxes) and area < sample.size[0] * sample.size[1] / 4 and others)


@dataclass(kw_only=True, eq=False)
class PointingGame(CaseMean):
    """Mean over classes of the share of cases whose map has its maximum within 15 px of the class.

    The point is the first maximum in row-major order. It hits if some pixel (x, y) of the class has
    (x - px)² + (y - py)² < tolerance². A case whose objects are all *difficult* is left out, otherwise
    difficult objects count. Zhang et al., ECCV 2016; the details are those of Fong et al. (TorchRay),
    ICCV 2019.

    Args:
        tolerance: in pixels of the frame; 0 = the point must be on the class.
        truth: the class's `boxes` or its pixel `masks`.
        crowd: crowd objects (with masks: ignored pixels of the class) belong to the class.
        subset: `all` cases or the `difficult` ones (`is_difficult_pair`).
        flags: file that says which cases are difficult, instead of that rule: a line an image, its name and
            0 or 1 for each class (TorchRay's lists). An image that is not in it is difficult.
        smooth: sigma of a Gaussian over the map, as a share of the frame's larger side; 0 = none.
        unseen: a class without a case is left out of the mean, or counts as `zero` (TorchRay).
    """

    name: ClassVar[str] = "pointing_game"
    average: ClassVar[Literal["cases", "classes"] | None] = "classes"
    tolerance: float = 15.0
    truth: TruthSource = "boxes"
    crowd: bool = False
    subset: Literal["all", "difficult"] = "all"
    flags: Path | None = None
    smooth: float = 0.0
    unseen: Literal["leave-out", "zero"] = "leave-out"

    def __post_init__(self) -> None:
        if self.tolerance < 0 or not 0 <= self.smooth < 1:
            got = f"{self.tolerance:g}, {self.smooth:g}"
            raise ConfigError(self.name, "tolerance >= 0 and 0 <= smooth < 1", got)
        super().__post_init__()

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({self.truth})

    @cached_property
    def _flags(self) -> dict[str, list[str]]:
        """0 or 1 for each class, by image name without ending."""
        if self.flags is None:
            return {}
        try:
            rows = [line.split() for line in read_text(self.flags).splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(self.flags, "a readable text file", error) from error
        for name, *flags in rows:
            if len(flags) != self.classes or not {"0", "1"}.issuperset(flags):
                raise DataError(f"{self.flags}: {name}", f"0 or 1 for {self.classes} classes", len(flags))
        return {Path(name).stem: flags for name, *flags in rows}

    def _is_difficult(self, sample: Sample, label: int) -> bool:
        if self.flags is None:
            return is_difficult_pair(sample, label)
        flags = self._flags.get(Path(sample.image_id).stem)
        return flags is None or flags[label] == "1"

    @property
    def divisor(self) -> int | None:
        return self.classes if self.unseen == "zero" else None

    def point(self, maps: AttentionMaps, k: int) -> tuple[float, float]:
        """(x, y) of the k-th map's first maximum (or of its own point), in the evaluation frame."""
        if maps.point is not None:
            height, width = self.processing.size(maps)
            return maps.point[0] * width / maps.size[1], maps.point[1] * height / maps.size[0]
        scores = self.processing.score(maps, k).scores
        if self.smooth:
            sigma = self.smooth * max(scores.shape)
            scores = ndimage.gaussian_filter(scores, sigma, mode="nearest", radius=math.ceil(4 * sigma))
        y, x = np.unravel_index(int(scores.argmax()), scores.shape)
        return int(x), int(y)

    def case(self, maps: AttentionMaps, k: int, sample: Sample) -> float | None:
        label, frame = int(maps.labels[k]), self.processing.size(maps)
        present = sample.labels == label
        if not present.any():
            return 0.0
        if len(sample.boxes) and sample.difficult[present].all():
            return None
        if self.subset == "difficult" and not self._is_difficult(sample, label):
            return None
        if self.truth == "masks":
            mask = truth_mask(sample, label, frame, "masks", crowd=self.crowd)
            if mask is None:
                return None
            squared = _mask_distance(mask[0], self.point(maps, k), self.tolerance)
        else:
            boxes = sample.boxes_of(label, crowd=self.crowd)
            if not len(boxes):
                return None
            squared = _box_distance(boxes_in_frame(boxes, sample.size, frame), self.point(maps, k))
        claims = not self.processing.score(maps, k).constant
        return float(claims and (squared < self.tolerance**2 or squared == 0))

    def compute(self) -> Score:
        score = super().compute()
        if self.divisor is not None and score.per_class:
            score = replace(score, value=math.fsum(score.per_class.values()) / self.divisor)
        return score


def _box_distance(boxes: NDArray[np.float64], point: tuple[float, float]) -> float:
    """Smallest squared distance of the point to a pixel of the half-open boxes."""
    p = np.array(point)
    away = np.maximum(boxes[:, :2] - p, p - (boxes[:, 2:] - 1)).clip(0)
    return float((away**2).sum(1).min())


def _mask_distance(mask: NDArray[np.bool_], point: tuple[float, float], reach: float) -> float:
    """The same to the pixels of a mask, infinite where it is certainly more than `reach` squared."""
    x, y = point
    left, top = max(math.floor(x - reach), 0), max(math.floor(y - reach), 0)
    ys, xs = np.nonzero(mask[top : math.ceil(y + reach) + 1, left : math.ceil(x + reach) + 1])
    squared = (xs + left - x) ** 2 + (ys + top - y) ** 2
    return float(squared.min()) if squared.size else math.inf
