"""What a transform of training batches is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from atcon.data import Batch

__all__ = ["Transform"]


class Transform(ABC):
    """A change of the images a step trains on. Concrete ones are frozen dataclasses of their options.

    Draws come from torch's global generator, whose state a run saves.

    Attributes:
        name: its name in `TRANSFORMS`.
        mixes: whether images come to show parts of others, which not every objective can learn from.
        citation: where it is from.
    """

    name: ClassVar[str]
    mixes: ClassVar[bool] = False
    citation: ClassVar[str] = ""

    @abstractmethod
    def __call__(self, batch: Batch) -> Batch:
        """The batch as the objectives get it; the given one is left as it is."""
