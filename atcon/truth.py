"""Where the classes of a training image are: masks and boxes, varied and resized together with it."""

from __future__ import annotations

from collections.abc import Callable, Set
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors

from wsod.data.dataset import Dataset
from wsod.models.preprocess import Region

__all__ = ["Truth", "read_truth"]


@dataclass(frozen=True)
class Truth:
    """Places of classes in one image; None what is not wanted.

    Args:
        masks: (C, H, W) uint8, 1 = that class.
        void: (H, W) uint8, 1 = counts neither way.
        has_mask: () bool, whether there is pixel truth.
        boxes: (n, 4) x0, y0, x1, y1.
        labels: (n,) the class of each box.
    """

    masks: Tensor | None = None
    void: Tensor | None = None
    has_mask: Tensor | None = None
    boxes: Tensor | None = None
    labels: Tensor | None = None

    def varied(self, augment: Callable[..., Any], image: Image.Image) -> tuple[Image.Image, Truth]:
        """Image and places after one random draw of a torchvision transform."""
        image, masks, void, boxes = augment(image, self.masks, self.void, self.boxes)
        return image, replace(self, masks=masks, void=void, boxes=boxes)

    def seen(self, region: Region, size: tuple[int, int]) -> Truth:
        """What an input of this (height, width) shows that spans the region of the image.

        Masks by the pixel nearest to each input pixel's centre; what lies outside the image is void.
        Boxes are cut off at the input's edge; those outside of it are left out.
        """
        masks, void, boxes, labels = self.masks, self.void, self.boxes, self.labels
        x0, y0, x1, y1 = region
        height, width = size
        if masks is not None and void is not None:
            rows, in_rows = _nearest(y0, y1, height, masks.shape[1])
            columns, in_columns = _nearest(x0, x1, width, masks.shape[2])
            inside = in_rows[:, None] & in_columns
            masks = masks[:, rows][:, :, columns] * inside
            void = torch.where(inside, void[rows][:, columns], 1)
        if boxes is not None and labels is not None:
            scale = torch.tensor([width / (x1 - x0), height / (y1 - y0)] * 2)
            boxes = (torch.as_tensor(boxes) - torch.tensor([x0, y0, x0, y0])) * scale
            boxes = boxes.clamp(min=0).minimum(torch.tensor([width, height] * 2))
            keep = (boxes[:, 2:] > boxes[:, :2]).all(1)
            boxes, labels = boxes[keep], labels[keep]
        return Truth(masks, void, self.has_mask, boxes, labels)

    def rows(self) -> Tensor:
        """(n, 5) float32: boxes and labels side by side."""
        assert self.boxes is not None
        assert self.labels is not None
        return torch.cat([self.boxes, self.labels[:, None]], 1).float()


def _nearest(start: float, stop: float, cells: int, pixels: int) -> tuple[Tensor, Tensor]:
    """The pixel under each cell's centre, and whether there is one."""
    at = np.floor(start + (np.arange(cells) + 0.5) * (stop - start) / cells)
    inside = (at >= 0) & (at < pixels)
    return torch.from_numpy(at.clip(0, pixels - 1).astype(np.int64)), torch.from_numpy(inside)


def read_truth(dataset: Dataset, index: int, wants: Set[str]) -> Truth:
    """Masks and boxes of one image, as wanted; an image without pixel truth has empty masks.

    Args:
        dataset: where it is from.
        index: the image.
        wants: `masks`, `boxes`.

    Raises:
        DataError: naming the file, where it cannot be read.
    """
    sample = dataset[index]
    found = Truth()
    if "masks" in wants:
        masks = np.zeros((len(dataset.classes), *sample.size), np.uint8)
        void = np.zeros(sample.size, np.uint8)
        if sample.masks is not None:
            for label in sample.classes:
                masks[label] = sample.masks.of(label)
                void |= sample.masks.ignore(label)
        known = torch.tensor(sample.masks is not None)
        found = Truth(tv_tensors.Mask(masks), tv_tensors.Mask(void), known)
    if "boxes" in wants:
        boxes = tv_tensors.BoundingBoxes(
            torch.from_numpy(sample.boxes.astype(np.float32)), format="XYXY", canvas_size=sample.size
        )
        labels = torch.from_numpy(sample.labels[: len(sample.boxes)].copy())
        found = Truth(found.masks, found.void, found.has_mask, boxes, labels)
    return found
