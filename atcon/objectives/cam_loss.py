"""CAM-loss: all activations must be where those of the true class are.

Wang et al., "Towards Learning Spatially Discriminative Feature Representations", ICCV 2021
(arXiv:2109.01359). Written from a description; its weight and schedule in the paper could not be looked up.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from atcon.data import Batch
from atcon.objectives.base import Objective
from wsod.errors import ConfigError, ModelError
from wsod.maps.extract import cases_of
from wsod.maps.method import combine
from wsod.maps.tape import Tape
from wsod.models.classifier import Classifier

__all__ = ["CamLoss", "Detached", "cam_loss", "unit_range"]

Detached = Literal["none", "cam"]


def unit_range(maps: Tensor, eps: float = 1e-8) -> tuple[Tensor, Tensor]:
    """(M - min)/(max - min + eps) of each map (M, h, w), and (M,) whether it varies; else it is all zero."""
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    varies = high.detach() > low.detach()
    return torch.where(varies, (maps - low) / torch.where(varies, high - low + eps, 1.0), 0.0), varies[
        :, 0, 0
    ]


def cam_loss(
    classifier: Classifier,
    images: Tensor,
    targets: Tensor,
    *,
    detach_weights: bool = True,
    detach_target: Detached = "none",
) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean over cells of |N(Σ_k F_k) - N(Σ_k W_yk·F_k)|, N to [0, 1], a mean over classes and images.

    F are the features that the classifier pools, not negative, W its weights. One forward pass.

    Args:
        classifier: linear on pooled features after a ReLU. Its mode is used as it is.
        images: (N, 3, H, W), preprocessed.
        targets: (N,) int64, or (N, C) multi-hot: then a mean over the classes an image shows.
        detach_weights: W is a constant here.
        detach_target: `cam`: the class's map is a constant, and only the sum is drawn to it.

    Returns:
        The scalar (0 for images without class or whose maps are constant), and detached: `spread` and
        `cam_spread`, the means of the two maps in [0, 1]; near 0 the map has shrunk to a point.

    Raises:
        ModelError: for another head, or features of either sign.
    """
    if detach_target not in ("none", "cam"):
        raise ConfigError("cam_loss: detach_target", "none or cam", repr(detach_target))
    with torch.enable_grad():
        tape = Tape(classifier, images.detach(), create_graph=True, eval_mode=False)
        features, weights = tape.features, tape.class_weights
        if not tape.linear_head or bool((features.detach() < 0).any()):
            raise ModelError(
                f"{classifier.arch}, cam_loss",
                "a linear classifier on pooled features of a ReLU",
                "features of either sign" if tape.linear_head else "another head",
                "Choose a target layer after a ReLU.",
            )
        cases = cases_of(targets.to(torch.int64), len(images), weights.shape[0]).to(features.device)
        rows, labels = cases.unbind(1)
        weights = weights.detach() if detach_weights else weights
        everything, varies = unit_range(features.sum(1))
        cam, varied = unit_range(combine(weights[labels], tape.select(cases)))
        gap = (everything[rows] - (cam.detach() if detach_target == "cam" else cam)).abs().mean((1, 2))
        known = (varies[rows] & varied).to(gap.dtype)
        # each image counts once, whatever it shows
        share = 1 / torch.bincount(rows, minlength=len(images)).clamp(min=1).to(gap.dtype)
        loss = (gap * known * share[rows]).sum() / len(images)
    return loss, {
        "spread": everything.detach().mean(),
        "cam_spread": (cam.detach().mean((1, 2)) * share[rows]).sum() / len(images),
    }


@dataclass(frozen=True)
class CamLoss(Objective):
    """CAM-loss: the sum of all feature maps must look like the true class's map. Beside `supervised`.

    It sharpens what the map covers now, which can be a part of the object: watch `cam_loss/spread`. Let the
    network learn before (`ramp`).

    Args: as `cam_loss`.
    """

    detach_weights: bool = True
    detach_target: Detached = "none"

    name: ClassVar[str] = "cam_loss"
    needs: ClassVar[frozenset[str]] = frozenset({"labels"})
    supervision: ClassVar[tuple[str, ...]] = ("image labels",)
    citation: ClassVar[str] = "Wang et al., ICCV 2021"

    def __call__(self, classifier: Classifier, batch: Batch, step: int) -> dict[str, Tensor]:
        loss, found = cam_loss(
            classifier,
            batch.images,
            batch.targets,
            detach_weights=self.detach_weights,
            detach_target=self.detach_target,
        )
        return {self.name: loss, **{f"{self.name}/{key}": value for key, value in found.items()}}
