"""Heatmap → mask → boxes: one map or a batch, from numpy, torch, PIL or nested lists."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from wsod.boxes.merge import merge_groups
from wsod.errors import ConfigError, MapError
from wsod.scoremaps import resize_map
from wsod.types import MAX_VALUE

__all__ = ["Rule", "heatmap_to_boxes", "heatmap_to_mask"]

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
Boxes = tuple[Array, Array]
Rule = Literal["max", "mean_std", "otsu", "percentile", "absolute"]
Components = Literal["all", "largest"]
Area = Literal["pixels", "contour"]

Span = tuple[float, float]
# threshold None: 20 % of the maximum is that of Zhou et al., CVPR 2016, section 3.2
_DEFAULTS = {"max": 0.2, "mean_std": 1.0, "otsu": 0.0, "percentile": 80.0, "absolute": 0.5}
_EIGHT = np.ones((3, 3), np.bool_)


def heatmap_to_mask(
    heatmap: Any,
    threshold: float | None = None,
    *,
    rule: Rule = "max",
    size: tuple[int, int] | None = None,
) -> Mask:
    """The pixels a heatmap claims: those strictly above a threshold.

    Args:
        heatmap: (H, W) or (N, H, W) values of any scale: numpy, torch (any device), PIL, lists.
        threshold: meaning and default depend on `rule`.
        rule: `max`: that fraction of the maximum of the map shifted to a minimum of 0 (default 0.2);
            `mean_std`: mean + threshold · standard deviation (default 1); `otsu`: Otsu (1979), 256
            bins (takes none); `percentile`: that percentile of the map (default 80);
            `absolute`: that value (default 0.5). All but `absolute` ignore the map's scale and offset.
        size: (height, width) the map is first resized to (bilinear, pixel centres); None = as it is.

    Returns:
        Bool mask(s) of shape (H, W) or (N, H, W), or of `size`. A constant map claims nothing.

    Raises:
        MapError: a map that is not finite, not 2-D, or empty.
        ConfigError: an unknown rule, or a threshold outside its range.

    >>> heatmap_to_mask([[0, 1, 5], [0, 2, 10]], 0.3).astype(int).tolist()
    [[0, 0, 1], [0, 0, 1]]
    """
    maps, single = _maps(heatmap, size)
    masks = [_mask(scores, _span(scores), threshold, rule) for scores in maps]
    if single:
        return masks[0]
    if len({mask.shape for mask in masks}) > 1:
        raise MapError("heatmap_to_mask", "maps of one size", "several", "Pass size=(height, width).")
    return np.stack(masks) if masks else np.zeros((0, *(size or (0, 0))), np.bool_)


def heatmap_to_boxes(
    heatmap: Any,
    threshold: float | None = None,
    *,
    rule: Rule = "max",
    components: Components = "all",
    size: tuple[int, int] | None = None,
    min_area: float = 0.0,
    area: Area = "pixels",
    merge_iou: float | None = None,
) -> Any:
    """Boxes around the 8-connected components of a heatmap's mask.

    Args:
        heatmap: (H, W) or (N, H, W) values of any scale, as for `heatmap_to_mask`; a list of maps of
            different sizes is a batch too.
        threshold: see `heatmap_to_mask`.
        rule: see `heatmap_to_mask`.
        components: `all`, or only the `largest` (of equals the one of higher score).
        size: (height, width) of the image: boxes are in its pixels. None = pixels of the map.
        min_area: smaller components are dropped.
        area: what large and small mean: a component's number of `pixels`, or the area its outer `contour`
            encloses (OpenCV's contourArea: holes count, lines of one pixel are 0).
        merge_iou: boxes with more IoU than this are replaced by the box around them, again and again; 0 =
            whatever overlaps, None = nothing. Areas add, the higher score stays; then the largest is chosen.

    Returns:
        `(boxes, scores)`: (N, 4) float64 boxes xyxy, 0-based, half-open (x1 = last pixel + 1), and (N,)
        float64 scores, the largest value of the component in the map shifted and scaled to [0, 1]. By
        descending score; of equals the larger component first. A constant map gives none. For a batch a
        list of such pairs.

    Raises:
        MapError, ConfigError: as `heatmap_to_mask`.

    >>> boxes, scores = heatmap_to_boxes([[0, 0, 0, 0], [0, 8, 6, 0], [0, 0, 0, 0], [4, 0, 0, 0]])
    >>> boxes.tolist(), scores.tolist()
    ([[1.0, 1.0, 3.0, 2.0], [0.0, 3.0, 1.0, 4.0]], [1.0, 0.5])
    """
    if components not in ("all", "largest"):
        raise ConfigError("heatmap_to_boxes", "components 'all' or 'largest'", repr(components))
    if area not in ("pixels", "contour"):
        raise ConfigError("heatmap_to_boxes", "area in 'pixels' or by 'contour'", repr(area))
    maps, single = _maps(heatmap, size)
    found = []
    for scores in maps:
        span = _span(scores)
        boxes, peaks, areas = _components(scores, span, _mask(scores, span, threshold, rule), area)
        kept = areas >= min_area
        boxes, peaks, areas = boxes[kept], peaks[kept], areas[kept]
        if merge_iou is not None:
            boxes, group = merge_groups(boxes, merge_iou)
            areas = np.bincount(group, areas, len(boxes)).astype(np.float64)
            peaks = np.asarray([peaks[group == g].max() for g in range(len(boxes))], np.float64)
        largest = components == "largest"
        order = np.lexsort((-peaks, -areas))[:1] if largest else np.lexsort((-areas, -peaks))
        found.append((boxes[order], peaks[order]))
    return found[0] if single else found


def _maps(heatmap: Any, size: tuple[int, int] | None) -> tuple[list[Array], bool]:
    """The maps as float64 arrays at the wanted size, and whether there was only one, unbatched."""
    if isinstance(heatmap, list | tuple) and any(_dimensions(item) == 2 for item in heatmap):
        arrays, single = [_array(item) for item in heatmap], False
    else:
        array = _array(heatmap)
        from_picture = hasattr(heatmap, "getbands")
        if array.ndim not in (2, 3) or (array.ndim == 3 and from_picture):
            hint = "Squeeze channel axes; convert a colour picture to one channel."
            raise MapError("heatmap", "shape (H, W) or (N, H, W)", array.shape, hint)
        single = array.ndim == 2
        arrays = [array] if single else list(array)
    for index, array in enumerate(arrays):
        where = "heatmap" if single else f"heatmap {index}"
        if array.ndim != 2 or not array.size:
            raise MapError(where, "a non-empty (H, W) map", array.shape)
        largest = max(array.max(), -array.min())
        if not np.isfinite(largest):
            raise MapError(where, "finite values", "NaN or infinity")
        if largest > MAX_VALUE:
            raise MapError(where, f"values up to {MAX_VALUE:g}", f"{largest:g}")
    if size is not None:
        if len(size) != 2 or min(size) < 1:
            raise ConfigError("heatmap", "size (height, width) of at least 1x1", size)
        arrays = [resize_map(array, (int(size[0]), int(size[1]))) for array in arrays]
    return arrays, single


def _dimensions(item: Any) -> int:
    return 2 if hasattr(item, "getbands") else getattr(item, "ndim", 0)


def _array(values: Any) -> Array:
    if hasattr(values, "detach"):
        # by its methods, so that torch need not be imported; float() because numpy has no bfloat16
        values = values.detach().cpu().double().numpy()
    try:
        return np.asarray(values, np.float64)
    except (TypeError, ValueError) as error:
        raise MapError("heatmap", "an array of numbers", type(values).__name__) from error


def _span(scores: Array) -> Span:
    return float(scores.min()), float(scores.max())


def _mask(scores: Array, span: Span, threshold: float | None, rule: Rule) -> Mask:
    level = _level(scores, span, threshold, rule)
    return scores > level if span[0] < span[1] else np.zeros(scores.shape, np.bool_)


def _level(scores: Array, span: Span, threshold: float | None, rule: Rule) -> float:
    if rule not in _DEFAULTS:
        raise ConfigError("heatmap rule", "one of " + ", ".join(_DEFAULTS), repr(rule))
    if rule == "otsu" and threshold is not None:
        raise ConfigError("heatmap threshold", "none for the rule 'otsu'", threshold)
    t = _DEFAULTS[rule] if threshold is None else float(threshold)
    limits = {"max": (0.0, 1.0), "percentile": (0.0, 100.0)}.get(rule, (-np.inf, np.inf))
    if not limits[0] <= t <= limits[1]:
        raise ConfigError(f"heatmap threshold, rule {rule!r}", f"{limits[0]:g} to {limits[1]:g}", f"{t:g}")
    low, high = span
    if rule == "max":
        return low + t * (high - low)
    if rule == "mean_std":
        return float(scores.mean() + t * scores.std())
    if rule == "otsu":
        from skimage.filters import threshold_otsu  # slow to import, and only this rule needs it

        if high - low < 256 * np.finfo(np.float64).tiny:  # no room for 256 bins: the middle of two levels
            return low / 2 + high / 2 if low < high else low
        return float(threshold_otsu(scores))  # type: ignore[no-untyped-call]
    return float(np.percentile(scores, t)) if rule == "percentile" else t


def _components(scores: Array, span: Span, mask: Mask, area: Area) -> tuple[Array, Array, Array]:
    """(n, 4) boxes, (n,) peaks in [0, 1] and (n,) areas of the mask's components, in scan order."""
    labelled, count = ndimage.label(mask, _EIGHT)
    slices = ndimage.find_objects(labelled)
    boxes = np.array([(x.start, y.start, x.stop, y.stop) for y, x in slices], np.float64).reshape(-1, 4)
    pixels = np.flatnonzero(mask)
    owners = labelled.ravel()[pixels].astype(np.intp) - 1
    peaks = np.full(count, -np.inf)
    np.maximum.at(peaks, owners, scores.ravel()[pixels])  # scipy's maximum sorts all pixels
    if count:
        peaks = (peaks - span[0]) / (span[1] - span[0])
    areas = np.bincount(owners, minlength=count).astype(np.float64)
    if area == "contour":
        parts = (labelled[place] == label for label, place in enumerate(slices, 1))
        areas = np.array([_contour_area(part) for part in parts], np.float64)
    return boxes, peaks, areas


def _contour_area(part: Mask) -> float:
    """Area of the polygon through the centres of a component's outermost pixels."""
    filled = ndimage.binary_fill_holes(part).astype(np.int64)
    # of each 2x2 square of pixels the polygon covers all, half (one corner missing), or nothing
    squares = filled[:-1, :-1] + filled[1:, :-1] + filled[:-1, 1:] + filled[1:, 1:]
    return float((squares >= 3).sum() + (squares == 4).sum()) / 2
