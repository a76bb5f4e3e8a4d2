"""The ordinary head: the one linear layer (or 1×1 convolution) that a network gives its logits by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from wsod.errors import ModelError
from wsod.models.final import final_layer
from wsod.models.heads.base import Attached, Head, Site

__all__ = ["Linear"]


@dataclass(frozen=True)
class Linear(Head):
    """The network as it is: every architecture is built with the head it was published with."""

    name: ClassVar[str] = "linear"
    summary: ClassVar[str] = "the network's own head: one linear layer on its features"

    def attach(self, network: nn.Module, site: Site) -> Attached:
        path, layer = final_layer(network, site.classes)
        if len(layer.weight) != site.classes:
            expected = f"a last layer with {site.classes} outputs"
            raise ModelError(type(network).__name__, expected, f"{len(layer.weight)} in {path}")
        return Attached(network, site.layer)
