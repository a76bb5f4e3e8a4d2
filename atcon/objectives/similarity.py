"""How alike two attention maps are, differentiable and safe where a map is constant."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from wsod.registry import Registry

__all__ = ["SIMILARITIES", "cosine", "pearson", "safe_std", "squashed", "ssim"]


def _cells(maps: Tensor) -> tuple[int, ...]:
    return tuple(range(1, maps.ndim))


def safe_std(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Unbiased standard deviation of each map, whose gradient is 0 and not NaN where the map is constant.

    Args:
        maps: (N, h, w), or (N, t, h, w).

    Returns:
        (N, 1, 1) deviations, and (N, 1, 1) whether the map varies by more than rounding errors. A NaN
        counts as varying, so that it is seen in the loss.
    """
    over = _cells(maps)
    centred = maps - maps.mean(over, keepdim=True)
    variance = centred.square().sum(over, keepdim=True) / (maps[0].numel() - 1)
    rounding = 8 * torch.finfo(maps.dtype).eps * maps.detach().abs().amax(over, keepdim=True)
    positive = ~(variance.detach().sqrt() <= rounding)
    std = torch.where(positive, torch.where(positive, variance, 1.0).sqrt(), 0.0)
    return std, positive


def squashed(maps: Tensor) -> tuple[Tensor, Tensor]:
    """S(M) = σ((M − mean M)/std M).

    Args:
        maps: (N, h, w), or (N, t, h, w).

    Returns:
        The same, and (N,) whether the map varies; a constant map gives 0.5 everywhere, with no gradient.
    """
    std, positive = safe_std(maps)
    centred = maps - maps.mean(_cells(maps), keepdim=True)
    scaled = torch.where(positive, centred / torch.where(positive, std, 1.0), 0.0)
    return torch.sigmoid(scaled), positive.flatten()


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """(N,) cosine of the angle between maps (N, …); 0 where one is zero."""
    over = _cells(a)
    norms = a.square().sum(over) * b.square().sum(over)
    positive = ~(norms.detach() <= 0)
    return torch.where(positive, (a * b).sum(over) / torch.where(positive, norms, 1.0).sqrt(), 0.0)


def pearson(a: Tensor, b: Tensor) -> Tensor:
    """(N,) Pearson correlation of maps (N, …); 0 where one is constant."""
    return cosine(a - a.mean(_cells(a), keepdim=True), b - b.mean(_cells(b), keepdim=True))


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """(N,) structural similarity of maps (N, h, w) of range 1, the mean over frames of those of videos.

    Gaussian window of 11 cells and deviation 1.5, zero padding, C₁ = 1e-4, C₂ = 9e-4.
    Wang et al., "Image quality assessment: from error visibility to structural similarity", 2004.
    """
    if a.ndim > 3:
        return ssim(a.flatten(0, -3), b.flatten(0, -3)).view(len(a), -1).mean(1)
    x = torch.arange(-5, 6, dtype=a.dtype, device=a.device)
    window = torch.exp(-x.square() / (2 * 1.5**2))
    window = window / window.sum()

    def mean(values: Tensor) -> Tensor:
        rows = F.conv2d(values[:, None], window[None, None, :, None], padding=(5, 0))
        return F.conv2d(rows, window[None, None, None, :], padding=(0, 5))[:, 0]

    mean_a, mean_b = mean(a), mean(b)
    variance_a, variance_b = mean(a * a) - mean_a**2, mean(b * b) - mean_b**2
    covariance = mean(a * b) - mean_a * mean_b
    c1, c2 = 1e-4, 9e-4
    top = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    return (top / ((mean_a**2 + mean_b**2 + c1) * (variance_a + variance_b + c2))).mean((1, 2))


SIMILARITIES: Registry[Callable[[Tensor, Tensor], Tensor]] = Registry(
    "similarity", {"pearson": pearson, "cosine": cosine, "ssim": ssim}
)
