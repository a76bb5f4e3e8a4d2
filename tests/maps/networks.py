"""Small networks that hold what breaks map code: ReLUs of every spelling, tokens, NHWC, odd heads."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import VisionTransformer

from wsod.maps import MapMethod
from wsod.maps.own import attention
from wsod.models import Classifier, build_classifier

CLASSES = tuple("abcd")

RELU_STYLES = (
    "module",
    "inplace",
    "shared",
    "functional",
    "functional_inplace",
    "method_inplace",
    "statement",
)


class ReluNet(nn.Module):
    """conv, ReLU, conv, ReLU, conv, ReLU, mean, linear; the style says how ReLU is spelt."""

    def __init__(self, style: str = "module") -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, 2, 1)
        self.second = nn.Conv2d(6, 8, 3, 1, 1)
        self.third = nn.Conv2d(8, 7, 3, 1, 1)
        self.fc = nn.Linear(7, len(CLASSES))
        self.style = style
        self.relus = nn.ModuleList([nn.ReLU(style == "inplace") for _ in range(3)])

    def relu(self, x: Tensor, index: int) -> Tensor:
        if self.style in ("module", "inplace"):
            return self.relus[index](x)
        if self.style == "shared":
            return self.relus[0](x)
        if self.style == "functional":
            return F.relu(x)
        if self.style == "functional_inplace":
            return F.relu(x, inplace=True)
        if self.style == "method_inplace":
            return x.relu_()
        torch.relu_(x)  # the result is not used, only the side effect
        return x

    def forward(self, x: Tensor) -> Tensor:
        for index, layer in enumerate((self.first, self.second, self.third)):
            x = self.relu(layer(x), index)
        return self.fc(x.mean((2, 3)))


class DeepHead(nn.Module):
    """Convolution with an in-place ReLU behind it, dropout, batch norm, and a head of two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.ReLU(inplace=True))
        self.last = nn.Conv2d(6, 5, 3, 1, 1)
        self.head = nn.Sequential(
            nn.ReLU(inplace=True),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(20, 9),
            nn.ReLU(inplace=True),
            nn.Dropout(0.5),
            nn.Linear(9, len(CLASSES)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(self.body(x)))


class ResidualNet(nn.Module):
    """Batch norms, ReLU6, a sum in place, a concatenation, max-pooling, two fully connected layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, 2, 1, bias=False)
        self.inner, self.outer = nn.Conv2d(4, 5, 3, 1, 1, bias=False), nn.Conv2d(5, 4, 3, 1, 1)
        self.norms = nn.ModuleList([nn.BatchNorm2d(channels) for channels in (4, 5, 4)])
        self.side = nn.Conv2d(4, 3, 3, 1, "same")
        self.hidden, self.fc = nn.Linear(7, 6), nn.Linear(6, len(CLASSES))
        self.relu = nn.ReLU(inplace=True)
        for norm in self.norms:
            nn.init.normal_(norm.bias, std=0.2)
            nn.init.uniform_(norm.weight, 0.5, 1.5)
        with torch.no_grad():
            self.norms[1].weight *= 30  # beyond 6
            self.norms[0].weight[1] *= -1
            self.norms[2].weight[:2] = torch.tensor([0.0, -1.0])

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norms[0](self.stem(x)))
        y = self.norms[2](self.outer(F.relu6(self.norms[1](self.inner(x)), inplace=True)))
        y += x
        y = self.relu(y)
        y = F.max_pool2d(torch.cat([y, self.relu(self.side(y))], 1), 2)
        return self.fc(self.relu(self.hidden(F.adaptive_avg_pool2d(y, 1).flatten(1))))


class ChannelsLastNet(nn.Module):
    """As Swin: the target layer's output is (N, h, w, D); h = 4, w = 6 and D = 5 for a 16×24 image."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 5, 4, 4)
        self.norm = nn.LayerNorm(5)
        self.head = nn.Linear(5, len(CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.patches(x).permute(0, 2, 3, 1)).mean((1, 2)))


class TokenNet(nn.Module):
    """As ViT: a class token, one attention block, the head on the class token."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.norm = nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))
        self.out = nn.Identity()
        self.head = nn.Linear(8, len(CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(x), -1, -1), tokens], 1)
        normed = self.norm(tokens)
        tokens = tokens + self.attention(normed, normed, normed, need_weights=False)[0]
        tokens = self.out(tokens + self.mlp(tokens))
        return self.head(tokens[:, 0])


class SmallViT(VisionTransformer):
    """torchvision's vision transformer: 4×4 patches of a 16×16 image, three blocks of two heads."""

    def __init__(self) -> None:
        super().__init__(16, 4, 3, 2, 8, 16, num_classes=len(CLASSES))
        nn.init.normal_(self.heads.head.weight)  # torchvision's start with zeros


_KINDS = {
    "relu": (ReluNet, "relus.2", {}),
    "deep": (DeepHead, "last", {}),
    "residual": (ResidualNet, "side", {}),
    "nhwc": (ChannelsLastNet, "norm", {"layout": "NHWC"}),
    "tokens": (TokenNet, "norm", {"layout": "tokens", "prefix": 1}),
    "vit": (SmallViT, "encoder.layers.-1.ln_1", {"layout": "tokens", "prefix": 1}),
}

ATTENTION = {"attentions", "attention_gradients"}


def suited(method: MapMethod) -> str:
    """The kind of network a method can work on."""
    if method.function is attention:
        return "lfi"
    if method.fit is not None:
        return "fitted"  # see test_broadcam.py
    return "vit" if method.needs & ATTENTION else "relu"


def make(kind: str, *, seed: int = 0, target_layer: str | None = None, style: str = "module") -> Classifier:
    """A float64 classifier with random weights and normalisation statistics, in evaluation mode."""
    if kind == "lfi":
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return build_classifier("smallnet", CLASSES, head="lfi", size=64).double().eval()
    build, target, options = _KINDS[kind]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = build(style) if build is ReluNet else build()
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.running_mean, std=0.2)
                nn.init.uniform_(module.running_var, 0.5, 2.0)
    network = network.double().eval()
    return Classifier(
        network, arch=kind, classes=CLASSES, target_layer=target_layer or target, **options
    ).eval()


def batch(n: int = 3, size: tuple[int, int] = (16, 16), seed: int = 1) -> Tensor:
    return torch.randn(n, 3, *size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
