"""Where the objects of a batch are, from masks or boxes."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from atcon.data import Batch
from wsod.errors import ConfigError

__all__ = ["Source", "foreground_of"]

Source = Literal["masks", "boxes"]


def foreground_of(batch: Batch, source: Source = "masks", per_class: bool = False) -> Tensor:
    """(N, H, W) bool, the pixels of all objects; or (N, C, H, W), those of each class.

    Void pixels count as foreground. An image without pixel truth, or without an object, has none at all.

    Args:
        batch: with masks or boxes.
        source: which of them. A box is filled.
        per_class: for each class instead of their union.

    Raises:
        ConfigError: where the batch has not what is asked for.
    """
    if source == "masks":
        if batch.masks is None:
            raise ConfigError("objective", "a batch with masks", "none")
        masks = batch.masks.bool()
        found = masks if per_class else masks.any(1)
        if batch.void is not None:
            shown = found.flatten(-2).any(-1)[..., None, None]
            found = found | (shown & (batch.void[:, None] if per_class else batch.void).bool())
        return found
    if batch.boxes is None:
        raise ConfigError("objective", "a batch with boxes", "none")
    height, width = batch.images.shape[-2:]
    device = batch.images.device
    rows = torch.arange(height, device=device) + 0.5
    columns = torch.arange(width, device=device) + 0.5
    classes = batch.targets.shape[1] if batch.targets.ndim == 2 else _most(batch) + 1
    filled = torch.zeros(len(batch), classes, height, width, dtype=torch.bool, device=device)
    for n, boxes in enumerate(batch.boxes):
        for x0, y0, x1, y1, label in boxes.tolist():
            inside = ((rows >= y0) & (rows < y1))[:, None] & ((columns >= x0) & (columns < x1))
            filled[n, int(label)] |= inside
    return filled if per_class else filled.any(1)


def _most(batch: Batch) -> int:
    """The highest label of a batch whose targets do not say how many there are."""
    assert batch.boxes is not None
    labels = [int(boxes[:, 4].max()) for boxes in batch.boxes if len(boxes)]
    return max([int(batch.targets.max()), *labels])
