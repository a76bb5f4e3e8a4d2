"""What an objective is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from wsod.models.classifier import Classifier

if TYPE_CHECKING:
    from atcon.data import Batch

__all__ = ["Objective"]


class Objective(ABC):
    """A term of a loss. Concrete objectives are frozen dataclasses whose fields are their options.

    Attributes:
        name: its name in `OBJECTIVES`.
        needs: what must be there: `labels` (it reads them), `masks`, `boxes` (the batch then has them),
            `second_order` (it differentiates gradients of the network, sample by sample: batch norm must not
            use batch statistics).
        supervision: what truth it learns from, for the ledger.
        takes_mixed: it can learn from images that were mixed with others (`Batch.partners`).
        citation: where it is from.
    """

    name: ClassVar[str]
    needs: ClassVar[frozenset[str]]
    supervision: ClassVar[tuple[str, ...]]
    takes_mixed: ClassVar[bool] = False
    citation: ClassVar[str] = ""

    @property
    def requires(self) -> frozenset[str]:
        """`needs` with these options."""
        return self.needs

    @property
    def learned_from(self) -> tuple[str, ...]:
        """`supervision` with these options."""
        return self.supervision

    def begun(self, classifier: Classifier, batches: Iterable[Batch]) -> Objective:
        """The objective for a stage that begins: options set by what is measured on the network as it is.

        Args:
            classifier: that the stage starts from; left as it is.
            batches: the first images of the objective's pool, the same in every process.
        """
        return self

    @abstractmethod
    def __call__(self, classifier: Classifier, batch: Batch, step: int) -> dict[str, Tensor]:
        """Scalars by name: the term under the objective's own name, and detached diagnostics under
        `name/…`, only logged.

        All are means over all images of the batch (those that have no say count 0), so that the parts of a
        batch add up to it.
        """
