"""Maps that look at nothing: what a method has to beat."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["center", "center_point"]


def center(size: tuple[int, int], *, sigma: float = 0.25) -> NDArray[np.float64]:
    """A Gaussian at the image's centre: exp(-((x - w/2)² / σ_x² + (y - h/2)² / σ_y²) / 2), scaled to [0, 1].

    x and y count from 0, so at 224×224 it is the control of the WSOL benchmark (Choe et al., "Evaluating
    Weakly Supervised Object Localization Methods Right", CVPR 2020), and at the image's size its maximum is
    the centre baseline of the pointing game.

    Args:
        size: (height, width) to make it at: the evaluation frame.
        sigma: as a share of each side.

    Returns:
        (height, width) float64 in [0, 1].

    >>> int(center((4, 6)).argmax())
    15
    """
    vertical, horizontal = (((np.arange(side) - side / 2) / (sigma * side)) ** 2 for side in size)
    values: NDArray[np.float64] = np.exp(-(vertical[:, None] + horizontal[None, :]) / 2)
    values -= values.min()
    values /= max(float(values.max()), np.finfo(np.float64).tiny)
    return values


def center_point(size: tuple[int, int]) -> tuple[float, float]:
    """(w/2, h/2): the centre baseline of the pointing game (Fong et al., TorchRay, ICCV 2019).

    Between two pixels where a side is odd, which no maximum of a map can say.
    """
    return size[1] / 2, size[0] / 2
