"""Learn To Pay Attention: the classifier sees nothing but what attention at several layers lets through."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsod.errors import ConfigError
from wsod.models.heads.base import Attached, Head, HeadNetwork, Site, minmax, mixture, precise, trunk_of
from wsod.models.trunk import example, nest, output_shapes

__all__ = ["LTPA", "GlobalBranch", "LTPANetwork", "LTPAOutput", "Level", "PositionSoftmax"]

Compatibility = Literal["pc", "dp", "pc_relu"]
Combination = Literal["concat", "indep", "indep_poe"]


@dataclass(frozen=True)
class LTPA(Head):
    """Learn To Pay Attention: at each level s, a = softmax over positions of c(l_i, g), context Σ a_i·l_i.

    Jetley, Lord, Lee and Torr, "Learn To Pay Attention", ICLR 2018. l_i are the features at a position of the
    level, g the global vector of a branch after the last one. The classifier sees the contexts alone.

    `pc` is c = <u, l + g>. Its <u, g> is the same at every position, and the softmax takes it away: the map
    does not depend on g and the global branch is not trained. `dp` is c = <l, g>. `pc_relu`, <u, ReLU(l +
    g)>, is ours and does depend on it.

    Convolutions start from N(0, 2 / (k²·outputs)) as in the paper's code, u thus from N(0, 2): on features
    wider or stronger than its networks' the map then starts as nearly one-hot; `scaled` is the remedy.

    Differs from the paper's code: gradients add up where the graph forks (`grad_merge = "mean"` averages them
    as that code does); `indep` averages probabilities as the paper says (`indep_poe`, the code's sum of
    log-probabilities).

    Args:
        compat: how a position is compared with the global vector.
        combine: `concat` (one linear layer on all contexts), `indep` (one a level, probabilities averaged),
            `indep_poe` (log-probabilities summed).
        project: where the widths differ, bring g down to the level's (`g_down`) or the level up to g's
            (`l_up`).
        grad_merge: gradients of a fork are summed (`sum`) or averaged (`mean`).
        scaled: divide c by √(width), which keeps it from starting as one-hot, `dp` most of all.
        context_bn: batch norm, ReLU and dropout between contexts and classifier.
        drop: that dropout.
        levels: how many; the last layers of the last so many grids.
        layers: paths of the levels' layers instead, in order.
    """

    compat: Compatibility = "pc"
    combine: Combination = "concat"
    project: Literal["g_down", "l_up"] = "g_down"
    grad_merge: Literal["sum", "mean"] = "sum"
    scaled: bool = False
    context_bn: bool = True
    drop: float = 0.5
    levels: int = 2
    layers: tuple[str, ...] = ()

    name: ClassVar[str] = "ltpa"
    summary: ClassVar[str] = "maps a = softmax c(l, g) at several layers; logits from Σ a·l alone"
    citation: ClassVar[str] = "Jetley et al. 2018 (LTPA)"

    def __post_init__(self) -> None:
        if self.levels < 1:
            raise ConfigError("head ltpa: levels", "at least 1", self.levels)
        if not 0 <= self.drop < 1:
            raise ConfigError("head ltpa: drop", "a probability below 1", self.drop)

    def attach(self, network: nn.Module, site: Site) -> Attached:
        steps = trunk_of(network, site, self.layers[-1] if self.layers else "", 0)
        ends = self._ends(network, site, [module for _, module in steps])
        starts = [0, *ends[:-1]]
        pieces = [nest(steps[a:b]) for a, b in zip(starts, ends, strict=True)]
        shapes = output_shapes(pieces, example(network, site.preprocess.size))
        widths = [channels for channels, _, _ in shapes]
        return Attached(
            LTPANetwork(pieces, widths, site.classes, self, site.multilabel),
            f"trunk.{len(pieces) - 1}",
            "attention",
        )

    def _ends(self, network: nn.Module, site: Site, modules: Sequence[nn.Module]) -> list[int]:
        """How many steps there are up to and including each level."""
        if self.layers:
            ends = [len(trunk_of(network, site, layer, 0)) for layer in self.layers]
            if sorted(set(ends)) != ends:
                raise ConfigError("head ltpa: layers", "different layers in order", ", ".join(self.layers))
            return ends
        heights = [h for _, h, _ in output_shapes(modules, example(network, site.preprocess.size))]
        last = {height: place for place, height in enumerate(heights, 1)}
        if len(last) < self.levels:
            raise ConfigError("head ltpa: levels", f"at most {len(last)} grids of the trunk", self.levels)
        return list(last.values())[-self.levels :]

    @classmethod
    def readings(cls, found: Tensor | Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`product` (renormalised geometric mean of levels), `mean` of the min-max scaled, and each level.

        Levels are brought to the finest grid, bilinearly.
        """
        assert isinstance(found, Mapping)
        levels = {name: precise(maps) for name, maps in found.items()}
        size = max((maps.shape[-2:] for maps in levels.values()), key=lambda shape: shape[0] * shape[1])
        fine = [_resized(maps, size) for maps in levels.values()]
        product = torch.stack([x.clamp_min(1e-30).log() for x in fine]).mean(0).exp()
        product = product / product.sum((1, 2), keepdim=True)
        # a sums to one over its level, so values of levels compare only after scaling
        mean = torch.stack([minmax(x, 1e-30) for x in fine]).mean(0)
        return {"product": product, "mean": mean, **levels}


def _resized(maps: Tensor, size: torch.Size) -> Tensor:
    if maps.shape[-2:] == size:
        return maps
    return F.interpolate(maps[:, None], tuple(size), mode="bilinear", align_corners=False)[:, 0]


class _ScaledGradient(torch.autograd.Function):
    """The identity, whose gradient is multiplied by a factor."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, factor: float) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
        ctx.factor = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad * ctx.factor, None


def forked(x: Tensor, edges: int, merge: Literal["sum", "mean"]) -> Tensor:
    """`x` as one of so many edges out of a fork sees it: with `mean` its gradient is divided by that."""
    if merge == "sum" or edges == 1:
        return x
    return cast(Tensor, _ScaledGradient.apply(x, 1 / edges))


class GlobalBranch(nn.Module):
    """From the last level to the global vector: twice pooling and convolution, then a linear layer.

    (N, C, h, w) → (N, C); 4,984,320 parameters at C = 512. No activation after the linear layer.
    """

    def __init__(self, channels: int, drop: float = 0.5) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(2):
            layers += [
                # one cell stays one
                nn.MaxPool2d(2, ceil_mode=True),
                nn.Conv2d(channels, channels, 3, padding=1),
                nn.BatchNorm2d(channels, eps=1e-3),
                nn.ReLU(),
                nn.Dropout(min(drop, 0.4)),
            ]
        self.body = nn.Sequential(*layers, nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Dropout(drop))
        self.fc = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        g: Tensor = self.fc(self.body(x))
        return g


class Level(nn.Module):
    """Compatibility of one level's features with the global vector.

    Args:
        width: channels of the level.
        outer: of the global vector.
        head: its options.
    """

    def __init__(self, width: int, outer: int, head: LTPA) -> None:
        super().__init__()
        self.compat, self.scaled = head.compat, head.scaled
        up = head.project == "l_up"
        self.width = outer if up else width
        self.lift = nn.Conv2d(width, outer, 1) if up and width != outer else nn.Identity()
        self.lower = (
            nn.Sequential(nn.BatchNorm1d(outer), nn.ReLU(), nn.Dropout(head.drop), nn.Linear(outer, width))
            if not up and width != outer
            else nn.Identity()
        )
        self.u = nn.Conv2d(self.width, 1, 1) if head.compat != "dp" else None

    def forward(self, features: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        """(N, C, h, w), (N, D) → scores (N, h, w), and the features the context is made of."""
        values: Tensor = self.lift(features)
        g = self.lower(g)[:, :, None, None]
        if self.u is None:
            scores = (precise(values) * precise(g)).sum(1)
        else:
            both = values + g
            scores = precise(self.u(both.relu() if self.compat == "pc_relu" else both)[:, 0])
        return scores / self.width**0.5 if self.scaled else scores, values


class PositionSoftmax(nn.Module):
    """Scores of each level → attention of sum one over its positions."""

    def forward(self, scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: c.flatten(1).softmax(1).reshape(c.shape) for name, c in scores.items()}


class LTPAOutput(NamedTuple):
    """What one pass computes.

    Attributes:
        logits: (N, classes).
        attention: by level, (N, h, w), of sum one.
        scores: by level, (N, h, w), before the softmax.
        contexts: by level, (N, C), before batch norm.
        described: (N, ΣC), what the classifier sees.
        g: (N, C) the global vector.
    """

    logits: Tensor
    attention: dict[str, Tensor]
    scores: dict[str, Tensor]
    contexts: dict[str, Tensor]
    described: Tensor
    g: Tensor


class LTPANetwork(HeadNetwork):
    """A trunk in pieces, a level of attention at the end of each.

    Args:
        pieces: of the trunk, in order.
        widths: channels each gives.
        classes: number of logits.
        head: the options.
        multilabel: as `Site.multilabel`.
    """

    def __init__(
        self,
        pieces: Sequence[nn.Module],
        widths: Sequence[int],
        classes: int,
        head: LTPA,
        multilabel: bool = False,
    ) -> None:
        super().__init__(multilabel)
        self.trunk = nn.ModuleList(pieces)
        self.combine, self.merge = head.combine, head.grad_merge
        self.branch = GlobalBranch(widths[-1], head.drop)
        self.levels = nn.ModuleList(Level(width, widths[-1], head) for width in widths)
        self.attention = PositionSoftmax()
        seen = [cast(Level, level).width for level in self.levels]
        self.described = nn.ModuleList(
            nn.Sequential(nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(head.drop))
            if head.context_bn
            else nn.Identity()
            for width in seen
        )
        outputs = [sum(seen)] if head.combine == "concat" else seen
        self.fc = nn.ModuleList(nn.Linear(width, classes) for width in outputs)
        for part in (self.branch, self.levels):
            for layer in part.modules():
                if isinstance(layer, nn.Conv2d):
                    # of u too: with PyTorch's own 1/√(3·width) the map starts flat, and stays so
                    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                    nn.init.zeros_(cast(Tensor, layer.bias))

    def look(self, images: Tensor) -> LTPAOutput:
        """Everything that one pass computes."""
        x, features = images, []
        for piece in self.trunk.children():
            found = piece(x)
            features.append(forked(found, 2, self.merge))
            x = forked(found, 2, self.merge)
        return self.attend(features, self.branch(x))

    def attend(self, features: Sequence[Tensor], g: Tensor) -> LTPAOutput:
        """What follows from the levels' features and the global vector."""
        names = [f"level{number}" for number in range(1, len(features) + 1)]
        edge = forked(g, len(features), self.merge)
        pairs = [level(x, edge) for level, x in zip(self.levels.children(), features, strict=True)]
        scores = {name: c for name, (c, _) in zip(names, pairs, strict=True)}
        attention = self.attention(scores)
        contexts = {
            name: torch.einsum("nhw,nchw->nc", attention[name], precise(values))
            for name, (_, values) in zip(names, pairs, strict=True)
        }
        described = [
            part(context.to(g.dtype))
            for part, context in zip(self.described.children(), contexts.values(), strict=True)
        ]
        return LTPAOutput(self._logits(described), attention, scores, contexts, torch.cat(described, 1), g)

    def _logits(self, described: Sequence[Tensor]) -> Tensor:
        if self.combine == "concat":
            logits: Tensor = self.fc[0](torch.cat(list(described), 1))
            return logits
        each = torch.stack([fc(x) for fc, x in zip(self.fc.children(), described, strict=True)], 2)
        if self.combine == "indep":
            even = torch.full_like(each[:1, :1], 1 / each.shape[2]).log()
            return mixture(each, even, 2, multilabel=self.multilabel)
        return each.sum(2) if self.multilabel else precise(each).log_softmax(1).sum(2)

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) → logits (N, classes)."""
        return self.look(images).logits
