"""Narrow instances of torchvision's own network classes, whose forward passes are torchvision's.

Widths that those classes fix are cut here: without that, the twins of many passes would take minutes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torchvision.models import DenseNet, MobileNetV2, ResNet, SwinTransformer, VisionTransformer
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.models.vgg import VGG, make_layers
from torchvision.ops.misc import Conv2dNormActivation

from tests.maps.networks import CLASSES
from wsod.models import Classifier
from wsod.models.architectures import _LastReLU

__all__ = ["FAMILIES", "build"]


class NarrowResNet(ResNet):
    """An eighth of a ResNet-18's channels: 8, 8, 16, 32 and 64, whatever the block."""

    def __init__(self, block: type[BasicBlock | Bottleneck]) -> None:
        super().__init__(block, [1, 1, 1, 1])
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 7, 2, 3, bias=False), nn.BatchNorm2d(8)
        self.fc = nn.Linear(64, len(CLASSES))

    def _make_layer(self, block, planes, blocks, stride=1, dilate=False):
        self.inplanes = 8 if planes == 64 else self.inplanes
        return super()._make_layer(block, planes // 8 // block.expansion, blocks, stride, dilate)


def vgg(norm: bool) -> VGG:
    with torch.device("meta"):  # its fully connected layers of 4096, to be replaced
        network = VGG(nn.Identity(), init_weights=False)
    widths = [6, "M", 6, "M", 8, "M", 12, 12, "M"]
    network.features = make_layers(widths, batch_norm=norm)
    network.classifier = nn.Sequential(
        *(nn.Linear(12 * 49, 16), nn.ReLU(True), nn.Dropout(), nn.Linear(16, 16), nn.ReLU(True)),
        *(nn.Dropout(), nn.Linear(16, len(CLASSES))),
    )
    return network


def densenet() -> DenseNet:
    network = DenseNet(4, (2, 2, 2, 2), 8, num_classes=len(CLASSES))
    network.features.add_module("relu", _LastReLU())  # as `build_classifier` does
    return network


def mobilenet() -> MobileNetV2:
    settings = [[1, 8, 1, 1], [2, 8, 2, 2], [2, 12, 1, 2]]
    network = MobileNetV2(len(CLASSES), width_mult=0.25, inverted_residual_setting=settings, round_nearest=4)
    width = network.features[-1][0].in_channels
    network.features[-1] = Conv2dNormActivation(width, 16, kernel_size=1, activation_layer=nn.ReLU6)
    network.classifier[1] = nn.Linear(16, len(CLASSES))
    return network


def vit() -> VisionTransformer:
    return VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=len(CLASSES))


def swin() -> SwinTransformer:
    return SwinTransformer([4, 4], 8, [2, 2], [2, 2], [2, 2], num_classes=len(CLASSES))


@dataclass(frozen=True)
class Family:
    """How a narrow network is made, and where maps look into it.

    Args:
        make: the network.
        target: the target layer of its family.
        inner: further ones, on the way.
        size: of the images: the target layer has two cells a side, or more.
        options: of the classifier.
    """

    make: Callable[[], nn.Module]
    target: str
    inner: tuple[str, ...]
    size: int = 32
    options: dict[str, object] = field(default_factory=dict)


FAMILIES = {
    "resnet": Family(lambda: NarrowResNet(BasicBlock), "layer4", ("layer2", "layer3.0.conv2"), 48),
    "bottleneck": Family(lambda: NarrowResNet(Bottleneck), "layer4", ("layer1",), 48),
    # the second one is a convolution before an in-place ReLU
    "vgg": Family(lambda: vgg(False), "features.-2", ("features.4", "features.-3")),
    "vgg_bn": Family(lambda: vgg(True), "features.-2", ("features.-4",)),
    "densenet": Family(densenet, "features", ("features.transition1", "features.norm5"), 64),
    "mobilenet": Family(mobilenet, "features", ("features.2", "features.3.conv.0.0")),
    "vit": Family(
        vit,
        "encoder.layers.-1.ln_1",
        ("encoder.layers.encoder_layer_0",),
        32,
        {"layout": "tokens", "prefix": 1},
    ),
    "swin": Family(swin, "norm", ("features.1", "features.2"), 32, {"layout": "NHWC"}),
}


def build(name: str, target: str | None = None) -> tuple[Classifier, Tensor]:
    """A float64 classifier with random weights and statistics as after some training, and two images."""
    family = FAMILIES[name]
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(2, 3, family.size, family.size, generator=generator, dtype=torch.float64)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = family.make().double()
        largest = 6.0 if isinstance(network, MobileNetV2) else 1.5  # beyond where ReLU6 cuts
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None
                nn.init.normal_(module.bias, std=0.2)
                nn.init.uniform_(module.weight, 0.5, largest)
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
                if module.bias is not None:
                    nn.init.normal_(module.bias, std=0.2)
        with torch.no_grad():
            network.train()(images)
    network.eval()
    target = target or family.target
    found = Classifier(network, arch=name, classes=CLASSES, target_layer=target, **family.options)
    return found.eval(), images
