"""The likelihood of the label as a network of probabilities has it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from atcon.data import Batch
from atcon.objectives.base import Objective
from wsod.errors import ConfigError
from wsod.models.classifier import Classifier

__all__ = ["Likelihood"]


@dataclass(frozen=True)
class Likelihood(Objective):
    """-log p(y|x) of a head whose logits are log-probabilities (CALM), for single-label data.

    Kim et al., CALM, ICCV 2021, in its marginal form. Cross-entropy is the same wherever the probabilities
    sum to one by construction. With `detach_norm` they do so in value but not in gradient: cross-entropy
    normalises again, which takes the option's effect away, and this does not.
    """

    name: ClassVar[str] = "likelihood"
    needs: ClassVar[frozenset[str]] = frozenset({"labels"})
    supervision: ClassVar[tuple[str, ...]] = ("image labels",)
    citation: ClassVar[str] = "Kim et al. 2021 (CALM)"

    def __call__(self, classifier: Classifier, batch: Batch, step: int) -> dict[str, Tensor]:
        if classifier.head != "calm" or classifier.task != "multiclass":
            got = f"the head {classifier.head}, {classifier.task} data"
            raise ConfigError("objective likelihood", "the head calm and one class an image", got)
        return {self.name: F.nll_loss(classifier(batch.images).float(), batch.targets)}
