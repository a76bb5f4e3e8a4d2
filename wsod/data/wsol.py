"""The metadata lists of the WSOL benchmark (Choe et al., CVPR 2020): ImageNet, CUB, OpenImages.

Each split is a folder of comma separated lists without header, plain or gzipped:

    image_ids.txt      id                               class_labels.txt   id,label
    image_sizes.txt    id,width,height                  localization.txt   id,x0,y0,x1,y1      (boxes)
                                                                           id,mask,ignore      (OpenImages)

Ids are image paths and keep their ending. Corners are taken exactly as listed, so that the benchmark's own
rescaling, int(x · 224 / width), works on the numbers it was made for. They lie inside the image in all of the
published lists (no corner of the 80 477 ImageNet and 5 794 CUB test boxes passes width or height).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wsod.data.dataset import Dataset, image_size, read_grey
from wsod.data.files import MAX_CLASSES, finite, inside, read_lines
from wsod.errors import DataError
from wsod.types import Sample

__all__ = ["Wsol", "WsolMasks"]

Bool = NDArray[np.bool_]
LISTS = ("image_ids", "class_labels", "image_sizes", "localization")


@dataclass
class Wsol(Dataset):
    """The WSOL benchmark's lists: one class an image, its boxes or masks.

    Args:
        metadata: the folder of a split's lists (split `all`), or one that holds such folders, directly
            (split `test`) or one level down (split `CUB/test`).
        images: the folder the ids start from; without it there are annotations alone.
        masks: the folder the mask paths start from; without it `images`, else the split's folder.
        classes_file: class names, one a line; without it classes are called by their number.
        split: as above.
    """

    name: ClassVar[str] = "wsol"
    usage: ClassVar[str] = "wsol:METADATA_DIR[,IMAGES][,masks=DIR,classes_file=FILE]"
    default_split: ClassVar[str] = "test"
    paths: ClassVar[tuple[str, ...]] = ("metadata", "images")

    metadata: Path
    images: Path | None = None
    masks: Path | None = None
    classes_file: Path | None = None
    split: str | None = None  # type: ignore[assignment]  # always a name once made
    spec: str = field(default="", init=False)

    def __post_init__(self) -> None:
        self.task, self.has_images = "multiclass", self.images is not None
        found = dict(_splits(self.metadata))
        if not found:
            raise DataError(self.metadata, "image_ids.txt, or folders that hold one", "none", self.usage)
        self.splits = tuple(found)
        self.split = self._known_split(self.split)
        self.directory = found[self.split]
        listing, what = _list(self.directory, "image_ids"), "image ids that stay inside the images' folder"
        self.ids = tuple(inside(line, listing, what) for line in read_lines(listing))
        index = {name: position for position, name in enumerate(self.ids)}
        if len(index) != len(self.ids):
            double = next(name for name in self.ids if self.ids.count(name) > 1)
            raise DataError(_list(self.directory, "image_ids"), "each image once", f"{double} twice")
        self._labels = self._one_each("class_labels", 1, index)[:, 0]
        for label in (self._labels.min(initial=0), self._labels.max(initial=0)):
            if not 0 <= label < MAX_CLASSES:
                where = _list(self.directory, "class_labels")
                raise DataError(where, f"labels of at least 0, below {MAX_CLASSES}", label)
        self._sizes: NDArray[np.int64] | None = None
        if _list(self.directory, "image_sizes").exists():
            self._sizes = self._one_each("image_sizes", 2, index)
        self._read_localization(index)
        count = int(self._labels.max(initial=-1)) + 1
        self.classes = tuple(map(str, range(count)))
        if self.classes_file is not None:
            self.classes = tuple(read_lines(self.classes_file))
            if len(self.classes) < count:
                raise DataError(
                    self.classes_file, f"at least {count} class names", f"{len(self.classes)} lines"
                )

    def _one_each(self, name: str, width: int, index: dict[str, int]) -> NDArray[np.int64]:
        """(images, width) whole numbers of a list that has one line an image, in the order of the ids."""
        path = _list(self.directory, name)
        position, values = _table(path, width, index)
        if len(position) != len(index) or len(np.unique(position)) != len(index):
            raise DataError(path, f"one line for each of {len(index)} images", f"{len(position)} lines")
        odd = (np.abs(values) > 2**53) | (np.floor(values) != values)
        if odd.any():
            raise DataError(path, "whole numbers", f"{values[odd][0]:g}")
        whole = values.astype(np.int64)
        ordered = np.empty_like(whole)
        ordered[position] = whole
        return ordered

    def _read_localization(self, index: dict[str, int]) -> None:
        """Boxes as one array sorted by image, or mask paths by image."""
        self._boxes: NDArray[np.float64] | None = None
        self._mask_paths: dict[str, tuple[list[str], str]] = {}
        path = _list(self.directory, "localization")
        if not path.exists():
            return
        lines = read_lines(path)
        if lines and not _is_number(lines[0].rpartition(",")[2]):
            self._mask_paths = _mask_table(path, lines, index)
            return
        position, values = _table(path, 4, index, lines)
        order = np.argsort(position, kind="stable")
        self._boxes = values[order]
        self._starts = np.searchsorted(position[order], np.arange(len(index) + 1))

    def __getitem__(self, index: int) -> Sample:
        """One image's label with its boxes or masks."""
        index = self._at(index)
        image_id, label = self.ids[index], int(self._labels[index])
        path = None if self.images is None else self.images / image_id
        masks, boxes = self._masks(index), np.zeros((0, 4))
        if self._sizes is not None:
            size = int(self._sizes[index][1]), int(self._sizes[index][0])
        elif path is not None and (masks is None or path.exists()):
            size = image_size(path)
        elif masks is not None:
            size = image_size(masks.masks[0])
        else:
            sizes = _list(self.directory, "image_sizes")
            raise DataError(sizes, f"the size of {image_id}", "no such file", "Or give the images' folder.")
        if masks is not None:
            masks = WsolMasks(masks.masks, masks.ignored, size, label)
        where = f"{_list(self.directory, 'localization')}: {image_id}"
        if self._boxes is not None:
            boxes = self._boxes[self._starts[index] : self._starts[index + 1]]
            if not len(boxes):
                raise DataError(where, "at least one box", "none")
        try:
            return Sample(image_id, path, size, boxes, np.full(max(len(boxes), 1), label), masks=masks)
        except DataError as error:
            raise DataError(where, error.expected, error.got) from None

    def _masks(self, index: int) -> WsolMasks | None:
        if not self._mask_paths:
            return None
        image_id = self.ids[index]
        if image_id not in self._mask_paths:
            raise DataError(
                f"{_list(self.directory, 'localization')}: {image_id}", "at least one mask", "none"
            )
        root = self.masks or self.images or self.directory
        masks, ignored = self._mask_paths[image_id]
        files = tuple(root / mask for mask in masks)
        return WsolMasks(files, root / ignored if ignored else None, (1, 1), int(self._labels[index]))


@dataclass(frozen=True)
class WsolMasks:
    """OpenImages' masks of one image: files of its one class, OR-ed; ignored where no mask is.

    Args:
        masks: files, non-zero = object.
        ignored: file, non-zero = ignore; or None.
        size: (height, width) of the image; masks stored at another scale are read by nearest neighbour.
        label: the image's class.
    """

    masks: tuple[Path, ...]
    ignored: Path | None
    size: tuple[int, int]
    label: int

    @property
    def files(self) -> tuple[Path, ...]:
        """All that is read."""
        return self.masks if self.ignored is None else (*self.masks, self.ignored)

    def of(self, label: int) -> Bool:
        """Pixels of any mask, if it is the image's class."""
        return self._union.copy() if label == self.label else np.zeros(self.size, np.bool_)

    @cached_property
    def _union(self) -> Bool:
        union = np.zeros(self.size, np.bool_)
        for path in self.masks:
            union |= self._read(path)
        return union

    def ignore(self, label: int) -> Bool:
        """Pixels to ignore that are in no mask."""
        if self.ignored is None:
            return np.zeros(self.size, np.bool_)
        return self._read(self.ignored) & ~self._union

    def semantic(self) -> NDArray[np.int64]:
        """0 = background, label + 1, -1 = ignore."""
        classes = np.where(self._union, self.label + 1, 0)
        classes[self.ignore(self.label)] = -1
        return classes

    def _read(self, path: Path) -> Bool:
        values = read_grey(path)
        (height, width), (rows, columns) = self.size, values.shape
        # the same picture at another scale, within a pixel of rounding, or a mask of something else
        if abs(rows * width - columns * height) > max(height, width, rows, columns):
            raise DataError(path, f"a mask shaped as {width}x{height}", f"{columns}x{rows}")
        if (rows, columns) != self.size:
            image = Image.fromarray(values)
            values = np.asarray(image.resize((width, height), Image.Resampling.NEAREST))
        mask: Bool = values > 0
        return mask


def _splits(root: Path) -> Iterator[tuple[str, Path]]:
    """Split names and folders, by the image_ids list that makes a folder a split."""
    if _list(root, "image_ids").exists():
        yield "all", root
        return
    for depth in ("*", "*/*"):
        folders = {path.parent for path in root.glob(f"{depth}/image_ids.txt*")}
        for folder in sorted(folders):
            yield folder.relative_to(root).as_posix(), folder


def _list(directory: Path, name: str) -> Path:
    """The list's file, gzipped if that is the one there is."""
    packed = directory / f"{name}.txt.gz"
    return packed if packed.exists() else directory / f"{name}.txt"


def _table(
    path: Path, width: int, index: dict[str, int], lines: Sequence[str] | None = None
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Image positions (n,) and numbers (n, width) of lines `id,number,…`; ids may hold commas."""
    rows = [line.rsplit(",", width) for line in (read_lines(path) if lines is None else lines)]
    if any("_" in text for row in rows for text in row[1:]):
        raise _fault(path, width, index, rows)  # Python would read 1_0 as 10
    try:
        position = np.array([index[row[0]] for row in rows], np.int64)
        values = np.array([row[1:] for row in rows], np.float64).reshape(-1, width)
    except (KeyError, ValueError):
        raise _fault(path, width, index, rows) from None
    if not np.isfinite(values).all():
        raise _fault(path, width, index, rows)
    return position, values


def _fault(path: Path, width: int, index: dict[str, int], rows: Sequence[Sequence[str]]) -> DataError:
    """The first line that is not as it should be."""
    for number, row in enumerate(rows, 1):
        if len(row) != width + 1 or not all(map(_is_number, row[1:])):
            return DataError(f"{path}: line {number}", f"an id and {width} numbers", ",".join(row)[:200])
        if row[0] not in index:
            return DataError(f"{path}: line {number}", "an id of image_ids", row[0][:200])
    return DataError(path, f"an id and {width} numbers a line", "others")


def _mask_table(path: Path, lines: Sequence[str], index: dict[str, int]) -> dict[str, tuple[list[str], str]]:
    """Mask files and the ignore file by image; an image's ignore file is on its first line only."""
    table: dict[str, tuple[list[str], str]] = {}
    for number, line in enumerate(lines, 1):
        parts = line.split(",")
        if len(parts) != 3 or not parts[1] or parts[0] not in index:
            raise DataError(f"{path}: line {number}", "id,mask,ignore with an id of image_ids", line[:200])
        for file in filter(None, parts[1:]):
            inside(file, f"{path}: line {number}", "mask files inside their folder")
        masks, ignored = table.get(parts[0], ([], ""))
        table[parts[0]] = ([*masks, parts[1]], ignored or parts[2])
    return table


def _is_number(text: str) -> bool:
    try:
        finite(text)
    except ValueError:
        return False
    return True
