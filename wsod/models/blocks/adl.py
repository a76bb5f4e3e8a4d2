"""ADL: while training, hide the most attended part of the features, or dwell on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from wsod.errors import ConfigError
from wsod.models.blocks.base import Block

__all__ = ["ADL", "ADLLayer"]


@dataclass(frozen=True)
class ADL(Block):
    """Attention-based Dropout Layer: with m = mean_c F, F·[m < γ·max m] or F·sigmoid(m) while training.

    Choe and Shim, "Attention-based Dropout Layer for Weakly Supervised Object Localization", CVPR 2019. Which
    of the two is drawn once a forward pass, for the whole batch. In evaluation it is the identity.

    Args:
        rate: probability of the drop mask.
        threshold: γ.
        layers: where, as paths; empty = as published on ResNet (`layer3.0`, `layer4.0`, `layer4.-1`) and
            VGG-16 (after the third pooling, `conv4_3`, `conv5_3`), elsewhere after the feature layer.
    """

    rate: float = 0.75
    threshold: float = 0.9
    layers: tuple[str, ...] = ()

    name: ClassVar[str] = "adl"
    summary: ClassVar[str] = "training: the most attended features are hidden, or dwelt on"
    citation: ClassVar[str] = "Choe & Shim 2019 (ADL)"

    def __post_init__(self) -> None:
        for option in ("rate", "threshold"):
            if not 0 <= getattr(self, option) <= 1:
                raise ConfigError(f"block adl: {option}", "a fraction in [0, 1]", getattr(self, option))

    def places(self, network: nn.Module, layer: str) -> tuple[str, ...]:
        if self.layers:
            return self.layers
        if hasattr(network, "layer3") and hasattr(network, "layer4"):
            return "layer3.0", "layer4.0", "layer4.-1"
        if layer == "features.-2":  # VGG: the ReLU before the last pooling
            pools = [
                i
                for i, m in enumerate(network.get_submodule("features").children())
                if isinstance(m, nn.MaxPool2d)
            ]
            if len(pools) == 5:
                return f"features.{pools[2]}", f"features.{pools[3] - 1}", f"features.{pools[4] - 1}"
        return (layer,)

    def make(self) -> nn.Module:
        return ADLLayer(self.rate, self.threshold)


class ADLLayer(nn.Module):
    """(N, C, h, w) → the same shape; no parameters."""

    def __init__(self, rate: float, threshold: float) -> None:
        super().__init__()
        self.rate, self.threshold = rate, threshold

    def forward(self, features: Tensor) -> Tensor:
        if not self.training:
            return features
        mean = features.mean(1, keepdim=True)
        if float(torch.rand(())) >= self.rate:
            return features * mean.sigmoid()
        top = mean.amax((2, 3), keepdim=True)
        return features * (mean < self.threshold * top).to(features.dtype)
