"""GAIN: with its attention erased, an image must no longer be recognised.

Li, Wu, Peng, Ernst and Fu, "Tell Me Where to Look: Guided Attention Inference Network", CVPR 2018
(arXiv:1802.10171). Written from a description; there is no code of the authors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from atcon.data import Batch
from atcon.objectives.base import Objective
from atcon.objectives.cam_loss import unit_range
from atcon.objectives.foreground import Source, foreground_of
from wsod.errors import ConfigError
from wsod.maps.extract import cases_of
from wsod.maps.method import combine
from wsod.maps.tape import Tape
from wsod.models.classifier import Classifier, evaluation_mode

__all__ = ["Filling", "Gain", "gain_loss"]

Filling = Literal["mean", "blur", "zero"]


def gain_loss(
    classifier: Classifier,
    images: Tensor,
    targets: Tensor,
    *,
    slope: float = 10.0,
    threshold: float = 0.5,
    fill: Filling = "mean",
    create_graph: bool = False,
    freeze_second_pass: bool = False,
    foreground: Tensor | None = None,
    mask_weight: float = 0.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean over images of p_c(x - T⊙(x - fill)), T = σ(ω·(N(U(A)) - θ)), A the Grad-CAM of a class shown.

    A = ReLU(Σ_k w_k·F_k), w_k = mean ∂s_c/∂F_k; U bilinear upsampling; N to [0, 1]. One erased copy of the
    image for each class it shows; p is the softmax's, or for multi-hot targets the sigmoid's.

    Args:
        classifier: run in evaluation mode, both times.
        images: (N, 3, H, W), preprocessed.
        targets: (N,) int64, or (N, C) multi-hot.
        slope: ω.
        threshold: θ.
        fill: what is put in the place of what is erased: the data set's `mean` colour (zero after
            preprocessing), a `blur` of the image, or `zero`, black.
        create_graph: differentiate through w_k too (no implementation found does).
        freeze_second_pass: parameters are constants in the pass of the erased image: only the attention
            learns from it.
        foreground: (N, C, H, W), for `mask_weight`; classes without a pixel count zero.
        mask_weight: of the mean (N(U(A)) - mask)² (GAIN_ext, with pixel truth).

    Returns:
        The scalar, and detached: `erased_score`, the mean p_c; `attention`, the mean of T; `mask`, the term
        of masks.
    """
    if fill not in ("mean", "blur", "zero"):
        raise ConfigError("gain: fill", "mean, blur or zero", repr(fill))
    images = images.detach()
    with torch.enable_grad():
        tape = Tape(classifier, images, create_graph=True)
        cases = cases_of(targets.to(torch.int64), len(images), tape.logits.shape[1]).to(images.device)
        rows, labels = cases.unbind(1)
        weights = tape.gradient(cases, create_graph).mean((2, 3))
        cams = combine(weights if create_graph else weights.detach(), tape.select(cases)).relu()
        size = images.shape[2:]
        attention = unit_range(
            F.interpolate(cams[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]
        )[0]
        mask = torch.sigmoid(slope * (attention - threshold))
        shown = images[rows]
        erased = (shown - mask[:, None] * (shown - _filling(classifier, shown, fill))).to(images.dtype)
        scores = _scores(classifier, erased, freeze_second_pass)
        p = (scores.sigmoid() if targets.ndim == 2 else scores.softmax(1)).gather(1, labels[:, None])[:, 0]
        share = 1 / torch.bincount(rows, minlength=len(images)).clamp(min=1).to(p.dtype)
        loss = (p * share[rows]).sum() / len(images)
        seen = p.new_zeros(())
        if foreground is not None and mask_weight:
            truth = foreground[rows, labels].to(attention.dtype)
            known = truth.flatten(1).amax(1) > 0
            each = torch.where(known, (attention - truth).square().mean((1, 2)), 0.0)
            seen = (each * share[rows]).sum() / len(images)
            loss = loss + mask_weight * seen
    return loss, {
        "erased_score": (p.detach() * share[rows]).sum() / len(images),
        "attention": (mask.detach().mean((1, 2)) * share[rows]).sum() / len(images),
        "mask": seen.detach(),
    }


def _scores(classifier: Classifier, images: Tensor, frozen: bool) -> Tensor:
    with evaluation_mode(classifier):
        if not frozen:
            scores: Tensor = classifier(images)
            return scores.float() if scores.dtype != torch.float64 else scores
        constants = {name: value.detach() for name, value in classifier.named_parameters()}
        scores = functional_call(classifier, constants, (images,))
    return scores.float() if scores.dtype != torch.float64 else scores


def _filling(classifier: Classifier, images: Tensor, fill: Filling) -> Tensor:
    if fill == "blur":
        kernel = max(min(images.shape[2:]) // 8, 1) | 1
        return F.avg_pool2d(images, kernel, 1, kernel // 2, count_include_pad=False)
    if fill == "mean":
        return torch.zeros_like(images)
    preprocess = classifier.preprocess
    black = [-mean / std for mean, std in zip(preprocess.mean, preprocess.std, strict=True)]
    return images.new_tensor(black).reshape(1, -1, 1, 1).expand_as(images)


@dataclass(frozen=True)
class Gain(Objective):
    """GAIN: the class's score once its Grad-CAM is erased from the image. Beside `supervised`.

    Args: as `gain_loss`, and
        mask_weight: with more than 0, GAIN_ext: the attention is drawn to the masks (or boxes) too.
        source: of which, `masks` or `boxes`.
    """

    slope: float = 10.0
    threshold: float = 0.5
    fill: Filling = "mean"
    create_graph: bool = False
    freeze_second_pass: bool = False
    mask_weight: float = 0.0
    source: Source = "masks"

    name: ClassVar[str] = "gain"
    needs: ClassVar[frozenset[str]] = frozenset({"labels", "second_order"})
    supervision: ClassVar[tuple[str, ...]] = ("image labels",)
    citation: ClassVar[str] = "Li et al., CVPR 2018"

    @property
    def requires(self) -> frozenset[str]:
        return self.needs | {self.source} if self.mask_weight else self.needs

    @property
    def learned_from(self) -> tuple[str, ...]:
        return (*self.supervision, self.source) if self.mask_weight else self.supervision

    def __call__(self, classifier: Classifier, batch: Batch, step: int) -> dict[str, Tensor]:
        foreground = foreground_of(batch, self.source, per_class=True) if self.mask_weight else None
        options = {key: value for key, value in vars(self).items() if key != "source"}
        loss, found = gain_loss(classifier, batch.images, batch.targets, foreground=foreground, **options)
        return {self.name: loss, **{f"{self.name}/{key}": value for key, value in found.items()}}
