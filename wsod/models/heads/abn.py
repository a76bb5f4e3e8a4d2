"""Attention Branch Network: a second classifier on middle features gives the map that gates them."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from wsod.errors import ModelError
from wsod.models.heads.base import (
    Attached,
    Head,
    HeadNetwork,
    HeadOutput,
    Site,
    linear_on,
    trunk_of,
)
from wsod.models.trunk import Steps, example, nest, output_shapes, refine

__all__ = ["ABN", "ABNNetwork"]


@dataclass(frozen=True)
class ABN(Head):
    """Attention Branch Network: one map an image from a second classifier, gating the last stage's input.

    Fukui, Hirakawa, Yamashita and Fujiyoshi, "Attention Branch Network", CVPR 2019. With G the features
    before the last stage, stage' a copy of it that keeps their grid, K the number of classes:

        Q = ReLU(BN(1×1_{C→K}(BN(stage'(G))))),  a = sigmoid(BN(3×3_{K→1}(Q))),
        logits = fc(mean(stage((1 + a)·G))),  branch logits = mean(1×1_{K→K}(Q))

    Both are trained with the labels. The copy starts from the stage's weights.

    Args:
        split: path of the layer whose output is G; empty = what comes before the last halving of the grid
            (ResNet's layer3).
    """

    split: str = ""

    name: ClassVar[str] = "abn"
    summary: ClassVar[str] = "map a of a second classifier on middle features G; logits from (1 + a)·G"
    citation: ClassVar[str] = "Fukui et al. 2019 (ABN)"

    def attach(self, network: nn.Module, site: Site) -> Attached:
        size = site.preprocess.size
        steps = trunk_of(network, site, "", 0)
        place = self._place(network, steps, size, site)
        body, stage = nest(steps[:place]), nest(steps[place:])
        channels, height, width = output_shapes([body], example(network, size))[0]
        twin = copy.deepcopy(stage)
        inputs = example(network, height, channels)[..., :width]
        refine(twin, inputs, height)
        final = output_shapes([stage], inputs)[0][0]
        fc = linear_on(network, final, site.classes)
        branch = AttentionBranch(twin, final, site.classes)
        return Attached(ABNNetwork(body, stage, branch, fc, site.multilabel), "trunk.1", "branch.attention")

    def _place(self, network: nn.Module, steps: Steps, size: int, site: Site) -> int:
        """How many steps come before the last stage."""
        if self.split:
            place = len(trunk_of(network, site, self.split, 0))
        else:
            heights = [
                h for _, h, _ in output_shapes([module for _, module in steps], example(network, size))
            ]
            place = heights.index(heights[-1])
        if not 0 < place < len(steps):
            raise ModelError(f"head abn, split {self.split!r}", "a layer with a stage after it", "the last")
        return place

    @classmethod
    def readings(cls, found: Tensor | object) -> dict[str, Tensor]:
        assert isinstance(found, Tensor)
        return {"map": found[:, 0]}


class AttentionBranch(nn.Module):
    """The second classifier: K maps, their logits, and the one map made of them.

    Args:
        stage: the copied stage, at the grid of its input.
        channels: that it gives.
        classes: K.
    """

    def __init__(self, stage: nn.Module, channels: int, classes: int) -> None:
        super().__init__()
        self.stage = stage
        self.maps = nn.Sequential(
            nn.BatchNorm2d(channels),
            nn.Conv2d(channels, classes, 1, bias=False),
            nn.BatchNorm2d(classes),
            nn.ReLU(),
        )
        self.attention = nn.Sequential(
            nn.Conv2d(classes, 1, 3, padding=1, bias=False), nn.BatchNorm2d(1), nn.Sigmoid()
        )
        self.logits = nn.Conv2d(classes, classes, 1)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """(N, C, h, w) → the map (N, 1, h, w) and logits (N, K)."""
        maps = self.maps(self.stage(features))
        return self.attention(maps), self.logits(maps).mean((2, 3))


class ABNNetwork(HeadNetwork):
    """A trunk in two parts with an attention branch between them."""

    def __init__(
        self,
        body: nn.Module,
        stage: nn.Module,
        branch: AttentionBranch,
        fc: nn.Linear,
        multilabel: bool = False,
    ) -> None:
        super().__init__(multilabel)
        self.trunk = nn.ModuleList([body, stage])
        self.branch, self.fc = branch, fc

    def forward(self, images: Tensor) -> HeadOutput:
        """(N, 3, H, W) → logits (N, K), and those of the branch."""
        body, stage = self.trunk.children()
        features = body(images)
        attention, auxiliary = self.branch(features)
        last = stage(features * (1 + attention))
        return HeadOutput(self.fc(last.mean((2, 3))), (auxiliary,))
