"""Small networks whose batch norms hold plausible statistics, for tests of objectives."""

from __future__ import annotations

import torch
from torch import nn

from wsod.models.classifier import Classifier
from wsod.models.smallnet import SmallNet

CLASSES = ("ant", "bee", "cat", "dog", "elk")


class Bottleneck(nn.Module):
    def __init__(self, inside: int, width: int, stride: int, activation: type[nn.Module]) -> None:
        super().__init__()
        out = 4 * width
        self.conv1, self.bn1 = nn.Conv2d(inside, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, out, 1, bias=False), nn.BatchNorm2d(out)
        self.skip = nn.Sequential(nn.Conv2d(inside, out, 1, stride, bias=False), nn.BatchNorm2d(out))
        self.act1, self.act2, self.act3 = activation(), activation(), activation()

    def forward(self, x):
        y = self.act1(self.bn1(self.conv1(x)))
        y = self.act2(self.bn2(self.conv2(y)))
        return self.act3(self.bn3(self.conv3(y)) + self.skip(x))


class MiniResNet(nn.Module):
    """Bottleneck residual network of width 16 and stride 16: 6x6 cells at 96x96."""

    def __init__(self, activation: type[nn.Module] = nn.ReLU, dropout: float = 0.0) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 7, 4, 3, bias=False), nn.BatchNorm2d(16)
        self.act = activation()
        self.layer1 = nn.Sequential(Bottleneck(16, 16, 2, activation), Bottleneck(64, 16, 1, activation))
        self.layer2 = nn.Sequential(Bottleneck(64, 16, 2, activation), Bottleneck(64, 16, 1, activation))
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(64, len(CLASSES))

    def forward(self, x):
        x = self.layer2(self.layer1(self.act(self.bn1(self.conv1(x)))))
        return self.fc(self.dropout(x.mean((2, 3))))


def photos(n: int = 3, size: tuple[int, int] = (96, 96), seed: int = 0, dtype=torch.float64):
    """Smooth random images of roughly unit variance."""
    random = torch.Generator().manual_seed(seed)
    coarse = torch.randn(n, 3, 12, 12, generator=random, dtype=dtype)
    fine = torch.randn(n, 3, *size, generator=random, dtype=dtype)
    return nn.functional.interpolate(coarse, size, mode="bilinear") + 0.3 * fine


def mini_classifier(
    dtype=torch.float64,
    seed: int = 0,
    activation: type[nn.Module] = nn.ReLU,
    dropout: float = 0.0,
    task: str = "multiclass",
) -> Classifier:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = MiniResNet(activation, dropout).to(dtype)
        with torch.no_grad():
            for parameter in network.parameters():
                if parameter.ndim == 1:
                    parameter.add_(0.2 * torch.randn_like(parameter))
            network.fc.weight.mul_(100)  # gradients at the image as large as a trained network's
            network.train()
            for step in range(6):
                network(photos(8, seed=100 + step, dtype=dtype))
            # so that images differ in their top class
            network.fc.bias.sub_(network.eval()(photos(4, dtype=dtype)).mean(0))
    classifier = Classifier(network, arch="mini", classes=CLASSES, target_layer="layer2", task=task)
    return classifier.eval()


class DoubleNet(SmallNet):
    """SmallNet in float64 whatever it is given, so that the order of sums hardly shows."""

    def forward(self, images):
        return super().forward(images.double())


def double_net(classes: int) -> nn.Module:
    return DoubleNet(classes).double()
