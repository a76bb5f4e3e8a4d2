"""Heatmap files → boxes, as a table, JSON, COCO results or VOC detection lines."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from wsod.boxes.convert import heatmap_to_boxes
from wsod.errors import ConfigError, MapError
from wsod.report.tables import simple_table

__all__ = ["boxes_of_files", "format_boxes"]

Found = Mapping[tuple[str, str], tuple[NDArray[np.float64], NDArray[np.float64]]]


def _read(path: Path) -> dict[str, NDArray[Any]]:
    """The maps of a file by label ("" for a single one)."""
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                return {
                    str(label): value for label, value in zip(arrays["labels"], arrays["values"], strict=True)
                }
        if path.suffix == ".npy":
            values = np.load(path, allow_pickle=False)
        else:
            with Image.open(path) as image:
                values = np.asarray(image.convert("F"))
    except (OSError, ValueError, KeyError, EOFError, UnidentifiedImageError) as error:
        raise MapError(path, "a heatmap (.npy, .npz or a picture)", error) from error
    if values.ndim == 3:
        return {str(k): value for k, value in enumerate(values)}
    return {"": values}


def boxes_of_files(paths: Sequence[Path], **options: Any) -> Found:
    """Boxes and scores by (file, label).

    Raises:
        MapError: naming the file that is no heatmap.
    """
    found = {}
    for path in paths:
        for label, heatmap in _read(path).items():
            try:
                found[str(path), label] = heatmap_to_boxes(heatmap, **options)
            except MapError as error:
                raise MapError(path, error.expected, error.got, error.hint) from error
    return found


def format_boxes(found: Found, style: str) -> Any:
    """Boxes as a rich table (`table`) or text: `json`, `coco` (results, xywh), `voc` (1-based, inclusive)."""
    flat = [
        (path, label, float(score), [float(x) for x in box])
        for (path, label), (boxes, scores) in found.items()
        for box, score in zip(boxes, scores, strict=True)
    ]
    if style == "table":
        rows = [(p, label, f"{s:.3f}", *(f"{x:.0f}" for x in box)) for p, label, s, box in flat]
        return simple_table(
            f"{len(flat)} boxes, xyxy in pixels, half-open",
            ["file", "label", "score", "x0", "y0", "x1", "y1"],
            rows,
        )
    if style == "json":
        keys = ("file", "label", "score", "box")
        return json.dumps([dict(zip(keys, item, strict=True)) for item in flat], indent=1)
    if style == "coco":
        return json.dumps([_coco(*item) for item in flat], indent=1)
    return "\n".join(
        f"{Path(p).stem} {score:.3f} {box[0] + 1:.1f} {box[1] + 1:.1f} {box[2]:.1f} {box[3]:.1f}"
        for p, _, score, box in flat
    )


def _coco(path: str, label: str, score: float, box: list[float]) -> dict[str, Any]:
    stem = Path(path).name.split(".")[0]
    if not stem.isdigit():
        raise ConfigError(
            path,
            "a file named by its COCO image id, such as 000000391895.npy",
            repr(stem),
            "Use --format json.",
        )
    x0, y0, x1, y1 = box
    return {
        "image_id": int(stem),
        "category_id": int(label or 1),
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "score": score,
    }
