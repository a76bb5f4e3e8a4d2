"""Attention map → score map: resizing and normalising, in the one place where it is done.

A map cell (row, column) sits at ((column + ½)·width/w, (row + ½)·height/h) of the region it spans, so
resizing, undoing a crop and undoing a letterbox are one thing: sampling at pixel centres. Interpolation is
separable, hence two small matrices a map.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from wsod.errors import ConfigError, MapError
from wsod.types import MAX_PIXELS, AttentionMaps

__all__ = ["MapProcessing", "ScoreMap", "resample_weights", "resize_map"]

MAX_FRAME = 10_000
Array = NDArray[np.float64]
Interpolation = Literal["bilinear", "bicubic", "bicubic-opencv", "nearest", "nearest-opencv"]
KEPT = 1 << 20
"""Weights of an axis up to this many are kept for the next map."""
MAX_WEIGHTS = 2 * MAX_PIXELS
"""Of an axis, eight bytes each: a map of a single row may have millions of cells."""
Normalisation = Literal["minmax", "max", "relu-minmax", "percentile", "none"]


def resample_weights(
    n: int, size: int, mode: Interpolation = "bilinear", start: float = 0.0, stop: float | None = None
) -> Array:
    """(size, n) float64 weights that sample an axis of `n` cells spanning [start, stop) at pixel centres.

    `align_corners=False`; cells beyond the edge repeat the edge. Bicubic has A = -0.75 (torch, OpenCV).
    `bicubic-opencv` computes positions and weights in float32 as OpenCV's INTER_CUBIC does.
    `nearest-opencv` is its INTER_NEAREST, floor(i * (1 / (size/n))).
    """
    weigh = _kept_weights if n * size <= KEPT else _weights
    return weigh(n, size, mode, start, stop)


def _weights(n: int, size: int, mode: Interpolation, start: float, stop: float | None) -> Array:
    weights = np.zeros((size, n))
    for cells, taps in _taps(n, size, mode, start, stop):
        np.add.at(weights, (np.arange(size), cells), taps)
    weights.setflags(write=False)
    return weights


_kept_weights = lru_cache(maxsize=256)(_weights)


@lru_cache(maxsize=64)
def _taps(
    n: int, size: int, mode: Interpolation, start: float, stop: float | None
) -> tuple[tuple[NDArray[np.int64], Array], ...]:
    """The cells each of `size` pixels reads, and their weights, from left to right: one, two or four."""
    stop = float(size) if stop is None else stop
    scale = n / (stop - start) if (start, stop) != (0.0, float(size)) else 1.0 / (size / n)
    rows = np.arange(size)
    if mode in ("nearest", "nearest-opencv"):
        # the cell a pixel's centre lies in; OpenCV takes its left edge, and rounds the scale
        place = (
            (rows - start) * scale if mode == "nearest-opencv" else (rows + 0.5 - start) * n / (stop - start)
        )
        cells = np.floor(place).astype(np.int64)
        return ((cells.clip(0, n - 1), np.ones(size)),)
    position = (rows + 0.5 - start) * scale - 0.5
    if mode == "bicubic-opencv":
        position = position.astype(np.float32)
    first = np.floor(position)
    fraction = position - first
    if mode == "bilinear":
        taps = [1.0 - fraction, fraction]
    else:
        a, one, x = fraction.dtype.type(-0.75), fraction.dtype.type(1), fraction
        taps = [
            ((a * (x + one) - 5 * a) * (x + one) + 8 * a) * (x + one) - 4 * a,
            ((a + 2) * x - (a + 3)) * x * x + one,
            ((a + 2) * (one - x) - (a + 3)) * (one - x) * (one - x) + one,
        ]
        taps.append(one - taps[0] - taps[1] - taps[2])
        first = first - 1
    start_cells = first.astype(np.int64)
    return tuple(
        ((start_cells + offset).clip(0, n - 1), tap.astype(np.float64)) for offset, tap in enumerate(taps)
    )


def _in_order(
    raw: Array,
    size: tuple[int, int],
    mode: Interpolation,
    xs: tuple[float, float],
    ys: tuple[float, float],
) -> Array:
    """Resizing with OpenCV's order of additions: along rows first, taps from left to right."""
    for axis, span in ((1, xs), (0, ys)):
        resized: Array | None = None
        for cells, taps in _taps(raw.shape[axis], size[axis], mode, *span):
            term = raw.take(cells, axis)
            term *= taps if axis else taps[:, None]
            resized = term if resized is None else np.add(resized, term, out=resized)
        assert resized is not None
        raw = resized
    return raw


def resize_map(
    values: NDArray[np.floating[Any]],
    size: tuple[int, int],
    mode: Interpolation = "bilinear",
    region: tuple[float, float, float, float] | None = None,
) -> Array:
    """(h, w) → (height, width) in float64. Pixels outside `region` (x0, y0, x1, y1) get the map's minimum.

    `bicubic-opencv` equals OpenCV's INTER_CUBIC on float64 maps to the last bit.

    Raises:
        MapError: where that would take gigabytes, as of a map of a single row of millions of cells.
    """
    height, width = size
    raw: Array = np.array(values, np.float64)
    if region is None and raw.shape == (height, width):
        return raw
    changed = [(n, m) for n, m in zip(raw.shape, size, strict=True) if region or n != m]
    if height * width > MAX_PIXELS or max(n * m for n, m in changed) > MAX_WEIGHTS:
        got = f"{raw.shape[1]}x{raw.shape[0]} to {width}x{height}"
        raise MapError("map", f"a resize of at most {MAX_PIXELS} pixels and {MAX_WEIGHTS} weights", got)
    x0, y0, x1, y1 = region or (0.0, 0.0, float(width), float(height))
    resized: Array
    if mode == "bicubic-opencv":
        resized = _in_order(raw, size, mode, (x0, x1), (y0, y1))
    else:
        resized = raw
        if region or raw.shape[0] != height:
            resized = resample_weights(raw.shape[0], height, mode, y0, y1) @ resized
        if region or raw.shape[1] != width:
            resized = resized @ resample_weights(raw.shape[1], width, mode, x0, x1).T
    if region is not None:
        xs, ys = np.arange(width) + 0.5, np.arange(height) + 0.5
        outside = ((ys < y0) | (ys >= y1))[:, None] | ((xs < x0) | (xs >= x1))[None, :]
        if outside.any() and not outside.all():
            resized[outside] = resized[~outside].min()
    return resized


@dataclass(frozen=True)
class ScoreMap:
    """A map at the evaluation frame, in [0, 1] (unless `normalise = "none"`).

    `constant` is true where the raw map had a single value: it claims nothing, and its scores are zeros.
    """

    scores: Array
    constant: bool


@dataclass(frozen=True)
class MapProcessing:
    """How raw maps become score maps: part of a protocol, the same for all of its metrics.

    Args:
        frame: side of the square evaluation frame; 0 = the original image.
        resize: interpolation.
        normalise: `minmax`; `max` (negatives clipped, divided by the maximum); `relu-minmax`; `percentile`
            (minmax between the given percentiles, clipped); `none` (values are used as they are).
        order: normalise `after` the resize or `before` it.
        percentiles: for `percentile`.
        constant: where a constant map is looked for: in the `raw` map or, as the WSOL benchmark does,
            in the `resized` one (last-bit noise of a bicubic resize then escapes the check).
        accept_scores: float64 maps of the frame's size with values in [0, 1] are score maps already, as the
            WSOL benchmark's evaluator is given them, and are used as they are. (Maps computed here are
            float32 and never taken for that.)
    """

    frame: int = 0
    resize: Interpolation = "bilinear"
    normalise: Normalisation = "minmax"
    order: Literal["after", "before"] = "after"
    percentiles: tuple[float, float] = (0.0, 99.9)
    constant: Literal["raw", "resized"] = "raw"
    accept_scores: bool = False

    def __post_init__(self) -> None:
        low, high = self.percentiles
        if not 0 <= self.frame <= MAX_FRAME or not 0 <= low < high <= 100:
            expected = f"frame 0 to {MAX_FRAME} and 0 <= low < high <= 100 percentiles"
            raise ConfigError("maps", expected, f"{self}")

    def size(self, maps: AttentionMaps) -> tuple[int, int]:
        """(height, width) of the evaluation frame of that image."""
        return (self.frame, self.frame) if self.frame else maps.size

    def keeps(self, maps: AttentionMaps) -> bool:
        """Whether an image's maps are its score maps already, in every value."""
        whole = maps.region is None and maps.values.dtype != object
        return whole and self.normalise == "none" and maps.values.shape[1:] == self.size(maps)

    def score(self, maps: AttentionMaps, k: int) -> ScoreMap:
        """Score map of the k-th map; computed once however many metrics ask."""
        key = (self, k)
        if key not in maps.cache:
            maps.cache[key] = self._score(maps, k)
        score: ScoreMap = maps.cache[key]
        return score

    def _score(self, maps: AttentionMaps, k: int) -> ScoreMap:
        given = maps.values[k]
        size = self.size(maps)
        whole = maps.region is None and given.dtype == np.float64
        if self.accept_scores and whole and given.shape == size:
            low, high = given.min(), given.max()
            if low >= 0 and high <= 1:
                return ScoreMap(given.copy(), bool(low == high))
        region = maps.region
        if region is not None and self.frame:
            sx, sy = self.frame / maps.size[1], self.frame / maps.size[0]
            region = (region[0] * sx, region[1] * sy, region[2] * sx, region[3] * sy)
        constant = bool(given.min() == given.max())
        if self.normalise == "none":
            return ScoreMap(resize_map(given, size, self.resize, region), constant)
        raw = given.astype(np.float64, copy=False)
        if self.order == "before":
            raw = self._normalised(raw)
        scores = resize_map(raw, size, self.resize, region)
        if self.constant == "resized":
            constant = bool(scores.min() == scores.max())
        if constant:
            return ScoreMap(np.zeros(size), True)
        if self.order == "after":
            scores = self._normalised(scores)
        return ScoreMap(scores.clip(0.0, 1.0) if self.order == "before" else scores, False)

    def _normalised(self, values: Array) -> Array:
        if self.normalise in ("max", "relu-minmax"):
            values = np.maximum(values, 0.0)
        if self.normalise == "percentile":
            low, high = np.percentile(values, self.percentiles)
            values = values.clip(low, high)
        if self.normalise != "max":
            values = values - values.min()
        top = values.max()
        # a map with no positive value has nothing left to claim: zeros, not 0/0
        scaled: Array = values / top if top > 0 else np.zeros_like(values)
        return scaled
