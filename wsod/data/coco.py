"""COCO instances: one JSON of images, categories and annotations with polygons, run lengths and crowds.

Boxes are xywh in continuous pixel coordinates; here (x, y, x + w, y + h). Category ids have gaps; labels are
their ranks. Run lengths are decoded here, polygons by pycocotools, whose C code trusts its input: what
reaches it has been checked.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, TypeGuard

import numpy as np
from numpy.typing import NDArray

from wsod.data.dataset import Dataset
from wsod.data.files import check_regular, finite, inside, read_json
from wsod.data.jsonrows import JsonRows, find_rows
from wsod.errors import DataError
from wsod.types import MAX_PIXELS, Sample

__all__ = ["Coco", "CocoMasks", "checked_counts", "decode_counts", "decode_rle"]

Bool = NDArray[np.bool_]

MAX_OUTLINE = 10_000_000
"""Pixels along all polygons of an annotation: pycocotools sets memory aside for each, five times over."""

EDGE = 1.0
"""A box may pass the image's edge by less than a pixel of rounding; it is clipped. Else it is a fault."""


COLUMNS = {"images": ("id",), "annotations": ("id", "image_id"), "categories": ("id",)}


class _Read:
    """The objects of a list that was read as a whole."""

    def __init__(self, rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
        self._rows = rows
        self.columns: dict[str, list[Any]] = {key: [row.get(key) for row in rows] for key in columns}

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, places: Iterable[int]) -> list[Mapping[str, Any]]:
        return [self._rows[n] for n in places]


Rows = JsonRows | _Read


@dataclass
class Coco(Dataset):
    """COCO instances JSON (detection and segmentation).

    Args:
        annotations: the JSON file.
        images: the folder of its images, or None to use the annotations alone.
        split: `all`: a JSON file is its own split.

    Attributes:
        image_ids: COCO's number of each image, in the order of `ids`.
        category_ids: COCO's number of each class, in the order of `classes`.

    The file is read once; an image's annotations are read again when they are asked for, so that a large file
    takes a fraction of its size in memory. Images without annotations are kept. The key `difficult`, which
    conversions of VOC have, is read.
    """

    name: ClassVar[str] = "coco"
    usage: ClassVar[str] = "coco:IMAGES,ANNOTATIONS.json"
    paths: ClassVar[tuple[str, ...]] = ("images", "annotations")

    annotations: Path
    images: Path | None = None
    split: str = "all"
    spec: str = field(default="", init=False)

    def __post_init__(self) -> None:
        self.task, self.splits = "multilabel", ("all",)
        self.has_images = self.images is not None
        self.split = self._known_split(self.split)
        images, annotations, categories = self._tables()
        kinds = sorted(categories.read(range(len(categories))), key=lambda row: int(row["id"]))
        self.category_ids = tuple(int(row["id"]) for row in kinds)
        self.classes = tuple(self._class_name(row) for row in kinds)
        self.image_ids: tuple[int, ...] = tuple(images.columns["id"])
        self.ids = self._names(images)
        self._labels = {number: label for label, number in enumerate(self.category_ids)}
        place = {number: n for n, number in enumerate(self.image_ids)}
        owners = np.zeros(len(annotations), np.int64)
        for n, number in enumerate(annotations.columns["image_id"]):
            if type(number) is not int or number not in place:  # true and 1.0 are keys as good as 1
                (row,) = annotations.read([n])
                got = repr(row.get("image_id"))[:200]
                raise DataError(self._at_row(row), "the image_id of an image in it", got)
            owners[n] = place[number]
        self._images, self._annotations = images, annotations
        # annotations by image, in the order of the file
        self._order = np.argsort(owners, kind="stable")
        self._first = np.searchsorted(owners[self._order], np.arange(len(images) + 1))

    def _tables(self) -> tuple[Rows, Rows, Rows]:
        """Images, annotations and categories, each with different whole numbers as ids."""
        check_regular(self.annotations, "a JSON file")
        found = find_rows(self.annotations, COLUMNS)
        if found is not None and all(
            np.unique(rows.columns["id"]).size == len(rows) for rows in found.values()
        ):
            return found["images"], found["annotations"], found["categories"]
        # gzipped, not in UTF-8, or at fault: the whole of it says where
        content = _read_instances(self.annotations)
        rows = {
            key: _Read(self._table(content, key), COLUMNS[key])
            for key in ("categories", "images", "annotations")
        }
        return rows["images"], rows["annotations"], rows["categories"]

    def _class_name(self, row: Mapping[str, Any]) -> str:
        name = row.get("name", str(row["id"]))
        if not isinstance(name, str):
            where = f"{self.annotations}: category {row['id']}"
            raise DataError(where, "a name", repr(name)[:200])
        return name

    def _table(self, content: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
        """A list of objects with different whole-number ids."""
        rows = content.get(key)
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise DataError(self.annotations, f"a list of objects under {key!r}", type(rows).__name__)
        numbers = [row.get("id") for row in rows]
        if not all(type(number) is int for number in numbers):
            wrong = next(number for number in numbers if type(number) is not int)
            raise DataError(f"{self.annotations}: {key}", "a whole number as id", repr(wrong)[:200])
        if len(set(numbers)) != len(numbers):
            double = next(number for number in numbers if numbers.count(number) > 1)
            raise DataError(f"{self.annotations}: {key}", "each id once", f"{double} twice")
        return rows

    def _names(self, images: Rows) -> tuple[str, ...]:
        """File names without their ending, as maps and results call them; with it where that is ambiguous."""
        parts = (range(n, min(n + 1000, len(images))) for n in range(0, len(images), 1000))
        files = [row.get("file_name") for part in parts for row in images.read(part)]
        for number, file in zip(self.image_ids, files, strict=True):
            inside(file, f"{self.annotations}: image {number}", "a file_name inside the image folder")
        stems = tuple(Path(str(file)).with_suffix("").as_posix() for file in files)
        names = stems if len(set(stems)) == len(stems) else tuple(str(file) for file in files)
        if len(set(names)) != len(names):
            double = next(name for name in names if names.count(name) > 1)
            raise DataError(f"{self.annotations}: images", "each file_name once", f"{double} twice")
        return names

    @cached_property
    def _segmented(self) -> bool:
        """Whether the first annotation has a mask."""
        return any(row.get("segmentation") for row in self._annotations.read(self._order[:1]))

    def _at_row(self, row: Mapping[str, Any]) -> str:
        return f"{self.annotations}: annotation {row.get('id')}"

    def __getitem__(self, index: int) -> Sample:
        """Annotations of one image; masks are rasterised when asked."""
        index = self._at(index)
        (image,) = self._images.read([index])
        rows = self._annotations.read(self._order[self._first[index] : self._first[index + 1]])
        size = image.get("height"), image.get("width")
        if not all(type(side) is int and 0 < side <= MAX_PIXELS for side in size):
            where = f"{self.annotations}: image {image['id']}"
            raise DataError(where, "a positive height and width", f"{size[0]!r} and {size[1]!r}"[:200])
        height, width = int(str(size[0])), int(str(size[1]))
        labels = [self._label(row) for row in rows]
        crowd = [self._flag(row, "iscrowd") for row in rows]
        # an image without objects has masks, empty ones, where the others have
        segmented = all(row.get("segmentation") for row in rows) if rows else self._segmented
        masks = CocoMasks(
            (height, width),
            tuple(labels),
            tuple(crowd),
            tuple(row.get("segmentation") for row in rows),
            tuple(self._at_row(row) for row in rows),
        )
        return Sample(
            image_id=self.ids[index],
            image_path=None if self.images is None else self.images / str(image["file_name"]),
            size=(height, width),
            boxes=np.array([self._box(row, height, width) for row in rows]).reshape(-1, 4),
            labels=np.array(labels, np.int64),
            difficult=np.array([self._flag(row, "difficult") for row in rows], np.bool_),
            crowd=np.array(crowd, np.bool_),
            areas=np.array([self._area(row) for row in rows], np.float64),
            masks=masks if segmented else None,
        )

    def _label(self, row: Mapping[str, Any]) -> int:
        label = self._labels.get(row["category_id"]) if type(row.get("category_id")) is int else None
        if label is None:
            raise DataError(
                self._at_row(row), "the category_id of a category in it", repr(row.get("category_id"))[:200]
            )
        return label

    def _flag(self, row: Mapping[str, Any], key: str) -> bool:
        if row.get(key, 0) not in (0, 1):
            raise DataError(self._at_row(row), f"{key} 0 or 1", repr(row[key])[:200])
        return bool(row.get(key, 0))

    def _area(self, row: Mapping[str, Any]) -> float:
        """As the file has it: the mask's, which sorts objects into COCO's sizes."""
        if row.get("area") is None:
            return float(row["bbox"][2]) * float(row["bbox"][3])
        if not _is_finite(row["area"]) or row["area"] < 0:
            raise DataError(self._at_row(row), "an area of at least 0", repr(row["area"])[:200])
        return float(row["area"])

    def _box(self, row: Mapping[str, Any], height: int, width: int) -> list[float]:
        box = row.get("bbox")
        if not _numbers(box) or len(box) != 4:
            raise DataError(self._at_row(row), "a bbox of 4 finite numbers x, y, w, h", repr(box)[:200])
        x0, y0 = float(box[0]), float(box[1])
        x1, y1 = x0 + float(box[2]), y0 + float(box[3])
        clipped = [max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height))]
        over = max(-x0, -y0, x1 - width, y1 - height)
        if over >= EDGE or clipped[0] >= clipped[2] or clipped[1] >= clipped[3]:
            raise DataError(self._at_row(row), f"a non-empty bbox x, y, w, h inside {width}x{height}", box)
        return clipped


@dataclass(frozen=True)
class CocoMasks:
    """Polygons and run lengths of one image, rasterised when asked.

    `of` leaves crowds out and `ignore` is the crowds' part of it: all annotated pixels of a class are
    `of(label) | ignore(label)`.
    """

    size: tuple[int, int]
    labels: tuple[int, ...]
    crowd: tuple[bool, ...]
    segmentations: tuple[Any, ...]
    places: tuple[str, ...]

    def instance(self, n: int) -> Bool:
        """(height, width) pixels of the n-th annotation.

        Raises:
            DataError: naming the file and annotation, where the segmentation is malformed.
        """
        segmentation, where = self.segmentations[n], self.places[n]
        if isinstance(segmentation, dict):
            return decode_rle(segmentation, self.size, where)
        return _rasterise(segmentation, self.size, where)

    def of(self, label: int) -> Bool:
        """Pixels of the class's single objects."""
        return self._union(label, crowd=False)

    def ignore(self, label: int) -> Bool:
        """Pixels of the class's crowds that no single object covers."""
        crowd = self._union(label, crowd=True)
        return crowd & ~self.of(label) if crowd.any() else crowd

    def semantic(self) -> NDArray[np.int64]:
        """0 = background, label + 1, -1 = crowds alone; the higher label where classes overlap."""
        classes = np.zeros(self.size, np.int64)
        for label in sorted(set(self.labels)):
            classes[self._union(label, crowd=True) & (classes == 0)] = -1
        for label in sorted(set(self.labels)):
            classes[self.of(label)] = label + 1
        return classes

    def _union(self, label: int, *, crowd: bool) -> Bool:
        union = np.zeros(self.size, np.bool_)
        for n, (other, many) in enumerate(zip(self.labels, self.crowd, strict=True)):
            if other == label and many == crowd:
                union |= self.instance(n)
        return union


def decode_counts(text: str | bytes) -> list[int]:
    """Run lengths of COCO's compressed string: 5 bits a character from '0' on, bit 5 = more to come, each
    count after the third as the difference to the last but one.

    >>> decode_counts("52203")
    [5, 2, 2, 2, 5]
    """
    raw = text.encode("ascii") if isinstance(text, str) else text
    counts: list[int] = []
    value = shift = 0
    for byte in raw:
        digit = byte - 48
        if not 0 <= digit < 64 or shift > 60:
            raise ValueError(f"the byte {byte} in run lengths")
        value |= (digit & 31) << shift
        shift += 5
        if not digit & 32:
            if digit & 16:
                value -= 1 << shift
            counts.append(value + counts[-2] if len(counts) > 2 else value)
            value = shift = 0
    if shift:
        raise ValueError("run lengths cut in the middle of a number")
    return counts


def decode_rle(rle: Mapping[str, Any], size: tuple[int, int], where: str) -> Bool:
    """(height, width) pixels of run lengths in column order, as a list or COCO's compressed string.

    Raises:
        DataError: naming `where`, for another size, negative counts or counts that do not add up.
    """
    counts = checked_counts(rle, size, where)
    values = np.arange(len(counts)) % 2 == 1
    return np.repeat(values, counts).reshape(size[1], size[0]).T


def checked_counts(rle: Mapping[str, Any], size: tuple[int, int], where: str) -> list[int]:
    """The run lengths themselves; what passes here, pycocotools' C code can be given.

    Raises:
        DataError: as `decode_rle`.
    """
    height, width = size
    counts = rle.get("counts")
    if rle.get("size") != [height, width]:
        raise DataError(where, f"run lengths of size [{height}, {width}]", str(rle.get("size"))[:60])
    if isinstance(counts, str | bytes):
        try:
            counts = decode_counts(counts)
        except ValueError as error:
            raise DataError(where, "COCO's compressed run lengths", error) from None
    if not isinstance(counts, list) or not all(type(count) is int and count >= 0 for count in counts):
        raise DataError(where, "run lengths of at least 0", "others")
    if sum(counts) != height * width:
        raise DataError(where, f"run lengths that sum to {height * width}", f"{min(sum(counts), 10**15)}")
    return counts


def _rasterise(polygons: Any, size: tuple[int, int], where: str) -> Bool:
    """(height, width) union of polygons, by COCO's own rule."""
    from pycocotools import mask as coco_mask

    height, width = size
    if not isinstance(polygons, list) or not polygons:
        raise DataError(where, "polygons or run lengths", type(polygons).__name__)
    # beyond this the C code's work grows with the coordinates, not the image
    reach, outline = 2 * max(height, width), 0.0
    for polygon in polygons:
        if not _numbers(polygon) or len(polygon) < 6 or len(polygon) % 2:
            raise DataError(where, "polygons of at least 3 points x, y", f"{str(polygon)[:60]}")
        if max(abs(float(value)) for value in polygon) > reach:
            raise DataError(where, f"polygons in or near {width}x{height}", f"{str(polygon)[:60]}")
        points = np.array(polygon, np.float64).reshape(-1, 2)
        outline += float(np.abs(points - np.roll(points, 1, 0)).max(1).sum())
    if outline > MAX_OUTLINE:
        raise DataError(where, f"polygons with outlines of at most {MAX_OUTLINE} pixels", f"{outline:.0f}")
    merged = coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))
    return decode_rle({"size": [height, width], "counts": merged["counts"]}, size, where)


def _numbers(values: object) -> TypeGuard[Sequence[float]]:
    return (
        isinstance(values, Sequence)
        and not isinstance(values, str)
        and all(_is_finite(value) for value in values)
    )


def _is_finite(value: object) -> bool:
    try:
        return not isinstance(value, str) and finite(value) is not None
    except ValueError:
        return False


def _read_instances(path: Path) -> Mapping[str, Any]:
    content = read_json(path)
    if not isinstance(content, dict):
        raise DataError(path, "an object with images, annotations and categories", type(content).__name__)
    return content
