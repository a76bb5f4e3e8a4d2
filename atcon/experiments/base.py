"""What an experiment is: arms that are trained with several seeds, views they are scored by, contrasts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from atcon.config import FinetuneConfig
from atcon.experiments.readings import Reading
from atcon.experiments.views import View

__all__ = ["Arm", "Experiment", "Measure"]


@dataclass(frozen=True)
class Arm:
    """One way to train, once a seed.

    Args:
        name: unique; its runs are in `seedN/NAME`.
        config: (seed, folder of the seed) → what is trained. It may start from the checkpoint of an arm
            before it, `folder / "start" / "ft.pt"`. None = nothing is trained: a control for the views.
        views: what it is scored by.
    """

    name: str
    config: Callable[[int, Path], FinetuneConfig] | None
    views: tuple[View, ...]


@dataclass(frozen=True)
class Measure:
    """A column of the table.

    Args:
        name: of the readings.
        heading: in tables and plots.
        percent: whether it is a fraction shown in per cent.
    """

    name: str
    heading: str
    percent: bool = True


@dataclass(frozen=True, kw_only=True)
class Experiment(ABC):
    """Arms × seeds. Concrete experiments are frozen dataclasses whose fields are their options.

    Args:
        data: dataset, as `wsod data` names it.
        seeds: number of runs of each arm; a seed chooses initialisation, order and training images.
    """

    name: ClassVar[str]
    measures: ClassVar[tuple[Measure, ...]]

    data: str = "shapes"
    seeds: int = 5

    @abstractmethod
    def arms(self) -> tuple[Arm, ...]:
        """In the order they are trained."""

    @abstractmethod
    def read(self, folder: Path) -> Mapping[str, Mapping[str, Reading]]:
        """The rows of one seed: readings by row and measure.

        Rows need not be arms: what is read off two runs together, or off a control's maps, is a row too.

        Args:
            folder: of the seed, with a folder an arm.
        """

    @abstractmethod
    def contrasts(self) -> tuple[tuple[str, str], ...]:
        """Pairs (row, the row it is compared with)."""
