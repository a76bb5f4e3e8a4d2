"""CALM: where the cue lies is a latent variable, so the maps are probabilities."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from wsod.errors import ConfigError
from wsod.models.heads.base import Attached, Head, HeadNetwork, Site, channels_of, mixture, precise, trunk_of
from wsod.models.trunk import nest

__all__ = ["CALM", "CALMNetwork", "CueLocation"]

EPS = 1e-8


@dataclass(frozen=True)
class CALM(Head):
    """CALM: p(y|x) = Σ_z p(z|x)·p(y|x,z) over cue locations z; maps are probabilities, one a class.

    Kim, Choe, Akata and Oh, "Keep CALM and Improve Visual Feature Attribution", ICCV 2021. p(y|x,z) is the
    softmax over classes of a 1×1 convolution (sigmoids for multi-label data), p(z|x) = g_z / Σ g of another.
    The logits are log p(y|x), whose cross-entropy is the paper's marginal likelihood; its EM objective has
    the same gradient at equal parameters (Fisher's identity). Maps: `joint` p(y,z|x), the one the authors
    evaluate, `posterior` p(z|x,y), and `saliency` p(z|x). Evaluate them as they are, by the protocol
    `probability-maps`.

    Differs from the paper's code: there the sum Σ g is detached, so that every position's g is only ever
    pushed up (`detach_norm`, which needs the objective `likelihood`); g is a softplus, which cannot be zero
    everywhere as a ReLU can (`gate`).

    Args:
        gate: `softplus` or `relu` of the location's scores.
        detach_norm: the normaliser Σ g passes no gradient.
        stride: pixels a cell at most: 8 gives the paper's 28×28 at 224; 0 = the trunk as it is.
        layer: features it stands on, where they are not the architecture's last ones.
    """

    gate: Literal["softplus", "relu"] = "softplus"
    detach_norm: bool = False
    stride: int = 8
    layer: str = ""

    name: ClassVar[str] = "calm"
    summary: ClassVar[str] = "probability maps p(y,z|x) of cue locations z; p(y|x) is their sum"
    citation: ClassVar[str] = "Kim et al. 2021 (CALM)"

    def __post_init__(self) -> None:
        if self.stride < 0:
            raise ConfigError("head calm: stride", "at least 0", self.stride)

    def attach(self, network: nn.Module, site: Site) -> Attached:
        steps = trunk_of(network, site, self.layer, self.stride)
        channels = channels_of(steps, site.preprocess.size)
        location = CueLocation(channels, self.gate, self.detach_norm)
        found = CALMNetwork(nest(steps), location, nn.Conv2d(channels, site.classes, 1), site.multilabel)
        return Attached(found, "trunk", "joint")

    @classmethod
    def readings(cls, found: Tensor | Mapping[str, Tensor]) -> dict[str, Tensor]:
        assert isinstance(found, Mapping)
        joint = found["log_joint"].exp()
        posterior = (found["log_joint"] - found["log_joint"].logsumexp((2, 3), keepdim=True)).exp()
        return {"joint": joint, "posterior": posterior, "saliency": found["log_location"].exp()}


class CueLocation(nn.Module):
    """log p(z|x) = log g_z - log Σ g, (N, C, h, w) → (N, h, w)."""

    def __init__(self, channels: int, gate: Literal["softplus", "relu"], detach_norm: bool) -> None:
        super().__init__()
        self.score = nn.Conv2d(channels, 1, 1)
        self.gate, self.detach_norm = gate, detach_norm

    def forward(self, features: Tensor) -> Tensor:
        scores = precise(self.score(features)[:, 0])
        positive = (F.softplus(scores) if self.gate == "softplus" else scores.relu()) + EPS
        total = positive.sum((1, 2), keepdim=True)
        return positive.log() - (total.detach() if self.detach_norm else total).log()


class Joint(nn.Module):
    """log p(y,z|x) of every class and position, beside log p(z|x): what maps are read from."""

    def forward(self, classes: Tensor, location: Tensor, multilabel: bool) -> dict[str, Tensor]:
        classes = precise(classes)
        given = F.logsigmoid(classes) if multilabel else classes.log_softmax(1)
        return {"log_joint": given + location[:, None], "log_location": location}


class CALMNetwork(HeadNetwork):
    """A trunk with CALM's head."""

    def __init__(
        self, trunk: nn.Module, location: CueLocation, classes: nn.Conv2d, multilabel: bool = False
    ) -> None:
        super().__init__(multilabel)
        self.trunk, self.location, self.classes = trunk, location, classes
        self.joint = Joint()

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) → log p(y|x) (N, C), or for multi-label data the logits of p(y|x)."""
        features = self.trunk(images)
        classes, location = self.classes(features), self.location(features)
        joint: Tensor = self.joint(classes, location, self.multilabel)["log_joint"]
        if not self.multilabel:
            return joint.logsumexp((2, 3))
        return mixture(classes.flatten(2), location.flatten(1)[:, None], 2, multilabel=True)
