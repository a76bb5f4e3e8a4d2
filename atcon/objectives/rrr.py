"""Right for the right reasons: no input gradient where an annotation says that nothing matters.

Ross, Hughes and Doshi-Velez, "Right for the Right Reasons: Training Differentiable Models by Constraining
their Explanations", IJCAI 2017 (arXiv:1703.03717).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from atcon.data import Batch
from atcon.objectives.base import Objective
from atcon.objectives.foreground import Source, foreground_of
from atcon.objectives.heatmap import usable
from wsod.errors import ConfigError
from wsod.maps.tape import Tape
from wsod.models.classifier import Classifier

__all__ = ["RRR", "Explained", "Per", "rrr_loss"]

Explained = Literal["log_probabilities", "log_probability", "logit"]
Per = Literal["image", "pixel"]


def rrr_loss(
    classifier: Classifier,
    images: Tensor,
    targets: Tensor,
    foreground: Tensor,
    *,
    explained: Explained = "log_probabilities",
    per: Per = "image",
) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean over images of Σ (M·∂q/∂x)², M = 1 outside the foreground; one forward, differentiated twice.

    Args:
        classifier: run in evaluation mode: batch statistics would mix the images.
        images: (N, 3, H, W), preprocessed; the gradient is by these values, and so is its scale.
        targets: (N,) int64, or (N, C) multi-hot.
        foreground: (N, H, W), where gradients may be. Images whose mask is empty or full count zero.
        explained: q: the sum of the log-probabilities of all classes (as published; multi-label: of both
            answers of each class), of the true ones alone, or the true ones' logits.
        per: divide the sum by nothing (`image`), or by the values outside the foreground (`pixel`).

    Returns:
        The scalar, and detached: `share`, the gradient's squares outside the mask over all of them, a mean in
        which images that do not count are 0; `masked`, the fraction of those that do.
    """
    if explained not in ("log_probabilities", "log_probability", "logit"):
        raise ConfigError("rrr: explained", "log_probabilities, log_probability or logit", repr(explained))
    if per not in ("image", "pixel"):
        raise ConfigError("rrr: per", "image or pixel", repr(per))
    with torch.enable_grad():
        tape = Tape(
            classifier,
            images.detach(),
            needs=frozenset({"input_gradient"}),
            create_graph=True,
            eval_mode=True,
        )
        q = _explained(tape.logits, targets, explained)
        (gradient,) = torch.autograd.grad(q.sum(), tape.images, create_graph=True)
        squares = (gradient if gradient.dtype == torch.float64 else gradient.float()).square().sum(1)
        outside = 1 - foreground.to(squares.dtype)
        valid = usable(foreground.to(squares.dtype)[:, None])
        sums = (squares * outside).sum((1, 2))
        if per == "pixel":
            sums = sums / (outside.sum((1, 2)) * images.shape[1]).clamp(min=1)
        loss = torch.where(valid, sums, 0.0).mean()
    whole = squares.detach().sum((1, 2)).clamp(min=torch.finfo(squares.dtype).tiny)
    share = torch.where(valid, (squares.detach() * outside).sum((1, 2)) / whole, 0.0)
    return loss, {"share": share.mean(), "masked": valid.float().mean()}


def _explained(logits: Tensor, targets: Tensor, explained: Explained) -> Tensor:
    """(N,) q of each image."""
    if targets.ndim == 1:
        values = logits if explained == "logit" else logits.log_softmax(1)
        return values.sum(1) if explained == "log_probabilities" else values.gather(1, targets[:, None])[:, 0]
    values = logits if explained == "logit" else F.logsigmoid(logits)
    if explained == "log_probabilities":
        return (values + F.logsigmoid(-logits)).sum(1)
    return (values * targets.to(values.dtype)).sum(1)


@dataclass(frozen=True)
class RRR(Objective):
    """Right for the right reasons: the squared input gradient outside the objects. Beside `supervised`.

    The weight (λ) has a meaning only relative to the scale of inputs and loss: watch `rrr` beside
    `supervised`.

    Args: as `rrr_loss`, and
        source: the foreground: `masks` or `boxes`.
    """

    explained: Explained = "log_probabilities"
    per: Per = "image"
    source: Source = "masks"

    name: ClassVar[str] = "rrr"
    needs: ClassVar[frozenset[str]] = frozenset({"labels", "second_order"})
    supervision: ClassVar[tuple[str, ...]] = ("masks",)
    citation: ClassVar[str] = "Ross et al., IJCAI 2017"

    @property
    def requires(self) -> frozenset[str]:
        return self.needs | {self.source}

    @property
    def learned_from(self) -> tuple[str, ...]:
        return (self.source,)

    def __call__(self, classifier: Classifier, batch: Batch, step: int) -> dict[str, Tensor]:
        foreground = foreground_of(batch, self.source)
        loss, found = rrr_loss(
            classifier, batch.images, batch.targets, foreground, explained=self.explained, per=self.per
        )
        return {self.name: loss, **{f"{self.name}/{key}": value for key, value in found.items()}}
