"""Classification from image labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

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

    Args:
        label_smoothing: the truth is moved by this fraction towards indifference.
    """

    label_smoothing: float = 0.0

    name: ClassVar[str] = "supervised"
    needs: ClassVar[frozenset[str]] = frozenset({"labels"})
    supervision: ClassVar[tuple[str, ...]] = ("image labels",)

    def __call__(self, classifier: Classifier, batch: Batch, step: int) -> dict[str, Tensor]:
        logits = classifier(batch.images).float()
        return {self.name: supervised_loss(logits, batch.targets, label_smoothing=self.label_smoothing)}
