"""Images in tar files, as WebDataset has them: what a file system of many small files would be slow with.

    DIR/val-000000.tar, DIR/val-000001.tar, …    the split is the name before the number
    DIR/classes.txt                              class names, one a line

In a tar, the files of one image share their name up to the first dot:
    a/0001.jpg         the image
    a/0001.cls         its class: a name, or a number in the order of classes.txt, from 0
    a/0001.json        or {"labels": [NAME, …]}, or {"boxes": [{"label", "x0", "y0", "x1", "y1"}, …]}, with
                       the keys of a folder's boxes.json
    a/0001.mask.png    beside one of these: 0 = background, class + 1, 255 = void

Nothing is unpacked: the headers say where each file lies, and it is read there. Tars are not compressed.
"""

from __future__ import annotations

import re
import tarfile
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from wsod.data.dataset import ENDINGS, Dataset, image_size, read_image
from wsod.data.files import Member, check_regular, corners, inside, read_bytes, read_classes, read_json
from wsod.data.masks import PngMasks
from wsod.errors import ConfigError, DataError
from wsod.registry import nearest
from wsod.types import Sample

__all__ = ["Shards"]

KINDS = ("image", "json", "cls", "mask")
MASKS = (".mask.png", ".seg.png")


@dataclass
class Shards(Dataset):
    """Images and annotations in tar files.

    Args:
        root: the folder of the tars.
        split: the name before the number; `wsod evaluate` takes `val` where there is one.
    """

    name: ClassVar[str] = "shards"
    usage: ClassVar[str] = "shards:DIR"
    default_split: ClassVar[str] = "val"
    paths: ClassVar[tuple[str, ...]] = ("root",)

    root: Path
    split: str | None = None  # type: ignore[assignment]  # always a name once made
    spec: str = field(default="", init=False)

    def __post_init__(self) -> None:
        if not self.root.is_dir():
            raise ConfigError(f"shards:{self.root}", "a folder", "none")
        tars: dict[str, list[Path]] = {}
        for path in sorted(self.root.glob("*.tar")):
            tars.setdefault(re.sub(r"[-_.]?\d+$", "", path.stem) or "all", []).append(path)
        if not tars:
            raise DataError(self.root, "tar files, such as val-000000.tar", "none")
        self.splits = tuple(tars)
        self.split = self._known_split(self.split)
        self.classes = read_classes(self.root / "classes.txt")
        self._labels = {name: label for label, name in enumerate(self.classes)}
        self._tars = tuple(tars[self.split])
        # of each image, its tar, and where its files begin and how long they are (-1: none)
        self._tar = array("i")
        self._spans = {kind: (array("q"), array("q")) for kind in KINDS}
        self._endings = array("b")
        self.ids = self._find()
        self.task = "multilabel" if any(n >= 0 for n in self._spans["json"][0]) else "multiclass"

    def _find(self) -> tuple[str, ...]:
        """Ids, in the order of the tars."""
        places: dict[str, int] = {}
        endings = sorted(ENDINGS)
        for number, path in enumerate(self._tars):
            check_regular(path, "a tar file")
            for name, start, size in _members(path):
                stem, kind, ending = _kind(name)
                if kind is None:
                    continue
                if stem not in places:
                    places[inside(stem, f"{path}: {name[:200]}", "a name inside the tar")] = len(self._tar)
                    self._tar.append(number)
                    self._endings.append(-1)
                    for starts, sizes in self._spans.values():
                        starts.append(-1)
                        sizes.append(-1)
                place = places[stem]
                starts, sizes = self._spans[kind]
                if self._tar[place] != number or starts[place] >= 0:
                    raise DataError(f"{path}: {name[:200]}", "each image once", "a second time")
                starts[place], sizes[place] = start, size
                if kind == "image":
                    self._endings[place] = endings.index(ending)
        for stem, place in places.items():
            if self._endings[place] < 0:
                where = f"{self._tars[self._tar[place]]}: {stem[:200]}"
                raise DataError(where, "an image (" + " ".join(endings) + ")", "other files alone")
        return tuple(places)

    def _member(self, index: int, kind: str) -> Member | None:
        starts, sizes = self._spans[kind]
        if starts[index] < 0:
            return None
        ending = sorted(ENDINGS)[self._endings[index]] if kind == "image" else f".{kind}"
        name = self.ids[index] + ending
        return Member(self._tars[self._tar[index]], name, starts[index], sizes[index])

    def _image(self, index: int) -> Member:
        member = self._member(self._at(index), "image")
        assert member is not None  # seen when it was found
        return member

    def image(self, index: int) -> Any:
        """The pixels of one image, RGB.

        Raises:
            DataError: naming the tar and the file in it.
        """
        return read_image(self._image(index))

    def __getitem__(self, index: int) -> Sample:
        """Annotations of one image; its size is read from the image's header."""
        index = self._at(index)
        size = image_size(self._image(index))
        boxes: list[tuple[float, ...]] = []
        labels: list[int] = []
        difficult: list[bool] = []
        if (member := self._member(index, "cls")) is not None:
            labels = [self._class(member)]
        if (member := self._member(index, "json")) is not None:
            table = read_json(member)
            rows = table.get("boxes") if isinstance(table, dict) else None
            if isinstance(rows, list) and rows:
                found = [self._box(row, size, member) for row in rows]
                boxes = [box for box, _, _ in found]
                labels = [label for _, label, _ in found]
                difficult = [flag for _, _, flag in found]
            elif isinstance(table, dict) and isinstance(table.get("labels"), list):
                labels = [self._label(name, member) for name in table["labels"]]
            elif rows != []:
                raise DataError(member, "an object with boxes or labels", repr(table)[:200])
        mask = self._member(index, "mask")
        return Sample(
            self.ids[index],
            None,
            size,
            np.array(boxes, np.float64).reshape(-1, 4),
            np.array(labels, np.int64),
            np.array(difficult, np.bool_),
            masks=None if mask is None else PngMasks(mask, size, len(self.classes)),
        )

    def _class(self, member: Member) -> int:
        text = read_bytes(member, "a class").decode("utf-8", "replace").strip()
        if text in self._labels:
            return self._labels[text]
        number = int(text) if text.isascii() and text.isdecimal() and len(text) < 20 else -1
        if not 0 <= number < len(self.classes):
            got = repr(text[:60])
            raise DataError(member, f"a class of classes.txt, or a number below {len(self.classes)}", got)
        return number

    def _label(self, name: object, member: Member) -> int:
        if not isinstance(name, str) or name not in self._labels:
            hint = nearest(str(name), list(self.classes))
            raise DataError(member, "a class of classes.txt", repr(name)[:60], hint)
        return self._labels[name]

    def _box(self, row: object, size: tuple[int, int], member: Member) -> tuple[tuple[float, ...], int, bool]:
        if not isinstance(row, Mapping):
            raise DataError(member, "objects with label, x0, y0, x1, y1", repr(row)[:200])
        label = self._label(row.get("label"), member)
        x0, y0, x1, y1 = corners(row, member)
        if not (0 <= x0 < x1 <= size[1] and 0 <= y0 < y1 <= size[0]):
            got = f"({x0:g}, {y0:g}, {x1:g}, {y1:g})"
            raise DataError(member, f"a non-empty box inside {size[1]}x{size[0]}", got)
        if row.get("difficult", 0) not in (0, 1):
            raise DataError(member, "difficult 0 or 1", repr(row["difficult"])[:200])
        return (x0, y0, x1, y1), label, bool(row.get("difficult", 0))


def _kind(name: str) -> tuple[str, str | None, str]:
    """The image's id, what of it this is, and the ending."""
    folder, _, last = name.removeprefix("./").rpartition("/")
    base, dot, rest = last.partition(".")
    ending = (dot + rest).lower()
    stem = f"{folder}/{base}" if folder else base
    if ending in MASKS:
        return stem, "mask", ending
    if ending in (".json", ".cls"):
        return stem, ending[1:], ending
    return stem, "image" if ending in ENDINGS and base else None, ending


def _members(path: Path) -> list[tuple[str, int, int]]:
    """Name, first byte and size of a tar's ordinary files."""
    length = path.stat().st_size
    found = []
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if not member.isreg() or member.issparse():
                    continue
                if member.offset_data + member.size > length:
                    raise DataError(f"{path}: {member.name[:200]}", "a whole tar", "one that is cut short")
                found.append((member.name, member.offset_data, member.size))
    except (OSError, tarfile.TarError, ValueError, RecursionError) as error:
        raise DataError(path, "a tar file, not compressed", str(error)[:200]) from error
    return found
