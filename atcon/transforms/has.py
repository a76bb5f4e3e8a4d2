"""Hide-and-Seek: hidden cells make the network look for more than the most telling part."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from atcon.data import Batch
from atcon.transforms.base import Transform
from wsod.errors import ConfigError

__all__ = ["HideAndSeek", "hidden_cells"]


def hidden_cells(size: tuple[int, int], images: int, cell: int, rate: float) -> Tensor:
    """(N, 1, H, W) bool: square cells, each hidden with probability `rate`, for each image anew."""
    height, width = size
    rows, columns = -(-height // cell), -(-width // cell)
    hidden = torch.rand(images, 1, rows, columns) < rate
    fine = hidden.repeat_interleave(cell, 2).repeat_interleave(cell, 3)
    return fine[..., :height, :width]


@dataclass(frozen=True)
class HideAndSeek(Transform):
    """Each cell of the image is replaced by the mean colour with probability `rate`.

    Singh and Lee, "Hide-and-Seek", ICCV 2017. Cells are drawn in the normalised image, where 0 is the mean
    colour.

    Args:
        cell: side of a cell in pixels of the input; the papers' grids are 16 to 56 at 224.
        rate: probability that a cell is hidden.
    """

    cell: int = 16
    rate: float = 0.5

    name: ClassVar[str] = "has"
    citation: ClassVar[str] = "Singh & Lee 2017"

    def __post_init__(self) -> None:
        if self.cell < 1:
            raise ConfigError("transform has: cell", "at least 1", self.cell)
        if not 0 <= self.rate <= 1:
            raise ConfigError("transform has: rate", "a fraction in [0, 1]", self.rate)

    def __call__(self, batch: Batch) -> Batch:
        height, width = batch.images.shape[2:]
        hidden = hidden_cells((height, width), len(batch), self.cell, self.rate).to(batch.images.device)
        return replace(batch, images=batch.images.masked_fill(hidden, 0.0))
