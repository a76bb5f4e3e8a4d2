"""Derivatives against central differences."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

__all__ = ["check_slope"]


def check_slope(
    loss: Callable[[], Tensor], parameters: Sequence[Tensor], found: Sequence[Tensor], tolerance: float = 1e-4
) -> None:
    """The derivative along a random direction, by the gradients `found` and by central differences."""
    generator = torch.Generator().manual_seed(3)
    directions = [torch.randn(p.shape, generator=generator, dtype=p.dtype) * 0.01 for p in parameters]
    slope = float(sum((g * d).sum() for g, d in zip(found, directions, strict=True)))
    values = []
    for step in (1e-6, -1e-6):
        with torch.no_grad():
            for p, d in zip(parameters, directions, strict=True):
                p.add_(step * d)
        values.append(float(loss().detach()))
        with torch.no_grad():
            for p, d in zip(parameters, directions, strict=True):
                p.sub_(step * d)
    assert (values[0] - values[1]) / 2e-6 == pytest.approx(slope, rel=tolerance)
    assert abs(slope) > 0
