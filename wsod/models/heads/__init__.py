"""What turns feature maps into logits. One file a head; HEADS names them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from wsod.models.heads.linear import attach_linear
from wsod.registry import Registry

__all__ = ["HEADS", "Head"]


@dataclass(frozen=True)
class Head:
    """A way to give a network its logits.

    Args:
        attach: (network, number of classes, target layer) → the network with that head.
        summary: one line for `wsod list heads`.
        attention: path, in the network this head is attached to, of the module whose output is the head's
            own attention map, (N, h, w) or (N, C, h, w); None where it has none.
        supervision: what training it uses.
        citation: where it was published.
    """

    attach: Callable[[nn.Module, int, str], nn.Module]
    summary: str
    attention: str | None = None
    supervision: tuple[str, ...] = ("image labels",)
    citation: str = ""


HEADS: Registry[Head] = Registry(
    "head",
    {"linear": Head(attach_linear, "the network's own head: one linear layer on its features")},
)
