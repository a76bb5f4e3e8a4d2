"""How the logits come from the feature maps, found out from what a forward pass gave."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from wsod.maps.derivatives import full
from wsod.models.classifier import Classifier
from wsod.models.final import final_layer

__all__ = ["Form", "inspect_head"]

Form = Literal["linear", "rectified", "other"]


def inspect_head(classifier: Classifier, features: Tensor, logits: Tensor) -> tuple[Tensor, Form]:
    """(C, D) weights of the last layer, and which kind of head this batch shows it to be part of.

    `linear`: logits = W·mean(A) + b. `rectified`: mean(ReLU(W·A + b)), as in SqueezeNet.

    Args:
        classifier: the network.
        features: (N, D, h, w) A at the target layer.
        logits: (N, C).
    """
    layer = final_layer(classifier.network, logits.shape[1])[1]
    weights = full(layer.weight.flatten(1))
    fits = weights.shape == (logits.shape[1], features.shape[1])
    # torchvision's ViT starts with a head of zeros, which any features would seem to explain
    if not fits or (classifier.layout == "tokens" and not weights.any()):
        return weights, "other"
    tolerance = 0.05 if logits.dtype in (torch.bfloat16, torch.float16) else 1e-3
    with torch.no_grad():
        logits = full(logits)
        offset = 0.0 if layer.bias is None else full(layer.bias)
        limit = tolerance * (logits - offset).abs().max() + 1e-6 * logits.abs().max()
        pooled = features.mean((2, 3)) @ weights.T + offset
        if bool((pooled - logits).abs().max() <= limit):
            return weights, "linear"
        cells = torch.einsum("cd,ndhw->nhwc", weights, features) + offset
        if bool((cells.relu().mean((1, 2)) - logits).abs().max() <= limit):
            return weights, "rectified"
    return weights, "other"
