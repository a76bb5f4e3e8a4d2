"""Pixel truth kept as one array of classes an image: read from a PNG when asked, or held in memory."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wsod.data.dataset import read_labels
from wsod.data.files import Member
from wsod.errors import DataError
from wsod.types import InstanceMasks

__all__ = ["VOID", "ArrayMasks", "InstanceMasks", "ObjectPngMasks", "PngMasks", "SemanticMasks"]

VOID = 255
"""The value of unlabelled pixels in VOC's class masks."""

Bool = NDArray[np.bool_]
Int = NDArray[np.int64]


class SemanticMasks(ABC):
    """Masks made from one array of classes."""

    @abstractmethod
    def semantic(self) -> Int:
        """(height, width): 0 = background, label + 1 = that class, -1 = void."""

    def of(self, label: int) -> Bool:
        """Pixels of that class."""
        pixels: Bool = self.semantic() == label + 1
        return pixels

    def ignore(self, label: int) -> Bool:
        """Void pixels, the same for every class."""
        pixels: Bool = self.semantic() == -1
        return pixels


@dataclass(frozen=True)
class PngMasks(SemanticMasks):
    """A PNG of class indices: 0 = background, label + 1, 255 = void (VOC's SegmentationClass).

    Args:
        path: the file, read at each call.
        size: the (height, width) it must have.
        classes: number of classes.
    """

    path: Path | Member
    size: tuple[int, int]
    classes: int

    @property
    def files(self) -> tuple[Path | Member, ...]:
        """All that class masks are read from."""
        return (self.path,)

    def semantic(self) -> Int:
        """(height, width) classes.

        Raises:
            DataError: naming the file, where it is damaged, of another size or holds an unknown class.
        """
        values = read_labels(self.path, self.size).astype(np.int64)
        values[values == VOID] = -1
        if values.max() > self.classes:
            raise DataError(
                self.path, f"mask values 0..{self.classes} and {VOID}", f"the value {values.max()}"
            )
        return values


@dataclass(frozen=True)
class ObjectPngMasks(PngMasks):
    """With a second PNG of single objects: 0 = background, n + 1 = the n-th box, 255 = void.

    Args:
        objects: that file (VOC's SegmentationObject, in the order of the XML's objects).
        count: number of boxes.
    """

    objects: Path
    count: int

    def instance(self, n: int) -> Bool:
        """(height, width) pixels of the n-th box.

        Raises:
            DataError: naming the file, where it is damaged, of another size or holds unknown objects.
        """
        values = read_labels(self.objects, self.size)
        top = int(values[values != VOID].max(initial=0))
        if top > self.count:
            raise DataError(self.objects, f"objects 1..{self.count} and {VOID}", f"the object {top}")
        pixels: Bool = values == n + 1
        return pixels


@dataclass(frozen=True, eq=False)
class ArrayMasks(SemanticMasks):
    """Masks in memory.

    Args:
        instances: (height, width) uint8, 0 = background, n + 1 = the n-th box.
        labels: the class of each box.
    """

    instances: NDArray[np.uint8]
    labels: tuple[int, ...]

    def semantic(self) -> Int:
        """(height, width) classes."""
        table = np.array([0, *(label + 1 for label in self.labels)], np.int64)
        return table[self.instances]

    def instance(self, n: int) -> Bool:
        """(height, width) visible pixels of the n-th box."""
        pixels: Bool = self.instances == n + 1
        return pixels
