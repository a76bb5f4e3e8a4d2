"""Boxes made elsewhere, in the files detectors write: COCO results, VOC result lines."""

from __future__ import annotations

import os.path
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wsod.data.coco import checked_counts
from wsod.data.dataset import bare, by_stem
from wsod.data.files import finite, read_json, read_lines
from wsod.errors import DataError
from wsod.types import Sample, ScoredBoxes

__all__ = ["DetectionFiles", "is_detections"]

Row = tuple[int, tuple[float, float, float, float], float, Mapping[str, Any] | None]
LINES = re.compile(r".+_det_[^_]+_(?P<name>.+)\.txt")


def _lines(folder: Path) -> dict[str, Path]:
    """VOC's result files by class: comp4_det_test_dog.txt."""
    found = ((LINES.fullmatch(path.name), path) for path in sorted(folder.glob("*_det_*.txt")))
    return {match["name"]: path for match, path in found if match}


def is_detections(name: str) -> bool:
    """Whether a `--maps` argument is a file of COCO results or a folder of VOC's result files."""
    path = Path(name)
    # os.path's answer is no, where pathlib's is an error: a name too long
    return (path.suffix == ".json" and os.path.isfile(path)) or (os.path.isdir(path) and bool(_lines(path)))


class DetectionFiles:
    """Scored boxes of a data set's images.

    Args:
        path: a list of COCO results (`image_id`, `category_id`, `score`, and `bbox` or `segmentation`), or a
            folder of VOC's `comp4_det_SET_CLASS.txt` (image, score and a 1-based box with its last pixel).
        ids: the data set's image ids.
        classes: its classes.
        image_numbers: COCO's number of each image, or None in a data set that has none.
        category_numbers: COCO's number of each class, likewise.

    Raises:
        DataError: naming the file (and line), for what is no box of these images and classes.
    """

    supervision = ("unknown",)

    def __init__(
        self,
        path: Path,
        ids: Sequence[str],
        classes: Sequence[str],
        image_numbers: Sequence[int] | None = None,
        category_numbers: Sequence[int] | None = None,
    ) -> None:
        self.path = path
        self._rows: dict[str, list[Row]] = {}
        if path.is_dir():
            self._read_lines(set(ids), {name: label for label, name in enumerate(classes)})
        elif image_numbers is None or category_numbers is None:
            raise DataError(
                path, "a COCO data set, whose numbers are in the file", "another", "--data coco:…"
            )
        else:
            images = dict(zip(image_numbers, ids, strict=True))
            self._read_results(images, {number: label for label, number in enumerate(category_numbers)})

    def read(self, sample: Sample) -> ScoredBoxes:
        """That image's boxes, in the file's order; one the file does not name has none.

        Raises:
            DataError: for run lengths that are not this image's.
        """
        rows = self._rows.get(sample.image_id, [])
        found, masks = {}, {}
        for label in sorted({row[0] for row in rows}):
            own = [row for row in rows if row[0] == label]
            found[label] = np.array([row[1] for row in own]), np.array([row[2] for row in own])
            masks[label] = [row[3] for row in own if row[3] is not None]
            for rle in masks[label]:
                checked_counts(rle, sample.size, f"{self.path}: image {sample.image_id}")
        whole = all(row[3] is not None for row in rows)
        return ScoredBoxes(sample.image_id, sample.size, found, masks if whole else None)

    def _read_results(self, images: Mapping[int, str], labels: Mapping[int, int]) -> None:
        content = read_json(self.path)
        if not isinstance(content, list):
            raise DataError(self.path, "a list of COCO results", type(content).__name__)
        for place, row in enumerate(content):
            where = f"{self.path}: result {place}"
            try:
                image, label = images[row["image_id"]], labels[row["category_id"]]
                rle = row.get("segmentation") if isinstance(row.get("segmentation"), dict) else None
                x, y, width, height = map(finite, row["bbox"] if "bbox" in row else _box_of(rle, where))
                if width < 0 or height < 0:
                    raise ValueError(f"a box of {width:g}x{height:g}")
                self._add(where, image, label, (x, y, x + width, y + height), row["score"], rle)
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                expected = "image_id and category_id of the annotations, score, bbox or segmentation (RLE)"
                raise DataError(where, expected, f"{type(error).__name__} {error}") from error

    def _read_lines(self, ids: set[str], labels: Mapping[str, int]) -> None:
        stems = by_stem(ids)
        for name, path in _lines(self.path).items():
            if name not in labels:
                raise DataError(path, f"a class of the data set ({', '.join(labels)})", repr(name))
            for number, line in enumerate(read_lines(path), 1):
                where, columns = f"{path}:{number}", line.split()
                try:
                    image, *numbers = columns
                    score, x0, y0, x1, y1 = map(finite, numbers)
                    whole = image if image in ids else stems[bare(image)]
                except (ValueError, KeyError) as error:
                    expected = "an image of the data set, its score and box x0 y0 x1 y1"
                    raise DataError(where, expected, repr(line[:80])) from error
                self._add(where, whole, labels[name], (x0 - 1, y0 - 1, x1, y1), score, None)

    def _add(
        self, where: str, image: str, label: int, box: Any, score: Any, rle: Mapping[str, Any] | None
    ) -> None:
        try:
            x0, y0, x1, y1, value = (finite(number) for number in (*box, score))
        except ValueError as error:
            raise DataError(where, "a finite box and score", f"{[*box, score]}"[:200]) from error
        self._rows.setdefault(image, []).append((label, (x0, y0, x1, y1), value, rle))


def _box_of(rle: Any, where: str) -> list[float]:
    """The box around run lengths, as COCO's loader makes it: x, y, width, height."""
    from pycocotools import mask

    size = rle.get("size") if isinstance(rle, dict) else None
    if not isinstance(size, list) or len(size) != 2 or not all(type(n) is int and n > 0 for n in size):
        raise ValueError("neither bbox nor run lengths with their size")
    if not isinstance(rle["counts"], str):
        raise TypeError("run lengths that are not compressed")
    checked_counts(rle, (size[0], size[1]), where)
    box: list[float] = mask.toBbox(rle).tolist()
    return box
