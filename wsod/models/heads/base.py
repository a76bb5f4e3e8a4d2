"""What a head is, and what heads share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsod.errors import ModelError
from wsod.models.final import final_layer
from wsod.models.preprocess import Preprocess
from wsod.models.trunk import Steps, chain, example, nest, output_shapes, refine

__all__ = [
    "Attached",
    "Head",
    "HeadNetwork",
    "HeadOutput",
    "Site",
    "channels_of",
    "linear_on",
    "minmax",
    "mixture",
    "precise",
    "trunk_of",
]


@dataclass(frozen=True)
class Site:
    """What a head is put on, beside the network itself.

    Args:
        classes: number of logits.
        layer: path of the architecture's feature layer.
        preprocess: how the network's input is made.
        multilabel: whether every class is a question of its own (sigmoids) or one of them is true (softmax).
    """

    classes: int
    layer: str
    preprocess: Preprocess
    multilabel: bool = False


class Attached(NamedTuple):
    """A network with a head, and where to look into it.

    Attributes:
        network: (N, 3, H, W) → logits, or a `HeadOutput`.
        target_layer: path of the features that maps are made of.
        attention_layer: path of the module whose output the head's own map is read from; None = it has none.
    """

    network: nn.Module
    target_layer: str
    attention_layer: str | None = None


class HeadOutput(NamedTuple):
    """What a network gives that has further classifiers in it.

    Attributes:
        logits: (N, C), the answer.
        auxiliary: logits (N, C) of branches that are trained with the same labels and not asked later.
    """

    logits: Tensor
    auxiliary: tuple[Tensor, ...] = ()


class Head(ABC):
    """A way to give a network its logits. Concrete heads are frozen dataclasses of their options.

    Attributes:
        name: its name in `HEADS`.
        summary: one line for `wsod list heads`.
        supervision: what training it uses.
        citation: where it was published.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    supervision: ClassVar[tuple[str, ...]] = ("image labels",)
    citation: ClassVar[str] = ""

    @abstractmethod
    def attach(self, network: nn.Module, site: Site) -> Attached:
        """Put this head on a network, whose trunk is used as it is, weights included.

        Raises:
            ModelError: where it cannot go there.
        """

    @classmethod
    def readings(cls, found: Tensor | Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Maps by name, (N, h, w) or (N, C, h, w), from the attention layer's output; the usual one first."""
        return {"map": found} if isinstance(found, Tensor) else dict(found)


class HeadNetwork(nn.Module):
    """A network whose head is ours: `trunk` holds what came with the architecture, all else is the head.

    Attributes:
        multilabel: as `Site.multilabel`; may be changed as long as nothing was trained.
    """

    trunk: nn.Module

    def __init__(self, multilabel: bool) -> None:
        super().__init__()
        self.multilabel = multilabel


def trunk_of(network: nn.Module, site: Site, layer: str, stride: int, *, first: bool = False) -> Steps:
    """The steps up to `layer` (empty: the architecture's), at most `stride` pixels a cell (0: any)."""
    steps = chain(network, layer or site.layer, site.preprocess.size)
    if not stride:
        return steps
    size, module = site.preprocess.size, nest(steps)
    refine(module, example(network, size), -(-size // stride), first=first)
    # a pooling may have been replaced
    return [(path, module.get_submodule(path)) for path, _ in steps]


def linear_on(network: nn.Module, channels: int, classes: int) -> nn.Linear:
    """The network's own last layer where it is linear and fits (trained weights then stay), or a new one."""
    try:
        own = final_layer(network, classes)[1]
    except ModelError:
        return nn.Linear(channels, classes)
    if isinstance(own, nn.Linear) and (own.in_features, own.out_features) == (channels, classes):
        return own
    return nn.Linear(channels, classes)


def channels_of(steps: Steps, size: int) -> int:
    """Number of feature maps that a chain from the image gives."""
    module = nest(steps)
    return output_shapes([module], example(module, size))[0][0]


def precise(x: Tensor) -> Tensor:
    """Half precision raised to float32; everything else as it is."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def minmax(x: Tensor, eps: float = 1e-8) -> Tensor:
    """(..., h, w) scaled to [0, 1] over its positions, in float32 or better; a constant map becomes 0.

    The denominator is clamped, not replaced, so that gradients stay finite where a map is constant.
    """
    x = precise(x)
    low, high = x.amin((-2, -1), keepdim=True), x.amax((-2, -1), keepdim=True)
    return (x - low) / (high - low).clamp_min(eps)


def mixture(logits: Tensor, log_weights: Tensor, dim: int, *, multilabel: bool) -> Tensor:
    """Logits of Σ_m w_m·p_m, the mixture of several classifiers' probabilities.

    One true class: log Σ_m w_m·softmax_m, which softmax and cross-entropy take as it is. Several: the logit
    of Σ_m w_m·sigmoid_m, so that sigmoid and binary cross-entropy do.

    Args:
        logits: (N, C, …) of the classifiers along `dim`.
        log_weights: log w, broadcast against them; Σ_m w_m = 1.
        dim: the dimension the classifiers are along.
        multilabel: which of the two.
    """
    logits, log_weights = precise(logits), precise(log_weights)
    if not multilabel:
        return (logits.log_softmax(1) + log_weights).logsumexp(dim)
    yes = (F.logsigmoid(logits) + log_weights).logsumexp(dim)
    no = (F.logsigmoid(-logits) + log_weights).logsumexp(dim)
    return yes - no
