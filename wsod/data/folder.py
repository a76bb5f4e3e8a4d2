"""A folder of one's own images, with whatever annotations lie beside them.

    DIR/images/**, or images directly in DIR, and one or more of
    boxes.csv      header image,label,x0,y0,x1,y1[,difficult]; labels are names
    boxes.json     a list of objects with the same keys
    masks/*.png    0 = background, class + 1, 255 = void; the class names in classes.txt, in order
    labels.csv     header image,label: classes without places
    NAME/*.jpg     no file, but a folder a class
    splits/*.txt   image names, one a line; without it there is one split, `all`

Boxes are 0-based, half-open, in stored pixels. An image is named by its path below the image folder, with or
without its ending. With masks alone, each 8-connected part of a class is a box, and maps made elsewhere need
no images either. Photos without places are turned upright as their EXIF orientation says; annotated ones are
not.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from wsod.data.dataset import ENDINGS, Dataset, image_size, without_ending
from wsod.data.files import CORNERS, corners, files_below, read_bytes, read_classes, read_json, read_lines
from wsod.data.masks import PngMasks
from wsod.errors import ConfigError, DataError
from wsod.registry import nearest
from wsod.types import Sample

__all__ = ["Folder", "components"]


@dataclass(frozen=True)
class _Row:
    """One annotation: a class, perhaps a box, and where it was read."""

    label: str
    where: str
    box: tuple[float, ...] = ()
    difficult: bool = False


@dataclass
class Folder(Dataset):
    """Images in a folder, annotated by boxes.csv, boxes.json, masks/, labels.csv or folders named by class.

    Args:
        root: the folder.
        split: a list in `splits/`, or `all`.
    """

    name: ClassVar[str] = "folder"
    usage: ClassVar[str] = "folder:DIR"
    paths: ClassVar[tuple[str, ...]] = ("root",)

    root: Path
    split: str | None = None  # type: ignore[assignment]  # always a name once made
    spec: str = field(default="", init=False)

    def __post_init__(self) -> None:
        if not self.root.is_dir():
            raise ConfigError(f"folder:{self.root}", "a folder", "none")
        self._files = self._find_images()
        lists = sorted((self.root / "splits").glob("*.txt"))
        self.splits = tuple(path.stem for path in lists) or ("all",)
        self.split = self._known_split(self.split)
        self._rows: dict[str, list[_Row]] = {name: [] for name in self._files}
        self._masked = (self.root / "masks").is_dir()
        self._masks = _pngs(self.root / "masks") if self._masked else {}
        if self._masks and not any(name in self._masks for name in self._files):
            got, name = next(iter(self._masks)), next(iter(self._files))
            raise DataError(
                self.root / "masks", f"masks called as images are, such as {name}.png", f"{got}.png"
            )
        placed = self._read_annotations()
        self.exif = not placed and not self._masked
        self.classes = self._class_names()
        self._labels = {name: label for label, name in enumerate(self.classes)}
        several = any(len({row.label for row in rows}) > 1 for rows in self._rows.values())
        single = self.exif and self._rows and not several and all(self._rows.values())
        self.task = "multiclass" if single else "multilabel"
        self.ids = tuple(self._files)
        if lists:
            path = self.root / "splits" / f"{self.split}.txt"
            self.ids = tuple(dict.fromkeys(self._named(line, path) for line in read_lines(path)))

    @property
    def base(self) -> Path:
        """Where its images are looked for."""
        images = self.root / "images"
        return images if images.is_dir() else self.root

    def _find_images(self) -> dict[str, Path]:
        """Image files by name, in the order of the names."""
        base = self.base
        files: dict[str, Path] = {}
        for path in files_below(base):
            inside = path.relative_to(base)
            if path.suffix.lower() not in ENDINGS or inside.parts[0] == "masks":
                continue
            name = inside.with_suffix("").as_posix()
            if name in files:
                raise DataError(path, "different names before the ending", f"{files[name].name} too")
            files[name] = path
        if not files and (self.root / "masks").is_dir():
            self.has_images = False
            masks = self.root / "masks"
            files = _pngs(masks)
        if not files:
            raise DataError(base, "images (" + " ".join(sorted(ENDINGS)) + ")", "none")
        return files

    def _named(self, text: str, where: object) -> str:
        """The image a line means."""
        name = Path(text).as_posix()
        if name not in self._files:
            name = without_ending(name)
        if name not in self._files:
            raise DataError(
                where, "the name of an image", repr(text), nearest(name, list(self._files)[:1000])
            )
        return name

    def _read_annotations(self) -> bool:
        """Fill the rows by image; true where they have boxes."""
        found = [name for name in ("boxes.csv", "boxes.json", "labels.csv") if (self.root / name).is_file()]
        if len(found) > 1:
            raise DataError(self.root, "one annotation file", " and ".join(found))
        if found:
            path, boxes = self.root / found[0], found[0].startswith("boxes")
            for where, row in _json_rows(path) if path.suffix == ".json" else _csv_rows(path):
                name, label = self._named(_word(row, "image", where), where), _word(row, "label", where)
                self._rows[name].append(_parse(row, label, where) if boxes else _Row(label, where))
            return boxes
        if not self._masked and all("/" in name for name in self._files):
            for name, path in self._files.items():
                self._rows[name].append(_Row(name.split("/")[0], str(path)))
        return False

    def _class_names(self) -> tuple[str, ...]:
        path = self.root / "classes.txt"
        used = {row.label: row.where for rows in self._rows.values() for row in rows}
        if not path.is_file():
            if self._masked:
                raise DataError(path, "class names, one a line, for the values in masks/", "no such file")
            return tuple(sorted(used))
        names = read_classes(path)
        for label, where in used.items():
            if label not in names:
                raise DataError(where, "a class of classes.txt", repr(label), nearest(label, list(names)))
        return names

    def __getitem__(self, index: int) -> Sample:
        """Annotations of one image; its size is read from the file's header."""
        name = self.ids[self._at(index)]
        path, rows = self._files[name], self._rows[name]
        size = image_size(path, exif=self.exif)
        masks = None
        if name in self._masks:
            masks = PngMasks(self._masks[name], size, len(self.classes))
        boxes = np.array([row.box for row in rows if row.box], np.float64).reshape(-1, 4)
        labels = np.array([self._labels[row.label] for row in rows], np.int64)
        if masks is not None and not len(boxes):
            boxes, derived = components(masks.semantic())
            labels = derived if len(boxes) else labels
        for row in rows:
            x0, y0, x1, y1 = row.box or (0.0, 0.0, 1.0, 1.0)
            if not (0 <= x0 < x1 <= size[1] and 0 <= y0 < y1 <= size[0]):
                where, got = row.where, f"({x0:g}, {y0:g}, {x1:g}, {y1:g})"
                raise DataError(where, f"a non-empty box inside {size[1]}x{size[0]} of {name}", got)
        difficult = np.array([row.difficult for row in rows if row.box], np.bool_)
        image = path if self.has_images else None
        return Sample(name, image, size, boxes, labels, difficult, masks=masks)


def _pngs(folder: Path) -> dict[str, Path]:
    """PNG files by their path without the ending, in the order of the names."""
    files = (path for path in files_below(folder) if path.suffix.lower() == ".png")
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in files}


def components(classes: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Boxes (n, 4) and labels (n,) of the 8-connected parts of each class."""
    from scipy import ndimage

    boxes, labels = [], []
    for value in np.unique(classes[classes > 0]):
        parts, _ = ndimage.label(classes == value, np.ones((3, 3)))
        for rows, columns in ndimage.find_objects(parts):
            boxes.append((columns.start, rows.start, columns.stop, rows.stop))
            labels.append(int(value) - 1)
    return np.array(boxes, np.float64).reshape(-1, 4), np.array(labels, np.int64)


def _csv_rows(path: Path) -> Iterable[tuple[str, Mapping[str, Any]]]:
    needed = ("image", "label", *(CORNERS if path.stem == "boxes" else ()))
    try:
        text = read_bytes(path, "a readable CSV file").decode("utf-8-sig")
        reader = csv.DictReader(io.StringIO(text, newline=""), skipinitialspace=True)
        missing = [key for key in needed if key not in (reader.fieldnames or ())]
        if missing:
            raise DataError(path, "the header " + ",".join(needed), f"no {', '.join(missing)}")
        names = list(reader.fieldnames or ())
        if double := [key for key in needed if names.count(key) > 1]:
            raise DataError(path, "the header " + ",".join(needed), f"{double[0]} twice")
        rows = [(f"{path}: line {reader.line_num}", row) for row in reader]
        for where, row in rows:
            # a comma in a name or number that is not quoted moves what comes after it
            if any(cell.strip() for cell in row.get(None, ())):
                raise DataError(where, f"{len(names)} columns as in the header", "more", "Quote commas.")
        return rows
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(path, "a readable CSV file", error) from error


def _json_rows(path: Path) -> Iterable[tuple[str, Mapping[str, Any]]]:
    rows = read_json(path)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError(path, "a list of objects with image, label, x0, y0, x1, y1", type(rows).__name__)
    return [(f"{path}: entry {number}", row) for number, row in enumerate(rows)]


def _word(row: Mapping[str, Any], key: str, where: str) -> str:
    """A name; a whole number will do."""
    value = row.get(key)
    word = str(value).strip() if type(value) in (str, int) else ""
    if not word:
        raise DataError(where, f"the name of an {key}" if key == "image" else f"a {key}", "none")
    return word


def _parse(row: Mapping[str, Any], label: str, where: str) -> _Row:
    """A row with its box and flag."""
    box = corners(row, where)
    flag = str(row.get("difficult") or 0).lower()
    if flag not in ("0", "1", "false", "true"):
        raise DataError(where, "difficult 0 or 1", repr(row["difficult"])[:200])
    return _Row(label, where, box, flag in ("1", "true"))
