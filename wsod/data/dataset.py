"""What every data set offers: annotations by index, pixels when asked, splits and classes."""

from __future__ import annotations

import io
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from wsod.data.damage import png_damage
from wsod.data.files import Member, check_regular
from wsod.errors import ConfigError, DataError
from wsod.registry import nearest
from wsod.types import MAX_PIXELS, MAX_SIDE, Sample

__all__ = [
    "ENDINGS",
    "Dataset",
    "bare",
    "by_stem",
    "image_size",
    "read_grey",
    "read_image",
    "read_labels",
    "read_values",
    "without_ending",
]

ENDINGS = frozenset((".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp"))
"""What an image file's name may end in."""


def without_ending(name: str) -> str:
    """A path without an image's ending.

    >>> without_ending("train/a.1.JPG"), without_ending("a.1")
    ('train/a.1', 'a.1')
    """
    path = Path(name)
    return (path.with_suffix("") if path.suffix.lower() in ENDINGS else path).as_posix()


def bare(name: str) -> str:
    """The last part of a path, without an image's ending.

    >>> bare("train/a.1.JPG"), bare("a.1")
    ('a.1', 'a.1')
    """
    return Path(without_ending(name)).name


def by_stem(ids: Iterable[str]) -> dict[str, str]:
    """Ids by their `bare` name, those left out that share one: cat/1 and dog/1."""
    found: dict[str, str] = {}
    twice: set[str] = set()
    for name in ids:
        if found.setdefault(bare(name), name) != name:
            twice.add(bare(name))
    return {stem: name for stem, name in found.items() if stem not in twice}


FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP")
"""What is decoded, whatever a file's name says. Pillow knows more: its EPS reader runs Ghostscript."""


class Dataset(ABC):
    """Images and their annotations: indexed in a stable order, picklable, nothing decoded before it is asked.

    Concrete data sets are dataclasses whose fields are the options of their spec.

    Attributes:
        spec: the text it was opened with.
        split: the name of the split it holds.
        classes: class names in label order.
        ids: image ids, unique, in the order of the indices.
        splits: names of all its splits.
        task: `multilabel` where an image may show several classes.
        has_images: false where there are annotations alone.
        exif: whether images are turned upright, which only photos without coordinates are.
        mirrors: whether an image and its mirror image show the same classes, as digits do not.
    """

    name: ClassVar[str]
    usage: ClassVar[str]
    default_split: ClassVar[str] = "all"
    paths: ClassVar[tuple[str, ...]] = ()
    """Fields given by position in a spec."""
    mirrors: ClassVar[bool] = True

    spec: str
    split: str
    classes: tuple[str, ...]
    ids: tuple[str, ...]
    splits: tuple[str, ...]
    task: Literal["multiclass", "multilabel"]
    has_images: bool = True
    exif: bool = False

    @abstractmethod
    def __getitem__(self, index: int) -> Sample:
        """Annotations of one image.

        Raises:
            DataError: naming the faulty file.
        """

    def image(self, index: int) -> Image.Image:
        """The pixels of one image, RGB.

        Raises:
            DataError: where the file is missing or damaged, or its size is not the sample's.
        """
        sample = self[index]
        if sample.image_path is None:
            raise DataError(sample.image_id, "an image file", "annotations alone", "This data has no images.")
        return read_image(sample.image_path, sample.size, exif=self.exif)

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))

    def _at(self, index: int) -> int:
        """The index checked, negative ones counted from the end."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"{self.spec or self.name}: image {index} of {len(self)}")
        return index % len(self)

    def _known_split(self, split: str | None) -> str:
        """The split asked for, or the usual one, if there is such a split."""
        if split is None:
            return self.default_split if self.default_split in self.splits else self.splits[0]
        if split not in self.splits:
            hint = nearest(split, list(self.splits))
            raise ConfigError(f"{self.spec or self.name}: split", "a known split", repr(split), hint)
        return split


DAMAGED = "The file is truncated or damaged."


def _open(path: Path | Member) -> Image.Image:
    """The file opened and its size checked, nothing decoded."""
    if not isinstance(path, Member):
        check_regular(path, "an image file")
    source = io.BytesIO(path.read_bytes()) if isinstance(path, Member) else path
    try:
        with warnings.catch_warnings():
            # on sizes (the limit below is the one that counts) and odd metadata
            warnings.filterwarnings("ignore", module=r"PIL\.")
            image = Image.open(source, formats=FORMATS)
    except Exception as error:  # damaged files make Pillow's readers raise almost anything
        raise DataError(path, "a readable image", _first_line(error)) from error
    if image.width * image.height > MAX_PIXELS or max(image.size) > MAX_SIDE:
        size = f"{image.width}x{image.height}"
        image.close()
        hint = "Scale the image down first."
        raise DataError(path, f"at most {MAX_PIXELS} pixels, {MAX_SIDE} a side", size, hint)
    return image


def _decode(image: Image.Image, path: Path | Member) -> None:
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"PIL\.")
            image.load()
        found = png_damage(path.read_bytes()) if image.format == "PNG" else ""
    except Exception as error:
        raise DataError(path, "a whole image", _first_line(error), DAMAGED) from error
    if found:
        raise DataError(path, "a whole image", found, DAMAGED)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _as_rgb(image: Image.Image, path: Path | Member, exif: bool) -> Image.Image:
    try:
        upright = ImageOps.exif_transpose(image) if exif else image
        if "transparency" in upright.info:
            upright = upright.convert("RGBA")
        return upright.convert("RGB")
    except Exception as error:
        raise DataError(path, "EXIF data and colours that can be read", _first_line(error)) from error


def read_image(
    path: Path | Member, size: tuple[int, int] | None = None, *, exif: bool = False
) -> Image.Image:
    """An image file as RGB.

    Args:
        path: any format Pillow reads; it may lie within a tar.
        size: the (height, width) it must have.
        exif: turn the image upright as its EXIF orientation says. For photos without annotations only:
            VOC's, COCO's and the WSOL benchmark's coordinates are in stored pixels.

    Raises:
        DataError: naming the file, where it is missing, truncated, no image, too large or of another size.
    """
    with _open(path) as image:
        if size is not None and not exif and (image.height, image.width) != tuple(size):
            raise DataError(
                path, f"an image of {size[1]}x{size[0]} as annotated", f"{image.width}x{image.height}"
            )
        _decode(image, path)
        if image.mode.startswith(("I", "F")):
            raise DataError(path, "8 bits a channel", f"mode {image.mode}", "Convert it to 8 bits first.")
        rgb = _as_rgb(image, path, exif)
    if size is not None and (rgb.height, rgb.width) != tuple(size):
        raise DataError(path, f"an image of {size[1]}x{size[0]} as annotated", f"{rgb.width}x{rgb.height}")
    return rgb


def image_size(path: Path | Member, *, exif: bool = False) -> tuple[int, int]:
    """(height, width) from the file's header."""
    with _open(path) as image:
        try:
            turned = exif and image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
        except Exception as error:
            raise DataError(path, "EXIF data that can be read", _first_line(error)) from error
        return (image.width, image.height) if turned else (image.height, image.width)


def read_labels(path: Path | Member, size: tuple[int, int]) -> NDArray[np.uint8]:
    """(height, width) values of a mask file: palette indices or grey levels.

    Raises:
        DataError: naming the file, where it is missing, damaged, coloured or of another size.
    """
    with _open(path) as image:
        if (image.height, image.width) != tuple(size):
            raise DataError(path, f"a mask of {size[1]}x{size[0]}", f"{image.width}x{image.height}")
        # Pillow spreads grey levels of 2 and 4 bits over 0..255: class 1 would become 85 or 17
        packed = image.mode == "L" and any(
            str(tile[3]).startswith(("L;", "('L;")) for tile in getattr(image, "tile", ())
        )
        _decode(image, path)
        if image.mode not in ("P", "L", "1") or packed:
            got = "grey levels of less than 8 bits" if packed else f"mode {image.mode}"
            raise DataError(path, "a mask with palette or grey levels", got)
        return np.array(image, np.uint8)


def read_values(path: Path) -> NDArray[np.generic]:
    """(height, width) values of a grey picture of 8, 16 or 32 bits, or (height, width, 3) of any other.

    Raises:
        DataError: naming the file, where it is missing or damaged.
    """
    with _open(path) as image:
        _decode(image, path)
        if image.mode in ("L", "F") or image.mode.startswith("I"):
            return np.array(image)
        return np.array(_as_rgb(image, path, False))


def read_grey(path: Path) -> NDArray[np.uint8]:
    """(height, width) grey levels of a mask file of any size; colours become their luminance.

    Raises:
        DataError: naming the file, where it is missing or damaged.
    """
    with _open(path) as image:
        _decode(image, path)
        return np.array(image.convert("L"))
