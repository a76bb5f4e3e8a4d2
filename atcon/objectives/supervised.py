"""Classification from image labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from atcon.data import Batch
from atcon.objectives.base import Objective
from wsod.models.classifier import Classifier

__all__ = ["Supervised", "supervised_loss"]


def supervised_loss(logits: Tensor, targets: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Binary cross-entropy of sigmoids for multi-hot targets, cross-entropy of the softmax for indices.

    Args:
        logits: (N, C).
        targets: (N, C) float multi-hot, or (N,) int64 class indices.
        label_smoothing: the truth is moved by this fraction towards indifference.

    Returns:
        The mean over images (and, for multi-hot targets, classes).
    """
    if targets.ndim == 2:
        smooth = targets.to(logits.dtype) * (1 - label_smoothing) + label_smoothing / 2
        return F.binary_cross_entropy_with_logits(logits, smooth)
    return F.cross_entropy(logits, targets, label_smoothing=label_smoothing)


@dataclass(frozen=True)
class Supervised(Objective):
    """Cross-entropy with the image labels: one sigmoid a class for multi-label data, else a softmax.

    Of images mixed with others, share · loss(own labels) + (1 - share) · loss(the other's). A network with
    auxiliary classifiers (ABN's branch) has the sum over all of them.

    Args:
        label_smoothing: the truth is moved by this fraction towards indifference.
    """

    label_smoothing: float = 0.0

    name: ClassVar[str] = "supervised"
    needs: ClassVar[frozenset[str]] = frozenset({"labels"})
    supervision: ClassVar[tuple[str, ...]] = ("image labels",)
    takes_mixed: ClassVar[bool] = True

    def __call__(self, classifier: Classifier, batch: Batch, step: int) -> dict[str, Tensor]:
        found = [self._loss(logits.float(), batch) for logits in classifier(batch.images, auxiliary=True)]
        scalars = {self.name: torch.stack(found).sum()}
        if len(found) > 1:
            # the answer's own, beside the sum that is trained
            scalars[f"{self.name}/logits"] = found[0].detach()
        return scalars

    def _loss(self, logits: Tensor, batch: Batch) -> Tensor:
        smooth = self.label_smoothing
        if batch.partners is None or batch.share is None:
            return supervised_loss(logits, batch.targets, label_smoothing=smooth)
        # of each image alone, since each has its own share
        rows = [
            share * supervised_loss(row, own, label_smoothing=smooth)
            + (1 - share) * supervised_loss(row, other, label_smoothing=smooth)
            for row, own, other, share in zip(
                *(values[:, None] for values in (logits, batch.targets, batch.partners)),
                batch.share,
                strict=True,
            )
        ]
        return torch.stack(rows).mean()
