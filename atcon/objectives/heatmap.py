"""What is asked of a relevance map: none of it on the background, a natural amount on the foreground.

Bassi et al., "Improving deep neural network generalization and robustness to background bias via layer-wise
relevance propagation optimization", Nature Communications 15:291, 2024 (arXiv:2202.00232), the loss in the
form of the authors' code since 2023. Written from its description; tests re-derive it sort by sort.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from wsod.errors import ConfigError

__all__ = [
    "background_loss",
    "background_share",
    "cuts_of",
    "default_decay",
    "foreground_loss",
    "gwrp",
    "shrunk",
    "usable",
]

_TINY = 1e-10
# weights below this share of the largest are left out
_NEGLIGIBLE = 1e-7


def gwrp(values: Tensor, decay: float) -> Tensor:
    """Global weighted ranked pooling, Σ d^i·v_(i) / Σ d^i over values in descending order v_(0) ≥ v_(1) ≥ …

    Kolesnikov and Lampert, "Seed, Expand and Constrain", ECCV 2016. d = 1 is the mean, d = 0 the maximum; in
    between, about 1 / (1 - d) values count. Only those whose weight is above 1e-7 are sorted out.

    Args:
        values: (..., n).
        decay: d.

    Returns:
        (...).

    >>> gwrp(torch.tensor([1.0, 4.0, 2.0]), 0.5).item()  # (4 + 2/2 + 1/4) / (1 + 1/2 + 1/4)
    3.0
    """
    if not 0 <= decay <= 1:
        raise ConfigError("decay", "a number from 0 (maximum) to 1 (mean)", decay)
    if decay == 1:
        return values.mean(-1)
    if decay == 0:
        return values.amax(-1)
    n = values.shape[-1]
    kept = min(n, math.ceil(math.log(_NEGLIGIBLE) / math.log(decay)))
    weights = decay ** torch.arange(kept, device=values.device, dtype=values.dtype)
    return (values.topk(kept, -1).values * weights).sum(-1) * ((1 - decay) / (1 - decay**n))


def default_decay(pixels: int) -> float:
    """d for maps of so many pixels: 0.9 up to 64×64, 0.996 at 224×224, as in the authors' settings.

    >>> default_decay(64 * 64), round(default_decay(224 * 224), 3)
    (0.9, 0.996)
    """
    return 0.9 if pixels <= 64 * 64 else 1 - 200 / pixels


def background_loss(
    relevance: Tensor,
    foreground: Tensor,
    *,
    decay: float | None = None,
    energy: float = 1.0,
    cap: float = 0.0,
) -> Tensor:
    """L₁ = mean over channels of log(1 + g/E), g the pooled |R| outside the mask over its mean inside.

    -log(1 - g/(g + E)), the cross-entropy of g/(g + E) with 0, is log(1 + g/E); so written it needs no
    clamp.

    Args:
        relevance: (M, D, h, w) R, signed.
        foreground: (M, 1, h, w) or (M, D, h, w), 1 inside the mask, else 0.
        decay: of `gwrp`; None = `default_decay`.
        energy: E: the relative background relevance whose loss is log 2.
        cap: largest loss of a channel (the authors' clamp gives 16.118); 0 = none.

    Returns:
        (M,). 0 where no relevance is outside; it does not change when R is multiplied by a number.
    """
    size = relevance.abs()
    inside = (size * foreground).sum((1, 2, 3), keepdim=True)
    area = foreground.expand_as(relevance).sum((1, 2, 3), keepdim=True)
    mean = inside / (area + _TINY)
    outside = (size * (1 - foreground) / (mean + _TINY)).flatten(2)
    pooled = gwrp(outside, default_decay(outside.shape[2]) if decay is None else decay)
    found = torch.log1p(pooled / energy)
    return (found.clamp(max=cap) if cap else found).mean(1)


def foreground_loss(
    relevance: Tensor, foreground: Tensor, cuts: tuple[float, float], *, hybrid: bool = True
) -> Tensor:
    """L₂, a valley: 0 where the absolute relevance inside the mask, s = Σ|R|·M, is between C₁ and C₂.

    (min(s/C₁, 1) - 1)² + (max(s/C₁, C₂/C₁) - C₂/C₁)². `hybrid` (Bassi et al., "Faster ISNet", 2024,
    arXiv:2401.08409): beyond C₁ + C₂, where this is 1, it goes on as 1 + s - (C₁ + C₂), so that relevance
    that explodes does not explode the loss.

    Args:
        relevance: (M, D, h, w) R, signed, as it is.
        foreground: (M, 1, h, w) or (M, D, h, w), 1 inside the mask, else 0.
        cuts: C₁ and C₂.
        hybrid: see above.

    Returns:
        (M,).
    """
    low, high = cuts
    if not 0 < low <= high:
        raise ConfigError("cuts", "0 < C1 <= C2", f"{low}, {high}")
    total = (relevance.abs() * foreground).sum((1, 2, 3))
    short = (total / low).clamp(max=1) - 1
    over = (total.clamp(max=low + high) if hybrid else total).clamp(min=high) / low - high / low
    valley = short.square() + over.square()
    return valley + (total - (low + high)).clamp(min=0) if hybrid else valley


def cuts_of(totals: Tensor) -> tuple[float, float]:
    """C₁ = max(m/5, m - 3σ) and C₂ = min(25·C₁, m + 3σ) of the absolute relevance in a trained network.

    Args:
        totals: (n,) Σ|R| of each map, m their mean and σ their standard deviation.

    >>> cuts_of(torch.tensor([8.0, 12.0]))
    (4.0, 16.0)
    """
    totals = totals.double()
    mean, std = float(totals.mean()), float(totals.std(correction=0)) if len(totals) > 1 else 0.0
    if not math.isfinite(mean) or mean <= 0:
        raise ConfigError("cuts", "relevance to tune them by", f"a mean of {mean:g}", "Train a little first.")
    low = max(mean / 5, mean - 3 * std)
    return low, max(low, min(25 * low, mean + 3 * std))


def usable(foreground: Tensor) -> Tensor:
    """(M,) whether masks (M, 1, h, w) say anything: neither empty nor full."""
    flat = foreground.flatten(1)
    return (flat.amax(1) > 0) & (flat.amin(1) < 1)


def shrunk(foreground: Tensor, like: Tensor) -> Tensor:
    """(M, 1, H, W) as (M, 1, h, w), the cells of `like`: one with any foreground in it is foreground."""
    height, width = like.shape[2:]
    return (F.adaptive_avg_pool2d(foreground, (height, width)) > 0).to(foreground.dtype)


def background_share(relevance: Tensor, foreground: Tensor) -> Tensor:
    """(M,) Σ|R|·(1 - M) / Σ|R|; 0 where there is no relevance."""
    size = relevance.abs()
    whole = size.sum((1, 2, 3))
    return (size * (1 - foreground)).sum((1, 2, 3)) / whole.clamp(min=torch.finfo(whole.dtype).tiny)
