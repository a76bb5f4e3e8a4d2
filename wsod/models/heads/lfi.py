"""LFI-CAM: a network that weighs its own feature maps, sums them to a map, and looks again where it says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsod.errors import ConfigError
from wsod.models.heads.base import (
    Attached,
    Head,
    HeadNetwork,
    Site,
    channels_of,
    linear_on,
    minmax,
    precise,
    trunk_of,
)
from wsod.models.preprocess import Preprocess
from wsod.models.trunk import chain, nest

__all__ = ["LFI", "LFINetwork", "LFIOutput"]

# channels beyond which the paper's four convolutions would dwarf the network: 151 M weights at 2048
WIDE, NARROW = 1024, 512


@dataclass(frozen=True)
class LFI(Head):
    """LFI-CAM: learned channel importance, one map an image, features seen again through it.

    Lee, Park, Oh and Kwak, "LFI-CAM: Learning Feature Importance for Better Visual Explanation", ICCV 2021.
    With F (N, C, h, w) the last features, Ig the grey image resized to h×w, N min-max scaling over positions:

        w = softmax_C(mean(FIN(N(F)·Ig))),  A = N(ReLU(Σ_k w_k·F_k)),  logits = fc(mean((1 + A)·F))

    Differs from the paper's code: min-max scaling divides by max(range, 1e-8), so that constant channels have
    finite gradients (there they have NaN); features with more than 1024 channels use the bottleneck.

    Args:
        fin: the Feature Importance Network: the `paper`'s four 3×3 convolutions as wide as the features, the
            `bottleneck` of 512 channels between two 1×1 convolutions, or `auto` by the number of channels.
        relu: after `each` batch norm of it (the ImageNet networks of the public code), or after every second
            (`pairs`, its CIFAR networks).
        stride: pixels a cell of the map at most; the trunk's last halvings are left out for it. 16 gives the
            paper's 14×14 at 224; 0 = the trunk as it is.
        halving: which of the trunk's halvings is left out: the `last`, or the `first` (as the public code
            does, at four times the work).
        gray: the grey image is the mean of the `normalized` channels (as the public code) or of the `pixel`s.
        detach_map: the classification loss does not reach the map.
        layer: features the map is made of, where they are not the architecture's last ones; what follows them
            runs after the attention.
    """

    fin: Literal["auto", "paper", "bottleneck"] = "auto"
    relu: Literal["each", "pairs"] = "each"
    stride: int = 16
    halving: Literal["last", "first"] = "last"
    gray: Literal["normalized", "pixel"] = "normalized"
    detach_map: bool = False
    layer: str = ""

    name: ClassVar[str] = "lfi"
    summary: ClassVar[str] = "map A = N(ReLU Σ w_k·F_k), w learned; logits from (1 + A)·F"
    citation: ClassVar[str] = "Lee et al. 2021 (LFI-CAM)"

    def __post_init__(self) -> None:
        if self.stride < 0:
            raise ConfigError("head lfi: stride", "at least 0", self.stride)

    def attach(self, network: nn.Module, site: Site) -> Attached:
        steps = trunk_of(network, site, self.layer, self.stride, first=self.halving == "first")
        whole = chain(network, site.layer, site.preprocess.size)
        channels = channels_of(steps, site.preprocess.size)
        rest = nest(whole[len(steps) :])
        final = channels_of([*steps, *whole[len(steps) :]], site.preprocess.size)
        fc = linear_on(network, final, site.classes)
        kind = self.fin if self.fin != "auto" else "paper" if channels <= WIDE else "bottleneck"
        fin = importance_network(channels, None if kind == "paper" else NARROW, self.relu)
        attention = Importance(fin, site.preprocess if self.gray == "pixel" else None)
        found = LFINetwork(nest(steps), attention, rest, fc, self.detach_map, site.multilabel)
        return Attached(found, "features", "attention")


class LFIOutput(NamedTuple):
    """What one pass computes.

    Attributes:
        logits: (N, classes).
        map: (N, h, w) in [0, 1].
        weights: (N, C) importance of the channels; positive, of sum 1.
        features: (N, C, h, w) the trunk's, before the attention.
    """

    logits: Tensor
    map: Tensor
    weights: Tensor
    features: Tensor

    def correlation(self) -> Tensor:
        """(N,) correlation of the map with the plain mean of the feature maps: 1 = nothing was learned."""
        a, b = (precise(x).flatten(1) for x in (self.map, self.features.mean(1)))
        a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
        norm: Tensor = a.norm(dim=1) * b.norm(dim=1)
        return (a * b).sum(1) / norm.clamp_min(1e-12)

    def entropy(self) -> Tensor:
        """(N,) entropy of the weights over its largest value, log C: 1 = all channels count alike."""
        total: Tensor = torch.special.entr(self.weights).sum(1)
        return total / torch.log(torch.tensor(float(self.weights.shape[1])))


class LFINetwork(HeadNetwork):
    """A trunk with LFI-CAM's head; `features` is what is pooled, so `cam` is exact there."""

    def __init__(
        self,
        trunk: nn.Module,
        attention: Importance,
        rest: nn.Module,
        fc: nn.Linear,
        detach_map: bool = False,
        multilabel: bool = False,
    ) -> None:
        super().__init__(multilabel)
        self.trunk, self.attention, self.features = trunk, attention, rest
        self.detach_map, self.fc = detach_map, fc

    def look(self, images: Tensor) -> LFIOutput:
        """Everything that one pass computes."""
        features = self.trunk(images)
        weights = self.attention.weights(features, images)
        found: Tensor = self.attention(features, weights)
        again = found.detach() if self.detach_map else found
        attended = self.features((1 + again[:, None].to(features.dtype)) * features)
        return LFIOutput(self.fc(attended.mean((2, 3))), found, weights, features)

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) → logits (N, classes)."""
        return self.look(images).logits


class Importance(nn.Module):
    """The attention branch: channel weights from masked images, and the map they make.

    Args:
        fin: (N, C, h, w) → (N, C, h, w), the Feature Importance Network before its pooling.
        preprocess: to take the normalisation of the images back before they become grey; None = leave it.
    """

    def __init__(self, fin: nn.Module, preprocess: Preprocess | None = None) -> None:
        super().__init__()
        self.fin = fin
        self.preprocess = preprocess

    def weights(self, features: Tensor, images: Tensor) -> Tensor:
        """softmax_C(mean(FIN(N(F)·Ig))), (N, C)."""
        gray = F.interpolate(self.gray(images), features.shape[-2:], mode="bilinear", align_corners=False)
        masked = minmax(features) * gray
        return precise(self.fin(masked.to(features.dtype)).mean((2, 3))).softmax(1)

    def gray(self, images: Tensor) -> Tensor:
        """(N, 1, H, W)."""
        if self.preprocess is not None:
            mean, std = (
                images.new_tensor(x)[:, None, None] for x in (self.preprocess.mean, self.preprocess.std)
            )
            images = images * std + mean
        return images.mean(1, keepdim=True)

    def forward(self, features: Tensor, weights: Tensor) -> Tensor:
        """N(ReLU(Σ_k w_k·F_k)) of the features as they are, (N, h, w)."""
        features = precise(features)
        return minmax(torch.einsum("nk,nkhw->nhw", weights.to(features.dtype), features).relu())


def importance_network(channels: int, inner: int | None, relu: Literal["each", "pairs"]) -> nn.Sequential:
    """Four 3×3 convolutions with batch norm, as wide as the features or, with `inner`, between 1×1 ones."""
    width = inner or channels
    layers: list[nn.Module] = []
    if inner:
        layers += [nn.Conv2d(channels, inner, 1, bias=False), nn.BatchNorm2d(inner), nn.ReLU()]
    for number in range(4):
        layers += [nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)]
        if relu == "each" or number % 2:
            layers.append(nn.ReLU())
    if inner:
        layers.append(nn.Conv2d(inner, channels, 1))
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(*layers)
