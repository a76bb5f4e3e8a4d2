"""What moves between the stages: an image's annotations, its attention maps, a score.

Conventions, stated once. Boxes are xyxy, 0-based, half-open (x1 is the last pixel + 1), in pixels of
the original image. Sizes are (height, width), points (x, y). A *label* is a class index; a *case* is an
(image, label) pair.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wsod.errors import DataError, MapError

__all__ = [
    "MAX_PIXELS",
    "MAX_SIDE",
    "MAX_VALUE",
    "AttentionMaps",
    "InstanceMasks",
    "Masks",
    "Sample",
    "Score",
    "ScoredBoxes",
]

MAX_PIXELS = 100_000_000
"""Images above this are refused before anything is decoded or set aside: a small file can claim any size."""

MAX_SIDE = 65_536
"""Of an image, likewise: to resize a map to a row of millions of pixels takes gigabytes."""

MAX_VALUE = 1e150
"""Maps beyond this are refused: their sums and squares would be infinite."""

Box = NDArray[np.float64]
Bool = NDArray[np.bool_]
Int = NDArray[np.int64]


@runtime_checkable
class Masks(Protocol):
    """Pixel truth of one image, read from disk only when asked. All arrays are (height, width)."""

    def of(self, label: int) -> Bool:
        """Pixels of that class."""
        ...

    def ignore(self, label: int) -> Bool:
        """Pixels that count neither for nor against that class (VOC's 255, crowds, ignore regions)."""
        ...

    def semantic(self) -> NDArray[np.int64]:
        """0 = background, label + 1 = that class, -1 = void; where classes overlap, the higher label."""
        ...


@runtime_checkable
class InstanceMasks(Masks, Protocol):
    """Pixel truth that also knows single objects."""

    def instance(self, n: int) -> Bool:
        """(height, width) pixels of the sample's n-th box."""
        ...


def _frozen(values: ArrayLike, dtype: type[np.generic], shape: tuple[int, ...]) -> NDArray[Any]:
    array = np.array(values, dtype=dtype).reshape(shape)
    array.setflags(write=False)
    return array


@dataclass(frozen=True, eq=False)
class Sample:
    """One image's annotations. No pixels are read to make it.

    Args:
        image_id: unique in its dataset; names the image in results and map files.
        image_path: the image file, or None where no image is needed (controls, annotations alone).
        size: (height, width) in pixels.
        boxes: (N, 4) float64, xyxy half-open, inside the image. May be empty.
        labels: (N,) class index of each box; without boxes, the image's labels (boxes then is (0, 4)).
        difficult: (N,) bool, VOC's *difficult*.
        crowd: (N,) bool, COCO's *iscrowd*.
        areas: (N,) size of each object in square pixels, as COCO's files have it (its mask's); of its box
            where it is not given.
        masks: pixel truth, read when asked, or None.

    Raises:
        DataError: naming the image, where shapes disagree or a box is empty or outside.
    """

    image_id: str
    image_path: Path | None
    size: tuple[int, int]
    boxes: Box = field(default_factory=lambda: np.zeros((0, 4)))
    labels: Int = field(default_factory=lambda: np.zeros(0, np.int64))
    difficult: Bool = field(default_factory=lambda: np.zeros(0, np.bool_))
    crowd: Bool = field(default_factory=lambda: np.zeros(0, np.bool_))
    areas: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    masks: Masks | None = None

    def __post_init__(self) -> None:
        where = self.image_path or self.image_id
        height, width = (int(side) for side in self.size)
        if height < 1 or width < 1:
            raise DataError(where, "a size of at least 1x1", f"{width}x{height}")
        if height * width > MAX_PIXELS or max(height, width) > MAX_SIDE:
            hint = "Scale the image down first."
            raise DataError(
                where, f"at most {MAX_PIXELS} pixels, {MAX_SIDE} a side", f"{width}x{height}", hint
            )
        boxes = np.asarray(self.boxes, np.float64)
        if boxes.size % 4:
            raise DataError(where, "boxes of shape (N, 4)", boxes.shape)
        boxes, n = _frozen(boxes, np.float64, (-1, 4)), boxes.size // 4
        labels = _frozen(self.labels, np.int64, (-1,))
        if n and len(labels) != n:
            raise DataError(where, f"a label for each of {n} boxes", f"{len(labels)} labels")
        if len(labels) and labels.min() < 0:
            raise DataError(where, "labels of at least 0", int(labels.min()))
        flags = {}
        for name in ("difficult", "crowd"):
            values = np.asarray(getattr(self, name), np.bool_)
            values = values if values.size else np.zeros(n, np.bool_)
            if len(values) != n:
                raise DataError(where, f"{name} for each of {n} boxes", f"{len(values)} values")
            flags[name] = _frozen(values, np.bool_, (-1,))
        if n and not np.isfinite(boxes).all():
            raise DataError(where, "finite box coordinates", "NaN or infinity")
        for x0, y0, x1, y1 in boxes:
            if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
                raise DataError(
                    where,
                    f"non-empty boxes (x0, y0, x1, y1) inside {width}x{height}",
                    f"({x0:g}, {y0:g}, {x1:g}, {y1:g})",
                    "Coordinates are 0-based and half-open.",
                )
        areas = np.asarray(self.areas, np.float64)
        areas = areas if areas.size else (boxes[:, 2:] - boxes[:, :2]).prod(1)
        if areas.shape != (n,) or not (np.isfinite(areas).all() and (areas >= 0).all()):
            raise DataError(where, f"a finite area of at least 0 for each of {n} boxes", areas)
        flags["areas"] = _frozen(areas, np.float64, (-1,))
        for name, value in {"size": (height, width), "boxes": boxes, "labels": labels, **flags}.items():
            object.__setattr__(self, name, value)

    @property
    def classes(self) -> tuple[int, ...]:
        """Labels present, ascending, each once."""
        return tuple(int(label) for label in np.unique(self.labels))

    def boxes_of(self, label: int, *, difficult: bool = True, crowd: bool = True) -> Box:
        """(n, 4) boxes of one class, with or without the difficult and the crowd ones."""
        keep: Bool = self.labels[: len(self.boxes)] == label
        if not difficult:
            keep = keep & ~self.difficult
        if not crowd:
            keep = keep & ~self.crowd
        boxes: Box = self.boxes[keep]
        return boxes


@dataclass(frozen=True, eq=False)
class AttentionMaps:
    """All attention maps of one image by one method, raw: as the method gave them, at native resolution.

    Args:
        image_id: the image they are of.
        size: (height, width) of the original image.
        labels: (K,) the class of each map, each once.
        values: (K, h, w) float32 (float64 is kept, for maps read from files). Not normalised. A list of maps
            of different sizes becomes a (K,) array of such arrays.
        ranking: (R,) classes by descending score of the classifier (top R), or None where unknown.
        region: (x0, y0, x1, y1) the part of the original image the map spans, in pixels, not necessarily
            inside it (letterbox); None = the whole image.
        point: (x, y) in pixels of the image that all of these maps point at, for a control that is a point by
            definition; None = each map's maximum.

    Raises:
        MapError: naming the image, where shapes disagree or a value is not finite.
    """

    image_id: str
    size: tuple[int, int]
    labels: Int
    values: NDArray[np.floating[Any]]
    ranking: Int | None = None
    region: tuple[float, float, float, float] | None = None
    point: tuple[float, float] | None = None
    # results derived from these maps (score maps, threshold sweeps), shared by all metrics of a run
    cache: dict[Any, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        labels = _frozen(self.labels, np.int64, (-1,))
        values = _stacked(self.values)
        for each in (values,) if values.dtype != object else values:
            if each.ndim != 2 + (each is values) or len(values) != len(labels) or 0 in each.shape[-2:]:
                raise MapError(
                    self.image_id, f"maps of shape ({len(labels)}, h, w)", "x".join(map(str, each.shape))
                )
        if len(set(labels.tolist())) != len(labels):
            raise MapError(self.image_id, "one map a label", f"labels {labels.tolist()}")
        for label, value in zip(labels.tolist(), values, strict=True):
            # NaN and infinity show in the extremes, which make no array of flags
            low, high = float(value.min()), float(value.max())
            if not (np.isfinite(low) and np.isfinite(high)):
                raise MapError(f"{self.image_id}, label {label}", "a finite attention map", "NaN or infinity")
            if max(-low, high) > MAX_VALUE:
                got = f"{low:g} to {high:g}"
                raise MapError(f"{self.image_id}, label {label}", f"values up to {MAX_VALUE:g}", got)
        object.__setattr__(self, "labels", labels)
        object.__setattr__(self, "values", values)
        if self.ranking is not None:
            object.__setattr__(self, "ranking", _frozen(self.ranking, np.int64, (-1,)))


def _stacked(values: Any) -> NDArray[Any]:
    """(K, h, w) float32 or float64, or (K,) arrays of (h, w) where the sizes differ."""
    if not isinstance(values, np.ndarray) and len({np.shape(value) for value in values}) > 1:
        stack = np.empty(len(values), object)
        for k, value in enumerate(values):
            stack[k] = _stacked(np.asarray(value))
        return stack
    array = np.asarray(values)
    return array if array.dtype in (np.float64, object) else array.astype(np.float32, copy=False)


@dataclass(frozen=True, eq=False)
class ScoredBoxes:
    """All boxes a detector gives for one image: what metrics of detections score instead of maps.

    Args:
        image_id: the image they are of.
        size: (height, width) of the image.
        found: by label `(boxes, scores)`: (n, 4) xyxy half-open in image pixels, and (n,).
        masks: by label the (n,) pixels of each, as COCO's run lengths; None where there are none.
    """

    image_id: str
    size: tuple[int, int]
    found: Mapping[int, tuple[NDArray[np.float64], NDArray[np.float64]]]
    masks: Mapping[int, Sequence[Mapping[str, Any]]] | None = None
    ranking: None = None


@dataclass(frozen=True)
class Score:
    """A metric's result over a set of images. Rates, IoUs and accuracies are fractions in [0, 1].

    Args:
        value: the headline number; NaN where nothing was counted.
        count: cases (or images, or boxes: the metric says) it was computed from.
        skipped: cases left out by the metric's own rule (such as: only difficult objects).
        per_class: value by label, where the metric has one.
        thresholds: the thresholds of `curve`.
        curve: the value at each threshold; a mapping of curves where there are several (one an IoU).
        best_threshold: the threshold the value is taken at; a mapping where there are several.
        extra: further named numbers of this metric.
    """

    value: float
    count: int
    skipped: int = 0
    per_class: Mapping[int, float] | None = None
    thresholds: list[float] | None = None
    curve: list[float] | Mapping[str, list[float]] | None = None
    best_threshold: float | Mapping[str, float] | None = None
    extra: Mapping[str, float] = field(default_factory=dict)
