"""CutMix: a box of another image is pasted in, and its labels count by area."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from atcon.data import Batch
from atcon.transforms.base import Transform
from wsod.errors import ConfigError

__all__ = ["CutMix"]


@dataclass(frozen=True)
class CutMix(Transform):
    """A box of another image of the batch, of area 1 - λ, λ ~ Beta(β, β); λ is then what is left.

    Yun et al., "CutMix", ICCV 2019. One box for the whole batch: sides √(1 - λ)·(W, H), centre uniform, cut
    off at the border.

    Args:
        beta: of the Beta distribution; 1 = uniform.
        rate: probability that a batch is mixed.
    """

    beta: float = 1.0
    rate: float = 1.0

    name: ClassVar[str] = "cutmix"
    mixes: ClassVar[bool] = True
    citation: ClassVar[str] = "Yun et al. 2019"

    def __post_init__(self) -> None:
        if not self.beta > 0:
            raise ConfigError("transform cutmix: beta", "above 0", self.beta)
        if not 0 <= self.rate <= 1:
            raise ConfigError("transform cutmix: rate", "a fraction in [0, 1]", self.rate)

    def __call__(self, batch: Batch) -> Batch:
        if float(torch.rand(())) >= self.rate:
            return batch
        height, width = batch.images.shape[2:]
        share = float(torch.distributions.Beta(self.beta, self.beta).sample())
        side = (1 - share) ** 0.5
        x, y = torch.rand(2).tolist()
        x0, x1 = (_within(x * width + sign * side * width / 2, width) for sign in (-1, 1))
        y0, y1 = (_within(y * height + sign * side * height / 2, height) for sign in (-1, 1))
        order = torch.randperm(len(batch)).to(batch.images.device)
        images = batch.images.clone()
        images[:, :, y0:y1, x0:x1] = batch.images[order, :, y0:y1, x0:x1]
        kept = 1 - (x1 - x0) * (y1 - y0) / (width * height)
        shares = torch.full((len(batch),), kept, device=images.device)
        return replace(batch, images=images, partners=batch.targets[order], share=shares)


def _within(place: float, side: int) -> int:
    return min(max(int(place), 0), side)
