"""The fast gradient sign method: how quickly a classifier is led astray."""

from __future__ import annotations

import torch
from torch import Tensor

from atcon.objectives.supervised import supervised_loss
from wsod.models import Classifier
from wsod.models.classifier import evaluation_mode

__all__ = ["fgsm"]


def fgsm(classifier: Classifier, images: Tensor, targets: Tensor, epsilon: float) -> Tensor:
    """x + ε·sign(∂ loss / ∂ x), pixels kept in [0, 1] (Goodfellow, Shlens and Szegedy, ICLR 2015).

    Args:
        classifier: in whatever mode; it is asked in evaluation mode.
        images: (N, 3, H, W) preprocessed.
        targets: as a batch has them.
        epsilon: the step in pixel values, of the range [0, 1].

    Returns:
        Preprocessed images; no pixel is further than ε from where it was.
    """
    x = images.detach().clone().requires_grad_()
    with evaluation_mode(classifier), torch.enable_grad():
        loss = supervised_loss(classifier(x), targets)
        (gradient,) = torch.autograd.grad(loss, x)
    mean, std = (
        images.new_tensor(value)[:, None, None]
        for value in (classifier.preprocess.mean, classifier.preprocess.std)
    )
    pixels = images * std + mean
    moved = (pixels + epsilon * gradient.sign()).clamp(0, 1)
    # pixels that were outside by rounding are not moved by that alone
    return images + torch.where(gradient == 0, 0.0, (moved - pixels.clamp(0, 1)) / std)
