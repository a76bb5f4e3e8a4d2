"""Maps that look at nothing: what a method has to beat."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["center"]


def center(size: tuple[int, int], *, sigma: float = 56.0, side: int = 224) -> NDArray[np.float64]:
    """A Gaussian at the image's centre: exp(-((y-c)² + (x-c)²) / 2σ²), c = side/2, x and y from 0 to side-1.

    The control of the WSOL benchmark (Choe et al., "Evaluating Weakly Supervised Object Localization Methods
    Right", CVPR 2020). Made at side×side whatever the image, so it follows the image's shape when resized.

    Args:
        size: (height, width) of the image; unused.
        sigma: in cells.
        side: of the map.

    Returns:
        (side, side) float64, largest at (side/2, side/2).

    >>> int(center((100, 200), side=4, sigma=1.0).argmax())
    10
    """
    distance = (np.arange(side) - side / 2) ** 2
    return np.exp(-(distance[:, None] + distance[None, :]) / (2 * sigma**2))
