"""How a metric asks the classifier what it makes of a changed image, without knowing the classifier."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["Baseline", "Probe", "View"]

Baseline = Literal["mean", "black", "blur"]


@dataclass(frozen=True, eq=False)
class View:
    """A classifier's input: baseline + weights · (image - baseline), in its normalised space.

    Args:
        image_id: the image.
        weights: (H, W) bool or float in [0, 1], of the input's size; None = the image as it is.
        baseline: what is shown where the weight is 0: the preprocessing's `mean` colour (0 in normalised
            space), `black`, or the image under a Gaussian `blur` (sigma 5 px at 224, in proportion).
    """

    image_id: str
    weights: NDArray[Any] | None = None
    baseline: Baseline = "mean"


class Probe(Protocol):
    """A classifier, asked about views of images."""

    def frame(self, image_id: str) -> tuple[tuple[int, int], tuple[float, float, float, float] | None]:
        """The input's (height, width), and the region of the image it shows (None = all of it)."""
        ...

    def __call__(self, views: Iterable[View]) -> NDArray[np.float64]:
        """(M, classes) probabilities, a row a view. Views are taken as they fit into batches."""
        ...
