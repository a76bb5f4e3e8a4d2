"""PASCAL VOC in the devkit's layout, as published and as `wsod data export` writes it.

The files' pixel coordinates are 1-based and inclusive; here they become half-open: x0 = xmin - 1, x1 = xmax.
Fractional coordinates, which a few files have, are kept as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal
from xml.etree.ElementTree import ParseError

from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import fromstring

from wsod.data.dataset import Dataset
from wsod.data.files import finite, inside, read_bytes, read_lines
from wsod.data.masks import ObjectPngMasks, PngMasks
from wsod.errors import DataError
from wsod.registry import nearest
from wsod.types import Sample

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

__all__ = ["VOC_CLASSES", "Voc", "Voc2007", "Voc2012"]

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
"""The 20 classes in the devkit's order."""

EDGE = 1.0
"""A box may pass the image's edge by up to a pixel of rounding; it is clipped. Beyond that it is a fault."""


@dataclass
class Voc(Dataset):
    """A VOC devkit year: Annotations, ImageSets, JPEGImages, SegmentationClass, SegmentationObject.

    Args:
        root: VOCdevkit, the folder that holds it, or the year's own folder.
        split: a list of ImageSets/Main; `seg-NAME` is one of ImageSets/Segmentation.
        classes_file: class names, one a line, for data of other classes in this layout. Without it
            `classes.txt` beside Annotations is read if there is one, else the classes are VOC's 20.
        masks: `official` = SegmentationClass alone; `aug` = also SegmentationClassAug where an image has no
            official mask (SBD's; no void border).

    Without JPEGImages the annotations alone can be used: `image_path` is None.
    """

    year: ClassVar[str]
    paths: ClassVar[tuple[str, ...]] = ("root",)

    root: Path
    split: str | None = None  # type: ignore[assignment]  # always a name once made
    classes_file: Path | None = None
    masks: Literal["official", "aug"] = "official"
    spec: str = field(default="", init=False)

    def __post_init__(self) -> None:
        self.task = "multilabel"
        self.directory = self._find_directory()
        sets = self.directory / "ImageSets"
        self.splits = tuple(_split_names(sets))
        if not self.splits:
            raise DataError(sets, "lists such as Main/val.txt", "none", "Write one image id a line.")
        self.split = self._known_split(self.split)
        self.classes = self._class_names()
        self._labels = {name: label for label, name in enumerate(self.classes)}
        folder = "Segmentation" if self.split.startswith("seg-") else "Main"
        listing = sets / folder / f"{self.split.removeprefix('seg-')}.txt"
        # a second column, if any, is a per-class flag
        what = "image ids that stay inside the folders"
        self.ids = tuple(inside(line.split()[0], listing, what) for line in read_lines(listing))
        if len(set(self.ids)) != len(self.ids):
            double = next(name for name in self.ids if self.ids.count(name) > 1)
            raise DataError(listing, "each image once", f"{double} twice")
        self.has_images = (self.directory / "JPEGImages").is_dir()

    def _find_directory(self) -> Path:
        year = f"VOC{self.year}"
        for directory in (self.root, self.root / year, self.root / "VOCdevkit" / year):
            if (directory / "Annotations").is_dir():
                return directory
        raise DataError(
            self.root, f"{year}, VOCdevkit/{year} or Annotations in it", "none", f"Use {self.usage}."
        )

    def _class_names(self) -> tuple[str, ...]:
        beside = self.directory / "classes.txt"
        path = self.classes_file or (beside if beside.is_file() else None)
        names = VOC_CLASSES if path is None else tuple(read_lines(path))
        if len(set(names)) != len(names) or not names:
            raise DataError(path, "different class names, one a line", f"{len(names)} lines")
        return names

    def __getitem__(self, index: int) -> Sample:
        """The annotations of one XML file; its masks if the image has any."""
        image_id = self.ids[self._at(index)]
        path = self.directory / "Annotations" / f"{image_id}.xml"
        root = _read_xml(path)
        size = (_integer(path, root, "size/height"), _integer(path, root, "size/width"))
        boxes, labels, difficult = [], [], []
        for element in root.findall("object"):
            name = _text(path, element, "name")
            if name not in self._labels:
                raise DataError(path, "a known class", repr(name), nearest(name, list(self._labels)))
            boxes.append(_box(path, element, size))
            labels.append(self._labels[name])
            difficult.append(_flag(path, element, "difficult"))
        try:
            return Sample(
                image_id=image_id,
                image_path=self.directory / "JPEGImages" / f"{image_id}.jpg" if self.has_images else None,
                size=size,
                boxes=boxes,  # type: ignore[arg-type]  # Sample makes the arrays
                labels=labels,  # type: ignore[arg-type]
                difficult=difficult,  # type: ignore[arg-type]
                masks=self._masks(image_id, size, len(boxes)),
            )
        except DataError as error:
            raise DataError(path, error.expected, error.got, error.hint) from None

    def _masks(self, image_id: str, size: tuple[int, int], count: int) -> PngMasks | None:
        folders, file, classes = self._masked, f"{image_id}.png", len(self.classes)
        path = self.directory / "SegmentationClass" / file
        if image_id in folders["SegmentationClass"]:
            if image_id in folders["SegmentationObject"]:
                objects = self.directory / "SegmentationObject" / file
                return ObjectPngMasks(path, size, classes, objects, count)
            return PngMasks(path, size, classes)
        if self.masks == "aug" and image_id in folders["SegmentationClassAug"]:
            return PngMasks(self.directory / "SegmentationClassAug" / file, size, classes)
        return None

    @cached_property
    def _masked(self) -> dict[str, frozenset[str]]:
        """Image ids with a mask, by folder: one listing instead of a look-up an image."""
        folders = ("SegmentationClass", "SegmentationClassAug", "SegmentationObject")
        return {name: frozenset(p.stem for p in (self.directory / name).glob("*.png")) for name in folders}


class Voc2007(Voc):
    """PASCAL VOC 2007."""

    name, year, default_split = "voc2007", "2007", "test"
    usage = "voc2007:ROOT[,classes_file=FILE,masks=official|aug]"


class Voc2012(Voc):
    """PASCAL VOC 2012."""

    name, year, default_split = "voc2012", "2012", "val"
    usage = "voc2012:ROOT[,classes_file=FILE,masks=official|aug]"


def _split_names(sets: Path) -> Iterator[str]:
    for folder, prefix in (("Main", ""), ("Segmentation", "seg-")):
        names = sorted(path.stem for path in (sets / folder).glob("*.txt"))
        # Main also has aeroplane_train.txt and so on: one class's flags for the images of train.txt
        yield from (prefix + name for name in names if name.partition("_")[2] not in names)


def _read_xml(path: Path) -> Element:
    try:
        root: Element = fromstring(read_bytes(path, "an annotation file"))
    except (ParseError, DefusedXmlException, ValueError, LookupError) as error:  # unknown encodings too
        raise DataError(path, "XML that parses", error) from error
    if root.tag != "annotation":
        raise DataError(path, "an <annotation> element", f"<{root.tag}>")
    return root


def _text(path: Path, element: Element, tag: str) -> str:
    text = (element.findtext(tag) or "").strip()
    if not text:
        raise DataError(path, f"a <{tag.replace('/', '><')}> element with a value", "none")
    return text


def _number(path: Path, element: Element, tag: str) -> float:
    text = _text(path, element, tag)
    try:
        return finite(text)
    except ValueError:
        raise DataError(path, f"a number in <{tag}>", repr(text[:40])) from None


def _integer(path: Path, element: Element, tag: str) -> int:
    value = _number(path, element, tag)
    if value != int(value) or value < 1:
        raise DataError(path, f"a positive whole number in <{tag}>", f"{value:g}")
    return int(value)


def _flag(path: Path, element: Element, tag: str) -> bool:
    text = (element.findtext(tag) or "0").strip()
    if text not in ("0", "1"):
        raise DataError(path, f"0 or 1 in <{tag}>", repr(text))
    return text == "1"


def _box(path: Path, element: Element, size: tuple[int, int]) -> list[float]:
    """Half-open corners, clipped where they pass the edge by rounding only."""
    height, width = size
    corners = [_number(path, element, f"bndbox/{tag}") for tag in ("xmin", "ymin", "xmax", "ymax")]
    box = [corners[0] - 1, corners[1] - 1, corners[2], corners[3]]
    over = max(-box[0], -box[1], box[2] - width, box[3] - height)
    if over > EDGE or box[0] >= box[2] or box[1] >= box[3]:
        shown = ", ".join(f"{value:g}" for value in corners)
        raise DataError(path, f"a non-empty box inside {width}x{height} (1-based)", f"({shown})")
    return [max(box[0], 0.0), max(box[1], 0.0), min(box[2], float(width)), min(box[3], float(height))]
