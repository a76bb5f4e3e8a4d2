"""Maps without a classifier: what a method has to beat."""

from __future__ import annotations

import hashlib
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from wsod.errors import ConfigError

MOST_CELLS = 10_000
__all__ = ["center", "center_point", "random", "sobel", "uniform"]


def center(size: tuple[int, int], *, image_id: str = "", sigma: float = 0.25) -> NDArray[np.float64]:
    """A Gaussian at the image's centre: exp(-((x - w/2)² / σ_x² + (y - h/2)² / σ_y²) / 2), scaled to [0, 1].

    x and y count from 0, so at 224×224 it is the control of the WSOL benchmark (Choe et al., "Evaluating
    Weakly Supervised Object Localization Methods Right", CVPR 2020), and at the image's size its maximum is
    the centre baseline of the pointing game.

    Args:
        size: (height, width) to make it at: the evaluation frame.
        image_id: has no effect.
        sigma: as a share of each side.

    Raises:
        ConfigError: for a sigma that is not above 0.

    Returns:
        (height, width) float64 in [0, 1].

    >>> int(center((4, 6)).argmax())
    15
    """
    if sigma <= 0:
        raise ConfigError("center: sigma", "a value above 0", sigma)
    return _gaussian(tuple(size), sigma).copy()


@lru_cache(maxsize=8)
def _gaussian(size: tuple[int, int], sigma: float) -> NDArray[np.float64]:
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


def uniform(size: tuple[int, int], *, image_id: str = "") -> NDArray[np.float64]:
    """One everywhere (the constant control of Quantus; Hedström et al., JMLR 2023).

    A constant map claims nothing: a miss for every metric that looks for a claim, 0.5 for `auc`.

    Args:
        size: (height, width) to make it at.
        image_id: has no effect.

    Returns:
        (height, width) float64.
    """
    return np.ones(size)


def random(
    size: tuple[int, int], *, image_id: str = "", cells: int = 14, seed: int = 0
) -> NDArray[np.float64]:
    """Uniform noise in [0, 1) on a grid of cells (the random control of Quantus; Hedström et al., JMLR 2023).

    Drawn from a generator of its own, seeded by `seed` and the image's name: the same whatever the order of
    the images and whatever else is computed.

    Args:
        size: (height, width) of the evaluation frame.
        image_id: the image.
        cells: along each side, as many as a typical layer's map has; 0 = one a pixel.
        seed: another draw.

    Returns:
        (cells, cells), or (height, width), float64.

    >>> bool((random((9, 9), image_id="a") == random((5, 5), image_id="a")).all())
    True
    """
    if not 0 <= cells <= MOST_CELLS:
        raise ConfigError("random: cells", f"0 to {MOST_CELLS}", cells)
    digest = hashlib.sha256(f"{seed} {image_id}".encode()).digest()
    generator = np.random.default_rng(list(digest))
    return generator.random((cells, cells) if cells else size)


def sobel(image: NDArray[np.float64]) -> NDArray[np.float64]:
    """√(G_x² + G_y²), Sobel's edges of the luminance (control of Quantus; Hedström et al., JMLR 2023).

    Args:
        image: (H, W, 3), red, green, blue in [0, 1]; its border is repeated outwards.

    Returns:
        (H, W) float64.
    """
    grey = np.pad(image.astype(np.float64) @ np.array([0.299, 0.587, 0.114]), 1, mode="edge")

    def edges(values: NDArray[np.float64]) -> NDArray[np.float64]:
        smooth = values[:-2] + 2 * values[1:-1] + values[2:]
        return smooth[:, 2:] - smooth[:, :-2]

    found: NDArray[np.float64] = np.hypot(edges(grey), edges(grey.T).T)
    return found
