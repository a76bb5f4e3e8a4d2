"""Soft masks of an image, and what stands where it is masked away."""

from __future__ import annotations

from typing import Literal
from zlib import crc32

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from atcon.objectives.similarity import safe_std

__all__ = ["MaskScale", "blurred", "moved", "soft_mask"]

MaskScale = Literal["raw", "std"]


def soft_mask(saliency: Tensor, slope: float, scale: MaskScale = "raw") -> Tensor:
    """T = σ(w·(G − θ)), θ = mean(G) + std(G)/2, per image; with scale `std`, σ(w·(G − θ)/std(G)).

    Args:
        saliency: (N, H, W) or (N, T, H, W), G.
        slope: w.
        scale: `raw` or `std`. A constant G gives 0.5 everywhere with `std`.

    Returns:
        As `saliency`, in [0, 1].
    """
    mean = saliency.mean(tuple(range(1, saliency.ndim)), keepdim=True)
    std, positive = safe_std(saliency)
    above = saliency - mean - std / 2
    if scale == "std":
        above = torch.where(positive, above / torch.where(positive, std, torch.ones_like(std)), 0.0)
    return torch.sigmoid(slope * above)


def blurred(images: Tensor) -> Tensor:
    """The images (or frames) without detail: averaged over an eighth of their side, twice."""
    kernel = max(min(images.shape[-2:]) // 8, 1) | 1
    planes = images.flatten(1, -3)
    for _ in range(2):
        planes = F.avg_pool2d(planes, kernel, 1, kernel // 2, count_include_pad=False)
    return planes.view_as(images)


def moved(masks: Tensor, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Masks (N, H, W) or (N, T, H, W), each rolled by offsets drawn for its image.

    The draw is one of `generator` and the image's values: the same in whatever batch the image is.

    Args:
        masks: of each image.
        images: (N, 3, H, W) or (N, 3, T, H, W).
        generator: None = torch's global one.
    """
    over = tuple(range(masks.ndim - 1))
    # torch's default generator is the CPU's
    device = "cpu" if generator is None else generator.device
    draw = int(torch.randint(2**31, (), generator=generator, device=device))
    rolled = []
    for mask, image in zip(masks, images.detach().float().cpu(), strict=True):
        random = np.random.default_rng((draw, crc32(image.numpy().tobytes())))
        rolled.append(mask.roll(random.integers(0, mask.shape).tolist(), over))
    return torch.stack(rolled)
