"""The 32-pixel VGG of "Learn To Pay Attention" (Jetley et al., ICLR 2018), with and without room for it."""

from __future__ import annotations

from collections import OrderedDict
from typing import cast

from torch import Tensor, nn

__all__ = ["CifarVGG"]

_WIDTHS = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
_DROPS = (0.3, 0, 0.4, 0, 0.4, 0.4, 0, 0.4, 0.4, 0, 0.4, 0.4, 0)
_POOLED = (2, 4, 7, 10)  # a pooling follows these convolutions of the plain network


class CifarVGG(nn.Module):
    """Thirteen 3×3 convolutions with batch norm, dropout and max-pooling; then mean and a linear layer.

    The plain network has poolings after convolutions 2, 4, 7 and 10. For attention the first two are left
    out, so that convolutions 7, 10 and 13 give 256×32×32, 512×16×16 and 512×8×8 at 32 px (14,723,136
    parameters); at 80 px the pooling after the seventh is 5×5, so that the last two levels keep these sizes.

    Differs from the paper: the plain network ends in mean and linear layer in place of a fifth pooling and
    two linear layers; its three-level network for 80 px, whose pooling of 2.5 pixels is one of the Torch7
    code's own, is left out.

    Args:
        classes: number of logits.
        size: input side in pixels, 80 for the 5×5 pooling.
        attention: leave the first two poolings out.
        divide: every width divided by this.
    """

    def __init__(self, classes: int, size: int = 32, *, attention: bool = True, divide: int = 1) -> None:
        super().__init__()
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        inputs = 3
        for number, (width, drop) in enumerate(zip(_WIDTHS, _DROPS, strict=True), 1):
            width //= divide
            convolution = nn.Conv2d(inputs, width, 3, padding=1)
            nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(cast(Tensor, convolution.bias))
            block: list[nn.Module] = [convolution, nn.BatchNorm2d(width, eps=1e-3), nn.ReLU()]
            layers[f"conv{number}"] = nn.Sequential(*block, *([nn.Dropout(drop)] if drop else []))
            if number in _POOLED and not (attention and number < 7):
                side = 5 if attention and size == 80 and number == 7 else 2
                layers[f"pool{number}"] = nn.MaxPool2d(side, ceil_mode=True)
            inputs = width
        self.features = nn.Sequential(layers)
        self.fc = nn.Linear(inputs, classes)

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) → (N, classes)."""
        logits: Tensor = self.fc(self.features(images).mean((2, 3)))
        return logits
